"""Recovery of a region: whether it is in it, and the candidates that wait for an operator.

Owns: the table `salvage`, the setting `salvage` (what was loaded), and recovery mode (`recovery.py`) where it is of this kind: while it is
closed, no object is served. Invariants: a candidate is no object before it is accepted; recovery ends only when none
waits. Every statement may be repeated. Not here: what becomes a candidate (`tasks/salvage.py`), rows of a dump (`dump.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncpg
import msgspec

from anvil.base.limits import ENDED_SESSIONS_KEEP_S, SALVAGE_LISTED_MAX, SALVAGE_ROWS
from anvil.meta.coalesce import Rows
from anvil.meta.recovery import Recovery
from anvil.meta.rows import pack_attributes, pack_checksum
from anvil.model.dump import SYSTEM_BUCKET, Candidate
from anvil.model.records import BlobId, BucketId, SessionId

# $1 why, $2 closed. Only a region without any object is closed: it has lost them, or never had one.
CLOSE_SQL: Final = f"""
    INSERT INTO settings (name, value)
    SELECT 'recovery', jsonb_build_object('since_us', now_us(), 'why', $1::text, 'closed', true)
    WHERE NOT EXISTS (SELECT FROM objects WHERE bucket_id <> {SYSTEM_BUCKET})
      AND NOT EXISTS (SELECT FROM versions) AND NOT EXISTS (SELECT FROM parts)
    ON CONFLICT (name) DO NOTHING"""
_RECOVERY_SQL: Final = "SELECT value::text FROM settings WHERE name = 'recovery'"
_LOADED_SQL: Final = "SELECT value::text FROM settings WHERE name = 'salvage'"
_OPEN_SQL: Final = """
    UPDATE settings SET value = value - 'closed' || jsonb_build_object('why', $1::text), changed_us = now_us()
    WHERE name = 'recovery' AND value -> 'closed' = 'true' RETURNING true"""
_EMPTY_SQL: Final = f"""
    SELECT NOT EXISTS (SELECT FROM objects WHERE bucket_id <> {SYSTEM_BUCKET}) AND NOT EXISTS (SELECT FROM versions)
       AND NOT EXISTS (SELECT FROM uploads) AND NOT EXISTS (SELECT FROM parts)"""
_ADD_SQL: Final = """
    INSERT INTO salvage (bucket_id, key, version_id, part_number, blob_id, size, scheme, stripe_bytes, key_mode, etag, modified_us,
        attributes, checksum, missing, readable)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::int[], $5::bytea[], $6::bigint[], $7::int[], $8::int[], $9::smallint[],
        $10::text[], $11::bigint[], $12::jsonb[], $13::bytea[], $14::int[], $15::boolean[])
    ON CONFLICT (blob_id) DO UPDATE SET missing = EXCLUDED.missing, readable = EXCLUDED.readable"""
_LIST_SQL: Final = """
    SELECT s.bucket_id, s.key, s.version_id, s.part_number, s.blob_id, s.size, s.etag, s.modified_us, salvage_obstacle(s) AS obstacle,
        o.modified_us AS present_us
    FROM salvage s LEFT JOIN LATERAL (
        SELECT modified_us FROM objects x WHERE x.bucket_id = s.bucket_id AND x.key = s.key AND s.part_number = 0
    ) AS o ON true
    WHERE ($1::bigint IS NULL OR s.bucket_id = $1)
    ORDER BY s.bucket_id, s.key, s.modified_us DESC, s.blob_id LIMIT $2"""
_NAMED_SQL: Final = """
    SELECT blob_id FROM salvage WHERE ($1::bigint IS NULL OR bucket_id = $1) AND ($2::text IS NULL OR key = $2 COLLATE "C")
        AND blob_id > $3::bytea ORDER BY blob_id LIMIT $4"""
_REJECT_SQL: Final = "DELETE FROM salvage WHERE blob_id = ANY ($1::bytea[]) RETURNING blob_id"
_WAITING_SQL: Final = "SELECT count(*) FROM salvage"
_SESSIONS_SQL: Final = "SELECT session_id FROM writer_sessions UNION ALL SELECT session_id FROM ended_sessions"
_FORGET_SQL: Final = "DELETE FROM ended_sessions WHERE ended_us < now_us() - $1::bigint"
_FENCES_SQL: Final = "SELECT bucket_id FROM buckets WHERE bucket_id <> $1"


class Loaded(msgspec.Struct, frozen=True):
    """The dump that the region was rebuilt from, "" where there was none; its time by the database's clock, and how many rows it had."""

    dump: str
    taken_us: int
    rows: int
    ended: tuple[str, ...] = ()


