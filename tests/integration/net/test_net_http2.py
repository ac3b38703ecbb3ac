"""HTTP/2 over real sockets: exchanges, bodies both ways, flow control, early answers, aborts, time-outs, drain."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from net_harness import Rig, get, on_loop, rig, until

from anvil.base.errors import AnvilError, RequestTimeout
from anvil.base.limits import (
    H2_READ_WINDOW_BYTES,
    H2_STREAMS_MAX,
    H2_WIDE_STREAMS_MAX,
    H2_WINDOW_BYTES,
    HEADER_BYTES_MAX,
    KIB,
    MIB,
)
from anvil.net.stream import Stream
from anvil.wire.http2 import CANCEL, INTERNAL_ERROR, REFUSED_STREAM
from tests.support.h2client import Exchange, H2Client

BLOCK = random.Random(2).randbytes(3 * MIB + 77)


async def service(stream: Stream) -> None:
    """Enough of a server: digests what is PUT, gives BLOCK for /block, echoes the rest."""
    head = stream.head
    if head.method == "PUT":
        digest, view = hashlib.sha256(), memoryview(bytearray(MIB))
        while count := await stream.readinto(view):
            digest.update(view[:count])
        await stream.respond(200, [(b"ETag", digest.hexdigest().encode())])
    elif head.path == b"/block":
        stream.start(200, [(b"content-type", b"a/b")], len(BLOCK))
        for at in range(0, len(BLOCK), MIB):
            await stream.write(memoryview(BLOCK)[at : at + MIB])
        await stream.finish()
    elif head.path == b"/unknown-length":
        stream.start(200, [], None)
        await stream.write(b"some ")
        await stream.write(b"bytes")
        await stream.finish()
    elif head.method == "DELETE":
        await stream.respond(204, [])
    elif head.method == "HEAD":
        await stream.respond(200, [(b"content-length", b"77")])
    else:
        body = await stream.read_all(MIB)
        await stream.respond(200, [], b" ".join((head.method.encode(), head.path, head.query, head.authority, body)))


@asynccontextmanager
async def h2(net: Rig, **options: Any) -> AsyncIterator[H2Client]:
    client = await H2Client.connect("127.0.0.1", net.port, **options)
    try:
        yield client
    finally:
        client.close()


@on_loop
async def test_exchanges() -> None:
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask("GET", "/a%2Fb//../c?x=%20&y", [("x-amz-date", "now")])
        assert (answer.status, bytes(answer.body)) == (200, b"GET /a%2Fb//../c x=%20&y h ")
        assert answer.headers.keys() == {"date", "server", "content-length"}
        answer = await client.ask("POST", "/p", body=b"some")
        assert answer.body.endswith(b"h some")
        assert (await client.ask("DELETE", "/")).headers.keys() == {"date", "server"}
        answer = await client.ask("HEAD", "/")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "77", b"")
        answer = await client.ask("GET", "/unknown-length")
        assert bytes(answer.body) == b"some bytes"
        assert "content-length" not in answer.headers
        answer = await client.ask("PUT", "/", body=BLOCK)
        assert answer.headers["etag"] == hashlib.sha256(BLOCK).hexdigest(), "names are lower case"
        assert net.stats.accepted == 1
        assert net.stats.requests == 6


@on_loop
async def test_the_preface_may_come_in_any_pieces() -> None:
    async with rig(service) as net:
        sock = socket.create_connection(("127.0.0.1", net.port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            await loop.sock_sendall(sock, bytes([byte]))
            await asyncio.sleep(0)
        await loop.sock_sendall(sock, bytes.fromhex("000000040000000000"))
        settings = await loop.sock_recv(sock, 9)
        assert settings[3] == 4
        sock.close()
        await until(lambda: not net.server.connections_open)


@on_loop
async def test_an_authority_may_come_as_host() -> None:
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask("GET", "/", [("host", "bucket.h:1")], authority=None)
        assert bytes(answer.body) == b"GET /  bucket.h:1 "


@pytest.mark.parametrize("window", [1024, 65_535, 8 * MIB])
@on_loop
async def test_many_bodies_at_a_time_on_one_connection(window: int) -> None:
    async with rig(service) as net, h2(net, window=window) as client:
        puts = [client.ask("PUT", f"/{n}", body=BLOCK[n:]) for n in range(8)]
        gets = [client.ask("GET", "/block") for _ in range(2 if window < 2048 else 8)]
        answers = await asyncio.gather(*puts, *gets)
        for number, answer in enumerate(answers[:8]):
            assert answer.headers["etag"] == hashlib.sha256(BLOCK[number:]).hexdigest()
        for answer in answers[8:]:
            assert answer.body == BLOCK
        assert net.stats.accepted == 1


@on_loop
async def test_a_stream_that_is_not_read_is_bounded_and_holds_up_nobody() -> None:
    release = asyncio.Event()

    async def handler(stream: Stream) -> None:
        if stream.head.path == b"/held":
            await release.wait()
        await service(stream)

    async with rig(handler) as net, h2(net) as client:
        held = client.begin("PUT", "/held", end=False)
        sending = asyncio.create_task(client.send(held, BLOCK))
        for _ in range(3):
            assert (await client.ask("PUT", "/", body=BLOCK)).status == 200
            assert (await client.ask("GET", "/block")).body == BLOCK
        (connection,) = net.server._port.connections
        (exchange,) = connection._streams  # type: ignore[attr-defined]
        assert exchange.stored == H2_WINDOW_BYTES
        assert not sending.done()
        release.set()
        assert (await client.answer(held)).headers["etag"] == hashlib.sha256(BLOCK).hexdigest()


@on_loop
async def test_a_reader_that_pauses_is_sent_no_more_than_a_window() -> None:
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def handler(stream: Stream) -> None:
        view = memoryview(bytearray(1000))
        assert await stream.readinto(view) == 1000
        paused.set()
        await go_on.wait()
        rest = await stream.read_all(4 * MIB)
        await stream.respond(200, [], b"%d" % (1000 + len(rest)))

    async with rig(handler) as net, h2(net) as client:
        stream = client.begin("PUT", "/", end=False)
        sending = asyncio.create_task(client.send(stream, BLOCK))
        await paused.wait()
        await asyncio.sleep(0.1)
        (connection,) = net.server._port.connections
        (exchange,) = connection._streams  # type: ignore[attr-defined]
        assert exchange.stored <= H2_READ_WINDOW_BYTES
        go_on.set()
        await sending
        assert int((await client.answer(stream)).body) == len(BLOCK)


@on_loop
async def test_a_client_that_does_not_read_its_answer_is_cut_and_holds_up_nobody() -> None:
    async with rig(service, write_stall_s=0.2) as net, h2(net, window=10_000, hold=True) as slow:
        stream = slow.begin("GET", "/block")
        async with h2(net) as other:
            assert (await other.ask("GET", "/block")).body == BLOCK
        answer = await slow.answer(stream)
        assert answer.reset == CANCEL
        assert len(answer.body) == 10_000
        assert net.stats.timeouts == {"write": 1}
        assert (await slow.ask("GET", "/")).status == 200, "the connection lives on"


@on_loop
async def test_a_stalled_body_fails_its_reader() -> None:
    failures: list[AnvilError] = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.read_all(MIB)
        except RequestTimeout as error:
            failures.append(error)
            await stream.respond(400, [], b"slow")

    async with rig(handler, body_stall_s=0.1) as net, h2(net) as client:
        stream = client.begin("PUT", "/", end=False)
        await client.send(stream, b"x", end=False)
        assert (await client.answer(stream)).status == 400
        assert failures
        assert net.stats.timeouts == {"body": 1}


@on_loop
async def test_an_early_answer_reaches_a_client_that_is_still_sending() -> None:
    async def handler(stream: Stream) -> None:
        await stream.respond(403, [], b"no")

    async with rig(handler, linger_s=0.2) as net, h2(net) as client:
        stream = client.begin("PUT", "/", end=False)
        await client.send(stream, BLOCK, end=False)
        answer = await client.answer(stream)
        assert (answer.status, bytes(answer.body)) == (403, b"no")
        await until(lambda: answer.reset == 0)
        assert (await client.ask("GET", "/")).status == 403
        assert net.stats.accepted == 1


@on_loop
async def test_a_client_that_gives_up_ends_its_handler_only() -> None:
    ended: list[str] = []

    async def handler(stream: Stream) -> None:
        if stream.head.path != b"/wait":
            return await service(stream)
        try:
            await stream.read_all(MIB)
            raise AssertionError("the body never ended")
        finally:
            ended.append("reader")

    async with rig(handler) as net, h2(net) as client:
        stream = client.begin("PUT", "/wait", end=False)
        await client.send(stream, b"half", end=False)
        await until(lambda: net.stats.requests_in_flight == 1)
        client.cancel(stream)
        await until(lambda: ended == ["reader"])
        assert net.stats.client_aborts == 1
        assert (await client.ask("GET", "/")).status == 200
        client.begin("PUT", "/wait", end=False)
        await until(lambda: net.stats.requests_in_flight == 1)
        client.close()
        await until(lambda: len(ended) == 2 and net.stats.requests_in_flight == 0)
        assert net.errors == []


@on_loop
async def test_a_failing_handler() -> None:
    async def handler(stream: Stream) -> None:
        if stream.head.path == b"/late":
            stream.start(200, [], 10)
            await stream.write(b"half")
        raise OSError("broken")

    async with rig(handler) as net, h2(net) as client:
        assert (await client.ask("GET", "/")).status == 500
        answer = await client.ask("GET", "/late")
        assert answer.reset == INTERNAL_ERROR, "never the end of a whole answer"
        assert len(net.errors) == 2
        assert (await client.ask("GET", "/")).status == 500, "the connection lives on"


@on_loop
async def test_continue_is_sent_when_the_body_is_wanted() -> None:
    async with rig(service) as net, h2(net) as client:
        stream = client.begin("PUT", "/", [("expect", "100-continue")], end=False)
        await until(lambda: client.exchanges[stream].informed == [100])
        await client.send(stream, b"body")
        assert (await client.answer(stream)).headers["etag"] == hashlib.sha256(b"body").hexdigest()


@on_loop
async def test_a_grpc_call_is_told_that_there_is_no_such_service() -> None:
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask("POST", "/s/m", [("content-type", "application/grpc"), ("te", "trailers")], b"")
        assert (answer.status, answer.headers["grpc-status"]) == (200, "12")


@on_loop
async def test_a_body_of_unknown_length_that_comes_with_its_head_is_one() -> None:
    """All in one segment, as proxies send small uploads: the end of the stream is there before the request is looked at."""
    heads = []

    async def handler(stream: Stream) -> None:
        heads.append(stream.head)
        await stream.respond(200, [], await stream.read_all(MIB))

    async with rig(handler) as net, h2(net) as client:
        for body in (b"abc", b""):
            stream = client.h2.get_next_available_stream_id()
            fields = [(":method", "PUT"), (":scheme", "http"), (":path", "/"), (":authority", "h")]
            client.h2.send_headers(stream, fields, end_stream=not body)
            if body:
                client.h2.send_data(stream, body, end_stream=True)
            client.exchanges[stream] = Exchange()
            client.raw(client.h2.data_to_send())
            assert (await client.answer(stream)).body == body
    assert [(head.content_length, head.chunked) for head in heads] == [(None, True), (None, False)]


@on_loop
@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("POST", "/b/k?uploads", "application/grpc"),
        ("GET", "/b/k", "application/grpc"),
        ("POST", "/b/k", "application/grpc-web"),
        ("POST", "/b/k", "application/grpcs"),
    ],
)
async def test_what_only_looks_like_grpc_is_served(method: str, target: str, kind: str) -> None:
    """Objects of gRPC's content type: such an upload used to be answered 200, and was stored nowhere."""
    path, _, query = target.partition("?")
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask(method, target, [("content-type", kind)], b"abc", authority="h")
        assert "grpc-status" not in answer.headers
        assert answer.body == f"{method} {path} {query} h abc".encode()
        put = await client.ask("PUT", "/b/k", [("content-type", kind)], b"abc")
        assert put.headers["etag"] == hashlib.sha256(b"abc").hexdigest()


REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "two hosts": ({"headers": [("host", "other")]}, 400),
    "no host": ({"authority": None}, 0),
    "a host that is none": ({"authority": "a b"}, 0),
    "too many fields": ({"headers": [(f"x-{n}", "v") for n in range(120)]}, 400),
    "too many bytes": ({"headers": [("x-long", "v" * HEADER_BYTES_MAX)]}, 400),
    "a length that is none": ({"headers": [("content-length", "1e3")]}, 0),
    "an expectation": ({"headers": [("expect", "wonders")]}, 417),
    "a line end in a value": ({"headers": [("x-a", "b\r\nx-c: d")]}, 400),
    "an upper-case name": ({"headers": [("X-A", "b")]}, 0),
    "a connection's field": ({"headers": [("transfer-encoding", "chunked")]}, 0),
    "CONNECT": ({"method": "CONNECT"}, 0),
    "a pseudo-header twice": ({"headers": [(":path", "/other")]}, 0),
}


@pytest.mark.parametrize("name", REFUSED)
@on_loop
async def test_heads_that_are_refused(name: str) -> None:
    more, status = REFUSED[name]
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask(more.get("method", "GET"), "/", more.get("headers", ()), authority=more.get("authority", "h"))
        assert answer.status == status
        if status == 0:
            assert answer.reset is not None, "the stream alone is reset"
        assert (await client.ask("GET", "/")).status == 200
        assert net.errors == []


