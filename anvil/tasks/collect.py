"""The collector: removes the shards of blobs that nobody owns any more.

Owns: the order "recheck, remove everywhere, forget". Invariant: an outbox row goes only when every drive that can be reached has
confirmed. What a drive that is away or failing still holds is an orphan, which the survey removes when it is back: rows that waited for
it would stand at the head of the outbox and stop all collection for as long as one disk is broken. What is garbage
is decided by the regional outbox alone, so running twice, or not at all, does no harm. Not here: what becomes garbage (triggers in
`meta`), orphans without any row (`survey`).
"""

from __future__ import annotations

import logging

from anvil.base.errors import AnvilError, DriveFailed
from anvil.base.limits import COLLECT_BATCH
from anvil.engine.context import Placement
from anvil.engine.ports import Metadata
from anvil.model.records import Garbage

log = logging.getLogger("anvil.collect")


class Collector:
    def __init__(self, metadata: Metadata, placement: Placement, grace_s: float) -> None:
        self._metadata = metadata
        self._placement = placement
        self._grace_s = grace_s

    async def run(self) -> int:
        """One batch; returns how many blobs were removed, COLLECT_BATCH when there may be more."""
        items = await self._metadata.garbage(COLLECT_BATCH, self._grace_s)
        done = [item.outbox_id for item in items if await self._remove(item)]
        if done:
            await self._metadata.garbage_done(done)
        return len(done)

    async def _remove(self, item: Garbage) -> bool:
        asked = 0
        for drive in self._placement.drives.values():
            if not drive.readable:
                continue
            try:
                for index in range(item.scheme.width):
                    await drive.remove(item.blob_id, index)
                asked += 1
            except DriveFailed as error:
                log.warning("blob %s stays on %s, for the survey: %s", item.blob_id.hex(), drive.label, error)
            except AnvilError as error:
                log.warning("blob %s stays for now: %s", item.blob_id.hex(), error)
                return False
        return asked > 0
