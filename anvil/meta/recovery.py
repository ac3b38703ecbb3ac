"""What a region remembers of backups and restores: holds, recovery mode, the last fsck and the last backup; and what a restore changes.

Owns: those rows of the regional `settings`, and the transactions that turn a loaded dump into a region in recovery mode. Invariants: two
backups' holds do not end each other; a hold of Anvil's own ends with its lease; after a restore everything of before is fenced (sessions
gone, the cluster's epoch raised) before any node can start on it; recovery mode ends only by an operator, and then the garbage's grace
begins anew. Not here: what recovery mode stops (`collection_allowed`), loading (`dumps.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from anvil.base.errors import Conflict, DatabaseUnavailable
from anvil.base.limits import BACKUP_HOLD_LEASE_S, HOLD_SETTLE_S
from anvil.meta.dumps import connect
from anvil.meta.link import CONNECTION_ERRORS
from anvil.meta.migrate import RESTORING, Database

_HOLD: Final = "backup_hold/"
_SET_SQL: Final = """
    INSERT INTO settings (name, value) VALUES ($1, $2::text::jsonb)
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()"""
_HOLD_SQL: Final = """
    INSERT INTO settings (name, value)
    VALUES ($1, jsonb_build_object('by', $2::text, 'since_us', now_us(), 'until_us', now_us() + $3::bigint))
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()"""
_RENEW_SQL: Final = """
    UPDATE settings SET value = jsonb_set(value, '{until_us}', to_jsonb(now_us() + $2::bigint)), changed_us = now_us()
    WHERE name = $1 AND (value ->> 'until_us')::bigint > now_us() RETURNING name"""
_RELEASE_SQL: Final = "DELETE FROM settings WHERE name = $1 RETURNING name"
_EXPIRED_SQL: Final = """
    DELETE FROM settings WHERE starts_with(name, 'backup_hold/') AND (value ->> 'until_us')::bigint <= now_us()"""
_STATE_SQL: Final = """
    SELECT name, value::text AS value, changed_us FROM settings
    WHERE name IN ('recovery', 'last_fsck', 'last_backup', 'cluster_epoch', 'backup_hold') OR starts_with(name, 'backup_hold/')"""
_HELD_SQL: Final = """
    SELECT coalesce(max(now_us() - coalesce((value ->> 'since_us')::bigint, changed_us)), 0) FROM settings
    WHERE name = 'backup_hold' OR (starts_with(name, 'backup_hold/') AND (value ->> 'until_us')::bigint > now_us())"""
_NOW_SQL: Final = "SELECT now_us()"

_MEMBERS: Final = ("layout_slices", "layouts", "drives", "nodes")

Query = Callable[..., Awaitable[Sequence[asyncpg.Record]]]
"""`RegionalStore.query`."""


class Held(msgspec.Struct, frozen=True):
    """A hold on removals. `until_us`: None where somebody has to take it away."""

    name: str
    by: str
    until_us: int | None


class Recovery(msgspec.Struct, frozen=True):
    """Recovery mode. `since_us`: on the database's clock. `snapshot`: what was restored, "" where that was done by other means, None where
    the region is rebuilt from its drives (`salvage.py`). `closed`: no object is served."""

    since_us: int
    why: str = ""
    closed: bool = False
    snapshot: str | None = None
    kept_nodes: bool = False


class Checked(msgspec.Struct, frozen=True):
    """The last fsck that was ended. `began_us`: on the database's clock; `found`: its counts that are not zero, `away`: drives that it
    could not look at."""

    began_us: int
    clean: bool
    found: dict[str, int] = {}
    away: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Everything that rows name is there. What nobody names may be there as well."""
        return not self.away and set(self.found) <= {"orphans"}


class State(msgspec.Struct, frozen=True):
    recovery: Recovery | None = None
    fsck: Checked | None = None
    holds: tuple[Held, ...] = ()
    epoch: int = 0
    last_backup_us: int = 0

    @property
    def checked(self) -> Checked | None:
        """The fsck, if it was begun since the restore."""
        since = self.recovery.since_us if self.recovery is not None else 0
        return self.fsck if self.fsck is not None and self.fsck.began_us > since else None


