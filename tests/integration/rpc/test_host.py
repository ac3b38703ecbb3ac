"""What the gRPC host does with calls that are not as they should be, over raw HTTP/2: each ends with the right status, and alone."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from anvil.api.grpc.chunks import Incoming, takes_chunks
from anvil.api.grpc.proto import object_pb2
from anvil.api.grpc.services.health import HealthService
from anvil.api.grpc.services.reflection import add_reflection
from anvil.base.errors import AnvilError, IncompleteBody, InvalidRequest, MessageTooLarge
from anvil.base.limits import GRPC_MESSAGE_BYTES_MAX, GRPC_WATCHES_MAX, KIB, MIB
from anvil.net.port import NetLimits
from anvil.net.server import Server, serve
from anvil.net.stream import Stream
from anvil.rpc.context import Context
from anvil.rpc.host import GrpcHost, Status
from tests.integration.net.net_harness import on_loop, until
from tests.support.h2client import Exchange, H2Client
from tests.support.interop import SERVICE, Interop

HEAD = (("content-type", "application/grpc"), ("te", "trailers"))
PING_BYTES = 17  # of a frame
CODES = {MessageTooLarge: 8, InvalidRequest: 3, IncompleteBody: 3}


def describe(error: Exception, context: Context) -> Status:
    return Status(CODES.get(type(error), 13), error.message if isinstance(error, AnvilError) else "secret kept")  # type: ignore[arg-type]


class Uploads:
    """Takes chunks, as PutObject does. `pieces`: how much the reader asks for at a time."""

    def __init__(self) -> None:
        self.piece = 1 * MIB
        self.data = b""
        self.trailer: bytes | None = None

    @takes_chunks
    async def upload(self, incoming: Incoming, context: Context) -> bytes:
        header = object_pb2.PutObjectRequest.FromString(await incoming.first())
        body = incoming.body(header.header.size)
        left, parts = body.length, []
        while True:
            view = bytearray(min(self.piece, left))
            count = await body.readinto(memoryview(view))
            parts.append(bytes(view[:count]))
            left -= count
            if left == 0:
                break
        assert await body.readinto(memoryview(bytearray(1))) == 0
        self.data, self.trailer = b"".join(parts), body.trailer
        return b"stored"


async def download(request: bytes, context: Context) -> AsyncIterator[bytes | memoryview]:
    """As GetObject does: a head, then chunks that are not copied."""
    yield b"head"
    for n in range(int(request)):
        yield memoryview(bytes([n]) * MIB)


class Rig:
    def __init__(self, server: Server, service: Interop, uploads: Uploads) -> None:
        self.server = server
        self.service = service
        self.uploads = uploads
        self.ready = True
        self.draining = False
        self.clients: list[H2Client] = []

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    async def client(self, **more: Any) -> H2Client:
        client = await H2Client.connect("127.0.0.1", self.port, **more)
        self.clients.append(client)
        return client

    async def call(self, method: str, body: bytes, *headers: tuple[str, str]) -> Exchange:
        client = await self.client()
        return await client.ask("POST", f"/{SERVICE}/{method}", (*HEAD, *headers), body)


@asynccontextmanager
async def rig(**limits: float) -> AsyncIterator[Rig]:
    async def nobody(stream: Stream) -> None:
        await stream.respond(404, ())

    host, service, uploads = GrpcHost(describe=describe), Interop(), Uploads()
    service.add_to_server(host)
    upload = grpc.stream_unary_rpc_method_handler(uploads.upload, request_deserializer=object_pb2.PutObjectRequest.FromString)
    host.add_registered_method_handlers(
        "test.Data", {"Upload": upload, "Download": grpc.unary_stream_rpc_method_handler(download)}
    )
    settings: dict[str, Any] = {"sweep_s": 0.02, **limits}
    server = await serve(nobody, [("127.0.0.1", 0)], grpc=host, limits=NetLimits(**settings))
    running = Rig(server, service, uploads)
    names = (SERVICE, "anvil.v1.ObjectService")
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(lambda: running.ready, lambda: running.draining, names), host)
    add_reflection(host, ("anvil.v1.ObjectService", "grpc.health.v1.Health"))
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        await server.close()
        assert server.stats.requests_in_flight == 0
        assert server.stats.failures == 0


def message(payload: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(payload).to_bytes(4, "big") + payload


def status(exchange: Exchange) -> int:
    """The one status of a call, which is in its trailers, or in the head of an answer that has nothing else."""
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "application/grpc"
    found = [fields["grpc-status"] for fields in (exchange.headers, exchange.trailers) if "grpc-status" in fields]
    assert len(found) == 1
    return int(found[0])


@on_loop
async def test_messages_that_are_not_whole_or_too_many() -> None:
    async with rig() as running:
        good = message(b"x")
        for body, code in (
            (good, 0),
            (b"", 3),
            (good[:3], 3),
            (good[:5], 3),
            (good + good, 3),
            (good + b"\0", 3),
            (message(b"x", 2), 3),
            (message(b"x", 255), 3),
            (message(b"x", 1), 3),  # compressed, and nothing says how
            (b"\0" + (GRPC_MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), 8),
            (b"\0\xff\xff\xff\xff" + bytes(100), 8),
        ):
            assert status(await running.call("Echo", body)) == code, body[:10]
        assert status(await running.call("Total", good + good[:4])) == 3
        assert (await running.call("Total", good * 3)).body == message(b"3 3")


@on_loop
async def test_the_largest_message_is_taken() -> None:
    async with rig() as running:
        answer = await running.call("Total", message(bytes(GRPC_MESSAGE_BYTES_MAX)))
        assert (status(answer), bytes(answer.body)) == (0, message(b"1 %d" % GRPC_MESSAGE_BYTES_MAX))


@on_loop
async def test_compression() -> None:
    async with rig() as running:
        said = ("grpc-encoding", "gzip")
        packed = gzip.compress(b"a" * 5000)
        assert (await running.call("Echo", message(packed, 1), said)).body == message(b"a" * 5000)
        assert (await running.call("Echo", message(b"plain"), said)).body == message(b"plain")
        for payload, code in (
            (gzip.compress(bytes(GRPC_MESSAGE_BYTES_MAX + 1)), 8),  # 4 KiB on the wire
            (packed[:-1], 3),
            (packed + b"x", 3),
            (b"no gzip at all", 3),
            (b"", 3),
        ):
            assert status(await running.call("Echo", message(payload, 1), said)) == code
        refused = await running.call("Echo", message(b"x"), ("grpc-encoding", "snappy"))
        assert status(refused) == 12 and refused.headers["grpc-accept-encoding"] == "identity,gzip"


@on_loop
async def test_heads_that_are_refused() -> None:
    async with rig() as running:
        client = await running.client()
        for headers, code in (
            ((("content-type", "application/grpc+json"),), 12),
            ((*HEAD, ("grpc-timeout", "soon")), 3),
            ((*HEAD, ("x-bin", "%%%")), 0),  # nobody asks for it
        ):
            assert status(await client.ask("POST", f"/{SERVICE}/Echo", headers, message(b""))) == code
        for path in ("/", "/x", f"/{SERVICE}/", f"/{SERVICE}/echo", f"/{SERVICE}/Echo/", "/%2e/Echo"):
            assert status(await client.ask("POST", path, HEAD, message(b""))) == 12
        assert status(await client.ask("POST", f"/{SERVICE}/Metadata", (*HEAD, ("x-trailing-bin", "$")), message(b""))) == 3
        # No POST, or another protocol that is called alike: not a gRPC call.
        assert (await client.ask("PUT", f"/{SERVICE}/Echo", HEAD, b"x")).status == 404
        assert (await client.ask("POST", "/", (("content-type", "application/grpc-web"),), b"x")).status == 404


@on_loop
async def test_what_the_port_refuses_has_a_status_too() -> None:
    async with rig(requests_in_flight=1) as running:
        client = await running.client()
        first = client.begin("POST", f"/{SERVICE}/Forever", HEAD, end=False)
        await client.send(first, message(b""))
        await until(lambda: running.service.started == 1)
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", HEAD, message(b""))) == 14
        client.cancel(first)
        await until(lambda: running.service.cancelled == 1)
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", (*HEAD, ("x", "a" * 20_000)), message(b""))) == 8
        assert status(await client.ask("POST", f"/{SERVICE}/Echo", HEAD, message(b""))) == 0


@on_loop
async def test_a_failure_inside_tells_nothing() -> None:
    async with rig() as running:
        answer = await running.call("Broken", message(b""))
        assert status(answer) == 13
        assert "inside" not in str(answer.headers) + str(answer.trailers)


@on_loop
async def test_a_deadline_ends_a_call_whose_client_is_silent() -> None:
    async with rig() as running:
        client = await running.client()
        stream = client.begin("POST", f"/{SERVICE}/Total", (*HEAD, ("grpc-timeout", "50m")), end=False)
        await client.send(stream, message(b"x"), end=False)
        assert status(await client.answer(stream)) == 4
        stream = client.begin("POST", f"/{SERVICE}/Echo", (*HEAD, ("grpc-timeout", "0n")), end=False)
        assert status(await client.answer(stream)) == 4


@on_loop
async def test_a_call_that_ends_before_its_request_does_is_reset_at_once() -> None:
    """As grpcio's own server does. Its client may otherwise miss both the status and its own deadline, if they come together."""
    async with rig(linger_s=3600) as running:
        client = await running.client()
        for path, headers in (
            (f"/{SERVICE}/Total", (*HEAD, ("grpc-timeout", "50m"))),
            (f"/{SERVICE}/Absent", HEAD),
            (f"/{SERVICE}/Echo", (*HEAD, ("x", "a" * 20_000))),
        ):
            answer = client.exchanges[client.begin("POST", path, headers, end=False)]
            await until(lambda answer=answer: answer.reset is not None)
            assert answer.reset == 0
            assert status(answer) in (4, 8, 12)