@on_loop
async def test_streams_beyond_the_bound_are_refused_for_repetition() -> None:
    release = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await release.wait()
        await stream.respond(200, [])

    async with rig(handler) as net, h2(net) as client:
        # At once: the client has not yet read how many we would like.
        streams = [client.begin("GET", "/") for _ in range(H2_STREAMS_MAX + 5)]
        for stream in streams[-5:]:
            assert (await client.answer(stream)).reset == REFUSED_STREAM
        assert net.stats.requests_in_flight == H2_STREAMS_MAX
        release.set()
        for stream in streams[:-5]:
            assert (await client.answer(stream)).status == 200


@on_loop
async def test_drain_lets_requests_end() -> None:
    release = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await release.wait()
        await service(stream)

    async with rig(handler) as net, h2(net) as client, h2(net) as idle:
        stream = client.begin("GET", "/block")
        assert not idle.closed.is_set()
        await until(lambda: net.stats.requests_in_flight == 1)
        draining = asyncio.create_task(net.server.drain(5.0))
        await until(lambda: client.goaway == 0)
        await idle.until_closed()
        release.set()
        assert (await client.answer(stream)).body == BLOCK
        assert await draining == 0


@on_loop
async def test_an_idle_connection_is_told_goodbye() -> None:
    async with rig(service, idle_s=0.1) as net, h2(net) as client:
        assert (await client.ask("GET", "/")).status == 200
        await client.until_closed()
        assert client.goaway == 0
        assert net.stats.timeouts == {"idle": 1}


