"""A gRPC test service in the manner of the interop suite (grpc/grpc, doc/interop-test-descriptions.md), with bytes as its messages.

Works on grpcio's own server and on Anvil's host: what the tests expect is thereby known to be what gRPC does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

SERVICE = "anvil.test.Interop"


class Interop:
    """`cancelled`, `started`: counted for the tests."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.remaining_s: float | None = None

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def total(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Client streaming: how many bytes in how many messages."""
        count = size = 0
        async for message in requests:
            count += 1
            size += len(message)
        return f"{count} {size}".encode()

    async def repeat(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Server streaming: `SIZE,SIZE,...` gives messages of these sizes."""
        for size in filter(None, request.split(b",")):
            yield bytes(int(size))

    async def ping_pong(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in requests:
            yield message[::-1]

    async def half_duplex(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """All answers after all requests."""
        messages = [message async for message in requests]
        for message in messages:
            yield message

    async def by_hand(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Bidirectional with `read` and `write`."""
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            await context.write(message)

    async def status(self, request: bytes, context: Any) -> bytes:
        """`CODE MESSAGE`: that status."""
        code, _, message = request.decode().partition(" ")
        context.set_code(next(one for one in grpc.StatusCode if one.value[0] == int(code)))
        context.set_details(message)
        return b""

    async def abort(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode(), (("why", "tested"), ("raw-bin", b"\0\xff")))

    async def stream_then_fail(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        await context.abort(grpc.StatusCode.DATA_LOSS, "after two")

    async def metadata(self, request: bytes, context: Any) -> bytes:
        """Echoes `x-initial` and `x-trailing-bin`, as the interop suite's custom_metadata does."""
        sent = dict(context.invocation_metadata())
        await context.send_initial_metadata((("x-initial", sent["x-initial"]),))
        context.set_trailing_metadata((("x-trailing-bin", sent["x-trailing-bin"]),))
        return request

    async def metadata_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        sent = dict(context.invocation_metadata())
        await context.send_initial_metadata((("x-initial", sent["x-initial"]),))
        context.set_trailing_metadata((("x-trailing-bin", sent["x-trailing-bin"]),))
        async for message in requests:
            yield message

    async def forever(self, request: bytes, context: Any) -> bytes:
        self.started += 1
        self.remaining_s = context.time_remaining()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    async def drip(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Messages until somebody ends it."""
        self.started += 1
        try:
            while True:
                yield bytes(1000)
                await asyncio.sleep(0.001)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def broken(self, request: bytes, context: Any) -> bytes:
        raise RuntimeError("the inside of the server")

    def add_to_server(self, server: Any) -> None:
        unary, incoming = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        outgoing, both = grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers = {
            "Echo": unary(self.echo),
            "Total": incoming(self.total),
            "Repeat": outgoing(self.repeat),
            "PingPong": both(self.ping_pong),
            "HalfDuplex": both(self.half_duplex),
            "ByHand": both(self.by_hand),
            "Status": unary(self.status),
            "Abort": unary(self.abort),
            "StreamThenFail": outgoing(self.stream_then_fail),
            "Metadata": unary(self.metadata),
            "MetadataStream": both(self.metadata_stream),
            "Forever": unary(self.forever),
            "Drip": outgoing(self.drip),
            "Broken": unary(self.broken),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)
