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
from collections.abc import Callable

import msgspec

from anvil.base.errors import AnvilError, DriveFailed
from anvil.engine.context import Buffers, Events, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import BlobId, Owner, Ownership, SessionId
from anvil.model.shard import ShardPlace
from anvil.tasks.verify import shard_sound

log = logging.getLogger("anvil.survey")


class Findings(msgspec.Struct):
    shards: int = 0
    orphans: int = 0
    missing: int = 0
    corrupt: int = 0


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
        blobs: dict[BlobId, dict[int, tuple[Drive, ShardPlace]]] = defaultdict(dict)
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
        if not blobs:
            return findings
        living = await self._metadata.live_sessions()
        names = list(blobs)
        answers = await self._metadata.ownership([(_owner(blobs[blob]), blob) for blob in names])
        for blob_id, ownership in zip(names, answers, strict=True):
            shards = blobs[blob_id]
            if ownership is Ownership.OWNED:
                await self._check(shards, rotten[blob_id], asked, findings, deep=deep)
            elif ownership is Ownership.NOBODY and _session(shards) not in living:
                places = [(drive, index) for index, (drive, _) in shards.items()]
                findings.orphans += await self._drop(
                    blob_id, places + [(drive, index) for index, drive in rotten[blob_id].items()]
                )
        return findings

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
        shards: dict[int, tuple[Drive, ShardPlace]],
        rotten: dict[int, Drive],
        asked: list[Drive],
        findings: Findings,
        *,
        deep: bool,
    ) -> None:
        blob = next(iter(shards.values()))[1].header.blob
        order = self._placement.order(blob.blob_id)
        mask = 0
        for index in range(blob.scheme.width):
            nominal = order[index] if index < len(order) else None
            if index in shards:
                drive = shards[index][0]
                if not deep or await self._sound(*shards[index]):
                    continue
                kind = "corrupt"
            elif index in rotten:
                kind, drive = "corrupt", rotten[index]
            elif nominal is not None and nominal in asked:
                kind, drive = "missing", nominal
            else:
                continue  # a drive that is away may hold it
            mask |= 1 << index
            if kind == "corrupt":
                findings.corrupt += 1
            else:
                findings.missing += 1
            self._events.damage(kind, drive.label, blob.blob_id, index)
        if mask:
            await self._metadata.add_debt([(_owner(shards), blob.blob_id, mask)])

    async def _sound(self, drive: Drive, place: ShardPlace) -> bool:
        try:
            return await shard_sound(self._buffers, drive, place)
        except DriveFailed:
            return True  # the drive is the trouble, not the shard


def _session(shards: dict[int, tuple[Drive, ShardPlace]]) -> SessionId:
    return next(iter(shards.values()))[1].header.session


def _owner(shards: dict[int, tuple[Drive, ShardPlace]]) -> Owner:
    return next(iter(shards.values()))[1].header.owner
