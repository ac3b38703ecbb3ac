"""The survey walks all partitions and compares what drives hold with what should be there: orphans go, missing or rotten shards become
debts; copies that a repair or a move made superfluous go.

Owns: the questions put to each shard on the way: "does anybody own you?" (sweep), "are you still what was written?" (scrub), "is there
another of you?". Invariants: a shard is removed as an orphan only if its writer session was gone before the metadata was asked, and in
that later snapshot neither its owner's row nor the outbox names its blob; so a frozen or very slow writer never loses its shards, because
it cannot commit any more, and deleted data stays for its grace, for those who still read it. Of several copies of one index the one that
comes first (on its nominal drive, else on the layout's drive with the lowest id) is never removed, and the others only after all of it was
read and found good, and only while no older layout is in use and this process is known to go by the newest: whoever else does the same
keeps the same one. A shard is called missing only where every drive that it belongs on was seen whole and does not have it; one elsewhere
is misplaced, which is no debt but the rebalancer's. What a returning drive brings is judged like everything else: nothing of it is moved or
made a debt unless its owner names it. Not here: repair, moving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from anvil.base.errors import AnvilError, DriveFailed, SlowDown
from anvil.base.limits import SURVEY_REMOVAL_TRIES
from anvil.engine.context import Buffers, Events, Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.layout import partition
from anvil.model.records import BlobId, Ownership
from anvil.model.shard import ShardPlace
from anvil.tasks.inventory import Held, Inventory, Met, missing_on, owners, rank, take
from anvil.tasks.verify import shard_sound

log = logging.getLogger("anvil.survey")
Ours = Callable[[Drive], bool]
"""Whether what is on that drive is to be acted on."""


def _any(drive: Drive) -> bool:
    return True


def _local(drive: Drive) -> bool:
    return drive.local


class Findings(msgspec.Struct):
    """What was met. `orphans`, `superseded`: shards removed, because nobody owns them, because the same is there again. `misplaced`: shards
    that are not on their own drive although that is up."""

    shards: int = 0
    orphans: int = 0
    missing: int = 0
    corrupt: int = 0
    superseded: int = 0
    misplaced: int = 0

    def add(self, other: Findings) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Surveyed(NamedTuple):
    """`misplaced`: the partitions in which something is."""

    findings: Findings
    misplaced: set[int]


class Survey:
    """`settled`: whether the layouts this process knows were the newest ones a moment ago (HOLD_FRESH_S), asked before each removal of a
    superfluous copy."""

    def __init__(
        self,
        metadata: Metadata,
        placement: Placement,
        buffers: Buffers,
        events: Events,
        hold: Callable[[], bool],
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._events = events
        self._hold = hold
        self._settled = settled

    async def partition(self, number: int, *, deep: bool, mine: bool = False) -> Findings:
        """One of `partitions`."""
        return (await self.partitions((number,), deep=deep, mine=mine)).findings

    async def partitions(
        self, numbers: Collection[int], *, deep: bool, mine: bool = False, known: Held | None = None
    ) -> Surveyed:
        """Some partitions on all drives. `deep` reads and checks every byte on the drives of this node (each node reads what it has);
        otherwise only presence and headers are looked at. `mine`: what is on other nodes' drives is met, but left to them. `known`: see
        `take`. Raises DatabaseUnavailable (nothing was decided)."""
        found = await take(self._placement.drives.values(), numbers, known)
        findings, misplaced = Findings(shards=found.shards), set[int]()
        ours = _local if mine else _any
        self._nameless(found, findings, ours)
        if not found.named:
            return Surveyed(findings, misplaced)
        living = await self._metadata.live_sessions()  # first: whoever is gone now cannot have committed later
        async for batch in owners(self._metadata, found.named):
            for met, ownership in batch:
                if ownership is Ownership.OWNED:
                    before = findings.misplaced
                    await self._check(met, found, findings, ours, deep=deep)
                    if findings.misplaced > before:
                        misplaced.add(partition(met.header.blob.blob_id))
                elif ownership is Ownership.NOBODY and met.header.session not in living:
                    places = [place for place in met.places if ours(place[0])]
                    findings.orphans += await self._drop(met.header.blob.blob_id, places, "orphan")
        return Surveyed(findings, misplaced)

    def _nameless(self, found: Inventory, findings: Findings, ours: Ours) -> None:
        """Nothing is left that says whose they are: readers of their objects tell, and the operator must know."""
        for blob_id, met in found.nameless:
            for drive, index in filter(lambda place: ours(place[0]), met.rotten):
                self._events.damage("corrupt", drive.label, blob_id, index)
                findings.corrupt += 1

    async def _drop(self, blob_id: BlobId, places: list[tuple[Drive, int]], what: str) -> int:
        return sum([await self._drop_one(drive, blob_id, index, what) for drive, index in places])

    async def _drop_one(self, drive: Drive, blob_id: BlobId, index: int, what: str) -> bool:
        """Whether it went. What came to another node too late is asked for again, if that is still right."""
        for tries in range(SURVEY_REMOVAL_TRIES):
            if self._hold() or (what != "orphan" and not self._alone()):
                return False
            try:
                return await drive.remove(blob_id, index)
            except AnvilError as error:
                if isinstance(error, DriveFailed) or tries + 1 == SURVEY_REMOVAL_TRIES:
                    log.warning("%s stays on %s: %s", what, drive.label, error)
                    break
        return False

    def _alone(self) -> bool:
        """Whether everybody who removes superfluous copies keeps the same ones."""
        return len(self._placement.layouts) == 1 and self._settled()

    async def _check(self, met: Met, found: Inventory, findings: Findings, ours: Ours, *, deep: bool) -> None:
        blob = met.header.blob
        masks = {"missing": 0, "corrupt": 0}
        for index, nominal in enumerate(self._placement.belongs(blob.blob_id, blob.scheme.width)):
            rotten = [drive for drive, number in met.rotten if number == index]
            if copies := met.by_preference(self._placement, nominal, index):
                if nominal in found.asked and copies[0][0] is not nominal:
                    findings.misplaced += 1
                if await self._check_copies(nominal, copies, rotten, findings, ours, deep=deep):
                    continue
                kind, drive = "corrupt", copies[0][0]
            elif rotten:
                kind, drive = "corrupt", rotten[0]
            elif (lacking := await missing_on(self._placement, found, blob.blob_id, index)) is not None:
                kind, drive = "missing", lacking
            else:
                continue
            if not ours(drive):
                continue
            masks[kind] |= 1 << index
            self._events.damage(kind, drive.label, blob.blob_id, index)
        await self._owe(met, masks, findings)

    async def _check_copies(
        self,
        nominal: Drive | None,
        copies: list[tuple[Drive, ShardPlace]],
        rotten: list[Drive],
        findings: Findings,
        ours: Ours,
        *,
        deep: bool,
    ) -> bool:
        """Whether the copy that is kept is good, as far as that was looked at; if so, the others go."""
        drive, place = copies[0]
        spare: list[Drive] = []
        if self._alone():
            # Never of the drive that keeps it, should it have been met there twice.
            spare = [other for other, _ in copies[1:] if other is not drive]
            kept = rank(self._placement, nominal, drive)
            spare += [other for other in rotten if other is not drive and kept < rank(self._placement, nominal, other)]
        spare = [other for other in spare if ours(other)]
        if not (spare or (deep and drive.local)):
            return True
        sound = await self._sound(drive, place)
        if sound:
            header = place.header
            findings.superseded += await self._drop(
                header.blob.blob_id, [(other, header.index) for other in spare], "second copy"
            )
        return sound is not False

    async def _owe(self, met: Met, masks: dict[str, int], findings: Findings) -> None:
        findings.missing += masks.get("missing", 0).bit_count()
        findings.corrupt += masks.get("corrupt", 0).bit_count()
        for kind, mask in masks.items():
            if mask:
                await self._metadata.add_debt([(met.header.owner, met.header.blob.blob_id, mask)], corrupt=kind == "corrupt")

    async def _sound(self, drive: Drive, place: ShardPlace) -> bool | None:
        """None where that cannot be learned: the drive is the trouble, not the shard."""
        try:
            return await shard_sound(self._buffers, drive, place)
        except (DriveFailed, SlowDown):
            return None