class RegionNotes:
    """Over a region's database. All raise DatabaseUnavailable, and may be repeated."""

    def __init__(self, query: Query) -> None:
        self._query = query

    async def now_us(self) -> int:
        """By the database's clock."""
        return int((await self._query(_NOW_SQL))[0][0])

    async def hold(self, holder: str, by: str, lease_s: float = BACKUP_HOLD_LEASE_S) -> None:
        """Stop all unlinking for a backup. On return no process unlinks anything, also none that was in the middle of a batch."""
        await self._query(_EXPIRED_SQL)
        await self._query(_HOLD_SQL, _HOLD + holder, by, int(lease_s * 1_000_000))
        await asyncio.sleep(HOLD_SETTLE_S)

    async def renew(self, holder: str, lease_s: float = BACKUP_HOLD_LEASE_S) -> bool:
        """False when the hold had ended: removals may have begun."""
        return bool(await self._query(_RENEW_SQL, _HOLD + holder, int(lease_s * 1_000_000)))

    async def release(self, holder: str) -> bool:
        """False if there was none."""
        return bool(await self._query(_RELEASE_SQL, _HOLD + holder))

    async def held_s(self) -> float:
        """For how long removals have been held, 0 while they are not."""
        return int((await self._query(_HELD_SQL))[0][0]) / 1e6

    async def state(self) -> State:
        rows = {row["name"]: (row["value"], row["changed_us"]) for row in await self._query(_STATE_SQL)}

        def read(name: str, kind: Any) -> Any:
            return msgspec.json.decode(rows[name][0], type=kind) if name in rows else None

        now_us = await self.now_us()
        holds = [_held(name, value) for name, (value, _) in sorted(rows.items()) if name.startswith("backup_hold")]
        return State(
            read("recovery", Recovery),
            read("last_fsck", Checked),
            tuple(hold for hold in holds if hold.until_us is None or hold.until_us > now_us),
            read("cluster_epoch", int) or 0,
            (read("last_backup", dict) or {}).get("finished_us", 0),
        )

    async def note_fsck(self, checked: Checked) -> None:
        await self._set("last_fsck", checked)

    async def note_backup(self, finished_us: int) -> None:
        await self._set("last_backup", {"finished_us": finished_us})

    async def _set(self, name: str, value: object) -> None:
        await self._query(_SET_SQL, name, msgspec.json.encode(value).decode())

    async def begin_recovery(self) -> bool:
        """For a database that was restored by other means. Who wrote to it before is fenced, and holds that came with the dump are over:
        they were for making it. False if it is in recovery mode already."""
        sql = """
            WITH begun AS (
                INSERT INTO settings (name, value)
                VALUES ('recovery', jsonb_build_object('since_us', now_us(), 'why', 'restored', 'snapshot', '', 'kept_nodes', true))
                ON CONFLICT (name) DO NOTHING RETURNING name
            ),
            raised AS (
                INSERT INTO settings (name, value) SELECT 'cluster_epoch', '1' FROM begun
                ON CONFLICT (name) DO UPDATE SET value = to_jsonb(settings.value::text::bigint + 1), changed_us = now_us()
            ),
            fenced AS (DELETE FROM writer_sessions WHERE EXISTS (SELECT FROM begun)),
            released AS (DELETE FROM settings WHERE (name = 'backup_hold' OR starts_with(name, 'backup_hold/'))
                AND EXISTS (SELECT FROM begun))
            SELECT name FROM begun"""
        return bool(await self._query(sql))

    async def end_recovery(self) -> bool:
        """False if there was none. Nothing is removed for the garbage's grace from now on."""
        sql = """
            WITH ended AS (DELETE FROM settings WHERE name = 'recovery' RETURNING name)
            UPDATE settings SET changed_us = now_us() WHERE name = 'gc_epoch' AND EXISTS (SELECT FROM ended)"""
        before = (await self.state()).recovery
        await self._query(sql)
        return before is not None


