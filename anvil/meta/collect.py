"""What the collector, repair and sweeps ask: garbage, repair debts, ownership.

Invariants: garbage is only handed out while the database is known to be the one that wrote the outbox (`collection_allowed`);
a blob that some row names is never handed out, as garbage or as a debt's opposite; rows are consumed by deleting them, never
by position. Every statement here may be repeated. Not here: removing shards (`tasks`).
"""

from __future__ import annotations

from typing import Final

import asyncpg

from anvil.meta.rows import unpack_scheme
from anvil.model.records import BlobRef, Debt, Garbage, KeyMode

ALLOWED_SQL: Final = "SELECT collection_allowed($1)"

# The oldest rows by id, then those of them that are old enough: ids and times agree closely, and this never reads the whole
# outbox. A row whose blob is owned after all (a version moved between tables) says nothing any more: its owner's end writes
# another.
GARBAGE_SQL: Final = """
    WITH head AS MATERIALIZED (
        SELECT h.*, blob_owned(h.blob_id) AS owned
        FROM (SELECT * FROM outbox ORDER BY outbox_id LIMIT $1) AS h WHERE h.since_us <= now_us() - $2::bigint
    ),
    settled AS (DELETE FROM outbox WHERE outbox_id = ANY (ARRAY(SELECT outbox_id FROM head WHERE owned)))
    SELECT outbox_id, bucket_id, blob_id, scheme FROM head WHERE NOT owned ORDER BY outbox_id"""

DONE_SQL: Final = "DELETE FROM outbox WHERE outbox_id = ANY ($1::bigint[])"

DEBTS_SQL: Final = """
    WITH head AS MATERIALIZED (
        SELECT d.*, blob_owned(d.blob_id) AS owned
        FROM (SELECT * FROM degraded WHERE due_us <= now_us() ORDER BY due_us, since_us LIMIT $1) AS d
    ),
    settled AS (DELETE FROM degraded WHERE blob_id = ANY (ARRAY(SELECT blob_id FROM head WHERE NOT owned)))
    SELECT bucket_id, blob_id, size, scheme, stripe_bytes, key_mode, missing FROM head WHERE owned ORDER BY due_us, since_us"""

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

OWE_SQL: Final = """
    INSERT INTO degraded (blob_id, bucket_id, size, scheme, stripe_bytes, key_mode, missing, corrupt)
    SELECT i.blob_id, $1, o.size, o.scheme, o.stripe_bytes, o.key_mode, i.missing, CASE WHEN $4::boolean THEN i.missing ELSE 0 END
    FROM (
        SELECT blob_id, bit_or(missing) AS missing FROM unnest($2::bytea[], $3::int[]) AS u (blob_id, missing) GROUP BY blob_id
    ) AS i
    CROSS JOIN LATERAL (
        SELECT size, scheme, stripe_bytes, key_mode FROM objects
        WHERE blob_id = i.blob_id AND blob_id IS NOT NULL AND inline IS NULL AND bucket_id = $1
        UNION ALL
        SELECT size, scheme, stripe_bytes, key_mode FROM parts
        WHERE blob_id = i.blob_id AND blob_id IS NOT NULL AND inline IS NULL AND bucket_id = $1
        UNION ALL
        SELECT size, scheme, stripe_bytes, key_mode FROM versions
        WHERE blob_id = i.blob_id AND blob_id IS NOT NULL AND inline IS NULL AND bucket_id = $1
        LIMIT 1
    ) AS o
    WHERE i.missing > 0 ORDER BY i.blob_id
    ON CONFLICT (blob_id) DO UPDATE SET
        missing = degraded.missing | EXCLUDED.missing, corrupt = degraded.corrupt | EXCLUDED.corrupt, due_us = 0"""

OWNED_SQL: Final = """
    SELECT blob_owned(i.blob_id) OR EXISTS (SELECT FROM outbox o WHERE o.blob_id = i.blob_id)
    FROM unnest($1::bytea[]) WITH ORDINALITY AS i (blob_id, ord) ORDER BY ord"""

HOLD_SQL: Final = """
    INSERT INTO settings (name, value) VALUES ('backup_hold', to_jsonb($1::text))
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()"""
RELEASE_SQL: Final = "DELETE FROM settings WHERE name = 'backup_hold'"


def garbage_from(row: asyncpg.Record) -> Garbage:
    return Garbage(row["outbox_id"], row["bucket_id"], row["blob_id"], unpack_scheme(row["scheme"]))


def debt_from(row: asyncpg.Record) -> Debt:
    blob = BlobRef(row["blob_id"], row["size"], unpack_scheme(row["scheme"]), row["stripe_bytes"], KeyMode(row["key_mode"]))
    return Debt(row["bucket_id"], blob, row["missing"])
