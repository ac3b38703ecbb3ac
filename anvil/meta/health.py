"""What readiness and `anvil doctor` ask of a database: does it answer, has it the right schema, does it keep its promises.

Not here: how often that is asked and what follows (`node`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import asyncpg
import msgspec

from anvil.base.errors import DatabaseUnavailable, InvalidSetting
from anvil.base.limits import READY_CHECK_TIMEOUT_S
from anvil.meta.link import CONNECTION_ERRORS
from anvil.meta.migrate import Database, pending

_FACTS_SQL: Final = """
    SELECT current_setting('server_version') AS version, current_setting('synchronous_commit') AS synchronous_commit,
           current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
           pg_is_in_recovery() AS standby,
           current_setting('server_encoding') AS encoding,
           (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
           (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline"""


class Health(msgspec.Struct, frozen=True):
    """`problems` is empty when the database may be used; each is one line for an operator."""

    database: Database
    ms: float
    problems: tuple[str, ...]
    version: str = ""
    system_identifier: int = 0
    timeline: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


async def check(url: str, database: Database, timeout_s: float = READY_CHECK_TIMEOUT_S) -> Health:
    """Ask the database on a connection of its own, so that the settings seen are those it gives to anyone. Never raises."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            connection: asyncpg.Connection = await asyncpg.connect(url, timeout=timeout_s)
            try:
                row = await connection.fetchrow(_FACTS_SQL)
                assert row is not None
                problems = _problems(row)
                try:
                    problems += [
                        f"migration {migration.name} is not applied"
                        for migration in await pending(connection, database, running=True)
                    ]
                except asyncpg.UndefinedTableError:
                    problems.append("the schema is missing: no migration was applied")
                except InvalidSetting as error:
                    problems.append(error.message)
            finally:
                connection.terminate()
    except (*CONNECTION_ERRORS, asyncpg.PostgresError, DatabaseUnavailable) as error:
        text = str(error) or type(error).__name__
        return Health(database, (time.monotonic() - began) * 1000, (f"the {database} database does not answer: {text}",))
    return Health(
        database,
        (time.monotonic() - began) * 1000,
        tuple(problems),
        row["version"],
        row["system_identifier"],
        row["timeline"],
    )


def _problems(row: asyncpg.Record) -> list[str]:
    problems = []
    if row["standby"]:
        problems.append("the server is a standby: it cannot be written to")
    if row["synchronous_commit"] in ("off",):
        problems.append("synchronous_commit is off: a crash would lose acknowledged writes")
    for setting in ("fsync", "full_page_writes"):
        if row[setting] != "on":
            problems.append(f"{setting} is off: a crash would lose or damage data")
    if row["encoding"] != "UTF8":
        problems.append(f"the database's encoding is {row['encoding']}: it must be created with ENCODING 'UTF8'")
    if int(row["version"].split(".")[0]) < 16:
        problems.append(f"PostgreSQL {row['version']} is too old: 16 or later is needed")
    return problems
