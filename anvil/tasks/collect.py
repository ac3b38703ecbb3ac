"""The collector: removes the shards of blobs that nobody owns any more.

Owns: the order "recheck, remove everywhere, forget". Invariants: no blob is begun while removal is on hold (what `hold` says is never
older than HOLD_FRESH_S, and whoever sets the hold waits for longer: `meta/regional.py`); an outbox row goes only when every drive that
can be reached has confirmed. What a drive that is away or failing still holds is an orphan, which the survey removes when it is back:
rows that waited for it would stand at the head of the outbox and stop all collection for as long as one disk is broken. A drive of another
node that fails without being away is asked again some times first, since that may be the way to it. Who is cut off from most of what is up
leaves the rows to others. What is
garbage is decided by the regional outbox alone, so running twice, or not at all, does no harm. Not here: what becomes garbage
(triggers in `meta`), orphans without any row (`survey`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from anvil.base.errors import AnvilError, DriveFailed
from anvil.base.limits import COLLECT_BATCH, COLLECT_BLOBS_IN_FLIGHT, COLLECT_TRIED_MAX, COLLECT_TRIES
from anvil.engine.context import Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import Garbage
from anvil.tasks.inventory import Away, nobody_waits
from anvil.tasks.several import side_by_side

log = logging.getLogger("anvil.collect")


class Collector:
    """`hold`: whether nothing may be unlinked now; asked before each blob. `away`: whether a drive that is not readable is so for all
    of the region."""

    def __init__(
        self, metadata: Metadata, placement: Placement, grace_s: float, hold: Callable[[], bool], away: Away = nobody_waits
    ) -> None:
        self._away = away
        self._metadata = metadata
        self._placement = placement
        self._grace_s = grace_s
        self._hold = hold
        self._tries: dict[int, int] = {}  # by outbox row, how often a drive of another node failed it

    async def run(self, number: int | None = None, slices: int = 1) -> int:
        """One batch (of one of `slices` pieces), COLLECT_BLOBS_IN_FLIGHT at a time; returns how many blobs were removed, COLLECT_BATCH when
        there may be more."""
        items = iter(await self._metadata.garbage(COLLECT_BATCH, self._grace_s, number, slices))
        done: list[int] = []

        async def work() -> None:
            for item in items:
                if self._hold():
                    return
                if await self._remove(item):
                    done.append(item.outbox_id)

        try:
            await side_by_side(COLLECT_BLOBS_IN_FLIGHT, work)
        finally:
            for outbox_id in done:
                self._tries.pop(outbox_id, None)
            if done:
                await self._metadata.garbage_done(done)
        return len(done)

    async def _remove(self, item: Garbage) -> bool:
        known = list(self._placement.drives.values())
        drives = [drive for drive in known if drive.readable]
        if sum(not drive.readable and not self._away(drive) for drive in known) > len(drives):
            return False
        answers = await asyncio.gather(*(self._remove_from(drive, item) for drive in drives))
        return None not in answers and any(answers)

    async def _remove_from(self, drive: Drive, item: Garbage) -> bool | None:
        """True: nothing of it is there any more. False: the drive could not be asked, which is the survey's. None: the row must stay."""
        try:
            if drive.local:
                for index in range(item.scheme.width):
                    await drive.remove(item.blob_id, index)
                await asyncio.sleep(0)  # small shards go without a wait, and others use this loop
            else:  # in one message
                await asyncio.gather(*(drive.remove(item.blob_id, index) for index in range(item.scheme.width)))
        except DriveFailed as error:
            if not drive.local and drive.readable and self._again(item.outbox_id):
                return None
            log.warning("blob %s stays on %s, for the survey: %s", item.blob_id.hex(), drive.label, error)
            return False
        except AnvilError as error:
            log.warning("blob %s stays for now: %s", item.blob_id.hex(), error)
            return None
        return True

    def _again(self, outbox_id: int) -> bool:
        """Whether to try that row once more, rather than leave what is there to the survey."""
        if len(self._tries) >= COLLECT_TRIED_MAX:
            self._tries.clear()  # rows that others saw to
        tries = self._tries[outbox_id] = self._tries.get(outbox_id, 0) + 1
        return tries < COLLECT_TRIES
