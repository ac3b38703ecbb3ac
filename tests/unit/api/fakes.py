"""What the S3 API is tested against: a recorded stream, a catalog and an engine in memory, the rules of rights in small."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import msgspec

from anvil.api.finished import Finished
from anvil.api.operations.caller import Services
from anvil.api.s3.app import S3Api
from anvil.auth.types import Authenticated, Payload, SignedElsewhere
from anvil.base.errors import (
    AccessDenied,
    AnvilError,
    AuthorizationHeaderMalformed,
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    NoSuchBucket,
    NoSuchKey,
)
from anvil.base.types import Buffer
from anvil.model.identity import ANONYMOUS, Action, App, Bucket, BucketState, Policy, Principal, Tenant
from anvil.net.stream import Headers, RequestHead
from tests.unit.api.fake_engine import NOW_US, FakeEngine

REGION = "us-east-1"
LAST_MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"

ACME = Tenant(tenant_id=7, name="acme")
OTHER = Tenant(tenant_id=8, name="other")


def app_of(tenant: Tenant, *policies: tuple[str, str], key: str = "AKIDACME") -> App:
    rows = tuple(Policy(action, resource) for action, resource in policies) or (Policy("*", "*"),)
    return App(1, tenant, "app", key, "secret", 1, rows)


class FakeStream:
    """Records the answer. `status` 0: none was given."""

    def __init__(self, head: RequestHead, body: bytes = b"") -> None:
        self.head = head
        self._body = memoryview(body)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.sent = bytearray()
        self.length: int | None = None
        self.finished = False
        self.aborted = False
        self.received_bytes = 0
        self.pieces: list[bytes] = []

    async def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._body))
        view[:count] = self._body[:count]
        self._body = self._body[count:]
        self.received_bytes += count
        return count

    async def read_all(self, limit: int) -> bytes:
        data, self._body = bytes(self._body), self._body[:0]
        return data

    async def respond(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        self.start(status, headers, None)
        if self.head.method == "HEAD" or status in (204, 304):
            assert body == b""
        elif "content-length" not in self.headers:
            self.headers["content-length"] = str(len(body))
        self.sent += body
        self.finished = True

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        assert self.status == 0, "answered twice"
        assert 200 <= status < 600
        self.status = status
        for name, value in headers:
            assert isinstance(name, bytes) and isinstance(value, bytes) and name == name.lower()
            assert not set(b"\r\n\0") & set(name + value)
            text = name.decode("latin-1")
            assert text not in self.headers, f"{text} twice"
            self.headers[text] = value.decode("utf-8")
        if length is not None:
            self.length = length
            self.headers["content-length"] = str(length)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self.status and not self.finished
        self.pieces.append(bytes(data))
        self.sent += data

    async def flushed(self) -> None:
        pass

    async def finish(self) -> None:
        assert self.length is None or len(self.sent) == self.length
        self.finished = True

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def sent_bytes(self) -> int:
        return len(self.sent)

    def abort(self) -> None:
        self.aborted = True

    # -- for assertions
    @property
    def xml(self) -> ElementTree.Element:
        root = ElementTree.fromstring(bytes(self.sent))
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    def text(self, path: str) -> str | None:
        return self.xml.findtext(path)

    def texts(self, path: str) -> list[str]:
        return [element.text or "" for element in self.xml.findall(path)]

    @property
    def code(self) -> str | None:
        return self.text("Code") if self.sent.startswith(b"<?xml") else None


class FakeBody:
    def __init__(self, stream: FakeStream, length: int, trailers: Mapping[str, str]) -> None:
        self.length = length
        self.trailers = dict(trailers)
        self._stream = stream

    async def readinto(self, view: memoryview) -> int:
        return await self._stream.readinto(view)


class FakeAuthenticator:
    """Believes what the test says."""

    def __init__(self) -> None:
        self.auth = Authenticated(Principal(app_of(ACME)))
        self.signed_for = REGION

    async def authenticate(self, head: RequestHead) -> Authenticated:
        if self.signed_for != REGION:
            raise SignedElsewhere(self.auth.principal, AuthorizationHeaderMalformed(Region=REGION))
        return self.auth


class FakeAuthorizer:
    def allowed(self, principal: Principal, action: Action, resource: str) -> bool:
        if principal.app is None:
            return False
        for policy in principal.app.policies:
            matches = resource.startswith(policy.resource[:-1]) if policy.resource.endswith("*") else resource == policy.resource
            if policy.action in (action, "*") and matches:
                return True
        return False

    def require(self, principal: Principal, action: Action, resource: str) -> None:
        if not self.allowed(principal, action, resource):
            raise AccessDenied()

    def visible_bucket(self, principal: Principal, bucket: Bucket | None) -> Bucket:
        if principal.app is None:
            if bucket is None or not bucket.public_read:
                raise AccessDenied()
            return bucket
        if bucket is None or bucket.tenant != principal.app.tenant:
            raise NoSuchBucket()
        return bucket

    def require_bucket(self, principal: Principal, action: Action, bucket: Bucket | None) -> Bucket:
        bucket = self.visible_bucket(principal, bucket)
        self.require(principal, action, bucket.name)
        return bucket

    def require_object(self, principal: Principal, action: Action, bucket: Bucket | None, key: str) -> Bucket:
        if bucket is not None and bucket.public_read and action is Action.OBJECT_READ:
            return bucket
        bucket = self.visible_bucket(principal, bucket)
        self.require(principal, action, f"{bucket.name}/{key}")
        return bucket

    def missing_key_error(self, principal: Principal, bucket: Bucket) -> AnvilError:
        return NoSuchKey() if self.allowed(principal, Action.OBJECT_LIST, bucket.name) else AccessDenied()


class FakeCatalog:
    def __init__(self) -> None:
        self.rows: dict[str, Bucket] = {}
        self._ids = itertools.count(1)
        self.nonempty: set[str] = set()

    def add(self, name: str, tenant: Tenant = ACME, *, public: bool = False, region: str = REGION) -> Bucket:
        bucket = Bucket(next(self._ids), tenant, name, region, NOW_US, BucketState.ACTIVE, public, bytes(32))
        self.rows[name] = bucket
        return bucket

    async def app(self, access_key: str) -> App | None:
        return None

    async def bucket(self, name: str) -> Bucket | None:
        return self.rows.get(name)

    async def buckets(self, tenant_id: int) -> Sequence[Bucket]:
        return [bucket for _, bucket in sorted(self.rows.items()) if bucket.tenant.tenant_id == tenant_id]

    async def regions(self) -> Mapping[str, str]:
        return {REGION: "https://us.example.com", "eu-west-1": "https://eu.example.com:8443", "mars-1": ""}

    async def create_bucket(self, tenant_id: int, name: str, region: str) -> Bucket:
        found = self.rows.get(name)
        if found is not None:
            raise BucketAlreadyOwnedByYou() if found.tenant.tenant_id == tenant_id else BucketAlreadyExists()
        return self.add(name, region=region)

    async def delete_bucket(self, bucket: Bucket) -> None:
        if bucket.name in self.nonempty:
            raise BucketNotEmpty()
        del self.rows[bucket.name]


class World:
    """An API over fakes, and a way to ask it."""

    def __init__(self, **options: object) -> None:
        self.engine, self.catalog = FakeEngine(), FakeCatalog()
        self.authenticator = FakeAuthenticator()
        self.closed = ""
        self.trailers: dict[str, str] = {}
        self.finished: list[Finished] = []
        services = Services(
            engine=self.engine,
            catalog=self.catalog,
            authorizer=FakeAuthorizer(),
            rights=None,  # type: ignore[arg-type]  # S3 has no operation that changes any
            region=REGION,
            closed=lambda: self.closed,
        )
        self.api = S3Api(
            services,
            lambda stream, auth, length, names: FakeBody(stream, length, self.trailers),  # type: ignore[arg-type]
            self.authenticator,
            observers=(self.finished.append,),
            **options,  # type: ignore[arg-type]
        )
        self.bucket = self.catalog.add("bucket")

    def act_as(self, app: App | None, **auth: object) -> None:
        self.authenticator.auth = Authenticated(ANONYMOUS if app is None else Principal(app), **auth)  # type: ignore[arg-type]

    def payload(self, payload: Payload, **auth: object) -> None:
        self.authenticator.auth = msgspec.structs.replace(self.authenticator.auth, payload=payload, **auth)

    async def send(self, method: str, target: str, body: bytes | None = None, **options: object) -> FakeStream:
        stream = FakeStream(head_of(method, target, body, **options), body or b"")  # type: ignore[arg-type]
        await self.api(stream)
        assert stream.finished or stream.aborted, "no answer"
        if not stream.aborted:
            assert stream.headers.get("x-amz-request-id") or stream.head.path in (b"/ready", b"/metrics")
        return stream

    def ask(self, method: str, target: str, body: bytes | None = None, **options: object) -> FakeStream:
        """One request. `target` as on the wire; `headers`: a mapping or pairs; `host`; `content_length`; `chunked`."""
        return asyncio.run(self.send(method, target, body, **options))


def head_of(
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    host: str = "localhost:50051",
    content_length: int | None = None,
    chunked: bool = False,
) -> RequestHead:
    path, _, query = target.partition("?")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    encoded = tuple((name.lower().encode("latin-1"), value.encode("utf-8")) for name, value in pairs)
    if content_length is None and body is not None and not chunked:
        content_length = len(body)
    return RequestHead(
        method=method,
        path=path.encode("utf-8"),
        query=query.encode("utf-8"),
        headers=encoded,
        authority=host.encode("ascii"),
        version="1.1",
        peer="127.0.0.1",
        content_length=content_length,
        chunked=chunked,
    )
