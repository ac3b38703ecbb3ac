"""The global database as requests see it: apps by access key, buckets by name; buckets created and deleted across two databases.

Owns: one connection to the global database, and the order of steps of bucket changes. Invariant: a bucket is `active` in the
global database only while its fence row is in the regional one: create = global `creating`, fence, global `active`; delete =
global `deleting`, fence removed (which proves emptiness), global row removed. Every step is idempotent, so whoever finds a bucket
in between may carry on (`resume_bucket_changes`). Not here: who may do it (`auth`), which names are valid (`api`),
administration (`admin`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg

from anvil.base.errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    DatabaseUnavailable,
    IllegalLocationConstraint,
    NoSuchBucket,
    OperationAborted,
    PermanentRedirect,
    TooManyBuckets,
    UnknownName,
)
from anvil.base.limits import BUCKET_CHANGE_STALE_S, BUCKETS_PER_TENANT_MAX, CHANGE_LOG_KEEP_S, DATABASE_WAIT_S
from anvil.meta.admin import Admin
from anvil.meta.cache import ChangeCache
from anvil.meta.coalesce import Coalescer, Observe, Operation, Query, Rows, call
from anvil.meta.keyring import KEY_BYTES, Keyring
from anvil.meta.link import Link, states
from anvil.meta.regional import RegionalStore
from anvil.meta.rights import RightsTable
from anvil.meta.tasks import TaskQueue
from anvil.model.dump import SYSTEM_BUCKET
from anvil.model.identity import App, Bucket, BucketState, Policy, Tenant
from anvil.model.records import BucketId

log = logging.getLogger(__name__)

_APP_SQL: Final = """
    SELECT i.ord, a.app_id, a.name, a.access_key, a.sealed_secret, a.secret_generation, t.tenant_id, t.name AS tenant,
        ARRAY(SELECT p.action FROM policies p WHERE p.app_id = a.app_id ORDER BY p.action, p.resource) AS actions,
        ARRAY(SELECT p.resource FROM policies p WHERE p.app_id = a.app_id ORDER BY p.action, p.resource) AS resources
    FROM unnest($1::text[]) WITH ORDINALITY AS i (access_key, ord)
    CROSS JOIN LATERAL (SELECT * FROM apps x WHERE x.access_key = i.access_key LIMIT 1) AS a
    JOIN tenants t ON t.tenant_id = a.tenant_id"""
_BUCKET_COLUMNS: Final = """b.bucket_id, b.name, b.region, b.created_us, b.state, b.public_read, b.sealed_key, b.meta_shard,
    t.tenant_id, t.name AS tenant"""
_BUCKET_SQL: Final = f"""
    SELECT i.ord, {_BUCKET_COLUMNS} FROM unnest($1::text[]) WITH ORDINALITY AS i (name, ord)
    CROSS JOIN LATERAL (SELECT * FROM buckets x WHERE x.name = i.name COLLATE "C" LIMIT 1) AS b
    JOIN tenants t ON t.tenant_id = b.tenant_id WHERE b.state = 'active'"""
_BUCKETS_SQL: Final = f"""
    SELECT {_BUCKET_COLUMNS} FROM buckets b JOIN tenants t ON t.tenant_id = b.tenant_id
    WHERE b.tenant_id = $1 AND b.state = 'active' ORDER BY b.name"""
_BY_ID_SQL: Final = f"SELECT {_BUCKET_COLUMNS} FROM buckets b JOIN tenants t ON t.tenant_id = b.tenant_id WHERE b.bucket_id = $1"
_REGIONS_SQL: Final = "SELECT name, endpoint FROM regions"
_STATE_SQL: Final = """
    UPDATE buckets SET state = $3, state_us = now_us() WHERE bucket_id = $1 AND state = ANY ($2::text[]) RETURNING bucket_id"""
# Once its fence is gone a bucket is dead, whatever another deletion, which had found it full before, made of its state since.
_GONE_SQL: Final = "DELETE FROM buckets WHERE bucket_id = $1"
_STALE_SQL: Final = """
    SELECT bucket_id, state FROM buckets
    WHERE state <> 'active' AND region = $1 AND state_us <= now_us() - $2::bigint ORDER BY state_us"""


class GlobalCatalog:
    """Implements `anvil.engine.ports.Catalog`. Make it in the running loop, `start` it, `close` it. `admin`: the operator's side,
    `tasks`: the queue, over the same connection.

    `regional` is the store of `region`, the one this node serves; buckets of other regions can be looked up but not made here.
    `observe`: told of every batch.
    """

    def __init__(
        self,
        url: str,
        keyring: Keyring,
        regional: RegionalStore,
        region: str,
        *,
        name: str = "anvil",
        wait_s: float = DATABASE_WAIT_S,
        observe: Observe = lambda statement, rows: None,
    ) -> None:
        self._keyring = keyring
        self._regional = regional
        self._region = region
        self._wait_s = wait_s
        self._link = Link(url, f"{name} global", on_connect=self._connected)
        self._cache = ChangeCache(self._link, wait_s=wait_s)
        self._apps: Coalescer[str, App | None] = Coalescer(
            self._link,
            Operation("app", Query(_APP_SQL, lambda keys: (list(keys),), self._apps_from)),
            wait_s=wait_s,
            observe=observe,
        )
        self._buckets: Coalescer[str, Bucket | None] = Coalescer(
            self._link,
            Operation("bucket", Query(_BUCKET_SQL, lambda names: (list(names),), self._buckets_from)),
            wait_s=wait_s,
            observe=observe,
        )
        self.admin = Admin(self.query, keyring, regional, region, self._cache.hasten)
        self.rights = RightsTable(self.query, self._cache.hasten)
        self.tasks = TaskQueue(self.query)

    async def start(self) -> None:
        """Connect. Raises DatabaseUnavailable."""
        async with self._link.lock:
            await self._link.connected(asyncio.get_running_loop().time() + self._wait_s)
        self._apps.start()
        self._buckets.start()

    async def close(self) -> None:
        await self._apps.close()
        await self._buckets.close()
        await self._cache.close()
        await self._link.close()

    @property
    def up(self) -> bool:
        return self._link.up

    def connections(self) -> dict[str, int]:
        """How many are busy, idle and down."""
        return states((self._link,))

    async def query(self, sql: str, *args: object) -> Rows:
        """A statement that may be run twice, on the global database."""
        return await call(self._link, sql, *args, wait_s=self._wait_s)

    async def _connected(self, connection: asyncpg.Connection) -> None:
        await self._cache.listen(connection)
        await self.tasks.listen(connection)

    # -- the Catalog port ---------------------------------------------------------------------------------------------

    async def app(self, access_key: str) -> App | None:
        return await self._cache.get("app", access_key, lambda: self._apps.submit(access_key))

    async def bucket(self, name: str) -> Bucket | None:
        return await self._cache.get("bucket", name, lambda: self._buckets.submit(name))

    async def changes(self) -> Sequence[str]:
        """`app:ACCESS_KEY`, `bucket:NAME` and `region:NAME` of rows changed since the last call, or `*`. Raises DatabaseUnavailable; what
        could not be reported then is reported by the next call."""
        return await self._cache.changes()

    async def hastened(self, timeout_s: float) -> None:
        """Until something is known to have changed since the log was read last, or for `timeout_s`. A hint: notifications can be lost."""
        await self._cache.hastened(timeout_s)

    async def regions(self) -> Mapping[str, str]:
        """Not cached here: the workers keep them."""
        return {row["name"]: row["endpoint"] for row in await self.query(_REGIONS_SQL)}

    async def buckets(self, tenant_id: int) -> Sequence[Bucket]:
        return [self._bucket_from(row) for row in await self.query(_BUCKETS_SQL, tenant_id)]

    async def create_bucket(self, tenant_id: int, name: str, region: str) -> Bucket:
        if region != self._region:
            raise IllegalLocationConstraint
        bucket_id = 0
        while bucket_id <= SYSTEM_BUCKET:
            bucket_id = int.from_bytes(os.urandom(8), "big") >> 1
        sealed = self._keyring.wrap("buckets", bucket_id, os.urandom(KEY_BYTES))
        sql = "SELECT outcome, claimed_id FROM claim_bucket($1, $2, $3, $4, $5, $6)"
        outcome, claimed = (await self.query(sql, bucket_id, tenant_id, name, region, sealed, BUCKETS_PER_TENANT_MAX))[0]
        match outcome:
            case "exists":
                raise BucketAlreadyExists
            case "owned":
                raise BucketAlreadyOwnedByYou
            case "deleting" | "elsewhere":
                raise OperationAborted
            case "too_many":
                raise TooManyBuckets
            case "no_region":
                raise IllegalLocationConstraint
            case "no_tenant":
                raise UnknownName("The tenant does not exist.")
        activated = await self._finish_creating(claimed)
        self._cache.hasten()
        rows = await self.query(_BY_ID_SQL, claimed)
        if not rows:
            raise OperationAborted  # somebody else finished the creation, and deleted the bucket
        # Two creators at once: the one whose claim it was is told that it made the bucket.
        if claimed != bucket_id and not activated:
            raise BucketAlreadyOwnedByYou
        return self._bucket_from(rows[0])

    async def bucket_by_id(self, bucket_id: BucketId) -> Bucket | None:
        """For background work, which knows rows and no names; whatever its state."""
        rows = await self.query(_BY_ID_SQL, bucket_id)
        return self._bucket_from(rows[0]) if rows else None

    async def delete_bucket(self, bucket: Bucket) -> None:
        if bucket.region != self._region:
            raise PermanentRedirect(Bucket=bucket.name, Region=bucket.region)  # nothing here can tell whether it is empty
        # Most attempts on a full bucket end here, without making it invisible even for a moment.
        if not await self._regional.bucket_is_empty(bucket.bucket_id):
            raise BucketNotEmpty
        if not await self.query(_STATE_SQL, bucket.bucket_id, [BucketState.ACTIVE, BucketState.DELETING], BucketState.DELETING):
            self._cache.hasten()
            raise NoSuchBucket
        try:
            await self._finish_deleting(bucket.bucket_id)
        finally:
            self._cache.hasten()

    # -- steps of a change --------------------------------------------------------------------------------------------

    async def _finish_creating(self, bucket_id: BucketId) -> bool:
        """True if it was this call that made the bucket active. However late it comes, it brings nothing back."""
        if not await self._regional.add_bucket(bucket_id):
            return False
        return bool(await self.query(_STATE_SQL, bucket_id, [BucketState.CREATING], BucketState.ACTIVE))

    async def _finish_deleting(self, bucket_id: BucketId) -> None:
        try:
            await self._regional.drop_bucket(bucket_id)
        except BucketNotEmpty:
            await self.query(_STATE_SQL, bucket_id, [BucketState.DELETING], BucketState.ACTIVE)
            raise
        await self.query(_GONE_SQL, bucket_id)

    async def resume_bucket_changes(self, stale_s: float = BUCKET_CHANGE_STALE_S) -> int:
        """Carry on what a worker left in between `stale_s` ago or longer; trim what is kept for late ones. Returns how many were
        resumed."""
        rows = await self.query(_STALE_SQL, self._region, int(stale_s * 1_000_000))
        for row in rows:
            log.info("bucket %d was left %s: carrying on", row["bucket_id"], row["state"])
            if row["state"] == BucketState.CREATING:
                await self._finish_creating(row["bucket_id"])
                continue
            try:
                await self._finish_deleting(row["bucket_id"])
            except BucketNotEmpty:
                log.info("bucket %d is not empty: active again", row["bucket_id"])
        await self.query("DELETE FROM change_log WHERE at_us < now_us() - $1::bigint", int(CHANGE_LOG_KEEP_S * 1_000_000))
        await self._regional.forget_dropped_buckets()
        return len(rows)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _apps_from(self, items: Sequence[str], rows: Rows) -> Sequence[App | None]:
        apps: list[App | None] = [None] * len(items)
        for row in rows:
            secret = self._keyring.unwrap("apps", row["app_id"], row["sealed_secret"]).decode()
            policies = tuple(Policy(action, resource) for action, resource in zip(row["actions"], row["resources"], strict=True))
            tenant = Tenant(row["tenant_id"], row["tenant"])
            apps[row["ord"] - 1] = App(
                row["app_id"], tenant, row["name"], row["access_key"], secret, row["secret_generation"], policies
            )
        return apps

    def _buckets_from(self, items: Sequence[str], rows: Rows) -> Sequence[Bucket | None]:
        buckets: list[Bucket | None] = [None] * len(items)
        for row in rows:
            buckets[row["ord"] - 1] = self._bucket_from(row)
        return buckets

    def _bucket_from(self, row: Any) -> Bucket:
        if row is None:
            raise DatabaseUnavailable
        return Bucket(
            bucket_id=row["bucket_id"],
            tenant=Tenant(row["tenant_id"], row["tenant"]),
            name=row["name"],
            region=row["region"],
            created_us=row["created_us"],
            state=BucketState(row["state"]),
            public_read=row["public_read"],
            key=self._keyring.unwrap("buckets", row["bucket_id"], row["sealed_key"]),
            meta_shard=row["meta_shard"],
        )
