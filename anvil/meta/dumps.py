"""Dumps of the databases for backups, with the list of blobs that exactly that dump names; and loading them again.

Owns: the one snapshot of the regional database that dump and list share. Invariants: a snapshot is held for no longer than dump and list
take; a dump is loaded whole or not at all, into a database that has nothing, and from then on until the restore is over that database says
so of itself (`RESTORING`), so that no node starts on half of it. Not here: what is changed after loading (`recovery.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import asyncpg
import msgspec

from anvil.base.errors import Conflict, DatabaseUnavailable, InvalidSetting
from anvil.base.limits import CONNECT_TIMEOUT_S, LISTED_ROWS
from anvil.meta import tools
from anvil.meta.link import CONNECTION_ERRORS
from anvil.meta.migrate import RESTORING, Database, migrations
from anvil.meta.rows import unpack_scheme
from anvil.model.records import BlobRef, KeyMode

_BLOB: Final = "SELECT blob_id, size, scheme, stripe_bytes, key_mode FROM {} WHERE blob_id IS NOT NULL AND inline IS NULL"
_LIST_SQL: Final = " UNION ALL ".join(map(_BLOB.format, ("objects", "versions", "parts"))) + " ORDER BY blob_id"
_FACTS_SQL: Final = """
    SELECT (SELECT count(*) FROM objects) AS objects, (SELECT count(*) FROM versions) AS versions, (SELECT count(*) FROM parts) AS parts,
           (SELECT count(*) FROM buckets) AS buckets,
           coalesce((SELECT value::text::bigint FROM settings WHERE name = 'cluster_epoch'), 0) AS epoch,
           (SELECT max(number) FROM schema_migrations) AS migration"""
_EMPTY_SQL: Final = """
    SELECT NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname NOT LIKE 'pg_temp%')"""

_HAS_TRANSACTION_TIMEOUT: Final = 17  # pg_restore of this version and later sets it, and servers before it refuse that
_TRANSACTION_TIMEOUT: Final = b"SET transaction_timeout = 0;\n"
_LOOK_S: Final = 0.5


def _nobody(size: int) -> None:
    """The default `moved`."""


class Facts(msgspec.Struct, frozen=True):
    """Of the regional snapshot. `server`: major version. `migration`: the newest."""

    server: int
    epoch: int
    migration: int
    counts: dict[str, int]


async def connect(url: str, database: Database) -> asyncpg.Connection:
    """A connection of its own, without any time limit for statements. Raises DatabaseUnavailable."""
    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "anvil backup"})
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"cannot reach the {database} database: {error}") from error


async def dump_regional(url: str, tool: tools.Tool, target: Path, write: Callable[[list[BlobRef]], None]) -> Facts:
    """Dump the database into `target`, and give `write` the blobs of the same snapshot in the order of their ids, LISTED_ROWS at a time, on
    a thread. Raises DatabaseUnavailable, OSError."""
    connection = await connect(url, Database.REGIONAL)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            dumping = asyncio.create_task(_dump(url, tool, target, f"--snapshot={snapshot}"))
            try:
                facts = await connection.fetchrow(_FACTS_SQL)
                await _list(connection, write)
                await dumping
            finally:
                dumping.cancel()
                await asyncio.gather(dumping, return_exceptions=True)
        assert facts is not None
        counts = {name: facts[name] for name in ("objects", "versions", "parts", "buckets")}
        return Facts(server_major(connection), facts["epoch"], facts["migration"], counts)
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise
        raise DatabaseUnavailable(f"the regional database could not be dumped: {error}") from error
    finally:
        connection.terminate()


async def _list(connection: asyncpg.Connection, write: Callable[[list[BlobRef]], None]) -> None:
    await connection.execute("SET LOCAL work_mem = '64MB'")
    cursor = await connection.cursor(_LIST_SQL)
    while rows := await cursor.fetch(LISTED_ROWS):
        blobs = [
            BlobRef(row["blob_id"], row["size"], unpack_scheme(row["scheme"]), row["stripe_bytes"], KeyMode(row["key_mode"]))
            for row in rows
        ]
        await asyncio.to_thread(write, blobs)


async def dump_global(url: str, tool: tools.Tool, target: Path) -> tuple[int, int]:
    """Returns the major version of its server, and the number of its newest migration. Raises DatabaseUnavailable, OSError."""
    connection = await connect(url, Database.GLOBAL)
    try:
        await _dump(url, tool, target)
        return server_major(connection), int(await connection.fetchval("SELECT max(number) FROM schema_migrations"))
    except asyncpg.PostgresError as error:
        raise DatabaseUnavailable(f"the global database could not be dumped: {error}") from error
    finally:
        connection.terminate()


async def _dump(url: str, tool: tools.Tool, target: Path, *arguments: str) -> None:
    file = await asyncio.to_thread(target.open, "xb")  # as closing it, this may take as long as a mount hangs
    try:
        await tools.run(tool.path, url, ["-Fc", "--no-owner", "--no-privileges", *arguments], file)
    finally:
        await asyncio.to_thread(file.close)


async def dump_tool(url: str, database: Database) -> tools.Tool:
    """The `pg_dump` for that database. Raises DatabaseUnavailable, InvalidSetting."""
    connection = await connect(url, database)
    try:
        return await tools.find("pg_dump", server_major(connection), encrypted=await _encrypted(connection))
    finally:
        connection.terminate()


async def _encrypted(connection: asyncpg.Connection) -> bool:
    """Whether this connection is: by what the server says, as `sslmode=prefer` leaves it open."""
    return bool(await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))


def server_major(connection: asyncpg.Connection) -> int:
    return int(connection.get_server_version().major)


# -- owners of blobs, after the fact -----------------------------------------------------------------------------------------------


async def owners_of(url: str, blob_ids: list[bytes]) -> dict[bytes, tuple[int, str, int]]:
    """Bucket, key and part number of the rows that name these blobs now. Reads all rows: for a few blobs in trouble."""
    sql = """
        SELECT blob_id, bucket_id, key, 0 AS number FROM objects WHERE blob_id = ANY ($1)
        UNION ALL SELECT blob_id, bucket_id, key, 0 FROM versions WHERE blob_id = ANY ($1)
        UNION ALL SELECT p.blob_id, p.bucket_id, coalesce(u.key, ''), p.number FROM parts p LEFT JOIN uploads u USING (bucket_id, upload_id)
                  WHERE p.blob_id = ANY ($1)"""
    connection = await connect(url, Database.REGIONAL)
    try:
        rows = await connection.fetch(sql, blob_ids)
        return {row["blob_id"]: (row["bucket_id"], row["key"], row["number"]) for row in rows}
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
    finally:
        connection.terminate()


async def corrupt_blobs(url: str, limit: int) -> set[bytes] | None:
    """Blobs of which a shard was met with wrong content and is not known to be mended; None where there are more than `limit`. Raises
    DatabaseUnavailable."""
    connection = await connect(url, Database.REGIONAL)
    try:
        rows = await connection.fetch("SELECT blob_id FROM degraded WHERE corrupt <> 0 LIMIT $1", limit + 1)
        return {row["blob_id"] for row in rows} if len(rows) <= limit else None
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
    finally:
        connection.terminate()


async def list_blobs(url: str, write: Callable[[list[BlobRef]], None]) -> None:
    """The blobs that rows name now, as `dump_regional` lists them. Raises DatabaseUnavailable, OSError."""
    connection = await connect(url, Database.REGIONAL)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await _list(connection, write)
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise
        raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
    finally:
        connection.terminate()


# -- loading ---------------------------------------------------------------------------------------------------------------------------


async def prepare_load(url: str, database: Database, dumped_by: int, made_by: int, migration: int) -> tools.Tool:
    """Whether a dump can be loaded there; nothing is changed. `dumped_by`, `made_by`: major versions of pg_dump and of the server that it
    dumped. Returns the `pg_restore` to use. Raises DatabaseUnavailable, InvalidSetting, Conflict where the database is not empty."""
    newest = migrations(database)[-1].number
    if migration > newest:
        raise InvalidSetting(
            f"the backup is of a newer Anvil (migration {migration} of the {database} database, {newest} is the newest here): run that "
            "release"
        )
    connection = await connect(url, database)
    try:
        if (server := server_major(connection)) < made_by:
            raise InvalidSetting(
                f"the {database} database was dumped from PostgreSQL {made_by}, and this is {server}: use {made_by} or later"
            )
        if await connection.fetchval("SHOW server_encoding") != "UTF8":
            raise InvalidSetting(f"the {database} database must be created with ENCODING 'UTF8' TEMPLATE template0")
        if not await connection.fetchval(_EMPTY_SQL):
            raise Conflict(
                f"the {database} database is not empty: a backup is only restored into an empty one. Create another, or drop this one if "
                "nothing of it is wanted"
            )
        return await tools.find("pg_restore", server, dumped_by, encrypted=await _encrypted(connection))
    finally:
        connection.terminate()


async def load(url: str, database: Database, tool: tools.Tool, dump: Path, moved: Callable[[int], None] = _nobody) -> None:
    """Load a dump into an empty database, which says from now on that its restore is not over. `moved`: told of bytes of the dump that were
    read. Raises DatabaseUnavailable."""
    connection = await connect(url, database)
    try:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {RESTORING}")
        server = server_major(connection)
    finally:
        connection.terminate()
    arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    file = await asyncio.to_thread(dump.open, "rb")
    reading = _Reading(file, moved)
    watching = asyncio.create_task(reading.watch())
    try:
        if server < _HAS_TRANSACTION_TIMEOUT <= tool.major:
            await tools.run_through_psql(tool.path, url, [*arguments, "--file=-"], file, _TRANSACTION_TIMEOUT)
        else:
            await tools.run(tool.path, url, [*arguments, "--dbname="], given=file)  # PGDATABASE says which
        reading.over()
    finally:
        watching.cancel()
        file.close()


class _Reading:
    """How far a program that was given a file has read it, about: it shares the offset, and may go back."""

    def __init__(self, file: IO[bytes], moved: Callable[[int], None]) -> None:
        self._file = file
        self._moved = moved
        self._known = 0

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._is_at(os.lseek(self._file.fileno(), 0, os.SEEK_CUR))

    def over(self) -> None:
        self._is_at(os.fstat(self._file.fileno()).st_size)

    def _is_at(self, offset: int) -> None:
        if offset > self._known:
            self._moved(offset - self._known)
            self._known = offset


async def readable(dump: Path, dumped_by: int) -> None:
    """Whether `pg_restore` can read its table of contents. Raises DatabaseUnavailable with what it says, InvalidSetting."""
    tool = await tools.find("pg_restore", 0, dumped_by)
    await tools.run(tool.path, "", ["--list", str(dump)])


async def sealed_bucket_keys(dump: Path, dumped_by: int) -> dict[int, bytes]:
    """Out of a dump of the global database: what `Keyring.unwrap` opens, by bucket id. Raises DatabaseUnavailable, InvalidSetting."""
    tool = await tools.find("pg_restore", 0, dumped_by)
    text = await tools.run(tool.path, "", ["--data-only", "--table=buckets", "--file=-", str(dump)])
    return dict(_bucket_rows(text.decode()))


def _bucket_rows(text: str) -> Iterator[tuple[int, bytes]]:
    """The rows of COPY's text format (PostgreSQL manual, COPY, "Text Format")."""
    columns: list[str] | None = None
    for line in text.split("\n"):
        if line.startswith("COPY public.buckets ("):
            columns = line[line.index("(") + 1 : line.index(")")].split(", ")
        elif line == "\\.":
            columns = None
        elif columns is not None:
            row = dict(zip(columns, line.split("\t"), strict=True))
            yield int(row["bucket_id"]), bytes.fromhex(row["sealed_key"].removeprefix("\\\\x"))