@on_loop
async def test_caps_hold_for_http2_too() -> None:
    async with rig(service, requests_in_flight=0) as net, h2(net) as client:
        assert (await client.ask("GET", "/")).status == 503
        assert net.stats.refusals == {"SlowDown": 1}


@on_loop
async def test_http1_still_works_beside_it() -> None:
    async with rig(service) as net, h2(net) as client:
        answers = await asyncio.gather(net.ask(get(b"/1")), client.ask("GET", "/2"))
        assert [answer.status for answer in answers] == [200, 200]


assert H2_WINDOW_BYTES < 256 * KIB


@on_loop
async def test_a_body_of_another_length_than_announced_is_not_whole() -> None:
    outcomes: list[str] = []

    async def handler(stream: Stream) -> None:
        outcomes.append("begun")
        await stream.read_all(MIB)
        outcomes.append("whole")
        await stream.respond(200, [])

    async with rig(handler) as net, h2(net) as client:
        for body in (b"short", b"longer than announced"):
            stream = client.begin("PUT", "/", [("content-length", "9")], end=False)
            await until(lambda: net.stats.requests_in_flight == 1)
            await client.send(stream, body)
            assert (await client.answer(stream)).reset is not None
            await until(lambda: net.stats.requests_in_flight == 0)
        assert outcomes == ["begun", "begun"], "neither was taken for whole"
        assert net.errors == []


