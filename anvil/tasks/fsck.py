"""The check of everything against everything: what rows name, what drives hold, what is owed.

Owns: the verdict. Invariants: it changes nothing unless it is asked to repair, and then only what the survey may do as well (orphans go,
what is missing or damaged becomes a debt, superfluous copies go, misplaced ones are moved); what cannot be seen is not called good: with a
drive away nothing is clean. It may run beside everything else: what was written or deleted meanwhile is looked at again before it counts.
Not here: how the survey decides (`survey.py`), who asks (`node/checking.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import msgspec

from anvil.base.errors import AnvilError, BadRecord, DriveFailed, SlowDown
from anvil.base.limits import FSCK_BYTES_PER_S, FSCK_EXAMPLES, FSCK_OPENS_IN_FLIGHT, FSCK_PARTITIONS_AT_ONCE, OWNED_PAGE_ROWS
from anvil.engine.context import Buffers, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.layout import PARTITIONS, partition
from anvil.model.records import BlobId, BlobRef, OwnedMark, Owner, Ownership
from anvil.model.shard import ShardPlace
from anvil.tasks.inventory import Inventory, Met, held, looks, missing_on, owners
from anvil.tasks.several import side_by_side
from anvil.tasks.survey import Survey
from anvil.tasks.throttle import Throttle
from anvil.tasks.verify import shard_sound


class Trouble(msgspec.Struct, frozen=True):
    """One example. `kind`: the name of the count that it is part of."""

    kind: str
    blob: str
    bucket_id: int = 0
    key: str = ""
    detail: str = ""


class Report(msgspec.Struct):
    """Shards, unless it says otherwise. The first four and `garbage`, `outbox`, `unsettled` are no trouble: blobs still in their grace, and
    shards of writes that may yet be committed."""

    partitions: int = 0
    shards: int = 0
    blobs: int = 0  # owned ones that were met
    rows: int = 0  # that name a blob
    garbage: int = 0
    outbox: int = 0  # blobs
    unsettled: int = 0
    orphans: int = 0  # nobody owns them, and nobody ever will
    missing: int = 0  # can be rebuilt
    corrupt: int = 0
    lost: int = 0  # blobs with fewer than k good shards
    dangling: int = 0  # blobs that a row names and of which no drive holds anything
    unseen: int = 0  # may be on a drive that is away
    misplaced: int = 0  # on another drive than their own
    superfluous: int = 0  # second copies
    outside: int = 0  # only on a drive that no layout names: nobody expects them there
    debts: int = 0  # written down as to be repaired
    away: list[str] = msgspec.field(default_factory=list)  # drives that could not be looked at, or not wholly
    examples: list[Trouble] = msgspec.field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Everything acknowledged is there with all its shards, and nothing else but what is on its way out."""
        return not (
            self.orphans
            or self.missing
            or self.corrupt
            or self.lost
            or self.dangling
            or self.unseen
            or self.outside
            or self.debts
            or self.away
        )

    def met(self, kind: str, blob_id: BlobId, owner: Owner | None = None, detail: str = "", count: int = 1) -> None:
        """Count it, and name it if it is among the first of its kind."""
        setattr(self, kind, getattr(self, kind) + count)
        if sum(one.kind == kind for one in self.examples) < FSCK_EXAMPLES:
            bucket_id, key = (owner.bucket_id, owner.key) if owner is not None else (0, "")
            if owner is not None and owner.part_number:
                detail = f"part {owner.part_number} of upload {owner.version_id.hex()}" + (f", {detail}" if detail else "")
            self.examples.append(Trouble(kind, blob_id.hex(), bucket_id, key, detail))


async def _not_moved(number: int) -> None:
    return


