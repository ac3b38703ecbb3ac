"""One request being answered: what a handler receives, and how it answers.

Owns: the headers that are on every answer and the facts the access log and the metrics need. Invariant: every answer carries
`x-amz-request-id` and `x-amz-id-2`, whatever its status. Not here: what is answered.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from anvil.api.finished import Finished
from anvil.api.operations.caller import Services
from anvil.api.s3.ports import OpenBody
from anvil.api.s3.request import S3Request
from anvil.api.s3.xml import CONTENT_TYPE
from anvil.auth.types import Authenticated
from anvil.base.types import Buffer
from anvil.base.underway import begin
from anvil.model.identity import ANONYMOUS, Principal
from anvil.net.stream import Headers, Stream


class Call:
    """Owned by the task that serves the request; the operations' `Caller`. `request` and `auth` are set before a handler sees it."""

    __slots__ = (
        "_base",
        "auth",
        "error_code",
        "first_byte_at",
        "host_id",
        "open_body",
        "operation",
        "request",
        "request_id",
        "resource",
        "services",
        "started_at",
        "status",
        "stream",
        "underway",
    )
    request: S3Request

    def __init__(self, services: Services, open_body: OpenBody, stream: Stream, request_id: str, host_id: str) -> None:
        self.services: Final = services
        self.open_body: Final = open_body
        self.stream: Final = stream
        self.request_id: Final = request_id
        self.host_id: Final = host_id
        self.underway: Final = begin(request_id)
        self.auth = Authenticated(ANONYMOUS)
        self.operation = "other"
        self.resource = stream.head.path.decode("latin-1")
        self.started_at: Final = perf_counter()
        self.first_byte_at: float | None = None
        self.status = 0
        self.error_code = ""
        self._base: Final = [(b"x-amz-request-id", request_id.encode("ascii")), (b"x-amz-id-2", host_id.encode("ascii"))]

    @property
    def principal(self) -> Principal:
        return self.auth.principal

    @property
    def peer(self) -> str:
        return self.stream.head.peer

    async def respond(self, status: int, headers: Headers = (), body: Buffer = b"") -> None:
        """A whole answer; `body` must not change any more."""
        self._begin(status)
        await self.stream.respond(status, [*self._base, *headers], body)

    async def respond_xml(self, status: int, body: bytes, headers: Headers = ()) -> None:
        await self.respond(status, [CONTENT_TYPE, *headers], body)

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """Begin an answer whose body follows through `stream.write` and `stream.finish`."""
        self._begin(status)
        self.stream.start(status, [*self._base, *headers], length)

    def _begin(self, status: int) -> None:
        self.status = status
        self.first_byte_at = perf_counter()

    def finished(self) -> Finished:
        head, stream, app = self.stream.head, self.stream, self.principal.app
        return Finished(
            api="s3",
            operation=self.operation,
            method=head.method,
            path=self.resource,
            peer=head.peer,
            request_id=self.request_id,
            access_key=app.access_key if app else "",
            status=self.status,
            error_code=self.error_code,
            seconds=perf_counter() - self.started_at,
            ttfb_s=None if self.first_byte_at is None else self.first_byte_at - self.started_at,
            received_bytes=stream.received_bytes,
            sent_bytes=stream.sent_bytes,
            server_fault=self.status >= 500,
            waits=self.underway.waits,
        )
