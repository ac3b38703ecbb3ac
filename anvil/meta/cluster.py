"""Nodes, drives and layouts in the regional database: what the region consists of, and who holds which partition.

Owns: these three tables and `layout_slices`. Invariants: a drive's id never changes its node silently, and is never handed to another
folder; layouts are only appended, each computed from its predecessor, exactly one of them current; while an old one is not retired,
`begin_layout` appends none. Not here: how a layout is computed (`model/layout.py`), who decides (`node/membership.py`).

Leaders. Whoever holds the advisory lock of `lead` acts for the region. The lock alone fences nobody: a leader whose connection was lost
learns of it at its next call, while another leads already. So nothing here depends on there being one. Each action is one statement that
says in its own conditions what must still hold (a lease that ran out, a state out of which a node is taken, a layout that is still the
current one, slices that are all done), under the row's lock. Of two leaders the second finds the condition gone and changes nothing; an
action that comes late is either still right or has no effect. The lock spares work, and keeps two from undoing each other for long. One who
hangs, or whose machine is gone without a word, would keep it for hours: the server ends a connection on which nothing is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import msgspec

from anvil.base.errors import DatabaseUnavailable
from anvil.base.limits import BATCH_RETRIES_MAX, DATABASE_WAIT_S, LAYOUT_HISTORY_MAX, LAYOUT_SLICES, LEADER_SILENT_S
from anvil.meta.coalesce import Rows, call
from anvil.meta.link import Link
from anvil.meta.salvage import CLOSE_SQL
from anvil.meta.sessions import FENCE_SQL
from anvil.model.cluster import (
    ClusterDrive,
    ClusterView,
    LayoutRow,
    LayoutState,
    NodeId,
    NodeRow,
    NodeState,
    SliceRow,
)
from anvil.model.layout import Layout
from anvil.model.records import DriveId

_LEADER_LOCK: Final = 0x616E76696C02  # "anvil", 2
_CHANNEL: Final = "anvil_cluster"

_REGISTER_SQL: Final = """
    INSERT INTO nodes AS n (node_id, name, zone, address, state) VALUES ($1, $2, $3, $4, 'joining')
    ON CONFLICT (node_id) DO UPDATE SET
        name = EXCLUDED.name, zone = EXCLUDED.zone, address = EXCLUDED.address,
        state = CASE n.state WHEN 'removed' THEN 'joining' ELSE n.state END,
        since_us = CASE n.state WHEN 'removed' THEN now_us() ELSE n.since_us END,
        lease_until = CASE n.state WHEN 'removed' THEN NULL ELSE n.lease_until END"""
_RENEW_SQL: Final = """
    UPDATE nodes SET lease_until = clock_timestamp() + make_interval(secs => $2)
    WHERE node_id = $1 AND state <> 'removed' RETURNING true"""
_MARK_DOWN_SQL: Final = """
    UPDATE nodes SET state = 'down', since_us = now_us()
    WHERE state IN ('joining', 'active') AND lease_until < clock_timestamp() RETURNING node_id"""
_STATE_SQL: Final = """
    UPDATE nodes SET state = $2, since_us = now_us() WHERE node_id = $1 AND state = ANY ($3::text[]) RETURNING true"""

_DRIVES_SQL: Final = """
    SELECT drive_id, label, capacity_bytes, state FROM drives WHERE node_id = $1 AND state <> 'gone' ORDER BY label"""
_PUT_DRIVES_SQL: Final = """
    INSERT INTO drives (drive_id, node_id, label, capacity_bytes, state)
    SELECT i.drive_id, $1, i.label, i.capacity_bytes, i.state
    FROM unnest($2::bytea[], $3::text[], $4::bigint[], $5::text[]) AS i (drive_id, label, capacity_bytes, state) ORDER BY i.drive_id
    ON CONFLICT (drive_id) DO UPDATE SET
        node_id = EXCLUDED.node_id, label = EXCLUDED.label, capacity_bytes = EXCLUDED.capacity_bytes, state = EXCLUDED.state,
        empty = NULL, empty_at = NULL"""
_DRIVES_ARE_SQL: Final = """
    UPDATE drives AS d SET state = i.state, free_bytes = i.free_bytes
    FROM unnest($2::bytea[], $3::text[], $4::bigint[]) AS i (drive_id, state, free_bytes)
    WHERE d.drive_id = i.drive_id AND d.node_id = $1 AND d.state IN ('active', 'failed')
        AND (d.state, d.free_bytes) IS DISTINCT FROM (i.state, i.free_bytes)"""
_STORED_SQL: Final = """
    SELECT coalesce(sum(bytes + upload_bytes), 0)::bigint FROM (
        SELECT bytes, upload_bytes FROM usage_folded UNION ALL SELECT bytes, upload_bytes FROM usage_deltas) AS entry"""
_EMPTY_SQL: Final = """
    UPDATE drives SET empty = $2, empty_at = $3 WHERE drive_id = $1 AND (empty, empty_at) IS DISTINCT FROM ($2, $3)"""

# One statement, so one snapshot. As JSON, since the three have nothing in common; msgspec takes bytes as base64. The layouts themselves
# never change, and come extra.
_VIEW_SQL: Final = """
    SELECT json_build_object(
        'nodes', coalesce((SELECT json_agg(json_build_object(
            'node_id', encode(node_id, 'base64'), 'name', name, 'zone', zone, 'address', address, 'state', state,
            'lease_left_s', extract(epoch FROM lease_until - clock_timestamp()), 'since_us', since_us,
            'state_s', (now_us() - since_us) / 1e6) ORDER BY node_id) FROM nodes), '[]'),
        'drives', coalesce((SELECT json_agg(json_build_object(
            'drive_id', encode(drive_id, 'base64'), 'node_id', encode(node_id, 'base64'), 'label', label,
            'capacity_bytes', capacity_bytes, 'state', state,
            'empty', CASE WHEN empty_at = (SELECT max(version) FROM layouts) THEN empty END,
            'free_bytes', free_bytes) ORDER BY drive_id) FROM drives WHERE state <> 'gone'), '[]'),
        'layouts', coalesce((SELECT json_agg(json_build_array(version, created_us) ORDER BY version)
            FROM layouts WHERE state <> 'retired'), '[]'),
        'closed', coalesce((SELECT value ->> 'why' FROM settings WHERE name = 'recovery' AND value -> 'closed' = 'true'), ''))::text"""
_PACKED_SQL: Final = "SELECT version, created_us, packed FROM layouts WHERE version = ANY ($1::bigint[])"
_CURRENT_SQL: Final = "SELECT packed FROM layouts WHERE state = 'current'"

# $1 version, $2 packed, $3 its predecessor's version or 0, $4 whether it may follow while an older one is not retired, $5 slices. Two at
# once wait for each other at the predecessor's row, where the second finds that it is current no more; two first ones meet at the key.
_APPEND_SQL: Final = """
    WITH demoted AS (
        UPDATE layouts SET state = 'old', since_us = now_us()
        WHERE state = 'current' AND version = $3 AND ($4::boolean OR NOT EXISTS (SELECT FROM layouts WHERE state = 'old'))
        RETURNING version
    ),
    made AS (
        INSERT INTO layouts (version, state, packed)
        SELECT $1, 'current', $2 WHERE EXISTS (SELECT FROM demoted) OR ($3 = 0 AND NOT EXISTS (SELECT FROM layouts))
        ON CONFLICT DO NOTHING RETURNING version
    ),
    to_move AS (
        INSERT INTO layout_slices (version, slice) SELECT m.version, n FROM made m, demoted, generate_series(0, $5::int - 1) AS n
    )
    SELECT version FROM made"""
_SLICES_SQL: Final = """
    SELECT version, slice AS number, done_us, shards, bytes, updated_us FROM layout_slices WHERE version = $1 ORDER BY slice"""
_PROGRESS_SQL: Final = """
    UPDATE layout_slices SET shards = shards + $3, bytes = bytes + $4, updated_us = now_us()
    WHERE version = $1 AND slice = $2 AND done_us IS NULL"""
_DONE_SQL: Final = """
    UPDATE layout_slices SET shards = shards + $3, bytes = bytes + $4, updated_us = now_us(), done_us = now_us()
    WHERE version = $1 AND slice = $2 AND done_us IS NULL"""
_RETIRE_SQL: Final = """
    UPDATE layouts SET state = 'retired', since_us = now_us()
    WHERE state = 'old' AND version < $1 AND EXISTS (SELECT FROM layouts WHERE version = $1 AND state = 'current')
        AND (SELECT count(*) > 0 AND count(*) = count(done_us) FROM layout_slices WHERE version = $1) RETURNING true"""
_HISTORY_SQL: Final = """
    SELECT l.version, l.state, l.created_us, l.since_us, s.* FROM layouts l CROSS JOIN LATERAL (
        SELECT count(*) AS slices, count(done_us) AS slices_done, coalesce(sum(shards), 0)::bigint AS shards,
               coalesce(sum(bytes), 0)::bigint AS bytes
        FROM layout_slices WHERE version = l.version
    ) AS s ORDER BY l.version DESC LIMIT $1"""


class DriveRow(msgspec.Struct, frozen=True):
    """A drive as its own node knows it. `path`: its folder there."""

    drive_id: DriveId
    path: str
    capacity_bytes: int
    state: str = "active"  # active, draining, failed, gone


class DriveNow(msgspec.Struct, frozen=True):
    """How a drive is, as its node sees it. `free_bytes`: when it last answered."""

    drive_id: DriveId
    readable: bool
    free_bytes: int


class _Seen(msgspec.Struct):
    nodes: tuple[NodeRow, ...]
    drives: tuple[ClusterDrive, ...]
    layouts: tuple[tuple[int, int], ...]  # version, created_us: of a database that was set back, versions come again
    closed: str


class ClusterTables:
    """One connection, made anew when it is lost. Use as an async context manager.

    Calls wait up to `wait_s` for a database that is away, then raise DatabaseUnavailable; what they were to change may have happened all
    the same, and every call may be repeated. `changed`: called on every change of nodes (not of their leases), drives and layouts, and
    when the connection was made, since changes may have been missed before; must neither take long nor raise. `idle_s`: the connection ends
    when nothing was asked for so long, and the leader's lock with it.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "anvil",
        wait_s: float = DATABASE_WAIT_S,
        changed: Callable[[], None] | None = None,
        idle_s: float = LEADER_SILENT_S,
    ) -> None:
        self._link = Link(url, f"{name} cluster", on_connect=self._connected, idle_s=idle_s)
        self._wait_s = wait_s
        self._changed = changed
        self._decode = msgspec.json.Decoder(_Seen).decode
        self._layouts: dict[tuple[int, int], Layout] = {}

    async def __aenter__(self) -> ClusterTables:
        try:
            async with self._link.lock:
                await self._link.connected(asyncio.get_running_loop().time() + self._wait_s)
        except DatabaseUnavailable as error:
            raise DatabaseUnavailable("the regional database does not answer") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def _connected(self, connection: asyncpg.Connection) -> None:
        if self._changed is not None:
            changed = self._changed
            await connection.add_listener(_CHANNEL, lambda *_: changed())
            changed()

    async def _query(self, sql: str, *args: object) -> Rows:
        return await call(self._link, sql, *args, wait_s=self._wait_s)

    # -- nodes --------------------------------------------------------------------------------------------------------

    async def belongs_to(self, region: str) -> str:
        """The region that this database is of: `region`, if it was of none."""
        await self._query("INSERT INTO region (name) VALUES ($1) ON CONFLICT DO NOTHING", region)
        return str((await self._query("SELECT name FROM region"))[0][0])

    async def close_region(self, why: str) -> None:
        """Serve nothing and unlink nothing until an operator has looked, unless the region has objects. Idempotent."""
        await self._query(CLOSE_SQL, why)

    async def register_node(self, node_id: NodeId, name: str, zone: str = "", address: str = "") -> None:
        """Joining, if it is new or was removed, without a lease at first. One that is down stays so until it holds a lease again: a start
        may take long, and meanwhile nothing of what it holds is to be moved. Idempotent."""
        await self._query(_REGISTER_SQL, node_id, name, zone, address)

    async def renew_node(self, node_id: NodeId, lease_s: float) -> bool:
        """False: the node was removed. Its state is not touched: one that is down stays so until a leader takes it back."""
        return bool(await self._query(_RENEW_SQL, node_id, lease_s))

    async def mark_down(self) -> Sequence[NodeId]:
        """Take the nodes out whose lease ran out. Returns those that this call took. One that never had a lease is left alone, and one that
        drains goes on doing so, though nobody reaches it: else it would be taken back when it returns."""
        return [row[0] for row in await self._query(_MARK_DOWN_SQL)]

    async def set_state(self, node_id: NodeId, state: NodeState, *, when: Sequence[NodeState]) -> bool:
        """True if the node was in one of the states `when`, and is in that state now. One that was removed writes no more."""
        changed = bool(await self._query(_STATE_SQL, node_id, state.value, [each.value for each in when]))
        if changed and state is NodeState.REMOVED:
            await self._query(FENCE_SQL, node_id, None)
        return changed

    async def view(self) -> ClusterView:
        """One snapshot: all nodes, the drives that are not gone for good, the layouts that are not retired. Cheap to repeat: a layout is
        read once."""
        seen = self._decode((await self._query(_VIEW_SQL))[0][0])
        unknown = [version for version, created_us in seen.layouts if (version, created_us) not in self._layouts]
        read = await self._query(_PACKED_SQL, unknown) if unknown else ()
        known = self._layouts | {(row["version"], row["created_us"]): Layout.unpack(row["packed"]) for row in read}
        if any(named not in known for named in seen.layouts):
            raise DatabaseUnavailable  # the database was set back between the two statements
        self._layouts = {named: known[named] for named in seen.layouts}
        made_us = tuple(created_us for _, created_us in seen.layouts)
        return ClusterView(seen.nodes, seen.drives, tuple(self._layouts.values()), made_us, seen.closed)

    async def lead(self) -> bool:
        """Whether this connection has, or just got, the leader's lock. False after the connection was lost and somebody else has it. It is
        held until the connection ends (the server counts repeated takings, which costs it nothing)."""
        return bool((await self._query("SELECT pg_try_advisory_lock($1)", _LEADER_LOCK))[0][0])

    # -- drives -------------------------------------------------------------------------------------------------------

    async def drives(self, node_id: NodeId) -> tuple[DriveRow, ...]:
        """The node's drives that are not gone for good, by path."""
        rows = await self._query(_DRIVES_SQL, node_id)
        return tuple(DriveRow(row["drive_id"], row["label"], row["capacity_bytes"], row["state"]) for row in rows)

    async def put_drives(self, node_id: NodeId, drives: Sequence[DriveRow]) -> None:
        """Insert, or update path, capacity and state. A drive that moved here from another node changes its node."""
        if drives:
            columns = [(drive.drive_id, drive.path, drive.capacity_bytes, drive.state) for drive in drives]
            await self._query(_PUT_DRIVES_SQL, node_id, *map(list, zip(*columns, strict=True)))

    async def drives_are(self, node_id: NodeId, drives: Sequence[DriveNow]) -> None:
        """What a node says of its drives. Those that were given up stay so. Idempotent."""
        columns = [(one.drive_id, "active" if one.readable else "failed", one.free_bytes) for one in drives]
        await self._query(_DRIVES_ARE_SQL, node_id, *map(list, zip(*columns, strict=True)))

    async def set_empty(self, drive_id: DriveId, empty: bool, version: int) -> None:
        """What its node found on a drive that no layout names, and by which newest one it judged: the view tells it while there is no newer
        one. Idempotent."""
        await self._query(_EMPTY_SQL, drive_id, empty, version)

    async def stored_bytes(self) -> int:
        """What clients have stored, before coding. What small objects have in their rows is in it."""
        return int((await self._query(_STORED_SQL))[0][0])

    # -- layouts ------------------------------------------------------------------------------------------------------

    async def current_layout(self) -> Layout | None:
        rows = await self._query(_CURRENT_SQL)
        return Layout.unpack(rows[0]["packed"]) if rows else None

    async def begin_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout | None:
        """Append the layout that `successor` makes of the current one, with the slices to be moved. None: it made none, an old one is not
        retired yet, or somebody else was faster. `successor` runs in a thread: it may take a second."""
        current = await self.current_layout()
        following = await asyncio.to_thread(successor, current)
        return following if following is not None and await self._append(following, current, beside_old=False) else None

    async def advance_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout:
        """The same for a node that is alone, whose every process reaches every drive: also while an older one is not retired. Returns the
        current one where `successor` makes none. Whoever comes second computes from the first one's."""
        for _ in range(BATCH_RETRIES_MAX):
            current = await self.current_layout()
            following = await asyncio.to_thread(successor, current)
            if following is None:
                assert current is not None
                return current
            if await self._append(following, current, beside_old=True):
                return following
        raise DatabaseUnavailable

    async def _append(self, following: Layout, current: Layout | None, *, beside_old: bool) -> bool:
        version = current.version if current is not None else 0
        return bool(await self._query(_APPEND_SQL, following.version, following.pack(), version, beside_old, LAYOUT_SLICES))

    async def slices(self, version: int) -> Sequence[SliceRow]:
        """What that layout's coming has to move, by number; none for the first one."""
        return [SliceRow(**row) for row in await self._query(_SLICES_SQL, version)]

    async def slice_progress(self, version: int, number: int, shards: int, bytes: int) -> None:
        """So many were moved since the last report. Only a figure: it may be counted twice when a connection is lost."""
        await self._query(_PROGRESS_SQL, version, number, shards, bytes)

    async def slice_done(self, version: int, number: int, shards: int, bytes: int) -> None:
        """Verified: every blob of the slice has its shards where that layout wants them. `shards`, `bytes`: moved since the last report.
        Idempotent."""
        await self._query(_DONE_SQL, version, number, shards, bytes)

    async def retire(self, version: int) -> bool:
        """Retire what is older than the current layout `version`, if all its slices are done. True if this call did."""
        return bool(await self._query(_RETIRE_SQL, version))

    async def sessions_behind(self, version: int) -> int:
        """How many live writer sessions go by an older layout. While it is not 0 nothing may be moved (`meta/sessions.py`)."""
        return int((await self._query("SELECT count(*) FROM writer_sessions WHERE layout_version < $1", version))[0][0])

    async def history(self, limit: int = LAYOUT_HISTORY_MAX) -> Sequence[LayoutRow]:
        """The newest first."""
        return [LayoutRow(**{**row, "state": LayoutState(row["state"])}) for row in await self._query(_HISTORY_SQL, limit)]
