"""Repair: rebuild the shards a blob is missing, from ciphertext, without any key.

Owns: the decision whether a shard in debt is really bad, where its successor goes, and the proof that it is there. Invariant: nothing is
rebuilt for a blob that no row owns (deleted data never comes back); a debt is paid only when the shard in question has been read back
as good or has been durably written; a damaged shard is removed only when its successor is ready to be published. Not here: finding
damage (`engine/blobs_read.py`, `scrub`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import StrEnum
from itertools import chain

from anvil._ec.stripe import NotEnoughUnits, RebuildJob
from anvil.base.errors import AnvilError, BadRecord, DriveFailed, DriveStalled, StorageFull, Unavailable
from anvil.base.limits import REPAIR_BATCH, REPAIR_BLOBS_IN_FLIGHT, REPAIR_RETRY_S, SEGMENT_SHARD_BYTES_MAX
from anvil.engine.context import Buffers, Codecs, Executor, Placement
from anvil.engine.ports import Drive, LargeShard, Metadata
from anvil.model.records import BlobId, BlobRef, Debt, Owner, Ownership
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace
from anvil.tasks.several import side_by_side
from anvil.tasks.verify import frame_sound, shard_sound

log = logging.getLogger("anvil.repair")
Places = dict[int, tuple[Drive, ShardPlace]]
"""Where shards are, by index."""


class Result(StrEnum):
    REPAIRED = "repaired"  # shards were rebuilt
    HEALTHY = "healthy"  # they were in place after all (a straggler, a drive that came back)
    GONE = "gone"  # the object was deleted meanwhile
    WAITING = "waiting"  # too few drives to put or read shards now
    FULL = "full"  # a drive that is to have one has no room
    LOST = "lost"  # fewer than k good shards exist


class Repairer:
    def __init__(
        self,
        metadata: Metadata,
        placement: Placement,
        native: Executor,
        buffers: Buffers,
        codecs: Codecs,
        retry_s: float = REPAIR_RETRY_S,
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._native = native
        self._buffers = buffers
        self._codecs = codecs
        self._retry_s = retry_s

    async def run(self, number: int | None = None, slices: int = 1) -> list[Result]:
        """One batch of debts (of one of `slices` pieces), oldest first, REPAIR_BLOBS_IN_FLIGHT at a time. Those that cannot be paid now are
        put off."""
        debts = iter(await self._metadata.debts(REPAIR_BATCH, number, slices))
        results: list[Result] = []
        unpaid: list[BlobId] = []

        async def work() -> None:
            for debt in debts:
                result = await self.repair(debt)
                results.append(result)
                if result in (Result.WAITING, Result.FULL, Result.LOST):
                    unpaid.append(debt.blob.blob_id)

        await side_by_side(REPAIR_BLOBS_IN_FLIGHT, work)
        if unpaid:
            await self._metadata.debts_deferred(unpaid, self._retry_s)
        return results

    async def repair(self, debt: Debt) -> Result:
        """Bring one blob back to all its shards, as far as that is possible now."""
        blob, width = debt.blob, debt.blob.scheme.width
        [ownership] = await self._metadata.ownership([(debt.owner, blob.blob_id)])
        if ownership is not Ownership.OWNED:
            await self._metadata.debt_paid(blob.blob_id, debt.missing)
            return Result.GONE
        found, unsure = await self._locate(blob)
        suspects = [index for index in range(width) if debt.missing >> index & 1]
        sound: dict[int, bool | None] = {index: None if index in unsure else False for index in suspects}
        for index in found.keys() & sound.keys():
            sound[index] = await self._sound(found[index])
        bad = [index for index, verdict in sound.items() if verdict is False]
        healed = sum(1 << index for index, verdict in sound.items() if verdict)
        if healed:
            await self._metadata.debt_paid(blob.blob_id, healed)
        if not bad:
            return Result.WAITING if None in sound.values() else Result.HEALTHY
        good = {index: entry for index, entry in found.items() if index not in bad}
        if len(good) < blob.scheme.k:
            return Result.WAITING if unsure or self.away(blob) else self._lost(blob)
        targets = self._targets(blob, bad, good)
        if not targets:
            return Result.WAITING
        result = await self.rebuild(debt.owner, blob, targets, good, found)
        if result is Result.REPAIRED:
            await self._metadata.debt_paid(blob.blob_id, sum(1 << index for index in targets))
        return result

    async def rebuild(self, owner: Owner, blob: BlobRef, targets: dict[int, Drive], good: Places, found: Places) -> Result:
        """Write these shards anew, each to its target, from k of the `good` ones; one that `found` has is removed as soon as its successor
        is ready. Whoever calls this has asked whether the owner still names the blob. REPAIRED when all are durable,
        or WAITING, or FULL."""
        try:
            await self._rebuild(blob, targets, good, found)
        except NotEnoughUnits:
            # One of the shards believed to be good is not: have every one of them looked at next time.
            await self._metadata.add_debt([(owner, blob.blob_id, (1 << blob.scheme.width) - 1)])
            return Result.WAITING
        except StorageFull as error:
            log.warning("blob %s not repaired yet: %s", blob.blob_id.hex(), error)
            return Result.FULL
        except (Unavailable, BadRecord) as error:
            log.warning("blob %s not repaired yet: %s", blob.blob_id.hex(), error)
            return Result.WAITING
        return Result.REPAIRED

    def away(self, blob: BlobRef) -> bool:
        """Whether a drive that may hold some of it cannot be asked, and may return. One that the region knows no more (it was replaced, or
        its node was removed) is not waited for."""
        homes = [self._placement.homes(blob.blob_id, index) for index in range(blob.scheme.width)]
        drives = [*chain(*homes), *self._placement.order(blob.blob_id)]
        return any(drive is not None and not drive.readable for drive in drives)

    def _lost(self, blob: BlobRef) -> Result:
        log.error("blob %s has fewer than %d good shards: its object cannot be read", blob.blob_id.hex(), blob.scheme.k)
        return Result.LOST

    async def _locate(self, blob: BlobRef) -> tuple[Places, set[int]]:
        """Where shards are, and the indexes that a drive of another node may have, which did not answer just now."""
        found: Places = {}
        unsure: set[int] = set()
        for index, nominal in enumerate(self._placement.belongs(blob.blob_id, blob.scheme.width)):
            for drive in [nominal, *self._placement.elsewhere(blob.blob_id, index)]:
                if drive is None or not drive.readable:
                    continue
                try:
                    place = await drive.open(blob.blob_id, index)
                except BadRecord:
                    continue
                except Unavailable:
                    if not drive.local:
                        unsure.add(index)
                    continue
                if place is not None:
                    found[index] = (drive, place)
                    break
        return found, unsure - found.keys()

    async def _sound(self, entry: tuple[Drive, ShardPlace]) -> bool | None:
        """None where that cannot be learned now. A drive of another node that fails may be out of reach; if it answers in between and then
        fails once more, it is the shard."""
        drive, place = entry
        try:
            return await shard_sound(self._buffers, drive, place)
        except DriveStalled:
            return None
        except DriveFailed:
            if drive.local:
                return False
        try:
            if await drive.open(place.header.blob.blob_id, place.header.index) is None:
                return False
            return await shard_sound(self._buffers, drive, place)
        except DriveStalled:
            return None
        except (DriveFailed, BadRecord):
            return None if not drive.readable else False

    def _targets(self, blob: BlobRef, bad: Iterable[int], good: Places) -> dict[int, Drive]:
        """A writable drive for each bad index, as many as there are: its own place, else one of the layout that holds no other shard of the
        blob, if possible on a node that holds none. Not on one that leaves: a debt that is paid there would be forgotten with it."""
        order = self._placement.order(blob.blob_id)
        belongs = self._placement.belongs(blob.blob_id, blob.scheme.width)
        taken = {drive.drive_id for drive, _ in good.values()}
        nodes = {self._placement.node(drive) for drive, _ in good.values()}
        others = [drive for drive in self._placement.drives.values() if drive not in order and self._placement.current(drive)]
        others.sort(key=lambda drive: self._placement.node(drive) in nodes)
        targets: dict[int, Drive] = {}
        for index in bad:
            nominal = belongs[index]
            shared = nominal if index >= len(order) else None  # of a blob that is wider than its row
            # Last, the places of other indexes: after a change of layout they may stand empty while this one's holds another index.
            for drive in [nominal, *order[blob.scheme.width :], *others, *order[: blob.scheme.width]]:
                if drive is not None and drive.writable and (drive.drive_id not in taken or drive is shared):
                    targets[index] = drive
                    taken.add(drive.drive_id)
                    break
        return targets

    async def _rebuild(
        self,
        blob: BlobRef,
        targets: dict[int, Drive],
        good: Places,
        found: Places,
    ) -> None:
        source_drive, source = next(iter(good.values()))
        footer = await source_drive.verify(source)
        headers = {index: _header_for(source.header, index) for index in targets}
        if blob.geometry.stripes == 1 and blob.geometry.shard_bytes <= SEGMENT_SHARD_BYTES_MAX:
            out = await self._stripe(blob, 0, good, list(targets))
            for number, (index, drive) in enumerate(targets.items()):
                await _remove_old(found.get(index), index, drive)
                frame_len = blob.geometry.frame_len(0)
                await drive.put(headers[index], out[number * frame_len : (number + 1) * frame_len], footer)
            return
        shards: dict[int, LargeShard] = {}
        try:
            for index, drive in targets.items():
                shards[index] = await drive.create(headers[index])
            for stripe in range(blob.geometry.stripes):
                out = await self._stripe(blob, stripe, good, list(targets))
                frame_len = blob.geometry.frame_len(stripe)
                for number, index in enumerate(targets):
                    await shards[index].write(out[number * frame_len : (number + 1) * frame_len])
            await self._publish(shards, targets, found, footer)
        except BaseException:
            for shard in shards.values():
                await shard.abort()
            raise

    async def _publish(
        self,
        shards: dict[int, LargeShard],
        targets: dict[int, Drive],
        found: Places,
        footer: ShardFooter,
    ) -> None:
        for index in list(shards):
            await _remove_old(found.get(index), index, targets[index])
            await shards[index].publish(footer)
            del shards[index]

    async def _stripe(self, blob: BlobRef, stripe: int, good: Places, missing: list[int]) -> memoryview:
        """The rebuilt frames of one stripe, one after the other in the order of `missing`."""
        geometry, k = blob.geometry, blob.scheme.k
        frame_len = geometry.frame_len(stripe)
        sources = sorted(good, key=lambda index: (not good[index][0].local, index))
        room = memoryview(await self._buffers.acquire(frame_len * (len(missing) + k)))
        out = room[: frame_len * len(missing)]
        frames: list[memoryview | None] = [None] * blob.scheme.width
        slot = len(missing)
        for index in sources:
            view = room[slot * frame_len : (slot + 1) * frame_len]
            drive, place = good[index]
            try:
                if await drive.read(place, geometry.frame_offset(stripe), view) != frame_len:
                    continue
            except DriveStalled:
                raise  # it may yet write into `view`: the next shard must not be read into it
            except DriveFailed:
                continue
            if not frame_sound(blob.blob_id, index, stripe, view):
                continue
            frames[index] = view
            slot += 1
            if slot == len(missing) + k:
                break
        job = RebuildJob(self._codecs(blob.scheme), blob.blob_id, stripe, geometry.unit_len(stripe), frames, missing, out)
        await self._native.run(job)
        return out


def _header_for(source: ShardHeader, index: int) -> ShardHeader:
    return ShardHeader(
        blob=source.blob,
        index=index,
        bucket_id=source.bucket_id,
        key=source.key,
        version_id=source.version_id,
        session=source.session,
        part_number=source.part_number,
    )


async def _remove_old(entry: tuple[Drive, ShardPlace] | None, index: int, target: Drive) -> None:
    """Make room for the successor. Raises what the drive raises where the damaged one would stand in the successor's way; elsewhere it is
    only a spare copy too many."""
    if entry is None:
        return
    drive, place = entry
    try:
        await drive.remove(place.header.blob.blob_id, index, superseded=True)
    except AnvilError as error:
        if drive is target:
            raise
        log.warning("damaged shard %d stays on %s: %s", index, drive.label, error)
