"""When the layout changes, and into what: the leader's part of a region.

Owns: which drives belong in the layout, and the one transition at a time: begun, moved slice by slice, ended. Invariants: a step only asks
the database for what its rows allow (two leaders for a moment do no harm); movers are sent only when no writer uses an older layout and
every process knows of the new one; the old layout is retired only when every slice was verified. A node that is down leaves the layout only
when it has been so for the repair delay and the others can hold the scheme so that another node's loss is borne, and have room for what
is rebuilt. Not here: how a layout is
computed (`model/layout.py`), moving (`tasks/rebalance.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from anvil.base.config import StorageConfig
from anvil.base.limits import HOLD_SETTLE_S, LAYOUT_SETTLE_S, SPARE_DRIVES
from anvil.model.cluster import ClusterView, NodeId, NodeRow, NodeState, SliceRow, room, share, to_move, used
from anvil.model.layout import Layout, LayoutDrive, compute
from anvil.model.scheme import Scheme, default_scheme

log = logging.getLogger(__name__)


class Tables(Protocol):
    """What of `meta.cluster.ClusterTables` is used here."""

    async def view(self) -> ClusterView: ...
    async def begin_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout | None: ...
    async def advance_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout: ...
    async def sessions_behind(self, version: int) -> int: ...
    async def slices(self, version: int) -> Sequence[SliceRow]: ...
    async def stored_bytes(self) -> int: ...
    async def retire(self, version: int) -> bool: ...
    async def set_state(self, node_id: NodeId, state: NodeState, *, when: Sequence[NodeState]) -> bool: ...


async def _nobody(version: int, slices: Sequence[int]) -> None:
    return


class LayoutKeeper:
    """`move`: have slices moved by somebody; asked again and again until they are done. `now_s`: any monotonic clock."""

    def __init__(
        self,
        storage: StorageConfig,
        repair_delay_s: float,
        move: Callable[[int, Sequence[int]], Awaitable[None]] = _nobody,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._repair_delay_s = repair_delay_s
        self._move = move
        self._now_s = now_s
        self._wanted: tuple[LayoutDrive, ...] = ()
        self._wanted_since = 0.0
        self._fitted = True  # what nodes that are down held, on the others
        self._changing = 0  # the layout that is on its way
        self._changing_since = 0.0

    async def step(self, tables: Tables, view: ClusterView) -> bool:
        """Look once, and do what is due. True where a change of layout came to its end. Raises DatabaseUnavailable."""
        retired = False
        if len(view.layouts) > 1:
            retired = await self._carry_on(tables, view)
        else:
            await self._consider(tables, view)
        held = {drive.node_id for layout in view.layouts for drive in layout.drives}
        for node in view.nodes:
            if node.leased and node.state in (NodeState.JOINING, NodeState.DOWN):
                state = NodeState.ACTIVE if node.node_id in held else NodeState.JOINING
                if state is not node.state:
                    await tables.set_state(node.node_id, state, when=(node.state,))
        return retired

    async def _carry_on(self, tables: Tables, view: ClusterView) -> bool:
        version = view.layout.version
        if version != self._changing:
            self._changing, self._changing_since = version, self._now_s()
        left = [one.number for one in await tables.slices(version) if one.done_us is None]
        if not left:
            # Every process must have seen that there are two layouts before there is one again: until then it may take a shard on its way
            # for a superfluous copy.
            if self._now_s() - self._changing_since > HOLD_SETTLE_S and await tables.retire(version):
                log.info("the layout is in effect everywhere", extra={"version": version})
                return True
            return False
        # Nor may a survey that has not seen it yet take what is moved for a second copy.
        if self._now_s() - self._changing_since > HOLD_SETTLE_S and await tables.sessions_behind(version) == 0:
            await self._move(version, left)
        return False

    async def _consider(self, tables: Tables, view: ClusterView) -> None:
        down = any(node.state is NodeState.DOWN for node in view.nodes)
        wanted = self.wanted(view, await tables.stored_bytes() if down else 0)
        if wanted != self._wanted:
            self._wanted, self._wanted_since = wanted, self._now_s()
        if self._now_s() - self._wanted_since >= LAYOUT_SETTLE_S:
            await self._change(tables, view, wanted)

    async def at_start(self, tables: Tables, node_id: NodeId) -> None:
        """The layout of a node that is alone, or the first one of a region, before anything serves: nobody goes by an older one, so it does
        not matter whether the last change is through. Raises DatabaseUnavailable."""
        view = await tables.view()
        drives = [
            LayoutDrive(drive.drive_id, node_id, drive.capacity_bytes, node.zone)
            for drive in view.drives
            if drive.node_id == node_id and drive.state != "gone" and (node := view.node(node_id)) is not None
        ]
        wanted = tuple(sorted(drives, key=lambda drive: drive.drive_id))
        if wanted and self.differs(view.layouts, wanted):
            width = self._width(wanted)
            layout = await tables.advance_layout(lambda current: compute(wanted, width, SPARE_DRIVES, current))
            log.info("the layout changes", extra={"version": layout.version, "drives": len(wanted)})

    async def _change(self, tables: Tables, view: ClusterView, wanted: tuple[LayoutDrive, ...]) -> None:
        if not wanted or not self.differs(view.layouts, wanted):
            return
        width = self._width(wanted)
        begun = await tables.begin_layout(lambda current: compute(wanted, width, SPARE_DRIVES, current))
        if begun is not None:
            log.info("the layout changes", extra={"version": begun.version, "drives": len(wanted)})

    def wanted(self, view: ClusterView, stored_bytes: int = 0) -> tuple[LayoutDrive, ...]:
        """The drives that should hold data, by id. `stored_bytes`: before coding."""
        nodes = {node.node_id: node for node in view.nodes}
        held = {drive.node_id for drive in view.layout.drives} if view.layouts else set[bytes]()
        # One that is down is not brought in: it stays where it is, or has left.
        down = {node.node_id: node for node in view.nodes if node.state is NodeState.DOWN and node.node_id in held}
        lost = {node_id for node_id, node in down.items() if self._given_up(node)}
        staying = {node.node_id for node in view.nodes if self._stays(node)} | (down.keys() - lost)
        drives = [drive for drive in view.drives if drive.state != "gone"]

        def of(chosen: set[bytes]) -> tuple[LayoutDrive, ...]:
            rows = [
                LayoutDrive(drive.drive_id, drive.node_id, drive.capacity_bytes, nodes[drive.node_id].zone)
                for drive in drives
                if drive.node_id in chosen
            ]
            return tuple(sorted(rows, key=lambda drive: drive.drive_id))

        without = of(staying)
        if not lost or (self._bearable(without, view) and self._fits(lost, without, view, stored_bytes)):
            return without
        return of(staying | lost)

    def _stays(self, node: NodeRow) -> bool:
        if node.state is NodeState.JOINING:
            return node.leased
        return node.state is NodeState.ACTIVE

    def _given_up(self, node: NodeRow) -> bool:
        """It must have been seen down for so long: while the database is away nobody renews a lease."""
        return node.lease_left_s is not None and min(-node.lease_left_s, node.state_s) > self._repair_delay_s

    def _bearable(self, drives: Sequence[LayoutDrive], view: ClusterView) -> bool:
        """Whether what was written under the present layout finds room on these drives, and survives one more node's loss there."""
        if not view.layouts:
            return True
        present = self._scheme(view.layout.drives)
        nodes = len({drive.node_id for drive in drives})
        return len(drives) >= present.width and -(-present.width // nodes) <= max(present.m, 1)

    def _fits(self, lost: set[NodeId], drives: Sequence[LayoutDrive], view: ClusterView, stored_bytes: int) -> bool:
        """Whether what these nodes held, and what is rebuilt of it, has room on these drives, as far as they have said."""
        if not view.layouts:
            return True
        ids = {drive.drive_id for drive in drives}
        free = room(drive for drive in view.drives if drive.drive_id in ids and drive.state == "active")
        part = share(view.layout, lambda drive: drive.node_id in lost)
        held = used(drive for drive in view.drives if drive.node_id in lost and drive.state != "gone")
        fits = free is None or to_move(part, self._scheme(view.layout.drives), stored_bytes, held) <= free
        if not fits and self._fitted:
            log.error("what nodes that are down held is not rebuilt: the others have no room for it", extra={"free_bytes": free})
        self._fitted = fits
        return fits

    def differs(self, layouts: Sequence[Layout], wanted: Sequence[LayoutDrive]) -> bool:
        """Whether the present layout is not one of these drives."""
        if not layouts:
            return True
        shards, present = self._width(wanted), layouts[-1]
        width, primaries = min(shards + SPARE_DRIVES, len(wanted)), min(shards, len(wanted))
        return (
            set(present.drives) != set(wanted) or present.width != width or present.primaries not in (0, primaries)
        )  # 0: made before that was written down

    def _width(self, drives: Sequence[LayoutDrive]) -> int:
        return self._scheme(drives).width

    def _scheme(self, drives: Sequence[LayoutDrive]) -> Scheme:
        if self._storage.scheme:
            return Scheme.parse(self._storage.scheme)
        nodes = len({drive.node_id for drive in drives})
        return default_scheme(nodes if nodes > 1 else len(drives))
