"""What `anvil admin` asks of the databases, as a Protocol, and the rows it gets back.

Owns: the contract between the commands and their implementation (`node/assemble.py: open_admin`). Invariant: a secret is in
a `NewKeys` and nowhere else. Not here: SQL, printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from anvil.base.config import Config
from anvil.base.errors import Unavailable
from anvil.model.identity import Policy, Tenant
from anvil.node.datadir import DataDirectory, running_node


class NewKeys(msgspec.Struct, frozen=True):
    """A key pair that was just made: the only time its secret is shown."""

    tenant: str
    app: str
    access_key: str
    secret: str

    def __repr__(self) -> str:
        return f"NewKeys({self.access_key})"


class AppRow(msgspec.Struct, frozen=True):
    tenant: str
    app: str
    access_key: str


class RegionRow(msgspec.Struct, frozen=True):
    """`endpoint`: where clients reach it, "" where none was told. `here`: whether it is the region of these settings."""

    region: str
    endpoint: str
    created_us: int
    here: bool


class UsageRow(msgspec.Struct, frozen=True):
    """Of one bucket. `upload_*`: parts of uploads in progress."""

    tenant: str
    region: str
    bucket: str
    objects: int
    bytes: int
    upload_parts: int
    upload_bytes: int


class DriveInfo(msgspec.Struct, frozen=True):
    """`state`: active, absent (not there now), other (another drive in its place), gone (given up)."""

    path: str
    drive: str
    state: str
    capacity_bytes: int


class NodeInfo(msgspec.Struct, frozen=True):
    """`node`: its id in hex. `up`: its lease runs. `share`: of all places of the layout in use, 0 to 1. `holds`: whether any layout that is
    not retired names it, or its drives were not found empty since it was drained."""

    node: str
    name: str
    zone: str
    address: str
    state: str
    up: bool
    since_us: int
    drives: int
    capacity_bytes: int
    share: float
    holds: bool


class NodeChange(msgspec.Struct, frozen=True):
    """`changed`: False where it was so before."""

    node: str
    name: str
    state: str
    changed: bool


class DriveShare(msgspec.Struct, frozen=True):
    """A drive of a layout. `share`: of all its places."""

    node: str
    name: str
    drive: str
    label: str
    capacity_bytes: int
    share: float


class LayoutMove(msgspec.Struct, frozen=True):
    """How far the move to a layout is. `writers_behind`: nothing is moved while there are any. `eta_s`: None until it can be told."""

    slices: int
    slices_done: int
    shards: int
    bytes: int
    writers_behind: int
    eta_s: float | None


class LayoutInfo(msgspec.Struct, frozen=True):
    """The layout in use. `scheme`: of what is written now, over so many failure domains (`node` or `drive`). `move`: None once no older
    layout is left."""

    version: int
    scheme: str
    domain: str
    domains: int
    drives: tuple[DriveShare, ...]
    move: LayoutMove | None


class LayoutPast(msgspec.Struct, frozen=True):
    version: int
    state: str
    created_us: int
    since_us: int
    slices: int
    slices_done: int
    shards: int
    bytes: int


class TaskInfo(msgspec.Struct, frozen=True):
    task: int
    type: str
    status: str
    payload: dict[str, Any]
    attempt: int
    max_attempts: int
    locked_by: str
    error: str


class AuditEntry(msgspec.Struct, frozen=True):
    """`who`: `operator`, `node` or an app's access key."""

    at_us: int
    who: str
    source: str
    action: str
    resource: str
    result: str
    request_id: str


class RecoveryInfo(msgspec.Struct, frozen=True):
    """`recovery`: whether the region is in it, since when and why; `closed`: it serves no object. `dump`: what it was rebuilt from, "" for
    none; None before a rebuild. `waiting`: candidates that are neither accepted nor rejected."""

    recovery: bool
    closed: bool
    since_us: int
    why: str
    dump: str | None
    dump_us: int
    dump_rows: int
    waiting: int


class CandidateRow(msgspec.Struct, frozen=True):
    """An object or part that drives hold and no row names. `upload`: of a part. `obstacle`: why it cannot be accepted, "" if it can.
    `replaces_us`: when the object that it would replace was written."""

    bucket: str
    key: str
    part: int
    upload: str
    blob: str
    size: int
    etag: str
    modified_us: int
    obstacle: str
    replaces_us: int | None


class Accepted(msgspec.Struct):
    """How many candidates are visible now; of which a later one was taken; which stay, by what stands in the way."""

    accepted: int = 0
    older: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)


