"""The survey walks all partitions and compares what drives hold with what should be there: orphans go, missing or rotten shards become
debts; copies that a repair made superfluous go.

Owns: the questions put to each shard on the way: "does anybody own you?" (sweep), "are you still what was written?" (scrub), "is there
another of you?". Invariants: a shard is removed as an orphan only if its writer session was gone before the metadata was asked, and in
that later snapshot neither its owner's row nor the outbox names its blob; so a frozen or very slow writer never loses its shards, because
it cannot commit any more, and deleted data stays for its grace, for those who still read it. Of several copies of one index the one that
comes first (on its nominal drive, else on the drive with the lowest id) is never removed, and the others only after all of it was read
and found good: whoever else does the same keeps the same one. Not here: repair.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

import msgspec

from anvil.base.errors import AnvilError, BadRecord, DriveFailed
from anvil.base.limits import SURVEY_OWNERS_MAX
from anvil.engine.context import Buffers, Events, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import BlobId, Ownership
from anvil.model.shard import ShardHeader, ShardPlace
from anvil.tasks.verify import shard_sound

log = logging.getLogger("anvil.survey")


class _Met(msgspec.Struct):
    """What was met of one blob. `copies`: by index, those with a readable header; `rotten`: drives with one without, and its index."""

    copies: dict[int, list[tuple[Drive, ShardPlace]]] = msgspec.field(default_factory=dict)
    rotten: list[tuple[Drive, int]] = msgspec.field(default_factory=list)

    @property
    def header(self) -> ShardHeader:
        return next(iter(self.copies.values()))[0][1].header

    @property
    def places(self) -> list[tuple[Drive, int]]:
        """All of them."""
        return [(drive, index) for index, copies in self.copies.items() for drive, _ in copies] + self.rotten


class Findings(msgspec.Struct):
    """What was met. `orphans`, `superseded`: shards removed, because nobody owns them, because the same is there again."""

    shards: int = 0
    orphans: int = 0
    missing: int = 0
    corrupt: int = 0
    superseded: int = 0

    def add(self, other: Findings) -> None:
        self.shards += other.shards
        self.orphans += other.orphans
        self.missing += other.missing
        self.corrupt += other.corrupt
        self.superseded += other.superseded


class Survey:
    """`deep` reads and checks every byte; otherwise only presence and headers are looked at."""

    def __init__(
        self, metadata: Metadata, placement: Placement, buffers: Buffers, events: Events, hold: Callable[[], bool]
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._events = events
        self._hold = hold

    async def partition(self, number: int, *, deep: bool) -> Findings:
        """One partition. Raises DatabaseUnavailable (nothing was decided)."""
        findings = Findings()
        blobs: dict[BlobId, _Met] = defaultdict(_Met)
        asked: list[Drive] = []
        for drive in self._placement.drives.values():
            if not drive.readable:
                continue
            try:
                async for place in drive.scan(number):
                    findings.shards += 1
                    met, index = blobs[place.header.blob.blob_id], place.header.index
                    if place.damaged:
                        met.rotten.append((drive, index))  # of its header only this much is certain
                    else:
                        met.copies.setdefault(index, []).append((drive, place))
            except DriveFailed as error:
                log.warning("survey of %s: %s", drive.label, error)
                continue
            asked.append(drive)
        for blob_id, met in blobs.items():
            if not met.copies:
                # Nothing is left that says whose it is: readers of its object tell, and the operator must know.
                for drive, index in met.rotten:
                    self._events.damage("corrupt", drive.label, blob_id, index)
                    findings.corrupt += 1
        await self._judge([met for met in blobs.values() if met.copies], asked, findings, deep=deep)
        return findings

    async def _judge(self, blobs: list[_Met], asked: list[Drive], findings: Findings, *, deep: bool) -> None:
        if not blobs:
            return
        living = await self._metadata.live_sessions()  # first: whoever is gone now cannot have committed later
        for at in range(0, len(blobs), SURVEY_OWNERS_MAX):
            batch = blobs[at : at + SURVEY_OWNERS_MAX]
            answers = await self._metadata.ownership([(met.header.owner, met.header.blob.blob_id) for met in batch])
            for met, ownership in zip(batch, answers, strict=True):
                if ownership is Ownership.OWNED:
                    await self._check(met, asked, findings, deep=deep)
                elif ownership is Ownership.NOBODY and met.header.session not in living:
                    findings.orphans += await self._drop(met.header.blob.blob_id, met.places, "orphan")

    async def _drop(self, blob_id: BlobId, places: list[tuple[Drive, int]], what: str) -> int:
        dropped = 0
        for drive, index in places:
            if self._hold():
                break
            try:
                dropped += await drive.remove(blob_id, index)
            except AnvilError as error:
                log.warning("%s stays on %s: %s", what, drive.label, error)
        return dropped

    async def _check(self, met: _Met, asked: list[Drive], findings: Findings, *, deep: bool) -> None:
        blob = met.header.blob
        order = self._placement.order(blob.blob_id)
        masks = {"missing": 0, "corrupt": 0}
        for index in range(blob.scheme.width):
            nominal = order[index] if index < len(order) else None
            rotten = [drive for drive, number in met.rotten if number == index]
            if copies := _by_preference(nominal, met.copies.get(index, [])):
                drive, place = copies[0]
                # Never of the drive that keeps it, should it have been met there twice.
                spare = [other for other, _ in copies[1:] if other is not drive] + [
                    other for other in rotten if other is not drive and _rank(nominal, drive) < _rank(nominal, other)
                ]
                if not (deep or spare):
                    continue
                sound = await self._sound(drive, place)
                if sound is not False:
                    if sound:
                        findings.superseded += await self._drop(blob.blob_id, [(other, index) for other in spare], "second copy")
                    continue
                kind = "corrupt"
            elif rotten:
                kind, drive = "corrupt", rotten[0]
            elif nominal is not None and nominal in asked and not await _came(nominal, blob.blob_id, index):
                kind, drive = "missing", nominal
            else:
                continue  # a drive that is away may hold it
            masks[kind] |= 1 << index
            self._events.damage(kind, drive.label, blob.blob_id, index)
        findings.missing += masks["missing"].bit_count()
        findings.corrupt += masks["corrupt"].bit_count()
        for kind, mask in masks.items():
            if mask:
                await self._metadata.add_debt([(met.header.owner, blob.blob_id, mask)], corrupt=kind == "corrupt")

    async def _sound(self, drive: Drive, place: ShardPlace) -> bool | None:
        """None where that cannot be learned: the drive is the trouble, not the shard."""
        try:
            return await shard_sound(self._buffers, drive, place)
        except DriveFailed:
            return None


def _rank(nominal: Drive | None, drive: Drive) -> tuple[bool, bytes]:
    """The order in which copies of one index are kept: the same for everybody, whatever was met."""
    return drive is not nominal, drive.drive_id


def _by_preference(nominal: Drive | None, copies: list[tuple[Drive, ShardPlace]]) -> list[tuple[Drive, ShardPlace]]:
    return sorted(copies, key=lambda copy: _rank(nominal, copy[0]))


async def _came(drive: Drive, blob_id: BlobId, index: int) -> bool:
    """Whether a shard that the scan did not meet is there by now (it was being written), or cannot be judged."""
    try:
        return await drive.open(blob_id, index) is not None
    except BadRecord:
        return False
    except DriveFailed:
        return True