class Waiting(msgspec.Struct, frozen=True):
    """A candidate as it is listed. `obstacle`: why it cannot be accepted, "" if it can. `present_us`: of the object it would replace."""

    bucket_id: BucketId
    key: str
    part_number: int
    upload: str
    blob_id: BlobId
    size: int
    etag: str
    modified_us: int
    obstacle: str
    present_us: int | None


class SalvageTable:
    """`query`: runs a statement on the regional database. All raise DatabaseUnavailable."""

    def __init__(self, query: Callable[..., Awaitable[Rows]]) -> None:
        self._query = query

    async def recovery(self) -> Recovery | None:
        rows = await self._query(_RECOVERY_SQL)
        return msgspec.json.decode(rows[0][0], type=Recovery) if rows else None

    async def close(self, why: str) -> bool:
        """Begin recovery: nothing is served and nothing unlinked from now on. Nothing happens where the region holds objects. Returns
        whether it is in recovery."""
        await self._query(CLOSE_SQL, why)
        return await self.recovery() is not None

    async def open(self, why: str) -> bool:
        """Serve what the database holds. False: the region is not closed."""
        return bool(await self._query(_OPEN_SQL, why))

    async def end(self) -> bool:
        """False while anything waits."""
        return bool((await self._query("SELECT salvage_end()"))[0][0])

    async def loaded(self) -> Loaded | None:
        rows = await self._query(_LOADED_SQL)
        return msgspec.json.decode(rows[0][0], type=Loaded) if rows else None

    async def note_nothing(self) -> None:
        """That there was no dump to load."""
        sql = "INSERT INTO settings (name, value) VALUES ('salvage', $1::jsonb) ON CONFLICT (name) DO NOTHING"
        await self._query(sql, msgspec.json.encode(Loaded("", 0, 0)).decode())

    async def empty(self) -> bool:
        """Whether the database holds no object, version or upload."""
        return bool((await self._query(_EMPTY_SQL))[0][0])

    async def fences(self) -> frozenset[BucketId]:
        return frozenset(row[0] for row in await self._query(_FENCES_SQL, SYSTEM_BUCKET))

    async def sessions(self) -> frozenset[SessionId]:
        """All that this database ever gave out, alive or not."""
        return frozenset(row[0] for row in await self._query(_SESSIONS_SQL))

    # -- candidates ---------------------------------------------------------------------------------------------------

    async def add(self, found: Sequence[Candidate]) -> None:
        """At most SALVAGE_ROWS. Of one that is known, only how much is left of it is written anew."""
        assert len(found) <= SALVAGE_ROWS
        if not found:
            return
        rows = [
            (
                *(
                    one.owner.bucket_id,
                    one.owner.key,
                    one.owner.version_id,
                    one.owner.part_number,
                    one.blob.blob_id,
                    one.blob.size,
                ),
                *(one.blob.scheme.pack(), one.blob.stripe_bytes, one.blob.key_mode.value, one.etag, one.modified_us),
                *(pack_attributes(one.attributes), pack_checksum(one.checksum), one.missing, one.readable),
            )
            for one in found
        ]
        await self._query(_ADD_SQL, *map(list, zip(*rows, strict=True)))

    async def list(self, bucket_id: BucketId | None, limit: int = SALVAGE_LISTED_MAX) -> Sequence[Waiting]:
        """By bucket and key, the latest first."""
        return [_waiting(row) for row in await self._query(_LIST_SQL, bucket_id, limit)]

    async def named(self, bucket_id: BucketId | None, key: str | None, after: BlobId = b"") -> Sequence[BlobId]:
        """A page of the candidates of that bucket and key, or of all; behind `after`."""
        return [row[0] for row in await self._query(_NAMED_SQL, bucket_id, key, after, SALVAGE_ROWS)]

    async def accept(self, blob_ids: Sequence[BlobId]) -> dict[BlobId, str]:
        """Make them objects, or parts of uploads in progress. Returns of each what stood in the way, "" where nothing did; "older" also of
        others that a later one of the same key took with it."""
        rows = await self._query("SELECT accepted_id, obstacle FROM salvage_accept($1)", list(blob_ids))
        return {row["accepted_id"]: row["obstacle"] for row in rows}

    async def reject(self, blob_ids: Sequence[BlobId]) -> int:
        return len(await self._query(_REJECT_SQL, list(blob_ids)))

    async def waiting(self) -> int:
        return int((await self._query(_WAITING_SQL))[0][0])

    async def forget_ended_sessions(self) -> None:
        await self._query(_FORGET_SQL, int(ENDED_SESSIONS_KEEP_S * 1_000_000))


def _waiting(row: asyncpg.Record) -> Waiting:
    return Waiting(
        row["bucket_id"],
        row["key"],
        row["part_number"],
        row["version_id"].hex() if row["part_number"] else "",
        row["blob_id"],
        row["size"],
        row["etag"],
        row["modified_us"],
        row["obstacle"],
        row["present_us"],
    )
