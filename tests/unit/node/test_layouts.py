"""When the layout changes: the leader's rules, on tables in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from anvil.base.config import StorageConfig
from anvil.base.limits import DRIVE_FLOOR_BYTES, GIB, HOLD_FRESH_S, LAYOUT_SETTLE_S
from anvil.model.cluster import ClusterDrive, ClusterView, NodeId, NodeRow, NodeState, SliceRow
from anvil.model.layout import Layout
from anvil.node.layouts import LayoutKeeper

DELAY_S = 600.0


class Region:
    """A region in memory, as `LayoutKeeper` sees it."""

    def __init__(self, nodes: int, drives: int = 1) -> None:
        self.nodes = {name(n): NodeRow(name(n), f"n{n}", "", f"h:{n}", NodeState.JOINING, 5.0) for n in range(nodes)}
        self.drives = [ClusterDrive(bytes([n, d]) * 8, name(n), f"/d{d}", 1000) for n in range(nodes) for d in range(drives)]
        self.layouts: list[Layout] = []
        self.left: list[SliceRow] = []
        self.behind = 0
        self.stored = 0
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.now_s = 0.0
        self.keeper = LayoutKeeper(StorageConfig(), DELAY_S, self._move, lambda: self.now_s)

    async def _move(self, version: int, slices: Sequence[int]) -> None:
        self.asked.append((version, tuple(slices)))

    async def view(self) -> ClusterView:
        return ClusterView(tuple(self.nodes.values()), tuple(self.drives), tuple(self.layouts))

    async def begin_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout | None:
        assert len(self.layouts) < 2
        following = successor(self.layouts[-1] if self.layouts else None)
        if following is not None:
            self.layouts.append(following)
            self.left = [SliceRow(2, 0), SliceRow(2, 1)] if len(self.layouts) > 1 else []
        return following

    async def advance_layout(self, successor: Callable[[Layout | None], Layout | None]) -> Layout:
        raise AssertionError("only at the start of a node that is alone")

    async def sessions_behind(self, version: int) -> int:
        return self.behind

    async def slices(self, version: int) -> Sequence[SliceRow]:
        return self.left

    async def stored_bytes(self) -> int:
        return self.stored

    async def retire(self, version: int) -> bool:
        self.layouts = self.layouts[-1:]
        return True

    async def set_state(self, node_id: NodeId, state: NodeState, *, when: Sequence[NodeState]) -> bool:
        self.change(node_id, state=state)
        return True

    def change(self, node_id: NodeId, **fields: object) -> None:
        self.nodes[node_id] = msgspec.structs.replace(self.nodes[node_id], **fields)

    def look(self, times: int = 1, every_s: float = LAYOUT_SETTLE_S + 1) -> None:
        for _ in range(times):
            asyncio.run(self._look())
            self.now_s += every_s

    async def _look(self) -> None:
        await self.keeper.step(self, await self.view())

    def done(self, *numbers: int) -> None:
        for number in numbers:
            self.left[number] = msgspec.structs.replace(self.left[number], done_us=1)

    def settled(self) -> Layout:
        """Carry out whatever transition is due."""
        for _ in range(4):
            self.look(2)
            self.done(*range(len(self.left)))
        self.look()
        assert len(self.layouts) == 1
        return self.layouts[0]

    def holders(self) -> set[NodeId]:
        return {drive.node_id for drive in self.layouts[-1].drives}


def name(number: int) -> NodeId:
    return bytes([number]) * 16


def test_nodes_that_come_together_are_one_change() -> None:
    region = Region(3)
    region.look(every_s=0.5)
    assert not region.layouts, "others may be just behind"
    region.look(2)
    assert [layout.version for layout in region.layouts] == [1]
    assert region.holders() == set(region.nodes)
    region.look()
    assert {node.state for node in region.nodes.values()} == {NodeState.ACTIVE}
    assert region.settled().version == 1, "nothing changes without need"


def test_a_layout_is_retired_when_all_is_moved_and_movers_wait_for_writers() -> None:
    region = Region(2)
    region.settled()
    joined = Region(3)
    region.nodes, region.drives = joined.nodes, joined.drives
    region.behind = 1
    region.look(3)
    assert [layout.version for layout in region.layouts] == [1, 2]
    assert not region.asked, "a writer still uses the older layout"
    region.behind = 0
    region.look(2)
    assert region.asked[-1] == (2, (0, 1))
    region.done(0)
    region.look()
    assert region.asked[-1] == (2, (1,))
    assert len(region.layouts) == 2
    region.done(1)
    region.look(3)
    assert [layout.version for layout in region.layouts] == [2]


def test_movers_wait_until_every_survey_knows_of_the_change() -> None:
    region = Region(2)
    region.settled()
    joined = Region(3)
    region.nodes, region.drives = joined.nodes, joined.drives
    region.look(3)
    assert len(region.layouts) == 2
    region.asked.clear()
    region.keeper = LayoutKeeper(StorageConfig(), DELAY_S, region._move, lambda: region.now_s)  # another leader
    region.look(2, every_s=HOLD_FRESH_S)
    assert not region.asked, "who saw one layout a moment ago removes second copies"
    region.look(2)
    assert region.asked


def test_one_transition_at_a_time() -> None:
    region = Region(2)
    region.settled()
    joined = Region(4)
    region.nodes, region.drives = joined.nodes, joined.drives
    region.look(3)
    versions = [layout.version for layout in region.layouts]
    region.change(name(3), state=NodeState.DRAINING)
    region.look(5)
    assert [layout.version for layout in region.layouts] == versions


def test_a_node_that_drains_leaves_the_layout() -> None:
    region = Region(7)
    region.settled()
    region.change(name(2), state=NodeState.DRAINING)
    region.settled()
    assert region.holders() == set(region.nodes) - {name(2)}
    assert region.nodes[name(2)].state is NodeState.DRAINING, "until an operator takes it away"


def test_a_node_that_is_down_leaves_only_after_the_repair_delay() -> None:
    region = Region(7)
    region.settled()
    region.change(name(0), state=NodeState.DOWN, lease_left_s=-DELAY_S + 1)
    region.settled()
    assert name(0) in region.holders()
    region.change(name(0), lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    region.settled()
    assert name(0) not in region.holders()
    region.change(name(0), lease_left_s=5.0)
    region.settled()
    assert name(0) in region.holders(), "back, it is one of them again"
    assert region.nodes[name(0)].state is NodeState.ACTIVE


def test_time_without_the_database_is_no_time_that_a_node_was_down() -> None:
    """No node could renew its lease, and the leader is back first."""
    region = Region(7)
    region.settled()
    region.change(name(0), state=NodeState.DOWN, lease_left_s=-DELAY_S - 60, state_s=2.0)
    region.settled()
    assert name(0) in region.holders()


def test_a_node_that_is_down_stays_where_the_others_could_not_hold_the_scheme() -> None:
    region = Region(6)  # 4+2 on one drive each: five drives have no place for six shards
    region.settled()
    region.change(name(5), state=NodeState.DOWN, lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    region.settled()
    assert name(5) in region.holders()
    wide = Region(6, drives=2)  # two of a blob's six shards on one node: another loss is still borne
    wide.settled()
    wide.change(name(5), state=NodeState.DOWN, lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    wide.settled()
    assert name(5) not in wide.holders()


def test_a_node_that_is_down_stays_where_the_others_have_no_room_for_it() -> None:
    region = Region(8)
    region.settled()
    region.drives = [
        msgspec.structs.replace(one, capacity_bytes=400 * GIB, free_bytes=20 * GIB + DRIVE_FLOOR_BYTES) for one in region.drives
    ]
    region.stored = 800 * GIB  # an eighth of it, coded, is 150 GiB, and seven times 20 are free
    region.change(name(5), state=NodeState.DOWN, lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    region.settled()
    assert name(5) in region.holders()
    region.stored = 700 * GIB
    region.settled()
    assert name(5) not in region.holders()


def test_a_node_that_left_because_it_was_down_is_not_brought_back_by_another_loss() -> None:
    region = Region(7)
    region.settled()
    region.change(name(0), state=NodeState.DOWN, lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    assert name(0) not in {drive.node_id for drive in region.settled().drives}
    region.change(name(1), state=NodeState.DOWN, lease_left_s=-DELAY_S - 6, state_s=DELAY_S + 1)
    region.settled()
    assert region.holders() == set(region.nodes) - {name(0)}, (
        "the others cannot do without the second, and the first holds nothing"
    )


def test_a_node_that_is_down_before_it_held_anything_gets_nothing() -> None:
    region = Region(3)
    region.settled()
    joined = Region(4)
    region.nodes, region.drives = joined.nodes, joined.drives
    region.change(name(3), state=NodeState.DOWN, lease_left_s=-5.0)
    region.settled()
    assert name(3) not in region.holders()


def test_a_drive_that_was_given_up_leaves_and_a_larger_one_is_used() -> None:
    region = Region(3, drives=2)
    region.settled()
    gone = region.drives[0]
    region.drives[0] = msgspec.structs.replace(gone, state="gone")
    assert gone.drive_id not in {drive.drive_id for drive in region.settled().drives}
    region.drives[1] = msgspec.structs.replace(region.drives[1], capacity_bytes=5000)
    assert 5000 in {drive.capacity_bytes for drive in region.settled().drives}
