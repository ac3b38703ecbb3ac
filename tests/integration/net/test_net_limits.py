"""Slow, rude and many clients: time-outs, aborts, back-pressure, caps, drain, failing handlers."""

from __future__ import annotations

import asyncio
import time

import pytest
from net_harness import DEADLINE_S, get, on_loop, put, rig, until

from anvil.base.errors import IncompleteBody, RequestTimeout
from anvil.base.limits import KIB, MIB, READ_BYTES
from anvil.net.stream import Stream


async def ok(stream: Stream) -> None:
    await stream.respond(200, [], b"ok")


class Held:
    """A handler that waits until released and remembers how it ended."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = 0
        self.cancelled = 0

    async def __call__(self, stream: Stream) -> None:
        self.running += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        await stream.respond(200, [], b"ok")


# -- slow clients ------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_slow_head_is_answered_408() -> None:
    async with rig(ok, header_s=0.15) as net:
        client = await net.client()
        await client.send(b"GET / HT")
        for _ in range(3):  # more bytes do not start the clock again
            await asyncio.sleep(0.04)
            await client.send(b"T")
        assert (await client.answer()).status == 408
        assert await client.closed() == b""
        assert net.stats.timeouts == {"header": 1}


@on_loop
async def test_a_silent_connection_is_closed() -> None:
    async with rig(ok, header_s=0.1) as net:
        client = await net.client()
        assert await client.closed() == b""
        assert net.stats.timeouts == {"header": 1}


@on_loop
async def test_an_idle_connection_is_closed_later_than_a_silent_one() -> None:
    async with rig(ok, header_s=0.05, idle_s=0.3) as net:
        client = await net.client()
        await client.send(get())
        assert (await client.answer()).status == 200
        begin = time.monotonic()
        assert await client.closed() == b""
        assert time.monotonic() - begin > 0.2
        assert net.stats.timeouts == {"idle": 1}


@on_loop
async def test_a_stalled_body_raises_request_timeout() -> None:
    async def handler(stream: Stream) -> None:
        view = memoryview(bytearray(100))
        with pytest.raises(RequestTimeout):
            await stream.readinto(view)
        with pytest.raises(RequestTimeout):
            await stream.readinto(view)
        await stream.respond(400, [], b"RequestTimeout")

    async with rig(handler, body_stall_s=0.15, body_bytes_per_s=100) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 100", method=b"PUT") + b"x" * 7)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await client.closed() == b""
        assert net.stats.timeouts == {"body": 1}
        assert net.errors == []


@on_loop
async def test_a_slow_but_steady_body_is_welcome_and_a_slow_handler_is_not_the_clients_fault() -> None:
    async def handler(stream: Stream) -> None:
        view = memoryview(bytearray(10))
        total = 0
        while count := await stream.readinto(view):
            total += count
            await asyncio.sleep(0.05)
        await stream.respond(200, [], b"%d" % total)

    async with rig(handler, body_stall_s=0.2, body_bytes_per_s=20) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 100", method=b"PUT"))
        for _ in range(10):
            await client.send(b"x" * 10)
            await asyncio.sleep(0.06)
        assert (await client.answer()).body == b"100"


@on_loop
async def test_a_client_that_does_not_read_is_cut() -> None:
    ended: list[BaseException] = []

    async def handler(stream: Stream) -> None:
        stream.start(200, [], 64 * MIB)
        try:
            for _ in range(64):
                await stream.write(memoryview(bytearray(MIB)))
        except BaseException as error:
            ended.append(error)
            raise

    async with rig(handler, write_stall_s=0.2) as net:
        client = await net.client(receive_bytes=16 * KIB)
        await client.send(get())
        await until(lambda: net.stats.timeouts["write"] == 1)
        await until(lambda: net.server.connections_open == 0)
        await until(lambda: len(ended) == 1)
        assert isinstance(ended[0], asyncio.CancelledError)
        assert net.errors == []


@on_loop
async def test_a_finished_answer_is_not_cut_by_the_idle_time_out() -> None:
    """The handler is done while most of the answer still waits for the client: that is not idleness."""
    body = bytes(8 * MIB)

    async def handler(stream: Stream) -> None:
        await stream.respond(200, [], body)

    async with rig(handler, idle_s=0.05, write_stall_s=30) as net:
        client = await net.client(receive_bytes=16 * KIB)
        await client.send(get())
        await asyncio.sleep(0.3)
        assert len((await client.answer()).body) == len(body)


@on_loop
async def test_a_closing_connection_is_listened_to_for_a_while_only() -> None:
    async with rig(ok, linger_s=0.1) as net:
        client = await net.client()
        await client.send(b"BAD\r\n\r\n")
        assert (await client.answer()).status == 400
        await until(lambda: net.server.connections_open == 0)
        assert net.stats.timeouts == {"linger": 1}


# -- clients that go away ----------------------------------------------------------------------------------------------


@on_loop
async def test_a_reset_cancels_the_handler() -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        await client.send(get())
        await until(lambda: held.running == 1)
        client.reset()
        await until(lambda: held.cancelled == 1)
        await until(lambda: net.stats.requests_in_flight == 0)
        assert net.stats.client_aborts == 1
        assert net.errors == []


@on_loop
async def test_a_closed_client_cancels_the_handler_after_a_grace() -> None:
    held = Held()
    async with rig(held, half_close_s=0.1) as net:
        client = await net.client()
        await client.send(get())
        await until(lambda: held.running == 1)
        client.close()
        await until(lambda: held.cancelled == 1)
        await until(lambda: net.server.connections_open == 0)
        assert net.stats.client_aborts == 1


@pytest.mark.parametrize("request_bytes", [get(), put(b"small"), get() + get(b"/2")])
@on_loop
async def test_a_half_closed_client_still_gets_its_answers(request_bytes: bytes) -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        await client.send(request_bytes)
        client.writer.write_eof()
        await until(lambda: held.running == 1)
        held.release.set()
        for _ in range(request_bytes.count(b"HTTP/1.1")):
            assert (await client.answer()).body == b"ok"
        assert await client.closed() == b""


@on_loop
async def test_the_end_of_a_body_and_of_the_clients_direction_may_come_at_once() -> None:
    body = bytes(range(256)) * 4096

    async def handler(stream: Stream) -> None:
        view, received = memoryview(bytearray(len(body) + 1)), 0
        while count := await stream.readinto(view):
            received += count
        await stream.respond(200, [], b"%d" % received)

    async with rig(handler) as net:
        client = await net.client()
        client.writer.write(put(body))
        client.writer.write_eof()
        assert (await client.answer()).body == b"%d" % len(body)


@pytest.mark.parametrize("rude", [False, True])
@pytest.mark.parametrize("reading", [False, True])
@on_loop
async def test_an_aborted_upload(rude: bool, reading: bool) -> None:
    ended: list[type[BaseException]] = []
    started = asyncio.Event()
    proceed = asyncio.Event()

    async def handler(stream: Stream) -> None:
        view = memoryview(bytearray(MIB))
        started.set()
        try:
            await proceed.wait()
            while await stream.readinto(view):
                pass
        except BaseException as error:
            ended.append(type(error))
            raise

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: %d" % (10 * MIB), method=b"PUT") + bytes(1000))
        await started.wait()
        if reading:
            proceed.set()
            await until(lambda: net.stats.bytes_in > 1000)
            await asyncio.sleep(0)
        if rude:
            client.reset()
        else:
            client.close()
        proceed.set()
        await until(lambda: len(ended) == 1)
        assert ended[0] in ((asyncio.CancelledError, IncompleteBody) if rude else (IncompleteBody,))
        await until(lambda: net.server.connections_open == 0)


# -- back-pressure -----------------------------------------------------------------------------------------------------


@on_loop
async def test_nothing_is_read_that_nobody_wants() -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        head = get(b"/", b"Content-Length: %d" % (64 * MIB), method=b"PUT")
        await client.send(head)
        await until(lambda: held.running == 1)
        client.writer.write(bytes(64 * MIB))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert net.stats.bytes_in <= len(head) + READ_BYTES


@on_loop
async def test_pipelined_bytes_are_held_up_to_one_read() -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        await client.send(get())
        await until(lambda: held.running == 1)
        client.writer.write(get() * 100_000)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert net.stats.bytes_in <= len(get()) + 2 * READ_BYTES


@on_loop
async def test_a_client_that_reads_no_answers_is_not_asked_for_more() -> None:
    async with rig(ok, requests_in_flight=0, write_high_water_bytes=64 * KIB) as net:
        client = await net.client(receive_bytes=16 * KIB)
        client.writer.write(get() * 300_000)
        (connection,) = net.server._port.connections
        await until(lambda: connection.out.paused)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert connection.out.queued_bytes <= 128 * KIB
        assert net.stats.bytes_in <= net.stats.requests * len(get()) + 2 * READ_BYTES
        for _ in range(1000):
            assert (await client.answer()).status == 503


@on_loop
async def test_a_writer_waits_for_its_client() -> None:
    async def handler(stream: Stream) -> None:
        stream.start(200, [], 100 * MIB)
        for _ in range(100):
            await stream.write(memoryview(piece))
        await stream.finish()

    piece = bytearray(MIB)
    async with rig(handler) as net:
        client = await net.client(receive_bytes=16 * KIB)
        await client.send(get())
        (connection,) = net.server._port.connections
        await until(lambda: connection.out.paused)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert connection.out.queued_bytes <= 3 * MIB
        assert net.stats.bytes_out <= 16 * MIB  # the rest is what the kernel took
        assert len((await client.answer()).body) == 100 * MIB


# -- caps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["connections", "connections_per_address"])
@on_loop
async def test_connections_beyond_a_cap_are_told_so(limit: str) -> None:
    async with rig(ok, **{limit: 2}) as net:
        first, second = await net.client(), await net.client()
        await until(lambda: net.server.connections_open == 2)
        third = await net.client()
        await third.send(get())
        answer = await third.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert b"SlowDown" in answer.body
        assert await third.closed() == b""
        await first.send(get())
        assert (await first.answer()).status == 200
        second.close()
        await until(lambda: net.server.connections_open == 1)
        fourth = await net.client()
        await fourth.send(get())
        assert (await fourth.answer()).status == 200
        assert net.stats.rejected == {"total" if limit == "connections" else "address": 1}


@on_loop
async def test_a_flood_is_cut() -> None:
    async with rig(ok, connections=1, refused_connections=1) as net:
        await net.client()
        await until(lambda: net.server.connections_open == 1)
        await net.client()
        await until(lambda: net.server.connections_open == 2)
        third = await net.client()
        assert await third.closed() == b""
        assert net.stats.rejected == {"total": 1, "flood": 1}


@on_loop
async def test_requests_beyond_the_cap_get_503_and_keep_their_connection() -> None:
    held = Held()
    async with rig(held, requests_in_flight=1) as net:
        first, second = await net.client(), await net.client()
        await first.send(get())
        await until(lambda: held.running == 1)
        await second.send(put(b"body"))
        assert (await second.answer()).status == 503
        held.release.set()
        assert (await first.answer()).status == 200
        await second.send(get())
        assert (await second.answer()).status == 200
        assert net.stats.refusals == {"SlowDown": 1}


# -- drain -------------------------------------------------------------------------------------------------------------


@on_loop
async def test_drain_finishes_what_runs_and_closes_what_is_idle() -> None:
    held = Held()
    async with rig(held) as net:
        fresh, used, busy = await net.client(), await net.client(), await net.client()
        held.release.set()
        await used.send(get())
        assert (await used.answer()).status == 200
        held.release.clear()
        await busy.send(get())
        await until(lambda: held.running == 1)
        port = net.port
        draining = asyncio.create_task(net.server.drain(DEADLINE_S))
        assert await fresh.closed() == b""
        assert await used.closed() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not draining.done()
        held.release.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.closed() == b""
        assert await draining == 0


@on_loop
async def test_drain_cuts_at_the_deadline() -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        await client.send(get())
        await until(lambda: held.running == 1)
        assert await net.server.drain(0.1) == 1
        assert held.cancelled == 1
        assert await client.closed() == b""
        assert net.stats.client_aborts == 0


# -- handlers that fail ------------------------------------------------------------------------------------------------


@on_loop
async def test_an_escaping_exception_is_reported_and_answered_500() -> None:
    async def handler(stream: Stream) -> None:
        raise KeyError("secret")

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get())
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (500, "close")
        assert b"secret" not in answer.body
        assert [type(error) for error in net.errors] == [KeyError]
        assert net.stats.failures == 1


@pytest.mark.parametrize("path", [b"/nothing", b"/header", b"/name", b"/length", b"/twice"])
@on_loop
async def test_wrong_use_of_the_stream_is_a_500(path: bytes) -> None:
    async def handler(stream: Stream) -> None:
        if path == b"/header":
            await stream.respond(200, [(b"x-amz-meta-a", b"1\r\nset-cookie: x")])
        elif path == b"/name":
            await stream.respond(200, [(b"x\r\ny", b"1")])
        elif path == b"/length":
            await stream.respond(200, [(b"content-length", b"9")], b"ok")
        elif path == b"/twice":
            await stream.finish()

    async with rig(handler) as net:
        answer = await net.ask(get(path))
        assert answer.status == 500
        assert "set-cookie" not in answer.headers
        assert len(net.errors) == 1


@pytest.mark.parametrize("how", ["raise", "short", "long", "return", "abort"])
@pytest.mark.parametrize("length", [10, None])
@on_loop
async def test_a_failure_after_the_start_cuts_the_connection(how: str, length: int | None) -> None:
    async def handler(stream: Stream) -> None:
        stream.start(200, [], length)
        await stream.write(b"12345")
        if how == "raise":
            raise KeyError
        if how == "abort":
            stream.abort()
        if how == "short":
            await stream.finish()
        if how == "long":
            await stream.write(b"x" * 6)

    async with rig(handler) as net:
        if length is None and how in ("short", "long"):
            return
        client = await net.client()
        await client.send(get() + get(b"/never"))
        rest = await client.closed()
        assert rest.count(b"HTTP/1.1") <= 1
        assert not rest.endswith((b"0\r\n\r\n", b"1234512345"))
        assert len(net.errors) == (how != "abort")


@on_loop
async def test_a_cut_answer_to_http_1_0_does_not_look_whole() -> None:
    async def handler(stream: Stream) -> None:
        stream.start(200, [], None)
        await stream.write(b"half")
        await stream.flushed()
        raise KeyError

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get(version=b"1.0"))
        with pytest.raises(ConnectionResetError):
            while await client.reader.read(100):
                pass


@pytest.mark.parametrize("answered", [False, True])
@on_loop
async def test_a_handler_that_cancels_itself_does_not_leave_its_connection_unserved(answered: bool) -> None:
    async def handler(stream: Stream) -> None:
        if answered:
            await stream.respond(200, [], b"ok")
        raise asyncio.CancelledError

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get() + get())
        assert (await client.closed()).count(b"HTTP/1.1 200") == answered
        await until(lambda: net.server.connections_open == 0)


@on_loop
async def test_an_early_answer_to_a_client_that_left_amid_its_body() -> None:
    held = Held()
    async with rig(held) as net:
        client = await net.client()
        await client.send(get(b"/", b"Content-Length: 1000", method=b"PUT") + b"x")
        client.writer.write_eof()
        await until(lambda: held.running == 1)
        (connection,) = net.server._port.connections
        connection._resume_reading()  # a body byte held back keeps the end from being seen until somebody reads
        await until(lambda: connection._eof)
        held.release.set()
        assert (await client.answer()).body == b"ok"
        assert await client.closed() == b""


@on_loop
async def test_a_second_answer_is_an_error_but_the_first_stands() -> None:
    async def handler(stream: Stream) -> None:
        await stream.respond(200, [], b"first")
        await stream.respond(200, [], b"second")

    async with rig(handler) as net:
        client = await net.client()
        await client.send(get())
        assert (await client.answer()).body == b"first"
        await until(lambda: len(net.errors) == 1)
        await client.send(get())
        assert (await client.answer()).body == b"first"
