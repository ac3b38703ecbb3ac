"""`anvil admin fsck --rebuild-metadata` on the running node.

Owns: the order of recovery's first steps. Invariant: the region serves nothing and nothing is unlinked, on any node, from before the first
look at a drive until an operator ends that. Not here: the rebuild (`tasks/salvage.py`), accepting (`node/admin_salvage.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import msgspec

from anvil.base.errors import Conflict, Unavailable
from anvil.base.limits import HOLD_SETTLE_S
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.dump import Loading, load
from anvil.meta.keyring import system_key
from anvil.meta.migrate import Database, migrations
from anvil.meta.regional import RegionalStore
from anvil.meta.salvage import Loaded, SalvageTable
from anvil.model.dump import Dumped, DumpName, Manifest, Rebuilt, system_bucket
from anvil.model.identity import Bucket
from anvil.model.records import BucketId
from anvil.node.channel import Handler
from anvil.node.child import Plan
from anvil.node.commanded import Commanded
from anvil.node.dumping import Dumping
from anvil.node.health import Check
from anvil.node.region import Region
from anvil.node.writing import SALVAGING, Writing
from anvil.tasks.dump import DumpReader
from anvil.tasks.salvage import Salvager
from anvil.tasks.worker import Handler as TaskHandler

_BUCKETS_SQL = "SELECT bucket_id FROM buckets WHERE region = $1 AND state = 'active'"


class SalvageParts(NamedTuple):
    """What the background process has of it: `dump`, the task's handler; `tasks`, which run for ever; what commands may ask."""

    dump: TaskHandler
    tasks: dict[str, Callable[[], Awaitable[None]]]
    handlers: dict[str, Handler]


def salvage_parts(plan: Plan, catalog: GlobalCatalog, metadata: RegionalStore, region: Region, writing: Writing) -> SalvageParts:
    """What dumps and rebuilds need."""
    bucket = system_bucket(system_key(plan.config.security.master_key), plan.config.node.region)
    urls = plan.regional_url, plan.global_url
    dumping = Dumping(*urls, metadata, writing, bucket)
    dump = Commanded("dump", dumping.take, Dumped)
    rebuild = Commanded("rebuild", Salvaging(*urls, catalog, metadata, region, writing, bucket).rebuild, Rebuilt)
    return SalvageParts(dumping, {"dump": dump.run, "rebuild": rebuild.run}, {**dump.handlers, **rebuild.handlers})


def recovery_check(region: Region) -> Check:
    """For readiness: a region that serves no object is not ready."""

    async def ask() -> None:
        if region.view.closed:
            raise Unavailable(f"the region is in recovery and serves no object: {region.view.closed}")

    return Check("recovery", ask)


class Salvaging:
    """`bucket`: the system bucket."""

    def __init__(
        self,
        url: str,
        global_url: str,
        catalog: GlobalCatalog,
        metadata: RegionalStore,
        region: Region,
        writing: Writing,
        bucket: Bucket,
    ) -> None:
        self._url = url
        self._global_url = global_url
        self._catalog = catalog
        self._metadata = metadata
        self._region = region
        self._writing = writing
        self._bucket = bucket
        self._table = SalvageTable(metadata.query)

    async def rebuild(self, report: Rebuilt, older: bool) -> None:
        """Raises Conflict where the database is not an empty one, Unavailable."""
        if await self._table.recovery() is None:
            if not await self._table.close("it is being rebuilt from its drives"):
                raise Conflict("the regional database holds objects: only an empty one is rebuilt from the drives")
            await asyncio.sleep(HOLD_SETTLE_S)
        async with AsyncExitStack() as opened:
            context = await self._writing.open(opened, SALVAGING)
            salvager = Salvager(
                self._bucket.region,
                migrations(Database.REGIONAL)[-1].number,
                self._metadata,
                self._region.placement,
                self._table,
                DumpReader(context, self._bucket),
                self._load,
                self._buckets,
                self._metadata.add_bucket,
            )
            await salvager.run(report, older=older)

    async def _buckets(self) -> frozenset[BucketId]:
        return frozenset(row[0] for row in await self._catalog.query(_BUCKETS_SQL, self._bucket.region))

    @asynccontextmanager
    async def _load(self, name: DumpName, manifest: Manifest) -> AsyncIterator[Loading]:
        ended = tuple(session.hex() for session in manifest.ended)
        note = msgspec.json.encode(Loaded(name.prefix, manifest.taken_us, manifest.rows, ended)).decode()
        async with load(self._url, self._global_url, note) as loading:
            yield loading
