"""One HTTP/2 connection: many requests at a time, each a `Stream` with a task of its own.

Owns: the socket's transport, the tasks of the streams, the pump that hands batches of frames to the transport, draining and closing.
Invariants: nothing is handed out while the transport is above its high-water mark; a request is counted in flight from its head to the end
of its handler; what a client leaves behind (an unread body, a reset) costs a bounded number of bytes and seconds. Not here: frames
(`wire.http2`), what a handler sees (`http2_stream`), caps and the timer (`port`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

from anvil.base.errors import IncompleteBody, RequestTimeout, SlowDown
from anvil.base.limits import (
    H2_BATCH_BYTES,
    H2_CONNECTION_WINDOW_BYTES,
    H2_FREE_ACTIONS_MAX,
    H2_FREE_ACTIONS_PER_S,
    H2_READ_WINDOW_BYTES,
    H2_STREAMS_MAX,
    H2_WIDE_STREAMS_MAX,
    H2_WINDOW_BYTES,
    HEADER_BYTES_MAX,
    HEADER_FIELDS_MAX,
)
from anvil.net.fixed import ALLOW, GRPC_H2_ANSWER, SLOW_DOWN, grpc_refusal
from anvil.net.http2_stream import Http2Stream
from anvil.net.outbound import Outbound
from anvil.net.port import Port
from anvil.net.stream import Headers
from anvil.wire.grpc_head import is_grpc
from anvil.wire.http1 import Refusal, bad_request, head_too_large
from anvil.wire.http2 import (
    CANCEL,
    CLOSED,
    FILLED,
    INTERNAL_ERROR,
    NO_ERROR,
    REQUEST,
    Exchange,
    Session,
    SessionFailed,
)
from anvil.wire.http2_head import parse_fields

log = logging.getLogger("anvil.net")


class Http2Connection(asyncio.BufferedProtocol):
    """The protocol of a socket whose first bytes were HTTP/2's. Takes the place of the `Connection` that read them."""

    def __init__(self, port: Port, transport: asyncio.Transport, address: tuple[str, str], refused: str | None) -> None:
        self.loop: Final = port.loop
        self.out: Final = Outbound(transport, port.loop, port.limits, port.stats)
        self.session: Final = Session(
            streams_shown=port.limits.streams_shown,
            streams_max=H2_STREAMS_MAX,
            window=H2_WINDOW_BYTES,
            connection_window=H2_CONNECTION_WINDOW_BYTES,
            header_bytes_max=HEADER_BYTES_MAX,
            header_fields_max=HEADER_FIELDS_MAX,
            free_actions=H2_FREE_ACTIONS_MAX,
        )
        self._port: Final = port
        self._transport: Final = transport
        self._peer, self._address = address
        self._refused: Final = refused
        self._streams: Final[dict[Exchange, Http2Stream]] = {}  # being served, or answered with a body still to come
        self._draining: Final[dict[Exchange, tuple[float, int]]] = {}  # answered, body unread: since when, after how many bytes
        self._pump_due = False
        self._closing = False
        self._cut = False
        self._lost = False
        self._noticed = False
        self._failed_s: float | None = None  # when the client broke the protocol; what it sends is dropped from then on
        self._dropped = 0
        self._head_since_s: float | None = None
        self._since_s = port.now_s  # when the last stream ended

    # -- called by the loop

    def begin(self, data: bytes) -> None:
        """Take over the socket, and what was read from it so far."""
        self._transport.set_protocol(self)
        self._receive(data)
        if self._port.draining:
            self.drain()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._port.scratch

    def buffer_updated(self, nbytes: int) -> None:
        self._port.stats.bytes_in += nbytes
        self._receive(self._port.scratch[:nbytes])

    def eof_received(self) -> bool:
        return False  # without the client's window updates no answer would come far

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.out.lost()
        self.session.abandon()
        for exchange in list(self._streams):
            self._over(exchange)
        self._draining.clear()
        self._port.forget(self, self._address, self._refused)

    def pause_writing(self) -> None:
        self.out.pause()

    def resume_writing(self) -> None:
        self.out.resume()
        self._pump()

    # -- called by the streams

    @property
    def common_fields(self) -> Headers:
        """The fields that every answer has."""
        return self._port.common_fields

    @property
    def high_water_bytes(self) -> int:
        return self._port.limits.write_high_water_bytes

    def schedule(self) -> None:
        """Something is to be sent: once in this turn of the loop."""
        if not self._pump_due and not self._lost:
            self._pump_due = True
            self.loop.call_soon(self._pump_now)

    def widen(self, exchange: Exchange) -> bool:
        """A reader has come: let the stream send more ahead of it, unless many do. True if so; `_over` takes it back."""
        if self._port.wide_streams >= H2_WIDE_STREAMS_MAX:
            return False
        self._port.wide_streams += 1
        self.session.widen(exchange, H2_READ_WINDOW_BYTES)
        return True

    def reset(self, stream: Http2Stream, code: int) -> None:
        """End one stream at once."""
        for exchange, other in self._streams.items():
            if other is stream:
                self.session.reset(exchange, code)
                self.schedule()
                return

    # -- called by the port

    def drain(self) -> None:
        """Take no new request: those under way end, then the connection does."""
        if not self.session.streams:
            self._end(None)
        elif not self._noticed:
            self._noticed = True
            self.session.notice()
            self.schedule()

    def cut(self) -> None:
        """Abort the connection and cancel its handlers."""
        self._cut = True
        self._transport.abort()

    def sweep(self, now_s: float, elapsed_s: float) -> None:
        """Enforce the time-outs. Called by the one timer of the worker."""
        limits = self._port.limits
        self.session.forgive(elapsed_s * H2_FREE_ACTIONS_PER_S)
        if self._lost:
            return
        if self.out.queued_bytes and self.out.is_slow(elapsed_s, limits.body_bytes_per_s, limits.write_stall_s):
            self._time_out("write")  # also while it is being closed, which waits for these bytes
            return
        if self._failed_s is not None:
            if now_s - self._failed_s > limits.linger_s:
                self.cut()
            return
        if self._transport.is_closing():
            return
        if self._noticed and not self._closing:
            self._closing = True  # a sweep after the notice: the client has seen it
            self.session.goaway()
            self.schedule()
        for exchange, (since_s, received) in list(self._draining.items()):
            late = now_s - since_s > limits.linger_s or exchange.received - received > limits.drain_body_bytes
            if late and not (exchange.queued and exchange in self._streams):  # else its answer has a time-out of its own
                self._stop_draining(exchange)
        for exchange, stream in list(self._streams.items()):
            self._sweep_stream(exchange, stream, elapsed_s)
        if self.session.in_head:
            self._head_since_s = now_s if self._head_since_s is None else self._head_since_s
            if now_s - self._head_since_s > limits.header_s:
                self._time_out("header")
                return
        else:
            self._head_since_s = None
        if self.session.streams:
            self._since_s = now_s
        elif self._closing or now_s - self._since_s > limits.idle_s:
            self._end(None if self._closing else "idle")

    def _sweep_stream(self, exchange: Exchange, stream: Http2Stream, elapsed_s: float) -> None:
        limits, port = self._port.limits, self._port
        if stream.waiter is not None:
            moved = exchange.received
            if stream.read_progress.is_slow(moved, elapsed_s, limits.body_bytes_per_s, limits.body_stall_s):
                port.stats.timeouts["body"] += 1
                stream.fail(RequestTimeout())
            elif port.is_in_the_way(stream.pressed_progress, moved, elapsed_s):
                port.stats.timeouts["pressed"] += 1
                stream.fail(SlowDown())
        elif stream.writing:
            moved = stream.delivered
            if stream.write_progress.is_slow(moved, elapsed_s, limits.body_bytes_per_s, limits.write_stall_s):
                self._give_up(exchange, "write")
            elif port.is_in_the_way(stream.pressed_progress, moved, elapsed_s):
                self._give_up(exchange, "pressed")

    # -- inside

    def _fail_all(self) -> None:
        """The client has broken the protocol: its streams are over. It may still be sending: closing at once would make the kernel reset
        the connection, and the GOAWAY that says why could be lost, so what comes is dropped for a while."""
        self._failed_s = self._port.now_s
        self._pump()
        self.session.abandon()
        for exchange in list(self._streams):
            self._over(exchange)
        self._draining.clear()
        if not self._transport.is_closing():
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _give_up(self, exchange: Exchange, kind: str) -> None:
        """One stream that does not get on."""
        self._port.stats.timeouts[kind] += 1
        self.session.reset(exchange, CANCEL)
        self.schedule()

    def _time_out(self, kind: str) -> None:
        self._port.stats.timeouts[kind] += 1
        self.cut()

    def _end(self, kind: str | None) -> None:
        """Close in good order: GOAWAY, then the socket."""
        if kind is not None:
            self._port.stats.timeouts[kind] += 1
        self._closing = True
        self.session.terminate(NO_ERROR)
        self.schedule()

    def _receive(self, data: bytes | memoryview) -> None:
        if self._lost or self._transport.is_closing():
            return
        if self._failed_s is not None:
            self._dropped += len(data)
            if self._dropped > self._port.limits.drain_body_bytes:
                self.cut()
            return
        try:
            self.session.receive(data)
        except SessionFailed as error:
            self._port.stats.refusals["Http2"] += 1
            log.debug("connection of %s ended: %s", self._peer, error)
            self._fail_all()
            return
        self._handle_events()
        self._pump()

    def _handle_events(self) -> None:
        for kind, exchange in self.session.take_events():
            if kind == REQUEST:
                self._serve(exchange)
            elif kind == FILLED and exchange.owner is not None:
                cast(Http2Stream, exchange.owner).wake_reader()
            elif kind == CLOSED:
                self._over(exchange)

    def _serve(self, exchange: Exchange) -> None:
        """A request's head is complete."""
        port = self._port
        if exchange.closed:
            return  # given up in the same breath
        port.stats.requests += 1
        try:
            if exchange.oversized:
                raise head_too_large()
            if exchange.malformed:
                raise bad_request("A header field of the request is not valid.")
            head = parse_fields(exchange.headers)
        except Refusal as refusal:
            self._refuse(exchange, refusal)
            return
        stream = Http2Stream(self, exchange, head, self._peer)
        exchange.owner = stream
        self._streams[exchange] = stream
        grpc = stream.head.is_grpc
        if self._refused is not None or port.stats.requests_in_flight >= port.limits.requests_in_flight:
            port.stats.refusals[SLOW_DOWN.code] += 1
            if grpc:
                stream.answer(200, grpc_refusal(SLOW_DOWN))
            else:
                headers, text = port.render_refusal(SLOW_DOWN)
                stream.answer(503, headers, text)
            self._done(exchange, stream)
            if self._refused is not None:
                self.drain()
        elif grpc:
            if port.grpc is None:
                port.stats.refusals["Grpc"] += 1
                stream.answer(200, GRPC_H2_ANSWER)
                self._done(exchange, stream)
            else:
                port.stats.requests_in_flight += 1
                stream.task = port.loop.create_task(self._work(exchange, stream, port.grpc))
        elif head.path == b"*":
            stream.answer(200, ALLOW)
            self._done(exchange, stream)
        else:
            port.stats.requests_in_flight += 1
            stream.task = port.loop.create_task(self._work(exchange, stream, port.handler))

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer a head that no handler gets to see."""
        self._port.stats.refusals[refusal.code] += 1
        if is_grpc(_field(exchange, b":method"), _field(exchange, b"content-type")):
            self.session.respond(exchange, [(b":status", b"200"), *grpc_refusal(refusal)], False)
            self._drain_body(exchange)
            self.session.leave(exchange)
            return
        headers, text = self._port.render_refusal(refusal)
        fields = [
            (b":status", b"%d" % refusal.status),
            *headers,
            *self._port.common_fields,
            (b"content-length", b"%d" % len(text)),
        ]
        if _field(exchange, b":method") == b"HEAD":
            text = b""
        self.session.respond(exchange, fields, bool(text))
        self.session.push(exchange, text)
        self.session.end(exchange)
        self._drain_body(exchange)

    async def _work(self, exchange: Exchange, stream: Http2Stream, serve: Callable[[Http2Stream], Awaitable[None]]) -> None:
        """The task of one request."""
        port = self._port
        stream.running = True
        try:
            await serve(stream)
            if not stream.finished and not exchange.closed:
                raise RuntimeError("the handler returned without a whole answer")
        except Exception as error:
            self._fail(exchange, stream, error)
        except BaseException:
            self.session.reset(exchange, INTERNAL_ERROR)  # cancelled: the client is gone, or the worker goes
            raise
        finally:
            port.stats.requests_in_flight -= 1
            stream.task = None
            self._done(exchange, stream)
            port.settle()

    def _fail(self, exchange: Exchange, stream: Http2Stream, error: Exception) -> None:
        """An exception escaped the handler."""
        if exchange.closed and isinstance(error, ConnectionError | IncompleteBody):
            return  # the client went away, which is no failure of ours
        self._port.stats.failures += 1
        self._port.on_error(error, stream.head)
        if stream.finished or exchange.closed:
            return
        if stream.started:
            self.session.reset(exchange, INTERNAL_ERROR)
        else:
            headers, text = self._port.render_refusal(Refusal(500, "InternalError", "We encountered an internal error."))
            stream.answer(500, headers, text)
        self.schedule()

    def _done(self, exchange: Exchange, stream: Http2Stream) -> None:
        """The handler is through with this request: what it left of the body is nobody's."""
        stream.error = None
        if exchange.closed:
            exchange.discard()
        elif not stream.finished:
            self.session.reset(exchange, INTERNAL_ERROR)
        elif not exchange.ended:
            self._drain_body(exchange)
            if stream.head.is_grpc:
                # As grpcio's own server does. Its client (1.85) waits for ever where its deadline passes while it has the status and
                # the stream is still open.
                self.session.leave(exchange)
        self.schedule()

    def _drain_body(self, exchange: Exchange) -> None:
        """An early answer may be lost to a client that is still sending when its stream is reset: take a bounded amount first."""
        exchange.discard()
        self._draining[exchange] = self._port.now_s, exchange.received
        self.schedule()

    def _stop_draining(self, exchange: Exchange) -> None:
        del self._draining[exchange]
        if not exchange.closed:
            self.session.reset(exchange, NO_ERROR)
            self.schedule()

    def _over(self, exchange: Exchange) -> None:
        """The stream is closed, by whichever side."""
        self._draining.pop(exchange, None)
        exchange.owner = None  # the two would keep each other, and what is in them, until the garbage collector comes
        stream = self._streams.pop(exchange, None)
        if stream is None:
            return
        stream.lost()
        self._port.wide_streams -= stream.widened
        stream.widened = False
        if stream.task is None or stream.finished:
            return
        self._port.stats.client_aborts += not self._cut
        stream.task.cancel()
        if not stream.running:  # nor will it be, so nobody else counts it out
            stream.task = None
            self._port.stats.requests_in_flight -= 1
            self._port.settle()

    # -- out

    def _pump_now(self) -> None:
        self._pump_due = False
        self._pump()

    def _pump(self) -> None:
        """Hand frames to the transport until there are none, or it has enough."""
        if self._lost:
            return
        sent = 0
        try:
            while not self.out.paused and not self._transport.is_closing():
                buffers, count = self.session.collect(H2_BATCH_BYTES)
                if not count:
                    break
                sent += count
                self.out.send_lines(buffers, count)
        except SessionFailed:
            self._transport.abort()
            return
        if sent:
            self._handle_events()  # streams end by what is sent on them
            for stream in self._streams.values():
                stream.progressed()
        if self._failed_s is None and not self.session.alive and not self._transport.is_closing():
            self._transport.close()


def _field(exchange: Exchange, name: bytes) -> bytes:
    return next((value for key, value in exchange.headers if key == name), b"")
