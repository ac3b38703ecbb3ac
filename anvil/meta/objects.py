"""Visible objects: get, put, conditional put, change of attributes, delete. Each is one statement per batch.

Invariants: a write happens only while its writer's session and its bucket's row are held FOR KEY SHARE (taken by the sub-
selects that the row filter evaluates first); conditions are evaluated by the statement that writes, on the row it has locked
(ON CONFLICT DO UPDATE ... WHERE, or UPDATE re-checking after its wait); `seq` and `modified_us` are assigned under that lock
too. Outbox and usage are the triggers' business. Not here: multipart (`uploads`), listing, retries and errors of batches
(`coalesce`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from anvil.base.errors import (
    AnvilError,
    ConditionalRequestConflict,
    DatabaseUnavailable,
    NoSuchBucket,
    NoSuchKey,
    PreconditionFailed,
    WriterFenced,
)
from anvil.meta.coalesce import Operation, Query, Rows
from anvil.meta.rows import (
    OBJECT_COLUMNS,
    object_from,
    pack_attributes,
    pack_checksum,
    pack_condition,
    pack_content,
)
from anvil.model.records import BucketId, Committed, Condition, ObjectRecord, PutCommit, SessionId, VersionId

# The fences of a batch. `$1` is its sessions, `$2` its buckets. ARRAY(SELECT ...) is evaluated once, before the first row passes.
FENCES: Final = """
    live AS MATERIALIZED (SELECT session_id FROM writer_sessions WHERE session_id = ANY ($1::bytea[]) FOR KEY SHARE),
    fence AS MATERIALIZED (SELECT bucket_id FROM buckets WHERE bucket_id = ANY ($2::bigint[]) ORDER BY bucket_id FOR KEY SHARE)"""
FENCED: Final = (
    "i.session_id = ANY (ARRAY(SELECT session_id FROM live)) AND i.bucket_id = ANY (ARRAY(SELECT bucket_id FROM fence))"
)
# Joins the row to be changed. As an equality the planner, while it believes the table small, may read all of it in key order
# beside the batch; a condition on an array it can only use to probe the index from the batch's side. For the same reason
# sub-selects here are scalar: EXISTS it may answer by reading a whole table into a hash. (tests/integration/meta/test_plans.py)
SAME_KEY: Final = 'o.bucket_id = ANY (ARRAY[i.bucket_id]) AND o.key = ANY (ARRAY[i.key COLLATE "C"])'
WHY_SQL: Final = """
    SELECT (SELECT true FROM writer_sessions w WHERE w.session_id = i.session_id) IS TRUE AS live,
           (SELECT true FROM buckets b WHERE b.bucket_id = i.bucket_id) IS TRUE AS fence
    FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS i (session_id, bucket_id, ord) ORDER BY ord"""


class DeleteCommit(msgspec.Struct, frozen=True):
    session: SessionId
    bucket_id: BucketId
    key: str
    condition: Condition


class ReplaceCommit(msgspec.Struct, frozen=True):
    commit: PutCommit
    expected: VersionId


# -- why a row was not written -------------------------------------------------------------------------------------------


def _why_args(items: Sequence[Any]) -> Sequence[object]:
    return [item.session for item in items], [item.bucket_id for item in items]


def _why_results(items: Sequence[Any], rows: Rows) -> Sequence[AnvilError | None]:
    """Neither a session nor a bucket ever comes back, so what is gone now may be what was gone then."""
    return [fence_error(row["live"], row["fence"]) for row in rows]


def fence_error(live: bool, fence: bool) -> AnvilError | None:
    if not live:
        return WriterFenced()
    return None if fence else NoSuchBucket()


WHY: Final[Query[Any, Any]] = Query(WHY_SQL, _why_args, _why_results)


def _by_key(item: Any) -> tuple[BucketId, str]:
    return item.bucket_id, item.key  # code points order as UTF-8 bytes do, so this is the order of the index


# -- get -----------------------------------------------------------------------------------------------------------------

_GET_SQL: Final = f"""
    SELECT i.ord, o.* FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS i (bucket_id, key, ord)
    CROSS JOIN LATERAL (
        SELECT {OBJECT_COLUMNS} FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C" LIMIT 1
    ) AS o"""

ObjectName = tuple[BucketId, str]


def _get_args(items: Sequence[ObjectName]) -> Sequence[object]:
    return [item[0] for item in items], [item[1] for item in items]


def _get_results(items: Sequence[ObjectName], rows: Rows) -> Sequence[ObjectRecord | None]:
    results: list[ObjectRecord | None] = [None] * len(items)
    for row in rows:
        at = row["ord"] - 1
        results[at] = object_from(row, *items[at])
    return results


GET: Final = Operation("get_object", Query(_GET_SQL, _get_args, _get_results))


# -- put -----------------------------------------------------------------------------------------------------------------

_COLUMNS: Final = """session_id, bucket_id, key, version_id, size, etag, attributes, checksum,
    blob_id, scheme, stripe_bytes, key_mode, inline, missing"""
_INPUT: Final = """unnest($1::bytea[], $2::bigint[], $3::text[], $4::bytea[], $5::bigint[], $6::text[], $7::jsonb[], $8::bytea[],
    $9::bytea[], $10::int[], $11::int[], $12::smallint[], $13::bytea[], $14::int[]"""
_PUT_COLUMNS: Final = (
    "bucket_id, key, version_id, size, etag, attributes, checksum, blob_id, scheme, stripe_bytes, key_mode, inline"
)
_PUT_VALUES: Final = ", ".join("i." + column for column in _PUT_COLUMNS.split(", "))
_SET_NEW: Final = "is_null = true, seq = nextval('version_seq'), modified_us = now_us(), upload_id = NULL, part_count = 0"
_SET_EXCLUDED: Final = f"{_SET_NEW}, " + ", ".join(f"{c} = EXCLUDED.{c}" for c in _PUT_COLUMNS.split(", ")[2:])
_SET_INPUT: Final = f"{_SET_NEW}, " + ", ".join(f"{c} = i.{c}" for c in _PUT_COLUMNS.split(", ")[2:])
_OWED: Final = """
    owed AS (
        INSERT INTO degraded (blob_id, bucket_id, key, version_id, part_number, size, scheme, stripe_bytes, key_mode, missing)
        SELECT i.blob_id, i.bucket_id, i.key, i.version_id, 0, i.size, i.scheme, i.stripe_bytes, i.key_mode, i.missing
        FROM input i WHERE i.missing <> 0 AND i.version_id IN (SELECT version_id FROM written)
    )"""

_PUT_SQL: Final = f"""
    WITH {FENCES},
    input AS NOT MATERIALIZED (SELECT * FROM {_INPUT}) WITH ORDINALITY AS i ({_COLUMNS}, ord)),
    written AS (
        INSERT INTO objects ({_PUT_COLUMNS})
        SELECT {_PUT_VALUES} FROM input i WHERE {FENCED} ORDER BY ord
        ON CONFLICT (bucket_id, key) DO UPDATE SET {_SET_EXCLUDED}
        RETURNING version_id, seq, modified_us
    ), {_OWED}
    SELECT version_id, seq, modified_us FROM written"""

# If-Match cannot be an upsert (it must not insert), If-None-Match cannot be an update (it must). The last SELECT reads the
# statement's snapshot, in which a key without a row was absent when the condition was decided.
_PUT_IF_SQL: Final = f"""
    WITH {FENCES},
    input AS MATERIALIZED (
        SELECT * FROM {_INPUT}, $15::jsonb[], $16::jsonb[]) WITH ORDINALITY AS i ({_COLUMNS}, if_match, if_none_match, ord)
    ),
    conditions AS MATERIALIZED (SELECT bucket_id, key, if_none_match FROM input),
    inserted AS (
        INSERT INTO objects AS o ({_PUT_COLUMNS})
        SELECT {_PUT_VALUES} FROM input i WHERE i.if_match IS NULL AND {FENCED} ORDER BY ord
        ON CONFLICT (bucket_id, key) DO UPDATE SET {_SET_EXCLUDED}
        WHERE condition_holds(o.etag, NULL, (
            SELECT c.if_none_match FROM conditions c WHERE c.bucket_id = EXCLUDED.bucket_id AND c.key = EXCLUDED.key))
        RETURNING version_id, seq, modified_us
    ),
    updated AS (
        UPDATE objects o SET {_SET_INPUT} FROM input i
        WHERE i.if_match IS NOT NULL AND {FENCED} AND {SAME_KEY}
          AND condition_holds(o.etag, i.if_match, i.if_none_match)
        RETURNING o.version_id, o.seq, o.modified_us
    ),
    written AS (SELECT * FROM inserted UNION ALL SELECT * FROM updated), {_OWED}
    SELECT i.ord, w.seq, w.modified_us, i.session_id IN (SELECT session_id FROM live) AS live,
           i.bucket_id IN (SELECT bucket_id FROM fence) AS fence,
           (SELECT true FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C") IS TRUE AS existed
    FROM input i LEFT JOIN written w USING (version_id)"""


def _put_args(items: Sequence[PutCommit]) -> list[object]:
    contents = [pack_content(item.content) for item in items]
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.key for item in items],
        [item.version_id for item in items],
        [item.size for item in items],
        [item.etag for item in items],
        [pack_attributes(item.attributes) for item in items],
        [pack_checksum(item.checksum) for item in items],
        *([content[column] for content in contents] for column in range(5)),
        [item.missing for item in items],
    ]


def _put_results(items: Sequence[PutCommit], rows: Rows) -> Sequence[Committed | None]:
    written = {row[0]: Committed(row[0], row[1], row[2]) for row in rows}
    return [written.get(item.version_id) for item in items]


_SETTLE_SQL: Final = """
    SELECT o.version_id, o.seq, o.modified_us
    FROM unnest($1::bigint[], $2::text[], $3::bytea[]) AS i (bucket_id, key, version_id)
    CROSS JOIN LATERAL (
        SELECT o.* FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C" LIMIT 1
    ) AS o WHERE o.version_id = i.version_id"""


def _settle_args(items: Sequence[Any]) -> Sequence[object]:
    return [item.bucket_id for item in items], [item.key for item in items], [item.version_id for item in items]


SETTLE_PUT: Final[Query[Any, Committed]] = Query(_SETTLE_SQL, _settle_args, _put_results)

PUT: Final = Operation("put_object", Query(_PUT_SQL, _put_args, _put_results), order=_by_key, refused=WHY, settle=SETTLE_PUT)


def _put_if_args(items: Sequence[PutCommit]) -> Sequence[object]:
    conditions = [pack_condition(item.condition) for item in items]
    return [*_put_args(items), [condition[0] for condition in conditions], [condition[1] for condition in conditions]]


def _put_if_results(items: Sequence[PutCommit], rows: Rows) -> Sequence[Committed | AnvilError | None]:
    results: list[Committed | AnvilError | None] = [DatabaseUnavailable()] * len(items)
    for row in rows:
        at = row["ord"] - 1
        if row["seq"] is not None:
            results[at] = Committed(items[at].version_id, row["seq"], row["modified_us"])
        else:
            results[at] = fence_error(row["live"], row["fence"]) or condition_error(items[at].condition, row["existed"])
    return results


def condition_error(condition: Condition, existed: bool) -> AnvilError:
    """RFC 9110 section 13.1 as S3 answers it: If-Match with an etag on a key that is not there is 404, everything else 412."""
    if condition.if_match is not None:
        if not existed and "*" not in condition.if_match:
            return NoSuchKey()
        return PreconditionFailed(condition="If-Match")
    return PreconditionFailed(condition="If-None-Match")


PUT_IF: Final = Operation("put_object_if", Query(_PUT_IF_SQL, _put_if_args, _put_if_results), order=_by_key, settle=SETTLE_PUT)


# -- attributes ----------------------------------------------------------------------------------------------------------

_REPLACE_SQL: Final = f"""
    WITH {FENCES},
    input AS MATERIALIZED (
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bytea[], $5::bytea[],
            $6::jsonb[], $7::bytea[], $8::jsonb[], $9::jsonb[])
        WITH ORDINALITY AS i (
            session_id, bucket_id, key, version_id, expected, attributes, checksum, if_match, if_none_match, ord)
    ),
    written AS (
        UPDATE objects o SET version_id = i.version_id, seq = nextval('version_seq'), modified_us = now_us(),
            attributes = i.attributes, checksum = coalesce(i.checksum, o.checksum)
        FROM input i
        WHERE {FENCED} AND {SAME_KEY} AND o.version_id = i.expected
          AND condition_holds(o.etag, i.if_match, i.if_none_match)
        RETURNING i.ord, o.seq, o.modified_us
    )
    SELECT i.ord, w.seq, w.modified_us, i.session_id IN (SELECT session_id FROM live) AS live,
           i.bucket_id IN (SELECT bucket_id FROM fence) AS fence,
           (SELECT true FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C"
                AND o.version_id = i.expected) IS TRUE AS existed
    FROM input i LEFT JOIN written w USING (ord)"""


def _replace_args(items: Sequence[ReplaceCommit]) -> Sequence[object]:
    commits = [item.commit for item in items]
    conditions = [pack_condition(commit.condition) for commit in commits]
    return [
        [commit.session for commit in commits],
        [commit.bucket_id for commit in commits],
        [commit.key for commit in commits],
        [commit.version_id for commit in commits],
        [item.expected for item in items],
        [pack_attributes(commit.attributes) for commit in commits],
        [pack_checksum(commit.checksum) for commit in commits],
        [condition[0] for condition in conditions],
        [condition[1] for condition in conditions],
    ]


def _replace_results(items: Sequence[ReplaceCommit], rows: Rows) -> Sequence[Committed | AnvilError | None]:
    results: list[Committed | AnvilError | None] = [DatabaseUnavailable()] * len(items)
    for row in rows:
        at = row["ord"] - 1
        commit = items[at].commit
        if row["seq"] is not None:
            results[at] = Committed(commit.version_id, row["seq"], row["modified_us"])
            continue
        refusal = fence_error(row["live"], row["fence"])
        if refusal is None:
            refusal = (
                condition_error(commit.condition, True) if row["existed"] and commit.condition else ConditionalRequestConflict()
            )
        results[at] = refusal
    return results


REPLACE: Final = Operation(
    "replace_attributes",
    Query(_REPLACE_SQL, _replace_args, _replace_results),
    order=lambda item: _by_key(item.commit),
    settle=Query(
        _SETTLE_SQL,
        lambda items: _settle_args([item.commit for item in items]),
        lambda items, rows: _put_results([item.commit for item in items], rows),
    ),
)


# -- delete --------------------------------------------------------------------------------------------------------------

# What a salvage has found under the key and nobody has accepted goes as well: accepted later, it would undo the delete. As garbage it is
# known to a salvage that is repeated.
_DELETE_SQL: Final = f"""
    WITH {FENCES},
    input AS MATERIALIZED (
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::jsonb[], $5::jsonb[])
        WITH ORDINALITY AS i (session_id, bucket_id, key, if_match, if_none_match, ord)
    ),
    removed AS (
        DELETE FROM objects o USING input i
        WHERE {FENCED} AND {SAME_KEY}
          AND condition_holds(o.etag, i.if_match, i.if_none_match)
        RETURNING i.ord
    ),
    hidden AS (
        DELETE FROM salvage s USING input i
        WHERE {FENCED} AND s.bucket_id = ANY (ARRAY[i.bucket_id]) AND s.key = ANY (ARRAY[i.key COLLATE "C"]) AND s.part_number = 0
          AND (i.if_match IS NULL AND i.if_none_match IS NULL OR i.ord = ANY (ARRAY(SELECT ord FROM removed)))
        RETURNING s.bucket_id, s.key, s.version_id, s.part_number, s.blob_id, s.scheme
    ),
    garbage AS (
        INSERT INTO outbox (bucket_id, key, version_id, part_number, blob_id, scheme)
        SELECT bucket_id, key, version_id, part_number, blob_id, scheme FROM hidden
    )
    SELECT i.ord, r.ord IS NOT NULL AS removed, i.session_id IN (SELECT session_id FROM live) AS live,
           i.bucket_id IN (SELECT bucket_id FROM fence) AS fence,
           (SELECT true FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C") IS TRUE AS existed
    FROM input i LEFT JOIN removed r USING (ord)"""


def _delete_args(items: Sequence[DeleteCommit]) -> Sequence[object]:
    conditions = [pack_condition(item.condition) for item in items]
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.key for item in items],
        [condition[0] for condition in conditions],
        [condition[1] for condition in conditions],
    ]


def _delete_results(items: Sequence[DeleteCommit], rows: Rows) -> Sequence[bool | AnvilError | None]:
    results: list[bool | AnvilError | None] = [DatabaseUnavailable()] * len(items)
    for row in rows:
        at = row["ord"] - 1
        condition = items[at].condition
        if row["removed"]:
            results[at] = True
        elif (refusal := fence_error(row["live"], row["fence"])) is not None:
            results[at] = refusal
        elif condition and (row["existed"] or condition.if_match is not None):
            results[at] = condition_error(condition, row["existed"])
        else:
            results[at] = False
    return results


def _settle_delete(items: Sequence[DeleteCommit], rows: Rows) -> Sequence[bool | None]:
    """An absent key is what was asked for. A present one may be the old object or a newer one: not known."""
    present = {(row["bucket_id"], row["key"]) for row in rows}
    return [None if (item.bucket_id, item.key) in present else True for item in items]


DELETE: Final = Operation(
    "delete_object",
    Query(_DELETE_SQL, _delete_args, _delete_results),
    order=_by_key,
    settle=Query(
        """SELECT i.bucket_id, i.key FROM unnest($1::bigint[], $2::text[]) AS i (bucket_id, key)
           WHERE (SELECT true FROM objects o WHERE o.bucket_id = i.bucket_id AND o.key = i.key COLLATE "C")""",
        lambda items: ([item.bucket_id for item in items], [item.key for item in items]),
        _settle_delete,
    ),
)
