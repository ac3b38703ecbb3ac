"""The same port behind TLS: large bodies both ways, cut and half-read connections, handshakes that never end, slow readers."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
from by_hand import ByHand
from net_harness import Client, Rig, get, on_loop, put, rig, until

from anvil.base.limits import KIB, MIB, TLS_READ_BYTES
from anvil.net import tls_connection
from anvil.net.stream import Stream
from anvil.net.tls import load
from anvil.net.tls_connection import TlsConnection
from tests.support.certificates import Pair, make_pair
from tests.support.h2client import H2Client
from tests.support.needs import program

DATA = random.Random(7).randbytes(4 * MIB + 321)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server_context(pair: Pair) -> ssl.SSLContext:
    return load(str(pair.cert), str(pair.key)).context


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does to TLS is no news to an operator."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def handler(stream: Stream) -> None:
    """Answers PUT /echo with what it got, /deny without reading, /large with 64 MiB; /cut ends amid the answer."""
    path = stream.head.path
    if path == b"/deny":
        await stream.respond(403, [], b"denied")
    elif path == b"/cut":
        stream.start(200, [], None)
        await stream.write(DATA[:100_000])
        await stream.flushed()
        stream.abort()
    elif path == b"/large":
        stream.start(200, [], 64 * MIB)
        block = memoryview(bytearray(MIB))
        for number in range(64):
            block[:] = bytes([number]) * MIB
            await stream.write(block)
            await stream.flushed()
        await stream.finish()
    else:
        body = bytearray()
        view = memoryview(bytearray(MIB))
        while count := await stream.readinto(view):
            body += view[:count]
        stream.start(200, [], len(body))
        for start in range(0, len(body), MIB):
            await stream.write(memoryview(body)[start : start + MIB])
        await stream.finish()


async def connect(running: Rig, context: ssl.SSLContext) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", running.port, ssl=context))


@on_loop
async def test_bodies_arrive_byte_for_byte(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context) as running:
        client = await connect(running, pair.client("http/1.1"))
        for size in (0, 1, 3, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 64 * KIB + 5, MIB, len(DATA)):
            await client.send(put(DATA[:size]))
            assert (await client.answer()).body == DATA[:size], size
        await client.send(get(b"/large"))
        assert (await client.answer()).body == b"".join(bytes([number]) * MIB for number in range(64))
        await client.send(put(bytes(100_000), path=b"/deny") + get())
        assert (await client.answer()).status == 403
        assert (await client.answer()).status == 200
        await client.send(b"BAD\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed() == b""
        assert running.stats.bytes_in < running.stats.bytes_out

        expecting = await connect(running, pair.client())
        await expecting.send(get(b"/deny", b"Content-Length: 9", b"Expect: 100-continue", method=b"PUT"))
        assert (await expecting.answer()).headers["connection"] == "close"
        assert await expecting.closed() == b""


@on_loop
async def test_bodies_arrive_byte_for_byte_over_http2(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context) as running:
        context = pair.client("h2")
        client = await H2Client.connect("127.0.0.1", running.port, window=2 * MIB, tls=context)
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        answers = await asyncio.gather(*(client.ask("PUT", "/", body=DATA[: n * 600_001]) for n in range(7)))
        assert [bytes(answer.body) for answer in answers] == [DATA[: n * 600_001] for n in range(7)]
        large = await client.ask("GET", "/large")
        assert large.body == b"".join(bytes([number]) * MIB for number in range(64))
        client.close()


@on_loop
async def test_records_may_come_in_any_pieces(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context) as running:
        client = await ByHand.connect(running, pair.client())
        request = client.sealed(put(DATA[:50], b"Connection: close")[:40])
        request += client.sealed(put(DATA[:50], b"Connection: close")[40:])
        for at in range(len(request)):
            client.writer.write(request[at : at + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.rest()).endswith(b"\r\n\r\n" + DATA[:50])


@on_loop
async def test_a_tls_client_may_end_its_direction_first(pair: Pair, server_context: ssl.SSLContext) -> None:
    """TLS 1.3 lets each side end for itself (RFC 8446, 6.1): the answer still goes out, and ends in order."""
    async with rig(handler, tls=server_context) as running:
        client = await ByHand.connect(running, pair.client())
        client.writer.write(client.sealed(put(DATA[:900_000])) + client.closing_alert())
        assert (await client.rest()).endswith(DATA[:900_000])
        early = await ByHand.connect(running, pair.client())
        early.writer.write(early.sealed(put(DATA[:100])[:-1]) + early.closing_alert())
        await until(lambda: running.server.connections_open == 0)
        assert running.stats.requests == 2


@on_loop
async def test_the_protocol_is_agreed_and_then_seen(pair: Pair, server_context: ssl.SSLContext) -> None:
    """ALPN chooses; a client that then speaks the other protocol is served what it speaks."""
    async with rig(handler, tls=server_context) as running:
        for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None), (("spdy/3",), None)):
            client = await connect(running, pair.client(*offered))
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
            await client.send(put(b"1.1"))
            assert (await client.answer()).body == b"1.1"
        for offered in (("http/1.1",), ()):
            two = await H2Client.connect("127.0.0.1", running.port, tls=pair.client(*offered))
            assert (await two.ask("PUT", "/", body=b"two")).body == b"two"
            two.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@on_loop
async def test_old_tls_is_refused(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context) as running:
        for version, ciphers in (
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256"),  # no forward secrecy
            (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"),  # CBC
        ):
            context = pair.client()
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = version
            context.set_ciphers(ciphers)
            with pytest.raises(ssl.SSLError, match="ALERT"):
                await connect(running, context)
        context = pair.client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = await connect(running, context)
        assert client.writer.get_extra_info("cipher")[0].startswith("ECDHE-ECDSA-")
        await client.send(put(DATA))
        assert (await client.answer()).body == DATA
        assert running.stats.rejected["handshake"] == 3


@on_loop
async def test_handshakes_that_do_not_end_are_ended(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context, handshake_s=0.3) as running:
        silent = await running.client()
        half = await running.client()
        await half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the beginning of a ClientHello
        await until(lambda: running.server.connections_open == 2)
        assert await silent.closed() == b""
        assert await half.closed() == b""
        assert running.stats.timeouts["handshake"] == 2
        left = await running.client()
        left.close()
        await until(lambda: running.server.connections_open == 0)


@on_loop
async def test_handshakes_count_against_the_caps(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context, connections_per_address=3, refused_connections=1) as running:
        for _ in range(3):
            await running.client()
        await until(lambda: running.server.connections_open == 3)
        told = await connect(running, pair.client())
        await told.send(get())
        assert (await told.answer()).status == 503
        held = await running.client()  # the one that may be refused in words
        await until(lambda: running.stats.rejected["address"] == 2)
        assert await (await running.client()).closed() == b""
        assert running.stats.rejected["flood"] == 1
        held.close()
        running.close_clients()
        await until(lambda: running.server.connections_open == 0)
        again = await connect(running, pair.client())
        await again.send(get())
        assert (await again.answer()).status == 200


@on_loop
async def test_what_is_not_tls_ends_at_once(pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context) as running:
        plain = await running.client()
        await plain.send(get())
        answer = await plain.answer()
        assert (answer.status, answer.body) == (400, b"This port speaks TLS: use https.\n")
        assert await plain.closed() == b""
        for garbage in (random.Random(1).randbytes(5000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100, b"SSH-2.0-x\r\n"):
            client = await running.client()
            await client.send(garbage)
            assert len(await client.closed()) <= 33 + 120
        await until(lambda: running.server.connections_open == 0)
        assert running.stats.rejected["handshake"] == 5
        assert running.stats.requests == 0
        broken = await ByHand.connect(running, pair.client())
        record = bytearray(broken.sealed(get()))
        record[20] ^= 1
        broken.writer.write(bytes(record))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await broken.rest()
        assert running.stats.requests == 0


@on_loop
async def test_a_cut_answer_is_not_taken_for_whole(pair: Pair, server_context: ssl.SSLContext) -> None:
    """To HTTP/1.0 the end of the connection is the end of the body: an aborted one must not end in order."""
    async with rig(handler, tls=server_context) as running:
        for version in (b"1.0", b"1.1"):
            client = await ByHand.connect(running, pair.client())
            client.writer.write(client.sealed(get(b"/cut", version=version)))
            with pytest.raises(ConnectionError):
                await client.rest()
        two = await H2Client.connect("127.0.0.1", running.port, tls=pair.client("h2"))
        assert (await two.ask("GET", "/cut")).reset is not None
        assert (await two.ask("PUT", "/", body=b"goes on")).body == b"goes on"
        two.close()


@pytest.mark.parametrize("secure", [True, False])
@on_loop
async def test_a_client_that_goes_away_cancels_its_handler(secure: bool, pair: Pair, server_context: ssl.SSLContext) -> None:
    async with rig(handler, tls=server_context if secure else None) as running:
        client = await (connect(running, pair.client()) if secure else running.client())
        await client.send(get(b"/large"))
        await client.head()
        client.reset()
        await until(lambda: running.server.connections_open == 0 and running.stats.requests_in_flight == 0)
        assert running.stats.client_aborts == 1
        assert running.errors == []


async def wrapped(running: Rig) -> TlsConnection:
    """The TLS of the only connection, once it has begun to serve."""
    await until(lambda: running.stats.requests == 1)
    (connection,) = running.server._port.connections
    found = connection._transport  # type: ignore[attr-defined]
    assert isinstance(found, TlsConnection)
    return found


@on_loop
async def test_a_slow_reader_is_waited_for_and_a_deaf_one_is_cut(pair: Pair, server_context: ssl.SSLContext) -> None:
    high = 256 * KIB
    async with rig(handler, tls=server_context, write_high_water_bytes=high, write_stall_s=0.5) as running:
        client = await ByHand.connect(running, pair.client(), receive_bytes=4096)
        client.writer.write(client.sealed(get(b"/large")))
        inside = await wrapped(running)
        await until(lambda: inside.get_write_buffer_size() > high)
        queued = inside.get_write_buffer_size()
        assert queued <= high + MIB + MIB // 100, "one write beyond the mark, and what TLS adds to it"
        assert inside._outgoing.pending == 0
        assert running.stats.bytes_out < 16 * MIB
        await until(lambda: running.stats.timeouts["write"] == 1)
        await until(lambda: running.server.connections_open == 0)


@on_loop
async def test_a_last_answer_is_not_cut_by_the_time_to_close(pair: Pair, server_context: ssl.SSLContext) -> None:
    """What still waits to be sent when the connection is closed takes as long as the client's reading."""

    async def whole(stream: Stream) -> None:
        await stream.respond(200, [], DATA)

    async with rig(whole, tls=server_context, linger_s=0.1, idle_s=0.1, body_bytes_per_s=1) as running:
        for extra, stop in ((b"Connection: close", None), (b"X: keep", DATA[-100:])):
            client = await ByHand.connect(running, pair.client(), receive_bytes=4096)
            client.writer.write(client.sealed(get(b"/", extra)))
            # Longer, in all, than every time-out that must not count here.
            assert (await client.rest(stop=stop, pace_s=0.02)).endswith(DATA)
            client.writer.close()


