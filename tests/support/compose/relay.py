"""Published ports: passes connections on, as Docker's own proxy does.

python -m tests.support.compose.relay ADDRESS:PORT:TARGET:PORT...      an empty address: all of them
"""

from __future__ import annotations

import asyncio
import sys

CHUNK_BYTES = 1 << 16


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def serve(line: str) -> None:
    address, outside, target, inside = line.split(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(target, int(inside))
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pass_on(reader, other_writer), pass_on(other_reader, writer))
        writer.close()
        other_writer.close()

    server = await asyncio.start_server(relay, address or None, int(outside))
    async with server:
        await server.serve_forever()


async def main() -> None:
    await asyncio.gather(*(serve(line) for line in sys.argv[1:]))


if __name__ == "__main__":
    asyncio.run(main())
