"""This node's place in its region: the lease, the view, and the leader's turn.

Owns: one connection to the regional database, which renews the node's lease, says how its drives are, and reads who else is there; what
was read goes to this process's `Region` and to the workers. Invariants: the view is read at least every VIEW_EVERY_S while the database
answers, and at once after a notification; the lease is renewed on the same connection, so a node that cannot read the view loses its
lease, too; what only one node may do is done by the one that holds the advisory lock. Not here: what the leader decides
(`node/layouts.py`), tables (`meta/cluster.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from anvil.base import instruments
from anvil.base.errors import DatabaseUnavailable, Unavailable
from anvil.base.limits import DRIVES_TELL_S, HOLD_FRESH_S, NODE_LEASE_S, NODE_RENEW_S, VIEW_EVERY_S
from anvil.meta.cluster import ClusterTables, DriveNow
from anvil.model.cluster import ClusterView, NodeId, NodeState
from anvil.model.records import DriveId
from anvil.node.region import Region
from anvil.tasks.rebalance import Moved

log = logging.getLogger("anvil.membership")

Follow = Callable[[ClusterView], None]
EVENTS = ("join", "leave", "fail", "return")


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine is suspended, and others change the layout


class Lease(msgspec.Struct):
    """Until when this node is known to hold its lease, by this process's monotonic clock."""

    good_until: float = 0.0

    @property
    def held(self) -> bool:
        return time.monotonic() < self.good_until


