"""Rebalancing: every shard of every owned blob onto its own drive of the current layout.

Owns: what is to be moved, the copying, and the count of what is left. Invariants: nothing is ever removed where it came from, so readers
and writers by an older layout are not disturbed, and a mover may stop or be doubled at any point: what was done is met by the next look,
and two who copy the same shard write the same bytes (`Drive.put` replaces, `publish` keeps the first). Every frame passes its checksum on
the way; the ciphertext, header and footer are those of the source. Nothing is done for a blob that its owner does not name. A mover that
is cut off calls nothing done: a drive of the partition that it cannot ask must be away itself, not only out of its reach.

A blob that is deleted while it is being copied: after each batch the owners of all that was copied are asked for once more, and what this
mover wrote of blobs that lost theirs is removed again (a blob that lost its owner never gets one again). If removals are held, or the
mover dies before that, either the outbox still has the blob, and the collector removes the copy with the others, or it has not, and the
copy is an orphan: it names its writer's session, as its source did, and the survey removes it when that is gone. Not here: when (`node`),
superfluous copies (`survey`), what was written short of shards (`repair`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from anvil.base.errors import AnvilError, BadRecord, DriveFailed, StorageFull, Unavailable
from anvil.base.limits import MOVE_BLOBS_IN_FLIGHT, MOVE_BYTES_PER_S, SEGMENT_SHARD_BYTES_MAX
from anvil.engine.context import Buffers, Events, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.layout import slice_partitions
from anvil.model.records import BlobRef, Ownership
from anvil.model.shard import ShardPlace
from anvil.tasks.inventory import Away, Held, Inventory, Met, came, held, looks, nobody_waits, owners
from anvil.tasks.repair import Places, Repairer, Result
from anvil.tasks.several import side_by_side
from anvil.tasks.throttle import Throttle
from anvil.tasks.verify import frame_sound, shard_sound

log = logging.getLogger("anvil.rebalance")
T = TypeVar("T")


class Moved(msgspec.Struct):
    """Shards that were copied and `rebuilt` (with the `bytes` of both). What is left: `waiting`, for a drive that failed or is not to be
    reached from here; `away`, whose own drive is down or full, so that they stay where they are: a move that waited for room would never
    end, since only its end gives any; `lost`, of blobs with too few good shards anywhere."""

    shards: int = 0
    bytes: int = 0
    rebuilt: int = 0
    waiting: int = 0
    away: int = 0
    lost: int = 0

    def add(self, other: Moved) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _Spoiled(Exception):
    """The source is not what was written."""


class _Unreachable(Exception):
    """The source's drive is the trouble."""