class AdminOps(Protocol):
    """Every call raises DatabaseUnavailable; those that name something UnknownName, those that make something NameTaken.

    `app`: an access key, or a name that is unique in `tenant` (or, without one, in the deployment; else InvalidArgument).
    """

    async def region_create(self, name: str, endpoint: str) -> None:
        """`endpoint`: a URL; "" leaves what was told."""
        ...

    async def region_list(self) -> Sequence[RegionRow]: ...
    async def tenant_create(self, name: str) -> Tenant: ...
    async def tenant_list(self) -> Sequence[Tenant]: ...
    async def app_create(self, tenant: str, name: str) -> NewKeys: ...
    async def app_list(self, tenant: str | None) -> Sequence[AppRow]: ...
    async def app_reset_secret(self, app: str, tenant: str | None) -> NewKeys: ...
    async def app_delete(self, app: str, tenant: str | None) -> None: ...
    async def policy_grant(self, app: str, tenant: str | None, policy: Policy) -> bool:
        """False if it was granted before."""
        ...

    async def policy_revoke(self, app: str, tenant: str | None, policy: Policy) -> bool:
        """False if there was no such row."""
        ...

    async def policy_list(self, app: str, tenant: str | None) -> Sequence[Policy]: ...
    async def bucket_set_public(self, name: str, allow: bool) -> None: ...
    async def usage(self) -> Sequence[UsageRow]:
        """Of the buckets of this region: only its own database knows that of another."""
        ...

    async def drive_list(self) -> Sequence[DriveInfo]:
        """Of the node on this data directory."""
        ...

    async def drive_replace(self, path: str) -> DriveInfo:
        """Give the drive that belongs at that folder up for good. Raises UnknownName, Conflict while it is there."""
        ...

    # `name` of a node: its name, its id in hex, or the beginning of that; raises UnknownName, InvalidArgument where several are meant.
    async def node_list(self) -> Sequence[NodeInfo]: ...
    async def node_drain(self, name: str) -> NodeChange:
        """Raises Conflict where the nodes that are left could not hold what is stored."""
        ...

    async def node_remove(self, name: str, force: bool) -> NodeChange:
        """Raises Conflict for a node that is up (unless `force`), and always where data could be lost with it."""
        ...

    async def layout_show(self) -> LayoutInfo: ...
    async def layout_history(self, limit: int) -> Sequence[LayoutPast]:
        """The newest first."""
        ...

    async def task_list(self, status: str | None, kind: str | None, limit: int) -> Sequence[TaskInfo]:
        """The newest first."""
        ...

    async def task_retry(self, number: int) -> None:
        """A dead one, or one that waits. Raises Conflict."""
        ...

    async def task_cancel(self, number: int) -> None:
        """One that waits or runs. Raises Conflict."""
        ...

    async def audit(self, since_us: int, who: str, action: str, resource: str, limit: int) -> Sequence[AuditEntry]:
        """The newest first. "" means any; `resource`: a part of it."""
        ...

    async def salvage_show(self) -> RecoveryInfo: ...
    async def salvage_list(self, bucket: str | None, limit: int) -> Sequence[CandidateRow]:
        """By bucket and key, the latest first. Raises UnknownName."""
        ...

    async def salvage_open(self) -> RecoveryInfo:
        """Serve what the region was rebuilt from. Raises Conflict where it is not closed."""
        ...

    # Of one bucket, of one key in it, or (None, None) all. Raise UnknownName.
    async def salvage_accept(self, bucket: str | None, key: str | None) -> Accepted: ...
    async def salvage_reject(self, bucket: str | None, key: str | None) -> int: ...
    async def salvage_end(self) -> None:
        """Raises Conflict while the region is closed or anything waits."""
        ...


class Opener(Protocol):
    """Connects to the databases."""

    def __call__(self, config: Config, global_url: str, regional_url: str) -> AbstractAsyncContextManager[AdminOps]: ...


def database_urls(config: Config) -> tuple[str, str]:
    """The URLs of the configuration, or of the embedded PostgreSQL of the node that runs on the data directory. Raises
    Unavailable.
    """
    if not config.database.embedded:
        return config.database.global_url, config.database.regional_url
    running = running_node(config.node.data_path)
    if running is None:
        raise Unavailable(
            f"no node runs on {config.node.data_dir!r}, and the embedded PostgreSQL runs only with it: start it with "
            f"`anvil server --data-dir {config.node.data_dir}`, or name its folder with --data-dir"
        )
    return running.global_url, running.regional_url


def with_secrets(config: Config) -> Config:
    """The configuration with the secrets of the data directory, where it has them."""
    path = Path(config.node.data_dir)
    return DataDirectory(path).with_secrets(config) if (path / "secrets").exists() else config