def _held(name: str, value: str) -> Held:
    found = msgspec.json.decode(value)
    if not isinstance(found, dict):
        return Held(name, str(found), None)
    return Held(name.removeprefix(_HOLD), str(found.get("by", "")), found.get("until_us"))


# -- after a dump was loaded ---------------------------------------------------------------------------------------------------------


class Restored(msgspec.Struct, frozen=True):
    """`fenced`: buckets of the global database that got their fence back; `strangers`: buckets of which there are rows, and which the
    global database does not know (deleted while the backup ran, or since)."""

    epoch: int
    fenced: int
    strangers: int


async def tidy_global(url: str, who: str, snapshot: str) -> None:
    """Tasks were claimed by who is gone, and say nothing that the region does not know; the audit tells of the restore."""
    connection = await connect(url, Database.GLOBAL)
    try:
        async with connection.transaction():
            await connection.execute("DELETE FROM tasks")
            await connection.execute(
                "INSERT INTO audit (who, action, resource, result) VALUES ($1, 'restore', $2, 'ok')", who, f"snapshot {snapshot}"
            )
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the global database could not be prepared: {error}") from error
    finally:
        connection.terminate()


async def known_buckets(url: str, region: str) -> list[int]:
    """The region's buckets that are in use, by the global database. Raises DatabaseUnavailable."""
    connection = await connect(url, Database.GLOBAL)
    try:
        rows = await connection.fetch("SELECT bucket_id FROM buckets WHERE region = $1 AND state <> 'deleting'", region)
        return [row[0] for row in rows]
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the global database does not answer: {error}") from error
    finally:
        connection.terminate()


async def begin_recovery(url: str, recovery: str, buckets: Sequence[int], *, keep_nodes: bool) -> Restored:
    """Make a loaded regional database one in recovery mode, in one transaction: all who wrote to it before are fenced, nodes, drives and
    layouts forgotten unless they are kept. Raises DatabaseUnavailable, Conflict where it was not just loaded."""
    connection = await connect(url, Database.REGIONAL)
    try:
        async with connection.transaction():
            if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", RESTORING):
                raise Conflict("the regional database was not just restored")
            await connection.execute("DELETE FROM writer_sessions")
            if not keep_nodes:
                for table in _MEMBERS:
                    await connection.execute(f"DELETE FROM {table}")
            await connection.execute(
                "DELETE FROM settings WHERE name IN ('backup_hold', 'last_fsck') OR starts_with(name, 'backup_hold/')"
            )
            epoch = await connection.fetchval(
                """INSERT INTO settings (name, value) VALUES ('cluster_epoch', '1')
                   ON CONFLICT (name) DO UPDATE SET value = to_jsonb(settings.value::text::bigint + 1), changed_us = now_us()
                   RETURNING value::text::bigint"""
            )
            now_us = await connection.fetchval(_NOW_SQL)
            row = Recovery(now_us, f"restored from {recovery}", snapshot=recovery, kept_nodes=keep_nodes)
            state = msgspec.json.encode(row).decode()
            await connection.execute(_SET_SQL, "recovery", state)
            added = await connection.fetchval(
                """WITH added AS (INSERT INTO buckets (bucket_id)
                       SELECT b FROM unnest($1::bigint[]) AS b WHERE NOT EXISTS (SELECT FROM dropped_buckets d WHERE d.bucket_id = b)
                       ON CONFLICT DO NOTHING RETURNING 1)
                   SELECT count(*) FROM added""",
                list(buckets),
            )
            strangers = await connection.fetchval(
                "SELECT count(*) FROM buckets WHERE bucket_id <> ALL ($1::bigint[])", list(buckets)
            )
        return Restored(epoch, added, strangers)
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the regional database could not be prepared: {error}") from error
    finally:
        connection.terminate()


async def end_restore(url: str, database: Database) -> None:
    """From here on a node may start on it. Raises DatabaseUnavailable."""
    connection = await connect(url, database)
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {RESTORING}")
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"the {database} database could not be prepared: {error}") from error
    finally:
        connection.terminate()
