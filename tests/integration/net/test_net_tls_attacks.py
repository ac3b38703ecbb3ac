"""What a hostile TLS client may try: memory stays flat, the loop stays free for others, and the connection ends."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

import pytest
from by_hand import ByHand
from net_harness import get, on_loop, rig, until

from anvil.base.limits import KIB, MIB, TLS_READ_BYTES
from anvil.net.stream import Stream
from anvil.net.tls import load
from anvil.net.tls_connection import TlsConnection
from tests.support.certificates import Pair, make_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server_context(pair: Pair) -> ssl.SSLContext:
    return load(str(pair.cert), str(pair.key)).context


async def ok(stream: Stream) -> None:
    view = memoryview(bytearray(64 * KIB))
    while await stream.readinto(view):
        pass
    await stream.respond(200, [], b"ok")


async def flood(client: ByHand, data: bytes, times: int = 1) -> None:
    """Send, as long as the server takes it."""
    with suppress(ConnectionError):
        for _ in range(times):
            for start in range(0, len(data), MIB):
                client.writer.write(data[start : start + MIB])
                await client.writer.drain()


@on_loop
async def test_what_follows_the_closing_alert_is_not_kept(pair: Pair, server_context: ssl.SSLContext) -> None:
    go_on = asyncio.Event()

    async def late(stream: Stream) -> None:
        await go_on.wait()
        await stream.respond(200, [], b"ok")

    async with rig(late, tls=server_context) as running:
        some = await ByHand.connect(running, pair.client())
        some.writer.write(some.sealed(get()) + some.closing_alert())
        await until(lambda: running.stats.requests_in_flight == 1)
        (connection,) = running.server._port.connections
        inside: TlsConnection = connection._transport  # type: ignore[attr-defined]
        await flood(some, bytes(MIB), 8)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert inside._incoming.pending <= TLS_READ_BYTES
        go_on.set()
        assert (await some.rest()).endswith(b"\r\n\r\nok")

        go_on.clear()
        endless = await ByHand.connect(running, pair.client())
        endless.writer.write(endless.sealed(get()) + endless.closing_alert())
        await flood(endless, bytes(MIB), 64)
        await until(lambda: running.server.connections_open == 0)
        assert running.stats.refusals["Tls"] == 1