@on_loop
async def test_what_a_stream_held_goes_with_it() -> None:
    """Not with the garbage collector, which may be long in coming."""

    def kept() -> int:
        return sum(type(one).__name__ == "Http2Stream" for one in gc.get_objects())

    async with rig(service) as net, h2(net) as client:
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                assert (await client.ask("PUT", "/", body=b"x" * 1000)).status == 200
                stream = client.begin("PUT", "/", end=False)
                await client.send(stream, b"half", end=False)
                await until(lambda: net.stats.requests_in_flight == 1)
                client.cancel(stream)
                await until(lambda: net.stats.requests_in_flight == 0)
                assert kept() <= 2, f"after {number} rounds"
        finally:
            gc.enable()


@on_loop
async def test_a_slow_reader_is_never_ahead_of_by_more_than_a_window() -> None:
    most = 0

    async def handler(stream: Stream) -> None:
        nonlocal most
        (connection,) = net.server._port.connections
        view, total = memoryview(bytearray(32 * KIB)), 0
        while count := await stream.readinto(view):
            total += count
            (exchange,) = connection._streams  # type: ignore[attr-defined]
            most = max(most, exchange.stored)
            await asyncio.sleep(0.0005)
        await stream.respond(200, [], b"%d" % total)

    async with rig(handler) as net, h2(net) as client:
        answer = await client.ask("PUT", "/", body=BLOCK * 4)
        assert int(answer.body) == 4 * len(BLOCK)
        assert 0 < most <= H2_READ_WINDOW_BYTES


@on_loop
async def test_only_so_many_streams_may_send_much_ahead() -> None:
    async with rig(service) as net, h2(net) as one, h2(net) as two, h2(net) as three:
        body = BLOCK[:200_000]
        for _ in range(2):
            asks = [client.ask("PUT", "/", body=body) for client in (one, two, three) for _ in range(30)]
            assert {answer.status for answer in await asyncio.gather(*asks)} == {200}
            await until(lambda: net.server._port.wide_streams == 0)
        net.server._port.wide_streams = H2_WIDE_STREAMS_MAX
        assert (await one.ask("PUT", "/", body=BLOCK)).headers["etag"] == hashlib.sha256(BLOCK).hexdigest()
        assert net.server._port.wide_streams == H2_WIDE_STREAMS_MAX


@on_loop
async def test_a_refused_head_request_has_no_body() -> None:
    async with rig(service) as net, h2(net) as client:
        answer = await client.ask("HEAD", "/", [("host", "other")])
        assert (answer.status, answer.body) == (400, b"")
        assert (await client.ask("OPTIONS", "*")).headers["allow"].startswith("GET")
        assert (await client.ask("GET", "/")).status == 200
