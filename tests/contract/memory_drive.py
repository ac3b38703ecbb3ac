"""`MemoryDrive`: the engine's `Drive` port in memory, with hooks to make it fail.

Passes the same contract suite as `LocalDrive` (test_drive.py). Hooks, all settable at any time: `faults.put`, `faults.create`,
`faults.write`, `faults.publish`, `faults.open`, `faults.read`, `faults.remove` hold an exception to raise (every time, until set
back to None); `faults.delay` is awaited before every operation; `away` makes the drive neither readable nor writable; `flip` and
`truncate` damage a stored shard, `lose` drops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field

from anvil._ec.pieces import Sink, Source
from anvil.base.errors import BadRecord, DriveFailed, DriveStalled
from anvil.base.types import Buffer, Told
from anvil.model.layout import partition as partition_of
from anvil.model.records import BlobId, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace


@dataclass
class DriveFaults:
    """What goes wrong, by operation. `delay` is called with the operation's name and awaited."""

    put: Exception | None = None
    create: Exception | None = None
    write: Exception | None = None
    publish: Exception | None = None
    open: Exception | None = None
    read: Exception | None = None
    remove: Exception | None = None
    delay: Callable[[str], Awaitable[None]] | None = None
    calls: list[str] = field(default_factory=list)

    @property
    def hinder_reads(self) -> bool:
        """Whether a read has to wait, or to fail."""
        return self.delay is not None or self.open is not None or self.read is not None

    async def meet(self, operation: str) -> None:
        self.calls.append(operation)
        if self.delay is not None:
            await self.delay(operation)
        error: Exception | None = getattr(self, operation)
        if error is not None:
            raise error


@dataclass
class StoredShard:
    header: ShardHeader
    payload: bytearray
    footer: ShardFooter | None
    header_damaged: bool = False

    @property
    def damaged(self) -> bool:
        return self.header_damaged or self.footer is None or len(self.payload) < self.header.blob.geometry.shard_bytes


