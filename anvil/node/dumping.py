"""The dumps of this region's metadata: the task that takes one, and `anvil admin salvage dump`.

Owns: when a dump was taken last, as every node knows it. Invariants: none is taken while the region is in recovery: what it does not know
yet would be older than the dump, and so be taken for deleted; older dumps go only when a newer one is whole. Not here: what a dump is
(`tasks/dump.py`), who asks for it (`node/leader.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack

import msgspec

from anvil.base import instruments
from anvil.base.errors import Conflict
from anvil.meta.dump import snapshot
from anvil.meta.regional import RegionalStore
from anvil.meta.salvage import SalvageTable
from anvil.model.dump import SYSTEM_BUCKET, Dumped
from anvil.model.identity import Bucket
from anvil.model.task import Payload
from anvil.node.writing import DUMPING, Writing
from anvil.tasks.dump import DumpWriter

log = logging.getLogger("anvil.dump")

DUMPED = (
    "metadata_dump"  # in the region's settings: seconds since 1970 when the last dump was taken, or when one was missed first
)


async def dump_due(metadata: RegionalStore, every_s: float) -> bool:
    """Whether the last dump was taken longer ago. Raises DatabaseUnavailable."""
    if not every_s or await metadata.in_recovery():
        return False
    noted, now_s = await metadata.noted(DUMPED), time.time()
    if noted is None:
        await metadata.note(DUMPED, str(int(now_s)))
        return False
    instruments.METADATA_DUMPED.set(int(noted))
    return now_s - int(noted) >= every_s


class Dumping:
    """`bucket`: the system bucket."""

    def __init__(self, url: str, global_url: str, metadata: RegionalStore, writing: Writing, bucket: Bucket) -> None:
        self._url = url
        self._global_url = global_url
        self._metadata = metadata
        self._table = SalvageTable(metadata.query)
        self._writing = writing
        self._bucket = bucket
        self._turn = asyncio.Lock()

    async def __call__(self, payload: Payload) -> None:
        """The handler of the task `dump`. Raises what writing and the databases raise."""
        if not await self._metadata.in_recovery():
            await self.take(Dumped())

    async def take(self, report: Dumped, _: bool = False) -> None:
        """Raises Conflict in recovery, or while another one is taken; and what writing and the databases raise."""
        if await self._metadata.in_recovery():
            raise Conflict(
                "the region is in recovery: what waits to be accepted would be no part of the dump, and be lost with the database"
            )
        if self._turn.locked():
            raise Conflict("another dump of the metadata is being taken")
        async with self._turn:  # of one process, since there is one writer session for it
            await self._take(report)

    async def _take(self, report: Dumped) -> None:
        await self._metadata.add_bucket(SYSTEM_BUCKET)
        began_s = time.time()
        async with AsyncExitStack() as opened:
            writer = DumpWriter(await self._writing.open(opened, DUMPING), self._bucket)
            async with snapshot(self._url, self._global_url) as rows:
                name, manifest = await writer.write(rows)
            report.dump, report.taken_us, report.rows = name.prefix, manifest.taken_us, manifest.rows
            report.bytes, report.pruned = manifest.stored_bytes, await writer.prune()
        await self._metadata.note(DUMPED, str(int(began_s)))
        instruments.METADATA_DUMPED.set(int(began_s))
        await self._table.forget_ended_sessions()
        log.info("the metadata was dumped", extra=msgspec.structs.asdict(report))
