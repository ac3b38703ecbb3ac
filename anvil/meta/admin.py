"""The operator's side of the global database: regions, tenants, apps, rights, usage.

Invariants: a secret leaves only through the call that made it (and through the lookup that authenticates); every statement may be
repeated. Not here: the command line (`cli`), checking of rights (`auth`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from anvil.base.errors import NameTaken, NoSuchBucket, UnknownName
from anvil.meta.coalesce import Rows
from anvil.meta.keyring import Keyring
from anvil.meta.regional import RegionalStore
from anvil.model.identity import Action, Policy, Tenant
from anvil.model.records import Usage

_KEY_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_RIGHT: Final = "concat_ws(' ', (SELECT a.access_key FROM apps a WHERE a.app_id = $1), $2::text, $3::text)"
_AUDIT_SQL: Final = """
    SELECT at_us, who, source, action, resource, result, request_id FROM audit
    WHERE at_us >= $1 AND ($2 = '' OR who = $2) AND ($3 = '' OR action = $3) AND ($4 = '' OR position($4 IN resource) > 0)
    ORDER BY audit_id DESC LIMIT $5"""
_REWRAP_TABLES: Final = (("apps", "app_id", "sealed_secret"), ("buckets", "bucket_id", "sealed_key"))


def _audited(change: str, action: str, resource: str, by: str = "operator") -> str:
    """`change` (a statement with RETURNING) and its rows in the audit, in one statement: neither is there without the other. `resource`: an
    expression over the parameters and the columns returned."""
    source = "anvil admin" if by == "operator" else "start"
    return f"""WITH changed AS ({change}), audited AS (
        INSERT INTO audit (who, source, action, resource, result) SELECT '{by}', '{source}', '{action}', {resource}, 'ok' FROM changed
    ) SELECT * FROM changed"""


class AuditRow(msgspec.Struct, frozen=True):
    """`who`: `operator` or an access key; `source`: from where; `request_id`: of the request that did it, if one did."""

    at_us: int
    who: str
    source: str
    action: str
    resource: str
    result: str
    request_id: str


class Credentials(msgspec.Struct, frozen=True):
    """An app's key pair, as shown once."""

    tenant: str
    app: str
    access_key: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key})"


class AppInfo(msgspec.Struct, frozen=True):
    """An app as listed: without its secret."""

    tenant: str
    name: str
    access_key: str
    secret_generation: int
    created_us: int
    policies: tuple[Policy, ...]


class RegionInfo(msgspec.Struct, frozen=True):
    """`endpoint`: the URL clients reach it under, "" where none was told. `stated`: by a setting or an operator, not by a listen
    address."""

    name: str
    endpoint: str
    stated: bool
    created_us: int


class BucketUsage(msgspec.Struct, frozen=True):
    tenant: str
    bucket: str
    public_read: bool
    usage: Usage


