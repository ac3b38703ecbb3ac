"""Who is in the region: nodes with their states, drives, and the layouts that readers must know. Frozen values.

Owns: the names of the states and what follows from a view alone. Invariant: `layouts` holds every layout that is not retired, oldest first;
writers use the last one. Not here: how a view comes about (`meta/cluster.py`), who changes it (`node/membership.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from anvil.base.limits import DRIVE_FLOOR_BYTES
from anvil.model.layout import Layout, LayoutDrive
from anvil.model.records import DriveId
from anvil.model.scheme import Scheme

NodeId = bytes  # 16 random bytes, kept in the node's data directory


class NodeState(StrEnum):
    """JOINING: registered, holds no partition yet. DOWN: its lease ran out. REMOVED: given up, by an operator or after a drain."""

    JOINING = "joining"
    ACTIVE = "active"
    DRAINING = "draining"
    DOWN = "down"
    REMOVED = "removed"


class NodeRow(msgspec.Struct, frozen=True):
    """A node as the region knows it. `address`: host:port of its cluster listener, empty for a node that is alone. `lease_left_s`: by the
    database's clock when the view was taken, negative once it ran out; None where there never was one."""

    node_id: NodeId
    name: str
    zone: str
    address: str
    state: NodeState
    lease_left_s: float | None = None
    since_us: int = 0  # of the state
    state_s: float = 0.0  # for how long it has been in that state, by the same clock

    @property
    def leased(self) -> bool:
        return self.lease_left_s is not None and self.lease_left_s > 0


class ClusterDrive(msgspec.Struct, frozen=True):
    """A drive as the region knows it. `label`: its folder on its node. `empty`: of one that no layout names, whether anything that is owned
    is still on it; None where that is not known. `free_bytes`: as its node last said, None where it has not yet."""

    drive_id: DriveId
    node_id: NodeId
    label: str
    capacity_bytes: int
    state: str = "active"  # active, failed (its node cannot read it), draining, gone
    empty: bool | None = None
    free_bytes: int | None = None


def room(drives: Iterable[ClusterDrive]) -> int | None:
    """How many bytes more these take. None where one has not said yet."""
    free = [drive.free_bytes for drive in drives]
    return sum(max(0, one - DRIVE_FLOOR_BYTES) for one in free if one is not None) if None not in free else None


def share(layout: Layout, leaving: Callable[[LayoutDrive], bool]) -> float:
    """The part of all places for shards that these drives of the layout have."""
    places = Counter(index for row in layout.rows() for index in row[: layout.primaries or None])
    ours = sum(places[index] for index, drive in enumerate(layout.drives) if leaving(drive))
    return ours / sum(places.values())


def used(drives: Iterable[ClusterDrive]) -> int | None:
    """How many bytes these hold. None where one has not said yet."""
    taken = [None if one.free_bytes is None else one.capacity_bytes - one.free_bytes for one in drives]
    return sum(max(0, one) for one in taken if one is not None) if None not in taken else None


def to_move(part: float, scheme: Scheme, stored_bytes: int, held_bytes: int | None) -> int:
    """About how many bytes have to be moved off drives with that part of all places, where `stored_bytes` are stored, all by `scheme`: not
    more than the drives hold (`used`), since what is small is in the database alone."""
    moved = int(part * stored_bytes * scheme.width / scheme.k)
    return moved if held_bytes is None else min(moved, held_bytes)


class ClusterView(msgspec.Struct, frozen=True):
    """One snapshot of the region. Equal views say the same; leases and free bytes make them differ, so compare `shape`. `made_us`: when
    each layout was: a database that was set back gives a version twice. `closed`: why the region serves no object, "" where it does."""

    nodes: tuple[NodeRow, ...]
    drives: tuple[ClusterDrive, ...]
    layouts: tuple[Layout, ...]
    made_us: tuple[int, ...] = ()
    closed: str = ""

    @property
    def layout(self) -> Layout:
        """The one that writers use."""
        return self.layouts[-1]

    def node(self, node_id: NodeId) -> NodeRow | None:
        return next((node for node in self.nodes if node.node_id == node_id), None)

    @property
    def shape(self) -> tuple[object, ...]:
        """What a process has to follow: addresses, states, drives, which layouts there are, whether it serves."""
        nodes = tuple((node.node_id, node.zone, node.address, node.state) for node in self.nodes)
        drives = tuple((one.drive_id, one.node_id, one.label, one.capacity_bytes, one.state, one.empty) for one in self.drives)
        return nodes, drives, tuple(layout.version for layout in self.layouts), self.made_us, self.closed


class SliceRow(msgspec.Struct, frozen=True):
    """What a change of layout has to move of one slice (LAYOUT_SLICES of them), and how far it is. `shards`, `bytes`: moved so far."""

    version: int
    number: int
    done_us: int | None = None
    shards: int = 0
    bytes: int = 0
    updated_us: int = 0


class LayoutState(StrEnum):
    """CURRENT: writers use it. OLD: readers probe it, movers take from it. RETIRED: nothing is where only it says."""

    CURRENT = "current"
    OLD = "old"
    RETIRED = "retired"


class LayoutRow(msgspec.Struct, frozen=True):
    """A layout as history shows it: what it took to get there. The first one moved nothing and has no slices."""

    version: int
    state: LayoutState
    created_us: int
    since_us: int  # of the state
    slices: int
    slices_done: int
    shards: int
    bytes: int


class Holding(msgspec.Struct, frozen=True):
    """So many blobs of one partition, of one scheme. Bit i of `missing`: none of them has a shard of that index."""

    scheme: Scheme
    partition: int
    missing: int
    blobs: int
