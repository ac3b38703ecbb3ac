"""Opening drives in tests, and pictures of a folder as a crash would leave it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anvil.base.limits import KIB, MIB
from anvil.model.shard import ShardHeader
from anvil.shards.drive import LocalDrive
from anvil.shards.settings import DriveSettings
from tests.contract.plain_io import FaultyJobs, ThreadExecutor
from tests.contract.shard_samples import SESSION, make_footer, make_frames, make_header

SMALL_SEGMENTS = DriveSettings(floor_bytes=MIB, segment_bytes=64 * KIB, segment_first_bytes=64 * KIB)
DEFAULT = DriveSettings(floor_bytes=MIB)


@asynccontextmanager
async def opened(path: Path, jobs: FaultyJobs | None = None, **options: Any) -> AsyncIterator[LocalDrive]:
    executor = ThreadExecutor()
    options = {"expected": None, "create": True, "session": SESSION, "settings": DEFAULT} | options
    drive = await LocalDrive.attach(path, executor=executor, jobs=jobs or FaultyJobs(), **options)
    try:
        yield drive
    finally:
        await drive.close()
        executor.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """And nothing was raised where nobody could catch it, such as by who was told a second time."""
    unseen: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(repr(context)))
        await asyncio.wait_for(work, 60)

    asyncio.run(main())
    assert unseen == []


def picture(folder: Path, to: Path) -> Path:
    """The folder as it is now: what a process killed at this moment leaves."""
    return Path(shutil.copytree(folder, to))


async def put(drive: LocalDrive, size: int = 1000, header: ShardHeader | None = None) -> tuple[ShardHeader, bytes]:
    header = header or make_header(size)
    frames = make_frames(header)
    await drive.put(header, frames, make_footer())
    return header, frames


async def put_large(drive: LocalDrive, size: int = 2 * MIB) -> tuple[ShardHeader, bytes]:
    header = make_header(size)
    frames = make_frames(header)
    shard = await drive.create(header)
    await shard.write(frames)
    await shard.publish(make_footer())
    return header, frames


async def get(drive: LocalDrive, header: ShardHeader) -> bytes | None:
    """The whole payload; None if the drive does not have the shard."""
    place = await drive.open(header.blob.blob_id, header.index)
    if place is None:
        return None
    view = memoryview(bytearray(header.blob.geometry.shard_bytes))
    return bytes(view[: await drive.read(place, 0, view)])


def segments_of(folder: Path) -> list[Path]:
    return sorted((folder / "segments").iterdir())
