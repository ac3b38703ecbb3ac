"""An HTTP/2 client for tests, on the h2 package: another implementation than the server's, and one that can be made to misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

DEADLINE_S = 30.0
Fields = Sequence[tuple[str, str]]


class Exchange:
    """One request, as far as its answer has come."""

    def __init__(self) -> None:
        self.informed: list[int] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = bytearray()
        self.reset: int | None = None
        self.ended = asyncio.Event()


class H2Client:
    """One connection. `window`: what the server may send on a stream ahead of our reading (which is at once, unless `hold`).
    `deaf`: nothing is read at all."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int, hold: bool, deaf: bool = False
    ) -> None:
        self._scheme = "http" if writer.get_extra_info("ssl_object") is None else "https"
        self.reader, self.writer, self.hold = reader, writer, hold
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=True,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.exchanges: dict[int, Exchange] = {}
        self.goaway: int | None = None
        self.last_stream: int | None = None
        self.closed = asyncio.Event()
        self._moved = asyncio.Event()
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 28)
        self._flush()
        self._task = asyncio.create_task(asyncio.sleep(3600) if deaf else self._read())

    @classmethod
    async def connect(
        cls, host: str, port: int, *, window: int = 65_535, hold: bool = False, tls: ssl.SSLContext | None = None
    ) -> H2Client:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        return cls(reader, writer, window, hold)

    # -- requests

    def begin(self, method: str, path: str, headers: Fields = (), *, authority: str | None = "h", end: bool = True) -> int:
        """Send a head; its stream's number."""
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", self._scheme), (":path", path)]
        if authority is not None:
            fields.append((":authority", authority))
        self.h2.send_headers(stream, [*fields, *headers], end_stream=end)
        self.exchanges[stream] = Exchange()
        self._flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Body bytes, as the windows allow, and as long as the server wants them: it may have answered and left the stream."""
        try:
            await self._send(stream, data, end=end)
        except h2.exceptions.StreamClosedError:
            if self.exchanges[stream].reset is None:
                raise

    async def _send(self, stream: int, data: bytes, *, end: bool) -> None:
        at = 0
        while at < len(data):
            count = min(len(data) - at, self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if count:
                self.h2.send_data(stream, data[at : at + count])
                at += count
                self._flush()
                await self.writer.drain()
            else:
                await self._wait_moved()
        if end:
            self.h2.end_stream(stream)
            self._flush()

    async def ask(self, method: str, path: str, headers: Fields = (), body: bytes | None = None, **more: Any) -> Exchange:
        """A whole exchange."""
        stream = self.begin(method, path, headers, end=body is None, **more)
        if body is not None:
            await self.send(stream, body)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Exchange:
        exchange = self.exchanges[stream]
        async with asyncio.timeout(DEADLINE_S):
            await exchange.ended.wait()
        return exchange

    def cancel(self, stream: int) -> None:
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def until_closed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.closed.wait()

    def close(self) -> None:
        self._task.cancel()
        self.writer.transport.abort()

    # -- inside

    def _flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def _wait_moved(self) -> None:
        self._moved.clear()
        async with asyncio.timeout(DEADLINE_S):
            await self._moved.wait()
        if self.closed.is_set():
            raise ConnectionResetError("the server closed the connection")

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(1 << 18):
                for event in self.h2.receive_data(data):
                    self._handle(event)
                self._flush()
                self._moved.set()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        finally:
            self.closed.set()
            self._moved.set()
            for exchange in self.exchanges.values():
                exchange.ended.set()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway, self.last_stream = int(event.error_code or 0), event.last_stream_id
            if self.goaway == 0:  # the h2 package takes any GOAWAY for the end; streams under way go on (RFC 9113, 6.8)
                self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            return
        exchange = self.exchanges.get(getattr(event, "stream_id", 0) or 0)
        if exchange is None:
            return
        if isinstance(event, h2.events.InformationalResponseReceived):
            exchange.informed.append(int(_fields(event)[":status"]))
        elif isinstance(event, h2.events.ResponseReceived):
            exchange.headers = _fields(event)
            exchange.status = int(exchange.headers.pop(":status"))
        elif isinstance(event, h2.events.TrailersReceived):
            exchange.trailers = _fields(event)
        elif isinstance(event, h2.events.DataReceived):
            exchange.body += event.data or b""
            if not self.hold and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamEnded):
            exchange.ended.set()
        elif isinstance(event, h2.events.StreamReset):
            exchange.reset = int(event.error_code or 0)
            exchange.ended.set()


def _fields(event: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in event.headers:
        assert name not in found, f"{name} twice"
        found[name] = value
    return found