@on_loop
async def test_what_nobody_reads_is_not_taken_in(pair: Pair, server_context: ssl.SSLContext) -> None:
    go_on = asyncio.Event()

    async def late(stream: Stream) -> None:
        view = memoryview(bytearray(4096))
        assert await stream.readinto(view) == 4096
        await go_on.wait()
        body = bytearray(view)
        while count := await stream.readinto(view):
            body += view[:count]
        await stream.respond(200, [(b"x-same", b"%d" % (body == DATA))])

    async with rig(late, tls=server_context) as running:
        client = await connect(running, pair.client())
        client.writer.write(put(DATA))
        inside = await wrapped(running)
        await until(lambda: inside._paused)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert inside._incoming.pending <= TLS_READ_BYTES + 17 * KIB
        assert running.stats.bytes_in < 512 * KIB
        go_on.set()
        assert (await client.answer()).headers["x-same"] == "1"


@on_loop
async def test_draining_ends_everything_in_order(pair: Pair, server_context: ssl.SSLContext) -> None:
    go_on = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await go_on.wait()
        await stream.respond(200, [], DATA)

    async with rig(slow, tls=server_context) as running:
        idle, busy, two = [await ByHand.connect(running, pair.client()) for _ in range(3)]
        shaking = await running.client()
        busy.writer.write(busy.sealed(get()))
        await until(lambda: running.stats.requests_in_flight == 1 and running.server.connections_open == 4)
        two.writer.close()
        draining = asyncio.create_task(running.server.drain(5))
        assert await idle.rest() == b""
        assert await shaking.closed() == b""
        go_on.set()
        answer = await busy.rest()
        assert b"connection: close\r\n" in answer
        assert answer.endswith(DATA)
        busy.writer.close()
        assert await draining == 0


@on_loop
async def test_neither_renegotiation_nor_endless_key_updates(
    pair: Pair, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_connection, "TLS_REPLY_BYTES_MAX", 60)
    async with rig(handler, tls=server_context) as running:
        for version, order in (("-tls1_2", b"R\n"), ("-tls1_3", b"K\n")):
            process = await asyncio.create_subprocess_exec(
                program("openssl"),  # it can ask for what Python's client cannot
                *("s_client", "-connect", f"127.0.0.1:{running.port}", "-CAfile", str(pair.cert), version),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            await until(lambda: running.server.connections_open == 1)
            for _ in range(5):
                with suppress(RuntimeError, ConnectionError):  # it may have ended
                    process.stdin.write(order)
                    await process.stdin.drain()
                await asyncio.sleep(0.1)  # s_client takes one order at a time
            async with asyncio.timeout(10):
                _, said = await process.communicate()
            await until(lambda: running.server.connections_open == 0)
            if order == b"R\n":
                assert b"no renegotiation" in said
                running.stats.refusals.clear()  # the program takes that for fatal, and says so
            else:
                assert running.stats.refusals["Tls"] == 1
        assert running.stats.requests == 0