class Fsck:
    """`move`: brings the misplaced shards of a partition home. `before`: awaited before what was met is repaired."""

    def __init__(
        self,
        metadata: Metadata,
        placement: Placement,
        buffers: Buffers,
        survey: Survey,
        before: Callable[[], Awaitable[None]],
        move: Callable[[int], Awaitable[object]] = _not_moved,
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._survey = survey
        self._before = before
        self._move = move
        self.throttle = Throttle(FSCK_BYTES_PER_S)

    async def run(self, report: Report, *, deep: bool = False, repair: bool = False) -> None:
        """Fill `report` as it goes. Raises DatabaseUnavailable."""
        away = set(self._unreadable())
        for first in range(0, PARTITIONS, FSCK_PARTITIONS_AT_ONCE):
            known = await held(self._placement.drives.values())
            numbers = range(first, first + FSCK_PARTITIONS_AT_ONCE)
            async for batch, found in looks(self._placement, numbers, known):
                away.update(drive.label for drive in found.failed)
                before = report.misplaced
                await self._met(found, report, deep=deep, repair=repair)
                report.partitions += len(batch)
                if repair and found.blobs:
                    await self._before()
                    await self._survey.partitions(batch, deep=False)
                    if report.misplaced > before:
                        for number in sorted({partition(blob_id) for blob_id in found.blobs}):
                            await self._move(number)
        await self._rows(report)
        report.debts = sum(await self._metadata.unhealthy())
        report.outbox = await self._metadata.garbage_waiting()
        report.away = sorted(away.union(self._unreadable()))

    def _unreadable(self) -> list[str]:
        """The drives of a layout that cannot be asked."""
        labels = []
        for layout in self._placement.layouts:
            for named in layout.drives:
                drive = self._placement.drives.get(named.drive_id)
                if drive is None or not drive.readable:
                    labels.append(named.drive_id.hex() if drive is None else drive.label)
        return labels

    # -- what drives hold ------------------------------------------------------------------------------------------------------

    async def _met(self, found: Inventory, report: Report, *, deep: bool, repair: bool) -> None:
        report.shards += found.shards
        for blob_id, met in found.nameless:
            for drive, index in met.rotten:
                report.met("corrupt", blob_id, None, f"shard {index} on {drive.label}: its header cannot be read")
        if not found.named:
            return
        living = await self._metadata.live_sessions()  # first: whoever is gone now cannot have committed later
        async for batch in owners(self._metadata, found.named):
            for met, ownership in batch:
                if ownership is Ownership.OWNED:
                    await self._blob(met, found, report, deep=deep, repair=repair)
                elif ownership is Ownership.GARBAGE:
                    report.garbage += len(met.places)
                elif met.header.session in living:
                    report.unsettled += len(met.places)
                else:
                    on = ", ".join(sorted({drive.label for drive, _ in met.places}))
                    report.met("orphans", met.header.blob.blob_id, met.header.owner, f"on {on}", len(met.places))

    async def _blob(self, met: Met, found: Inventory, report: Report, *, deep: bool, repair: bool) -> None:
        blob, owner = met.header.blob, met.header.owner
        report.blobs += 1
        good, bad, missing, unseen = 0, 0, [], 0
        for index, nominal in enumerate(self._placement.belongs(blob.blob_id, blob.scheme.width)):
            copies = met.by_preference(self._placement, nominal, index)
            sound = [copy for copy in copies if not deep or await self._sound(copy)]
            spoiled = [drive for drive, _ in copies if all(drive is not other for other, _ in sound)]
            spoiled += [drive for drive, number in met.rotten if number == index]
            for drive in spoiled:
                report.met("corrupt", blob.blob_id, owner, f"shard {index} on {drive.label}")
            if sound:
                good += 1
                report.superfluous += len(sound) - 1
                report.misplaced += nominal in found.asked and sound[0][0] is not nominal
                if not any(self._placement.named(drive) for drive, _ in sound):
                    report.met("outside", blob.blob_id, owner, f"shard {index} only on {sound[0][0].label}")
            if spoiled and (not sound or nominal in spoiled):
                bad |= 1 << index
            elif not sound and await missing_on(self._placement, found, blob.blob_id, index) is not None:
                missing.append(index)
            elif not sound:
                unseen += 1
        await self._verdict(met, good, missing, unseen, report)
        if repair and bad:
            await self._metadata.add_debt([(owner, blob.blob_id, bad)], corrupt=True)

    async def _verdict(self, met: Met, good: int, missing: list[int], unseen: int, report: Report) -> None:
        """What the shards that were not met mean; that the object was deleted or replaced meanwhile means nothing."""
        blob, owner = met.header.blob, met.header.owner
        if good == blob.scheme.width or not await self._owned(owner, blob):
            return
        indexes = ", ".join(map(str, missing))
        if good + unseen < blob.scheme.k and self._unreadable():
            unseen = blob.scheme.width - good  # any drive may have any of them
        elif good + unseen < blob.scheme.k:
            report.met("lost", blob.blob_id, owner, f"{good} good shards of the {blob.scheme.k} it takes")
        elif missing:
            report.met("missing", blob.blob_id, owner, f"shard {indexes}", len(missing))
        if unseen:
            report.met("unseen", blob.blob_id, owner, "", unseen)

    async def _sound(self, copy: tuple[Drive, ShardPlace]) -> bool:
        """Whether it is what was written, or cannot be judged: a drive that fails shows as away, or in its metrics."""
        await self.throttle.take(copy[1].header.blob.geometry.shard_bytes)
        try:
            return await shard_sound(self._buffers, *copy)
        except (DriveFailed, SlowDown):
            return True

    async def _owned(self, owner: Owner, blob: BlobRef) -> bool:
        [ownership] = await self._metadata.ownership([(owner, blob.blob_id)])
        return ownership is Ownership.OWNED

    # -- what rows name --------------------------------------------------------------------------------------------------------

    async def _rows(self, report: Report) -> None:
        """Every blob that a row names must have something on some drive."""
        after: OwnedMark | None = OwnedMark()
        while after is not None:
            page = await self._metadata.owned_blobs(after, OWNED_PAGE_ROWS)
            todo = iter(page.blobs)
            await side_by_side(FSCK_OPENS_IN_FLIGHT, partial(self._some_rows, todo, report))
            report.rows += len(page.blobs)
            after = page.next_after

    async def _some_rows(self, todo: Iterator[tuple[Owner, BlobRef]], report: Report) -> None:
        for owner, blob in todo:
            await self._row(owner, blob, report)

    async def _row(self, owner: Owner, blob: BlobRef, report: Report) -> None:
        away = bool(self._unreadable())
        for index, nominal in enumerate(self._placement.belongs(blob.blob_id, blob.scheme.width)):
            held = await _holds(nominal, blob.blob_id, index)
            if held:
                return
            away |= held is None
        for index in range(blob.scheme.width):
            for drive in self._placement.elsewhere(blob.blob_id, index):
                held = await _holds(drive, blob.blob_id, index)
                if held:
                    return
                away |= held is None
        if await self._owned(owner, blob):
            report.met("unseen" if away else "dangling", blob.blob_id, owner)


async def _holds(drive: Drive | None, blob_id: BlobId, index: int) -> bool | None:
    """None where that cannot be learned."""
    if drive is None or not drive.readable:
        return None
    try:
        return await drive.open(blob_id, index) is not None
    except BadRecord:
        return True
    except AnvilError:
        return None
