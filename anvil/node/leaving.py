"""Drives that no layout names any more: whether anything that is owned is still on them.

Owns: the look that lets a drained node go. Invariants: a drive is called empty only after every shard on it was asked for its owner and had
none; nothing is written to a drive that no layout names, so what was found empty stays so until there is another layout. What is only
deleted (its grace runs) or abandoned does not count. Not here: bringing home what is met there, and removing second copies
(`tasks/survey.py`), whether a node may leave (`losses.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from anvil.base.errors import DriveFailed
from anvil.engine.context import Placement
from anvil.engine.ports import Drive, Metadata
from anvil.model.records import DriveId, Ownership
from anvil.tasks.inventory import owners, take

log = logging.getLogger(__name__)
Report = Callable[[DriveId, bool, int], Awaitable[None]]
"""Given a drive, whether it is empty, and the newest layout by which that was judged."""


class Leaving:
    """`local`: the drives of this node."""

    def __init__(self, metadata: Metadata, placement: Placement, local: Callable[[], Iterable[Drive]], report: Report) -> None:
        self._metadata = metadata
        self._placement = placement
        self._local = local
        self._report = report
        self._empty: set[DriveId] = set()
        self._version = 0

    async def look(self) -> bool:
        """Look once at each drive that left. Raises DatabaseUnavailable."""
        version = self._placement.layout.version
        named = {drive.drive_id for layout in self._placement.layouts for drive in layout.drives}
        if version != self._version:  # what was found before says nothing of what was in use since
            self._empty, self._version = set(), version
        for drive in self._local():
            if drive.drive_id in named or drive.drive_id in self._empty or not drive.readable:
                continue
            try:
                empty = not await self._holds(drive)
            except DriveFailed as error:
                log.warning("whether %s is empty is not known: %s", drive.label, error)
                continue
            await self._report(drive.drive_id, empty, version)
            if empty:
                self._empty.add(drive.drive_id)
        return False

    async def _holds(self, drive: Drive) -> bool:
        """Whether anything that is owned is on it, or a record whose owner cannot be read. Raises DriveFailed."""
        for number in await drive.partitions():
            found = await take([drive], (number,))
            if found.failed or any(True for _ in found.nameless):
                return True
            async for batch in owners(self._metadata, found.named):
                if any(ownership is Ownership.OWNED for _, ownership in batch):
                    return True
        return False
