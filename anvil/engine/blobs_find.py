"""Where the shards of a blob that is being read are, and which of them are of use.

Owns: the order in which shards are turned to, the search, and what is known against one. Invariants: damage is reported once per blob and
index, and becomes repair debt; a shard is called missing only when every place where it belongs was asked; nothing is called lost before
layouts and row were read once more. Not here: reading (`blobs_read.py`), where shards belong (`context.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from anvil.base.errors import AnvilError, BadRecord, DataLost, DriveFailed, DriveStalled, ReadQuorumLost, Unavailable
from anvil.base.limits import DAMAGE_REMEMBERED, OPEN_PATIENCE_S
from anvil.engine.context import Context
from anvil.engine.ports import Drive
from anvil.model.records import BlobRef, Owner, Ownership
from anvil.model.shard import ShardPlace

log = logging.getLogger("anvil.read")
Found = tuple[int, Drive, ShardPlace]


class DamageOnce:
    """So that a damaged blob that is read a thousand times is one event and one debt. Bounded: forgets the oldest."""

    def __init__(self, remembered: int = DAMAGE_REMEMBERED) -> None:
        self._seen: dict[tuple[bytes, int], None] = {}
        self._remembered = remembered

    def first(self, blob_id: bytes, index: int) -> bool:
        """True the first time that shard is reported."""
        if (blob_id, index) in self._seen:
            return False
        self._seen[blob_id, index] = None
        if len(self._seen) > self._remembered:
            del self._seen[next(iter(self._seen))]
        return True

    def forget(self, blob_id: bytes, index: int) -> None:
        """Its report came to nothing: the next one is the first again."""
        self._seen.pop((blob_id, index), None)


class _Doubts:
    """What a search that found nothing met: a record that is `damaged`, drives that are `away`."""

    __slots__ = ("away", "damaged")

    def __init__(self) -> None:
        self.away = False
        self.damaged = False


def _distance(drive: Drive | None) -> tuple[bool, bool]:
    return (True, True) if drive is None else (not drive.readable, not drive.local)


class ShardFinder:
    """Of one blob. Remembers where its shards are and which of them are no good. `away`: some drive could not be asked, so that what is
    missing may come back."""

    def __init__(self, context: Context, blob: BlobRef, owner: Owner, damage: DamageOnce) -> None:
        self._context = context
        self._damage = damage
        self._owner = owner
        self._blob = blob
        self._lock = asyncio.Lock()
        self._locks: dict[int, asyncio.Lock] = {}  # where shards are looked for side by side
        self._begin()

    def place(self, index: int) -> tuple[Drive, ShardPlace] | None:
        """Where that shard was found."""
        return self._places.get(index)

    def is_bad(self, index: int) -> bool:
        return index in self._bad

    def slow(self, indexes: Iterable[int]) -> None:
        """Their drives keep somebody waiting."""
        self._slow.update(indexes)

    def _begin(self) -> None:
        placement, width = self._context.placement(), self._blob.scheme.width
        self._nominal = placement.belongs(self._blob.blob_id, width)
        self._remote = placement.remote
        self._ranked: Sequence[int] = range(width)
        if self._remote:
            # Decoding parity costs less than the network, and what is on a drive that is away costs a search.
            self._ranked = sorted(self._ranked, key=lambda index: _distance(self._nominal[index]))
        self._places: dict[int, tuple[Drive, ShardPlace]] = {}
        self._bad: set[int] = set()
        self._slow: set[int] = set()  # their drives kept somebody waiting: turned to when there are no others
        # Not where they may be expected, and a drive is away: a search everywhere is the last resort.
        self._unmet: set[int] = set()
        self.away = False

    async def look_again(self, error: AnvilError) -> bool:
        """Before something is called lost: read layouts and row once more. True where it is worth another try. Raises ReadQuorumLost where
        the row names another blob by now, so that whoever asks again gets that; DatabaseUnavailable."""
        newer = await self._context.refresh()
        if isinstance(error, DataLost):
            [ownership] = await self._context.metadata.ownership([(self._owner, self._blob.blob_id)])
            if ownership is not Ownership.OWNED:
                raise ReadQuorumLost() from error
        elif not newer:
            return False
        self._begin()
        return True

    def unreadable(self, index: int) -> None:
        """A shard that was there could not be read whole."""
        if index in self._bad or index not in self._places:
            return  # the reader of another stripe was faster
        if self._places[index][0].readable:
            self.report("corrupt", index)
        else:
            self.away = True
            self._places.pop(index)
            self._bad.add(index)

    def failed(self, drive: Drive, index: int, error: Unavailable) -> None:
        """Reading it raised that. Of a drive of this node it is the shard that cannot be read, unless the drive is away; of a remote one it
        may be the way to it, and its own node finds out. Raises what says nothing about drives (too much to do here)."""
        if not drive.local:
            self.out_of_reach(index)
        elif not isinstance(error, DriveFailed):
            raise error
        else:
            self.unreadable(index)

    async def look_after(self, drive: Drive, index: int) -> None:
        """Less of it came than there should be. If its record is gone, it was a second copy, and is looked for where it belongs."""
        try:
            gone = await drive.open(self._blob.blob_id, index, OPEN_PATIENCE_S) is None
        except AnvilError:
            return
        known = self._places.get(index)
        if gone and known is not None and known[0] is drive:
            del self._places[index]

    def out_of_reach(self, index: int) -> None:
        """Its drive does not answer: that says nothing about the shard."""
        self.away = True
        self._places.pop(index, None)
        self._bad.add(index)

    async def usable(self, count: int, exclude: set[int], *, patient: bool = True) -> list[Found]:
        """Up to `count` shards that can be read, finding them where necessary: of local drives first, then data shards. With their places,
        which the reader of another stripe may forget at any time. Slow drives, and a search on all drives for what is not where it may be
        expected, are turned to when the others do not suffice, and only if `patient`."""
        if self._remote:
            await self._find_at_once(count, exclude)
        found: list[Found] = []
        for index in self._ranked:
            if len(found) == count:
                return found
            if index in exclude or index in self._bad or index in self._slow or index in self._unmet:
                continue
            if index in self._places or await self._find(index, OPEN_PATIENCE_S):
                found.append((index, *self._places[index]))
        if not patient:
            return found
        for index in [*sorted(self._unmet), *sorted(self._slow)]:
            if len(found) == count:
                break
            if index in exclude or index in self._bad or any(index == other for other, _, _ in found):
                continue
            patience_s = None if index in self._slow else OPEN_PATIENCE_S
            if index in self._places or await self._find(index, patience_s, everywhere=True):
                found.append((index, *self._places[index]))
        return found

    async def _find_at_once(self, count: int, exclude: set[int]) -> None:
        """Look for so many shards side by side, so that the network is waited for once."""
        passed_over = exclude | self._bad | self._slow | self._unmet
        wanted = [index for index in self._ranked if index not in passed_over][:count]
        unknown = [index for index in wanted if index not in self._places]
        if len(unknown) > 1:
            await asyncio.gather(*(self._find(index, OPEN_PATIENCE_S) for index in unknown))

    async def _find(self, index: int, patience_s: float | None, *, everywhere: bool = False) -> bool:
        """Look for a shard: first where it belongs, then where it may be expected, and on all other drives if `everywhere`, or if there is
        no drive away that explains its absence. A drive that takes longer than `patience_s` makes it a slow one, to be asked again, with
        None, only if it is needed: then the drive's own limit holds, which ends in its being away."""
        async with self._lock if not self._remote else self._locks.setdefault(index, asyncio.Lock()):
            if index in self._places:
                return True
            if index in self._bad or (patience_s is not None and index in self._slow):
                return False
            if index in self._unmet and not everywhere:
                return False
            blob_id, doubts = self._blob.blob_id, _Doubts()
            try:
                if index in self._unmet:
                    doubts.away = True
                else:
                    if await self._search(index, [self._nominal[index]], patience_s, doubts):
                        return True
                    placement = self._context.placement()
                    homes = placement.homes(blob_id, index)
                    doubts.away |= any(home is None or not home.readable for home in homes)
                    # Its own drive may be another one by now than when this blob began to be read.
                    newer = [home for home in homes[:1] if home is not self._nominal[index]]
                    if await self._search(index, [*newer, *placement.near(blob_id, index)], patience_s, doubts):
                        return True
                    if doubts.away and not doubts.damaged and not everywhere:
                        self._unmet.add(index)
                        return False
                far = self._context.placement().far(blob_id, index)
                if await self._search(index, far, patience_s, doubts):
                    self._unmet.discard(index)
                    return True
                # It is expected on none of these, so it is missing; but while one cannot be asked nothing is lost.
                self.away |= any(not drive.readable for drive in far)
            except DriveStalled:
                self._slow.add(index)
                return False
        if doubts.away and not doubts.damaged:
            # Nothing is known to be lost: a drive that comes back brings its shards, one that is replaced is surveyed as a whole.
            self.away = True
            self._bad.add(index)
        else:
            self.report("corrupt" if doubts.damaged else "missing", index)
        return False

    async def _search(self, index: int, drives: Sequence[Drive | None], patience_s: float | None, doubts: _Doubts) -> bool:
        """Whether one of them has it. Raises DriveStalled where one took longer than `patience_s`."""
        for drive in drives:
            if drive is None or not drive.readable:
                continue
            try:
                place = await drive.open(self._blob.blob_id, index, patience_s)
            except DriveStalled:
                if patience_s is not None and drive.readable:
                    raise
                doubts.away = True
            except Unavailable as error:
                if drive.local and not isinstance(error, DriveFailed):
                    raise
                if drive.local and drive is self._nominal[index] and drive.readable:
                    doubts.damaged = True  # the drive itself is well: then it is this shard that cannot be read
                else:
                    doubts.away = True  # of a remote one, it may be the way to it
            except BadRecord:
                doubts.damaged = True
            else:
                if place is not None:
                    self._places[index] = (drive, place)
                    return True
        return False

    def report(self, kind: str, index: int) -> None:
        """Remember that a shard is of no use, count it, and make it a debt for the repair."""
        if index in self._bad:
            return
        self._bad.add(index)
        place = self._places.pop(index, None)
        drive = place[0] if place else self._nominal[index]
        if self._damage.first(self._blob.blob_id, index):
            self._context.events.damage(kind, drive.label if drive else "absent", self._blob.blob_id, index)
            self._context.owned.start(self._owe(index, corrupt=kind == "corrupt"))

    async def _owe(self, index: int, *, corrupt: bool) -> None:
        """Make it a debt for the repair. If that cannot be written now, the next reader tries again."""
        try:
            await self._context.metadata.add_debt([(self._owner, self._blob.blob_id, 1 << index)], corrupt=corrupt)
        except AnvilError as error:
            self._damage.forget(self._blob.blob_id, index)
            log.warning("damage of blob %s is not written down yet: %s", self._blob.blob_id.hex(), error)
