"""Refilling: blobs that rows name and the drives lack, from the packs of a backup back to where they belong.

Owns: coding a sealed stripe again by the scheme that its blob records, and which drive gets what. Invariants: what is written is, byte for
byte, what the drives held when the backup was made (header, footer, ciphertext, code); a shard that is on its drive is left alone, so this
may be repeated and stopped anywhere, unless it was read and is damaged: that one goes when its successor is ready; what finds no drive now
is a debt where k shards are there, else it is counted as waiting. Not here: which blobs, reading packs (`node/refilling.py`,
`backup/packs.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from anvil._ec.stripe import RebuildJob, frame_checksum
from anvil.backup.format import PackedBlob
from anvil.base.errors import BadRecord, Unavailable
from anvil.base.limits import BACKUP_BYTES_PER_S, SEGMENT_SHARD_BYTES_MAX
from anvil.engine.context import Buffers, Codecs, Executor, Placement
from anvil.engine.ports import Drive, LargeShard, Metadata
from anvil.model.records import BlobRef
from anvil.model.scheme import CHECKSUM_BYTES
from anvil.tasks.throttle import Throttle
from anvil.tasks.verify import shard_sound

log = logging.getLogger("anvil.refill")
Lacking = dict[int, list[Drive]]
"""Indexes of shards to be written, with the drives that have it damaged."""


class Refilled(msgspec.Struct):
    """Blobs, but for `shards`. `present`: all of their shards were there; `written`: some were written; `owing`: of those, some shards
    still lack a drive; `waiting`: too few drives take a shard now; `absent`: in no pack, or in none that can be read, and not on the
    drives."""

    blobs: int = 0
    bytes: int = 0
    present: int = 0
    written: int = 0
    shards: int = 0
    owing: int = 0
    waiting: int = 0
    absent: int = 0


class Packed(Protocol):
    """`backup.packs.Entry`."""

    packed: PackedBlob

    def stripe(self, number: int) -> memoryview: ...


class Refill:
    """`blocking`: runs a function on a thread."""

    def __init__(
        self,
        metadata: Metadata,
        placement: Placement,
        buffers: Buffers,
        native: Executor,
        codecs: Codecs,
        blocking: Callable[..., Awaitable[memoryview]],
        throttle: Throttle | None = None,
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._native = native
        self._codecs = codecs
        self._blocking = blocking
        self.throttle = throttle or Throttle(BACKUP_BYTES_PER_S)

    async def lacking(self, blob: BlobRef, read: bool = False) -> Lacking:
        """The indexes that are not on their own drives, nor, where those have any of the blob at all, on another of the partition, with the
        drives that have a damaged one. `read`: what is there counts only once all of it was read. Raises Unavailable where a drive that
        should know does not answer, SlowDown."""
        order = self._placement.order(blob.blob_id)
        width = blob.scheme.width
        found = await asyncio.gather(*(self._lacks(blob, index, order[index : index + 1], read) for index in range(width)))
        missing = {index: damaged for index, damaged in enumerate(found) if damaged is not None}
        if len(missing) in (0, width) and not any(missing.values()):
            return missing  # all or nothing: the usual case, in one round
        near = self._placement.near
        again = {index: await self._lacks(blob, index, near(blob.blob_id, index), read) for index in missing}
        return {index: list({*missing[index], *damaged}) for index, damaged in again.items() if damaged is not None}

    async def _lacks(self, blob: BlobRef, index: int, drives: Sequence[Drive | None], read: bool) -> list[Drive] | None:
        """None where one of them has it, else those that have it damaged."""
        damaged = []
        for drive in drives:
            if drive is None or not drive.readable:
                continue
            try:
                place = await drive.open(blob.blob_id, index)
                if place is not None and (not read or await shard_sound(self._buffers, drive, place)):
                    return None
            except BadRecord:
                continue  # its successor takes its place
            if place is not None:
                damaged.append(drive)
        return damaged

    async def refill(self, blob: BlobRef, entry: Packed, lacking: Lacking, refilled: Refilled) -> None:
        """Write these shards of a blob, each to its own drive, else to one that holds none of it. Raises BadRecord where the pack is
        damaged, Unavailable, SlowDown."""
        if entry.packed.blob != blob:
            raise BadRecord(f"the pack has another blob {blob.blob_id.hex()} than the row names")
        targets = self._targets(blob, lacking)
        if len(targets) < blob.scheme.k - (blob.scheme.width - len(lacking)):
            refilled.waiting += 1
            return
        await self._write(blob, entry, targets, lacking)
        refilled.written += 1
        refilled.shards += len(targets)
        if owed := lacking.keys() - targets.keys():
            refilled.owing += 1
            packed = entry.packed
            await self._metadata.add_debt([(packed.header(0).owner, blob.blob_id, sum(1 << index for index in owed))])

    def _targets(self, blob: BlobRef, lacking: Lacking) -> dict[int, Drive]:
        order = self._placement.order(blob.blob_id)
        taken = {order[index] for index in range(blob.scheme.width) if index < len(order) and index not in lacking}
        targets: dict[int, Drive] = {}
        for index in sorted(lacking):
            for drive in [*order[index : index + 1], *order[blob.scheme.width :]]:
                if drive is not None and drive.writable and drive not in taken:
                    targets[index] = drive
                    taken.add(drive)
                    break
        return targets

    async def _write(self, blob: BlobRef, entry: Packed, targets: dict[int, Drive], lacking: Lacking) -> None:
        packed, geometry = entry.packed, blob.geometry
        if geometry.stripes == 1 and geometry.shard_bytes <= SEGMENT_SHARD_BYTES_MAX:
            frames = await self._frames(blob, entry, 0)
            for index, drive in targets.items():
                await _make_room(blob, index, lacking[index], drive)
            await _all(drive.put(packed.header(index), frames[index], packed.footer) for index, drive in targets.items())
            return
        shards: dict[int, LargeShard] = {}
        try:
            for index, drive in targets.items():
                shards[index] = await drive.create(packed.header(index))
            for stripe in range(geometry.stripes):
                frames = await self._frames(blob, entry, stripe)
                await _all(shard.write(frames[index]) for index, shard in shards.items())
            for index, shard in list(shards.items()):
                await _make_room(blob, index, lacking[index], targets[index])
                await shard.publish(packed.footer)
                del shards[index]
        except BaseException:
            for shard in shards.values():
                await shard.abort()
            raise

    async def _frames(self, blob: BlobRef, entry: Packed, stripe: int) -> list[memoryview]:
        """The frames of all shards of a stripe."""
        k, width, geometry = blob.scheme.k, blob.scheme.width, blob.geometry
        unit, frame_len = geometry.unit_len(stripe), geometry.frame_len(stripe)
        sealed = await self._blocking(entry.stripe, stripe)
        await self.throttle.take(len(sealed))
        room = memoryview(await self._buffers.acquire(frame_len * width))
        frames = [room[index * frame_len : (index + 1) * frame_len] for index in range(width)]
        for index in range(k):
            piece = sealed[index * unit : (index + 1) * unit]
            body = frames[index][CHECKSUM_BYTES:]
            body[: len(piece)] = piece
            body[len(piece) :] = bytes(unit - len(piece))
            frames[index][:CHECKSUM_BYTES] = frame_checksum(blob.blob_id, index, stripe, body).to_bytes(CHECKSUM_BYTES, "little")
        parity = list(range(k, width))
        if parity:
            given: list[memoryview | None] = [*frames[:k], *([None] * len(parity))]
            out = room[k * frame_len : width * frame_len]
            await self._native.run(RebuildJob(self._codecs(blob.scheme), blob.blob_id, stripe, unit, given, parity, out))
        return frames


async def _make_room(blob: BlobRef, index: int, damaged: list[Drive], target: Drive) -> None:
    """A record whose head and foot are sound would be kept, whatever is between. Raises Unavailable where it would stand in the way."""
    for drive in damaged:
        try:
            await drive.remove(blob.blob_id, index, superseded=True)
        except Unavailable as error:
            if drive is target:
                raise
            log.warning("damaged shard %d of blob %s stays on %s: %s", index, blob.blob_id.hex(), drive.label, error)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for every one, then raise what the first that failed raised: none may still be writing when the shards are given up."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
