"""One TCP connection: sniffs its protocol, then serves HTTP/1.1 requests on it, one after the other.

Owns: the socket's transport, the bytes received too early, pausing in both directions, keep-alive, draining and closing.
Invariants: the socket is read only while somebody can take the bytes (a head, a reader's view, a small body ahead, or the end of the
connection), so what a client sends never accumulates; at most one handler task runs per connection and the connection owns it. Not
here: what an answer looks like (`http1_stream`), parsing (`wire`), TLS (`tls_connection`), caps and the timer (`port`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, cast

from anvil.base.errors import IncompleteBody, InvalidRequest, RequestTimeout, SlowDown
from anvil.base.limits import READ_BYTES
from anvil.net.fixed import ALLOW, GRPC_ANSWER, RESET, SLOW_DOWN
from anvil.net.http1_stream import HttpStream
from anvil.net.http2 import Http2Connection
from anvil.net.inbound import Inbound
from anvil.net.outbound import Outbound
from anvil.net.port import Port, address_key
from anvil.net.progress import Progress
from anvil.wire.http1 import Head, Preface, Refusal, head_end, parse_head, response_head, sniff

# What a connection is doing. Plain numbers: this is compared several times per request, and members of an Enum are slow.
_HEAD: Final = 0  # waiting for a request head
_BUSY: Final = 1  # a handler runs
_DRAIN: Final = 2  # answered; the rest of the body is dropped
_CLOSING: Final = 3  # the last answer is on its way; input is dropped
_LOST: Final = 4


class Connection(asyncio.BufferedProtocol):
    """The protocol of one accepted socket."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._transport: asyncio.Transport
        self.out: Outbound
        self._phase: int = _HEAD
        self._refused: str | None = None  # why the connection was not admitted
        self._pending = b""  # received, not yet consumed
        self._scanned = 0  # bytes of `_pending` known not to hold the end of a head
        self._sniffed = False
        self._first = True  # no request has come yet
        self._stream: HttpStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None  # set while the task waits for the next request
        self._cut = False  # by us, not by the client
        self._counted = False  # in requests_in_flight
        self._read_paused = False
        self._eof = False
        self._since_s = port.now_s  # when the phase began, on the coarse clock
        self._read_progress = Progress()
        self._pressed_progress = Progress()  # of whichever direction is waited for, while others wait for memory
        self._dropped = 0  # bytes thrown away while closing

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no abstract class, so isinstance would be wrong
        peer, address = address_key(transport.get_extra_info("peername"))
        self._port.keep_near(transport, peer)
        self.begin(cast(asyncio.Transport, transport), (peer, address), self._port.admit(self, address))

    def begin(self, transport: asyncio.Transport, address: tuple[str, str], refused: str | None) -> None:
        """Take over a socket that was admitted, or was `refused`."""
        self._transport, self._refused = transport, refused
        self._peer, self._address = address
        self.out = Outbound(transport, self._port.loop, self._port.limits, self._port.stats)
        if refused == "flood" or self._port.draining:
            transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        stream = self._stream
        if stream is not None:
            body = stream.body
            if body is not None and body.target is not None:
                return body.target[body.filled : body.goal]
        return self._port.scratch

    def buffer_updated(self, nbytes: int) -> None:
        port = self._port
        port.stats.bytes_in += nbytes
        phase = self._phase
        if phase == _HEAD:
            data = bytes(port.scratch[:nbytes])
            self._pending = self._pending + data if self._pending else data
            self._advance()
        elif phase == _BUSY:
            assert self._stream is not None
            body = self._stream.body
            if body is not None and body.target is not None:
                body.direct(nbytes)
            else:
                self._take_ahead(body, port.scratch[:nbytes])
            self.regulate()
        elif phase == _DRAIN:
            self._pending = bytes(port.scratch[:nbytes])
            self._drain_body()
            self._advance()
        else:
            self._dropped += nbytes
            if self._dropped > port.limits.drain_body_bytes:
                # Held up, not cut: a reset would overtake the answer, and a proxy would take this node for broken.
                self._pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._since_s = self._port.now_s
        if self._phase == _BUSY and self._stream is not None:
            body = self._stream.body
            if body is not None and body.waiter is not None and not body.complete:
                body.fail(IncompleteBody())
            return True  # the client may only have shut its sending side: the answer still goes out
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _LOST
        stream, task = self._stream, self._task
        self._pending = b""
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None
        self.out.lost()
        if stream is not None and not stream.finished:
            self._port.stats.client_aborts += not self._cut
            stream.lost()
            if task is not None and stream.running:
                task.cancel()
            elif self._counted:
                self._port.stats.requests_in_flight -= 1
        self._port.forget(self, self._address, self._refused)

    def pause_writing(self) -> None:
        self.out.pause()

    def resume_writing(self) -> None:
        self.out.resume()
        self._advance()

    # -- called by the stream

    @property
    def closing(self) -> bool:
        """Whether this connection is not to take another request."""
        return self._port.draining or self._refused is not None

    @property
    def drain_body_bytes(self) -> int:
        return self._port.limits.drain_body_bytes

    @property
    def common_lines(self) -> bytes:
        """The lines that every answer has."""
        return self._port.common_lines

    def feed(self, body: Inbound, view: memoryview) -> None:
        """Begin filling `view` with what came early."""
        try:
            used = body.begin(view, memoryview(self._pending))
        except InvalidRequest as error:
            body.fail(error)
            raise
        if used:
            self._pending = self._pending[used:]

    def want_body(self) -> None:
        """A reader is about to wait."""
        if self._eof and self._stream is not None and self._stream.body is not None:
            self._stream.body.fail(IncompleteBody())
        self._resume_reading()

    def regulate(self) -> None:
        """Read from the socket exactly while there is a place for the bytes (while a handler runs)."""
        if self._phase != _BUSY:
            return
        stream = self._stream
        assert stream is not None
        body = stream.body
        if self._pending:
            self._pause_reading()
        elif body is None or body.complete or (body.bounded and body.left <= READ_BYTES):
            self._resume_reading()
        elif body.waiter is None or body.waiter.done():
            self._pause_reading()

    def abort(self) -> None:
        """Cut the connection now; queued bytes are not sent. Amid an answer the client gets a reset: to HTTP/1.0 an orderly close
        would mean that the answer is whole."""
        self._cut = True
        stream = self._stream
        if stream is not None and stream.started and not stream.finished and not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    # -- called by the port

    def drain(self) -> None:
        """Take no new request: close if idle."""
        if self._phase == _HEAD and not self._pending:
            self._close()

    def cut(self) -> None:
        """Abort the connection and cancel its handler."""
        self.abort()
        if self._task is not None and self._stream is not None and self._stream.running:
            self._task.cancel()

    def sweep(self, now_s: float, elapsed_s: float) -> None:
        """Enforce the time-outs. Called by the one timer of the worker."""
        limits = self._port.limits
        waited_s = now_s - self._since_s
        if self._phase in (_HEAD, _CLOSING) and self.out.queued_bytes:
            self._since_s = now_s  # the clock of these phases starts when the last answer has left
            self._sweep_write(elapsed_s)
        elif self._phase != _CLOSING and self._transport.is_closing():
            return  # cut, and not yet told so
        elif self._phase == _HEAD:
            if self._pending or self._first:
                if waited_s > limits.header_s:
                    self._expire_head()
            elif waited_s > limits.idle_s:
                self._time_out("idle")
        elif self._phase == _BUSY:
            self._sweep_busy(waited_s, elapsed_s)
        elif self._phase == _DRAIN:
            if waited_s > limits.body_stall_s:
                self._time_out("drain")
        elif waited_s > limits.linger_s:
            self._time_out("linger")

    # -- time

    def _time_out(self, kind: str) -> None:
        self._port.stats.timeouts[kind] += 1
        self.abort()

    def _expire_head(self) -> None:
        if self._pending:
            self._port.stats.timeouts["header"] += 1
            self._refuse(Refusal(408, "RequestTimeout", RequestTimeout.default))
        else:
            self._time_out("header")

    def _sweep_busy(self, waited_s: float, elapsed_s: float) -> None:
        limits = self._port.limits
        assert self._stream is not None
        body = self._stream.body
        if body is not None and body.waiter is not None:
            slow = self._read_progress.is_slow(body.received, elapsed_s, limits.body_bytes_per_s, limits.body_stall_s)
            if slow and not body.waiter.done():
                self._port.stats.timeouts["body"] += 1
                body.fail(RequestTimeout())
            elif self._port.is_in_the_way(self._pressed_progress, body.received, elapsed_s) and not body.waiter.done():
                self._port.stats.timeouts["pressed"] += 1
                body.fail(SlowDown())
        elif self.out.queued_bytes and self._port.is_in_the_way(self._pressed_progress, self.out.delivered, elapsed_s):
            # Not only where the writer is held up: it may itself wait for the buffers that others like it hold.
            self._time_out("pressed")
        elif self.out.paused:
            self._sweep_write(elapsed_s)
        elif self._eof and not self._stream.started and waited_s > limits.half_close_s:
            self._port.stats.client_aborts += 1
            self.cut()

    def _sweep_write(self, elapsed_s: float) -> None:
        limits = self._port.limits
        if self.out.is_slow(elapsed_s, limits.body_bytes_per_s, limits.write_stall_s):
            self._time_out("write")

    # -- requests

    def _advance(self) -> None:
        """Serve what has been received. A loop, not a recursion: a client may pipeline thousands of refused requests."""
        while self._phase == _HEAD:
            if self.out.paused:
                self._pause_reading()  # a client that does not read its answers may not ask for more
                return
            if not self._pending:
                if self._eof or (self._port.draining and not self._first):
                    self._close()
                self._resume_reading()
                return
            if not self._begin():
                return

    def _begin(self) -> bool:
        """Parse one head and start serving it. False if nothing more can be done with what has been received."""
        data = self._pending
        fresh = self._scanned == 0
        try:
            if not self._sniffed and not self._sniff(data):
                self._scanned = len(data)
                if fresh:
                    self._since_s = self._port.now_s
                return False
            end = head_end(data, self._scanned)
            if end == 0:
                if fresh:
                    self._since_s = self._port.now_s
                self._scanned = len(data)
                if self._eof:
                    self._close()
                self._resume_reading()
                return False
            head = parse_head(data[:end])
        except Refusal as refusal:
            self._refuse(refusal)
            return False
        self._pending = data[end:]
        self._scanned = 0
        self._serve(head)
        return True

    def _sniff(self, data: bytes) -> bool:
        """True once it is clear that the connection speaks HTTP/1.1. Raises Refusal for anything else."""
        preface = sniff(data)
        if preface is Preface.HTTP2:
            self._phase, self._pending = _LOST, b""  # from here on the socket has another protocol
            self._resume_reading()
            heir = Http2Connection(self._port, self._transport, (self._peer, self._address), self._refused)
            self._port.replace(self, heir)
            heir.begin(data)
            return False
        if preface is Preface.OTHER:
            raise Refusal(400, "BadRequest", "This is not HTTP.")
        self._sniffed = preface is Preface.HTTP1
        return self._sniffed

    def _serve(self, head: Head) -> None:
        port = self._port
        stats = port.stats
        self._first = False
        self._read_progress.reset()
        self._pressed_progress.reset()
        self._stream = stream = HttpStream(self, head, self._peer, port.loop)
        self._phase = _BUSY
        stats.requests += 1
        if self._refused is not None or stats.requests_in_flight >= port.limits.requests_in_flight:
            stats.refusals[SLOW_DOWN.code] += 1
            headers, text = port.render_refusal(SLOW_DOWN)
            stream.answer(503, headers, text)
            self._end(stream)
        elif stream.head.is_grpc:
            stats.refusals["GrpcOverHttp1"] += 1
            stream.answer(200, GRPC_ANSWER)
            self._end(stream)
        elif head.path == b"*":
            stream.answer(200, ALLOW)
            self._end(stream)
        else:
            stats.requests_in_flight += 1
            self._counted = True
            if self._wake is not None:
                self._wake.set_result(None)
                self._wake = None
            elif self._task is None:
                self._task = port.loop.create_task(self._work())
            # Otherwise the task itself has called this and goes on with the request.
            if stream.body is not None or self._read_paused or self._pending:
                self.regulate()

    async def _work(self) -> None:
        """The connection's task: runs the handler for one request after the other. A task for each request would cost as much as
        parsing its head."""
        port = self._port
        try:
            while self._phase == _BUSY:
                stream = self._stream
                assert stream is not None
                try:
                    stream.running = True
                    await port.handler(stream)
                    if not stream.finished and not self._transport.is_closing():
                        raise RuntimeError("the handler returned without a whole answer")
                except Exception as error:
                    self._fail(stream, error)
                finally:
                    port.stats.requests_in_flight -= 1
                    self._counted = False
                    self._end(stream)
                    if self._pending or self._eof or port.draining:
                        self._advance()
                        port.settle()
                if self._phase == _BUSY:
                    await asyncio.sleep(0)  # pipelined: others get their turn first
                elif self._phase in (_HEAD, _DRAIN):
                    self._wake = port.loop.create_future()
                    await self._wake
        except BaseException:
            self.abort()  # cancelled, or the error handling itself failed: nothing serves this connection any more
            self._task = None  # it ends with the exception that holds this frame: kept, the handler's buffers would be a cycle's
            raise
        self._task = None

    def _fail(self, stream: HttpStream, error: Exception) -> None:
        """An exception escaped the handler."""
        if self._transport.is_closing() and isinstance(error, ConnectionError | IncompleteBody):
            return  # the client went away, which is no failure of ours
        self._port.stats.failures += 1
        self._port.on_error(error, stream.head)
        if stream.finished:
            return
        if stream.started:
            self.abort()
        elif not self._transport.is_closing():
            stream.keep_alive = False
            headers, text = self._port.render_refusal(Refusal(500, "InternalError", "We encountered an internal error."))
            stream.answer(500, headers, text)

    def _end(self, stream: HttpStream) -> None:
        """The handler is done with this request."""
        if self._phase == _LOST:
            self._stream = None
            return
        if not stream.finished:
            self.abort()
            return
        body = stream.body
        unread = body is not None and not body.complete
        if not stream.keep_alive or (body is not None and body.error is not None):
            self._close(linger=unread or bool(self._pending))
        elif unread:
            self._phase = _DRAIN
            self._since_s = self._port.now_s
            self._drain_body()
        else:
            self._next()

    def _next(self) -> None:
        self._stream = None
        self._phase = _HEAD
        self._since_s = self._port.now_s
        if self._read_paused and not self._pending:
            self._resume_reading()

    def _take_ahead(self, body: Inbound | None, data: memoryview) -> None:
        """Bytes that came into the shared buffer while a handler runs."""
        used = 0
        if body is not None and body.waiter is not None and not body.waiter.done():
            try:
                used = body.take(data)
            except InvalidRequest as error:
                body.fail(error)
                return
        if used < len(data):
            self._pending += bytes(data[used:])

    def _drain_body(self) -> None:
        """Drop what is pending of an unread body; go on with the next request once it is complete."""
        assert self._stream is not None
        body = self._stream.body
        assert body is not None
        try:
            self._pending = self._pending[body.drop(memoryview(self._pending)) :]
        except InvalidRequest:
            self._close(linger=True)
            return
        if body.complete:
            self._next()
        elif self._eof:
            self._close()
        else:
            self._resume_reading()

    # -- closing

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a head that no handler gets to see. The connection ends: nobody knows where the next request would begin."""
        self._port.stats.refusals[refusal.code] += 1
        headers, text = self._port.render_refusal(refusal)
        framing = b"content-length: %d\r\nconnection: close\r\n" % len(text)
        self.out.send(response_head(refusal.status, headers, self._port.common_lines, framing) + text)
        self._close(linger=True)

    def _close(self, *, linger: bool = False) -> None:
        """Close once everything written has left. `linger`: the client may still be sending; closing at once would make the
        kernel reset the connection and the answer could be lost, so shut our side and drop input for a while."""
        self._phase = _CLOSING
        self._since_s = self._port.now_s
        self._pending = b""
        if self._transport.is_closing():
            return
        if linger and not self._eof and self._transport.can_write_eof():
            self._transport.write_eof()
            self._resume_reading()
        else:
            self._transport.close()

    def _pause_reading(self) -> None:
        if not self._read_paused and not self._eof and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and not self._eof and not self._transport.is_closing():
            self._read_paused = False
            self._transport.resume_reading()
