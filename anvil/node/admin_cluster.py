"""`anvil admin node | layout | task` over the databases: that part of the AdminOps of `cli/admin_ops.py`.

Owns: how a node is named, what is shown of nodes, layouts and tasks. Invariant: an operator's decisions about nodes are taken one at a
time, each by a view that was read after the decision before it (`meta/holdings.py`), and stand in the audit, refused ones too. Not here:
when a node may leave (`losses.py`), what follows from a changed state (`layouts.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from anvil.base.config import Config
from anvil.base.errors import Conflict, InvalidArgument, Unavailable, UnknownName
from anvil.cli.admin_ops import DriveShare, LayoutInfo, LayoutMove, LayoutPast, NodeChange, NodeInfo
from anvil.meta.cluster import ClusterTables
from anvil.meta.holdings import Holdings
from anvil.model.cluster import ClusterView, NodeRow, NodeState
from anvil.model.layout import Layout
from anvil.model.records import DriveId
from anvil.node.losses import assert_nothing_lost, called, holds, may_drain, may_remove, unemptied
from anvil.node.region import domains, scheme_of

Audit = Callable[[str, str, str], Awaitable[None]]
"""action, resource, result"""
LEAVABLE = (NodeState.JOINING, NodeState.ACTIVE, NodeState.DRAINING, NodeState.DOWN)


class ClusterAdmin:
    """The region's nodes and layouts. `now_s`: unix time."""

    def __init__(self, config: Config, regional_url: str, audit: Audit, now_s: Callable[[], float] = time.time) -> None:
        self._storage = config.storage
        self._url = regional_url
        self._audit = audit
        self._now_s = now_s

    # -- nodes

    async def node_list(self) -> Sequence[NodeInfo]:
        async with self._tables() as tables:
            view = await tables.view()
        shares = _shares(view.layout) if view.layouts else {}
        return [_node_info(view, node, shares) for node in view.nodes]

    async def node_drain(self, name: str) -> NodeChange:
        async with Holdings(self._url), self._tables() as tables:
            view = await _serving(tables)
            node = find(view, name)
            if node.state is NodeState.DRAINING:
                return _change(node, NodeState.DRAINING, False)
            try:
                may_drain(view, node, scheme_of(self._storage, view.layout), await tables.stored_bytes())
            except Conflict as error:
                await self._audit("node:drain", called(node), f"refused: {error.message}")
                raise
            return await self._set(tables, node, NodeState.DRAINING, (NodeState.ACTIVE,), "node:drain")

    async def node_remove(self, name: str, force: bool) -> NodeChange:
        async with Holdings(self._url) as holdings, self._tables() as tables:
            node = find(await tables.view(), name)
            if node.state is NodeState.REMOVED:
                return _change(node, NodeState.REMOVED, False)
            try:
                if may_remove(await tables.view(), node, force):
                    stored = await holdings.stored()
                    # Counting may have taken minutes: judged by the nodes as they are now.
                    assert_nothing_lost(await tables.view(), node, stored)
            except Conflict as error:
                await self._audit("node:remove", called(node), f"refused: {error.message}")
                raise
            return await self._set(tables, node, NodeState.REMOVED, LEAVABLE, "node:remove")

    async def _set(
        self, tables: ClusterTables, node: NodeRow, state: NodeState, when: Sequence[NodeState], action: str
    ) -> NodeChange:
        if not await tables.set_state(node.node_id, state, when=when):
            raise Conflict(f"the state of {called(node)} has just changed: look at `anvil admin node list`, then decide again")
        await self._audit(action, called(node), "ok")
        return _change(node, state, True)

    def _tables(self) -> ClusterTables:
        return ClusterTables(self._url, name="anvil admin")

    # -- layouts

    async def layout_show(self) -> LayoutInfo:
        async with self._tables() as tables:
            view = await _serving(tables)
            move = await self._move(tables, view) if len(view.layouts) > 1 else None
        layout, shares = view.layout, _shares(view.layout)
        names = {node.node_id: node.name for node in view.nodes}
        labels = {drive.drive_id: drive.label for drive in view.drives}
        drives = tuple(
            DriveShare(
                drive.node_id.hex(),
                names.get(drive.node_id, ""),
                drive.drive_id.hex(),
                labels.get(drive.drive_id, "gone"),
                drive.capacity_bytes,
                shares[drive.drive_id],
            )
            for drive in sorted(layout.drives, key=lambda drive: (drive.node_id, labels.get(drive.drive_id, "")))
        )
        kind = "node" if len({drive.node_id for drive in layout.drives}) > 1 else "drive"
        return LayoutInfo(layout.version, str(scheme_of(self._storage, layout)), kind, domains(layout), drives, move)

    async def _move(self, tables: ClusterTables, view: ClusterView) -> LayoutMove:
        [current] = await tables.history(1)
        done = current.slices_done
        spent_s = self._now_s() - current.created_us / 1e6
        return LayoutMove(
            current.slices,
            done,
            current.shards,
            current.bytes,
            await tables.sessions_behind(view.layout.version),
            spent_s / done * (current.slices - done) if done else None,
        )

    async def layout_history(self, limit: int) -> Sequence[LayoutPast]:
        async with self._tables() as tables:
            rows = await tables.history(limit)
        return [
            LayoutPast(
                row.version, str(row.state), row.created_us, row.since_us, row.slices, row.slices_done, row.shards, row.bytes
            )
            for row in rows
        ]


def find(view: ClusterView, name: str) -> NodeRow:
    """The node that is meant. Raises UnknownName, InvalidArgument."""
    exact = [node for node in view.nodes if node.node_id.hex() == name.lower()]
    found = exact or [node for node in view.nodes if node.name == name or node.node_id.hex().startswith(name.lower())]
    if not found or not name:
        raise UnknownName(f"there is no node {name!r}: `anvil admin node list` shows them")
    if len(found) > 1:
        meant = ", ".join(called(node) for node in found)
        raise InvalidArgument(f"{name!r} may mean {meant}: name more of its id")
    return found[0]


async def _serving(tables: ClusterTables) -> ClusterView:
    view = await tables.view()
    if not view.layouts:
        raise Unavailable("the region has no layout yet: start its first node with --init-cluster")
    return view


def _change(node: NodeRow, state: NodeState, changed: bool) -> NodeChange:
    return NodeChange(node.node_id.hex(), node.name, str(state), changed)


def _node_info(view: ClusterView, node: NodeRow, shares: dict[DriveId, float]) -> NodeInfo:
    drives = [drive for drive in view.drives if drive.node_id == node.node_id]
    share = sum(shares.get(drive.drive_id, 0.0) for drive in drives)
    return NodeInfo(
        node.node_id.hex(),
        node.name,
        node.zone,
        node.address,
        str(node.state),
        node.leased,
        node.since_us,
        len(drives),
        sum(drive.capacity_bytes for drive in drives),
        share,
        holds(view, node.node_id) or bool(unemptied(view, node)),
    )


def _shares(layout: Layout) -> dict[DriveId, float]:
    """Of each drive, the part of all places that are its own."""
    counts = Counter(index for row in layout.rows() for index in row)
    total = sum(counts.values())
    return {drive.drive_id: counts[index] / total for index, drive in enumerate(layout.drives)}
