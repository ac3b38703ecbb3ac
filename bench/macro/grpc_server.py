"""One gRPC server process for the benchmarks: `anvil` (the port's host) or `grpcio` (grpc.aio, bare), whose one method returns its message;
or `sink` (grpc.aio, bare), whose method drops the messages of a stream.

Prints the port it listens on. Run: python -m bench.macro.grpc_server anvil|grpcio|sink.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

SERVICE = "anvil.bench.Echo"


async def echo(request: bytes, context: Any) -> bytes:
    return request


def add_to_server(server: Any) -> None:
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


async def anvil() -> None:
    from anvil.net.server import serve
    from anvil.net.stream import Stream
    from anvil.rpc.host import GrpcHost

    async def nobody(stream: Stream) -> None:
        await stream.respond(404, ())

    host = GrpcHost()
    add_to_server(host)
    server = await serve(nobody, [("127.0.0.1", 0)], grpc=host)
    print(server.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def grpcio() -> None:
    server = grpc.aio.server()
    add_to_server(server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


async def sink() -> None:
    async def drop(requests: Any, context: Any) -> bytes:
        async for _ in requests:
            continue
        return b""

    server = grpc.aio.server()
    handlers = {"Sink": grpc.stream_unary_rpc_method_handler(drop)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("anvil.bench.Sink", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run({"anvil": anvil, "grpcio": grpcio, "sink": sink}[sys.argv[1]]())
