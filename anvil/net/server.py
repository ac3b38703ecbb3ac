"""Listening: opens the sockets of one worker and ends its connections in good order.

Owns: listening sockets and the order of shutting down. Invariant: after `close` returns, no connection of this server is left,
and no handler task that heeds its cancellation. Not here: what happens on a connection (`connection`), caps and time-outs
(`port`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from anvil.base.limits import ACCEPT_BACKLOG, DRAIN_S
from anvil.net.connection import Connection
from anvil.net.port import NetLimits, NetStats, OnError, Port, Pressed, RenderRefusal, log_error, plain_refusal
from anvil.net.stream import Handler, TrailingHandler
from anvil.net.tls_connection import TlsConnection

_CANCEL_S: Final = 10.0  # for handlers to clean up after they were cancelled


class Listener(NamedTuple):
    """An address, IPv4 or IPv6; port 0 picks one. `tls`: asked at each connection; without it, plaintext."""

    host: str
    port: int
    tls: Callable[[], ssl.SSLContext] | None = None


class Server:
    """A running listener; made by `serve`."""

    def __init__(self, port: Port, listeners: Sequence[asyncio.Server]) -> None:
        self._port: Final = port
        self._listeners: Final = list(listeners)

    @property
    def stats(self) -> NetStats:
        return self._port.stats

    @property
    def connections_open(self) -> int:
        return len(self._port.connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, with real port numbers."""
        return [socket.getsockname()[:2] for listener in self._listeners for socket in listener.sockets]

    async def drain(self, deadline_s: float = DRAIN_S) -> int:
        """Stop accepting, close idle connections, announce `connection: close` on answers, and wait for requests in flight.
        Returns how many connections were still open at the deadline; they are cut and their handlers cancelled by then."""
        port = self._port
        port.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(port.connections):
            connection.drain()
        left = 0 if await port.wait_empty(deadline_s) else len(port.connections)
        await self.close()
        return left

    async def close(self) -> None:
        """Stop at once: cut every connection, cancel the handlers and wait for them to return (bounded; some shield a commit)."""
        port = self._port
        port.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(port.connections):
            connection.cut()
        await port.wait_empty(_CANCEL_S)
        port.stop_sweep()


async def serve(
    handler: Handler,
    addresses: Sequence[Listener | tuple[str, int]],
    *,
    grpc: TrailingHandler | None = None,
    limits: NetLimits | None = None,
    reuse_port: bool = False,
    backlog: int = ACCEPT_BACKLOG,
    on_error: OnError = log_error,
    render_refusal: RenderRefusal = plain_refusal,
    pressed: Pressed = lambda: False,
) -> Server:
    """Listen on `addresses` and call `handler` for each request, `grpc` for each gRPC call over HTTP/2 (without one they are answered
    UNIMPLEMENTED). `pressed` is asked at each sweep; while it is true the minimum rates are those of `pressed_bytes_per_s`. Raises
    OSError if an address cannot be had, in which case nothing is left listening."""
    port = Port(handler, grpc=grpc, limits=limits, on_error=on_error, render_refusal=render_refusal, pressed=pressed)
    listeners: list[asyncio.Server] = []
    try:
        for address in addresses:
            host, number, tls = Listener(*address)
            accept = partial(Connection, port) if tls is None else partial(_accept_tls, port, tls)
            listeners.append(await port.loop.create_server(accept, host, number, reuse_port=reuse_port, backlog=backlog))
    except OSError:
        for listener in listeners:
            listener.close()
        port.stop_sweep()
        raise
    return Server(port, listeners)


def _accept_tls(port: Port, context: Callable[[], ssl.SSLContext]) -> TlsConnection:
    return TlsConnection(port, context())
