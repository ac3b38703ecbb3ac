"""Nodes, drives and layouts in the regional database: what the region consists of, and who holds which partition.

Owns: these three tables. Invariant: a drive's id never changes its node silently, and is never handed to another folder; layouts are
only appended, one at a time under an advisory lock, each computed from its predecessor, exactly one of them current. Not here: how a
layout is computed (`model/layout.py`), leases and membership (the cluster's business).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import msgspec

from anvil.base.errors import DatabaseUnavailable
from anvil.base.limits import CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S
from anvil.meta.link import CONNECTION_ERRORS
from anvil.model.layout import Layout
from anvil.model.records import DriveId

_LAYOUT_LOCK: Final = 0x616E76696C01  # "anvil", 1
_CURRENT_SQL: Final = "SELECT packed FROM layouts WHERE state = 'current'"


class DriveRow(msgspec.Struct, frozen=True):
    """A drive as the region knows it. `path`: the folder on its node."""

    drive_id: DriveId
    path: str
    capacity_bytes: int
    state: str = "active"  # active, draining, failed, gone


class ClusterTables:
    """One connection, for the start of a node and for administration. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> ClusterTables:
        try:
            self._connection: asyncpg.Connection = await asyncpg.connect(
                self._url, timeout=CONNECT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S
            )
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close(timeout=CONNECT_TIMEOUT_S)

    async def register_node(self, node_id: bytes, name: str) -> None:
        """Idempotent."""
        await self._connection.execute(
            "INSERT INTO nodes (node_id, name, state) VALUES ($1, $2, 'active') "
            "ON CONFLICT (node_id) DO UPDATE SET name = EXCLUDED.name, state = 'active'",
            node_id,
            name,
        )

    async def drives(self, node_id: bytes) -> tuple[DriveRow, ...]:
        """The node's drives that are not gone for good, by path."""
        rows = await self._connection.fetch(
            "SELECT drive_id, label, capacity_bytes, state FROM drives WHERE node_id = $1 AND state <> 'gone' ORDER BY label",
            node_id,
        )
        return tuple(DriveRow(row["drive_id"], row["label"], row["capacity_bytes"], row["state"]) for row in rows)

    async def put_drives(self, node_id: bytes, drives: Sequence[DriveRow]) -> None:
        """Insert, or update path, capacity and state. A drive that moved here from another node changes its node."""
        await self._connection.executemany(
            "INSERT INTO drives (drive_id, node_id, label, capacity_bytes, state) VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT (drive_id) DO UPDATE SET node_id = EXCLUDED.node_id, label = EXCLUDED.label, "
            "capacity_bytes = EXCLUDED.capacity_bytes, state = EXCLUDED.state",
            [(drive.drive_id, node_id, drive.path, drive.capacity_bytes, drive.state) for drive in drives],
        )

    async def current_layout(self) -> Layout | None:
        packed = await self._connection.fetchval(_CURRENT_SQL)
        return None if packed is None else Layout.unpack(packed)

    async def advance_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout:
        """Append the layout that `successor` makes of the current one; None from it means that the current one stays. Whoever comes
        second waits, and computes from the first one's."""
        async with self._connection.transaction():
            await self._connection.execute("SELECT pg_advisory_xact_lock($1)", _LAYOUT_LOCK)
            current = await self.current_layout()
            following = successor(current)
            if following is None:
                assert current is not None
                return current
            await self._connection.execute("UPDATE layouts SET state = 'old' WHERE state = 'current'")
            await self._connection.execute(
                "INSERT INTO layouts (version, state, packed) VALUES ($1, 'current', $2)", following.version, following.pack()
            )
            return following
