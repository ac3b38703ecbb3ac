"""Rows of the global database that may be remembered while the change log was read within the last second.

Owns: the position in the change log and what is cached. Invariant: an entry is served only if the change log was read at most
CATALOG_FRESH_S ago and named no change of it since the entry was read. Absence is never cached: a name that was missing a moment
ago may exist now, and its creator may be asking. Not here: what an entry is (`catalog`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg

from anvil.base.limits import CATALOG_FRESH_S, CATALOG_ROWS_MAX, CHANGE_LOG_KEEP_S, DATABASE_WAIT_S
from anvil.meta.coalesce import call
from anvil.meta.link import Link

T = TypeVar("T")

_CHANNEL: Final = "anvil_catalog"
_POLL_SQL: Final = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin, c.kind, c.name
    FROM (VALUES (1)) AS one LEFT JOIN change_log c ON c.xid >= $1::bigint::text::xid8"""


class ChangeCache:
    """Entries by (kind, name), dropped when the change log names them."""

    def __init__(self, link: Link, *, wait_s: float = DATABASE_WAIT_S) -> None:
        self._link = link
        self._wait_s = wait_s
        self._entries: dict[tuple[str, str], Any] = {}
        self._position = 0  # the xmin of the snapshot in which the log was read last
        self._read_at = float("-inf")
        self._hastened = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._begun = 0  # readings of the log
        self._done = 0  # the last of them that succeeded
        self._generation = 0
        self._named: set[str] = set()  # what changed since `changes` was asked last, "*" for everything
        self.reads = 0

    async def listen(self, connection: asyncpg.Connection) -> None:
        """For Link's on_connect: a NOTIFY makes the next request read the log at once."""
        await connection.add_listener(_CHANNEL, lambda *_: self.hasten())

    async def changes(self) -> tuple[str, ...]:
        """Read the log now. Returns what it named since the last call, as `kind:name`, or `*` when anything may have changed. Raises
        DatabaseUnavailable; nothing is lost by that, the next call returns it."""
        if self._reading is not None:
            await asyncio.wait([self._reading])  # it began before this call, so it cannot answer it
        self.hasten()
        await self._refresh()
        named, self._named = self._named, set()
        return ("*",) if "*" in named else tuple(sorted(named))

    def hasten(self) -> None:
        """Something changed: what is cached is not fresh any more."""
        self._hastened.set()

    async def hastened(self, timeout_s: float) -> None:
        """Until the log is known to have more than was read, or for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._hastened.wait()
        except TimeoutError:
            return

    async def get(self, kind: str, name: str, fetch: Callable[[], Awaitable[T | None]]) -> T | None:
        """The cached entry, or what `fetch` reads. Raises DatabaseUnavailable, also when only freshness cannot be had."""
        await self._refresh()
        found: T | None = self._entries.get((kind, name))
        if found is not None:
            return found
        generation = self._generation
        fetched = await fetch()
        # A change read meanwhile may be newer than what was fetched.
        if fetched is not None and generation == self._generation:
            while len(self._entries) >= CATALOG_ROWS_MAX:
                self._entries.pop(next(iter(self._entries)))
            self._entries[kind, name] = fetched
        return fetched

    async def _refresh(self) -> None:
        if not self._hastened.is_set() and asyncio.get_running_loop().time() - self._read_at < CATALOG_FRESH_S:
            return
        needed = self._begun + 1  # one that begins from now on: what is under way may have begun before the change
        while self._done < needed:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_log(), name="catalog change log")
                self._reading.add_done_callback(self._read_ended)
            await asyncio.shield(self._reading)

    def _read_ended(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be waiting any more

    async def _read_log(self) -> None:
        began = asyncio.get_running_loop().time()
        self._begun += 1
        number = self._begun
        self._hastened.clear()
        try:
            rows = await call(self._link, _POLL_SQL, self._position, wait_s=self._wait_s)
        except BaseException:
            self._hastened.set()
            raise
        xmin: int = rows[0]["xmin"]
        # The first reading, one after a gap that trimming may have cut, or another server with another history.
        if self._position == 0 or began - self._read_at > CHANGE_LOG_KEEP_S / 2 or xmin < self._position:
            self._entries.clear()
            self._generation += 1
            self._named = {"*"}
        for row in rows:
            if row["kind"] is not None:
                self._entries.pop((row["kind"], row["name"]), None)
                self._generation += 1
                self._named.add(f"{row['kind']}:{row['name']}" if len(self._named) < CATALOG_ROWS_MAX else "*")
        self._position = xmin
        self._read_at = began
        self._done = number
        self.reads += 1

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
