"""The yardstick: a bare uvloop + httptools server that answers every GET with the same bytes and swallows every PUT.

Owns: nothing; it has no limits, checks or time-outs. The answer, head and body, is one bytes object made at the start, so
each request costs one parse and one write. Usage: python bench/macro/bare_server.py [--port PORT] [--size ANSWER_BYTES]; prints
`ready on port N` once it listens (port 0: any free one).
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop


class Bare(asyncio.Protocol):
    """One connection."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(self.answer)


async def main(port: int, size: int) -> None:
    Bare.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    print(f"ready on port {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--size", type=int, default=4096)
    chosen = options.parse_args()
    uvloop.run(main(chosen.port, chosen.size))
