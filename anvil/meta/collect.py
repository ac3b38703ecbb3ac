"""What the collector, repair and sweeps ask: garbage, repair debts, ownership.

Invariants: garbage is only handed out while the database is known to be the one that wrote the outbox (`collection_allowed`);
a blob that some row names is never handed out, as garbage or as a debt's opposite; rows are consumed by deleting them, never
by position. Every statement here may be repeated. Not here: removing shards (`tasks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from anvil.base.limits import LAYOUT_SLICES
from anvil.meta.rows import unpack_scheme
from anvil.model.records import BlobId, BlobRef, Debt, Garbage, KeyMode, Owner

_OWNER: Final = "bucket_id, key, version_id, part_number"

ALLOWED_SQL: Final = "SELECT collection_allowed($1)"
RECOVERY_SQL: Final = "SELECT EXISTS (SELECT FROM settings WHERE name = 'recovery')"

# The oldest rows by id, then those of them that are old enough: ids and times agree closely, and this never reads the whole
# outbox. A row whose blob is owned after all (a version moved between tables) says nothing any more: its owner's end writes
# another.
_GARBAGE: Final = f"""
    WITH head AS MATERIALIZED (
        SELECT h.*, blob_owned({_OWNER}, blob_id) AS owned
        FROM (%s) AS h WHERE h.since_us <= now_us() - $2::bigint
    ),
    settled AS (DELETE FROM outbox WHERE outbox_id = ANY (ARRAY(SELECT outbox_id FROM head WHERE owned)))
    SELECT outbox_id, {_OWNER}, blob_id, scheme FROM head WHERE NOT owned ORDER BY outbox_id"""
GARBAGE_SQL: Final = _GARBAGE % "SELECT * FROM outbox ORDER BY outbox_id LIMIT $1"

# By slice: the heads of the finest slices asked for ($3 to $4), each by its index, and of these the oldest.
_SLICES: Final = """
    SELECT o.* FROM generate_series({first}::int, {last}::int) AS s (n) CROSS JOIN LATERAL (
        SELECT * FROM {table} WHERE get_byte(blob_id, 0) >> 2 = s.n {due} ORDER BY {order} LIMIT $1
    ) AS o ORDER BY {order} LIMIT $1"""
GARBAGE_SLICES_SQL: Final = _GARBAGE % _SLICES.format(first="$3", last="$4", table="outbox", due="", order="outbox_id")
assert LAYOUT_SLICES == 1 << 6, "the expression above, and the indexes over it"

WAITING_SQL: Final = "SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS w"

DONE_SQL: Final = "DELETE FROM outbox WHERE outbox_id = ANY ($1::bigint[])"

_DEBTS: Final = f"""
    WITH head AS MATERIALIZED (
        SELECT d.*, blob_owned({_OWNER}, blob_id) AS owned
        FROM (%s) AS d
    ),
    settled AS (DELETE FROM degraded WHERE blob_id = ANY (ARRAY(SELECT blob_id FROM head WHERE NOT owned)))
    SELECT {_OWNER}, blob_id, size, scheme, stripe_bytes, key_mode, missing FROM head WHERE owned ORDER BY due_us, since_us"""
DEBTS_SQL: Final = _DEBTS % "SELECT * FROM degraded WHERE due_us <= now_us() ORDER BY due_us, since_us LIMIT $1"
DEBTS_SLICES_SQL: Final = _DEBTS % _SLICES.format(
    first="$2", last="$3", table="degraded", due="AND due_us <= now_us()", order="due_us, since_us"
)

DEFER_SQL: Final = "UPDATE degraded SET due_us = now_us() + $2::bigint WHERE blob_id = ANY ($1::bytea[])"

# A bit that is set while this runs stays set: then the blob is looked at once more.
PAID_SQL: Final = """
    WITH settled AS (DELETE FROM degraded WHERE blob_id = $1 AND missing & ~$2::int = 0)
    UPDATE degraded SET missing = missing & ~$2::int, corrupt = corrupt & ~$2::int
    WHERE blob_id = $1 AND missing & ~$2::int <> 0"""

# Counted up to a bound, since it is asked every few seconds: beyond it, the number only says "many".
UNHEALTHY_SQL: Final = """
    SELECT coalesce(sum(bit_count((missing & ~corrupt)::bit(32))), 0)::bigint AS missing,
           coalesce(sum(bit_count((missing & corrupt)::bit(32))), 0)::bigint AS corrupt
    FROM (SELECT missing, corrupt FROM degraded LIMIT $1) AS d"""

# What is owed comes from the row that names the blob, so a blob is here once, whatever its caller knew of its owner.
OWE_SQL: Final = f"""
    INSERT INTO degraded (blob_id, {_OWNER}, size, scheme, stripe_bytes, key_mode, missing, corrupt)
    SELECT i.blob_id, o.*, bit_or(i.missing), CASE WHEN $7::boolean THEN bit_or(i.missing) ELSE 0 END
    FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::int[], $5::bytea[], $6::int[])
        AS i ({_OWNER}, blob_id, missing)
    CROSS JOIN LATERAL (
        SELECT bucket_id, key, version_id, 0, size, scheme, stripe_bytes, key_mode FROM objects
        WHERE i.part_number = 0 AND bucket_id = i.bucket_id AND key = i.key COLLATE "C" AND blob_id = i.blob_id AND inline IS NULL
        UNION ALL
        SELECT bucket_id, '', upload_id, number, size, scheme, stripe_bytes, key_mode FROM parts
        WHERE bucket_id = i.bucket_id AND upload_id = i.version_id AND number = i.part_number AND blob_id = i.blob_id AND inline IS NULL
        UNION ALL
        SELECT bucket_id, key, version_id, 0, size, scheme, stripe_bytes, key_mode FROM versions
        WHERE i.part_number = 0 AND bucket_id = i.bucket_id AND key = i.key COLLATE "C" AND blob_id = i.blob_id AND inline IS NULL
        LIMIT 1
    ) AS o ({_OWNER}, size, scheme, stripe_bytes, key_mode)
    WHERE i.missing > 0 GROUP BY i.blob_id, o.{", o.".join(_OWNER.split(", "))}, o.size, o.scheme, o.stripe_bytes, o.key_mode
    ORDER BY i.blob_id
    ON CONFLICT (blob_id) DO UPDATE SET
        missing = degraded.missing | EXCLUDED.missing, corrupt = degraded.corrupt | EXCLUDED.corrupt, due_us = 0"""

OWNERSHIP_SQL: Final = f"""
    SELECT CASE WHEN blob_owned({_OWNER}, i.blob_id) THEN 2
                WHEN (SELECT true FROM outbox g WHERE g.blob_id = i.blob_id LIMIT 1) THEN 1 ELSE 0 END
    FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::int[], $5::bytea[]) WITH ORDINALITY
        AS i ({_OWNER}, blob_id, ord) ORDER BY ord"""

DUE_SLICES_SQL: Final = """
    SELECT DISTINCT true AS garbage, get_byte(blob_id, 0) * $1 / 256 AS slice
    FROM (SELECT blob_id, since_us FROM outbox ORDER BY outbox_id LIMIT $3) AS g WHERE since_us <= now_us() - $2::bigint
    UNION ALL
    SELECT DISTINCT false, get_byte(blob_id, 0) * $1 / 256
    FROM (SELECT blob_id FROM degraded WHERE due_us <= now_us() ORDER BY due_us, since_us LIMIT $3) AS d"""

NOTE_SQL: Final = """
    INSERT INTO settings (name, value) VALUES ($1, to_jsonb($2::text))
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()"""
NOTED_SQL: Final = "SELECT value #>> '{}' FROM settings WHERE name = $1"
HOLD_SQL: Final = """
    INSERT INTO settings (name, value) VALUES ('backup_hold', to_jsonb($1::text))
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()"""
RELEASE_SQL: Final = "DELETE FROM settings WHERE name = 'backup_hold'"


def pack_owners(blobs: Sequence[tuple[Owner, BlobId]]) -> tuple[list[object], ...]:
    """The five columns that OWE_SQL and OWNERSHIP_SQL begin with."""
    return (
        [owner.bucket_id for owner, _ in blobs],
        [owner.key for owner, _ in blobs],
        [owner.version_id for owner, _ in blobs],
        [owner.part_number for owner, _ in blobs],
        [blob_id for _, blob_id in blobs],
    )


def _owner_from(row: asyncpg.Record) -> Owner:
    return Owner(row["bucket_id"], row["key"], row["version_id"], row["part_number"])


def garbage_from(row: asyncpg.Record) -> Garbage:
    return Garbage(row["outbox_id"], _owner_from(row), row["blob_id"], unpack_scheme(row["scheme"]))


def debt_from(row: asyncpg.Record) -> Debt:
    blob = BlobRef(row["blob_id"], row["size"], unpack_scheme(row["scheme"]), row["stripe_bytes"], KeyMode(row["key_mode"]))
    return Debt(_owner_from(row), blob, row["missing"])
