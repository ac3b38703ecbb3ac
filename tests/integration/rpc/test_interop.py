"""The gRPC interop cases that apply, with grpcio's asynchronous client, on Anvil's port and on grpcio's own server.

Source: grpc/grpc, doc/interop-test-descriptions.md. What is peculiar to Anvil's side (limits, refusals) is in `test_host.py`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Channel, insecure_channel

from anvil.net.server import serve
from anvil.net.stream import Stream
from anvil.rpc.host import GrpcHost
from tests.integration.net.net_harness import on_loop, until
from tests.support.interop import SERVICE, Interop

LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159  # the interop suite's


@asynccontextmanager
async def anvil(service: Interop) -> AsyncIterator[int]:
    async def nobody(stream: Stream) -> None:
        await stream.respond(404, ())

    host = GrpcHost()
    service.add_to_server(host)
    server = await serve(nobody, [("127.0.0.1", 0)], grpc=host)
    try:
        yield server.addresses[0][1]
    finally:
        await server.close()


@asynccontextmanager
async def grpcio(service: Interop) -> AsyncIterator[int]:
    server = grpc.aio.server()
    service.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


class Rig:
    def __init__(self, channel: Channel, service: Interop) -> None:
        self.channel = channel
        self.service = service

    def __getattr__(self, name: str) -> Any:
        kind, method = name.split("_", 1)
        calls = {
            "uu": self.channel.unary_unary,
            "us": self.channel.unary_stream,
            "su": self.channel.stream_unary,
            "ss": self.channel.stream_stream,
        }
        return calls[kind](f"/{SERVICE}/{method}")


def case(test: Callable[[Rig], Awaitable[None]]) -> Callable[..., None]:
    """Run on both servers."""

    @pytest.mark.parametrize("server", [anvil, grpcio], ids=["anvil", "grpcio"])
    @functools.wraps(test)
    def run(server: Any) -> None:
        async def within() -> None:
            service = Interop()
            async with server(service) as port, insecure_channel(f"127.0.0.1:{port}") as channel:
                await test(Rig(channel, service))

        on_loop(within)()

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would take the test's own parameters for fixtures
    return run


async def failure(call: Any) -> AioRpcError:
    with pytest.raises(AioRpcError) as caught:
        await call
    return caught.value


async def messages(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


@case
async def test_empty_unary(rig: Rig) -> None:
    assert await rig.uu_Echo(b"") == b""


@case
async def test_large_unary(rig: Rig) -> None:
    body = bytes(range(256)) * (LARGE_REQUEST // 256)
    assert await rig.uu_Echo(body) == body


@case
async def test_client_streaming(rig: Rig) -> None:
    sizes = [27_182, 8, 1828, 45_904]
    assert await rig.su_Total(messages(*(bytes(size) for size in sizes))) == b"4 74922"
    assert await rig.su_Total(messages()) == b"0 0"


@case
async def test_server_streaming(rig: Rig) -> None:
    sizes = [31_415, 9, 2653, 58_979, LARGE_RESPONSE, 0]
    received = [len(message) async for message in rig.us_Repeat(",".join(map(str, sizes)).encode())]
    assert received == sizes
    assert [one async for one in rig.us_Repeat(b"")] == []


@case
async def test_ping_pong(rig: Rig) -> None:
    call = rig.ss_PingPong()
    for size in (27_182, 8, 1828, 45_904, 1_000_000):
        message = bytes(range(251)) * (size // 251)
        await call.write(message)
        assert await call.read() == message[::-1]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    assert await call.code() is grpc.StatusCode.OK


@case
async def test_empty_stream(rig: Rig) -> None:
    assert [one async for one in rig.ss_PingPong(messages())] == []


@case
async def test_half_duplex(rig: Rig) -> None:
    sent = [bytes([n]) * 1000 for n in range(100)]
    assert [one async for one in rig.ss_HalfDuplex(messages(*sent))] == sent


@case
async def test_reading_and_writing_by_hand(rig: Rig) -> None:
    sent = [bytes([n]) * n for n in range(50)]
    assert [one async for one in rig.ss_ByHand(messages(*sent))] == sent


@case
async def test_status_code_and_message(rig: Rig) -> None:
    error = await failure(rig.uu_Status(b"2 test status message"))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "test status message")


@case
async def test_special_status_message(rig: Rig) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈 and 100%\t\n"
    error = await failure(rig.uu_Status(b"2 " + text.encode()))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, text)


@case
async def test_rich_trailers(rig: Rig) -> None:
    error = await failure(rig.uu_Abort(b"not now"))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")
    trailers = dict(error.trailing_metadata())
    assert trailers["why"] == "tested" and trailers["raw-bin"] == b"\0\xff"


@case
async def test_messages_before_a_failure_arrive(rig: Rig) -> None:
    received = []
    with pytest.raises(AioRpcError) as caught:
        async for message in rig.us_StreamThenFail(b""):
            received.append(message)
    assert received == [b"one", b"two"]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "after two")


@case
async def test_custom_metadata(rig: Rig) -> None:
    sent = (("x-initial", "test_initial_metadata_value"), ("x-trailing-bin", b"\xab\xab\xab"))
    call = rig.uu_Metadata(b"body", metadata=sent)
    assert await call == b"body"
    assert dict(await call.initial_metadata())["x-initial"] == "test_initial_metadata_value"
    assert dict(await call.trailing_metadata())["x-trailing-bin"] == b"\xab\xab\xab"
    stream = rig.ss_MetadataStream(messages(b"a", b"b"), metadata=sent)
    assert [one async for one in stream] == [b"a", b"b"]
    assert dict(await stream.initial_metadata())["x-initial"] == "test_initial_metadata_value"
    assert dict(await stream.trailing_metadata())["x-trailing-bin"] == b"\xab\xab\xab"


@case
async def test_unimplemented(rig: Rig) -> None:
    assert (await failure(rig.uu_Nothing(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
    other = rig.channel.unary_unary("/no.such.Service/Method")
    assert (await failure(other(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


@case
async def test_cancel_after_begin(rig: Rig) -> None:
    call = rig.su_Total()
    await call.write(b"x")
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await call.code() is grpc.StatusCode.CANCELLED


@case
async def test_cancel_after_first_response(rig: Rig) -> None:
    call = rig.us_Drip(b"")
    assert await call.read() == bytes(1000)
    assert call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await until(lambda: rig.service.cancelled == 1)


@case
async def test_cancel_of_a_running_method(rig: Rig) -> None:
    call = rig.uu_Forever(b"")
    await until(lambda: rig.service.started == 1)
    call.cancel()
    await until(lambda: rig.service.cancelled == 1)


@case
async def test_deadline(rig: Rig) -> None:
    error = await failure(rig.uu_Forever(b"", timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: rig.service.cancelled == 1)
    # The client says a rounded time, and rounds it up.
    assert rig.service.remaining_s is not None and 0 < rig.service.remaining_s <= 0.3


@case
async def test_what_a_method_raises_stays_inside(rig: Rig) -> None:
    error = await failure(rig.uu_Broken(b""))
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@case
async def test_gzip_from_the_client(rig: Rig) -> None:
    body = bytes(LARGE_REQUEST)
    assert await rig.uu_Echo(body, compression=grpc.Compression.Gzip) == body
    call = rig.su_Total(messages(bytes(100_000), b"", bytes(1)), compression=grpc.Compression.Gzip)
    assert await call == b"3 100001"


@case
async def test_many_at_once(rig: Rig) -> None:
    bodies = [n.to_bytes(4, "big") * (n + 1) for n in range(500)]
    assert await asyncio.gather(*(rig.uu_Echo(body) for body in bodies)) == bodies


@case
async def test_a_client_that_does_not_read_is_waited_for(rig: Rig) -> None:
    sizes = [1 << 20] * 64
    call = rig.us_Repeat(",".join(map(str, sizes)).encode())
    received = []
    async for message in call:
        received.append(len(message))
        if len(received) == 1:
            await asyncio.gather(*(rig.uu_Echo(b"others go on") for _ in range(10)))
    assert received == sizes