@on_loop
async def test_a_call_whose_client_is_silent_ends_without_a_deadline_too() -> None:
    async with rig(body_stall_s=0.1) as running:
        client = await running.client()
        stream = client.begin("POST", f"/{SERVICE}/Total", HEAD, end=False)
        await client.send(stream, message(b"x"), end=False)
        assert status(await client.answer(stream)) == 13  # RequestTimeout, by this test's table


@on_loop
async def test_drain_finishes_calls_and_refuses_new_ones() -> None:
    async with rig() as running:
        client = await running.client()
        stream = client.begin("POST", f"/{SERVICE}/PingPong", HEAD, end=False)
        await client.send(stream, message(b"ab"), end=False)
        await until(lambda: len(client.exchanges[stream].body) == 7)
        draining = asyncio.create_task(running.server.drain(5))
        await until(lambda: client.goaway == 0)
        await client.send(stream, message(b"cd"))
        answer = await client.answer(stream)
        assert (status(answer), bytes(answer.body)) == (0, message(b"ba") + message(b"dc"))
        assert await draining == 0


@on_loop
async def test_keepalive_pings_are_answered() -> None:
    """Of a client that holds a connection by them, amid a silent call and without any: to it a missing answer is a dead server."""
    options = (
        ("grpc.keepalive_time_ms", 50),  # grpcio makes a second of it
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with rig() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options) as channel:

        async def pinged(times: int) -> None:
            goal = running.server.stats.bytes_in + times * PING_BYTES
            await until(lambda: running.server.stats.bytes_in >= goal)

        call = channel.stream_stream(f"/{SERVICE}/PingPong")()
        await call.write(b"ab")
        assert await call.read() == b"ba"
        await pinged(2)
        await call.write(b"cd")
        assert await call.read() == b"dc"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        await pinged(2)
        assert await channel.unary_unary(f"/{SERVICE}/Echo")(b"still there") == b"still there"
        assert running.server.stats.accepted == 1


