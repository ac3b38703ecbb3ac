"""The composition of the background process: catalog, checks, membership, tasks and jobs.

Invariant: what is opened here is closed here, in the opposite order. Not here: any rule, any loop; the other processes (`assemble.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from anvil.base import instruments
from anvil.base.errors import DatabaseUnavailable, Unavailable
from anvil.base.limits import MOVES_AT_ONCE, PEER_PING_S, TASKS_AT_ONCE
from anvil.base.metrics import REGISTRY
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for
from anvil.ec.executor import NativeExecutor
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.cluster import ClusterTables
from anvil.meta.health import check
from anvil.meta.migrate import Database
from anvil.meta.recovery import RegionNotes
from anvil.meta.regional import RegionalStore
from anvil.node.admin import open_catalog
from anvil.node.assemble import open_region
from anvil.node.background import BackgroundParts
from anvil.node.backups import Backup
from anvil.node.checking import Checking
from anvil.node.child import Child, Plan
from anvil.node.health import Check
from anvil.node.jobs import Jobs
from anvil.node.leader import Leader
from anvil.node.leaving import Leaving
from anvil.node.local import (
    NO_SESSION,
    drive_probe,
)
from anvil.node.membership import Membership
from anvil.node.observe import EngineEvents, batch, connections, task_ended
from anvil.node.raising import Raising
from anvil.node.recovering import RecoveryWatch
from anvil.node.refilling import Refiller
from anvil.node.region import QuorumWatch, Region
from anvil.node.restoring import fingerprint
from anvil.node.salvaging import recovery_check, salvage_parts
from anvil.node.upkeep import Hold, Upkeep
from anvil.node.writing import Writing
from anvil.peers.peer import PeerTimes
from anvil.tasks.collect import Collector
from anvil.tasks.fsck import Fsck
from anvil.tasks.rebalance import Rebalancer
from anvil.tasks.repair import Repairer
from anvil.tasks.survey import Survey
from anvil.tasks.worker import Handler as TaskHandler
from anvil.tasks.worker import TaskWorker

WATCHFUL: Final = PeerTimes(idle_s=PEER_PING_S)  # readiness and the health of the region are judged here


async def build_background(process: Child) -> BackgroundParts:
    """Catalog, checks, membership, and the tasks. Raises DatabaseUnavailable, DriveFailed."""
    loop, config, plan = asyncio.get_running_loop(), process.config, process.plan
    async with AsyncExitStack() as opened:
        catalog, metadata = await opened.enter_async_context(
            open_catalog(config, plan.global_url, plan.regional_url, "anvil background", observe=batch)
        )
        native = NativeExecutor(loop, 1)
        opened.push_async_callback(native.close)
        REGISTRY.before_snapshot += [
            lambda: connections("global", catalog.connections()),
            lambda: connections("regional", metadata.connections()),
        ]
        hold = Hold(metadata, config.storage.gc_grace_s)
        region = await open_region(process, NO_SESSION, opened, WATCHFUL, hold)
        buffers, notes = Buffers(loop), RegionNotes(metadata.query)
        jobs, recovery = _jobs(process, metadata, notes, region, buffers, native), RecoveryWatch(notes)
        leader = Leader(config, metadata, region, catalog.tasks)
        membership = Membership(partial(_tables, plan), plan.node_id, region, leader.lead)
        repairer = Repairer(metadata, region.placement, native, buffers, codec_for)
        surveying = Survey(metadata, region.placement, buffers, EngineEvents(), hold, lambda: membership.fresh)
        rebalancer = Rebalancer(metadata, region.placement, buffers, repairer, EngineEvents(), hold, away=region.away)
        leaving = Leaving(metadata, region.placement, region.local.values, membership.found_empty)
        upkeep = Upkeep(
            catalog,
            metadata,
            region.placement,
            hold,
            Collector(metadata, region.placement, config.storage.gc_grace_s, hold, region.away),
            repairer,
            surveying,
            rebalancer,
            membership.moved,
            leaving.look,
            Checking(Fsck(metadata, region.placement, buffers, surveying, hold.refresh, rebalancer.partition), notes),
            config.node.data_path / "surveyed",
            config.storage.uploads_expire_s,
        )
        writing = Writing(plan.node_id, metadata, region, native, buffers)
        salvage = salvage_parts(plan, catalog, metadata, region, writing)
        patient: dict[str, TaskHandler] = {
            "survey": upkeep.survey,
            "raise": Raising(metadata, catalog, region, writing),
        }
        worker = partial(_worker, process, catalog)
        return BackgroundParts(
            catalog,
            catalog.rights,
            _checks(process, region, membership),
            [drive_probe(drive) for drive in region.local.values()],
            QuorumWatch(region),
            membership,
            {
                **upkeep.tasks,
                "membership": membership.run,
                "tasks": worker(upkeep.work, TASKS_AT_ONCE),
                "moves": worker(upkeep.moves, MOVES_AT_ONCE),
                "patient tasks": worker(patient, 1),
                "dumps": worker({"dump": salvage.dump}, 1),
                "jobs": jobs.run,
                "recovery": recovery.run,
                **salvage.tasks,
            },
            {**upkeep.handlers, **salvage.handlers, **jobs.handlers},
            recovery,
            opened.pop_all().aclose,
        )


def _worker(
    process: Child, catalog: GlobalCatalog, work: Mapping[str, TaskHandler], at_once: int
) -> Callable[[], Awaitable[None]]:
    """What does these tasks of the queue, for ever."""
    name, region = process.plan.node_id.hex(), process.config.node.region
    return TaskWorker(catalog.tasks, name, region, work, task_ended, at_once).run


def _checks(process: Child, region: Region, membership: Membership) -> list[Check]:
    """What readiness asks, beside drives and workers."""
    config, plan = process.config, process.plan
    return [
        Check("global_database", _database_check(plan.global_url, Database.GLOBAL), forgiving=True),
        Check("regional_database", _database_check(plan.regional_url, Database.REGIONAL), forgiving=True),
        Check("node_lease", partial(_lease_check, membership)),
        recovery_check(region),
        *(
            [Check("peers", partial(_peers_check, region, config.cluster.init_cluster), forgiving=True)]
            if region.peers is not None
            else []
        ),
    ]


def _jobs(
    process: Child, metadata: RegionalStore, notes: RegionNotes, region: Region, buffers: Buffers, native: NativeExecutor
) -> Jobs:
    config, plan, placement = process.config, process.plan, region.placement
    urls, holder = (plan.global_url, plan.regional_url), plan.node_id.hex()
    backup = Backup(urls, notes, placement, buffers, native, codec_for, holder, config.node.region, fingerprint(config))
    return Jobs(backup, Refiller(plan.regional_url, metadata, placement, buffers, native, codec_for, config.node.data_path))


async def _lease_check(membership: Membership) -> None:
    if not membership.lease.held:
        raise Unavailable("this node holds no lease")


async def _peers_check(region: Region, may_begin: bool) -> None:
    """Whether this node is one of several. `may_begin`: it need not have met another one yet."""
    if (seen := region.cut_off_from) and not region.serves_alone():
        raise Unavailable(f"none of the {seen} other nodes that are up answers this one: the network between them, or a clock")
    if region.peers is not None and not region.peers.last_seen and not may_begin:
        raise Unavailable("no other node has answered yet (start the first one with --init-cluster)")


def _tables(plan: Plan, changed: Callable[[], None]) -> ClusterTables:
    return ClusterTables(plan.regional_url, name=f"anvil {plan.name}", changed=changed)


def _database_check(url: str, database: Database) -> Callable[[], Awaitable[None]]:
    up = instruments.DB_UP.labels(database.value)

    async def ask() -> None:
        ok = False  # also when nobody waits for the answer any longer
        try:
            found = await check(url, database)
            ok = found.ok
        finally:
            up.set(float(ok))
        if not ok:
            raise DatabaseUnavailable("; ".join(found.problems))

    return ask
