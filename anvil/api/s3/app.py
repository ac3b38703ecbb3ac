"""The S3 API: from a stream to an answer, whatever happens on the way.

Owns: the order address -> authenticate -> parse -> route -> handle, error answers, and what is told to metrics and access
log. Invariants: each stream gets exactly one answer, or is cut when an answer that was begun cannot be finished; a client
sees no stack, no path, no secret; nothing but `/` and the mounted paths is answered without authentication having run. Not
here: what operations do.
"""

from __future__ import annotations

import asyncio
import logging
import random
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from anvil.api.finished import CLIENT_GONE, Observer
from anvil.api.operations import access
from anvil.api.operations.caller import Services
from anvil.api.s3 import features
from anvil.api.s3.call import Call
from anvil.api.s3.errors import classify, error_headers, error_xml, redirect_endpoint
from anvil.api.s3.ports import Authenticator, OpenBody
from anvil.api.s3.request import Address, parse_address, parse_request
from anvil.api.s3.routes import refuse, resolve
from anvil.api.s3.xml import CONTENT_TYPE, Xml
from anvil.auth.hosts import Hosts
from anvil.auth.types import Authenticated, SignedElsewhere
from anvil.base.errors import AnvilError, NoSuchBucket, PermanentRedirect
from anvil.base.limits import DRAIN_BODY_BYTES_MAX, LINGER_S, READ_BYTES
from anvil.base.underway import waited
from anvil.net.stream import Headers, RequestHead, Stream

log = logging.getLogger(__name__)

AdminHandler = Callable[[Stream], Awaitable[None]]


class Refused(Protocol):
    """A request that was refused before it reached a handler; `code` is S3's."""

    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


def new_request_id() -> str:
    """16 upper-case hex digits, as S3's look. Unique enough to find a request in a log; nothing depends on its being secret."""
    return f"{random.getrandbits(64):016X}"


