"""What one process makes of a view of its region: which drives it uses, and which it takes to be away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from anvil.base.config import StorageConfig
from anvil.model.cluster import ClusterDrive, ClusterView, NodeId, NodeRow, NodeState
from anvil.model.layout import LayoutDrive, compute
from anvil.node.region import QuorumWatch, Region
from tests.contract.memory_drive import MemoryDrive

NODES = 4


class Peers:
    """Reaches the nodes of `up`."""

    def __init__(self) -> None:
        self.up: set[NodeId] = set()
        self.drives: dict[bytes, MemoryDrive] = {}

    def update(self, nodes: Sequence[NodeRow]) -> None:
        pass

    def reachable(self, node_id: NodeId) -> bool:
        return node_id in self.up

    def drive(self, drive: ClusterDrive) -> MemoryDrive:
        found = self.drives.setdefault(drive.drive_id, MemoryDrive(drive.drive_id, drive.label))
        found.local, found.away = False, True
        return found


def name(number: int) -> NodeId:
    return bytes([number]) * 16


def view(**states: NodeState) -> ClusterView:
    """Node 0 is this one. A node that is not named is active; leases run but for those that are down."""
    nodes = [(name(n), states.get(f"n{n}", NodeState.ACTIVE)) for n in range(NODES)]
    rows = [NodeRow(one, "n", "", "h:1", state, -1.0 if state is NodeState.DOWN else 5.0) for one, state in nodes]
    drives = [ClusterDrive(bytes([n, 1]) * 8, name(n), f"n{n}", 1000) for n in range(NODES)]
    layout = compute([LayoutDrive(one.drive_id, one.node_id, 1000) for one in drives], NODES, 0)
    return ClusterView(tuple(rows), tuple(drives), (layout,))


def region(seen: ClusterView) -> tuple[Region, Peers]:
    own, peers = seen.drives[0], Peers()
    return Region(StorageConfig(), name(0), seen, {own.drive_id: MemoryDrive(own.drive_id, "own")}, peers), peers  # type: ignore[dict-item,arg-type]


def test_a_node_that_was_removed_uses_its_own_drives_no_more_than_the_others_do() -> None:
    async def main() -> None:
        seen = view()
        made, _ = region(seen)
        others = {drive.drive_id for drive in seen.drives[1:]}
        assert made.placement.drives.keys() == others | {seen.drives[0].drive_id}
        made.follow(view(n0=NodeState.REMOVED))
        assert made.placement.drives.keys() == others
        made.follow(view(n0=NodeState.JOINING))
        assert made.placement.drives.keys() == others | {seen.drives[0].drive_id}

    asyncio.run(main())


def test_a_disk_that_was_carried_to_another_node_is_looked_for_there() -> None:
    async def main() -> None:
        seen = view()
        made, peers = region(seen)
        carried = msgspec.structs.replace(seen.drives[0], node_id=name(2))
        made.follow(msgspec.structs.replace(seen, drives=(carried, *seen.drives[1:])))
        assert made.placement.drives[carried.drive_id] is peers.drives[carried.drive_id]

    asyncio.run(main())


def test_a_layout_made_anew_under_a_known_version_is_another_one() -> None:
    async def main() -> None:
        seen = msgspec.structs.replace(view(), made_us=(1,))
        made, _ = region(seen)
        again = compute([msgspec.structs.replace(one, capacity_bytes=7) for one in seen.layout.drives], NODES, 0)
        other = msgspec.structs.replace(seen, layouts=(again,), made_us=(2,))
        assert other.layout.version == seen.layout.version and other.shape != seen.shape, "the database was set back"
        made.follow(other)
        assert made.placement.layout is again

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "reached", "away"),
    [
        (NodeState.ACTIVE, False, False),
        (NodeState.DRAINING, False, False),
        (NodeState.ACTIVE, True, True),  # it answers, and says itself that the drive is away
        (NodeState.DOWN, False, True),
    ],
)
def test_a_drive_is_away_where_its_node_is_down_or_says_so(state: NodeState, reached: bool, away: bool) -> None:
    async def main() -> None:
        seen = view(n1=state)
        made, peers = region(seen)
        if reached:
            peers.up.add(name(1))
        assert made.away(made.placement.drives[seen.drives[1].drive_id]) is away
        assert made.away(made.placement.drives[seen.drives[0].drive_id]), "of its own it knows"

    asyncio.run(main())


def test_a_node_is_cut_off_where_others_are_up_and_none_of_them_answers() -> None:
    async def main() -> None:
        made, peers = region(view(n3=NodeState.DOWN))
        assert made.cut_off_from == 2
        peers.up.add(name(3))
        assert made.cut_off_from == 2, "who is down is no company"
        peers.up.add(name(1))
        assert made.cut_off_from == 0
        alone, _ = region(view(n1=NodeState.DOWN, n2=NodeState.DOWN, n3=NodeState.DOWN))
        assert alone.cut_off_from == 0

    asyncio.run(main())


def test_a_drive_of_its_own_that_a_probe_or_worker_finds_bad_counts_for_nothing() -> None:
    """Though this process has met nothing of it."""

    async def main() -> None:
        made, peers = region(view())
        for drive in peers.drives.values():
            drive.away = False
        watch = QuorumWatch(made)
        assert watch(1, frozenset()).write_quorum and watch(1, frozenset()).without_this
        for drive in list(peers.drives.values())[: NODES - made.scheme.quorum]:
            drive.away = True
        standing = watch(1, frozenset())
        assert (standing.write_quorum, standing.without_this) == (True, False), "it hangs on this one's drive"
        assert not watch(0, frozenset({"own"})).write_quorum
        assert watch(1, frozenset({"n1"})).write_quorum, "a label is one of this node's"

    asyncio.run(main())


def test_a_node_serves_alone_where_it_has_enough_of_everything() -> None:
    async def main() -> None:
        made, _ = region(view())  # one drive of four: 2+2
        assert not made.serves_alone()
        made.local = {one.drive_id: MemoryDrive(one.drive_id, "own") for one in made.view.drives}  # type: ignore[misc]
        assert made.serves_alone()

    asyncio.run(main())