class Rebalancer:
    """`hold`: whether nothing may be unlinked now. `throttle`: shared by all that move in this process. `away`: whether a drive that is not
    readable is so for all of the region."""

    def __init__(
        self,
        metadata: Metadata,
        placement: Placement,
        buffers: Buffers,
        repairer: Repairer,
        events: Events,
        hold: Callable[[], bool],
        throttle: Throttle | None = None,
        away: Away = nobody_waits,
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._away = away
        self._repairer = repairer
        self._events = events
        self._hold = hold
        self.throttle = throttle or Throttle(MOVE_BYTES_PER_S)

    async def slice(self, number: int) -> Moved:
        """All partitions of one slice of the layout. Raises DatabaseUnavailable."""
        known = await held(self._placement.drives.values())
        return await self._partitions([*slice_partitions(number)], known)

    async def partition(self, number: int) -> Moved:
        """One partition. Nothing is `waiting` afterwards: every owned blob that was met has every shard on its own drive, as far as that is
        up and has room. Raises DatabaseUnavailable."""
        return await self._partitions([number])

    async def _partitions(self, numbers: Sequence[int], known: Held | None = None) -> Moved:
        moved = Moved()
        async for batch, found in looks(self._placement, numbers, known):
            moved.add(await self._home(batch, found))
        return moved

    async def _home(self, numbers: Sequence[int], found: Inventory) -> Moved:
        """Bring home what was met of some partitions."""
        moved = Moved(waiting=len(found.failed))
        listed = set[Drive]().union(*map(self._placement.listed, numbers))
        moved.waiting += sum(not drive.readable and not self._away(drive) for drive in listed)
        lacking = [met for met in found.named if self._lacks(met, found)]
        async for batch in owners(self._metadata, lacking):
            owned = [met for met, ownership in batch if ownership is Ownership.OWNED]
            await self._move_all(owned, found, moved)
        return moved

    def _lacks(self, met: Met, found: Inventory) -> list[int]:
        """The indexes that are not on their own drives, or so that their header cannot be read: then a good one takes their place."""
        blob = met.header.blob
        belongs = self._placement.belongs(blob.blob_id, blob.scheme.width)
        return [index for index, nominal in enumerate(belongs) if nominal is None or not met.on(nominal, index)]

    async def _move_all(self, owned: list[Met], found: Inventory, moved: Moved) -> None:
        written: list[tuple[Met, Drive, int]] = []
        todo = iter(owned)

        async def work() -> None:
            for met in todo:
                await self._move(met, found, moved, written)

        try:
            await side_by_side(MOVE_BLOBS_IN_FLIGHT, work)
        finally:
            await self._take_back(written)

    async def _take_back(self, written: list[tuple[Met, Drive, int]]) -> None:
        """Remove what was written for blobs that lost their owner meanwhile."""
        blobs = {met.header.blob.blob_id: met for met, _, _ in written}
        gone = set()
        async for batch in owners(self._metadata, list(blobs.values())):
            gone |= {met.header.blob.blob_id for met, ownership in batch if ownership is not Ownership.OWNED}
        for met, drive, index in written:
            blob_id = met.header.blob.blob_id
            if blob_id not in gone or self._hold():
                continue
            try:
                await drive.remove(blob_id, index)
            except AnvilError as error:
                log.warning("a copy of a deleted blob stays on %s: %s", drive.label, error)

    async def _move(self, met: Met, found: Inventory, moved: Moved, written: list[tuple[Met, Drive, int]]) -> None:
        """One blob: copy what is somewhere, rebuild what is nowhere."""
        blob = met.header.blob
        belongs = self._placement.belongs(blob.blob_id, blob.scheme.width)
        rebuild: dict[int, Drive] = {}
        for index in self._lacks(met, found):
            nominal = belongs[index]
            if nominal is None or not nominal.readable:
                moved.away += 1
            elif nominal not in found.asked:
                moved.waiting += 1
            elif (nominal, index) not in met.rotten and await came(nominal, blob.blob_id, index):
                continue
            elif (copied := await self._copy(met, index, nominal)) is None:
                rebuild[index] = nominal
            elif copied is Result.REPAIRED:
                moved.shards += 1
                moved.bytes += blob.geometry.shard_bytes
                written.append((met, nominal, index))
            elif copied is Result.FULL:
                moved.away += 1  # it stays where it is, for the survey
            else:
                moved.waiting += 1
        if rebuild:
            await self._rebuild(met, rebuild, moved, written)

    async def _copy(self, met: Met, index: int, target: Drive) -> Result | None:
        """REPAIRED when it is on the target now, or WAITING, or FULL. None where there is no good copy to be had."""
        for drive, place in sorted(met.copies.get(index, ()), key=lambda copy: not copy[0].local):
            try:
                await self._copy_from(drive, place, target)
                return Result.REPAIRED
            except _Unreachable:
                continue
            except _Spoiled:
                self._events.damage("corrupt", drive.label, place.header.blob.blob_id, index)
            except Unavailable as error:
                log.warning("shard %d of blob %s waits: %s", index, met.header.blob.blob_id.hex(), error)
                return Result.FULL if isinstance(error, StorageFull) else Result.WAITING
        return None

    async def _copy_from(self, drive: Drive, place: ShardPlace, target: Drive) -> None:
        """Raises _Spoiled, _Unreachable, and what the target raises."""
        header, geometry = place.header, place.header.blob.geometry
        footer = await _source(drive.verify(place))
        buffer = memoryview(await self._buffers.acquire(geometry.frame_len(0)))
        if geometry.stripes == 1 and geometry.shard_bytes <= SEGMENT_SHARD_BYTES_MAX:
            await self._read(drive, place, 0, buffer)
            await target.put(header, buffer, footer)
            return
        shard = await target.create(header)
        try:
            for stripe in range(geometry.stripes):
                frame = buffer[: geometry.frame_len(stripe)]
                await self._read(drive, place, stripe, frame)
                await shard.write(frame)
            await shard.publish(footer)
        except BaseException:
            await shard.abort()
            raise

    async def _read(self, drive: Drive, place: ShardPlace, stripe: int, frame: memoryview) -> None:
        blob = place.header.blob
        await self.throttle.take(len(frame))
        if await _source(drive.read(place, blob.geometry.frame_offset(stripe), frame)) != len(frame):
            raise _Spoiled
        if not frame_sound(blob.blob_id, place.header.index, stripe, frame):
            raise _Spoiled

    async def _rebuild(self, met: Met, targets: dict[int, Drive], moved: Moved, written: list[tuple[Met, Drive, int]]) -> None:
        header = met.header
        blob, k = header.blob, header.blob.scheme.k
        good: Places = {index: copies[0] for index, copies in met.copies.items() if copies and index not in targets}
        result = Result.WAITING
        if len(good) >= k:
            await self.throttle.take((k + len(targets)) * blob.geometry.shard_bytes)
            result = await self._repairer.rebuild(header.owner, blob, targets, good, {})
        if result is Result.FULL:
            for index, drive in targets.items():
                if len(targets) == 1:
                    await self._owe(met, index, moved)
                else:  # the others have room
                    await self._rebuild(met, {index: drive}, moved, written)
        elif result is Result.REPAIRED:
            moved.rebuilt += len(targets)
            moved.bytes += len(targets) * blob.geometry.shard_bytes
            written.extend((met, drive, index) for index, drive in targets.items())
        elif await self._lost(blob, good):
            log.error("blob %s has fewer than %d good shards: its object cannot be read", blob.blob_id.hex(), k)
            moved.lost += len(targets)
        else:
            moved.waiting += len(targets)

    async def _owe(self, met: Met, index: int, moved: Moved) -> None:
        """Nobody has it and its own drive is full: it counts as missing, until the repair finds room for it."""
        await self._metadata.add_debt([(met.header.owner, met.header.blob.blob_id, 1 << index)])
        moved.away += 1

    async def _lost(self, blob: BlobRef, good: Places) -> bool:
        """Whether there are fewer than k good shards on all drives there are."""
        if self._repairer.away(blob):
            return False
        try:
            sound = [await shard_sound(self._buffers, *place) for place in good.values()]
        except AnvilError:
            return False
        return sum(sound) < blob.scheme.k


async def _source(work: Awaitable[T]) -> T:
    """So that trouble with the source can be told from trouble with the target."""
    try:
        return await work
    except BadRecord as error:
        raise _Spoiled from error
    except (DriveFailed, Unavailable) as error:
        raise _Unreachable from error
