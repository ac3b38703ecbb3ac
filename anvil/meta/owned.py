"""A walk over every row that owns a blob, by key range: what fsck compares the drives with, and what the raising of schemes looks through.

Invariant: each statement reads at most `limit` rows behind a mark, along a primary key. Not here: who owns one blob (`collect.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from anvil.meta.rows import unpack_scheme
from anvil.model.records import BlobRef, KeyMode, OwnedMark, OwnedPage, Owner

_BLOB: Final = "blob_id, size, scheme, stripe_bytes, key_mode, inline IS NULL AND blob_id IS NOT NULL AS in_shards"
SQL: Final = {
    "objects": f"""
        SELECT bucket_id, key, version_id, 0 AS number, 0::bigint AS seq, {_BLOB} FROM objects
        WHERE (bucket_id, key) > ($1::bigint, $2::text COLLATE "C") ORDER BY bucket_id, key LIMIT $3""",
    "versions": f"""
        SELECT bucket_id, key, version_id, 0 AS number, seq, {_BLOB} FROM versions
        WHERE (bucket_id, key, seq) > ($1::bigint, $2::text COLLATE "C", $3::bigint) ORDER BY bucket_id, key, seq LIMIT $4""",
    "parts": f"""
        SELECT bucket_id, '' AS key, upload_id AS version_id, number, 0::bigint AS seq, {_BLOB} FROM parts
        WHERE (bucket_id, upload_id, number) > ($1::bigint, $2::bytea, $3::int) ORDER BY bucket_id, upload_id, number LIMIT $4""",
}
_NEXT: Final = {"objects": OwnedMark("versions"), "versions": OwnedMark("parts"), "parts": None}


def args(after: OwnedMark, limit: int) -> Sequence[Any]:
    """Of the statement for the mark's table."""
    if after.table == "parts":
        return after.bucket_id, after.upload_id, after.number, limit
    if after.table == "versions":
        return after.bucket_id, after.key, after.seq, limit
    return after.bucket_id, after.key, limit


def page_from(after: OwnedMark, rows: Sequence[asyncpg.Record], limit: int) -> OwnedPage:
    blobs = tuple(
        (
            Owner(row["bucket_id"], row["key"], row["version_id"], row["number"]),
            BlobRef(row["blob_id"], row["size"], unpack_scheme(row["scheme"]), row["stripe_bytes"], KeyMode(row["key_mode"])),
        )
        for row in rows
        if row["in_shards"]
    )
    if len(rows) < limit:
        return OwnedPage(blobs, _NEXT[after.table])
    last = rows[-1]
    upload_id = last["version_id"] if after.table == "parts" else b""
    return OwnedPage(blobs, OwnedMark(after.table, last["bucket_id"], last["key"], last["seq"], upload_id, last["number"]))
