"""What the drives hold of some partitions, put together by blob: the ground on which survey, rebalancing and fsck judge.

Owns: the look itself, and the question whether a blob is owned. Invariants: a drive counts as asked only if all of it was seen; the look
decides nothing, and by the time somebody acts on it anything may have changed: shards come and go while it goes on. Not here: what follows
from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from anvil.base.errors import AnvilError, BadRecord, Unavailable
from anvil.base.limits import INVENTORY_DRIVES_IN_FLIGHT, LOOK_PARTITIONS_MAX, LOOK_S, LOOK_SHARDS, SURVEY_OWNERS_MAX
from anvil.engine.context import Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import BlobId, DriveId, Ownership
from anvil.model.shard import ShardHeader, ShardPlace
from anvil.tasks.several import side_by_side

log = logging.getLogger("anvil.survey")


Away = Callable[[Drive], bool]
"""Whether a drive that is not readable here is away for all of the region, so that nobody need wait for it. Not where its node is up as far
as the region knows, and only this node cannot reach it."""


def nobody_waits(drive: Drive) -> bool:
    """Of one's own drives."""
    return True


class Met(msgspec.Struct):
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

    def on(self, drive: Drive, index: int) -> bool:
        """Whether that drive has a copy with a readable header."""
        return any(other is drive for other, _ in self.copies.get(index, ()))

    def by_preference(self, placement: Placement, nominal: Drive | None, index: int) -> list[tuple[Drive, ShardPlace]]:
        """The copies of one index in the order in which they are kept."""
        return sorted(self.copies.get(index, ()), key=lambda copy: rank(placement, nominal, copy[0]))


def rank(placement: Placement, nominal: Drive | None, drive: Drive) -> tuple[bool, bool, bytes]:
    """The order in which copies of one index are kept: the same for everybody who goes by the same layout, whatever was met. One on a drive
    that is leaving is never kept in place of one on a drive that stays."""
    return drive is not nominal, not placement.current(drive), drive.drive_id


class Inventory(msgspec.Struct):
    """`asked`: drives that were seen whole; `failed`: those that should have answered, and did not."""

    blobs: dict[BlobId, Met]
    asked: list[Drive]
    failed: list[Drive]
    shards: int

    @property
    def nameless(self) -> Iterable[tuple[BlobId, Met]]:
        """Blobs of which nothing is left that says whose they are."""
        return ((blob_id, met) for blob_id, met in self.blobs.items() if not met.copies)

    @property
    def named(self) -> list[Met]:
        return [met for met in self.blobs.values() if met.copies]


Held = Mapping[DriveId, frozenset[int]]
"""By drive, the partitions of which it holds anything. A drive that is not in it has to be looked at."""


async def held(drives: Iterable[Drive]) -> Held:
    """For looks at several partitions, most of which are empty on most drives: each is asked once. What comes after that is met by the next
    look, as what comes just after any."""
    readable = [drive for drive in drives if drive.readable]
    answers = await asyncio.gather(*(drive.partitions() for drive in readable), return_exceptions=True)
    found: dict[DriveId, frozenset[int]] = {}
    for drive, answer in zip(readable, answers, strict=True):
        if isinstance(answer, AnvilError):
            log.warning("partitions of %s: %s", drive.label, answer)  # the look itself decides
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[drive.drive_id] = answer
    return found


class Together:
    """How many partitions to look at together: what a look costs beside its shards is shared. Bounded by what it holds in memory
    (LOOK_SHARDS, or one partition, which may have more), and by its time: what was met is to be acted on soon, and a rest is as long as a
    look is."""

    def __init__(self) -> None:
        self.count = 1

    def met(self, shards: int, took_s: float) -> None:
        """So many, in the last look, which took so long with all that followed from it."""
        if shards > LOOK_SHARDS or took_s > LOOK_S:
            self.count = 1
        elif shards <= LOOK_SHARDS // 2 and took_s <= LOOK_S / 2:
            self.count = min(self.count * 2, LOOK_PARTITIONS_MAX)


async def looks(
    placement: Placement, numbers: Sequence[int], known: Held | None = None
) -> AsyncIterator[tuple[Sequence[int], Inventory]]:
    """Look at all of these partitions on all drives, several at a time; each time with which."""
    together, at = Together(), 0
    while at < len(numbers):
        batch, began_s = numbers[at : at + together.count], time.monotonic()
        found = await take(placement.drives.values(), batch, known)
        at, shards = at + len(batch), found.shards
        yield batch, found
        del found  # the next look begins without it
        together.met(shards, time.monotonic() - began_s)


async def take(drives: Iterable[Drive], numbers: Collection[int], known: Held | None = None) -> Inventory:
    """Look at some partitions on all of these drives, a few of them at a time; not at those of which a drive is `known` to hold nothing."""
    found = Inventory(defaultdict(Met), [], [], 0)
    readable = [drive for drive in drives if drive.readable]
    there = {drive: (known or {}).get(drive.drive_id, frozenset(numbers)).intersection(numbers) for drive in readable}
    found.asked = [drive for drive in readable if not there[drive]]
    waiting = iter([drive for drive in readable if there[drive]])

    async def look() -> None:
        for drive in waiting:
            try:
                async for place in drive.scan(there[drive]):
                    found.shards += 1
                    met, index = found.blobs[place.header.blob.blob_id], place.header.index
                    if place.damaged:
                        met.rotten.append((drive, index))  # of its header only this much is certain
                    else:
                        met.copies.setdefault(index, []).append((drive, place))
            except AnvilError as error:
                log.warning("partitions from %d on of %s: %s", min(numbers), drive.label, error)
                found.failed.append(drive)
            else:
                found.asked.append(drive)

    await side_by_side(INVENTORY_DRIVES_IN_FLIGHT, look)
    return found


async def owners(metadata: Metadata, blobs: Sequence[Met]) -> AsyncIterator[list[tuple[Met, Ownership]]]:
    """Batches of those blobs with whether they are owned. Raises DatabaseUnavailable."""
    for at in range(0, len(blobs), SURVEY_OWNERS_MAX):
        batch = blobs[at : at + SURVEY_OWNERS_MAX]
        answers = await metadata.ownership([(met.header.owner, met.header.blob.blob_id) for met in batch])
        yield list(zip(batch, answers, strict=True))


async def came(drive: Drive, blob_id: BlobId, index: int) -> bool:
    """Whether a shard that the look did not meet is there by now (it was being written), or cannot be judged."""
    try:
        return await drive.open(blob_id, index) is not None
    except BadRecord:
        return False
    except Unavailable:
        return True


async def missing_on(placement: Placement, found: Inventory, blob_id: BlobId, index: int) -> Drive | None:
    """The drive on which a shard that was not met is missing. None where one that it belongs on was not seen, or it is there by now."""
    homes = placement.homes(blob_id, index)
    for home in homes:
        if home is None or home not in found.asked or await came(home, blob_id, index):
            return None
    return homes[0]
