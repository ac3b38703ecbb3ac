"""What all connections of one worker share: bounds, counters, callbacks, the read buffer and the one timer.

Owns: admission (caps in total and per address), the sweep that enforces every time-out, the coarse clock. Invariant: a connection
is in `connections` from `admit` to `forget`, and counted once against its address. Not here: bytes (`connection`), listening
sockets (`server`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from anvil.base import limits as bounds
from anvil.net.progress import Progress
from anvil.net.stream import Handler, Headers, RequestHead, TrailingHandler
from anvil.wire.http1 import Refusal, date_and_server, field_lines

_log = logging.getLogger("anvil.net")

OnError = Callable[[Exception, RequestHead], None]
"""Told of every exception that escaped a handler."""
RenderRefusal = Callable[[Refusal], tuple[Headers, bytes]]
"""Headers (content-type) and body of an answer that `net` gives on its own."""
Pressed = Callable[[], bool]
"""Whether requests wait for memory that others hold: the slow must then be faster."""


class NetLimits(msgspec.Struct, frozen=True):
    """Bounds of one worker's connections; the defaults are those of `base.limits`. Tests pass shorter ones."""

    connections: int = bounds.CONNECTIONS_MAX
    connections_per_address: int = bounds.CONNECTIONS_PER_ADDRESS_MAX
    refused_connections: int = bounds.REFUSED_CONNECTIONS_MAX
    requests_in_flight: int = bounds.REQUESTS_IN_FLIGHT_MAX
    handshake_s: float = bounds.TLS_HANDSHAKE_S
    header_s: float = bounds.HEADER_TIMEOUT_S
    idle_s: float = bounds.IDLE_TIMEOUT_S
    body_stall_s: float = bounds.BODY_STALL_S
    body_bytes_per_s: int = bounds.BODY_BYTES_PER_S_MIN
    pressed_bytes_per_s: int = bounds.PRESSED_BYTES_PER_S_MIN
    pressed_stall_s: float = bounds.PRESSED_STALL_S
    write_stall_s: float = bounds.WRITE_STALL_S
    linger_s: float = bounds.LINGER_S
    half_close_s: float = bounds.HALF_CLOSE_S
    sweep_s: float = bounds.SWEEP_S
    drain_body_bytes: int = bounds.DRAIN_BODY_BYTES_MAX
    write_high_water_bytes: int = bounds.WRITE_HIGH_WATER_BYTES
    streams_shown: int = bounds.H2_STREAMS_SHOWN


