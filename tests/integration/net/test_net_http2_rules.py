"""Cases in the manner of h2spec: what RFC 9113 asks of a server for each thing that a client gets wrong, or only does oddly."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

import hpack
import pytest
from net_harness import get, on_loop, rig, until
from test_net_http2_attacks import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Counting,
    Raw,
    frame,
    others_are_served,
    request,
)

from anvil.base.limits import MIB
from anvil.net.stream import Stream
from tests.support.h2client import H2Client

STREAM_CLOSED = 5
PADDED, PRIORITIZED = 8, 32
ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 4, 5
LAST_STREAM = 2**31 - 1
BODY = bytes(range(256)) * 400


def fields(*more: tuple[str, str], method: str = "PUT") -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "http"), (":authority", "h"), (":path", "/"), *more]


def head(stream: int, found: Sequence[tuple[str, str]], *, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, hpack.Encoder().encode(found, huffman=False))


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


async def echo(stream: Stream) -> None:
    """The body of a PUT, or BODY."""
    if stream.head.method == "PUT":
        await stream.respond(200, [], b"got " + await stream.read_all(MIB))
    else:
        await stream.respond(200, [], BODY)


class Talk(Raw):
    def body(self, stream: int) -> bytes:
        return b"".join(payload for kind, _, number, payload in self.frames if (kind, number) == (DATA, stream))

    def ended(self, stream: int) -> bool:
        return any(number == stream and kind in (DATA, HEADERS) and flags & END_STREAM for kind, flags, number, _ in self.frames)

    def status(self, stream: int) -> str:
        """Of an answer; only good for the first of a connection, whose table of fields is empty."""
        block = next(payload for kind, _, number, payload in self.frames if (kind, number) == (HEADERS, stream))
        return dict(hpack.Decoder().decode(block))[":status"]

    async def answer(self, stream: int) -> bytes:
        await until(lambda: self.ended(stream))
        return self.body(stream)

    async def alive(self) -> None:
        """The connection is still served."""
        mark = bytes(7) + bytes([len(self.frames) % 256])
        await self.send(frame(PING, 0, 0, mark))
        await until(lambda: (PING, ACK, 0, mark) in self.frames or self.task.done())
        assert (PING, ACK, 0, mark) in self.frames


# -- of the connection -----------------------------------------------------------------------------------------------------

END = END_STREAM | END_HEADERS
FATAL = {
    "settings on a stream (6.5)": (frame(SETTINGS, 0, 1), {PROTOCOL_ERROR}),
    "acknowledged settings that say something (6.5)": (frame(SETTINGS, ACK, 0, bytes(6)), {FRAME_SIZE_ERROR}),
    "pushes that are neither on nor off (6.5.2)": (setting(ENABLE_PUSH, 2), {PROTOCOL_ERROR}),
    "frames smaller than allowed (6.5.2)": (setting(MAX_FRAME_SIZE, 16_383), {PROTOCOL_ERROR}),
    "frames larger than allowed (6.5.2)": (setting(MAX_FRAME_SIZE, 1 << 24), {PROTOCOL_ERROR}),
    "a ping on a stream (6.7)": (frame(PING, 0, 1, bytes(8)), {PROTOCOL_ERROR}),
    "a goodbye on a stream (6.8)": (frame(GOAWAY, 0, 1, bytes(8)), {PROTOCOL_ERROR}),
    "a reset of the connection (6.4)": (frame(RST_STREAM, 0, 0, bytes(4)), {PROTOCOL_ERROR}),
    "a reset of a stream that is idle (6.4)": (frame(RST_STREAM, 0, 9, bytes(4)), {PROTOCOL_ERROR}),
    "a reset of an odd length (6.4)": (request(1, path="/slow") + frame(RST_STREAM, 0, 1, bytes(3)), {FRAME_SIZE_ERROR}),
    "a window update of a stream that is idle (5.1)": (update(9, 1), {PROTOCOL_ERROR}),
    "a window update of an odd length (6.9)": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), {FRAME_SIZE_ERROR}),
    "data on stream 0 (6.1)": (frame(DATA, 0, 0, b"x"), {PROTOCOL_ERROR}),
    "a priority on stream 0 (6.3)": (frame(PRIORITY, 0, 0, bytes(5)), {PROTOCOL_ERROR}),
    "a continuation of another stream's head (6.10)": (
        request(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3),
        {PROTOCOL_ERROR},
    ),
    "a continuation of a head that has ended (6.10)": (request(1) + frame(CONTINUATION, END_HEADERS, 1), {PROTOCOL_ERROR}),
    "another stream's head amid a head (6.2)": (request(1, flags=0) + request(3), {PROTOCOL_ERROR}),
    "an unknown frame amid a head (5.5)": (request(1, flags=0) + frame(0x4B, 0, 0), {PROTOCOL_ERROR}),
    "padding longer than a head (6.2)": (frame(HEADERS, END | PADDED, 1, b"\x09abc"), {PROTOCOL_ERROR}),
}


@pytest.mark.parametrize("name", FATAL)
@on_loop
async def test_what_ends_a_connection(name: str) -> None:
    data, codes = FATAL[name]
    async with rig(Counting()) as net:
        raw = await Raw.connect(net)
        await raw.send(data)
        assert await raw.goaway() in codes
        await others_are_served(net)
        assert net.errors == []
        raw.writer.close()


@pytest.mark.parametrize("rest", [frame(PING, 0, 0, bytes(8)), request(1), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
@on_loop
async def test_the_first_frame_is_settings(rest: bytes) -> None:
    """RFC 9113, 3.4."""
    async with rig(Counting()) as net:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", net.port))
        await raw.send(PREFACE + rest)
        assert await raw.goaway() in (PROTOCOL_ERROR, FRAME_SIZE_ERROR)
        assert net.stats.requests == 0
        raw.writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/2.0\r\nHost: h\r\n\r\nSM\r\n\r\n",
        get() + PREFACE + frame(SETTINGS) + request(1),
        get(b"/", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk") + PREFACE + request(1),
    ],
)
@on_loop
async def test_a_preface_in_the_wrong_place_is_a_bad_request(data: bytes) -> None:
    async with rig(Counting()) as net:
        client = await net.client()
        await client.send(data)
        said = await client.closed()
        good = data.startswith(b"GET")
        assert said.count(b"HTTP/1.1 200 OK\r\n") == good
        assert said.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
        assert b" 101 " not in said
        assert net.stats.requests == good, "nothing of what follows is a request"


# -- of one stream ---------------------------------------------------------------------------------------------------------

RESET = {
    "a length that does not fit no body": head(1, fields(("content-length", "5")), flags=END),
    "two lengths": head(1, fields(("content-length", "3"), ("content-length", "3"))) + frame(DATA, END_STREAM, 1, b"abc"),
    "a body beyond its length": head(1, fields(("content-length", "3"))) + frame(DATA, END_STREAM, 1, b"abcd"),
    "a body short of its length, with trailers": head(1, fields(("content-length", "3")))
    + frame(DATA, 0, 1, b"ab")
    + head(1, [("x-t", "v")], flags=END),
    "a pseudo-header in trailers": head(1, fields()) + frame(DATA, 0, 1, b"ab") + head(1, [(":path", "/")], flags=END),
    "trailers that are not the end": head(1, fields()) + frame(DATA, 0, 1, b"ab") + head(1, [("x-t", "v")]),
    "a pseudo-header behind a header": head(1, [*fields()[:3], ("x-a", "b"), (":path", "/")]),
    "a pseudo-header that is unknown": head(1, [(":wonder", "x"), *fields()]),
    "a pseudo-header of answers": head(1, [(":status", "200"), *fields()]),
    "no path": head(1, fields()[:3]),
    "an empty path": head(1, [*fields()[:3], (":path", "")]),
    "no method": head(1, fields()[1:]),
    "no scheme": head(1, [fields()[0], *fields()[2:]]),
    "two methods": head(1, [(":method", "GET"), *fields()]),
    "two authorities": head(1, [(":authority", "i"), *fields()]),
    "a field of the connection": head(1, fields(("connection", "keep-alive"))),
    "te other than trailers": head(1, fields(("te", "gzip"))),
    "an upgrade": head(1, fields(("upgrade", "h2c"))),
    "a window update of nothing": head(1, fields()) + update(1, 0),
    "a window beyond 2^31": head(1, fields()) + update(1, 2**31 - 1),
    "a window beyond 2^31 by settings": head(1, fields()) + update(1, 2**31 - 1 - 65_535) + setting(INITIAL_WINDOW_SIZE, 65_536),
    "data behind its end": head(1, fields()) + frame(DATA, END_STREAM, 1, b"a") + frame(DATA, END_STREAM, 1, b"b"),
    "a second head behind its end": request(1, path="/slow") + head(1, fields(), flags=END),
    "a stream that depends on itself": frame(
        HEADERS, END_HEADERS | PRIORITIZED, 1, struct.pack(">IB", 1, 1) + hpack.Encoder().encode(fields(), huffman=False)
    ),
}


@pytest.mark.parametrize("name", RESET)
@on_loop
async def test_what_ends_a_stream(name: str) -> None:
    """At least the stream is over, and nothing was taken for a request that it was not; some of it may end the connection (5.4.1)."""
    whole: list[bytes] = []

    async def handler(stream: Stream) -> None:
        if stream.head.path == b"/slow":
            await asyncio.sleep(1)
        whole.append(await stream.read_all(MIB))
        await stream.respond(200, [], b"ok")

    async with rig(handler) as net:
        raw = await Talk.connect(net)
        await raw.send(RESET[name])
        await until(lambda: bool(raw.resets()) or raw.task.done())
        if not raw.task.done():
            assert set(raw.resets()) <= {PROTOCOL_ERROR, STREAM_CLOSED, FLOW_CONTROL_ERROR}
            await raw.alive()
        else:
            assert await raw.goaway() in (PROTOCOL_ERROR, STREAM_CLOSED)
        await until(lambda: net.stats.requests_in_flight == 0)
        assert whole in ([], [b"a"]), "never more than was whole"
        assert net.errors == []
        raw.writer.close()


@pytest.mark.parametrize("place", ["name", "value", "path", "authority", "method"])
@pytest.mark.parametrize("text", ["\r", "\n", "\0", "\x7f", "\r\nx-c: d", " http/1.1\r\nhost: i\r\n\r\n"])
@on_loop
async def test_nothing_that_would_be_a_line_of_http1_gets_in(place: str, text: str) -> None:
    """CRLF in fields of HTTP/2 (CVE-2025-57804), and characters that other servers end a field with: the request alone is refused."""
    head = {"name": "x-a", "value": "v", "path": "/", "authority": "h", "method": "GET"}
    head[place] += f"{text}b"
    async with rig(echo) as net:
        client = await H2Client.connect("127.0.0.1", net.port)
        refused = await client.ask(head["method"], head["path"], [(head["name"], head["value"])], authority=head["authority"])
        if place in ("name", "value"):
            assert (refused.status, refused.reset) == (400, None)
        else:
            assert (refused.status, refused.reset) == (0, PROTOCOL_ERROR)
        assert (await client.ask("GET", "/")).body == BODY
        assert net.errors == []
        client.close()


# -- windows ---------------------------------------------------------------------------------------------------------------


@on_loop
async def test_windows_of_nothing_of_one_byte_and_below_nothing() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(setting(INITIAL_WINDOW_SIZE, 0) + request(1))
        await raw.alive()
        assert raw.body(1) == b""
        for count in range(1, 6):
            await raw.send(update(1, 1))
            await until(lambda count=count: len(raw.body(1)) == count)  # type: ignore[misc]
        await raw.send(setting(INITIAL_WINDOW_SIZE, 1000))
        await until(lambda: len(raw.body(1)) == 1005)
        await raw.send(setting(INITIAL_WINDOW_SIZE, 10) + update(1, 990))  # 990 below nothing, and back to it
        await raw.alive()
        assert len(raw.body(1)) == 1005
        await raw.send(update(1, 1))
        await until(lambda: len(raw.body(1)) == 1006)
        await raw.send(update(0, MIB) + setting(INITIAL_WINDOW_SIZE, 2**31 - 1))
        assert await raw.answer(1) == BODY
        raw.writer.close()


@on_loop
async def test_the_connections_window_is_kept_to() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(setting(INITIAL_WINDOW_SIZE, 2**31 - 1) + request(1))
        await until(lambda: len(raw.body(1)) == 65_535)
        await raw.alive()
        assert len(raw.body(1)) == 65_535
        await raw.send(update(0, 2**31 - 1))
        assert await raw.answer(1) == BODY
        raw.writer.close()


# -- what is odd, and right ------------------------------------------------------------------------------------------------


@on_loop
async def test_what_is_unknown_is_ignored() -> None:
    """RFC 9113, 5.5 and 6.5.2, as clients grease (RFC 8701 is the same for TLS)."""
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        grease = frame(0x0B, 0xFF, 0, b"x") + frame(0xFA, 0, 0x80000001, bytes(100)) + setting(0x1A2A, 7) + setting(8, 1)
        await raw.send(grease + frame(PING, 0xFE, 0x80000000, bytes(8)))  # unknown flags, and the reserved bit
        await raw.send(frame(0x10, 0, 0, struct.pack(">I", 1) + b"u=0, i"))  # PRIORITY_UPDATE (RFC 9218)
        await raw.send(frame(HEADERS, END_HEADERS | 0x40, 0x80000001, hpack.Encoder().encode(fields(), huffman=False)) + grease)
        await raw.send(frame(PRIORITY, 0, 5, struct.pack(">IB", 3, 9)) + frame(DATA, END_STREAM | 0x40, 1, b"body"))
        assert await raw.answer(1) == b"got body"
        await raw.send(head(3, fields()) + frame(RST_STREAM, 0, 3, b"\xff\xff\xff\xff"))
        await raw.alive()
        raw.writer.close()


@on_loop
async def test_the_last_stream_there_is() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(head(LAST_STREAM, fields()) + frame(DATA, END_STREAM, LAST_STREAM, b"z"))
        assert await raw.answer(LAST_STREAM) == b"got z"
        await raw.send(request(1))
        await raw.alive()
        assert net.stats.requests == 1, "a stream below one that was opened is none (5.1.1)"
        raw.writer.close()


@on_loop
async def test_a_goodbye_of_the_client_lets_its_requests_end() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(head(1, fields()) + frame(DATA, 0, 1, b"be"))
        await raw.send(frame(GOAWAY, 0, 0, bytes(8) + b"for debugging"))
        await raw.alive()
        await raw.send(frame(DATA, END_STREAM, 1, b"gun"))
        assert await raw.answer(1) == b"got begun"
        async with asyncio.timeout(10):
            await raw.task
        await until(lambda: net.server.connections_open == 0)
        assert net.stats.timeouts == {}
        raw.writer.close()


@on_loop
async def test_trailers_with_a_body_of_the_announced_length() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(head(1, fields(("content-length", "4"))) + frame(DATA, 0, 1, b"four"))
        await raw.send(head(1, [("x-amz-checksum-crc32", "AAAA")], flags=END_STREAM) + frame(CONTINUATION, END_HEADERS, 1))
        assert await raw.answer(1) == b"got four"
        raw.writer.close()


@on_loop
async def test_our_settings_are_acknowledged_and_theirs_are() -> None:
    async with rig(echo) as net:
        raw = await Talk.connect(net)
        await raw.send(frame(SETTINGS, ACK) + setting(INITIAL_WINDOW_SIZE, 70_000))
        await until(lambda: sum((kind, flags) == (SETTINGS, ACK) for kind, flags, _, _ in raw.frames) == 2)
        await raw.send(frame(SETTINGS, ACK))  # of nothing
        assert await raw.goaway() == PROTOCOL_ERROR
        raw.writer.close()
