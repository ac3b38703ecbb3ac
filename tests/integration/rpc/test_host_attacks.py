"""What clients can make the gRPC host hold and do: memory for messages, calls that wait for them, the time of the loop. Over raw HTTP/2."""

from __future__ import annotations

import asyncio
import gzip
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anvil.api.grpc.errors import status_of
from anvil.api.grpc.proto import object_pb2
from anvil.api.grpc.services.health import HealthService
from anvil.base.limits import (
    GRPC_MESSAGE_BYTES_MAX,
    GRPC_SMALL_MESSAGE_BYTES,
    GRPC_STRANGERS_WAITING_MAX,
    H2_STREAMS_SHOWN,
    KIB,
    MIB,
    READ_BYTES,
)
from anvil.net.server import serve
from anvil.net.stream import Stream
from anvil.rpc import messages
from anvil.rpc.context import Context
from anvil.rpc.host import GrpcHost, Status
from tests.integration.net.net_harness import on_loop, until
from tests.integration.rpc.test_host import HEAD, Uploads, chunk, header, message, status
from tests.support.h2client import H2Client
from tests.support.interop import SERVICE, Interop

KNOWN = (*HEAD, ("authorization", "me"))
ANNOUNCED = b"\0" + GRPC_MESSAGE_BYTES_MAX.to_bytes(4, "big")


async def admit(context: Context) -> None:
    context.known = context.stream.head.header(b"authorization") is not None


def describe(error: Exception, context: Context) -> Status:
    found = status_of(error, "ID")
    return Status(found.code.value[0], found.message)


async def chunks(request: bytes, context: Context) -> AsyncIterator[memoryview]:
    for size in request.split(b","):
        yield memoryview(bytes(int(size)))


class Rig:
    def __init__(self, host: GrpcHost, port: int) -> None:
        self.host = host
        self.port = port
        self.uploads = Uploads()
        self.service = Interop()
        self.draining = False
        self.clients: list[H2Client] = []

    @property
    def room(self) -> messages.Room:
        return self.host._room

    async def client(self, **more: Any) -> H2Client:
        client = await H2Client.connect("127.0.0.1", self.port, **more)
        self.clients.append(client)
        return client

    async def waiting(self, count: int, headers: tuple[tuple[str, str], ...], first: bytes = b"") -> None:
        """So many calls whose message does not come, or not further than `first`."""
        for n in range(count):
            if n % H2_STREAMS_SHOWN == 0:
                client = await self.client()
            stream = client.begin("POST", f"/{SERVICE}/Echo", headers, end=False)
            await client.send(stream, first, end=False)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    async def nobody(stream: Stream) -> None:
        await stream.respond(404, ())

    host = GrpcHost(admit=admit, describe=describe)
    server = await serve(nobody, [("127.0.0.1", 0)], grpc=host)
    running = Rig(host, server.addresses[0][1])
    running.service.add_to_server(host)
    upload = grpc.stream_unary_rpc_method_handler(
        running.uploads.upload, request_deserializer=object_pb2.PutObjectRequest.FromString
    )
    host.add_registered_method_handlers("test.Data", {"Upload": upload, "Chunks": grpc.unary_stream_rpc_method_handler(chunks)})
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(lambda: True, lambda: running.draining, ()), host)
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        await server.close()
        assert (server.stats.requests_in_flight, server.stats.failures) == (0, 0)
        assert (running.room.used_bytes, running.room.strangers) == (0, 0)


@on_loop
async def test_a_message_takes_memory_only_as_it_comes() -> None:
    async with rig() as running:
        tracemalloc.start()
        try:
            await running.waiting(40, KNOWN, ANNOUNCED + b"x")
            await until(lambda: running.room.used_bytes == 40 * READ_BYTES)
            assert tracemalloc.get_traced_memory()[1] < 40 * 4 * READ_BYTES  # 160 MiB were announced
        finally:
            tracemalloc.stop()


@on_loop
async def test_the_memory_of_all_messages_is_bounded() -> None:
    """Two million empty submessages are 4 MiB on the wire, and 128 when they are parsed."""
    async with rig() as running:
        client = await running.client()
        held = [client.begin("POST", f"/{SERVICE}/Forever", KNOWN, end=False) for _ in range(2)]
        for stream in held:
            await client.send(stream, message(bytes(GRPC_MESSAGE_BYTES_MAX)))
        await until(lambda: running.service.started == 2)
        large = message(bytes(GRPC_SMALL_MESSAGE_BYTES + 1))
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", KNOWN, large)) == 14
        small = message(bytes(GRPC_SMALL_MESSAGE_BYTES))
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", KNOWN, small)) == 0
        for stream in held:
            client.cancel(stream)
        await until(lambda: running.room.used_bytes == 0)
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", KNOWN, large)) == 0


@on_loop
async def test_a_stream_of_large_messages_has_room_for_one_at_a_time() -> None:
    async with rig() as running:
        client = await running.client()
        answer = await client.ask("POST", f"/{SERVICE}/Total", KNOWN, message(bytes(MIB)) * 20)
        assert (status(answer), bytes(answer.body)) == (0, message(b"20 %d" % (20 * MIB)))


@on_loop
async def test_who_is_not_known_sends_small_messages() -> None:
    async with rig() as running:
        client = await running.client()
        said = ("grpc-encoding", "gzip")
        for size, code in ((GRPC_SMALL_MESSAGE_BYTES, 0), (GRPC_SMALL_MESSAGE_BYTES + 1, 8)):
            assert status(await client.ask("POST", f"/{SERVICE}/Echo", HEAD, message(bytes(size)))) == code
            packed = message(gzip.compress(bytes(size)), 1)
            assert status(await client.ask("POST", f"/{SERVICE}/Echo", (*HEAD, said), packed)) == code
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", HEAD, ANNOUNCED)) == 8


