"""Durable small appends: the segment writer against the bare system calls.

    PYTHONPATH=. python bench/micro/segments.py [--folder DIR] [--seconds 2]

Prints, for each number of clients, durable 4 KiB shards per second through `LocalDrive.put` (record, group commit, index) with
IO jobs run inline and on a thread, beside pwrite + fdatasync of the same bytes into a file filled with zeros (batches of the
same number of records); then 4 KiB reads per second (open + read, page cache), and the share of segment space that is padding.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anvil.base.limits import MIB, SEGMENT_BYTES
from anvil.base.types import Buffer
from anvil.model.records import Attributes, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.shards import format as fmt
from anvil.shards.drive import LocalDrive
from anvil.shards.io import preadv_nowait
from anvil.shards.settings import DriveSettings
from bench.figures import figure

SIZE = 4096
FOOTER = ShardFooter("0" * 32, 1_700_000_000_000_000, Attributes())
SESSION = b"s" * 16


class Write:
    def __init__(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> None:
        self.fd, self.offset, self.buffers, self.sync, self.count = fd, offset, buffers, sync, 0

    def run(self) -> None:
        if self.buffers:
            assert os.pwritev(self.fd, self.buffers, self.offset) == sum(len(buffer) for buffer in self.buffers)
        if self.sync:
            os.fdatasync(self.fd)

    def check(self) -> None:
        pass


class Read:
    def __init__(self, fd: int, offset: int, view: Buffer) -> None:
        self.fd, self.offset, self.view, self.count = fd, offset, view, 0

    def run(self) -> None:
        self.count = os.preadv(self.fd, [self.view], self.offset)

    def check(self) -> None:
        pass


class Jobs:
    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> Write:
        return Write(fd, offset, buffers, sync)

    def sync(self, fd: int, full: bool) -> Write:
        return Write(fd, 0, (), True)

    def read(self, fd: int, offset: int, view: Buffer, then: Any = None) -> Read:
        return Read(fd, offset, view)

    def reserve(self, fd: int, length: int) -> Write:
        os.posix_fallocate(fd, 0, length)
        return Write(fd, 0, (), False)

    read_now = staticmethod(preadv_nowait)


class Inline:
    async def run(self, job: Any) -> None:
        job.run()

    async def run_to_end(self, job: Any) -> None:
        await self.run(job)

    run_small = run


class Thread(Inline):
    async def run(self, job: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(None, job.run)


def make_header() -> ShardHeader:
    blob = BlobRef(os.urandom(16), SIZE, Scheme(1, 1))
    return ShardHeader(blob, 0, 1, "some/object/key-0001", b"v" * 16, SESSION)


async def measure(folder: Path, executor: Inline, clients: int, seconds: float) -> tuple[float, float, float]:
    """(puts/s, reads/s, share of padding)"""
    drive = await LocalDrive.attach(
        folder,
        expected=None,
        create=True,
        executor=executor,
        jobs=Jobs(),
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
            inline, _, _ = asyncio.run(measure(Path(name) / "a", Inline(), clients, options.seconds))
            thread, reads, padding = asyncio.run(measure(Path(name) / "b", Thread(), clients, options.seconds))
        note = f"{inline / reference:.2f} of bare pwrite + fdatasync; {thread:.0f}/s on Python threads; {padding:.1%} padding"
        figure(f"durable 4 KiB appends, {clients} clients", inline, "records/s", note=note)
        figure(f"reads of 4 KiB, after {clients} clients", reads, "records/s")


if __name__ == "__main__":
    main()
