"""An engine over a region in memory: drives of several nodes, layouts that change, metadata. One node's process looks at it all.

`Region.nodes` drives are `MemoryDrive`s; those of node 0 are local. For tests of where shards go and are looked for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

from anvil._ec.digest import DigestLanes
from anvil.base.owned import OwnedTasks
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for
from anvil.ec.executor import JobRunner, NativeExecutor
from anvil.engine.context import Context, LayoutsInUse, Placement
from anvil.engine.engine import Engine
from anvil.engine.ports import Drive
from anvil.engine.session import WriterSession
from anvil.model.layout import Layout, LayoutDrive
from anvil.model.records import BlobRef, Owner
from anvil.model.scheme import Scheme
from anvil.tasks.collect import Collector
from anvil.tasks.fsck import Fsck
from anvil.tasks.rebalance import Rebalancer
from anvil.tasks.repair import Repairer
from anvil.tasks.survey import Survey
from tests.contract.memory_drive import MemoryDrive
from tests.contract.memory_metadata import MemoryMetadata
from tests.support.engine import Bytes, Events, new_bucket, nothing, plain_spec
from tests.support.layouts import computed

SPARES = 2


async def nothing_newer() -> bool:
    return False


class Region:
    """The parts, by name. `refreshed`: how often somebody asked for newer layouts; `newer`: what is done then, and whether it was."""

    engine: Engine
    context: Context
    session: WriterSession
    repairer: Repairer
    survey: Survey
    rebalancer: Rebalancer
    fsck: Fsck
    hold = False
    cut_off: frozenset[int] = frozenset()  # nodes that the region knows to be up, and this process cannot reach
    settled = True

    def __init__(self, nodes: int, drives: int, scheme: Scheme) -> None:
        self.scheme = scheme
        self.metadata = MemoryMetadata()
        self.bucket = new_bucket()
        self.events = Events()
        self.layouts_in_use = LayoutsInUse()
        self.refreshed = 0
        self.newer: Callable[[], Awaitable[bool]] = nothing_newer
        self._numbers = count(1)
        self.drives: dict[int, list[MemoryDrive]] = {}
        for _ in range(nodes):
            self.add_node(drives)
        self.layout = self.compute(range(nodes))
        self.placement = Placement([self.layout], self.reachable)

    @property
    def all(self) -> list[MemoryDrive]:
        return [drive for drives in self.drives.values() for drive in drives]

    @property
    def reachable(self) -> dict[bytes, MemoryDrive]:
        return {drive.drive_id: drive for drive in self.all}

    def add_node(self, drives: int) -> int:
        number = len(self.drives)
        self.drives[number] = []
        for place in range(drives):
            drive = MemoryDrive(next(self._numbers).to_bytes(16, "big"), f"node{number}-{place}")
            drive.local = number == 0
            self.drives[number].append(drive)
        return number

    def down(self, number: int, away: bool = True) -> None:
        for drive in self.drives[number]:
            drive.away = away

    def away(self, drive: Drive) -> bool:
        return all(drive not in self.drives[number] for number in self.cut_off)

    def compute(self, nodes: Sequence[int], previous: Layout | None = None) -> Layout:
        drives = [LayoutDrive(one.drive_id, bytes([node]) * 16, 1 << 40) for node in nodes for one in self.drives[node]]
        return computed(drives, self.scheme.width, SPARES, previous)

    def begin(self, nodes: Sequence[int]) -> None:
        """A layout of these nodes becomes the current one; the one before is old."""
        old, self.layout = self.layout, self.compute(nodes, self.layout)
        self.placement.follow([old, self.layout], self.reachable)

    def retire(self) -> None:
        self.placement.follow([self.layout], self.reachable)

    async def refresh(self) -> bool:
        self.refreshed += 1
        return await self.newer()

    def collector(self) -> Collector:
        return Collector(self.metadata, self.placement, 0.0, lambda: self.hold, self.away)

    async def put_any(self, key: str, data: bytes) -> None:
        await self.engine.put_object(self.bucket, key, Bytes(data), plain_spec())

    async def put(self, key: str, data: bytes) -> BlobRef:
        """What is not inline."""
        await self.put_any(key, data)
        return await self.blob(key)

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        info = await self.engine.open(self.bucket, key)
        length = info.size - start if length is None else length
        return b"".join([bytes(view) async for view in self.engine.read(self.bucket, info, start, length)])

    async def blob(self, key: str) -> BlobRef:
        [extent] = (await self.engine.open(self.bucket, key)).extents
        assert extent.content is not None
        return extent.content.blob

    async def owner(self, key: str) -> Owner:
        [extent] = (await self.engine.open(self.bucket, key)).extents
        return extent.owner

    def holders(self, blob: BlobRef, index: int) -> list[str]:
        """The drives with that shard."""
        return [drive.label for drive in self.all if (blob.blob_id, index) in drive.shards]

    def nominal(self, blob: BlobRef, index: int) -> MemoryDrive:
        drive = self.placement.belongs(blob.blob_id, blob.scheme.width)[index]
        assert isinstance(drive, MemoryDrive)
        return drive

    def at_home(self, blob: BlobRef) -> bool:
        """Whether every shard is on its own drive of the current layout."""
        return all((blob.blob_id, index) in self.nominal(blob, index).shards for index in range(blob.scheme.width))

    def asked(self) -> dict[str, int]:
        """By drive, how many calls it got since the last time this was asked."""
        counts = {drive.label: len(drive.faults.calls) for drive in self.all if drive.faults.calls}
        for drive in self.all:
            drive.faults.calls.clear()
        return counts


@asynccontextmanager
async def region(nodes: int = 6, drives: int = 1, scheme: Scheme | None = None) -> AsyncIterator[Region]:
    loop = asyncio.get_running_loop()
    made = Region(nodes, drives, scheme or Scheme(4, 2))
    native = NativeExecutor(loop, 1)
    lanes = JobRunner(loop, DigestLanes(1))
    buffers = Buffers(loop)
    owned = OwnedTasks("test")
    made.session = WriterSession(made.metadata, bytes(16), 0)
    await made.session.open()
    await made.metadata.add_bucket(made.bucket.bucket_id)
    ticks = count(1)
    made.context = Context(
        metadata=made.metadata,
        placement=lambda: made.placement,
        scheme=lambda: made.scheme,
        native=native,
        lanes=lanes,
        buffers=buffers,
        codecs=codec_for,
        session=made.session,
        events=made.events,
        owned=owned,
        new_id=lambda: os.urandom(16),
        now_us=lambda: next(ticks),
        layouts=made.layouts_in_use,
        refresh=made.refresh,
    )
    made.engine = Engine(made.context)
    made.repairer = Repairer(made.metadata, made.placement, native, buffers, codec_for, retry_s=0.0)
    made.survey = Survey(made.metadata, made.placement, buffers, made.events, lambda: made.hold, lambda: made.settled)
    made.rebalancer = Rebalancer(
        made.metadata, made.placement, buffers, made.repairer, made.events, lambda: made.hold, away=made.away
    )
    made.fsck = Fsck(made.metadata, made.placement, buffers, made.survey, nothing, made.rebalancer.partition)
    try:
        yield made
    finally:
        await owned.close(10)
        await lanes.close()
        await native.close()