class S3Api:
    """Serves S3 on streams. `base_domains`: names under which `bucket.name` addresses a bucket. `admin_paths`: exact paths
    (`/ready`, `/metrics`, ...) served to unsigned GET and HEAD. `observers` are called once for each request, after it."""

    def __init__(
        self,
        services: Services,
        open_body: OpenBody,
        authenticator: Authenticator,
        *,
        base_domains: Sequence[str] = (),
        admin_paths: Mapping[bytes, AdminHandler] | None = None,
        observers: Sequence[Observer] = (),
        host_id: str = "",
        request_ids: Callable[[], str] = new_request_id,
    ) -> None:
        self._services = services
        self._open_body = open_body
        self._authenticator = authenticator
        self._virtual_bucket = Hosts(base_domains).virtual_bucket if base_domains else None
        self._admin = dict(admin_paths or {})
        self._observers = tuple(observers)
        self._host_id = b64encode(host_id.encode("utf-8")).decode("ascii") or "anvil"
        self._request_ids = request_ids

    async def __call__(self, stream: Stream) -> None:
        """Answer one request. Raises nothing but CancelledError."""
        call = Call(self._services, self._open_body, stream, self._request_ids(), self._host_id)
        try:
            await self._serve(call)
        except asyncio.CancelledError:
            if call.status == 0:
                call.status = CLIENT_GONE
            raise
        except ConnectionError:
            # The client went away while bytes were being written to it.
            call.status = call.status or CLIENT_GONE
            stream.abort()
        except Exception as error:
            await self._fail(call, error)
        finally:
            self._observe(call)

    def refusal(self, refused: Refused) -> tuple[Headers, bytes]:
        """What to answer to a request that `net` refuses before there is a stream: the same document and headers as any error."""
        request_id = self._request_ids()
        doc = Xml()
        doc.open("Error")
        for name, value in (("Code", refused.code), ("Message", refused.message), ("RequestId", request_id)):
            doc.text(name, value)
        doc.text("HostId", self._host_id)
        doc.close("Error")
        headers = [
            CONTENT_TYPE,
            (b"x-amz-request-id", request_id.encode("ascii")),
            (b"x-amz-id-2", self._host_id.encode("ascii")),
        ]
        return headers, doc.bytes()

    async def _serve(self, call: Call) -> None:
        head = call.stream.head
        address = parse_address(head, self._virtual_bucket)
        if head.method in ("GET", "HEAD") and not address.virtual and await self._serve_node(call, head, address):
            return
        try:
            call.auth = await self._authenticator.authenticate(head)
            waited("auth", call.started_at)
        except SignedElsewhere as signed:
            call.auth = Authenticated(signed.principal)
            raise await self._elsewhere(call, address.bucket) or signed.error from None
        call.request = parse_request(head, address, signed=not call.principal.anonymous)
        route = resolve(call.request)
        call.operation = route.operation
        if route.handler is None:
            raise refuse(route)
        if call.request.special:
            features.check(call.request.special, call.request.headers)
        await route.handler(call)

    async def _elsewhere(self, call: Call, bucket: str) -> PermanentRedirect | None:
        """Where the bucket of a request that was signed for another region is, if it is not here and its sender may know."""
        if not bucket:
            return None
        try:
            await access.visible(call, bucket)
        except PermanentRedirect as error:
            return error
        except NoSuchBucket:
            return None
        return None

    async def _serve_node(self, call: Call, head: RequestHead, address: Address) -> bool:
        """Liveness and the mounted paths, for requests without credentials. True when the request was one of these."""
        admin = self._admin.get(head.path)
        if (admin is None and address.bucket) or _has_credentials(head):
            return False
        if admin is None:
            call.operation = "Liveness"
            body = b"OK\n"
            length = [(b"content-length", b"%d" % len(body))] if head.method == "HEAD" else []
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *length]
            await call.respond(200, headers, b"" if head.method == "HEAD" else body)
            return True
        call.operation = "Admin"
        call.status = 200  # whatever it answers: the handler owns its stream
        await admin(call.stream)
        return True

    async def _fail(self, call: Call, error: Exception) -> None:
        face = classify(error)
        if isinstance(error, PermanentRedirect) and (url := error.fields.get("Endpoint")):
            virtual = self._virtual_bucket is not None and self._virtual_bucket(call.stream.head.authority) is not None
            error.fields["Endpoint"] = redirect_endpoint(str(url), str(error.fields["Bucket"]), virtual=virtual)
        call.error_code = face.code
        if not isinstance(error, AnvilError):
            log.error("request %s (%s) failed", call.request_id, call.operation, exc_info=error)
        elif face.status == 500:
            log.error("request %s (%s): %s", call.request_id, call.operation, error.message)
        if call.stream.started:
            # An answer that was begun promises bytes that will not come.
            call.stream.abort()
            return
        if face.status < 500 and call.stream.head.header(b"x-forwarded-for") is not None:
            await _take_body(call.stream)
        document = error_xml(error, face, resource=call.resource, request_id=call.request_id, host_id=self._host_id)
        headers = [CONTENT_TYPE, *error_headers(error, face)]
        if call.stream.head.method == "HEAD":
            headers.append((b"content-length", b"%d" % len(document)))
            document = b""
        try:
            await call.respond(face.status, headers, document)
        except (AnvilError, OSError) as broken:
            log.debug("request %s: the error could not be sent: %s", call.request_id, broken)
            call.stream.abort()

    def _observe(self, call: Call) -> None:
        finished = call.finished()
        for observer in self._observers:
            try:
                observer(finished)
            except Exception:
                log.exception("request %s: an observer failed", call.request_id)


async def _take_body(stream: Stream) -> None:
    """Take what is left of a refused request's body before the answer is given, if it is not much and comes soon. A proxy that gets an
    answer first stops reading from its client, and those written in Go (Caddy) cut the connection of one that is still sending: it
    would see a broken connection instead of the reason."""
    length = stream.head.content_length
    if not (stream.head.chunked if length is None else length <= DRAIN_BODY_BYTES_MAX):
        return
    view = memoryview(bytearray(READ_BYTES))
    try:
        async with asyncio.timeout(LINGER_S):
            while stream.received_bytes <= DRAIN_BODY_BYTES_MAX and await stream.readinto(view):
                pass
    except (AnvilError, TimeoutError) as error:
        log.debug("the body of a refused request did not come: %s", error)


def _has_credentials(head: RequestHead) -> bool:
    """Whether anything in the head claims to be a credential: then it is an S3 request, and is verified as one."""
    if head.header(b"authorization") is not None:
        return True
    query = head.query.lower()
    return bool(query) and any(name in query for name in (b"x-amz-", b"awsaccesskeyid", b"signature"))