# -- uploads and downloads


def header(size: int) -> bytes:
    return message(object_pb2.PutObjectRequest(header=object_pb2.PutObjectHeader(size=size)).SerializeToString())


def chunk(data: bytes) -> bytes:
    return message(object_pb2.PutObjectRequest(chunk=data).SerializeToString())


TRAILER = message(object_pb2.PutObjectRequest(trailer=object_pb2.UploadTrailer(checksum=b"sum")).SerializeToString())


async def upload(running: Rig, body: bytes, *headers: tuple[str, str]) -> Exchange:
    client = await running.client()
    return await client.ask("POST", "/test.Data/Upload", (*HEAD, *headers), body)


@pytest.mark.parametrize("piece", [1, 1000, MIB])
@pytest.mark.parametrize("sizes", [[0], [1], [], [5, 0, 7], [100 * KIB, 3, 16 * KIB], [MIB, 2 * MIB, 1], [200] * 500])
def test_uploads_in_chunks(sizes: list[int], piece: int) -> None:
    if piece == 1 and sum(sizes) > 200_000:
        pytest.skip("a byte at a time takes long, and proves nothing more")

    @on_loop
    async def run() -> None:
        async with rig() as running:
            running.uploads.piece = piece
            parts = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
            for end, trailer in ((b"", None), (TRAILER, TRAILER[5:])):
                body = header(sum(sizes)) + b"".join(map(chunk, parts)) + end
                answer = await upload(running, body)
                assert (status(answer), bytes(answer.body)) == (0, message(b"stored"))
                assert (running.uploads.data, running.uploads.trailer) == (b"".join(parts), trailer)

    run()


