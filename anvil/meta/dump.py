"""The databases' rows out and in again: one snapshot of each by COPY, and a load that happens as a whole or not at all.

Owns: which tables are part of a dump, connections of its own for each direction, and the lock under which one dump is taken at a time.
Invariants: all regional rows of a dump are of one repeatable-read snapshot, all global ones of another, later one; a load goes into a
regional database that holds no object, and usage and sequence agree with the rows when it commits; global rows (tables named `global.*`)
are loaded only where that database was lost as well, and are committed first; nothing is held but the piece that COPY has just given. Not
here: where the bytes go and come from (`tasks/dump.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from anvil.base.errors import Conflict, Corrupt, DatabaseUnavailable
from anvil.base.limits import CONNECT_TIMEOUT_S
from anvil.meta.link import CONNECTION_ERRORS
from anvil.model.dump import SYSTEM_BUCKET, TableDump
from anvil.model.records import SessionId

DUMPED: Final = ("buckets", "dropped_buckets", "uploads", "objects", "versions", "parts", "outbox", "degraded")
LEFT_OUT: Final = frozenset(
    # Who is in the region and where shards belong is made anew; usage follows from the rows; a setting is about the database it is in.
    {"writer_sessions", "ended_sessions", "nodes", "drives", "layouts", "layout_slices", "region", "settings", "salvage"}
    | {"usage_folded", "usage_deltas", "schema_migrations"}
)
GLOBAL: Final = "global."
GLOBAL_DUMPED: Final = (
    "regions",
    "tenants",
    "apps",
    "policies",
    "buckets",
    "admin_users",
)  # in an order that their references allow
GLOBAL_LEFT_OUT: Final = frozenset({"tasks", "audit", "change_log", "schema_migrations"})  # tasks follow from what is due
_MERGED: Final = ("buckets", "dropped_buckets")  # may have rows already: fences of buckets that the global database knows
_TRIGGERED: Final = ("objects", "versions", "uploads", "parts")
_DUMP_LOCK: Final = 0x616E76696C04  # "anvil", 4
_SETTINGS: Final = {
    "timezone": "UTC",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "jit": "off",
    "search_path": "public",
}
_HEAD_SQL: Final = """
    SELECT now_us() AS taken_us, (SELECT name FROM region) AS region, (SELECT max(number) FROM schema_migrations) AS schema,
        ARRAY(SELECT session_id FROM ended_sessions ORDER BY session_id) AS ended"""
# The outbox is numbered anew.
_COLUMNS_SQL: Final = """
    SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
        AND ($1::text <> 'outbox' OR attidentity = '') ORDER BY attnum"""
# A global database that nobody has used yet: what the first start makes, and no bucket.
_FRESH_SQL: Final = """
    SELECT NOT EXISTS (SELECT FROM buckets) AND (SELECT count(*) FROM tenants) <= 1 AND (SELECT count(*) FROM apps) <= 1
       AND NOT EXISTS (SELECT FROM admin_users)"""
_IDENTITIES: Final = (("tenants", "tenant_id"), ("apps", "app_id"), ("admin_users", "user_id"))
_EMPTY_SQL: Final = f"""
    SELECT NOT EXISTS (SELECT FROM objects WHERE bucket_id <> {SYSTEM_BUCKET}) AND NOT EXISTS (SELECT FROM versions)
       AND NOT EXISTS (SELECT FROM uploads) AND NOT EXISTS (SELECT FROM parts)"""
# As the triggers would have counted (0002_triggers.sql).
_USAGE_SQL: Final = """
    INSERT INTO usage_folded (bucket_id, objects, bytes, upload_parts, upload_bytes)
    SELECT bucket_id, sum(objects), sum(bytes), sum(parts), sum(part_bytes) FROM (
        SELECT bucket_id, count(*) AS objects, sum(size) AS bytes, -sum(part_count) AS parts,
            -coalesce(sum(size) FILTER (WHERE upload_id IS NOT NULL), 0) AS part_bytes FROM objects GROUP BY 1
        UNION ALL SELECT bucket_id, count(*), sum(size), -sum(part_count),
            -coalesce(sum(size) FILTER (WHERE upload_id IS NOT NULL), 0) FROM versions GROUP BY 1
        UNION ALL SELECT bucket_id, 0, 0, count(*), sum(size) FROM parts GROUP BY 1
    ) AS u GROUP BY bucket_id"""
_SEQUENCE_SQL: Final = """
    SELECT setval('version_seq', greatest(nextval('version_seq'), 1 + (SELECT coalesce(max(seq), 0) FROM objects),
        1 + (SELECT coalesce(max(seq), 0) FROM versions), 1 + (SELECT coalesce(max(seq), 0) FROM uploads)))"""


@asynccontextmanager
async def _connected(url: str, name: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection: asyncpg.Connection = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={**_SETTINGS, "application_name": f"anvil {name}"},
            statement_cache_size=0,
        )
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
    try:
        yield connection
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise Corrupt(f"rows of the dump are not what this database takes: {error}") from error
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the regional database failed: {error}") from error
    finally:
        connection.terminate() if connection.is_in_transaction() else await connection.close(timeout=CONNECT_TIMEOUT_S)


class Snapshot:
    """One snapshot of the region. `ended`: writer sessions that were over by then. `beside`: the connection to the global database."""

    tables: Sequence[str] = (*DUMPED, *(GLOBAL + table for table in GLOBAL_DUMPED))

    def __init__(self, connection: asyncpg.Connection, beside: asyncpg.Connection, head: asyncpg.Record) -> None:
        self._connection = connection
        self._beside = beside
        self.taken_us: int = head["taken_us"]
        self.region: str = head["region"] or ""
        self.schema: int = head["schema"]
        self.ended: tuple[SessionId, ...] = tuple(head["ended"])

    async def copy(self, table: str, sink: Callable[[bytes], Coroutine[Any, Any, None]]) -> tuple[tuple[str, ...], int]:
        """Hand the rows of a table to `sink`, as binary COPY gives them; the next bytes come when it has taken the last. Returns the
        columns, and how many rows there were."""
        connection = self._beside if table.startswith(GLOBAL) else self._connection
        table = table.removeprefix(GLOBAL)
        columns = tuple(row[0] for row in await connection.fetch(_COLUMNS_SQL, table))
        quoted = ", ".join(f'"{column}"' for column in columns)
        done = await connection.copy_from_query(f"SELECT {quoted} FROM {table}", output=sink, format="binary")
        return columns, int(done.split()[-1])


@asynccontextmanager
async def snapshot(url: str, global_url: str) -> AsyncIterator[Snapshot]:
    """Raises Conflict while somebody else takes one, DatabaseUnavailable."""
    async with _connected(url, "dump") as connection, _connected(global_url, "dump") as beside:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _DUMP_LOCK):
            raise Conflict("another dump of the metadata is being taken")
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            [head] = await connection.fetch(_HEAD_SQL)
            async with beside.transaction(isolation="repeatable_read", readonly=True):
                yield Snapshot(connection, beside, head)


class Loading:
    """A load that is under way. `with_global`: whether the global rows are loaded, too."""

    def __init__(self, connection: asyncpg.Connection, beside: asyncpg.Connection, with_global: bool) -> None:
        self._connection = connection
        self._beside = beside
        self.with_global = with_global

    async def table(self, dumped: TableDump, source: AsyncIterator[bytes]) -> None:
        """Raises Corrupt where the rows are not those of such a table, and what `source` raises."""
        of_global = dumped.name.startswith(GLOBAL)
        name, connection = dumped.name.removeprefix(GLOBAL), self._beside if of_global else self._connection
        if name not in (GLOBAL_DUMPED if of_global else DUMPED):
            raise Corrupt(f"the dump has rows of {dumped.name!r}, of which this release knows nothing")
        if of_global and not self.with_global:
            return
        known = {row[0] for row in await connection.fetch(_COLUMNS_SQL, name)}
        if unknown := set(dumped.columns) - known:
            raise Corrupt(f"the dump has columns of {dumped.name} that this release does not know: {', '.join(sorted(unknown))}")
        into = name
        if name in (("regions",) if of_global else _MERGED):
            into = f"loaded_{name}"
            await connection.execute(f"CREATE TEMPORARY TABLE {into} (LIKE {name} INCLUDING DEFAULTS) ON COMMIT DROP")
        done = await connection.copy_to_table(into, source=source, columns=dumped.columns, format="binary")
        if int(done.split()[-1]) != dumped.rows:
            raise Corrupt(f"the dump has {done.split()[-1]} rows of {dumped.name}, and says {dumped.rows}")
        if into != name:
            await connection.execute(f"INSERT INTO {name} SELECT * FROM {into} ON CONFLICT DO NOTHING")


@asynccontextmanager
async def _loading_global(url: str) -> AsyncIterator[tuple[asyncpg.Connection, bool]]:
    """The connection, and whether the global database is one that nobody has used: then what the first start made of it is gone."""
    async with _connected(url, "load") as connection, connection.transaction():
        await connection.execute("LOCK TABLE buckets, apps, tenants IN SHARE ROW EXCLUSIVE MODE")
        if fresh := await connection.fetchval(_FRESH_SQL):
            await connection.execute("DELETE FROM apps")
            await connection.execute("DELETE FROM tenants")
        yield connection, fresh
        if fresh:
            for table, column in _IDENTITIES:
                await connection.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), (SELECT 1 + coalesce(max({column}), 0) FROM {table}))"
                )


@asynccontextmanager
async def load(url: str, global_url: str, note: str) -> AsyncIterator[Loading]:
    """A load that is committed when the block ends, with `note` as the setting `salvage`. Raises Conflict where the database holds objects,
    or something was loaded before."""
    async with _connected(url, "load") as connection, connection.transaction():
        for table in _TRIGGERED:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        if not await connection.fetchval(_EMPTY_SQL):
            raise Conflict("the regional database holds objects: a dump goes into an empty one only")
        await connection.execute(f"DELETE FROM objects WHERE bucket_id = {SYSTEM_BUCKET}")  # of dumps of the empty region
        async with _loading_global(global_url) as (beside, fresh):
            yield Loading(connection, beside, fresh)
        await connection.execute("DELETE FROM usage_deltas")
        await connection.execute("DELETE FROM usage_folded")
        await connection.execute(_USAGE_SQL)
        await connection.execute(_SEQUENCE_SQL)
        await connection.execute(
            """INSERT INTO settings (name, value) VALUES ('salvage', $1::jsonb)
               ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()""",
            note,
        )
        for table in _TRIGGERED:
            await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
