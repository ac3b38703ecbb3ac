"""One dedicated PostgreSQL connection that comes back after it was lost, with its prepared statements.

Owns: connecting, session settings, backoff, and the classes of connection failure. Invariant: `lock` is held by whoever uses the
connection, and `connected` is called anew under each lock, so nobody runs on a connection that is already known to be dead.
Not here: what is run (`coalesce`, `objects`, ...).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.prepared_stmt import PreparedStatement

from anvil.base.errors import DatabaseUnavailable, OutcomeUnknown
from anvil.base.limits import CONNECT_BACKOFF_S_MAX, CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S

log = logging.getLogger(__name__)

_SETTINGS: Final = {
    "timezone": "UTC",
    "statement_timeout": str(int(STATEMENT_TIMEOUT_S * 1000)),
    "idle_in_transaction_session_timeout": str(int(STATEMENT_TIMEOUT_S * 1000)),
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "jit": "off",
    "search_path": "public",
    # Every statement is planned once for batches of any size, while tables may still be empty: it must not plan for that. All
    # rows are reached by index from the batch's side.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
}

# InternalClientError is what asyncpg says of a connection on which the server announced its end out of turn.
CONNECTION_ERRORS: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    TimeoutError,
)


def connection_lost(error: BaseException) -> bool:
    """Whether `error` says that the connection is gone, or going (the server shuts down, or is a standby now)."""
    if refused_to_encode(error):
        return False
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state.startswith("08") or state in {"57P01", "57P02", "57P03", "57P05", "25006"}
    return isinstance(error, CONNECTION_ERRORS)


def refused_to_encode(error: BaseException) -> bool:
    """Whether asyncpg found a value it cannot encode (a lone surrogate, an integer out of range): nothing was sent."""
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


def states(links: Sequence[Link]) -> dict[str, int]:
    """How many of them are in each state."""
    found = dict.fromkeys(("busy", "idle", "down"), 0)
    for link in links:
        found[link.state] += 1
    return found


class Link:
    """A connection to `url`. `name` appears in `pg_stat_activity`. `idle_s`: the server ends it when nothing was asked for so long."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        on_connect: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
        idle_s: float | None = None,
    ) -> None:
        self._settings = _SETTINGS if idle_s is None else {**_SETTINGS, "idle_session_timeout": str(int(idle_s * 1000))}
        self._url = url
        self._name = name
        self._on_connect = on_connect
        self._connection: asyncpg.Connection | None = None
        self._statements: dict[str, PreparedStatement] = {}
        self._incarnation = ""
        self._retry_at = 0.0
        self._backoff_s = 0.0
        self._closed = False
        self.lock = asyncio.Lock()
        self.reconnects = 0

    @property
    def up(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    @property
    def state(self) -> str:
        """`busy` with a statement, `idle`, or `down`."""
        return "down" if not self.up else "busy" if self.lock.locked() else "idle"

    @property
    def incarnation(self) -> str:
        """Names the present server process of this link, for `bury`."""
        return self._incarnation

    async def connected(self, deadline: float) -> asyncpg.Connection:
        """The live connection, made anew where needed. Raises DatabaseUnavailable once the loop's clock passes `deadline`."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            if self._connection is not None and not self._connection.is_closed():
                return self._connection
            now = loop.time()
            if now < self._retry_at and now < deadline:
                await asyncio.sleep(min(self._retry_at, deadline) - now)
            if loop.time() >= deadline:
                raise DatabaseUnavailable
            await self._connect(deadline - loop.time())
        raise DatabaseUnavailable

    async def _connect(self, budget_s: float) -> None:
        self._statements.clear()
        incarnation = f"{self._name} {os.urandom(6).hex()}"
        try:
            connection: asyncpg.Connection = await asyncpg.connect(
                self._url,
                timeout=max(0.1, min(CONNECT_TIMEOUT_S, budget_s)),
                server_settings={**self._settings, "application_name": incarnation},
                statement_cache_size=0,  # statements are kept here
                target_session_attrs=SessionAttribute.read_write,
            )
            if self._on_connect is not None:
                try:
                    await self._on_connect(connection)
                except BaseException:
                    connection.terminate()
                    raise
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            self._backoff_s = min(max(0.05, self._backoff_s * 2), CONNECT_BACKOFF_S_MAX)
            self._retry_at = asyncio.get_running_loop().time() + self._backoff_s
            log.warning("%s: cannot connect to PostgreSQL: %s", self._name, error or type(error).__name__)
            return
        self._connection = connection
        if self._incarnation:
            self.reconnects += 1
            log.info("%s: connected to PostgreSQL again", self._name)
        self._incarnation = incarnation
        self._backoff_s = 0.0

    async def statement(self, sql: str, deadline: float) -> PreparedStatement:
        """`sql`, prepared on the present connection."""
        connection = await self.connected(deadline)
        prepared = self._statements.get(sql)
        if prepared is None:
            # Without a name of our own asyncpg, its cache being off, would have the statement parsed and planned at every use.
            prepared = await connection.prepare(sql, name=f"anvil_{len(self._statements)}")
            self._statements[sql] = prepared
        return prepared

    async def bury(self, incarnation: str, deadline: float) -> None:
        """Make sure that the server process of an earlier incarnation, whose connection was lost, will commit nothing any more.

        Raises OutcomeUnknown when that cannot be learned before `deadline`.
        """
        try:
            connection = await self.connected(deadline)
            gone = await connection.fetchval(
                "SELECT bool_and(pg_terminate_backend(pid, $2)) IS NOT FALSE FROM pg_stat_activity WHERE application_name = $1",
                incarnation,
                max(1, int((deadline - asyncio.get_running_loop().time()) * 1000)),
            )
        except (DatabaseUnavailable, *CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            raise OutcomeUnknown from error
        if not gone:
            raise OutcomeUnknown

    def drop(self) -> None:
        """Give the present connection up at once; the next user makes another."""
        if self._connection is not None and not self._connection.is_closed():
            self._connection.terminate()
        self._statements.clear()

    async def close(self) -> None:
        """Close for good. Call after every user has ended."""
        self._closed = True
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError):
                self._connection.terminate()