class Membership:
    """`tables`: given whom to tell of changes. `lead`: what the leader does at each look. `followers`: told of each view whose shape is
    new."""

    def __init__(
        self,
        tables: Callable[[Callable[[], None]], ClusterTables],
        node_id: NodeId,
        region: Region,
        lead: Callable[[ClusterTables, ClusterView], Awaitable[None]],
        uptime_s: Callable[[], float] = _uptime_s,
    ) -> None:
        self._uptime_s = uptime_s
        self._tables = tables
        self._node_id = node_id
        self._region = region
        self._lead = lead
        self._renewed = 0.0
        self._told: tuple[bool, ...] = ()  # which drives can be read
        self._told_at = 0.0
        self._seen = -HOLD_FRESH_S
        self._peers: Mapping[NodeId, NodeState] = {}
        self._open: ClusterTables | None = None
        self._turn: asyncio.Task[None] | None = None
        for event in EVENTS:
            instruments.MEMBERSHIP_EVENTS.labels(event)  # at 0: the first one is an increase, too
        self.lease = Lease()
        self.leading = False
        self.followers: list[Follow] = []

    @property
    def view(self) -> ClusterView:
        return self._region.view

    async def run(self) -> None:
        """For ever. What fails is tried again."""
        changed = asyncio.Event()
        async with self._tables(changed.set) as tables:
            self._open = tables
            try:
                while True:
                    changed.clear()
                    await self._look(tables)
                    try:
                        async with asyncio.timeout(VIEW_EVERY_S):
                            await changed.wait()
                    except TimeoutError:
                        pass
            finally:
                if self._turn is not None:
                    self._turn.cancel()
                    await asyncio.wait([self._turn])

    async def _look(self, tables: ClusterTables) -> None:
        try:
            await self.look(tables)
        except Unavailable as error:
            self.leading = False
            log.warning("nodes and layouts are not known to be as they were: %s", error)

    async def refresh(self) -> ClusterView:
        """Read the view now, for somebody who is about to declare a loss. Raises DatabaseUnavailable."""
        if self._open is None:
            raise DatabaseUnavailable
        asked = self._uptime_s()
        self._follow(await self._open.view(), asked)
        return self.view

    @property
    def fresh(self) -> bool:
        """Whether the layouts were known to be the newest ones a moment ago (HOLD_FRESH_S)."""
        return self._uptime_s() - self._seen < HOLD_FRESH_S

    async def found_empty(self, drive_id: DriveId, empty: bool, version: int) -> None:
        """Write down what was found on a drive that no layout up to that one names. Raises DatabaseUnavailable."""
        if self._open is None:
            raise DatabaseUnavailable
        await self._open.set_empty(drive_id, empty, version)

    async def moved(self, version: int, number: int, moved: Moved) -> None:
        """Write down how far a slice of a layout is. Raises DatabaseUnavailable."""
        if self._open is None:
            raise DatabaseUnavailable
        report = self._open.slice_progress if moved.waiting else self._open.slice_done
        await report(version, number, moved.shards + moved.rebuilt, moved.bytes)

    async def look(self, tables: ClusterTables) -> None:
        """Renew, read, tell, lead. Raises DatabaseUnavailable."""
        now = time.monotonic()
        if now - self._renewed >= NODE_RENEW_S:
            if await tables.renew_node(self._node_id, NODE_LEASE_S):
                self._renewed, self.lease.good_until = now, now + NODE_LEASE_S
            else:
                log.error("this node was removed from its region: nothing is written to it any more; restart it to join again")
        await self._tell_drives(tables, now)
        asked = self._uptime_s()
        view = await tables.view()
        self._follow(view, asked)
        self._count(view)
        self.leading = await tables.lead()
        if self.leading and (self._turn is None or self._turn.done()):
            self._turn = asyncio.get_running_loop().create_task(self._take_turn(tables, view))

    async def _tell_drives(self, tables: ClusterTables, now: float) -> None:
        """A drive that dies while the node runs counts as lost from now on, for who asks what may be lost next."""
        drives = tuple(self._region.local.values())
        told = tuple(drive.readable for drive in drives)
        if drives and (told != self._told or now - self._told_at >= DRIVES_TELL_S):
            await tables.drives_are(self._node_id, [DriveNow(one.drive_id, one.readable, one.free_bytes) for one in drives])
            self._told, self._told_at = told, now

    async def _take_turn(self, tables: ClusterTables, view: ClusterView) -> None:
        """Beside the looks: it may wait for the other database, or for a drive, and this node's lease must not wait with it."""
        try:
            await self._lead(tables, view)
        except Unavailable as error:
            log.warning("what this node leads waits: %s", error)
        except Exception:
            log.exception("this node's turn as leader failed")

    def _follow(self, view: ClusterView, asked: float) -> None:
        if not view.layouts:
            return  # of a database that was emptied: nothing can be made of it
        self._seen = asked
        if view.shape == self._region.view.shape:
            self._region.view = view  # leases
            return
        self._changed(view)
        self._region.follow(view)
        for follow in self.followers:
            follow(view)

    def _changed(self, view: ClusterView) -> None:
        """Tell log and metrics who came and went."""
        states = {node.node_id: node.state for node in view.nodes}
        names = {node.node_id: node.name for node in view.nodes}
        for node_id, state in states.items():
            before = self._peers.get(node_id)
            if self._peers and before != state and (event := _event(before, state)):
                instruments.MEMBERSHIP_EVENTS.labels(event).inc()
                log.info("a node's state changed", extra={"node": names[node_id], "state": str(state), "was": str(before or "")})
        self._peers = states

    def _count(self, view: ClusterView) -> None:
        others = [node for node in view.nodes if node.node_id != self._node_id]
        for state in NodeState:
            instruments.CLUSTER_PEERS.labels(str(state)).set(sum(node.state is state for node in others))
        peers = self._region.peers
        instruments.PEER_LAST_SEEN.clear()  # who was removed is not told of for ever
        if peers is not None:
            for node_id, seen in peers.last_seen.items():
                instruments.PEER_LAST_SEEN.labels(node_id.hex()).set(seen)


def _event(before: NodeState | None, now: NodeState) -> str:
    """What a change of state counts as: join, leave, fail, return; nothing where it is none of them."""
    if now is NodeState.JOINING:
        return "join" if before in (None, NodeState.REMOVED) else "return"
    if now is NodeState.DOWN:
        return "fail"
    if now in (NodeState.DRAINING, NodeState.REMOVED):
        return "leave" if before is not NodeState.DRAINING else ""
    return "return" if before is NodeState.DOWN else ""