@on_loop
async def test_few_messages_are_waited_for_of_who_is_not_known() -> None:
    """A call that is only begun costs its client nothing, and would keep a place among the worker's requests for half a minute."""
    async with rig() as running:
        await running.waiting(GRPC_STRANGERS_WAITING_MAX, HEAD)
        await until(lambda: running.room.strangers == GRPC_STRANGERS_WAITING_MAX)
        client = await running.client()
        one_more = client.begin("POST", f"/{SERVICE}/Echo", HEAD, end=False)
        assert status(await client.answer(one_more)) == 14
        known = client.begin("POST", f"/{SERVICE}/Echo", KNOWN, end=False)
        await client.send(known, message(b"x"))
        assert status(await client.answer(known)) == 0
        # Who sends head and message at once, as grpcio does, waits for nobody.
        stream = client.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/Echo"), (":authority", "h"), *HEAD]
        client.exchanges[stream] = type(client.exchanges[known])()
        client.h2.send_headers(stream, fields)
        client.h2.send_data(stream, message(b"x"), end_stream=True)
        client.raw(client.h2.data_to_send())
        assert status(await client.answer(stream)) == 0
        running.clients[0].close()
        await until(lambda: running.room.strangers < GRPC_STRANGERS_WAITING_MAX)


@pytest.mark.parametrize("sizes", [[2 * MIB], [500 * KIB]])
def test_a_deadline_behind_an_answer_that_is_not_read(sizes: list[int]) -> None:
    """Some of the answer, or all of it, was said and waits for the client's window: the call ends there, and is no failure of the
    server's."""

    @on_loop
    async def run() -> None:
        async with rig() as running:
            client = await running.client(hold=True)
            stream = client.begin("POST", "/test.Data/Chunks", (*KNOWN, ("grpc-timeout", "200m")), end=False)
            await client.send(stream, message(b",".join(b"%d" % size for size in sizes)))
            assert (await client.answer(stream)).reset is not None

    run()


@on_loop
async def test_odd_messages_of_an_upload_let_others_have_their_turn() -> None:
    """Thousands of them are in one read, and Python looks at each."""
    async with rig() as running:
        odd, count = message(b"\x12\x80\x00"), 10_000  # an empty chunk, its length in two bytes
        ticks, over = 0, False

        async def tick() -> None:
            nonlocal ticks
            while not over:
                ticks += 1
                await asyncio.sleep(0)

        client = await running.client()
        ticking = asyncio.create_task(tick())
        answer = await client.ask("POST", "/test.Data/Upload", KNOWN, header(3) + odd * count + chunk(b"abc"))
        over = True
        await ticking
        assert (status(answer), running.uploads.data) == (0, b"abc")
        assert ticks >= count


@on_loop
async def test_compressed_chunks_without_payload_hold_nothing() -> None:
    async with rig() as running:
        padding = object_pb2.PutObjectRequest(chunk=b"").SerializeToString() + b"\x82\x01\x80\x80\x80\x01" + bytes(2 * MIB)
        packed = message(gzip.compress(padding), 1)
        client = await running.client()
        said = (*KNOWN, ("grpc-encoding", "gzip"))
        answer = await client.ask("POST", "/test.Data/Upload", said, header(3) + packed * 100 + chunk(b"abc"))
        assert (status(answer), running.uploads.data) == (0, b"abc")


def test_large_messages_are_inflated_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[tuple[int, bool]] = []

    class Inflater:
        def __init__(self, *arguments: Any) -> None:
            self._real = zlib.decompressobj(*arguments)

        def decompress(self, data: bytes, most: int) -> bytes:
            plain = self._real.decompress(data, most)
            where.append((len(plain), threading.current_thread() is threading.main_thread()))
            return plain

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    class Zlib:
        decompressobj, error, MAX_WBITS = Inflater, zlib.error, zlib.MAX_WBITS

    monkeypatch.setattr(messages, "zlib", Zlib)

    @on_loop
    async def run() -> None:
        async with rig() as running:
            client = await running.client()
            for size in (GRPC_MESSAGE_BYTES_MAX, 64 * KIB, 64 * KIB + 1):
                packed = message(gzip.compress(bytes(size)), 1)
                answer = await client.ask("POST", f"/{SERVICE}/Total", (*KNOWN, ("grpc-encoding", "gzip")), packed)
                assert (status(answer), bytes(answer.body)) == (0, message(b"1 %d" % size))

    run()
    assert [size for size, here in where if not here] == [GRPC_MESSAGE_BYTES_MAX - 64 * KIB, 0, 1]
    assert all(size <= 64 * KIB for size, here in where if here)


@on_loop
async def test_a_long_name_of_a_method_is_not_said_back_whole() -> None:
    async with rig() as running:
        client = await running.client()
        answer = await client.ask("POST", "/" + "%" * 10_000, HEAD, message(b""))
        assert status(answer) == 12
        assert sum(len(name) + len(value) for name, value in answer.headers.items()) < 2 * KIB  # clients take 8


@on_loop
async def test_a_watch_ends_with_the_server() -> None:
    """Else each one would hold up the drain for as long as that may take."""
    async with rig() as running:
        client = await running.client()
        stream = client.begin("POST", "/grpc.health.v1.Health/Watch", HEAD, end=False)
        await client.send(stream, message(health_pb2.HealthCheckRequest().SerializeToString()))
        await until(lambda: len(client.exchanges[stream].body) == 7)
        running.draining = True
        assert status(await client.answer(stream)) == 14
