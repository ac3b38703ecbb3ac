"""The yardstick: a bare uvloop + httptools server that answers every GET with the same bytes and swallows every PUT.

Owns: nothing; it has no limits, checks or time-outs. Usage: python bench/macro/bare_server.py PORT [ANSWER_BYTES]
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop


class Bare(asyncio.Protocol):
    """One connection."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(self.answer)


async def main(port: int, size: int) -> None:
    Bare.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4096))
