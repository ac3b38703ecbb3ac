"""A server on a loopback socket inside the test's own event loop, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from anvil.net.port import NetLimits
from anvil.net.server import Listener, Server, serve
from anvil.net.stream import RequestHead, Stream

DEADLINE_S = 30.0


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on uvloop, within a deadline."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 3 * DEADLINE_S)

        uvloop.run(bounded())

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, within a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Client:
    """One connection. Reads of answers trust nothing but their framing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(DEADLINE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        assert lines[0].startswith("HTTP/1.1 ")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(": ") for line in lines[1:]):
            assert name not in headers, f"{name} twice"
            headers[name] = value
        return int(lines[0].split(" ")[1]), headers

    async def answer(self, *, method: str = "GET") -> Answer:
        status, headers = await self.head()
        body = b""
        async with asyncio.timeout(DEADLINE_S):
            if method == "HEAD" or status in (100, 204, 304):
                pass
            elif headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    assert await self.reader.readexactly(2) == b"\r\n"
                assert await self.reader.readexactly(2) == b"\r\n"
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return Answer(status, headers, body)

    async def closed(self) -> bytes:
        """What still comes until the server closes (or resets) the connection."""
        rest = b""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while data := await self.reader.read(65536):
                    rest += data
            except ConnectionError:
                pass
        return rest

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Rig:
    def __init__(self, server: Server, errors: list[Exception]) -> None:
        self.server = server
        self.errors = errors
        self.stats = server.stats
        self._clients: list[Client] = []

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    async def client(self, *, receive_bytes: int | None = None) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        client = Client(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**16))
        self._clients.append(client)
        return client

    async def ask(self, data: bytes, *, method: str = "GET") -> Answer:
        """One exchange on a connection of its own."""
        client = await self.client()
        await client.send(data)
        return await client.answer(method=method)

    def close_clients(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()


@asynccontextmanager
async def rig(
    handler: Callable[[Stream], Awaitable[None]], *, tls: ssl.SSLContext | None = None, **limits: float
) -> AsyncIterator[Rig]:
    """A running server with short sweeps. `limits` as in NetLimits."""
    errors: list[Exception] = []

    def on_error(error: Exception, head: RequestHead) -> None:
        errors.append(error)

    settings: dict[str, Any] = {"sweep_s": 0.02, **limits}
    listener = Listener("127.0.0.1", 0, None if tls is None else lambda: tls)
    server = await serve(handler, [listener], limits=NetLimits(**settings), on_error=on_error)  # type: ignore[arg-type]
    running = Rig(server, errors)
    try:
        yield running
    finally:
        running.close_clients()
        await server.close()
        assert server.connections_open == 0
        assert server.stats.requests_in_flight == 0


def get(path: bytes = b"/", *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"".join(line + b"\r\n" for line in (method + b" " + path + b" HTTP/" + version, b"Host: h", *lines)) + b"\r\n"


def put(body: bytes, *lines: bytes, path: bytes = b"/") -> bytes:
    return get(path, b"Content-Length: %d" % len(body), *lines, method=b"PUT") + body


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
