"""A process that appends until it is killed: says on stdout what was acknowledged, one line per shard.

    python -m tests.unit.shards.appender FOLDER SESSION_HEX [large]

Line: blob id, hex of the SHA-256 of its frames. The first line is `ready`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from tests.unit.shards.support import opened, put, put_large


async def main(folder: Path, session: bytes, large: bool) -> None:
    async with opened(folder, session=session) as drive:
        os.write(1, b"ready\n")

        async def append() -> None:
            while True:
                header, frames = await (put_large(drive, 600_000) if large else put(drive, 3000))
                line = f"{header.blob.blob_id.hex()} {hashlib.sha256(frames).hexdigest()}\n"
                os.write(1, line.encode())

        await asyncio.gather(*(append() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), "large" in sys.argv))
