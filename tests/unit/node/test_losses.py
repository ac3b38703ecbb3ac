"""Who may leave a region: the rules, by views and holdings made up."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from anvil.base.errors import Conflict
from anvil.base.limits import DRIVE_FLOOR_BYTES, GIB
from anvil.model.cluster import ClusterDrive, ClusterView, Holding, NodeRow, NodeState
from anvil.model.layout import Layout, LayoutDrive
from anvil.model.scheme import Scheme
from anvil.node.losses import assert_nothing_lost, holds, may_drain, may_remove, would_lose
from tests.support.layouts import computed

FOUR_TWO = Scheme(4, 2)
ACTIVE, DOWN, DRAINING = NodeState.ACTIVE, NodeState.DOWN, NodeState.DRAINING


def node_id(number: int) -> bytes:
    return bytes([number + 1]) * 16


def row(number: int, state: NodeState = ACTIVE) -> NodeRow:
    return NodeRow(node_id(number), f"n{number}", "", f"10.0.0.{number}:7443", state, -60.0 if state is DOWN else 5.0)


def layout_of(numbers: Sequence[int], before: Layout | None = None) -> Layout:
    return computed([LayoutDrive(bytes([100 + n]) * 16, node_id(n), 1 << 40) for n in numbers], 6, 2, before)


def region(states: Sequence[NodeState], *layouts: Layout) -> ClusterView:
    """A node for each state, with one drive each."""
    drives = tuple(ClusterDrive(bytes([100 + n]) * 16, node_id(n), f"d{n}", 1 << 40) for n in range(len(states)))
    nodes = tuple(row(number, state) for number, state in enumerate(states))
    return ClusterView(nodes, drives, layouts or (layout_of(range(len(states))),))


def everywhere(scheme: Scheme = FOUR_TWO, missing: int = 0) -> list[Holding]:
    return [Holding(scheme, partition, missing, 1) for partition in range(4096)]


# -- draining


@pytest.mark.parametrize(("nodes", "fine"), [(8, True), (7, True), (6, False), (5, False)])
def test_a_drain_leaves_as_many_nodes_as_the_scheme_is_wide(nodes: int, fine: bool) -> None:
    view = region([ACTIVE] * nodes)
    if fine:
        may_drain(view, view.nodes[0], FOUR_TWO, 0)
        return
    with pytest.raises(Conflict, match=rf"{nodes - 1} active nodes would be left, and 4\+2 needs 6"):
        may_drain(view, view.nodes[0], FOUR_TWO, 0)


@pytest.mark.parametrize("other", [DRAINING, DOWN])
def test_nodes_that_leave_or_are_away_do_not_count(other: NodeState) -> None:
    seven = region([ACTIVE] * 7 + [other])
    may_drain(seven, seven.nodes[0], FOUR_TWO, 0)
    six = region([ACTIVE] * 6 + [other])
    with pytest.raises(Conflict, match=rf"5 active nodes would be left \(n6 .* is {other}\)"):
        may_drain(six, six.nodes[0], FOUR_TWO, 0)


def test_a_node_that_has_just_joined_counts_once_it_holds_something() -> None:
    view = region([ACTIVE] * 7, layout_of(range(6)))
    with pytest.raises(Conflict, match="5 active nodes would be left"):
        may_drain(view, view.nodes[0], FOUR_TWO, 0)


@pytest.mark.parametrize("state", [DOWN, NodeState.JOINING, NodeState.REMOVED])
def test_only_active_nodes_drain(state: NodeState) -> None:
    view = region([ACTIVE] * 8 + [state])
    with pytest.raises(Conflict, match=f"is {state}"):
        may_drain(view, view.nodes[-1], FOUR_TWO, 0)


def test_the_last_node_does_not_drain() -> None:
    view = region([ACTIVE])
    with pytest.raises(Conflict, match="0 active nodes"):
        may_drain(view, view.nodes[0], Scheme(1, 0), 0)


@pytest.mark.parametrize(("stored_gib", "fine"), [(600, True), (800, False)])
def test_a_drain_needs_room_on_the_others(stored_gib: int, fine: bool) -> None:
    """Eight nodes with an eighth of everything each; on the seven others 20 GiB are free, and some of that is never used."""
    view = region([ACTIVE] * 8)
    drives = tuple(msgspec.structs.replace(drive, free_bytes=20 * GIB + DRIVE_FLOOR_BYTES) for drive in view.drives)
    full = msgspec.structs.replace(view, drives=drives)
    may_drain(full, view.nodes[0], FOUR_TWO, 0)
    if fine:
        may_drain(full, view.nodes[0], FOUR_TWO, stored_gib * GIB)
        return
    with pytest.raises(Conflict, match=r"holds about 150\.0 GiB, .* have room for 140\.0 GiB"):
        may_drain(full, view.nodes[0], FOUR_TWO, stored_gib * GIB)
    unknown = msgspec.structs.replace(full, drives=(*drives[:7], view.drives[7]))
    may_drain(unknown, view.nodes[0], FOUR_TWO, stored_gib * GIB)


# -- removing


def test_a_node_that_is_up_is_drained_first_or_forced() -> None:
    view = region([ACTIVE] * 7)
    with pytest.raises(Conflict, match="drain"):
        may_remove(view, view.nodes[0], False)
    assert may_remove(view, view.nodes[0], True), "but not without asking what would be lost"
    draining = region([ACTIVE] * 7 + [DRAINING])
    with pytest.raises(Conflict, match="still draining"):
        may_remove(draining, draining.nodes[-1], False)


def test_what_no_layout_names_goes_without_questions() -> None:
    view = region([ACTIVE] * 6 + [DRAINING], layout_of(range(6)))
    assert not holds(view, node_id(6))
    with pytest.raises(Conflict, match="d6 was not found empty yet"):
        may_remove(view, view.nodes[6], False)
    assert may_remove(view, view.nodes[6], True), "but not without asking what would be lost"
    found = {
        empty: msgspec.structs.replace(view, drives=(*view.drives[:6], msgspec.structs.replace(view.drives[6], empty=empty)))
        for empty in (True, False)
    }
    assert not may_remove(found[True], view.nodes[6], False)
    with pytest.raises(Conflict):
        may_remove(found[False], view.nodes[6], False)
    unread = msgspec.structs.replace(view, drives=(*view.drives[:6], msgspec.structs.replace(view.drives[6], state="failed")))
    with pytest.raises(Conflict):
        may_remove(unread, view.nodes[6], False)
    for state in (DOWN, NodeState.JOINING):
        other = region([ACTIVE] * 6 + [state], layout_of(range(6)))
        assert not may_remove(other, other.nodes[6], False), "rebuilt without it, or never in use"
    moving = region([ACTIVE] * 6 + [DRAINING], layout_of(range(7)), layout_of(range(6)))
    with pytest.raises(Conflict):
        may_remove(moving, moving.nodes[6], False)


def test_what_was_left_on_a_drive_that_drained_counts() -> None:
    """It may be one shard of any blob."""
    view = region([ACTIVE] * 6 + [DRAINING], layout_of(range(6)))
    assert would_lose(view, {node_id(6)}, everywhere()) == 0
    assert would_lose(view, {node_id(6)}, everywhere(missing=0b11)) == 4096
    assert would_lose(view, {node_id(0), node_id(1), node_id(6)}, everywhere()) == 4096
    two_down = region([ACTIVE] * 4 + [DOWN, DOWN, DRAINING], layout_of(range(6)))
    with pytest.raises(Conflict, match=r"n6 .* could lose 4096 .* n4 .*, n5"):
        assert_nothing_lost(two_down, two_down.nodes[6], everywhere())
    drives = (*view.drives[:6], msgspec.structs.replace(view.drives[6], empty=True))
    assert would_lose(msgspec.structs.replace(view, drives=drives), {node_id(6)}, everywhere(missing=0b11)) == 0
    many = msgspec.structs.replace(
        view, drives=(*view.drives, *(msgspec.structs.replace(view.drives[6], label=f"{n}") for n in "ab"))
    )
    assert would_lose(many, {node_id(6)}, everywhere()) == 0, "on however many drives of it"
    away = msgspec.structs.replace(view, nodes=(*view.nodes[:6], msgspec.structs.replace(view.nodes[6], lease_left_s=-1.0)))
    with pytest.raises(Conflict, match=r"n0 .* could lose \d+ .* on n6 "):
        assert_nothing_lost(away, away.nodes[0], everywhere(missing=0b1))


def test_the_last_one_stays() -> None:
    view = region([DOWN])
    with pytest.raises(Conflict, match="only node"):
        may_remove(view, view.nodes[0], True)


@pytest.mark.parametrize(("down", "lost"), [(1, 0), (2, 0), (3, 4096)])
def test_as_many_as_there_is_parity_may_be_away(down: int, lost: int) -> None:
    """Six nodes hold a shard of everything each: with the third, every blob of 4+2 is lost."""
    view = region([ACTIVE] * (6 - down) + [DOWN] * down)
    assert would_lose(view, {node_id(n) for n in range(6 - down, 6)}, everywhere()) == lost
    if not lost:
        assert_nothing_lost(view, view.nodes[-1], everywhere())
        return
    with pytest.raises(Conflict, match=r"lose 4096 .* n3 .*, n4") as error:
        assert_nothing_lost(view, view.nodes[-1], everywhere())
    assert "--force does not change this" in error.value.message


def test_copies_count_by_their_own_parity() -> None:
    view = region([ACTIVE] * 4 + [DOWN] * 2)
    gone = {node_id(4), node_id(5)}
    assert would_lose(view, gone, everywhere(Scheme(1, 2))) == 0, "three copies"
    # Two copies of six places: a spare may have one, so every place of the partition counts.
    assert would_lose(view, gone, everywhere(Scheme(1, 1))) == 4096
    assert would_lose(view, {node_id(4)}, everywhere(Scheme(1, 0))) == 4096, "from the days of a lone node"


def test_debts_count_but_not_twice() -> None:
    view = region([ACTIVE] * 5 + [DOWN])
    gone = {node_id(5)}
    # The one shard that is owed is some other node's, wherever the partition's row has it: one owed and one lost are two.
    assert would_lose(view, gone, everywhere(missing=0b1)) == 0
    layout = view.layout
    rows = list(layout.rows())

    def nominal(partition: int, of: int) -> int:
        return next(i for i, place in enumerate(rows[partition]) if layout.drives[place].node_id == node_id(of))

    # Owed to the dead node itself, and one more: not three.
    same = [Holding(FOUR_TWO, p, 1 << nominal(p, 5) | 1 << nominal(p, 0), 1) for p in range(4096)]
    assert would_lose(view, gone, same) == 0
    other = [Holding(FOUR_TWO, p, 1 << nominal(p, 1) | 1 << nominal(p, 0), 1) for p in range(4096)]
    assert would_lose(view, gone, other) == 4096


def test_amid_a_move_both_layouts_count() -> None:
    """What is moved may still be where the old layout has it, or already where the new one does."""
    old = layout_of(range(6))
    view = region([ACTIVE] * 6 + [DOWN] * 3, old, layout_of(range(9), old))
    assert would_lose(view, {node_id(6), node_id(7), node_id(8)}, everywhere()) > 0
    alone = region([ACTIVE] * 6 + [DOWN] * 3, old)
    assert would_lose(alone, {node_id(6), node_id(7), node_id(8)}, everywhere()) == 0


def test_of_a_blob_wider_than_its_row_a_drive_may_hold_two() -> None:
    view = region([ACTIVE] * 5)
    assert view.layout.width == 5
    assert would_lose(view, {node_id(0)}, everywhere()) == 0
    assert would_lose(view, {node_id(0), node_id(1)}, everywhere()) == 4096


def test_a_drive_that_is_gone_or_failed_is_lost_too() -> None:
    view = region([ACTIVE] * 6)
    assert would_lose(view, {node_id(0), node_id(1)}, everywhere()) == 0
    known = tuple(drive for drive in view.drives if drive.node_id != node_id(5))
    without = ClusterView(view.nodes, known, view.layouts)
    assert would_lose(without, {node_id(0), node_id(1)}, everywhere()) == 4096
    failed = ClusterView(view.nodes, (*known, msgspec.structs.replace(view.drives[5], state="failed")), view.layouts)
    assert would_lose(failed, {node_id(0), node_id(1)}, everywhere()) == 4096
    down = msgspec.structs.replace(failed, nodes=(row(0), row(1, DOWN), *failed.nodes[2:]))
    with pytest.raises(Conflict, match=r"on n1 .*, d5 of n5 .*, which do not answer"):
        assert_nothing_lost(down, down.nodes[0], everywhere())
