"""Exact usage: folded totals plus the deltas that triggers append, read in one snapshot.

Invariant: usage of a bucket = its `usage_folded` row + all its `usage_deltas` rows, at every moment; folding moves, never counts.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from anvil.model.records import Usage

_SUMS: Final = "sum(objects)::bigint, sum(bytes)::bigint, sum(upload_parts)::bigint, sum(upload_bytes)::bigint"

USAGE_SQL: Final = f"""
    SELECT b.bucket_id, u.objects, u.bytes, u.upload_parts, u.upload_bytes
    FROM (SELECT unnest($1::bigint[]) AS bucket_id UNION SELECT bucket_id FROM buckets WHERE $1::bigint[] IS NULL) AS b
    LEFT JOIN (
        SELECT bucket_id, {_SUMS} FROM (
            SELECT bucket_id, objects, bytes, upload_parts, upload_bytes FROM usage_folded
            UNION ALL SELECT bucket_id, objects, bytes, upload_parts, upload_bytes FROM usage_deltas
        ) AS entry WHERE $1::bigint[] IS NULL OR bucket_id = ANY ($1) GROUP BY bucket_id
    ) AS u (bucket_id, objects, bytes, upload_parts, upload_bytes) USING (bucket_id) ORDER BY bucket_id"""

# One folder at a time (the lock is tried, not waited for); what a bounded batch leaves is for the next call.
FOLD_SQL: Final = f"""
    WITH leader AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtext('anvil usage fold')) AS ours),
    moved AS (
        DELETE FROM usage_deltas
        WHERE (SELECT ours FROM leader) AND ctid = ANY (ARRAY(SELECT ctid FROM usage_deltas LIMIT $1)) RETURNING *
    ),
    folded AS (
        INSERT INTO usage_folded AS f SELECT bucket_id, {_SUMS} FROM moved GROUP BY bucket_id ORDER BY bucket_id
        ON CONFLICT (bucket_id) DO UPDATE SET objects = f.objects + EXCLUDED.objects, bytes = f.bytes + EXCLUDED.bytes,
            upload_parts = f.upload_parts + EXCLUDED.upload_parts, upload_bytes = f.upload_bytes + EXCLUDED.upload_bytes
    )
    SELECT count(*) FROM moved"""

# Folded rows of deleted buckets that add up to nothing.
FORGET_SQL: Final = """
    DELETE FROM usage_folded f WHERE objects = 0 AND bytes = 0 AND upload_parts = 0 AND upload_bytes = 0
      AND NOT EXISTS (SELECT FROM buckets b WHERE b.bucket_id = f.bucket_id)
      AND NOT EXISTS (SELECT FROM usage_deltas d WHERE d.bucket_id = f.bucket_id)"""


def usage_from(row: asyncpg.Record) -> Usage:
    return Usage(row[0], row[1] or 0, row[2] or 0, row[3] or 0, row[4] or 0)
