"""One HTTP/1.1 request and its answer: implements `Stream`.

Owns: the state of one exchange: body read so far, answer written so far, whether the connection may live on. Invariant: the
answer's framing always matches what was announced, or the connection is cut; an answer that leaves much of the body unread
announces `connection: close`. Not here: sockets, pausing, time-outs (`connection`), parsing (`wire.http1`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from anvil.base.errors import EntityTooLarge, IncompleteBody
from anvil.base.limits import JOIN_BYTES_MAX
from anvil.base.types import Buffer
from anvil.net.inbound import Inbound, read_bounded
from anvil.net.stream import Headers, RequestHead
from anvil.wire.http1 import BODYLESS, CONTINUE, Head, response_head

if TYPE_CHECKING:
    from anvil.net.connection import Connection

_CLOSE: Final = b"connection: close\r\n"
_KEEP: Final = b"connection: keep-alive\r\n"
_NOTHING: Final = memoryview(b"")


class HttpStream:
    """Made by the connection for each request head; see `Stream` for what handlers may call."""

    __slots__ = (
        "_announced",
        "_chunked",
        "_connection",
        "_expects_continue",
        "_held",
        "_lent",
        "_out",
        "_waits_for_nothing",
        "_written",
        "body",
        "finished",
        "head",
        "keep_alive",
        "running",
        "sent_bytes",
        "started",
    )

    def __init__(self, connection: Connection, head: Head, peer: str, loop: asyncio.AbstractEventLoop) -> None:
        self.head = RequestHead(
            head.method,
            head.path,
            head.query,
            tuple(head.headers),
            head.authority,
            head.version,
            peer,
            head.content_length,
            head.chunked,
        )
        self._connection: Final = connection
        self._out: Final = connection.out
        self.body: Final = Inbound(head.content_length, loop) if head.chunked or head.content_length else None
        self._expects_continue = head.expects_continue and self.body is not None
        self._waits_for_nothing = head.expects_continue and self.body is None
        self.keep_alive = head.keep_alive
        self.running = False  # the handler's first line has been reached
        self.started = False
        self.finished = False
        self.sent_bytes = 0  # of the answer, head included
        self._announced: int | None = 0  # body bytes the answer's head promised
        self._written = 0
        self._chunked = False
        self._held = b""  # the head of a started answer, until its first bytes go with it in one write
        self._lent = False  # a buffer that its owner may change was written

    # -- request body

    @property
    def received_bytes(self) -> int:
        """Payload bytes of the request body so far."""
        return self.body.received if self.body is not None else 0

    async def readinto(self, view: memoryview) -> int:
        """See `Stream.readinto`."""
        body = self.body
        if body is None or len(view) == 0:
            return 0
        if body.waiter is not None:
            raise RuntimeError("a stream has one reader")
        body.check()
        if body.complete:
            return 0
        connection = self._connection
        try:
            connection.feed(body, view)
            if body.done:
                return body.filled
            if self._expects_continue:
                self._expects_continue = False
                if not self.started and not body.received:
                    self._out.send(CONTINUE)
            connection.want_body()
            return await body.wait()
        finally:
            body.end()
            connection.regulate()

    async def read_all(self, limit: int) -> bytes:
        """See `Stream.read_all`."""
        body = self.body
        if body is None:
            return b""
        if body.bounded:
            if body.left > limit:
                raise EntityTooLarge()
            buffer = bytearray(body.left)
            return bytes(memoryview(buffer)[: await self.readinto(memoryview(buffer))])
        return await read_bounded(self.readinto, limit)

    # -- answer

    async def respond(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """See `Stream.respond`. Raises ValueError for headers that HTTP does not allow."""
        self.answer(status, headers, body)
        if self._out.paused:
            await self._out.writable()

    def answer(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """`respond` without waiting for the transport."""
        length: int | None = len(body)
        if self.head.method == "HEAD" or status in BODYLESS:
            # A content-length here would have to be that of the answer to GET, or the representation (RFC 9110, 8.6).
            if status in BODYLESS and (body or (status == 204 and _find_length(headers))):
                raise ValueError(f"an answer of status {status} has no body")
            if not body or _find_length(headers):
                length = None
            body = b""
        head = self._begin(status, headers, length, framed=True)
        self.finished = True
        size = len(head) + len(body)
        self.sent_bytes += size
        if len(body) > JOIN_BYTES_MAX:
            self._out.send_lines((head, body), size)
        else:
            self._out.send(head + body if body else head)

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """See `Stream.start`."""
        silent = self.head.method == "HEAD" or status in BODYLESS
        if _find_length(headers):
            raise ValueError("content-length is added by the stream")
        if length is None and self.head.version == "1.0":
            self.keep_alive = False  # the end of the connection is the end of the body
            head = self._begin(status, headers, None, framed=True)
        else:
            head = self._begin(status, headers, length, framed=status in BODYLESS)
            self._chunked = length is None and not silent
        self._announced = 0 if silent else length
        self._held = head

    async def write(self, data: Buffer) -> None:
        """See `Stream.write`. For HEAD the bytes are dropped. Raises RuntimeError beyond the announced length,
        ConnectionResetError."""
        count = len(data)
        if not self.started or self.finished:
            raise RuntimeError("write outside of start and finish")
        if count == 0:
            return
        if self._announced is not None and self._written + count > self._announced:
            if self.head.method == "HEAD":
                return
            raise RuntimeError(f"the answer is longer than the {self._announced} bytes announced")
        self._written += count
        if type(data) is not bytes:
            self._lent = True
        held, self._held = self._held, b""
        self.sent_bytes += len(held) + count
        if self._chunked:
            opening = b"%b%x\r\n" % (held, count)
            self._out.send_lines((opening, data, b"\r\n"), len(opening) + count + 2)
        elif held:
            self._out.send_lines((held, data), len(held) + count)
        else:
            self._out.send(data)
        if self._out.paused:
            await self._out.writable()

    async def flushed(self) -> None:
        """See `Stream.flushed`."""
        self._release_head()
        await self._out.flushed()
        self._lent = False

    async def finish(self) -> None:
        """End the answer. Returns when lent buffers may be reused. Raises RuntimeError if it is shorter than announced."""
        if not self.started or self.finished:
            raise RuntimeError("finish without start, or twice")
        if self._announced is not None and self._written != self._announced:
            raise RuntimeError(f"the answer has {self._written} bytes where {self._announced} were announced")
        self._release_head()
        if self._chunked:
            self._send(b"0\r\n\r\n")
        self.finished = True
        if self._lent:
            await self._out.flushed()

    def abort(self) -> None:
        """See `Stream.abort`."""
        self._connection.abort()

    # -- inside

    def _release_head(self) -> None:
        if self._held:
            head, self._held = self._held, b""
            self._send(head)

    def _send(self, data: Buffer) -> None:
        self.sent_bytes += len(data)
        self._out.send(data)

    def _begin(self, status: int, headers: Headers, length: int | None, *, framed: bool) -> bytes:
        """The head of the answer; `framed`: without transfer-encoding even if `length` is None."""
        if self.started:
            raise RuntimeError("a request is answered once")
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        else:
            framing = b"" if framed else b"transfer-encoding: chunked\r\n"
        if not self._may_keep():
            self.keep_alive = False
            framing += _CLOSE
        elif self.head.version == "1.0":
            framing += _KEEP
        head = response_head(status, headers, self._connection.common_lines, framing)
        self.started = True
        if self._waits_for_nothing:
            # It might be omitted (RFC 9110, 10.1.1). But the AWS CLI, once it was answered without it, misreads the next answer on the
            # connection, and waits for a minute (botocore keeps the status line). S3 says it, too.
            return CONTINUE + head
        return head

    def _may_keep(self) -> bool:
        """Whether the next request of this connection can be found once this answer is out. A client that still waits for
        `100 Continue` may or may not send the body after a final answer (RFC 9110, 10.1.1)."""
        if not self.keep_alive or self._connection.closing:
            return False
        body = self.body
        if body is None or body.complete:
            return True
        if self._expects_continue or body.error is not None or not body.bounded:
            return False
        return body.left <= self._connection.drain_body_bytes

    def lost(self) -> None:
        """The connection is gone."""
        if self.body is not None:
            self.body.fail(IncompleteBody("The client closed the connection before the body was complete."))


def _find_length(headers: Headers) -> bool:
    return any(name == b"content-length" or name.lower() == b"content-length" for name, _ in headers)