class NetStats:
    """Plain counters of one worker, only ever increased, except `requests_in_flight`."""

    __slots__ = (
        "accepted",
        "bytes_in",
        "bytes_out",
        "client_aborts",
        "failures",
        "refusals",
        "rejected",
        "requests",
        "requests_in_flight",
        "timeouts",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.rejected: Counter[str] = Counter()  # connections beyond a cap: "total", "address", "flood"; failed TLS: "handshake"
        self.requests = 0
        self.requests_in_flight = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.refusals: Counter[str] = Counter()  # answers without a handler, by code
        self.timeouts: Counter[str] = Counter()  # "handshake", "header", "idle", "body", "pressed", "write", "drain", "linger"
        self.client_aborts = 0
        self.failures = 0  # exceptions that escaped a handler


def log_error(error: Exception, head: RequestHead) -> None:
    """The default `OnError`. The query is left out: it may hold a signature."""
    _log.error("request failed: %s %r", head.method, head.path, exc_info=error)


def plain_refusal(refusal: Refusal) -> tuple[Headers, bytes]:
    """The default `RenderRefusal`: one line of text."""
    return ((b"content-type", b"text/plain; charset=utf-8"),), f"{refusal.code}: {refusal.message}\n".encode()


class Served(Protocol):
    """A connection, whatever it speaks."""

    def sweep(self, now_s: float, elapsed_s: float) -> None: ...
    def drain(self) -> None: ...
    def cut(self) -> None: ...


class Turns:
    """Work that many connections may cause at once, done one piece in each turn of the loop: all others get theirs in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Final = loop
        self._waiting: Final[deque[Callable[[], None]]] = deque()

    def take(self, work: Callable[[], None]) -> None:
        """Do `work` when it is its turn."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        work = self._waiting.popleft()
        if self._waiting:
            self._loop.call_soon(self._next)
        work()


class Port:
    """State shared by the connections of one worker."""

    def __init__(
        self,
        handler: Handler,
        *,
        grpc: TrailingHandler | None = None,
        limits: NetLimits | None = None,
        on_error: OnError = log_error,
        render_refusal: RenderRefusal = plain_refusal,
        pressed: Pressed = lambda: False,
    ) -> None:
        self.handler: Final = handler
        self.grpc: Final = grpc
        self.limits: Final = limits or NetLimits()
        self.on_error: Final = on_error
        self.render_refusal: Final = render_refusal
        self.stats: Final = NetStats()
        self.loop: Final = asyncio.get_running_loop()
        # Reading is synchronous between get_buffer and buffer_updated, so one buffer serves every connection.
        self.scratch: Final = memoryview(bytearray(bounds.READ_BYTES))
        self.sealed: Final = memoryview(bytearray(bounds.TLS_READ_BYTES))  # the same for what is still encrypted
        self.sealed_first: Final = self.sealed[: bounds.TLS_FIRST_READ_BYTES]
        self.connections: Final[set[Served]] = set()
        self.now_s = self.loop.time()  # as of the last sweep
        self.common_fields = date_and_server(time.time())  # of every answer; made by the sweep
        self.common_lines = field_lines(self.common_fields)
        self.draining = False
        self.wide_streams = 0  # HTTP/2 streams that may send much ahead of their readers
        self.pressed = False  # as of the last sweep
        # A signature takes up to 5 ms (RSA with 4096 bits), and a read full of new keys 6.
        self.handshakes: Final = Turns(self.loop)
        self.hollow_reads: Final = Turns(self.loop)
        self._near_send_bytes: Final = near_send_bytes()
        self._ask_pressed: Final = pressed
        self._by_address: Final[Counter[str]] = Counter()
        self._refused = 0
        self._empty: asyncio.Future[None] | None = None
        self._sweep_handle: asyncio.TimerHandle | None = self.loop.call_later(self.limits.sweep_s, self._sweep)

    def admit(self, connection: Served, address: str) -> str | None:
        """Count a new connection in. None: welcome. Otherwise why not: "total" and "address" are told 503, "flood" is cut."""
        self.stats.accepted += 1
        reason = None
        if len(self.connections) - self._refused >= self.limits.connections:
            reason = "total"
        elif self._by_address[address] >= self.limits.connections_per_address:
            reason = "address"
        if reason is not None:
            if self._refused >= self.limits.refused_connections:
                reason = "flood"
            self.stats.rejected[reason] += 1
            self._refused += 1
        else:
            self._by_address[address] += 1
        self.connections.add(connection)
        return reason

    def keep_near(self, transport: asyncio.BaseTransport, peer: str) -> None:
        """To a client or proxy on this machine there is no distance to fill: what waits for it in the kernel should stay in the
        processor's cache."""
        if self._near_send_bytes is not None and peer and peer == address_key(transport.get_extra_info("sockname"))[0]:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._near_send_bytes)

    def replace(self, connection: Served, heir: Served) -> None:
        """`heir` has taken over the socket of one that was admitted."""
        self.connections.discard(connection)
        self.connections.add(heir)

    def forget(self, connection: Served, address: str, reason: str | None) -> None:
        """Count a lost connection out, with what `admit` was given and returned."""
        self.connections.discard(connection)
        if reason is not None:
            self._refused -= 1
        elif self._by_address[address] <= 1:
            del self._by_address[address]
        else:
            self._by_address[address] -= 1
        self.settle()

    def is_in_the_way(self, progress: Progress, moved: int, elapsed_s: float) -> bool:
        """Whether a client is too slow for a time in which others wait for the memory that its transfer holds: a few hundred slow
        ones could otherwise keep everybody out for as long as they like. `progress` is the connection's, for this alone."""
        if not self.pressed:
            progress.reset(moved)
            return False
        return progress.is_slow(moved, elapsed_s, self.limits.pressed_bytes_per_s, self.limits.pressed_stall_s)

    def settle(self) -> None:
        """Wake `wait_empty` if no connection and no request is left."""
        if self._empty is not None and not self._empty.done() and self._is_empty():
            self._empty.set_result(None)

    def _is_empty(self) -> bool:
        return not self.connections and not self.stats.requests_in_flight

    async def wait_empty(self, timeout_s: float) -> bool:
        """Until every connection is gone and every handler has returned. False if that took longer."""
        if self._is_empty():
            return True
        self._empty = self.loop.create_future()
        await asyncio.wait((self._empty,), timeout=timeout_s)
        return self._is_empty()

    def stop_sweep(self) -> None:
        """No more time-outs: the worker has no connections any more."""
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    def _sweep(self) -> None:
        now_s = self.loop.time()
        elapsed_s, self.now_s = now_s - self.now_s, now_s
        self.common_fields = date_and_server(time.time())
        self.common_lines = field_lines(self.common_fields)
        self._sweep_handle = self.loop.call_later(self.limits.sweep_s, self._sweep)
        self.pressed = self._ask_pressed()
        for connection in tuple(self.connections):
            connection.sweep(now_s, elapsed_s)


def near_send_bytes() -> int | None:
    """How large the send buffer towards this machine itself is made; None: it is left alone, as the system allows no more than a buffer
    that would be too small."""
    try:
        allowed = int(Path("/proc/sys/net/core/wmem_max").read_text())
    except (OSError, ValueError):
        return None
    return bounds.NEAR_SEND_BUFFER_BYTES if allowed >= bounds.NEAR_SEND_BUFFER_BYTES else None


def address_key(peername: object) -> tuple[str, str]:
    """(address, key to count it by) of a socket's peer name. An IPv6 client owns a /64, so that is what is counted; IPv4 mapped
    into IPv6 is the IPv4 address."""
    if not isinstance(peername, tuple) or not peername:
        return "", ""
    text = str(peername[0])
    if ":" not in text:
        return text, text
    address = ipaddress.IPv6Address(text.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped), str(address.ipv4_mapped)
    return text, str(ipaddress.IPv6Address(int(address) >> 64 << 64))
