"""Schema migrations: numbered SQL files, applied in order, each in a transaction, under an advisory lock.

Owns: the table `schema_migrations` of each database. Invariant: a database is only used when every migration it has is known here
under the same checksum, so an old server never writes into a newer schema. Not here: the schema (`migrations/*/*.sql`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from enum import StrEnum
from importlib import resources
from typing import Final

import asyncpg
import msgspec

from anvil.base.errors import DatabaseUnavailable, InvalidSetting
from anvil.base.limits import CONNECT_TIMEOUT_S, MIGRATION_LOCK_S, MIGRATION_WAIT_S

log = logging.getLogger(__name__)

RESTORING: Final = "anvil_restoring"  # a schema that is there while a restore is not over (dumps.py)
_LOCK: Final = 0x416E76696C  # "Anvil"; advisory locks are per database
_TABLE: Final = """CREATE TABLE IF NOT EXISTS schema_migrations (
    number int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"""


class Database(StrEnum):
    """Which schema a database holds; also the folder of its migrations."""

    GLOBAL = "global"
    REGIONAL = "regional"


class Migration(msgspec.Struct, frozen=True):
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(database: Database) -> list[Migration]:
    """The migrations of this release, ascending."""
    folder = resources.files("anvil.meta") / "migrations" / database.value
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [Migration(int(entry.name[:4]), entry.name, entry.read_text(encoding="utf-8")) for entry in files]


async def migrate(url: str, database: Database, *, restoring: bool = False) -> int:
    """Bring the database to this release's schema. Returns how many migrations were applied.

    Raises InvalidSetting when its schema is newer or not ours, or a restore into it was not ended (unless `restoring`); DatabaseUnavailable
    when it cannot be reached.
    """
    try:
        connection: asyncpg.Connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise DatabaseUnavailable(f"cannot reach the {database} database: {error}") from error
    try:
        if (encoding := await connection.fetchval("SHOW server_encoding")) != "UTF8":
            raise InvalidSetting(
                f"the {database} database has the encoding {encoding}: create it with ENCODING 'UTF8' TEMPLATE template0"
            )
        if not restoring and await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", RESTORING):
            raise InvalidSetting(
                f"a restore into the {database} database was interrupted: drop the database, create it again, and restore once more"
            )
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_TABLE)
        done = 0
        for migration in await pending(connection, database):
            log.info("%s database: applying %s", database, migration.name)
            await _apply(connection, database, migration)
            done += 1
        return done
    finally:
        await asyncio.shield(connection.close())  # also releases the lock


async def _apply(connection: asyncpg.Connection, database: Database, migration: Migration) -> None:
    """Raises DatabaseUnavailable. It waits for locks a moment at a time: behind one that waits for a table, everybody else's reading of it
    would wait as well, on all nodes, for as long as a dump holds that table."""
    until = time.monotonic() + MIGRATION_WAIT_S
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {int(MIGRATION_LOCK_S * 1000)}")
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.checksum,
                )
            return
        except asyncpg.LockNotAvailableError as error:
            if time.monotonic() > until:
                raise DatabaseUnavailable(
                    f"{migration.name} waits for a table of the {database} database that is locked, by a backup perhaps: start again later"
                ) from error
            log.warning("%s waits for a table that is locked, by a backup perhaps", migration.name)
            await asyncio.sleep(2 * MIGRATION_LOCK_S)


async def pending(connection: asyncpg.Connection, database: Database, *, running: bool = False) -> list[Migration]:
    """What is still to be applied. Raises InvalidSetting when the database has a migration this release does not know, unless it is
    `running`: what the next release adds does not disturb this one (tests/tidy/test_migrations.py), so that nodes can be upgraded one after
    the other; only a start is refused."""
    applied = {row["number"]: row for row in await connection.fetch("SELECT number, name, checksum FROM schema_migrations")}
    known = migrations(database)
    for number in applied.keys() - {migration.number for migration in known}:
        if running:
            break
        name = applied[number]["name"]
        raise InvalidSetting(f"the {database} database was migrated by a newer Anvil ({name}): run that release or a later one")
    for migration in known:
        row = applied.get(migration.number)
        if row is not None and row["checksum"] != migration.checksum:
            raise InvalidSetting(f"the {database} database was migrated with another {migration.name} than this release has")
    return [migration for migration in known if migration.number not in applied]
