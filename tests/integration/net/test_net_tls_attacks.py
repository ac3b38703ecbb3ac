"""What a hostile TLS client may try: memory stays flat, the loop stays free for others, and the connection ends."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from by_hand import ALERT, APPLICATION_DATA, HANDSHAKE, ByHand, Records
from net_harness import get, on_loop, rig, until

from anvil.base.limits import KIB, MIB, TLS_FIRST_READ_BYTES, TLS_READ_BYTES, TLS_REPLY_BYTES_MAX
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


@on_loop
async def test_a_storm_of_handshakes_lets_others_in_between(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, rsa_bits=3072)
    context = load(str(pair.cert), str(pair.key)).context
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        pair.client().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    beginning = hello.read()
    async with rig(ok, tls=context) as running:
        crowd = [await running.client() for _ in range(150)]
        await until(lambda: running.server.connections_open == len(crowd))
        for one in crowd:
            os.write(one.writer.get_extra_info("socket").fileno(), beginning)
        answered = [asyncio.create_task(one.reader.readexactly(1000)) for one in crowd]
        turns = 0
        while not all(one.done() for one in answered):
            await asyncio.sleep(0)
            turns += 1
        assert turns >= len(crowd)


@on_loop
async def test_endless_new_keys_that_want_an_answer_end_the_connection(
    pair: Pair, server_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async with rig(ok, tls=server_context) as running:
        few, records = await Records.connect(running, pair, tmp_path)
        few.writer.write(records.key_update(requested=True) + records.record(APPLICATION_DATA, get()))
        assert (await few.rest(stop=b"ok")).endswith(b"\r\n\r\nok")
        await flood(few, b"".join(records.key_update(requested=True) for _ in range(TLS_REPLY_BYTES_MAX // 20)))
        await until(lambda: running.server.connections_open == 0)
        assert running.stats.refusals["Tls"] == 1


@on_loop
async def test_new_keys_in_a_row_let_others_in_between(pair: Pair, server_context: ssl.SSLContext, tmp_path: Path) -> None:
    """They cost 27 bytes and the loop 10 us each: as with other requests, it is how many come in one read that is bounded."""
    count = 20_000
    async with rig(ok, tls=server_context) as running:
        client, records = await Records.connect(running, pair, tmp_path)
        data = b"".join(records.key_update() for _ in range(count)) + records.record(APPLICATION_DATA, get())
        sending = asyncio.create_task(flood(client, data))
        turns = 0
        answer = asyncio.create_task(client.rest(stop=b"ok"))
        while not answer.done():
            await asyncio.sleep(0)
            turns += 1
        await sending
        assert answer.result().endswith(b"\r\n\r\nok")
        assert turns >= len(data) / TLS_FIRST_READ_BYTES


@on_loop
async def test_records_of_one_byte_are_content(pair: Pair, server_context: ssl.SSLContext, tmp_path: Path) -> None:
    async with rig(ok, tls=server_context) as running:
        client, records = await Records.connect(running, pair, tmp_path)
        count = 4000
        head = get(b"/", b"Content-Length: %d" % count, method=b"PUT")
        for _ in range(2):
            data = records.record(APPLICATION_DATA, head)
            await flood(client, data + b"".join(records.record(APPLICATION_DATA, b"x") for _ in range(count)))
            assert (await client.rest(stop=b"ok")).endswith(b"\r\n\r\nok")


@on_loop
async def test_records_that_are_none_end_the_connection(pair: Pair, server_context: ssl.SSLContext, tmp_path: Path) -> None:
    async with rig(ok, tls=server_context) as running:
        for kind, data, times in (
            (APPLICATION_DATA, b"", 100),
            (APPLICATION_DATA, bytes(16 * KIB + 1), 1),
            (HANDSHAKE, b"\x01\0\0\x05hello", 1),
            (HANDSHAKE, b"\x18\xff\xff\xff", 1),
            (ALERT, b"\x01\x5a", 100),
        ):
            running.stats.refusals.clear()
            client, records = await Records.connect(running, pair, tmp_path)
            await flood(client, b"".join(records.record(kind, data) for _ in range(times)))
            with suppress(ssl.SSLError, ConnectionError):
                await client.rest()
            await until(lambda: running.server.connections_open == 0)
            assert running.stats.refusals["Tls"] == 1, (kind, data[:10])
        assert running.stats.requests == 0
