"""Rights as a tenant's own apps change them: the statements behind the Rights port, each with its audit row in one transaction.

Invariants: every statement is confined to one tenant; each may be run twice (`call` repeats it when the connection was lost), the second
time changing and recording nothing. Not here: who may do it (`api/operations/rights.py`), the operator's side (`admin`), the SQL of the
changes (`migrations/global/0003_rights.sql`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from anvil.base.errors import LimitExceeded, NoSuchBucket, PreconditionFailed, UnknownName
from anvil.base.limits import BUCKET_RIGHTS_BYTES_MAX, RIGHTS_PER_APP_MAX
from anvil.meta.coalesce import Rows
from anvil.model.identity import Actor, BucketRights, Grant, Policy

_RESOLVE_SQL: Final = """
    SELECT i.named, x.access_key FROM unnest($2::text[]) WITH ORDINALITY AS i (named, ord)
    LEFT JOIN apps x ON x.app_id = find_app($1, i.named) ORDER BY i.ord"""
_GRANT_SQL: Final = "SELECT outcome, key FROM grant_right($1, $2, $3, $4, $5, $6, $7, $8)"
_REVOKE_SQL: Final = "SELECT outcome, key FROM revoke_right($1, $2, $3, $4, $5, $6, $7)"
_PUBLIC_SQL: Final = "SELECT outcome FROM set_public_read($1, $2, $3, $4, $5, $6)"
_PUT_SQL: Final = """
    SELECT outcome, key, etag, changed_keys FROM put_bucket_rights($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""
# In the order of policy_etag. Of what is too large nothing is sent.
_READ_SQL: Final = """
    SELECT b.public_read, policy_etag(b.bucket_id, b.public_read, r.rights) AS etag, r.bytes,
        CASE WHEN r.bytes <= $3 THEN r.keys END AS keys,
        CASE WHEN r.bytes <= $3 THEN r.actions END AS actions,
        CASE WHEN r.bytes <= $3 THEN r.resources END AS resources
    FROM buckets b CROSS JOIN LATERAL (
        SELECT COALESCE(jsonb_agg(jsonb_build_array(p.app_id, p.action, p.resource) ORDER BY {order}), '[]') AS rights,
            COALESCE(sum(octet_length(x.access_key) + octet_length(p.action) + octet_length(p.resource)), 0) AS bytes,
            COALESCE(array_agg(x.access_key ORDER BY {order}), '{{}}') AS keys,
            COALESCE(array_agg(p.action ORDER BY {order}), '{{}}') AS actions,
            COALESCE(array_agg(p.resource ORDER BY {order}), '{{}}') AS resources
        FROM apps x JOIN policies p ON p.app_id = x.app_id
        WHERE x.tenant_id = $1 AND (p.resource = $2 OR starts_with(p.resource, $2 || '/'))) AS r
    WHERE b.name = $2 COLLATE "C" AND b.tenant_id = $1 AND b.state = 'active'""".format(
    order='p.app_id, p.action COLLATE "C", p.resource COLLATE "C"'
)
_AUDIT_SQL: Final = "INSERT INTO audit (who, source, action, resource, result, request_id) VALUES ($1, $2, $3, $4, $5, $6)"


class Changed(msgspec.Struct, frozen=True):
    """What a change did. `rows`: the cached rows that say what is so now, named as the change log names them."""

    changed: bool
    rows: tuple[str, ...]
    etag: str = ""


class RightsTable:
    """`query` runs a statement on the global database; `changed` tells the cache beside it. All raise DatabaseUnavailable."""

    def __init__(self, query: Callable[..., Awaitable[Rows]], changed: Callable[[], None]) -> None:
        self._query = query
        self._changed = changed

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> tuple[str, ...]:
        """Access keys of apps of the tenant, each named by access key or name. Raises UnknownName for the first that is not there."""
        found = []
        for row in await self._query(_RESOLVE_SQL, tenant_id, list(apps)):
            if row["access_key"] is None:
                raise _no_app(row["named"])
            found.append(row["access_key"])
        return tuple(found)

    async def grant(self, by: Actor, app: str, right: Policy) -> Changed:
        """Raises UnknownName, LimitExceeded."""
        args = (by.tenant_id, app, right.action, right.resource, RIGHTS_PER_APP_MAX, by.access_key, by.source, by.request_id)
        return self._done(await self._query(_GRANT_SQL, *args), app)

    async def revoke(self, by: Actor, app: str, right: Policy) -> Changed:
        """Raises UnknownName."""
        args = (by.tenant_id, app, right.action, right.resource, by.access_key, by.source, by.request_id)
        return self._done(await self._query(_REVOKE_SQL, *args), app)

    async def set_public(self, by: Actor, bucket: str, allow: bool) -> Changed:
        """Raises NoSuchBucket."""
        rows = await self._query(_PUBLIC_SQL, by.tenant_id, bucket, allow, by.access_key, by.source, by.request_id)
        if rows[0]["outcome"] == "no_bucket":
            raise NoSuchBucket(BucketName=bucket)
        return self._told(rows[0]["outcome"], (f"bucket:{bucket}",))

    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights:
        """Raises NoSuchBucket, LimitExceeded when there are more than can be shown."""
        rows = await self._query(_READ_SQL, tenant_id, bucket, BUCKET_RIGHTS_BYTES_MAX)
        if not rows:
            raise NoSuchBucket(BucketName=bucket)
        row = rows[0]
        if row["keys"] is None:
            raise LimitExceeded("The bucket has more rights than can be shown at once: an operator can list them by app.")
        found = zip(row["keys"], row["actions"], row["resources"], strict=True)
        return BucketRights(
            row["public_read"], tuple(Grant(key, Policy(action, what)) for key, action, what in found), row["etag"]
        )

    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> Changed:
        """Replace what `bucket_rights` shows, if that still has `wanted.etag`, or is what is wanted already. Grants name access keys.
        Raises NoSuchBucket, UnknownName, PreconditionFailed, LimitExceeded."""
        grants = wanted.grants
        row = (
            await self._query(
                _PUT_SQL,
                by.tenant_id,
                bucket,
                wanted.etag,
                wanted.public_read,
                [grant.app for grant in grants],
                [grant.right.action for grant in grants],
                [grant.right.resource for grant in grants],
                RIGHTS_PER_APP_MAX,
                by.access_key,
                by.source,
                by.request_id,
            )
        )[0]
        if row["outcome"] == "no_bucket":
            raise NoSuchBucket(BucketName=bucket)
        if row["outcome"] == "stale":
            raise PreconditionFailed("The bucket's policy changed since it was read.", Condition="if_match")
        self._refused(row, row["key"])
        touched = {*(row["changed_keys"] or ()), *(grant.app for grant in grants)}
        rows = (f"bucket:{bucket}", *(f"app:{key}" for key in sorted(touched)))
        return self._told(row["outcome"], rows, row["etag"])

    async def refused(self, by: Actor, action: str, resource: str, result: str) -> None:
        """Record an attempt that was refused."""
        await self._query(_AUDIT_SQL, by.access_key, by.source, action, resource, result, by.request_id)

    def _done(self, rows: Rows, app: str) -> Changed:
        self._refused(rows[0], app)
        return self._told(rows[0]["outcome"], (f"app:{rows[0]['key']}",))

    def _refused(self, row: Any, app: str) -> None:
        if row["outcome"] == "no_app":
            raise _no_app(app)
        if row["outcome"] == "too_many":
            raise LimitExceeded(f"The app {row['key']} has {RIGHTS_PER_APP_MAX} rights already: use wider resources.")

    def _told(self, outcome: str, rows: tuple[str, ...], etag: str = "") -> Changed:
        self._changed()
        return Changed(outcome == "changed", rows, etag)


def _no_app(named: str) -> UnknownName:
    return UnknownName(f"There is no app {named[:128]!r} in this tenant.")
