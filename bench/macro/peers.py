"""What goes between two nodes: one large shard beside a bare grpc.aio stream, and small shards with 64 in flight.

Client here, server in another process on the same machine. Every ratio is taken within one run, its two sides in turn, medians of ROUNDS.
Run: python -m bench.macro.peers.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import uvloop

from anvil.model.cluster import ClusterDrive
from anvil.model.records import BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardHeader
from anvil.peers.directory import Peers
from anvil.peers.remote import RemoteDrive
from bench.figures import figure
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.support.peers import SECRET, node_row

MIB = 1 << 20
STRIPES = 512
ROUNDS = 3
SMALL = 4096 - 24  # with its seal and checksum 4 KiB
PUTS = 20_000
IN_FLIGHT = 64
ENOUGH_GB_S = 0.6


@contextmanager
def process(*arguments: str) -> Iterator[list[str]]:
    """The first line that it prints."""
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().split()
        finally:
            running.kill()


def large_header(stripes: int) -> ShardHeader:
    """One unit per stripe: its frames are 1 MiB and 24 bytes."""
    blob = BlobRef(os.urandom(16), stripes * MIB, Scheme(1, 0))
    return ShardHeader(blob, 0, bucket_id=1, key="bench", version_id=bytes(16), session=bytes(16))


async def put_large(drive: RemoteDrive) -> float:
    """GB/s of one shard."""
    header = large_header(STRIPES)
    frame = memoryview(os.urandom(header.blob.geometry.frame_len(0)))
    started = time.perf_counter()
    shard = await drive.create(header)
    for _ in range(STRIPES):
        await shard.write(frame)
    await shard.publish(make_footer())
    return STRIPES * len(frame) / (time.perf_counter() - started) / 1e9


async def get_large(drive: RemoteDrive) -> float:
    """GB/s of one shard's frames, read one after the other."""
    header = large_header(64)
    frame = memoryview(bytearray(os.urandom(header.blob.geometry.frame_len(0))))
    shard = await drive.create(header)
    for _ in range(64):
        await shard.write(frame)
    await shard.publish(make_footer())
    place = await drive.open(header.blob.blob_id, 0)
    assert place is not None
    started = time.perf_counter()
    for number in range(64):
        assert await drive.read(place, header.blob.geometry.frame_offset(number), frame) == len(frame)
    seconds = time.perf_counter() - started
    await drive.remove(header.blob.blob_id, 0)
    return 64 * len(frame) / seconds / 1e9


async def bare(port: int) -> float:
    """GB/s of a client stream of grpc.aio at both ends."""
    message = os.urandom(MIB)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        await channel.channel_ready()
        started = time.perf_counter()
        call = channel.stream_unary("/anvil.bench.Sink/Sink")()
        for _ in range(STRIPES):
            await call.write(message)
        await call.done_writing()
        await call
        return STRIPES * MIB / (time.perf_counter() - started) / 1e9


async def rate(times: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Per second, IN_FLIGHT at a time."""
    numbers = iter(range(times))

    async def one_after_the_other() -> None:
        for number in numbers:
            await work(number)

    started = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    return times / (time.perf_counter() - started)


async def small(drive: RemoteDrive) -> tuple[float, float]:
    """Puts and opens per second."""
    headers = [make_header(SMALL) for _ in range(PUTS)]
    frames, footer = make_frames(headers[0]), make_footer()
    puts = await rate(PUTS, lambda number: drive.put(headers[number], frames, footer))
    opens = await rate(PUTS, lambda number: drive.open(headers[number].blob.blob_id, 0))
    return puts, opens


@asynccontextmanager
async def remote(folder: Path) -> AsyncIterator[tuple[RemoteDrive, RemoteDrive]]:
    """A drive of another process, and one that drops everything."""
    node_id = os.urandom(16)
    with process("tests.support.peer_server", node_id.hex(), str(folder / "drive")) as (port, kept, dropped):
        peers = Peers(os.urandom(16), SECRET)
        peers.update([node_row(node_id, f"127.0.0.1:{port}")])
        await peers.settled(5)
        try:
            one, two = (peers.drive(ClusterDrive(bytes.fromhex(drive), node_id, "bench", 0)) for drive in (kept, dropped))
            yield one, two
        finally:
            await peers.close()


async def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, process("bench.macro.grpc_server", "sink") as (port,):
        async with remote(Path(name)) as (kept, dropped):
            turns = [(await put_large(dropped), await bare(int(port))) for _ in range(ROUNDS)]
            ours, theirs = (statistics.median(side) for side in zip(*turns, strict=True))
            figure("large shard to another node, one stream", ours, "GB/s")
            figure("large shard to another node, beside what is wanted", ours / min(ENOUGH_GB_S, theirs), "ratio")
            figure("large shard to another node, bare grpc.aio", theirs, "GB/s")
            figure("large shard from another node, frame by frame", await get_large(kept), "GB/s")
            rates = [await small(kept) for _ in range(ROUNDS)]
            puts, opens = (statistics.median(side) for side in zip(*rates, strict=True))
            figure("small shards to another node, 64 in flight", puts, "puts/s", note="4 KiB, durable on /dev/shm")
            figure("small shards of another node opened, 64 in flight", opens, "opens/s")


if __name__ == "__main__":
    uvloop.run(main())
