"""Whether a node may leave: what the others must be able to hold, and what would be lost with it.

Owns: the judgement, from values alone. Invariant: it errs on the safe side. A blob counts as lost with a node when it could be: every drive
that a layout lists for its partition, spares included, may hold one of its shards, and while a layout is being moved, those of both; so may
a drive that left, as long as it was not found empty. Not here: reading and changing anything (`node/admin_cluster.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from anvil.base.errors import Conflict
from anvil.base.limits import GIB
from anvil.model.cluster import ClusterDrive, ClusterView, Holding, NodeId, NodeRow, NodeState, room, share, to_move, used
from anvil.model.layout import PARTITIONS
from anvil.model.records import DriveId
from anvil.model.scheme import Scheme


def called(node: NodeRow) -> str:
    """A node in messages: its name, and enough of its id."""
    return f"{node.name} ({node.node_id.hex()[:8]})"


def holds(view: ClusterView, node_id: NodeId) -> bool:
    """Whether any layout that is not retired names a drive of that node: else nothing depends on it."""
    return any(drive.node_id == node_id for layout in view.layouts for drive in layout.drives)


def unemptied(view: ClusterView, node: NodeRow) -> list[ClusterDrive]:
    """Its drives that were not found empty since they left the layout, though everything on them was to be moved: of a drained node. (Of
    one that is down it was rebuilt without them.)"""
    if node.state is not NodeState.DRAINING or holds(view, node.node_id):
        return []
    return [drive for drive in view.drives if drive.node_id == node.node_id and drive.state != "gone" and not drive.empty]


def away(view: ClusterView) -> list[NodeRow]:
    """Nodes that hold something and do not give it: down, or given up."""
    lost = (NodeState.DOWN, NodeState.REMOVED)
    holding = [node for node in view.nodes if holds(view, node.node_id) or unemptied(view, node)]
    return [node for node in holding if not node.leased or node.state in lost]


def may_drain(view: ClusterView, node: NodeRow, scheme: Scheme, stored_bytes: int) -> None:
    """Raises Conflict, with the reason, where the nodes that would be left could not hold what is stored by `scheme`: `stored_bytes` before
    coding."""
    if node.state is not NodeState.ACTIVE or not node.leased:
        remedy = {
            NodeState.JOINING: "it holds nothing yet: stop it, then `anvil admin node remove`",
            NodeState.REMOVED: "start it again to have it join",
        }.get(node.state, "what it holds is rebuilt on the others; `anvil admin node remove` gives it up")
        raise Conflict(f"{called(node)} is {NodeState.DOWN if node.state is NodeState.ACTIVE else node.state}: {remedy}")
    others = [other for other in view.nodes if other.node_id != node.node_id and holds(view, other.node_id)]
    staying = [other for other in others if other.state is NodeState.ACTIVE and other.leased]
    wanted = scheme.width if len({drive.node_id for drive in view.layout.drives}) > 1 else 1
    if len(staying) >= wanted:
        _assert_room(view, node, staying, scheme, stored_bytes)
        return
    leaving = ", ".join(f"{called(other)} is {other.state}" for other in others if other not in staying)
    because = f" ({leaving})" if leaving else ""
    raise Conflict(
        f"without {called(node)} {len(staying)} active nodes would be left{because}, and {scheme} needs {max(wanted, 1)}: "
        "add a node first"
    )


def _assert_room(view: ClusterView, node: NodeRow, staying: Sequence[NodeRow], scheme: Scheme, stored_bytes: int) -> None:
    """Raises Conflict where what must be moved is more than there is room for, even if it could be packed without a gap."""
    ids = {other.node_id for other in staying}
    free = room(drive for drive in view.drives if drive.node_id in ids and drive.state == "active")
    part = share(view.layout, lambda drive: drive.node_id == node.node_id)
    held = used(drive for drive in view.drives if drive.node_id == node.node_id and drive.state != "gone")
    moved = to_move(part, scheme, stored_bytes, held)
    if free is not None and moved > free:
        raise Conflict(
            f"{called(node)} holds about {moved / GIB:.1f} GiB, and the drives of the nodes that would be left have room for "
            f"{free / GIB:.1f} GiB: add a node or drives first, or delete something"
        )


def may_remove(view: ClusterView, node: NodeRow, force: bool) -> bool:
    """Whether it must be asked what would be lost (`assert_nothing_lost`); no where nothing depends on the node. Raises Conflict."""
    if not holds(view, node.node_id):
        full = unemptied(view, node)
        if full and not force:
            raise Conflict(
                f"{called(node)} is in no layout any more, but {', '.join(drive.label for drive in full)} was not found empty yet: what is "
                "left there is brought home within minutes while the node runs. With --force it is given up, if nothing is lost by that"
            )
        return bool(full)
    if not any(other.node_id != node.node_id and holds(view, other.node_id) for other in view.nodes):
        raise Conflict(f"{called(node)} is the only node that holds anything")
    if node.leased and node.state is not NodeState.DOWN and not force:
        if node.state is NodeState.DRAINING:
            raise Conflict(
                f"{called(node)} is still draining (`anvil admin layout show`): wait for it, or give it up as it is with --force"
            )
        raise Conflict(
            f"{called(node)} is up: `anvil admin node drain` moves what it holds first. With --force it is given up as if it were dead"
        )
    return True


def assert_nothing_lost(view: ClusterView, node: NodeRow, stored: Sequence[Holding]) -> None:
    """Raises Conflict where blobs would lose more shards than they can, with the node and all others that are away."""
    gone = {other.node_id: other for other in (*away(view), node)}
    lost = would_lose(view, gone, stored)
    if not lost:
        return
    others = ", ".join(
        [
            *(called(other) for other in gone.values() if other.node_id != node.node_id),
            *(f"{drive.label} of {called(at)}" for drive, at in _failed(view) if at.node_id not in gone),
        ]
    )
    raise Conflict(
        f"removing {called(node)} could lose {lost} objects or parts: too many of their shards are on it"
        + (f" and on {others}, which do not answer: bring these back" if others else " or are owed already")
        + ", or wait until everything was rebuilt (`anvil admin layout show`). --force does not change this"
    )


def _failed(view: ClusterView) -> list[tuple[ClusterDrive, NodeRow]]:
    """Drives that their nodes cannot read."""
    found = [(drive, view.node(drive.node_id)) for drive in view.drives if drive.state == "failed"]
    return [(drive, node) for drive, node in found if node is not None]


def would_lose(view: ClusterView, gone: Collection[NodeId], stored: Sequence[Holding]) -> int:
    """How many blobs could no longer be read without these nodes. A drive that its node cannot read, or that is known no more, is gone,
    too."""
    owners = {drive.drive_id: drive.node_id for drive in view.drives if drive.state == "active"}
    dead: list[set[DriveId]] = [set() for _ in range(PARTITIONS)]
    narrowest = min((layout.width for layout in view.layouts), default=1)
    for layout in view.layouts:
        bad = [owners.get(drive.drive_id, b"") in gone or drive.drive_id not in owners for drive in layout.drives]
        if any(bad):
            for number, row in enumerate(layout.rows()):
                dead[number].update(layout.drives[index].drive_id for index in row if bad[index])
    nominal = tuple(view.layout.rows()) if len(view.layouts) == 1 else None
    left = [len(unemptied(view, node)) for node in view.nodes if node.node_id in gone]
    nodes = len({drive.node_id for drive in view.layout.drives})
    lost = 0
    for holding in stored:
        drives = dead[holding.partition]
        missing = [index for index in range(holding.scheme.width) if holding.missing >> index & 1]
        if nominal is not None:
            # What was never there is not lost with the drive where it belongs.
            row = nominal[holding.partition]
            drives = drives - {view.layout.drives[row[index]].drive_id for index in missing if index < len(row)}
        each = -(-holding.scheme.width // narrowest)  # what one drive may hold of a blob that is wider than the row
        strays = sum(
            min(count, -(-holding.scheme.width // nodes)) for count in left
        )  # as many of a blob as a layout puts on a node
        if len(missing) + len(drives) * each + strays > holding.scheme.m:
            lost += holding.blobs
    return lost
