"""This node's drives: registered by the supervisor before anything serves, attached by every process.

Owns: which folder is which drive. The regional database says so (`meta/cluster.py`); the folders only say who they are. Invariants: a
folder that should hold a known drive and does not is a lost drive, never a new one; a known drive is known wherever it is mounted; a node
that is alone brings the layout up to date before it serves, one of several leaves that to the leader, but for the very first layout. Not
here: what a drive does (`shards/`), how a layout is computed (`model/layout.py`), when it changes (`node/layouts.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from anvil.base.config import Config, StorageConfig
from anvil.base.errors import DriveFailed, InvalidSetting
from anvil.base.limits import DRIVE_THREADS, LAYOUT_REMIND_S, VIEW_EVERY_S
from anvil.base.owned import OwnedTasks
from anvil.ec.executor import NativeExecutor
from anvil.meta.cluster import ClusterTables, DriveRow
from anvil.model.cluster import ClusterView, NodeId, NodeState
from anvil.model.records import DriveId, SessionId
from anvil.node.child import Plan
from anvil.node.health import DriveProbe
from anvil.node.layouts import LayoutKeeper
from anvil.shards.drive import LocalDrive
from anvil.shards.identity import read_identity
from anvil.shards.io import Io
from anvil.shards.nativeio import NativeJobs
from anvil.shards.waiting import Waiting

log = logging.getLogger(__name__)
NO_SESSION = bytes(16)


# -- before anything serves ----------------------------------------------------------------------------------------------------


async def prepare_drives(config: Config, regional_url: str, node_id: bytes) -> None:
    """Recover the drives that are there, initialise new ones, and bring tables and layout up to date. Raises InvalidSetting,
    DriveFailed, DatabaseUnavailable.
    """
    storage, cluster = config.storage, config.cluster
    async with ClusterTables(regional_url) as tables:
        if (region := await tables.belongs_to(config.node.region)) != config.node.region:
            raise InvalidSetting(
                f"the regional database is that of the region {region!r}, not of ANVIL_REGION={config.node.region!r}: give each region "
                "a database of its own, and each node the region of its database"
            )
        if cluster.listen is None:
            _refuse_company(await tables.view(), node_id)
        await tables.register_node(node_id, cluster.name or socket.gethostname(), cluster.zone, cluster.address)
        known = {row.path: row for row in await tables.drives(node_id)}
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        present = dict(await asyncio.gather(*(_who(path, label, executor) for path, label in _named(storage))))
        expected = assign(storage.drives, present, {path: row.drive_id for path, row in known.items()})
        capacities = {row.drive_id: row.capacity_bytes for row in known.values()}
        rows: list[DriveRow] = []
        full: set[DriveId] = set()
        try:
            for path, label in _named(storage):
                rows.append(await _prepare_drive(Path(path), label, expected[path], capacities, executor, full))
        finally:
            await executor.close()
        if unheard := full - {drive.drive_id for drive in (await tables.view()).drives}:
            await tables.close_region(
                f"its database is an empty one, but {len(unheard)} drives hold data. If the database was lost, see "
                "`anvil admin fsck --rebuild-metadata`; `anvil admin salvage accept --dump` opens the region"
            )
        here = {row.drive_id for row in rows}
        gone = [
            DriveRow(row.drive_id, row.path, row.capacity_bytes, "gone") for row in known.values() if row.drive_id not in here
        ]
        for row in gone:
            log.warning("a drive is no longer configured; what was on it is rebuilt from the others", extra={"folder": row.path})
        await tables.put_drives(node_id, [*rows, *gone])
        if cluster.listen is None or (cluster.init_cluster and not (await tables.view()).layouts):
            await LayoutKeeper(config.storage, cluster.repair_delay_s).at_start(tables, node_id)


def _refuse_company(view: ClusterView, node_id: NodeId) -> None:
    """A node without a cluster listener must have the region to itself. Raises InvalidSetting."""
    others = [node for node in view.nodes if node.node_id != node_id and node.state is not NodeState.REMOVED]
    if others:
        raise InvalidSetting(
            f"the region has other nodes ({', '.join(f'{node.name} {node.node_id.hex()}' for node in others[:3])}): set "
            "ANVIL_CLUSTER_LISTEN_ADDR to be one of them, or give up those that are no more with `anvil admin node remove`"
        )


async def await_layout(regional_url: str) -> None:
    """Until the region has a layout: the first node makes it. Raises DatabaseUnavailable."""
    looks = 0
    while True:
        async with ClusterTables(regional_url) as tables:
            if (await tables.view()).layouts:
                return
        if looks % int(LAYOUT_REMIND_S / VIEW_EVERY_S) == 0:
            log.warning("the region has no layout yet: start its first node with --init-cluster (ANVIL_INIT_CLUSTER=true)")
        looks += 1
        await asyncio.sleep(VIEW_EVERY_S)


def assign(
    paths: Sequence[str], present: Mapping[str, DriveId | None], known: Mapping[str, DriveId]
) -> dict[str, DriveId | None]:
    """Which drive belongs at which folder (None: a new one). `present`: the drives that are in the folders now; `known`: where each drive
    of this node was last. A known drive is recognised at any of the folders; a folder without its own drive, or with a stranger, keeps
    waiting for its own. Raises InvalidSetting when one drive would be in two places.
    """
    at: dict[DriveId, str] = {}
    expected: dict[str, DriveId | None] = {}
    for path in paths:
        found, own = present[path], known.get(path)
        drive_id = found if found is not None and (own is None or found in known.values()) else own
        expected[path] = drive_id
        if drive_id is None:
            continue
        if drive_id in at:
            other = at[drive_id]
            empty = path if found is None else other if present[other] is None else None
            raise InvalidSetting(
                f"{empty!r} is empty, and its drive is at {other if empty == path else path!r} now: take the empty one out of ANVIL_DRIVES"
                if empty is not None
                else f"{other!r} and {path!r} of ANVIL_DRIVES hold the same drive: one is a copy of the other, take it out"
            )
        at[drive_id] = path
    return expected


def _named(storage: StorageConfig) -> list[tuple[str, str]]:
    return list(zip(storage.drives, storage.labels, strict=True))


async def _who(path: str, label: str, executor: NativeExecutor) -> tuple[str, DriveId | None]:
    """Which drive is in that folder. One that hangs is not there: the node starts without it."""
    io = Io(executor, NativeJobs(), Waiting(label))
    try:
        identity = await io.ask(read_identity, Path(path), label)
    except DriveFailed as error:
        log.error("the drive %s cannot be read", label, extra={"folder": path, "reason": error.message})
        return path, None
    finally:
        io.close()
    return path, bytes.fromhex(identity.drive_id) if identity is not None else None


async def _prepare_drive(
    path: Path,
    label: str,
    expected: DriveId | None,
    capacities: Mapping[DriveId, int],
    executor: NativeExecutor,
    full: set[DriveId],
) -> DriveRow:
    """`full`: those that hold any shard are added to it."""
    if expected is None:
        _make_folder(path)
    drive = await LocalDrive.attach(
        path, expected=expected, create=expected is None, executor=executor, jobs=NativeJobs(), session=NO_SESSION, label=label
    )
    try:
        # The size of a known drive stays as it was registered: a layout does not move because a file system was resized.
        capacity_bytes = capacities.get(drive.drive_id) or drive.capacity_bytes
        if not drive.readable:
            log.error(
                "the drive %s is not there; starting without it", label, extra={"folder": str(path), "reason": drive.reason}
            )
        elif await drive.partitions():
            full.add(drive.drive_id)
        return DriveRow(drive.drive_id, str(path), capacity_bytes, "active" if drive.readable else "failed")
    finally:
        await drive.close()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"the drive {str(path)!r} cannot be made ({error.strerror}): name a folder that can") from None


# -- in each process -----------------------------------------------------------------------------------------------------------


async def attach_drives(
    plan: Plan, session: SessionId, hold: Callable[[], bool] = lambda: False
) -> tuple[ClusterView, dict[DriveId, LocalDrive]]:
    """The region as it is now, and this process's drives. Those that are not there are neither readable nor writable until they are. Each
    has threads of its own, so that one that hangs holds up nobody else's jobs. `hold`: while it says so, nothing is unlinked. Raises
    DriveFailed when the node was not prepared, DatabaseUnavailable.
    """
    async with ClusterTables(plan.regional_url) as tables:
        view = await tables.view()
    known = {drive.label: drive.drive_id for drive in view.drives if drive.node_id == plan.node_id and drive.state != "gone"}
    drives: dict[DriveId, LocalDrive] = {}
    for path, label in _named(plan.config.storage):
        if not view.layouts or path not in known:
            raise DriveFailed("the drives of this node were not prepared")
        drives[known[path]] = await LocalDrive.attach(
            Path(path),
            expected=known[path],
            create=False,
            executor=NativeExecutor(asyncio.get_running_loop(), DRIVE_THREADS),
            jobs=NativeJobs(),
            session=session,
            label=label,
            hold=hold,
        )
    return view, drives


async def use_session(drives: Iterable[LocalDrive], owned: OwnedTasks, session: SessionId) -> None:
    """Have every drive write under that session from now on. What is under way on a drive ends by itself, however long it takes."""
    for drive in drives:
        owned.start(drive.use_session(session))
    await asyncio.sleep(0)  # each has changed over, and waits at most for its old segment to be closed


async def detach_drives(drives: Iterable[LocalDrive]) -> None:
    """Leave every drive cleanly, but for those that hang: they are left as they are, and their threads end with the process."""
    await asyncio.gather(*map(_detach, drives))


async def _detach(drive: LocalDrive) -> None:
    await drive.close()
    if isinstance(drive.executor, NativeExecutor) and not drive.stalled:
        await drive.executor.close()


def unwritable(drives: Iterable[LocalDrive]) -> dict[str, str]:
    """The drives that this process cannot write to now, with the reason."""
    return {drive.label: drive.reason or "not writable" for drive in drives if not drive.writable}


def drive_probe(drive: LocalDrive) -> DriveProbe:
    """For readiness: a write and a flush, where the folder holds the drive that belongs there."""

    def look() -> None:
        identity = read_identity(drive.path, drive.label)
        if identity is None:
            raise DriveFailed("the drive is not there")
        if bytes.fromhex(identity.drive_id) != drive.drive_id:
            raise DriveFailed("another drive is in its place")

    return DriveProbe(drive.path, drive.label, look)
