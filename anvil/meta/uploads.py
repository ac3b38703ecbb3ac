"""Multipart uploads: create, parts, complete, abort, list.

Invariants: committing a part holds its upload FOR SHARE, completing and aborting lock it exclusively, so the set of parts is
fixed while either decides; `parts` is the manifest of the completed object, and completing moves nothing; an upload row lives
until it is aborted or its object goes (triggers take its parts with it). Not here: what a completed object may look like
(`engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from anvil.base.errors import AnvilError, DatabaseUnavailable, InvalidPart, NoSuchBucket, NoSuchUpload, WriterFenced
from anvil.base.limits import LIST_KEYS_MAX
from anvil.meta.coalesce import Operation, Query, Rows
from anvil.meta.objects import FENCED, FENCES, WHY_SQL, condition_error, fence_error
from anvil.meta.rows import (
    CONTENT_COLUMNS,
    pack_attributes,
    pack_checksum,
    pack_condition,
    pack_content,
    part_from,
    upload_from,
)
from anvil.model.records import (
    BucketId,
    Committed,
    CompleteCommit,
    PartCommit,
    PartRecord,
    SessionId,
    UploadId,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
)

# A completion that is under way holds the row: when it is through, the row is no upload in progress any more, and is passed over. A part
# that is being committed in this very moment goes with the upload, as it would if it had come a moment later.
EXPIRE_SQL: Final = """
    WITH idle AS MATERIALIZED (
        SELECT x.bucket_id, x.upload_id FROM uploads x
        WHERE x.version_id IS NULL AND x.initiated_us < now_us() - $1::bigint AND NOT EXISTS (
            SELECT FROM parts p WHERE p.bucket_id = x.bucket_id AND p.upload_id = x.upload_id AND p.modified_us >= now_us() - $1::bigint)
        ORDER BY x.bucket_id, x.key, x.initiated_us, x.upload_id LIMIT $2
    )
    DELETE FROM uploads u USING idle i
    WHERE u.bucket_id = i.bucket_id AND u.upload_id = i.upload_id AND u.version_id IS NULL RETURNING true"""


class UploadCommit(msgspec.Struct, frozen=True):
    """An upload to create (`record`), or to abort (`record` is None)."""

    session: SessionId
    bucket_id: BucketId
    key: str
    upload_id: UploadId
    record: UploadRecord | None = None


class PartsQuery(msgspec.Struct, frozen=True):
    bucket_id: BucketId
    upload_id: UploadId
    after: int
    limit: int


def _by_upload(item: UploadCommit) -> tuple[BucketId, UploadId]:
    return item.bucket_id, item.upload_id


def _why_args(items: Sequence[Any]) -> Sequence[object]:
    return [item.session for item in items], [item.bucket_id for item in items]


_WHY: Final[Query[Any, Any]] = Query(
    WHY_SQL, _why_args, lambda _items, rows: [fence_error(row["live"], row["fence"]) or NoSuchUpload() for row in rows]
)


# -- create and abort ----------------------------------------------------------------------------------------------------

_CREATE_SQL: Final = f"""
    WITH {FENCES},
    made AS (
        INSERT INTO uploads (bucket_id, upload_id, key, initiated_us, attributes, owner, checksum_algorithm, checksum_type)
        SELECT i.bucket_id, i.upload_id, i.key, i.initiated_us, i.attributes, i.owner, i.checksum_algorithm, i.checksum_type
        FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::text[], $5::bigint[], $6::jsonb[],
            $7::text[], $8::text[], $9::text[])
        WITH ORDINALITY AS i (
            session_id, bucket_id, upload_id, key, initiated_us, attributes, owner, checksum_algorithm, checksum_type, ord)
        WHERE {FENCED} ORDER BY ord
        RETURNING upload_id
    )
    SELECT upload_id FROM made"""


def _create_args(items: Sequence[UploadCommit]) -> Sequence[object]:
    records = [item.record for item in items if item.record is not None]
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.upload_id for item in items],
        [item.key for item in items],
        [record.initiated_us for record in records],
        [pack_attributes(record.attributes) for record in records],
        [record.owner for record in records],
        [record.checksum_algorithm and record.checksum_algorithm.value for record in records],
        [record.checksum_type and record.checksum_type.value for record in records],
    ]


def _found(items: Sequence[UploadCommit], rows: Rows) -> Sequence[bool | None]:
    found = {row["upload_id"] for row in rows}
    return [True if item.upload_id in found else None for item in items]


def _absent(items: Sequence[UploadCommit], rows: Rows) -> Sequence[bool | None]:
    found = {row["upload_id"] for row in rows}
    return [None if item.upload_id in found else True for item in items]


_THERE_SQL: Final = """
    SELECT i.upload_id FROM unnest($1::bigint[], $2::bytea[]) AS i (bucket_id, upload_id)
    WHERE (SELECT true FROM uploads u WHERE u.bucket_id = i.bucket_id AND u.upload_id = i.upload_id)"""


def _there_args(items: Sequence[UploadCommit]) -> Sequence[object]:
    return [item.bucket_id for item in items], [item.upload_id for item in items]


CREATE: Final = Operation(
    "create_upload",
    Query(_CREATE_SQL, _create_args, _found),
    order=_by_upload,
    refused=_WHY,
    settle=Query(_THERE_SQL, _there_args, _found),
)

_ABORT_SQL: Final = f"""
    WITH {FENCES},
    gone AS (
        DELETE FROM uploads u
        USING unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::text[]) AS i (session_id, bucket_id, upload_id, key)
        WHERE {FENCED} AND u.bucket_id = ANY (ARRAY[i.bucket_id]) AND u.upload_id = ANY (ARRAY[i.upload_id]) AND u.key = i.key
          AND coalesce(u.version_id, '') = ''  -- in progress, said so that no partial index seems to fit
        RETURNING u.upload_id
    )
    SELECT upload_id FROM gone"""


def _abort_args(items: Sequence[UploadCommit]) -> Sequence[object]:
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.upload_id for item in items],
        [item.key for item in items],
    ]


ABORT: Final = Operation(
    "abort_upload",
    Query(_ABORT_SQL, _abort_args, _found),
    order=_by_upload,
    refused=_WHY,
    settle=Query(_THERE_SQL, _there_args, _absent),
)


# -- one upload, its parts ------------------------------------------------------------------------------------------------

UploadName = tuple[BucketId, str, UploadId]

_GET_SQL: Final = """
    SELECT i.ord, u.* FROM unnest($1::bigint[], $2::text[], $3::bytea[]) WITH ORDINALITY AS i (bucket_id, key, upload_id, ord)
    CROSS JOIN LATERAL (SELECT * FROM uploads x WHERE x.bucket_id = i.bucket_id AND x.upload_id = i.upload_id LIMIT 1) AS u
    WHERE u.key = i.key"""


def _get_results(items: Sequence[UploadName], rows: Rows) -> Sequence[UploadRecord | None]:
    results: list[UploadRecord | None] = [None] * len(items)
    for row in rows:
        results[row["ord"] - 1] = upload_from(row)
    return results


GET: Final = Operation(
    "get_upload", Query(_GET_SQL, lambda items: tuple(list(column) for column in zip(*items, strict=True)), _get_results)
)

_PART_COLUMNS: Final = "bucket_id, upload_id, number, size, etag, checksum, blob_id, scheme, stripe_bytes, key_mode, inline"
_PART_SQL: Final = f"""
    WITH {FENCES},
    open AS MATERIALIZED (
        SELECT u.upload_id, u.key
        FROM (
            SELECT DISTINCT bucket_id, upload_id FROM unnest($2::bigint[], $4::bytea[]) AS n (bucket_id, upload_id) ORDER BY 1, 2
        ) AS d
        CROSS JOIN LATERAL (
            SELECT x.upload_id, x.key FROM uploads x
            WHERE x.bucket_id = d.bucket_id AND x.upload_id = d.upload_id AND coalesce(x.version_id, '') = '' LIMIT 1 FOR SHARE
        ) AS u
    ),
    input AS NOT MATERIALIZED (
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bytea[], $5::int[], $6::bigint[], $7::text[], $8::bytea[],
            $9::bytea[], $10::int[], $11::int[], $12::smallint[], $13::bytea[], $14::int[])
        WITH ORDINALITY AS i (session_id, bucket_id, key, upload_id, number, size, etag, checksum,
            blob_id, scheme, stripe_bytes, key_mode, inline, missing, ord)
    ),
    written AS (
        INSERT INTO parts ({_PART_COLUMNS})
        SELECT {", ".join("i." + column for column in _PART_COLUMNS.split(", "))} FROM input i
        WHERE {FENCED} AND (i.upload_id, i.key) IN (SELECT upload_id, key FROM open) ORDER BY ord
        ON CONFLICT (bucket_id, upload_id, number) DO UPDATE SET modified_us = now_us(),
            {", ".join(f"{column} = EXCLUDED.{column}" for column in _PART_COLUMNS.split(", ")[3:])}
        RETURNING upload_id, number, modified_us
    ),
    owed AS (
        INSERT INTO degraded (blob_id, bucket_id, key, version_id, part_number, size, scheme, stripe_bytes, key_mode, missing)
        SELECT i.blob_id, i.bucket_id, '', i.upload_id, i.number, i.size, i.scheme, i.stripe_bytes, i.key_mode, i.missing
        FROM input i WHERE i.missing <> 0 AND (i.upload_id, i.number) IN (SELECT upload_id, number FROM written)
    )
    SELECT upload_id, number, modified_us FROM written"""


def _part_args(items: Sequence[PartCommit]) -> Sequence[object]:
    contents = [pack_content(item.content) for item in items]
    return [
        [item.session for item in items],
        [item.bucket_id for item in items],
        [item.key for item in items],
        [item.upload_id for item in items],
        [item.number for item in items],
        [item.size for item in items],
        [item.etag for item in items],
        [pack_checksum(item.checksum) for item in items],
        *([content[column] for content in contents] for column in range(5)),
        [item.missing for item in items],
    ]


def _part_results(items: Sequence[PartCommit], rows: Rows) -> Sequence[int | None]:
    written = {(row["upload_id"], row["number"]): row["modified_us"] for row in rows}
    return [written.get((item.upload_id, item.number)) for item in items]


_PART_SETTLE_SQL: Final = """
    SELECT p.upload_id, p.number, p.modified_us
    FROM unnest($1::bigint[], $2::bytea[], $3::int[], $4::bytea[], $5::text[]) AS i (bucket_id, upload_id, number, blob_id, etag)
    CROSS JOIN LATERAL (
        SELECT * FROM parts x WHERE x.bucket_id = i.bucket_id AND x.upload_id = i.upload_id AND x.number = i.number LIMIT 1
    ) AS p
    WHERE p.etag = i.etag AND p.blob_id IS NOT DISTINCT FROM i.blob_id"""


def _part_settle_args(items: Sequence[PartCommit]) -> Sequence[object]:
    return [
        [item.bucket_id for item in items],
        [item.upload_id for item in items],
        [item.number for item in items],
        [None if item.content is None else item.content.blob.blob_id for item in items],
        [item.etag for item in items],
    ]


PUT_PART: Final = Operation(
    "put_part",
    Query(_PART_SQL, _part_args, _part_results),
    order=lambda item: (item.bucket_id, item.upload_id, item.number),
    refused=_WHY,
    settle=Query(_PART_SETTLE_SQL, _part_settle_args, _part_results),
)

_PARTS_SQL: Final = f"""
    SELECT i.ord, p.* FROM unnest($1::bigint[], $2::bytea[], $3::int[], $4::int[])
        WITH ORDINALITY AS i (bucket_id, upload_id, after_number, page_limit, ord)
    CROSS JOIN LATERAL (
        SELECT number, {CONTENT_COLUMNS} FROM parts p
        WHERE p.bucket_id = i.bucket_id AND p.upload_id = i.upload_id AND p.number > i.after_number
        ORDER BY p.number LIMIT i.page_limit
    ) AS p"""


def _parts_results(items: Sequence[PartsQuery], rows: Rows) -> Sequence[tuple[PartRecord, ...]]:
    found: list[list[PartRecord]] = [[] for _ in items]
    for row in rows:
        found[row["ord"] - 1].append(part_from(row))
    return [tuple(sorted(parts, key=lambda part: part.number)) for parts in found]


LIST_PARTS: Final = Operation(
    "list_parts",
    Query(
        _PARTS_SQL,
        lambda items: (
            [item.bucket_id for item in items],
            [item.upload_id for item in items],
            [item.after for item in items],
            [item.limit for item in items],
        ),
        _parts_results,
    ),
    rows_max=8,
)


# -- complete ------------------------------------------------------------------------------------------------------------


def _complete_args(items: Sequence[CompleteCommit]) -> Sequence[object]:
    (item,) = items
    return [
        item.session,
        item.bucket_id,
        item.key,
        item.upload_id,
        item.version_id,
        [number for number, _ in item.parts],
        [etag for _, etag in item.parts],
        item.size,
        item.etag,
        pack_checksum(item.checksum),
        *pack_condition(item.condition),
    ]


def _complete_results(items: Sequence[CompleteCommit], rows: Rows) -> Sequence[Committed | AnvilError]:
    row = rows[0]
    outcome = row["outcome"]
    if outcome == "done":
        return [Committed(row["done_version"], row["done_seq"], row["done_us"])]
    refusals: dict[str, AnvilError] = {
        "fenced": WriterFenced(),
        "no_bucket": NoSuchBucket(),
        "no_upload": NoSuchUpload(),
        "bad_part": InvalidPart(),
        "precondition": condition_error(items[0].condition, existed=True),
        "no_key": condition_error(items[0].condition, existed=False),
    }
    return [refusals.get(outcome, DatabaseUnavailable())]


COMPLETE: Final = Operation(
    "complete_upload",
    Query(
        "SELECT * FROM complete_upload($1, $2, $3, $4, $5, $6::int[], $7::text[], $8, $9, $10, $11, $12)",
        _complete_args,
        _complete_results,
    ),
    settle=Query(
        "SELECT version_id, seq, modified_us FROM uploads WHERE bucket_id = $1 AND upload_id = $2 AND version_id IS NOT NULL",
        lambda items: (items[0].bucket_id, items[0].upload_id),
        lambda _items, rows: [Committed(rows[0][0], rows[0][1], rows[0][2]) if rows else None],
    ),
    rows_max=1,
)


# -- list ----------------------------------------------------------------------------------------------------------------

_LIST_SQL: Final = "SELECT name, is_prefix, (upload).* FROM list_uploads_page($1, $2, $3, $4, $5, $6)"


def _list_args(items: Sequence[UploadsQuery]) -> Sequence[object]:
    (item,) = items
    return item.bucket_id, item.prefix, item.delimiter, item.key_marker, item.upload_marker, min(item.limit, LIST_KEYS_MAX) + 1


def _list_results(items: Sequence[UploadsQuery], rows: Rows) -> Sequence[UploadsPage]:
    limit = min(items[0].limit, LIST_KEYS_MAX)
    page = rows[:limit]
    uploads = tuple(upload_from(row) for row in page if not row["is_prefix"])
    prefixes = tuple(row["name"] for row in page if row["is_prefix"])
    if len(rows) <= limit or not page:
        return [UploadsPage(uploads, prefixes)]
    last = page[-1]
    return [UploadsPage(uploads, prefixes, last["name"], None if last["is_prefix"] else last["upload_id"])]


LIST: Final = Operation("list_uploads", Query(_LIST_SQL, _list_args, _list_results), rows_max=1)
