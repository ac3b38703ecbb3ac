"""What a hostile TLS client may try: memory stays flat, the loop stays free for others, and the connection ends."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from by_hand import ALERT, APPLICATION_DATA, HANDSHAKE, ByHand, Records
from net_harness import get, on_loop, put, rig, until

from anvil.base.limits import KIB, MIB, TLS_FIRST_READ_BYTES, TLS_READ_BYTES, TLS_REPLY_BYTES_MAX
from anvil.net.stream import Stream
from anvil.net.tls import load
from anvil.net.tls_connection import TlsConnection
from tests.support.certificates import Pair, make_pair
from tests.support.h2client import H2Client
from tests.support.needs import program


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


async def echo(stream: Stream) -> None:
    await stream.respond(200, [], await stream.read_all(8 * MIB))


async def deny(stream: Stream) -> None:
    await stream.respond(403, [], b"denied")


def hello_of(pair: Pair) -> bytes:
    """A ClientHello that asks for localhost."""
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        pair.client().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    return hello.read()


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
    beginning = hello_of(pair)
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


@on_loop
async def test_reads_without_content_take_turns(pair: Pair, server_context: ssl.SSLContext, tmp_path: Path) -> None:
    """Twenty connections that send nothing but new keys held the loop for 120 ms at a time."""
    crowd, reads = 10, 12
    async with rig(ok, tls=server_context) as running:
        clients = [await Records.connect(running, pair, tmp_path) for _ in range(crowd)]
        data = []
        for _, records in clients:
            keys = b"".join(records.key_update() for _ in range(reads * TLS_FIRST_READ_BYTES // 27))
            data.append(keys + records.record(APPLICATION_DATA, get()))
        turn = 0
        for (one, _), sent in zip(clients, data, strict=True):
            os.write(one.writer.get_extra_info("socket").fileno(), sent)
        answers = [asyncio.create_task(one.rest(stop=b"ok")) for one, _ in clients]
        while not all(one.done() for one in answers):
            await asyncio.sleep(0)
            turn += 1
        assert turn >= crowd * (reads - 2), "one read of all these in a turn of the loop"
        assert all(one.result().endswith(b"\r\n\r\nok") for one in answers)


# -- clients that leave, or are odd, amid the turns of the handshakes --------------------------------------------------------


@pytest.mark.parametrize("way", ["end", "reset", "drain"])
@on_loop
async def test_who_waits_for_a_handshake_may_leave(
    way: str, pair: Pair, server_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    hello = hello_of(pair)
    async with rig(ok, tls=server_context) as running:
        crowd = [await running.client() for _ in range(60)]
        await until(lambda: running.server.connections_open == len(crowd))
        for one in crowd:
            os.write(one.writer.get_extra_info("socket").fileno(), hello)
            if way == "end":
                one.writer.write_eof()
            elif way == "reset":
                one.reset()
        await asyncio.sleep(0)
        if way == "drain":
            assert await running.server.drain(5) == 0
        await until(lambda: running.server.connections_open == 0)
        assert running.errors == []
        assert caplog.records == []


@on_loop
async def test_handshake_request_and_end_may_come_at_once(pair: Pair, server_context: ssl.SSLContext) -> None:
    body = os.urandom(3 * MIB + 7)
    async with rig(echo, tls=server_context) as running:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = pair.client()
            context.minimum_version = context.maximum_version = version
            plain = await running.client()
            client = ByHand(context, plain.reader, plain.writer)
            while True:
                try:
                    client.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    for byte in client.outgoing.read():  # in the smallest pieces, each of which waits for its turn
                        client.writer.write(bytes([byte]))
                        await asyncio.sleep(0)
                    client.incoming.write(await client.reader.read(65536))
            last = client.outgoing.read()
            client.writer.write(last + client.sealed(put(body)) + client.closing_alert())
            client.writer.write_eof()
            assert (await client.rest()).endswith(body)


@on_loop
async def test_names_that_are_odd_or_unknown(pair: Pair, server_context: ssl.SSLContext) -> None:
    """There is one certificate, whatever is asked for; what is no name at all ends the handshake or is not looked at."""
    async with rig(ok, tls=server_context) as running:
        for name in (b"\0ocalhost", b"\xff" * 9, b"." * 9):
            client = await running.client()
            await client.send(hello_of(pair).replace(b"localhost", name))
            async with asyncio.timeout(5):
                assert (await client.reader.readexactly(1))[0] in (ALERT, HANDSHAKE)
            client.close()
        context = pair.client()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for known in ("unknown.example", "127.0.0.1", "", "a" * 63 + ".example"):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=context, server_hostname=known)
            writer.write(get())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.transport.abort()


# -- early refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
@on_loop
async def test_an_early_answer_reaches_a_client_that_sends_before_it_listens(
    large: bool, pair: Pair, server_context: ssl.SSLContext
) -> None:
    """As without TLS: what is small enough is dropped, and the connection goes on; who sends more is held up, not cut."""
    size = 64 * MIB if large else 4 * MIB

    def talk(port: int) -> bytes:
        plain = socket.create_connection(("127.0.0.1", port), 2)
        with pair.client().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(get(b"/", b"Content-Length: %d" % size, method=b"PUT"))
            try:
                for _ in range(size // MIB):
                    client.sendall(bytes(MIB))
            except TimeoutError:
                assert large
            else:
                assert not large
            return client.recv(64 * KIB)

    async with rig(deny, tls=server_context, drain_body_bytes=4 * MIB) as running:
        answer = await asyncio.to_thread(talk, running.port)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert (b"connection: close\r\n" in answer) == large


@on_loop
async def test_an_early_answer_over_http2(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(deny, tls=server_context, linger_s=0.2) as running:
        client = await H2Client.connect("127.0.0.1", running.port, tls=pair.client("h2"))
        stream = client.begin("PUT", "/", end=False)
        sending = asyncio.create_task(client.send(stream, bytes(32 * MIB), end=False))
        answer = await client.answer(stream)
        assert (answer.status, answer.body) == (403, b"denied")
        await until(lambda: answer.reset == 0)
        assert (await client.ask("GET", "/")).status == 403, "on the same connection"
        sending.cancel()
        client.close()


@on_loop
async def test_early_data_is_not_taken(pair: Pair, server_context: ssl.SSLContext, tmp_path: Path) -> None:
    """0-RTT can be replayed (RFC 8446, 8): sessions are resumed, but offer none of it."""
    early, session = tmp_path / "early", tmp_path / "session"
    early.write_bytes(get(b"/early"))

    async def openssl(*more: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *(
                program("openssl"),
                "s_client",
                "-connect",
                f"127.0.0.1:{running.port}",
                "-CAfile",
                str(pair.cert),
                "-ign_eof",
                *more,
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(10):
            return (await process.communicate(get(b"/", b"Connection: close")))[0]

    async with rig(ok, tls=server_context) as running:
        first = await openssl("-sess_out", str(session))
        assert b"Max Early Data: 0\n" in first
        again = await openssl("-sess_in", str(session), "-early_data", str(early))
        assert b"Reused, TLSv1.3" in again
        assert b"Early data was accepted" not in again
        assert running.stats.requests == 2
