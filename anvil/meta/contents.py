"""Exchange of a blob for another with the same bytes, in the row of an object or part.

Invariants: the row changes only if it still names the old blob, decided under its lock, and nothing of it changes but where its bytes are:
version, ETag and times stay. The triggers send the old blob to the outbox. Not here: writing the new one (`tasks/raise_scheme.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from anvil.base.errors import AnvilError, ConditionalRequestConflict, DatabaseUnavailable
from anvil.meta.coalesce import Operation, Query, Rows
from anvil.meta.objects import FENCED, FENCES, SAME_KEY, fence_error
from anvil.meta.rows import pack_content
from anvil.model.records import ContentCommit

_SET: Final = "blob_id = i.blob_id, scheme = i.scheme, stripe_bytes = i.stripe_bytes, key_mode = i.key_mode"
_SQL: Final = f"""
    WITH {FENCES},
    input AS MATERIALIZED (
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bytea[], $5::int[], $6::bytea[], $7::bytea[], $8::int[],
            $9::int[], $10::smallint[])
        WITH ORDINALITY AS i (session_id, bucket_id, key, upload_id, number, old, blob_id, scheme, stripe_bytes, key_mode, ord)
    ),
    objects_written AS (
        UPDATE objects o SET {_SET} FROM input i
        WHERE i.number = 0 AND {FENCED} AND {SAME_KEY} AND o.blob_id = i.old AND o.inline IS NULL RETURNING i.ord
    ),
    parts_written AS (
        UPDATE parts p SET {_SET} FROM input i
        WHERE i.number > 0 AND {FENCED} AND p.bucket_id = ANY (ARRAY[i.bucket_id]) AND p.upload_id = ANY (ARRAY[i.upload_id])
          AND p.number = ANY (ARRAY[i.number]) AND p.blob_id = i.old AND p.inline IS NULL RETURNING i.ord
    )
    SELECT i.ord, i.ord IN (SELECT ord FROM objects_written UNION ALL SELECT ord FROM parts_written) AS written,
           i.session_id IN (SELECT session_id FROM live) AS live, i.bucket_id IN (SELECT bucket_id FROM fence) AS fence
    FROM input i"""
_SETTLE_SQL: Final = """
    SELECT i.ord FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::int[], $5::bytea[])
        WITH ORDINALITY AS i (bucket_id, key, upload_id, number, blob_id, ord)
    WHERE blob_owned(i.bucket_id, i.key, i.upload_id, i.number, i.blob_id)"""


def _order(item: ContentCommit) -> tuple[Any, ...]:
    owner = item.owner
    return (
        owner.bucket_id,
        owner.key if not owner.part_number else "",
        owner.version_id if owner.part_number else b"",
        owner.part_number,
    )


def _args(items: Sequence[ContentCommit]) -> list[object]:
    contents = [pack_content(item.content) for item in items]
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.owner.key for item in items],
        [item.owner.version_id for item in items],
        [item.owner.part_number for item in items],
        [item.old for item in items],
        *([content[column] for content in contents] for column in range(4)),
    ]


def _results(items: Sequence[ContentCommit], rows: Rows) -> Sequence[bool | AnvilError]:
    results: list[bool | AnvilError] = [DatabaseUnavailable()] * len(items)
    for row in rows:
        refusal = fence_error(row["live"], row["fence"]) or ConditionalRequestConflict()
        results[row["ord"] - 1] = True if row["written"] else refusal
    return results


def _settle_args(items: Sequence[ContentCommit]) -> list[object]:
    return [*_args(items)[1:5], [item.content.blob.blob_id for item in items]]


def _settled(items: Sequence[ContentCommit], rows: Rows) -> Sequence[bool | None]:
    found = {row["ord"] for row in rows}
    return [True if number in found else None for number in range(1, len(items) + 1)]


REPLACE: Final = Operation(
    "replace_content", Query(_SQL, _args, _results), order=_order, settle=Query(_SETTLE_SQL, _settle_args, _settled)
)