class MemoryDrive:
    """A drive whose shards are in `shards`, keyed (blob id, index)."""

    local = True

    def __init__(self, drive_id: bytes, label: str = "memory") -> None:
        self.drive_id = drive_id
        self.label = label
        self.shards: dict[tuple[BlobId, int], StoredShard] = {}
        self.faults = DriveFaults()
        self.away = False
        self.read_only = False

    @property
    def writable(self) -> bool:
        return not self.away and not self.read_only

    @property
    def readable(self) -> bool:
        return not self.away

    async def _meet(self, operation: str, writes: bool = False) -> None:
        if self.away or (writes and self.read_only):
            raise DriveFailed(drive=self.label)
        await self.faults.meet(operation)
        if self.away:
            raise DriveFailed(drive=self.label)

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        if len(frames) != header.blob.geometry.shard_bytes:
            raise ValueError("not the frames of this shard")
        await self._meet("put", writes=True)
        self.shards[header.blob.blob_id, header.index] = StoredShard(header, bytearray(frames), footer)

    async def create(self, header: ShardHeader) -> MemoryLargeShard:
        await self._meet("create", writes=True)
        return MemoryLargeShard(self, header)

    async def open(self, blob_id: BlobId, index: int, patience_s: float | None = None) -> ShardPlace | None:
        try:
            async with asyncio.timeout(patience_s):
                await self._meet("open")
        except TimeoutError:
            raise DriveStalled(drive=self.label) from None
        shard = self.shards.get((blob_id, index))
        if shard is None:
            return None
        if shard.header_damaged:
            raise BadRecord("record header fails its checksum")
        return ShardPlace(shard.header, shard)

    def at_hand(self, blob_id: BlobId, index: int) -> memoryview | None:
        shard = self.shards.get((blob_id, index))
        if shard is None or self.away or shard.header_damaged or self.faults.hinder_reads:
            return None
        return memoryview(bytes(shard.payload))

    async def read(self, place: ShardPlace, offset: int, view: memoryview) -> int:
        await self._meet("read")
        assert isinstance(place.ref, StoredShard)
        piece = bytes(place.ref.payload[offset : offset + len(view)])
        view[: len(piece)] = piece
        return len(piece)

    async def read_into(self, place: ShardPlace, offset: int, sink: Sink) -> None:
        await self._meet("read")
        assert isinstance(place.ref, StoredShard)
        while wants := sink.wants:
            piece = bytes(place.ref.payload[offset : offset + wants])
            if len(piece) < wants:
                return
            sink.feed(piece)
            offset += wants

    def begin_into(self, place: ShardPlace, offset: int, sink: Sink) -> asyncio.Future[None] | None:
        return asyncio.get_running_loop().create_task(self.read_into(place, offset, sink))

    async def verify(self, place: ShardPlace) -> ShardFooter:
        await self._meet("open")
        assert isinstance(place.ref, StoredShard)
        if place.ref.damaged or place.ref.footer is None:
            raise BadRecord("record footer is missing")
        return place.ref.footer

    async def remove(self, blob_id: BlobId, index: int, *, superseded: bool = False) -> bool:
        await self._meet("remove")
        return self.shards.pop((blob_id, index), None) is not None

    async def partitions(self) -> frozenset[int]:
        await self._meet("open")
        return frozenset(partition_of(blob_id) for blob_id, _ in self.shards)

    async def scan(self, partitions: Collection[int] | None = None) -> AsyncIterator[ShardPlace]:
        for (blob_id, index), shard in list(self.shards.items()):
            if (blob_id, index) not in self.shards or not (partitions is None or partition_of(blob_id) in partitions):
                continue
            header = shard.header
            if shard.header_damaged:
                blob = BlobRef(blob_id, 0, Scheme(1, 0))
                header = ShardHeader(blob, index, bucket_id=0, key="", version_id=bytes(16), session=bytes(16))
            yield ShardPlace(header, shard, damaged=shard.damaged)

    # -- damage

    def flip(self, blob_id: BlobId, index: int, offset: int) -> None:
        """Change one payload byte."""
        self.shards[blob_id, index].payload[offset] ^= 0xFF

    def truncate(self, blob_id: BlobId, index: int, length: int) -> None:
        shard = self.shards[blob_id, index]
        del shard.payload[length:]
        shard.footer = None

    def damage_header(self, blob_id: BlobId, index: int) -> None:
        self.shards[blob_id, index].header_damaged = True

    def lose(self, blob_id: BlobId, index: int) -> None:
        del self.shards[blob_id, index]


class MemoryLargeShard:
    def __init__(self, drive: MemoryDrive, header: ShardHeader) -> None:
        self._drive = drive
        self._header = header
        self._payload = bytearray()
        self._over = False

    async def write(self, frames: Buffer) -> None:
        self._still_open()
        if len(self._payload) + len(frames) > self._header.blob.geometry.shard_bytes:
            raise ValueError("more frames than the shard's geometry has")
        await self._meet("write")
        self._payload += frames

    def begin(self, frames: Buffer | Source, told: Told) -> bool:
        self._still_open()
        write = self.write_from(frames) if isinstance(frames, Source) else self.write(frames)
        asyncio.get_running_loop().create_task(write).add_done_callback(lambda task: told(task.exception()))
        return True

    async def write_from(self, source: Source) -> None:
        frames = bytearray(source.length)
        for at, piece in source.pieces():
            frames[at : at + len(piece)] = piece
        source.check()
        await self.write(frames)

    async def publish(self, footer: ShardFooter) -> None:
        self._still_open()
        if len(self._payload) != self._header.blob.geometry.shard_bytes:
            raise ValueError("shard is not complete")
        await self._meet("publish")
        self._over = True
        key = (self._header.blob.blob_id, self._header.index)
        held = self._drive.shards.get(key)
        if held is None or held.damaged:
            self._drive.shards[key] = StoredShard(self._header, self._payload, footer)

    async def abort(self) -> None:
        self._over = True

    async def _meet(self, operation: str) -> None:
        try:
            await self._drive._meet(operation, writes=True)
        except BaseException:
            self._over = True
            raise

    def _still_open(self) -> None:
        if self._over:
            raise RuntimeError("a large shard takes no call after its end")
