"""`anvil admin` over the databases: the AdminOps of `cli/admin_ops.py` by `meta`; and over the running node where it is about its shards.

Owns: how an app is named (by access key, or by a name that is unique); which drive may be given up. Not here: SQL, printing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from anvil.base.config import Config
from anvil.base.errors import Conflict, DriveFailed, InvalidArgument, Unavailable, UnknownName
from anvil.cli.admin_ops import AppRow, AuditEntry, DriveInfo, NewKeys, RegionRow, UsageRow
from anvil.meta.admin import Admin, AppInfo, Credentials
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.cluster import ClusterTables, DriveRow
from anvil.meta.coalesce import Observe
from anvil.meta.keyring import Keyring
from anvil.meta.regional import RegionalStore
from anvil.meta.tasks import TaskQueue
from anvil.model.identity import Policy, Tenant
from anvil.node.admin_cluster import Audit, ClusterAdmin
from anvil.node.admin_salvage import SalvageAdmin
from anvil.node.admin_tasks import TaskAdmin
from anvil.node.channel import Channel, connect
from anvil.node.checking import CheckState, Wanted
from anvil.node.datadir import DataDirectory
from anvil.node.jobs import JobState
from anvil.shards.identity import read_identity
from anvil.tasks.surveyor import SurveyState

SURVEY_LOOK_S = 0.2


@asynccontextmanager
async def open_catalog(
    config: Config, global_url: str, regional_url: str, name: str, observe: Observe = lambda statement, rows: None
) -> AsyncIterator[tuple[GlobalCatalog, RegionalStore]]:
    """Both databases, connected. `name`: shown in pg_stat_activity. `observe`: told of every batch. Raises DatabaseUnavailable."""
    regional = RegionalStore(regional_url, name=name, observe=observe)
    catalog = GlobalCatalog(
        global_url, Keyring(config.security.master_key), regional, config.node.region, name=name, observe=observe
    )
    try:
        await regional.start()
        await catalog.start()
        yield catalog, regional
    finally:
        await catalog.close()
        await regional.close()


@asynccontextmanager
async def open_admin(config: Config, global_url: str, regional_url: str) -> AsyncIterator[DatabaseAdmin]:
    """For one command."""
    async with open_catalog(config, global_url, regional_url, "anvil admin") as (catalog, regional):
        record = audit(catalog.admin)
        cluster, tasks = ClusterAdmin(config, regional_url, record), TaskAdmin(TaskQueue(catalog.query), record)
        salvage = SalvageAdmin(config, catalog.query, regional.query, record)
        drives = NodeDrives(config, regional_url, record)
        yield DatabaseAdmin(catalog.admin, config.node.region, drives, cluster, tasks, salvage)


def audit(admin: Admin) -> Callable[[str, str, str], Awaitable[None]]:
    """Writes down what an operator does: action, resource, result."""
    return partial(_audit, admin)


async def _audit(admin: Admin, action: str, resource: str, result: str) -> None:
    await admin.audit("operator", action, result=result, source="anvil admin", resource=resource)


class NodeDrives:
    """The drives of the node on this data directory. `audit`: only who changes nothing does without."""

    def __init__(self, config: Config, regional_url: str, audit: Audit | None = None) -> None:
        self._url = regional_url
        self._audit = audit
        self._directory = DataDirectory(config.node.data_path)

    async def list(self) -> Sequence[DriveInfo]:
        async with ClusterTables(self._url) as tables:
            return [_drive_info(row) for row in await tables.drives(self._directory.node_id())]

    async def replace(self, path: str) -> DriveInfo:
        if self._audit is None:
            raise RuntimeError("a change without an audit")
        node_id = self._directory.node_id()
        async with ClusterTables(self._url) as tables:
            rows = {row.path: row for row in await tables.drives(node_id)}
            row = rows.get(path)
            if row is None:
                raise UnknownName(f"no drive of this node belongs at {path!r}: `anvil admin drive list` shows them")
            if _drive_info(row).state == "active":
                raise Conflict(f"the drive at {path!r} is there: to take it out, remove it from ANVIL_DRIVES and restart")
            await tables.put_drives(node_id, [msgspec.structs.replace(row, state="gone")])
        await self._audit("drive:replace", f"{row.drive_id.hex()} at {path}", "ok")
        return msgspec.structs.replace(_drive_info(row), state="gone")


def _drive_info(row: DriveRow) -> DriveInfo:
    try:
        identity = read_identity(Path(row.path), row.path)
    except DriveFailed:
        identity = None
    state = "absent" if identity is None else "active" if bytes.fromhex(identity.drive_id) == row.drive_id else "other"
    return DriveInfo(row.path, row.drive_id.hex(), state, row.capacity_bytes)


async def survey(config: Config, deep: bool, wait: bool, look: Callable[[SurveyState], None] = lambda state: None) -> SurveyState:
    """Have the running node look at all its shards; with `wait`, until it has, and `look` is shown how far it is. Raises Unavailable."""
    async with node_channel(config) as channel:
        number = await channel.call("survey.ask", deep, int)
        state = await channel.call("survey.state", None, SurveyState)
        while wait and not (state.number >= number and state.over):
            if state.number >= number:
                look(state)
            await asyncio.sleep(SURVEY_LOOK_S)
            state = await channel.call("survey.state", None, SurveyState)
        return state


async def fsck(config: Config, wanted: Wanted, look: Callable[[CheckState], None] = lambda state: None) -> CheckState:
    """Have the running node check everything, and wait until it has; `look` is shown how far it is. Raises Unavailable."""
    async with node_channel(config) as channel:
        number = await channel.call("fsck.ask", wanted, int)
        state = await channel.call("fsck.state", None, CheckState)
        while not (state.number >= number and state.over):
            if state.number >= number:
                look(state)
            await asyncio.sleep(SURVEY_LOOK_S)
            state = await channel.call("fsck.state", None, CheckState)
        return state


async def job(config: Config, method: str, wanted: object, look: Callable[[JobState], None]) -> JobState:
    """Have the running node do a long job, and wait until it is over; `look` is shown how far it is. Raises Unavailable, Conflict."""
    async with node_channel(config) as channel:
        number = await channel.call(method, wanted, int)
        while True:
            state = await channel.call("job.state", None, JobState)
            if state.number != number:
                raise Unavailable("the node's background process was restarted, and the job is lost: begin it again")
            look(state)
            if state.over:
                return state
            await asyncio.sleep(SURVEY_LOOK_S)


async def cancel_job(config: Config) -> bool:
    """Have the running node give up its long job. False where none runs. Raises Unavailable."""
    async with node_channel(config) as channel:
        return await channel.call("job.cancel", None, bool)


@asynccontextmanager
async def node_channel(config: Config) -> AsyncIterator[Channel]:
    """The background process of the node that runs on this data directory. Raises Unavailable."""
    try:
        channel = await connect(config.node.data_path / "run" / "background.sock", {}, {}, lambda closed: None)
    except OSError as error:
        raise Unavailable(f"no node runs on {config.node.data_dir!r}, or it is not yours ({error.strerror})") from None
    try:
        yield channel
    finally:
        channel.close()


class DatabaseAdmin:
    """AdminOps over `meta.admin.Admin`."""

    def __init__(
        self, admin: Admin, region: str, drives: NodeDrives, cluster: ClusterAdmin, tasks: TaskAdmin, salvage: SalvageAdmin
    ) -> None:
        self._admin = admin
        self._region = region
        self.drive_list = drives.list
        self.drive_replace = drives.replace
        self.node_list = cluster.node_list
        self.node_drain = cluster.node_drain
        self.node_remove = cluster.node_remove
        self.layout_show = cluster.layout_show
        self.layout_history = cluster.layout_history
        self.task_list = tasks.task_list
        self.task_retry = tasks.task_retry
        self.task_cancel = tasks.task_cancel
        self.salvage_show = salvage.salvage_show
        self.salvage_list = salvage.salvage_list
        self.salvage_open = salvage.salvage_open
        self.salvage_accept = salvage.salvage_accept
        self.salvage_reject = salvage.salvage_reject
        self.salvage_end = salvage.salvage_end

    async def region_create(self, name: str, endpoint: str) -> None:
        await self._admin.create_region(name, endpoint)

    async def region_list(self) -> Sequence[RegionRow]:
        return [
            RegionRow(one.name, one.endpoint, one.created_us, one.name == self._region) for one in await self._admin.regions()
        ]

    async def tenant_create(self, name: str) -> Tenant:
        return await self._admin.create_tenant(name)

    async def tenant_list(self) -> Sequence[Tenant]:
        return await self._admin.tenants()

    async def app_create(self, tenant: str, name: str) -> NewKeys:
        return _keys(await self._admin.create_app(tenant, name))

    async def app_list(self, tenant: str | None) -> Sequence[AppRow]:
        return [AppRow(app.tenant, app.name, app.access_key) for app in await self._admin.apps(tenant)]

    async def app_reset_secret(self, app: str, tenant: str | None) -> NewKeys:
        found = await self._app(app, tenant)
        return _keys(await self._admin.reset_secret(found.tenant, found.name))

    async def app_delete(self, app: str, tenant: str | None) -> None:
        found = await self._app(app, tenant)
        await self._admin.delete_app(found.tenant, found.name)

    async def policy_grant(self, app: str, tenant: str | None, policy: Policy) -> bool:
        found = await self._app(app, tenant)
        await self._admin.grant(found.tenant, found.name, policy)
        return policy not in found.policies

    async def policy_revoke(self, app: str, tenant: str | None, policy: Policy) -> bool:
        found = await self._app(app, tenant)
        await self._admin.revoke(found.tenant, found.name, policy)
        return policy in found.policies

    async def policy_list(self, app: str, tenant: str | None) -> Sequence[Policy]:
        return (await self._app(app, tenant)).policies

    async def bucket_set_public(self, name: str, allow: bool) -> None:
        await self._admin.set_public(name, allow)

    async def usage(self) -> Sequence[UsageRow]:
        return [
            UsageRow(
                row.tenant,
                self._region,
                row.bucket,
                row.usage.objects,
                row.usage.bytes,
                row.usage.upload_parts,
                row.usage.upload_bytes,
            )
            for row in await self._admin.usage()
        ]

    async def audit(self, since_us: int, who: str, action: str, resource: str, limit: int) -> Sequence[AuditEntry]:
        return [
            AuditEntry(**msgspec.structs.asdict(row))
            for row in await self._admin.audit_trail(since_us, who, action, resource, limit)
        ]

    async def _app(self, named: str, tenant: str | None) -> AppInfo:
        found = [app for app in await self._admin.apps(tenant) if named in (app.access_key, app.name)]
        by_key = [app for app in found if app.access_key == named]
        if len(by_key or found) > 1:
            tenants = ", ".join(sorted(app.tenant for app in found))
            raise InvalidArgument(f"several tenants have an app {named!r} ({tenants}): add --tenant, or use its access key")
        if not found:
            raise UnknownName(f"there is no app {named!r}: `anvil admin app list` shows them")
        return (by_key or found)[0]


def _keys(made: Credentials) -> NewKeys:
    return NewKeys(made.tenant, made.app, made.access_key, made.secret)
