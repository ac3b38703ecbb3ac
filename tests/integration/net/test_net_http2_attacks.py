"""What a hostile HTTP/2 client may try: the connection gets the right error, others notice nothing, memory stays flat."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from pathlib import Path

import hpack
import pytest
from net_harness import DEADLINE_S, Rig, on_loop, rig, until

from anvil.base.limits import H2_FREE_ACTIONS_MAX, H2_STREAMS_MAX, MIB
from anvil.net.stream import Stream
from tests.support.h2client import H2Client

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 1, 3, 6, 9, 11
BURST = int(H2_FREE_ACTIONS_MAX) + 200


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def request(
    stream: int, *, flags: int = END_STREAM | END_HEADERS, more: tuple[tuple[str, str], ...] = (), path: str = "/"
) -> bytes:
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", path), *more]
    return frame(HEADERS, flags, stream, hpack.Encoder().encode(fields, huffman=False))


OPENING = b"\x82\x86\x84\x01\x01h"  # GET http / h, with nothing put into the table of fields
# A field of 4,000 bytes for that table (the length is 127 + 0x1e21), one with a value that HTTP does not allow, and either by its index.
LONG_FIELD = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000
BAD_FIELD = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 3999 + b"\n"
AGAIN = b"\xbe"


class Raw:
    """A connection that says whatever it is told to, and reads the frames that come back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, net: Rig) -> Raw:
        raw = cls(*await asyncio.open_connection("127.0.0.1", net.port))
        raw.writer.write(PREFACE + frame(SETTINGS))
        return raw

    async def send(self, data: bytes) -> None:
        """Nothing happens if the server has closed."""
        if self.writer.is_closing():
            return
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def _read(self) -> None:
        try:
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                self.frames.append((head[3], head[4], int.from_bytes(head[5:9], "big"), payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def goaway(self) -> int:
        """The error code of the GOAWAY, once the connection is closed."""
        async with asyncio.timeout(DEADLINE_S):
            await self.task
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in self.frames if kind == GOAWAY]
        assert codes, "the connection was closed without a word"
        return codes[-1]

    def resets(self) -> list[int]:
        return [int.from_bytes(payload, "big") for kind, _, _, payload in self.frames if kind == RST_STREAM]


class Counting:
    """A handler that counts how many of it run."""

    def __init__(self) -> None:
        self.started = self.ended = self.most = 0

    async def __call__(self, stream: Stream) -> None:
        self.started += 1
        self.most = max(self.most, self.started - self.ended)
        try:
            if stream.head.path == b"/slow":
                await asyncio.sleep(1)
            await stream.respond(200, [], b"ok")
        finally:
            self.ended += 1


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def others_are_served(net: Rig) -> None:
    client = await H2Client.connect("127.0.0.1", net.port)
    assert (await client.ask("GET", "/")).status == 200
    client.close()


FLOODS: dict[str, list[bytes]] = {
    "rapid reset (CVE-2023-44487)": [
        request(2 * n + 1, path="/slow") + frame(RST_STREAM, 0, 2 * n + 1, bytes(4)) for n in range(BURST)
    ],
    "resets provoked (CVE-2025-8671)": [
        request(2 * n + 1, path="/slow") + frame(WINDOW_UPDATE, 0, 2 * n + 1, b"\x7f\xff\xff\xff") for n in range(BURST)
    ],
    "pings": [frame(PING, 0, 0, bytes(8))] * BURST,
    "settings (CVE-2019-9515)": [frame(SETTINGS)] * BURST,
    "priorities (CVE-2019-9513)": [request(1, path="/slow")] + [frame(PRIORITY, 0, 1, bytes(4) + b"\x10")] * BURST,
    "empty frames (CVE-2019-9518)": [request(1, flags=END_HEADERS, path="/slow")] + [frame(DATA, 0, 1)] * BURST,
    "CONTINUATION (CVE-2024-27316)": [request(1, flags=END_STREAM)] + [frame(CONTINUATION, 0, 1, b"\0\1x\1y")] * 1000,
    # Each byte is a field of 4 KiB, that is read through before it is dropped: 64 KiB held the loop for 140 ms.
    "one field again and again": [frame(HEADERS, END_STREAM, 1, OPENING + LONG_FIELD + AGAIN * 10_000)]
    + [frame(CONTINUATION, 4 * (n == 7), 1, AGAIN * 16_000) for n in range(8)],
    "one bad field again and again": [frame(HEADERS, END_STREAM | END_HEADERS, 1, OPENING + BAD_FIELD + AGAIN * 10_000)],
    "one field again and again in trailers": [
        request(1, flags=END_HEADERS, path="/slow") + frame(HEADERS, END_STREAM | END_HEADERS, 1, LONG_FIELD + AGAIN * 10_000)
    ],
    "empty CONTINUATION": [request(1, flags=END_STREAM)] + [frame(CONTINUATION, 0, 1)] * 1000,
}


@pytest.mark.parametrize("name", FLOODS)
@on_loop
async def test_floods_end_the_connection_and_nothing_else(name: str) -> None:
    handler = Counting()
    async with rig(handler) as net:
        before = resident()
        raw = await Raw.connect(net)
        for at in range(0, len(FLOODS[name]), 50):
            await raw.send(b"".join(FLOODS[name][at : at + 50]))
            await asyncio.sleep(0)
        assert await raw.goaway() == ENHANCE_YOUR_CALM
        await others_are_served(net)
        await until(lambda: handler.started == handler.ended)
        assert handler.most <= H2_STREAMS_MAX
        assert resident() - before < 32 * MIB
        assert net.errors == []
        raw.writer.close()


BROKEN: dict[str, tuple[bytes, int]] = {
    "a frame that is too long": (frame(DATA, 0, 1, bytes(70_000)), FRAME_SIZE_ERROR),
    "a window update of nothing on the connection": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "a window beyond 2^31": (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
    "settings of an odd length": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "an impossible setting": (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), FLOW_CONTROL_ERROR),
    "a ping of an odd length": (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "a push from a client": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
    "headers on an even stream": (request(2), PROTOCOL_ERROR),
    "headers on stream 0": (request(0), PROTOCOL_ERROR),
    "data before headers": (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "a continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
    "another frame amid a head": (request(1, flags=0) + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "compression that is none": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
    "an index into nowhere": (frame(HEADERS, END_HEADERS, 1, b"\xbf\x84"), COMPRESSION_ERROR),
    "a table larger than allowed": (frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\xff\x07"), COMPRESSION_ERROR),
    "padding longer than the frame": (request(1, flags=END_HEADERS) + frame(DATA, 8, 1, b"\x05abc"), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BROKEN)
@on_loop
async def test_frames_that_break_the_protocol(name: str) -> None:
    async with rig(Counting()) as net:
        raw = await Raw.connect(net)
        data, code = BROKEN[name]
        await raw.send(data)
        assert await raw.goaway() in (code, PROTOCOL_ERROR)
        await others_are_served(net)
        assert net.errors == []
        raw.writer.close()


@on_loop
async def test_more_data_than_the_window_ends_the_connection() -> None:
    async def handler(stream: Stream) -> None:
        await asyncio.sleep(5)

    async with rig(handler) as net:
        raw = await Raw.connect(net)
        await raw.send(request(1, flags=END_HEADERS) + frame(DATA, 0, 1, bytes(16_000)) * 40)
        await until(lambda: bool(raw.resets()) or raw.task.done())
        assert FLOW_CONTROL_ERROR in raw.resets() or await raw.goaway() == FLOW_CONTROL_ERROR
        raw.writer.close()


@on_loop
async def test_a_small_block_that_becomes_a_large_head_is_refused() -> None:
    """Of fields named by their index (a header bomb): some 60 KB from 65 bytes."""
    handler = Counting()
    async with rig(handler) as net:
        before = resident()
        raw = await Raw.connect(net)
        for stream in range(1, 41, 2):
            block = OPENING + (LONG_FIELD if stream == 1 else b"") + AGAIN * 15
            await raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        await until(lambda: net.stats.requests == 20)
        assert handler.started == 0
        await until(lambda: sum(kind == HEADERS for kind, _, _, _ in raw.frames) == 20)
        await others_are_served(net)
        assert resident() - before < 32 * MIB
        raw.writer.close()


@on_loop
async def test_a_head_that_is_never_finished_times_out() -> None:
    async with rig(Counting(), header_s=0.1) as net:
        raw = await Raw.connect(net)
        await raw.send(request(1, flags=END_STREAM))
        async with asyncio.timeout(DEADLINE_S):
            await raw.task
        assert net.stats.timeouts == {"header": 1}
        raw.writer.close()


@on_loop
async def test_trailers_are_taken_and_mean_nothing() -> None:
    bodies: list[bytes] = []

    async def handler(stream: Stream) -> None:
        bodies.append(await stream.read_all(MIB))
        await stream.respond(200, [])

    async with rig(handler) as net:
        raw = await Raw.connect(net)
        trailer = hpack.Encoder().encode([("x-amz-checksum-crc32", "AAAA")], huffman=False)
        await raw.send(
            request(1, flags=END_HEADERS) + frame(DATA, 0, 1, b"body") + frame(HEADERS, END_STREAM | END_HEADERS, 1, trailer)
        )
        await until(lambda: bodies == [b"body"])
        await until(lambda: any(kind == HEADERS for kind, _, _, _ in raw.frames))
        raw.writer.close()


@on_loop
async def test_padding_counts_against_the_window_and_is_given_back() -> None:
    async def handler(stream: Stream) -> None:
        body = await stream.read_all(4 * MIB)
        await stream.respond(200, [], b"%d" % len(body))

    async with rig(handler) as net:
        raw = await Raw.connect(net)
        await raw.send(request(1, flags=END_HEADERS))
        padded = frame(DATA, 8, 1, b"\xff" + b"x" * 100 + bytes(255))  # 356 bytes of window for 100 of body
        for _ in range(100):  # 3.5 MB in all, through a window of 1 MiB
            await raw.send(padded * 100)
            await asyncio.sleep(0.001)
        await raw.send(frame(DATA, END_STREAM, 1))
        await until(lambda: any(kind == DATA for kind, _, _, _ in raw.frames) or raw.task.done())
        assert [payload for kind, _, _, payload in raw.frames if kind == DATA] == [b"1000000"]
        raw.writer.close()


async def unread(net: Rig) -> H2Client:
    """A client that reads nothing of what comes, over a small buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", net.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    return H2Client(reader, writer, 8 * MIB, hold=True, deaf=True)


async def megabyte(stream: Stream) -> None:
    await stream.respond(200, [], bytes(900_000))


@on_loop
async def test_refusals_do_not_pile_up_for_a_client_that_does_not_read() -> None:
    async with rig(megabyte) as net:
        client = await unread(net)
        for _ in range(6):
            client.begin("GET", "/")
        await until(lambda: net.stats.requests == 6)
        before = resident()
        number = client.h2.get_next_available_stream_id()
        for _ in range(100):
            block = b"".join(request(number + 2 * n, flags=END_HEADERS) for n in range(1000))
            number += 2000
            if client.closed.is_set() or client.writer.is_closing():
                break  # on a slow machine it has had enough before all of this is sent
            client.raw(block)
            await asyncio.sleep(0)
        await until(lambda: net.stats.refusals["Http2"] == 1)
        assert resident() - before < 16 * MIB
        client.close()


@pytest.mark.parametrize("way", ["idle", "goaway", "end", "error"])
@on_loop
async def test_a_client_that_does_not_read_cannot_keep_a_connection(way: str) -> None:
    async with rig(megabyte, idle_s=0.1, linger_s=0.1, write_stall_s=0.2) as net:
        client = await unread(net)
        client.begin("GET", "/")
        await until(lambda: net.stats.requests == 1)
        if way == "goaway":
            client.raw(frame(GOAWAY, 0, 0, bytes(8)))
        elif way == "end":
            client.writer.write_eof()
        elif way == "error":
            client.raw(frame(PING, 0, 0, bytes(7)))
        await until(lambda: net.server.connections_open == 0)
        client.close()


@on_loop
async def test_a_rejected_head_is_no_unfinished_one() -> None:
    async with rig(Counting(), header_s=0.1) as net:
        client = await H2Client.connect("127.0.0.1", net.port)
        going_on = client.begin("PUT", "/slow", end=False)
        for headers in ([("X-Upper", "case")], [("connection", "close")]):
            assert (await client.ask("GET", "/", headers)).reset is not None
        assert (await client.answer(going_on)).status == 200, "a second later"
        assert net.stats.timeouts == {}
        client.close()
