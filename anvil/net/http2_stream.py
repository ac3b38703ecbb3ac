"""One HTTP/2 stream as a handler sees it: implements `Stream`.

Owns: the state of one exchange: who reads its body, what was announced and written of its answer. Invariant: an answer's bytes are those
announced, or the stream is reset; a body that ended early is never taken for a whole one. Not here: frames and windows (`wire.http2`),
the socket and the clock (`http2`).
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

from anvil.base.errors import AnvilError, EntityTooLarge, IncompleteBody
from anvil.base.types import Buffer
from anvil.base.underway import waited
from anvil.net.inbound import read_bounded
from anvil.net.progress import Progress
from anvil.net.stream import Headers, RequestHead
from anvil.wire.http1 import BODYLESS, Head
from anvil.wire.http2 import INTERNAL_ERROR, Exchange
from anvil.wire.http2_head import answer_fields

if TYPE_CHECKING:
    from anvil.net.http2 import Http2Connection


class Http2Stream:
    """Made by the connection for each request head; see `Stream` for what handlers may call."""

    __slots__ = (
        "_announced",
        "_connection",
        "_exchange",
        "_expects_continue",
        "_fields",
        "_lent",
        "_room",
        "_silent",
        "_written",
        "error",
        "finished",
        "head",
        "pressed_progress",
        "read_progress",
        "running",
        "started",
        "task",
        "waiter",
        "widened",
        "write_progress",
    )

    def __init__(self, connection: Http2Connection, exchange: Exchange, head: Head, peer: str) -> None:
        # A small body may be here already, with the end of the stream.
        unframed = head.content_length is None and (not exchange.ended or exchange.received > 0)
        self.head = RequestHead(
            head.method,
            head.path,
            head.query,
            tuple(head.headers),
            head.authority,
            head.version,
            peer,
            head.content_length,
            unframed,
        )
        self._connection: Final = connection
        self._exchange: Final = exchange
        self._expects_continue = head.expects_continue and not exchange.ended
        self.widened = False  # counts among the port's wide streams
        self._fields: list[tuple[bytes, bytes]] = []  # of the answer
        self._announced: int | None = 0
        self._written = 0
        self._silent = False
        self._lent = False
        self._room: asyncio.Future[None] | None = None  # set while the writer waits
        self.waiter: asyncio.Future[None] | None = None  # set while the reader waits
        self.error: AnvilError | None = None  # why no more of the body will come
        self.started = False
        self.finished = False
        self.task: asyncio.Task[None] | None = None
        self.running = False  # the task has reached its first line
        self.read_progress: Final = Progress()
        self.write_progress: Final = Progress()
        self.pressed_progress: Final = Progress()  # of whichever direction is waited for, while others wait for memory

    # -- request body

    @property
    def received_bytes(self) -> int:
        """Payload bytes of the request body so far."""
        return self._exchange.received

    async def readinto(self, view: memoryview) -> int:
        """See `Stream.readinto`."""
        exchange, connection = self._exchange, self._connection
        if len(view) == 0:
            return 0
        if self.waiter is not None:
            raise RuntimeError("a stream has one reader")
        self._check()
        if self._expects_continue:
            self._expects_continue = False
            if not self.started and not exchange.received:
                connection.session.inform(exchange, [(b":status", b"100")])
        count = exchange.read(view)
        if not (self.widened or exchange.ended or exchange.closed):
            self.widened = connection.widen(exchange)
        connection.schedule()  # the window may have opened
        if count < 0:
            self.waiter = connection.loop.create_future()
            try:
                since = perf_counter()
                await self.waiter
                waited("receive", since)
            finally:
                self.waiter = None
                count = exchange.stop_reading()
        if count < len(view):
            self._check()
        return count

    def _check(self) -> None:
        """Raises if the body will never be whole. (One of another length than announced ends in a reset by libnghttp2.)"""
        if self.error is not None:
            raise self.error.again()  # each time another: an exception holds the frames it came through
        if self._exchange.closed and not self._exchange.ended:
            raise IncompleteBody("The client gave up the request before its body was complete.")

    def whole(self) -> bytes | None:
        """See `TrailingStream.whole`."""
        exchange = self._exchange
        if not exchange.ended or exchange.closed or self.waiter is not None:
            return None
        body = bytearray(exchange.stored)
        exchange.read(memoryview(body))
        return bytes(body)

    async def read_all(self, limit: int) -> bytes:
        """See `Stream.read_all`."""
        if self.head.content_length is not None and self.head.content_length > limit:
            raise EntityTooLarge()
        return await read_bounded(self.readinto, limit)

    def fail(self, error: AnvilError) -> None:
        """No more of the body will come: whoever reads, now or later, gets `error`."""
        if self.error is None:
            self.error = error
        self.wake_reader()

    def wake_reader(self) -> None:
        """The view is full, or never will be."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # -- answer

    @property
    def sent_bytes(self) -> int:
        """Of the answer's body, and of its head before compression."""
        return sum([len(name) + len(value) for name, value in self._fields]) + self._written

    async def respond(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """See `Stream.respond`. Raises ValueError for headers that HTTP does not allow."""
        self.answer(status, headers, body)
        await self._accepted()

    def answer(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """`respond` without waiting."""
        length: int | None = len(body)
        if self.head.method == "HEAD" or status in BODYLESS:
            if status in BODYLESS and (body or (status == 204 and _states_length(headers))):
                raise ValueError(f"an answer of status {status} has no body")
            if not body or _states_length(headers):
                length = None
            body = b""
        self._begin(status, headers, length, body=bool(body))
        self._written = len(body)
        self.finished = True
        if body:
            self._connection.session.push(self._exchange, body)
            self._connection.session.end(self._exchange)
        self._connection.schedule()

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """See `Stream.start`."""
        if _states_length(headers):
            raise ValueError("content-length is added by the stream")
        self._silent = self.head.method == "HEAD" or status in BODYLESS
        self._begin(status, headers, None if status in BODYLESS else length, body=not self._silent)
        self._announced = 0 if self._silent else length

    async def write(self, *pieces: Buffer) -> None:
        """See `Stream.write`. For HEAD the bytes are dropped. Raises RuntimeError beyond the announced length,
        ConnectionResetError."""
        count = sum([len(piece) for piece in pieces])
        if not self.started or self.finished:
            raise RuntimeError("write outside of start and finish")
        if count == 0 or self._silent:
            return
        if self._announced is not None and self._written + count > self._announced:
            raise RuntimeError(f"the answer is longer than the {self._announced} bytes announced")
        if self._exchange.closed:
            raise ConnectionResetError("the client is gone")
        self._written += count
        for piece in pieces:
            if type(piece) is not bytes:
                self._lent = True
            self._connection.session.push(self._exchange, piece)
        self._connection.schedule()
        await self._writable()

    async def _writable(self) -> None:
        """Until the stream takes more. Raises ConnectionResetError."""
        high = self._connection.high_water_bytes
        while self._exchange.queued > high:
            await self._wait()

    async def flushed(self) -> None:
        """See `Stream.flushed`."""
        while self._exchange.queued:
            await self._wait()
        await self._connection.out.flushed()
        self._lent = False

    async def reply(self, fields: list[tuple[bytes, bytes]], body: bytes, trailers: list[tuple[bytes, bytes]] | None) -> None:
        """See `TrailingStream.reply`."""
        self._open(fields, body=trailers is not None)
        self._written = len(body)
        self.finished = True
        if trailers is not None:
            if body:
                self._connection.session.push(self._exchange, body)
            self._connection.session.end(self._exchange, trailers)
        self._connection.schedule()
        if body:
            await self._accepted()

    def begin(self, fields: list[tuple[bytes, bytes]]) -> None:
        """See `TrailingStream.begin`."""
        self._open(fields, body=True)
        self._announced = None
        self._connection.schedule()

    async def finish(self, trailers: list[tuple[bytes, bytes]] | None = None) -> None:
        """End the answer. Returns when lent buffers may be reused. Raises RuntimeError if it is shorter than announced."""
        if not self.started or self.finished:
            raise RuntimeError("finish without start, or twice")
        if self._announced is not None and self._written != self._announced:
            raise RuntimeError(f"the answer has {self._written} bytes where {self._announced} were announced")
        self.finished = True
        if not self._silent:
            self._connection.session.end(self._exchange, trailers)
            self._connection.schedule()
        if self._lent:
            await self.flushed()
        else:
            await self._accepted()

    async def _accepted(self) -> None:
        """Until the end of the answer may be left to the connection: while much waits on that, a request stays in flight and counts."""
        while self._exchange.queued and self._connection.session.queued > self._connection.high_water_bytes:
            await self._wait()

    def abort(self) -> None:
        """See `Stream.abort`: only the stream, others of the connection go on."""
        self.finished = True  # the handler owes nothing any more
        self._connection.reset(self, INTERNAL_ERROR)

    # -- called by the connection

    def progressed(self) -> None:
        """Bytes of the answer went out."""
        if self._room is not None and not self._room.done() and self._exchange.queued <= self._connection.high_water_bytes // 4:
            self._room.set_result(None)

    def lost(self) -> None:
        """The exchange is over, whether the handler is done or not."""
        self.wake_reader()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    @property
    def delivered(self) -> int:
        """Bytes of the answer's body that were handed to the transport."""
        return self._exchange.sent

    @property
    def writing(self) -> bool:
        """Whether bytes of its answer wait."""
        return self._exchange.queued > 0

    # -- inside

    async def _wait(self) -> None:
        if self._exchange.closed:
            raise ConnectionResetError("the client is gone")
        self._room = self._connection.loop.create_future()
        since = perf_counter()
        try:
            await self._room
        finally:
            self._room = None
            waited("send", since)
        if self._exchange.closed and not self.finished:
            raise ConnectionResetError("the client is gone")

    def _begin(self, status: int, headers: Headers, length: int | None, *, body: bool) -> None:
        self._open(answer_fields(status, headers, self._connection.common_fields, length), body=body)

    def _open(self, fields: list[tuple[bytes, bytes]], *, body: bool) -> None:
        if self.started:
            raise RuntimeError("a request is answered once")
        self.started = True
        self._fields = fields
        self._connection.session.respond(self._exchange, fields, body)


def _states_length(headers: Headers) -> bool:
    return any(name.lower() == b"content-length" for name, _ in headers)
