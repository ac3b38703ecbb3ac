"""Copying blobs out of the drives, into the packs of a backup.

Owns: how a sealed stripe is got from any k good shards, without any key. Invariants: nothing is packed that did not pass its checksum; a
blob is packed whole or not at all; a blob that cannot be read is counted and named, and does not end the copy; at most BACKUP_STRIPES_AHEAD
stripes are in memory. Not here: which blobs (`node/backups.py`), the packs' bytes (`backup/`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from anvil._ec.stripe import RebuildJob
from anvil.backup.format import PackedBlob
from anvil.base.errors import BadRecord, Unavailable
from anvil.base.limits import BACKUP_BYTES_PER_S, BACKUP_STRIPES_AHEAD
from anvil.base.types import Buffer
from anvil.engine.context import Buffers, Codecs, Executor, Placement
from anvil.engine.ports import Drive
from anvil.model.records import BlobRef
from anvil.model.scheme import CHECKSUM_BYTES, TAG_BYTES
from anvil.model.shard import ShardPlace
from anvil.tasks.throttle import Throttle
from anvil.tasks.verify import frame_sound

log = logging.getLogger("anvil.backup")
T = TypeVar("T")


class Writer(Protocol):
    """`backup.packs.PackWriter`."""

    def begin(self, packed: PackedBlob) -> None: ...
    def stripe(self, sealed: Buffer) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


class Unreadable(Exception):
    """Fewer than k good shards can be read now."""

    def __str__(self) -> str:
        return "too few good shards"


class Source:
    """One blob, wherever its shards are."""

    def __init__(self, blob: BlobRef, placement: Placement, buffers: Buffers, native: Executor, codecs: Codecs) -> None:
        self._blob = blob
        self._placement = placement
        self._buffers = buffers
        self._native = native
        self._codecs = codecs
        self._found: dict[int, tuple[Drive, ShardPlace]] = {}
        self._looking = asyncio.Lock()
        self._everywhere = False

    async def open(self) -> PackedBlob:
        """Find k shards, and read what one of them says of the blob. Raises Unreadable."""
        blob = self._blob
        order = self._placement.order(blob.blob_id)
        for indexes in (range(blob.scheme.k), range(blob.scheme.k, blob.scheme.width)):
            await asyncio.gather(*(self._look(index, order[index : index + 1]) for index in indexes))
            if len(self._found) >= blob.scheme.k:
                break
        if len(self._found) < blob.scheme.k:
            await self._look_everywhere()
        if len(self._found) < blob.scheme.k:
            raise Unreadable
        asked: set[int] = set()
        while True:
            for index in sorted(self._found.keys() - asked):
                drive, place = self._found[index]
                try:
                    return PackedBlob.of(place.header, await drive.verify(place))
                except (BadRecord, Unavailable):
                    asked.add(index)
            await self._look_everywhere()
            if not self._found.keys() - asked:
                raise Unreadable

    async def _look(self, index: int, drives: Iterable[Drive | None]) -> None:
        for drive in drives:
            if drive is None or not drive.readable or index in self._found:
                continue
            try:
                place = await drive.open(self._blob.blob_id, index)
            except (BadRecord, Unavailable):
                continue
            if place is not None and place.header.blob == self._blob:
                self._found[index] = (drive, place)

    async def _look_everywhere(self) -> None:
        """For the indexes that are not known, once."""
        async with self._looking:
            if self._everywhere:
                return
            blob = self._blob
            order = self._placement.order(blob.blob_id)
            for index in range(blob.scheme.width):
                await self._look(index, [*order[index : index + 1], *self._placement.elsewhere(blob.blob_id, index)])
            self._everywhere = True

    async def stripe(self, number: int) -> Buffer:
        """One sealed stripe. Raises Unreadable, SlowDown."""
        blob, geometry = self._blob, self._blob.geometry
        k, frame_len = blob.scheme.k, geometry.frame_len(number)
        frames = await self._frames(number)
        missing = [index for index in range(k) if index not in frames]
        if missing:
            rebuilt = await self._rebuild(number, frames, missing)
            frames |= {index: rebuilt[slot * frame_len : (slot + 1) * frame_len] for slot, index in enumerate(missing)}
        units = [frames[index][CHECKSUM_BYTES:] for index in range(k)]
        sealed = geometry.stripe_len(number) + TAG_BYTES
        return units[0][:sealed] if k == 1 else memoryview(b"".join(units))[:sealed]

    async def _frames(self, number: int) -> dict[int, memoryview]:
        """k good frames by index, data shards and those of this node first. A shard that is damaged elsewhere may do here. Raises
        Unreadable, SlowDown."""
        k = self._blob.scheme.k
        frames: dict[int, memoryview] = {}
        asked: set[int] = set()
        while len(frames) < k:
            if len(self._found.keys() - asked) < k - len(frames):
                await self._look_everywhere()
            left = sorted(self._found.keys() - asked, key=lambda index: (index >= k, not self._found[index][0].local, index))
            if len(left) < k - len(frames):
                raise Unreadable
            now = left[: k - len(frames)]
            asked.update(now)
            for index, frame in zip(now, await asyncio.gather(*(self._frame(number, index) for index in now)), strict=True):
                if frame is not None:
                    frames[index] = frame
        return frames

    async def _frame(self, number: int, index: int) -> memoryview | None:
        blob_id, geometry = self._blob.blob_id, self._blob.geometry
        length = geometry.frame_len(number)
        drive, place = self._found[index]
        view = memoryview(await self._buffers.acquire(length))[:length]
        try:
            read = await drive.read(place, geometry.frame_offset(number), view)
        except (Unavailable, BadRecord) as error:
            log.warning("shard %d of blob %s on %s: %s", index, blob_id.hex(), drive.label, error)
            return None
        if read == length and frame_sound(blob_id, index, number, view):
            return view
        log.warning("shard %d of blob %s on %s is damaged", index, blob_id.hex(), drive.label)
        return None

    async def _rebuild(self, number: int, frames: dict[int, memoryview], missing: list[int]) -> memoryview:
        blob = self._blob
        geometry = blob.geometry
        out = memoryview(await self._buffers.acquire(geometry.frame_len(number) * len(missing)))
        given = [frames.get(index) for index in range(blob.scheme.width)]
        codec = self._codecs(blob.scheme)
        await self._native.run(RebuildJob(codec, blob.blob_id, number, geometry.unit_len(number), given, missing, out))
        return out


class _Item(NamedTuple):
    """`stripe`: None for the opening of a blob, which comes before its stripes."""

    blob: BlobRef
    opened: asyncio.Task[PackedBlob]
    stripe: asyncio.Task[Buffer] | None


class Copier:
    """`writer`: only ever used through `blocking`, which runs a function on a thread of its own. `moved`: told of every blob that is done
    with, and of its bytes."""

    def __init__(
        self,
        placement: Placement,
        buffers: Buffers,
        native: Executor,
        codecs: Codecs,
        writer: Writer,
        blocking: Callable[..., Awaitable[object]],
        moved: Callable[[int], None] = lambda size: None,
        throttle: Throttle | None = None,
    ) -> None:
        self._placement = placement
        self._buffers = buffers
        self._native = native
        self._codecs = codecs
        self._writer = writer
        self._blocking = blocking
        self._moved = moved
        self.throttle = throttle or Throttle(BACKUP_BYTES_PER_S)
        self.unread: list[BlobRef] = []
        self.copied = 0
        self.copied_bytes = 0
        self._left = 0  # stripes to come of the blob that is being written; 0 also when it failed

    async def run(self, blobs: AsyncIterator[BlobRef]) -> None:
        """Copy these, in order; `blobs` is drawn from a few at a time. Raises what drawing raises, and OSError where the repository cannot
        be written."""
        queue: asyncio.Queue[_Item | Exception | None] = asyncio.Queue(BACKUP_STRIPES_AHEAD)
        tasks: set[asyncio.Task[Any]] = set()
        reading = asyncio.create_task(self._read_all(blobs, queue, tasks))
        try:
            while item := await queue.get():
                if isinstance(item, Exception):
                    raise item
                await self._take(item)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tuple(tasks), return_exceptions=True)

    async def _read_all(
        self, blobs: AsyncIterator[BlobRef], queue: asyncio.Queue[_Item | Exception | None], tasks: set[asyncio.Task[Any]]
    ) -> None:
        def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(ended)
            return task

        def ended(task: asyncio.Task[Any]) -> None:
            tasks.discard(task)
            if not task.cancelled():
                task.exception()  # a stripe that nobody waits for any more says the same as the one before

        try:
            async for blob in blobs:
                source = Source(blob, self._placement, self._buffers, self._native, self._codecs)
                opened = begin(source.open())
                await queue.put(_Item(blob, opened, None))
                for number in range(blob.geometry.stripes):
                    await queue.put(_Item(blob, opened, begin(self._read(source, opened, number))))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    async def _read(self, source: Source, opened: asyncio.Task[PackedBlob], number: int) -> Buffer:
        await asyncio.shield(opened)
        sealed = await source.stripe(number)
        await self.throttle.take(len(sealed))
        return sealed

    async def _take(self, item: _Item) -> None:
        """Write what comes next. Of a blob that failed, the rest is let go."""
        blob = item.blob
        try:
            if item.stripe is None:
                self._left = blob.geometry.stripes
                await self._blocking(self._writer.begin, await item.opened)
                return
            sealed = await item.stripe
            if not self._left:
                return
            await self._blocking(self._writer.stripe, sealed)
        except (Unreadable, Unavailable) as error:
            if self._left:
                log.error("blob %s cannot be read: %s", blob.blob_id.hex(), error)
                await self._blocking(self._writer.abandon)
                self.unread.append(blob)
                self._moved(blob.size)
                self._left = 0
            return
        self._left -= 1
        if not self._left:
            await self._blocking(self._writer.end)
            self.copied += 1
            self.copied_bytes += blob.size
            self._moved(blob.size)