@on_loop
async def test_compressed_and_unusual_chunks() -> None:
    async with rig() as running:
        plain = object_pb2.PutObjectRequest(chunk=b"b" * 3000).SerializeToString()
        twice = object_pb2.PutObjectRequest(chunk=b"not this").SerializeToString() + plain  # the last one counts
        body = (
            header(9000)
            + message(gzip.compress(plain), 1)
            + message(twice)
            + message(plain)
            + message(gzip.compress(TRAILER[5:]), 1)
        )
        assert status(await upload(running, body, ("grpc-encoding", "gzip"))) == 0
        assert (running.uploads.data, running.uploads.trailer) == (b"b" * 9000, TRAILER[5:])


@on_loop
async def test_uploads_that_are_refused() -> None:
    async with rig() as running:
        for body, code in (
            (b"", 3),
            (header(3), 3),
            (header(3) + chunk(b"ab"), 3),
            (header(3) + chunk(b"abcd"), 3),
            (header(3) + chunk(b"abc") + chunk(b"d"), 3),
            (header(3) + chunk(b"abc") + message(b"\x12\x00\x12\x01d"), 3),
            (header(3) + chunk(b"abc")[:-1], 3),
            (header(3) + chunk(b"abc") + b"\0", 3),
            (header(3) + chunk(b"ab") + TRAILER + chunk(b"c"), 3),
            (header(3) + chunk(b"abc") + TRAILER + TRAILER, 3),
            (header(3) + header(3) + chunk(b"abc"), 3),
            (header(3) + message(b"") + chunk(b"abc"), 3),
            (header(3) + message(b"\xff\xff\xff") + chunk(b"abc"), 3),
            (header(3) + message(b"abc", 1), 3),
            (header(3) + b"\0" + (GRPC_MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), 8),
            (header(0) + chunk(b"x"), 3),
        ):
            assert status(await upload(running, body)) == code, body
        assert running.uploads.data == b""


@on_loop
async def test_downloads_in_chunks() -> None:
    async with rig() as running:
        client = await running.client(window=1 << 20)
        answer = await client.ask("POST", "/test.Data/Download", HEAD, message(b"9"))
        assert status(answer) == 0
        chunks = b"".join(message(object_pb2.GetObjectResponse(chunk=bytes([n]) * MIB).SerializeToString()) for n in range(9))
        assert bytes(answer.body) == message(b"head") + chunks


# -- the services every server has


@on_loop
async def test_health() -> None:
    async with rig() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        ask, serving = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        assert (await stub.Check(ask())).status == serving.SERVING
        assert (await stub.Check(ask(service="anvil.v1.ObjectService"))).status == serving.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(ask(service="no.such"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(ask())
        assert (await watch.read()).status == serving.SERVING
        running.ready = False
        assert (await watch.read()).status == serving.NOT_SERVING
        assert (await stub.Check(ask(service=SERVICE))).status == serving.NOT_SERVING
        assert {one.status for one in (await stub.List(health_pb2.HealthListRequest())).statuses.values()} == {
            serving.NOT_SERVING
        }
        assert (await stub.Watch(ask(service="no.such")).read()).status == serving.SERVICE_UNKNOWN
        watch.cancel()


@on_loop
async def test_watching_health_is_bounded() -> None:
    async with rig() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        client = await running.client()
        streams = []
        for _ in range(GRPC_WATCHES_MAX):
            stream = client.begin("POST", "/grpc.health.v1.Health/Watch", HEAD, end=False)
            await client.send(stream, message(b""))
            streams.append(stream)
        await until(lambda: all(client.exchanges[stream].body for stream in streams))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.close()
        await until(lambda: running.server.stats.requests_in_flight == 0)
        assert await stub.Watch(health_pb2.HealthCheckRequest()).read() is not None


@on_loop
async def test_reflection() -> None:
    async with rig() as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        ask = reflection_pb2.ServerReflectionRequest
        for name in ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"):
            call = channel.stream_stream(
                f"/{name}/ServerReflectionInfo",
                request_serializer=ask.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            requests = [ask(list_services=""), ask(file_containing_symbol="anvil.v1.ObjectService"), ask(file_by_filename="no")]
            listed, file, missing = [one async for one in call(iter_async(requests))]
            assert "anvil.v1.ObjectService" in {service.name for service in listed.list_services_response.service}
            assert any(b"PutObjectHeader" in one for one in file.file_descriptor_response.file_descriptor_proto)
            assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def iter_async(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
