"""The survey walks all partitions and compares what drives hold with what should be there: orphans go, missing or rotten shards become
debts.

Owns: two questions put to each shard on the way, "does anybody own you?" (sweep) and "are you still what was written?" (scrub).
Invariant: a shard is removed as an orphan only if its writer session was gone before the metadata was asked, and in that later
snapshot neither its owner's row nor the outbox names its blob; so a frozen or very slow writer never loses its shards, because it cannot
commit any more, and deleted data stays for its grace, for those who still read it. Not here: repair.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec

from anvil.base.errors import AnvilError, BadRecord, DriveFailed
from anvil.base.limits import SURVEY_OWNERS_MAX
from anvil.engine.context import Buffers, Events, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import BlobId, Owner, Ownership, SessionId
from anvil.model.shard import ShardPlace
from anvil.tasks.verify import shard_sound

log = logging.getLogger("anvil.survey")


_Shards = dict[int, tuple[Drive, ShardPlace]]


class Findings(msgspec.Struct):
    """What was met. `orphans`: shards removed."""

    shards: int = 0
    orphans: int = 0
    missing: int = 0
    corrupt: int = 0

    def add(self, other: Findings) -> None:
        self.shards += other.shards
        self.orphans += other.orphans
        self.missing += other.missing
        self.corrupt += other.corrupt


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
        blobs: dict[BlobId, _Shards] = defaultdict(dict)
        rotten: dict[BlobId, dict[int, Drive]] = defaultdict(dict)
        asked: list[Drive] = []
        for drive in self._placement.drives.values():
            if not drive.readable:
                continue
            try:
                async for place in drive.scan(number):
                    findings.shards += 1
                    blob_id, index = place.header.blob.blob_id, place.header.index
                    if place.damaged:
                        rotten[blob_id][index] = drive  # of its header only this much is certain
                    else:
                        blobs[blob_id][index] = (drive, place)
            except DriveFailed as error:
                log.warning("survey of %s: %s", drive.label, error)
                continue
            asked.append(drive)
        for blob_id in rotten.keys() - blobs.keys():
            # Nothing is left that says whose it is: readers of its object tell, and the operator must know.
            for index, drive in rotten[blob_id].items():
                self._events.damage("corrupt", drive.label, blob_id, index)
                findings.corrupt += 1
        if blobs:
            await self._judge(blobs, rotten, asked, findings, deep=deep)
        return findings

    async def _judge(
        self,
        blobs: Mapping[BlobId, _Shards],
        rotten: Mapping[BlobId, dict[int, Drive]],
        asked: list[Drive],
        findings: Findings,
        *,
        deep: bool,
    ) -> None:
        living = await self._metadata.live_sessions()  # first: whoever is gone now cannot have committed later
        names = list(blobs)
        for at in range(0, len(names), SURVEY_OWNERS_MAX):
            batch = names[at : at + SURVEY_OWNERS_MAX]
            answers = await self._metadata.ownership([(_owner(blobs[blob]), blob) for blob in batch])
            for blob_id, ownership in zip(batch, answers, strict=True):
                shards, damaged = blobs[blob_id], rotten.get(blob_id, {})
                if ownership is Ownership.OWNED:
                    await self._check(shards, damaged, asked, findings, deep=deep)
                elif ownership is Ownership.NOBODY and _session(shards) not in living:
                    places = [(drive, index) for index, (drive, _) in shards.items()]
                    findings.orphans += await self._drop(blob_id, places + [(drive, index) for index, drive in damaged.items()])

    async def _drop(self, blob_id: BlobId, places: list[tuple[Drive, int]]) -> int:
        if self._hold():
            return 0
        dropped = 0
        for drive, index in places:
            try:
                dropped += await drive.remove(blob_id, index)
            except AnvilError as error:
                log.warning("orphan stays on %s: %s", drive.label, error)
        return dropped

    async def _check(
        self,
        shards: _Shards,
        rotten: Mapping[int, Drive],
        asked: list[Drive],
        findings: Findings,
        *,
        deep: bool,
    ) -> None:
        blob = next(iter(shards.values()))[1].header.blob
        order = self._placement.order(blob.blob_id)
        masks = {"missing": 0, "corrupt": 0}
        for index in range(blob.scheme.width):
            nominal = order[index] if index < len(order) else None
            if index in shards:
                drive = shards[index][0]
                if not deep or await self._sound(*shards[index]):
                    continue
                kind = "corrupt"
            elif index in rotten:
                kind, drive = "corrupt", rotten[index]
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
                await self._metadata.add_debt([(_owner(shards), blob.blob_id, mask)], corrupt=kind == "corrupt")

    async def _sound(self, drive: Drive, place: ShardPlace) -> bool:
        try:
            return await shard_sound(self._buffers, drive, place)
        except DriveFailed:
            return True  # the drive is the trouble, not the shard


async def _came(drive: Drive, blob_id: BlobId, index: int) -> bool:
    """Whether a shard that the scan did not meet is there by now (it was being written), or cannot be judged."""
    try:
        return await drive.open(blob_id, index) is not None
    except BadRecord:
        return False
    except DriveFailed:
        return True


def _session(shards: _Shards) -> SessionId:
    return next(iter(shards.values()))[1].header.session


def _owner(shards: _Shards) -> Owner:
    return next(iter(shards.values()))[1].header.owner