class Admin:
    """Administration. `query` runs a statement on the global database; `changed` tells the cache beside it. `regional`: the store of
    `region`."""

    def __init__(
        self,
        query: Callable[..., Awaitable[Rows]],
        keyring: Keyring,
        regional: RegionalStore,
        region: str,
        changed: Callable[[], None],
    ) -> None:
        self._query = query
        self._keyring = keyring
        self._regional = regional
        self._region = region
        self._changed = changed

    # -- regions and tenants ------------------------------------------------------------------------------------------

    async def create_region(self, name: str, endpoint: str = "", *, stated: bool = True, by: str = "operator") -> bool:
        """Idempotent; sets the endpoint where one is given, but never one that is not `stated` over one that was. True if the region is
        new."""
        sql = """INSERT INTO regions AS r (name, endpoint, stated) VALUES ($1, $2, $3 AND $2 <> '') ON CONFLICT (name) DO UPDATE
                 SET endpoint = EXCLUDED.endpoint, stated = EXCLUDED.stated
                 WHERE EXCLUDED.endpoint <> '' AND (EXCLUDED.stated OR NOT r.stated)
                     AND (r.endpoint, r.stated) IS DISTINCT FROM (EXCLUDED.endpoint, EXCLUDED.stated)
                 RETURNING xmax = 0 AS new"""
        rows = await self._query(_audited(sql, "region:set", "concat_ws(' ', $1, nullif($2, ''))", by), name, endpoint, stated)
        self._changed()
        return bool(rows and rows[0]["new"])

    async def regions(self) -> list[RegionInfo]:
        """By name."""
        sql = "SELECT name, endpoint, stated, created_us FROM regions ORDER BY name"
        return [RegionInfo(row["name"], row["endpoint"], row["stated"], row["created_us"]) for row in await self._query(sql)]

    async def create_tenant(self, name: str) -> Tenant:
        """Raises NameTaken."""
        sql = "INSERT INTO tenants (name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING tenant_id"
        rows = await self._query(_audited(sql, "tenant:create", "$1"), name)
        if not rows:
            raise NameTaken(f"There is a tenant {name!r} already.")
        return Tenant(rows[0]["tenant_id"], name)

    async def tenants(self) -> list[Tenant]:
        return [
            Tenant(row["tenant_id"], row["name"])
            for row in await self._query("SELECT tenant_id, name FROM tenants ORDER BY name")
        ]

    async def tenant(self, name: str) -> Tenant:
        """Raises UnknownName."""
        rows = await self._query("SELECT tenant_id FROM tenants WHERE name = $1", name)
        if not rows:
            raise UnknownName(f"There is no tenant {name!r}.")
        return Tenant(rows[0]["tenant_id"], name)

    # -- apps ---------------------------------------------------------------------------------------------------------

    async def create_app(
        self, tenant: str, name: str, *, access_key: str | None = None, secret: str | None = None, by: str = "operator"
    ) -> Credentials:
        """A new app without rights. The key pair is made up unless given. Raises UnknownName, NameTaken."""
        owner = await self.tenant(tenant)
        access_key = access_key or "AK" + "".join(secrets.choice(_KEY_ALPHABET) for _ in range(18))
        secret = secret or secrets.token_urlsafe(30)
        app_id = (await self._query("SELECT nextval(pg_get_serial_sequence('apps', 'app_id'))"))[0][0]
        sealed = self._keyring.wrap("apps", app_id, secret.encode())
        sql = """INSERT INTO apps (app_id, tenant_id, name, access_key, sealed_secret) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT DO NOTHING RETURNING app_id"""
        audited = _audited(sql, "app:create", "concat_ws(' ', $4::text, $6::text || '/' || $3)", by)
        rows = await self._query(audited, app_id, owner.tenant_id, name, access_key, sealed, tenant)
        if not rows and not await self._query("SELECT FROM apps WHERE app_id = $1", app_id):
            raise NameTaken(f"Tenant {tenant!r} has an app {name!r} already, or the access key is in use.")
        self._changed()
        return Credentials(tenant, name, access_key, secret)

    async def apps(self, tenant: str | None = None) -> list[AppInfo]:
        sql = """SELECT t.name AS tenant, a.name, a.access_key, a.secret_generation, a.created_us,
                     ARRAY(SELECT p.action FROM policies p WHERE p.app_id = a.app_id ORDER BY p.action, p.resource) AS actions,
                     ARRAY(SELECT p.resource FROM policies p WHERE p.app_id = a.app_id ORDER BY p.action, p.resource) AS resources
                 FROM apps a JOIN tenants t USING (tenant_id) WHERE $1::text IS NULL OR t.name = $1 ORDER BY t.name, a.name"""
        return [
            AppInfo(
                row["tenant"],
                row["name"],
                row["access_key"],
                row["secret_generation"],
                row["created_us"],
                tuple(Policy(action, resource) for action, resource in zip(row["actions"], row["resources"], strict=True)),
            )
            for row in await self._query(sql, tenant)
        ]

    async def reset_secret(self, tenant: str, app: str) -> Credentials:
        """A new secret; tokens and signatures of the old one end with it. Raises UnknownName."""
        app_id = await self._app_id(tenant, app)
        secret = secrets.token_urlsafe(30)
        sql = """UPDATE apps SET sealed_secret = $2, secret_generation = secret_generation + 1 WHERE app_id = $1
                 RETURNING access_key"""
        audited = _audited(sql, "app:reset-secret", "access_key")
        rows = await self._query(audited, app_id, self._keyring.wrap("apps", app_id, secret.encode()))
        if not rows:
            raise UnknownName(f"Tenant {tenant!r} has no app {app!r}.")
        self._changed()
        return Credentials(tenant, app, rows[0]["access_key"], secret)

    async def delete_app(self, tenant: str, app: str) -> None:
        """With its rights. Raises UnknownName."""
        sql = "DELETE FROM apps WHERE app_id = $1 RETURNING access_key"
        await self._query(_audited(sql, "app:delete", "access_key"), await self._app_id(tenant, app))
        self._changed()

    async def _app_id(self, tenant: str, app: str) -> int:
        sql = "SELECT a.app_id FROM apps a JOIN tenants t USING (tenant_id) WHERE t.name = $1 AND a.name = $2"
        rows = await self._query(sql, tenant, app)
        if not rows:
            raise UnknownName(f"Tenant {tenant!r} has no app {app!r}.")
        return int(rows[0]["app_id"])

    # -- rights -------------------------------------------------------------------------------------------------------

    async def grant(self, tenant: str, app: str, policy: Policy, *, by: str = "operator") -> None:
        """Idempotent. Raises UnknownName, InvalidArgument (no such action, or no resource)."""
        policy = Policy.parse(policy.action, policy.resource)
        sql = "INSERT INTO policies (app_id, action, resource) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING app_id"
        await self._query(
            _audited(sql, "policy:grant", _RIGHT, by), await self._app_id(tenant, app), policy.action, policy.resource
        )
        self._changed()

    async def revoke(self, tenant: str, app: str, policy: Policy) -> None:
        """Idempotent. Raises UnknownName when there is no such app."""
        sql = "DELETE FROM policies WHERE app_id = $1 AND action = $2 AND resource = $3 RETURNING app_id"
        await self._query(_audited(sql, "policy:revoke", _RIGHT), await self._app_id(tenant, app), policy.action, policy.resource)
        self._changed()

    # -- buckets and usage --------------------------------------------------------------------------------------------

    async def set_public(self, bucket: str, allow: bool) -> None:
        """Whether anonymous requests may read the bucket's objects. Raises NoSuchBucket."""
        sql = "UPDATE buckets SET public_read = $2 WHERE name = $1 AND state = 'active' RETURNING public_read"
        resource = "$1 || CASE WHEN public_read THEN ' public' ELSE ' private' END"
        rows = await self._query(_audited(sql, "bucket:set-public", resource), bucket, allow)
        if not rows:
            raise NoSuchBucket
        self._changed()

    async def usage(self, tenant: str | None = None) -> list[BucketUsage]:
        """Exact usage of every active bucket of this region, by tenant and bucket name. Only its own database knows that of another."""
        sql = """SELECT b.bucket_id, b.name, b.public_read, t.name AS tenant FROM buckets b JOIN tenants t USING (tenant_id)
                 WHERE b.state = 'active' AND b.region = $2 AND ($1::text IS NULL OR t.name = $1) ORDER BY t.name, b.name"""
        rows = await self._query(sql, tenant, self._region)
        usages = {usage.bucket_id: usage for usage in await self._regional.usage([row["bucket_id"] for row in rows])}
        return [BucketUsage(row["tenant"], row["name"], row["public_read"], usages[row["bucket_id"]]) for row in rows]

    # -- the first start, keys, audit ---------------------------------------------------------------------------------

    async def bootstrap(
        self,
        region: str,
        endpoint: str = "",
        *,
        stated: bool = False,
        tenant: str = "default",
        app: str = "default",
        access_key: str | None = None,
        secret: str | None = None,
    ) -> Credentials:
        """Make the region, the tenant and an app that may do everything, unless they are there; tell the region's `endpoint`, as
        `create_region`. Returns the app's key pair."""
        await self.create_region(region, endpoint, stated=stated, by="node")
        await self._query("INSERT INTO tenants (name) VALUES ($1) ON CONFLICT DO NOTHING", tenant)
        try:
            made = await self.create_app(tenant, app, access_key=access_key, secret=secret, by="node")
        except NameTaken:
            sql = """SELECT a.app_id, a.access_key, a.sealed_secret FROM apps a JOIN tenants t USING (tenant_id)
                     WHERE t.name = $1 AND a.name = $2"""
            rows = await self._query(sql, tenant, app)
            if not rows:
                raise
            found = self._keyring.unwrap("apps", rows[0]["app_id"], rows[0]["sealed_secret"]).decode()
            return Credentials(tenant, app, rows[0]["access_key"], found)
        await self.grant(tenant, app, Policy(Action.ANY, "*"), by="node")
        return made

    async def rewrap(self) -> int:
        """Seal every secret and bucket key anew with the current master key. Returns how many were sealed with an older one."""
        done = 0
        for table, row_id, column in _REWRAP_TABLES:
            for row in await self._query(f"SELECT {row_id} AS row_id, {column} AS sealed FROM {table}"):
                if self._keyring.is_current(row["sealed"]):
                    continue
                fresh = self._keyring.wrap(table, row["row_id"], self._keyring.unwrap(table, row["row_id"], row["sealed"]))
                sql = f"UPDATE {table} SET {column} = $2 WHERE {row_id} = $1 AND {column} = $3"
                await self._query(sql, row["row_id"], fresh, row["sealed"])
                done += 1
        return done

    async def audit(
        self, who: str, action: str, *, result: str, source: str = "", resource: str = "", request_id: str | None = None
    ) -> None:
        """Append to the audit table."""
        sql = "INSERT INTO audit (who, source, action, resource, result, request_id) VALUES ($1, $2, $3, $4, $5, $6)"
        await self._query(sql, who, source, action, resource, result, request_id or os.urandom(8).hex())

    async def audit_trail(self, since_us: int, who: str, action: str, resource: str, limit: int) -> list[AuditRow]:
        """The newest first. `who`, `action`: exactly these, "" any; `resource`: a part of it."""
        return [AuditRow(**row) for row in await self._query(_AUDIT_SQL, since_us, who, action, resource, limit)]


def tenant_totals(usages: Sequence[BucketUsage]) -> dict[str, tuple[int, int]]:
    """(objects, bytes) by tenant; bytes of uploads in progress included."""
    totals: dict[str, tuple[int, int]] = {}
    for entry in usages:
        objects, stored = totals.get(entry.tenant, (0, 0))
        totals[entry.tenant] = (objects + entry.usage.objects, stored + entry.usage.bytes + entry.usage.upload_bytes)
    return totals
