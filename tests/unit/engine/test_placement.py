"""Where shards are looked for, and which layouts writes still go by."""

from __future__ import annotations

import pytest

from anvil.engine.context import LayoutsInUse, Placement
from anvil.engine.ports import Drive
from anvil.model.layout import Layout, LayoutDrive
from tests.contract.memory_drive import MemoryDrive
from tests.support.layouts import computed

BLOB = bytes(16)


def drives(count: int, local: int = 1) -> list[MemoryDrive]:
    made = [MemoryDrive(bytes([number + 1]) * 16, f"d{number}") for number in range(count)]
    for number, drive in enumerate(made):
        drive.local = number < local
    return made


def layout(members: list[MemoryDrive], previous: Layout | None = None) -> Layout:
    return computed([LayoutDrive(one.drive_id, one.drive_id, 1 << 40) for one in members], 2, 1, previous)


def labels(found: list[Drive] | list[Drive | None]) -> list[str]:
    return [drive.label if drive is not None else "-" for drive in found]


def test_a_lone_layout_looks_at_its_own_list_and_then_at_the_others() -> None:
    all_ = drives(6, local=6)
    placement = Placement([layout(all_)], {one.drive_id: one for one in all_})
    order = placement.order(BLOB)
    assert len(order) == 3
    assert labels(placement.homes(BLOB, 1)) == [order[1].label]  # type: ignore[union-attr]
    assert labels(placement.near(BLOB, 1)) == labels([order[0], order[2]])
    assert set(labels(placement.far(BLOB, 1))) == {one.label for one in all_} - set(labels(order))
    assert not placement.leaving
    assert Placement([layout(all_[:5])], {one.drive_id: one for one in all_}).leaving
    assert placement.elsewhere(BLOB, 1) == [*placement.near(BLOB, 1), *placement.far(BLOB, 1)]
    assert not placement.remote


def test_older_layouts_come_first_and_local_drives_before_remote_ones() -> None:
    all_ = drives(9, local=0)
    old = layout(all_[:3])
    new = layout(all_[3:6], old)
    placement = Placement([old, new], {one.drive_id: one for one in all_})
    was = [placement.drives[old.drives[at].drive_id] for at in old.order(BLOB)]
    order = placement.order(BLOB)
    assert not set(was) & set(order)
    assert placement.homes(BLOB, 0) == [order[0], was[0]]
    assert placement.near(BLOB, 0) == [was[0], order[1], order[2]]
    for drive in (order[2], all_[8]):
        assert isinstance(drive, MemoryDrive)
        drive.local = True
    assert placement.near(BLOB, 0) == [was[0], order[2], order[1]]
    assert placement.far(BLOB, 0)[0] is all_[8]
    assert len(placement.elsewhere(BLOB, 0)) == 8, "each once, its own place not at all"


def test_what_cannot_be_reached_keeps_its_place_in_the_order() -> None:
    all_ = drives(3)
    known = layout(all_)
    placement = Placement([known], {one.drive_id: one for one in all_[:2]})
    assert labels(placement.order(BLOB)).count("-") == 1
    at = labels(placement.order(BLOB)).index("-")
    assert placement.homes(BLOB, at) == [None]
    assert all(drive is not None for drive in placement.elsewhere(BLOB, 0))
    assert placement.homes(BLOB, 3 + at) == [None], "a blob may be wider than the layout: its row begins again"
    assert placement.belongs(BLOB, 7) == [*placement.order(BLOB), *placement.order(BLOB), placement.order(BLOB)[0]]
    with pytest.raises(ValueError):
        Placement([], {})


def test_a_placement_follows_in_place() -> None:
    all_ = drives(6)
    old = layout(all_[:3])
    placement = Placement([old], {one.drive_id: one for one in all_[:3]})
    new = layout(all_, old)
    placement.follow([old, new], {one.drive_id: one for one in all_})
    assert placement.layout is new
    assert placement.layouts == (old, new)
    assert placement.remote
    placement.follow([new], {one.drive_id: one for one in all_})
    assert placement.homes(BLOB, 0) == [placement.order(BLOB)[0]]


def test_the_oldest_layout_in_use_is_that_of_the_oldest_write() -> None:
    use = LayoutsInUse()
    assert use.oldest(5) == 5
    with use.writing(3):
        with use.writing(5), use.writing(3):
            assert use.oldest(5) == 3
        assert use.oldest(5) == 3
        use.begin(4)
    assert use.oldest(5) == 4
    use.end(4)
    assert use.oldest(6) == 6
    with pytest.raises(RuntimeError), use.writing(1):
        raise RuntimeError
    assert use.oldest(6) == 6
