"""Durable small appends: the segment writer against the bare system calls.

    PYTHONPATH=. python bench/micro/segments.py [--folder DIR] [--seconds 2]

Prints, for each number of clients, durable 4 KiB shards per second through `LocalDrive.put` (record, group commit, index) with
IO jobs run inline and on native threads, beside pwrite + fdatasync of the same bytes into a file filled with zeros (batches of the
same number of records); then 4 KiB reads per second (open + read, page cache), and the share of segment space that is padding.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anvil._ec.pool import Job
from anvil.base.limits import DRIVE_THREADS, MIB, SEGMENT_BYTES
from anvil.base.types import Told
from anvil.ec.executor import NativeExecutor
from anvil.model.records import Attributes, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.shards import format as fmt
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs
from anvil.shards.settings import DriveSettings
from bench.figures import figure

SIZE = 4096
FOOTER = ShardFooter("0" * 32, 1_700_000_000_000_000, Attributes())
SESSION = b"s" * 16


class Inline:
    """Runs jobs where they are asked for: what the threads cost is the difference."""

    async def run_to_end(self, job: Job) -> None:
        job.run()

    def run_small(self, job: Job) -> None:
        job.run()

    def begin(self, job: Job, over: Callable[[], None] | None = None) -> asyncio.Future[None]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job.run()
        ended.set_result(None)
        if over is not None:
            over()
        return ended

    def start(self, job: Job, told: Told) -> None:
        self.begin(job).add_done_callback(lambda ended: told(ended.exception()))

    def abandon(self, job: Job, error: Exception) -> None:
        """It has ended before anybody could give it up."""

    async def close(self) -> None:
        pass


def make_header() -> ShardHeader:
    blob = BlobRef(os.urandom(16), SIZE, Scheme(1, 1))
    return ShardHeader(blob, 0, 1, "some/object/key-0001", b"v" * 16, SESSION)


async def measure(folder: Path, threads: int, clients: int, seconds: float) -> tuple[float, float, float]:
    """(puts/s, reads/s, share of padding); `threads` 0: jobs run inline."""
    executor = NativeExecutor(asyncio.get_running_loop(), threads) if threads else Inline()
    drive = await LocalDrive.attach(
        folder,
        expected=None,
        create=True,
        executor=executor,
        jobs=NativeJobs(),
        session=SESSION,
        settings=DriveSettings(floor_bytes=MIB),
    )
    frames = os.urandom(make_header().blob.geometry.shard_bytes)
    headers: list[ShardHeader] = []
    store = drive._store
    assert store is not None
    while store.writer._active is None or store.writer._active.size < SEGMENT_BYTES:  # past the first, short segments
        await asyncio.gather(*(drive.put(make_header(), frames, FOOTER) for _ in range(256)))
    warm = {number: (row.total, row.used) for number, row in store.index.segments()}
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            header = make_header()
            await drive.put(header, frames, FOOTER)
            headers.append(header)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    puts = len(headers) / (time.perf_counter() - start)
    view = memoryview(bytearray(len(frames)))
    start = time.perf_counter()
    some = headers[:5000]
    for header in some:
        place = await drive.open(header.blob.blob_id, 0)
        assert place is not None
        await drive.read(place, 0, view)
    reads = len(some) / (time.perf_counter() - start)
    length = fmt.header_length("some/object/key-0001") + len(frames) + len(fmt.encode_footer(b"b" * 16, 0, FOOTER))
    rows = [(number, row) for number, row in store.index.segments()]
    records = sum(row.total - warm.get(number, (0, 0))[0] for number, row in rows) / fmt.align(length)
    used = sum(row.used - warm.get(number, (0, fmt.BLOCK_BYTES))[1] for number, row in rows)
    await drive.close()
    await executor.close()
    return puts, reads, 1 - records * length / used


def bare(folder: Path, batch: int, seconds: float) -> float:
    """Records of the same length per second, by nothing but pwrite and fdatasync."""
    data = os.urandom(fmt.align(4500) * batch)
    path = folder / "bare"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(bytes(MIB))
        os.fsync(file.fileno())
    fd = os.open(path, os.O_RDWR)
    offset = count = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if offset + len(data) > 64 * MIB:
            offset = 0
        os.pwrite(fd, data, offset)
        os.fdatasync(fd)
        offset += fmt.align(len(data), 4096)
        count += batch
    os.close(fd)
    path.unlink()
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="where the drive is made (default: a temporary folder)")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    for clients in (1, 16, 64):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            reference = bare(Path(name), clients, options.seconds / 2)
            inline, _, _ = asyncio.run(measure(Path(name) / "a", 0, clients, options.seconds))
            thread, reads, padding = asyncio.run(measure(Path(name) / "b", DRIVE_THREADS, clients, options.seconds))
        note = f"{inline / reference:.2f} of bare pwrite + fdatasync; {thread:.0f}/s on native threads; {padding:.1%} padding"
        figure(f"durable 4 KiB appends, {clients} clients", inline, "records/s", note=note)
        figure(f"reads of 4 KiB, after {clients} clients", reads, "records/s")


if __name__ == "__main__":
    main()
