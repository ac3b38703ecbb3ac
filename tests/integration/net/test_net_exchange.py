"""Requests and answers over real sockets: framing, keep-alive, pipelining, 100-continue, HEAD, HTTP/1.0, refusals."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest
from net_harness import Client, chunked, get, on_loop, put, rig, until

from anvil.base.errors import EntityTooLarge, InvalidRequest
from anvil.base.limits import JOIN_BYTES_MAX, KIB, MIB, READ_BYTES
from anvil.net.port import near_send_bytes
from anvil.net.server import serve
from anvil.net.stream import Stream

ETAG = (b"etag", b'"x"')


async def echo(stream: Stream) -> None:
    """Answers with method, path and body."""
    body = await stream.read_all(16 * MIB)
    await stream.respond(200, [ETAG], b"%b %b " % (stream.head.method.encode(), stream.head.path) + body)


@on_loop
async def test_the_answer_has_its_standing_headers() -> None:
    async with rig(echo) as net:
        answer = await net.ask(get(b"/a"))
        assert (answer.status, answer.body) == (200, b"GET /a ")
        assert answer.headers.keys() == {"etag", "date", "server", "content-length"}
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])


@on_loop
async def test_keep_alive_and_nodelay() -> None:
    async with rig(echo) as net:
        client = await net.client()
        for index in range(3):
            await client.send(put(b"b%d" % index))
            assert (await client.answer()).body == b"PUT / b%d" % index
        assert net.stats.accepted == 1
        assert net.stats.requests == 3
        (connection,) = net.server._port.connections
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        if (near_bytes := near_send_bytes()) is not None:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * near_bytes, "the client is on this machine"
        await client.send(get(b"/", b"Connection: close"))
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""


PIPELINE = get(b"/1") + put(b"body", path=b"/2") + get(b"/3", b"Transfer-Encoding: chunked", method=b"PUT")
PIPELINE += chunked(b"chu", b"nked") + b"\r\n" + get(b"/4")  # one empty line before a request is tolerated
PIPELINED = [b"GET /1 ", b"PUT /2 body", b"PUT /3 chunked", b"GET /4 "]


@on_loop
async def test_pipelining_at_once_and_split_anywhere() -> None:
    async with rig(echo) as net:
        for cut in range(0, len(PIPELINE), 3):
            client = await net.client()
            await client.send(PIPELINE[:cut])
            if cut > len(get(b"/1")):
                assert (await client.answer()).body == PIPELINED[0]
            await client.send(PIPELINE[cut:])
            for expected in PIPELINED[cut > len(get(b"/1")) :]:
                assert (await client.answer()).body == expected
            client.close()


@on_loop
async def test_thousands_of_pipelined_refusals_do_not_recurse() -> None:
    async with rig(echo, requests_in_flight=0) as net:
        client = await net.client()
        count = 3000
        await client.send(get(b"/") * count)
        for _ in range(count):
            assert (await client.answer()).status == 503


@on_loop
async def test_a_large_body_arrives_in_whole_views_and_eats_nothing_behind_it() -> None:
    size = 5 * MIB + 12345
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    counts: list[int] = []
    view = memoryview(bytearray(MIB))

    async def sink(stream: Stream) -> None:
        good = True
        at = 0
        while count := await stream.readinto(view):
            good &= view[:count] == body[at : at + count]
            at += count
            counts.append(count)
        assert await stream.readinto(view) == 0
        await stream.respond(200, [(b"x-good", b"%d" % good), (b"x-received", b"%d" % stream.received_bytes)])

    async with rig(sink) as net:
        for request in (put(body), get(b"/", b"Transfer-Encoding: chunked", method=b"PUT") + chunked(body[:70000], body[70000:])):
            counts.clear()
            client = await net.client()
            sending = asyncio.create_task(client.send(request + put(b"xyz")))
            answer = await client.answer()
            assert answer.headers["x-good"] == "1"
            assert answer.headers["x-received"] == str(size)
            assert counts[:6] == [MIB] * 5 + [12345]
            assert (await client.answer()).headers["x-received"] == "3"
            await sending


@on_loop
async def test_continue_is_sent_on_the_first_read_only() -> None:
    permitted = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await permitted.wait()
        await echo(stream)

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 3", b"Expect: 100-continue", method=b"PUT"))
        await until(lambda: net.stats.requests_in_flight == 1)
        assert net.stats.bytes_out == 0
        permitted.set()
        assert (await client.answer()).status == 100
        await client.send(b"abc")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"PUT / abc")
        assert "connection" not in answer.headers


@on_loop
async def test_no_continue_when_the_body_is_there_already() -> None:
    async with rig(echo) as net:
        assert (await net.ask(put(b"abc", b"Expect: 100-continue"))).body == b"PUT / abc"


@on_loop
async def test_who_waits_to_send_nothing_is_told_to_go_on() -> None:
    """The AWS CLI puts empty files like that, and takes a final answer without `100 Continue` for the head of the next one, too."""
    async with rig(echo) as net:
        client = await net.client()
        for _ in range(2):
            await client.send(get(b"/", b"Content-Length: 0", b"Expect: 100-continue", method=b"PUT"))
            assert (await client.answer()).status == 100
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"PUT / ")
    async with rig(deny) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 0", b"Expect: 100-continue", method=b"PUT"))
        assert [(await client.answer()).status for _ in range(2)] == [100, 403]


async def deny(stream: Stream) -> None:
    await stream.respond(403, [], b"denied")


@on_loop
async def test_an_early_answer_to_an_expecting_client_closes() -> None:
    async with rig(deny) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 3", b"Expect: 100-continue", method=b"PUT"))
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (403, b"denied", "close")
        assert await client.closed() == b""


@on_loop
async def test_an_early_answer_drops_a_bounded_body_and_goes_on() -> None:
    async with rig(deny, drain_body_bytes=200_000) as net:
        client = await net.client()
        await client.send(put(bytes(200_000)) + get(b"/next"))
        assert "connection" not in (await client.answer()).headers
        assert (await client.answer()).status == 403


@on_loop
async def test_an_early_answer_to_a_larger_body_is_still_seen() -> None:
    async with rig(deny, drain_body_bytes=2 * MIB, linger_s=0.2) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: %d" % (100 * MIB), method=b"PUT"))
        await client.send(bytes(MIB))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                await client.send(bytes(MIB))
                await asyncio.sleep(0)
        assert net.stats.bytes_in <= 2 * MIB + 2 * READ_BYTES


@on_loop
async def test_an_early_answer_outlives_a_client_that_sends_before_it_listens() -> None:
    """More than is dropped for it: the client is held up instead of cut, since a reset would overtake the answer."""

    def talk(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 0.5) as client:
            with pytest.raises(TimeoutError):
                client.sendall(get(b"/", b"Content-Length: %d" % (100 * MIB), method=b"PUT") + bytes(100 * MIB))
            return client.recv(READ_BYTES)

    async with rig(deny, drain_body_bytes=MIB) as net:
        assert (await asyncio.to_thread(talk, net.port)).startswith(b"HTTP/1.1 403 ")
        assert net.stats.bytes_in <= MIB + 2 * READ_BYTES


@on_loop
async def test_an_early_answer_to_a_chunked_body_closes() -> None:
    async with rig(deny) as net:
        client = await net.client()
        await client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"PUT") + b"5\r\nhel")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == b""


@on_loop
async def test_head_never_has_a_body() -> None:
    async def handler(stream: Stream) -> None:
        if stream.head.path == b"/started":
            stream.start(200, [ETAG], 5)
            await stream.write(b"hello")
            await stream.finish()
        elif stream.head.path == b"/error":
            await stream.respond(404, [], b"<Error/>")
        elif stream.head.path == b"/bare":
            await stream.respond(404, [])
        else:
            await stream.respond(200, [(b"content-length", b"123456")])

    async with rig(handler) as net:
        client = await net.client()
        cases = ((b"/", 200, "123456"), (b"/started", 200, "5"), (b"/error", 404, "8"), (b"/bare", 404, None))
        for path, status, length in cases:
            await client.send(get(path, method=b"HEAD"))
            answer = await client.answer(method="HEAD")
            assert (answer.status, answer.headers.get("content-length")) == (status, length)
        assert net.errors == []


@on_loop
async def test_statuses_without_a_body() -> None:
    async def handler(stream: Stream) -> None:
        await stream.respond(int(stream.head.path[1:]), [ETAG])

    async with rig(handler) as net:
        client = await net.client()
        for status in (204, 304):
            await client.send(get(b"/%d" % status))
            answer = await client.answer()
            assert answer.status == status
            assert not {"transfer-encoding", "content-length"} & answer.headers.keys()


async def streamed(stream: Stream) -> None:
    stream.start(200, [], None)
    assert stream.started
    for piece in (b"one ", b"", b"two ", memoryview(b"three")):
        await stream.write(piece)
    await stream.finish()


@on_loop
async def test_an_answer_of_unknown_length() -> None:
    async with rig(streamed) as net:
        client = await net.client()
        for _ in range(2):
            await client.send(get())
            answer = await client.answer()
            assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", b"one two three")
        await client.send(get(version=b"1.0"))
        answer = await client.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body == b"one two three"


@on_loop
async def test_http_1_0() -> None:
    async with rig(echo) as net:
        client = await net.client()
        await client.send(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.headers["connection"], answer.body) == ("keep-alive", b"GET /old ")
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == b""


@on_loop
async def test_large_answers_from_views() -> None:
    piece = memoryview(bytearray(range(256)) * 4096)

    async def handler(stream: Stream) -> None:
        stream.start(200, [], 6 * len(piece))
        for _ in range(6):
            await stream.write(piece)
        await stream.finish()
        assert stream.sent_bytes > 6 * len(piece)

    async with rig(handler) as net:
        assert (await net.ask(get())).body == bytes(piece) * 6


@on_loop
async def test_bodies_around_the_joining_limit() -> None:
    async def handler(stream: Stream) -> None:
        await stream.respond(200, [], b"x" * int(stream.head.query))

    async with rig(handler) as net:
        client = await net.client()
        for size in (0, 1, JOIN_BYTES_MAX, JOIN_BYTES_MAX + 1, 3 * MIB):
            await client.send(get(b"/?%d" % size))
            assert len((await client.answer()).body) == size


@on_loop
async def test_buffers_may_be_reused_after_flushed_and_after_finish() -> None:
    buffer = bytearray(2 * MIB)

    async def handler(stream: Stream) -> None:
        stream.start(200, [], 4 * len(buffer))
        for value in range(4):
            buffer[:] = bytes([value]) * len(buffer)
            await stream.write(memoryview(buffer))
            if value < 3:
                await stream.flushed()
        await stream.finish()
        buffer[:] = b"\xff" * len(buffer)

    async with rig(handler) as net:
        client = await net.client(receive_bytes=64 * KIB)
        await client.send(get())
        await until(lambda: net.stats.bytes_out >= len(buffer))
        body = (await client.answer()).body
        assert [
            body[at : at + len(buffer)] == bytes([at // len(buffer)]) * len(buffer) for at in range(0, len(body), len(buffer))
        ] == [True] * 4


@on_loop
async def test_read_all_is_bounded() -> None:
    caught: list[type[Exception]] = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.read_all(10)
        except EntityTooLarge as error:
            caught.append(type(error))
        await stream.respond(200, [])

    async with rig(handler) as net:
        await net.ask(put(b"x" * 10))
        assert caught == []
        await net.ask(put(b"x" * 11))
        await net.ask(get(b"/", b"Transfer-Encoding: chunked", method=b"PUT") + chunked(b"x" * 6, b"x" * 6))
        assert caught == [EntityTooLarge] * 2
        await net.ask(get(b"/", b"Transfer-Encoding: chunked", method=b"PUT") + chunked(b"x" * 6, b"x" * 4))
        assert len(caught) == 2


@pytest.mark.parametrize("split", [False, True])
@on_loop
async def test_malformed_chunks_reach_the_handler_as_invalid_request(split: bool) -> None:
    async def handler(stream: Stream) -> None:
        with pytest.raises(InvalidRequest):
            await stream.read_all(100)
        with pytest.raises(InvalidRequest):
            await stream.readinto(memoryview(bytearray(1)))
        await stream.respond(400, [])

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get(b"/", b"Transfer-Encoding: chunked", b"Expect: 100-continue", method=b"PUT"))
        if split:
            assert (await client.answer()).status == 100
        await client.send(b"5\r\nhello!\r\n0\r\n\r\n")
        answer = await client.answer()
        if not split and answer.status == 100:  # the head was handled before the body came
            answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await client.closed() == b""
        assert net.errors == []


# -- what net answers itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400),
        (b"GET /" + b"a" * 20000, 400),
        (get(b"/", b"Expect: x"), 417),
        (get(b"/", method=b"BREW"), 501),
        (get(b"/", version=b"3.0"), 505),
    ],
)
@on_loop
async def test_refused_heads_are_answered_and_closed(data: bytes, status: int) -> None:
    async with rig(echo) as net:
        client = await net.client()
        await client.send(data + get(b"/smuggled"))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await client.closed() == b""
        assert net.stats.requests == 0


@on_loop
async def test_grpc_over_http_1_1_is_told_what_to_configure() -> None:
    async with rig(echo) as net:
        client = await net.client()
        call = get(b"/anvil.v1.Objects/Get", b"Content-Type: application/grpc+proto", b"Content-Length: 5", method=b"POST")
        await client.send(call + b"\0\0\0\0\0")
        answer = await client.answer()
        assert (answer.status, answer.headers["grpc-status"], answer.headers["content-length"]) == (200, "12", "0")
        assert answer.headers["content-type"] == "application/grpc"
        assert "grpc_pass" in answer.headers["grpc-message"]
        await client.send(get(b"/k?uploads", b"Content-Type: application/grpc", b"Content-Length: 0", method=b"POST"))
        assert (await client.answer()).body == b"POST /k ", "S3's own, for an object of that type"


@on_loop
async def test_options_asterisk_and_upgrade() -> None:
    async with rig(echo) as net:
        client = await net.client()
        await client.send(get(b"*", method=b"OPTIONS"))
        answer = await client.answer()
        assert (answer.status, answer.headers["content-length"]) == (200, "0")
        assert "GET" in answer.headers["allow"]
        await client.send(get(b"/u", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"))
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"GET /u ")


@on_loop
async def test_ipv6_reuse_port_and_a_failing_address() -> None:
    first = await serve(echo, [("127.0.0.1", 0), ("::1", 0)], reuse_port=True)
    port = first.addresses[1][1]
    second = await serve(echo, [("::1", port)], reuse_port=True)
    client = Client(*await asyncio.open_connection("::1", port))
    await client.send(get())
    assert (await client.answer()).status == 200
    with pytest.raises(OSError):
        await serve(echo, [("127.0.0.1", 0), ("127.0.0.1", first.addresses[0][1])])
    client.close()
    await first.close()
    await second.close()
