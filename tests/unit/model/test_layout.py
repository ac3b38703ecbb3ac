"""Layouts: what must hold in every row, how evenly places are shared, and how little moves when nodes come and go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anvil.base.limits import LAYOUT_SLICES
from anvil.model.layout import PARTITIONS, Layout, LayoutDrive, compute, moved, partition, slice_partitions
from anvil.model.quotas import Rows, shares
from tests.support.examples import examples
from tests.support.layouts import FEWER, ROWS, changed, drive, following, fresh, nodes, rows, tree


@st.composite
def histories(draw: st.DrawFn) -> list[list[LayoutDrive]]:
    """What a region consisted of, one after the other: nodes with unlike drives in zones, that come, go and change."""
    region: dict[int, list[LayoutDrive]] = {}
    steps = []
    for step in range(draw(st.integers(1, 4))):
        if region and draw(st.booleans()):
            del region[draw(st.sampled_from(sorted(region)))]
        for node in range(10 * step, 10 * step + draw(st.integers(0 if region else 1, 5))):
            zone = draw(st.sampled_from(["", "a", "b", "c"]))
            sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
            region[node] = [drive(node, number, zone, size << 40) for number, size in enumerate(sizes)]
        steps.append([d for node in sorted(region) for d in region[node]])
    return steps


@examples(20)
@given(histories(), st.integers(1, 8), st.integers(0, 3))
@example([nodes(3, 4, 3), nodes(5, 4, 3)], 6, 2)
def test_rules_of_every_row(history: list[list[LayoutDrive]], shards: int, spares: int) -> None:
    """Whatever was before: nobody twice; as few of a node, then of a zone, as nodes and zones allow."""
    before = None
    for drives in history:
        table = following(drives, shards, spares, before)
        before = (drives, table)
        primaries = min(shards, len(drives))
        width = min(shards + spares, len(drives))
        per_node = Counter(d.node_id for d in drives)
        node_limit = least(list(per_node.values()), primaries)
        zone_of = {d.node_id: d.zone for d in drives}
        zone_sizes: Counter[str] = Counter()
        for node, number in per_node.items():
            zone_sizes[zone_of[node]] += min(number, node_limit)
        zone_limit = least(list(zone_sizes.values()), primaries)
        if len(per_node) >= shards:
            assert node_limit == 1
        for row in table:
            assert len(row) == len(set(row)) == width
            assert max(Counter(drives[d].node_id for d in row[:primaries]).values()) <= node_limit
            assert max(Counter(drives[d].zone for d in row[:primaries]).values()) <= zone_limit
            if len(per_node) >= width and node_limit == 1:
                assert len({drives[d].node_id for d in row}) == width, "a spare is on a node of its own"
        assert table == following(drives, shards, spares, None) or len(history) > 1


def least(sizes: list[int], wanted: int) -> int:
    """The smallest limit per group, not below an equal part, with which so many find room."""
    limit = math.ceil(wanted / len(sizes))
    while sum(min(limit, size) for size in sizes) < wanted:
        limit += 1
    return limit


@examples(12)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8))
def test_equal_drives_have_equal_parts(count: int, per_node: int, zones: int, shards: int) -> None:
    """First, and after one joined and one left: each drive within 2 % of its part or one place, where zones are equal, too."""
    zones = zones if count % zones == 0 else 1
    drives = nodes(count, per_node, zones)
    table = following(drives, shards, 2, None)
    assert_even(drives, table, shards, 0.0)
    if zones == 1:
        more = nodes(count + 1, per_node)
        grown = following(more, shards, 2, (drives, table))
        assert_even(more, grown, shards, 0.02)
        fewer = more[per_node:]
        assert_even(fewer, following(fewer, shards, 2, (more, grown)), shards, 0.02)


def assert_even(drives: Sequence[LayoutDrive], table: Rows, shards: int, tolerance: float) -> None:
    primaries = min(shards, len(drives))
    load = Counter(d for row in table for d in row[:primaries])
    part = primaries * ROWS / len(drives)
    for number in range(len(drives)):
        assert abs(load[number] - part) <= 1 + tolerance * part, (number, load[number], part)


@examples(100)
@given(st.data())
def test_shares_keep_to_ceilings_and_proportions(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=4), min_size=1, max_size=6))
    region = [LayoutDrive(bytes([n, d]) * 8, bytes([n]), size) for n, each in enumerate(sizes) for d, size in enumerate(each)]
    parts = tree(region)
    ceilings = [data.draw(st.integers(1, 4)) * 100 for _ in sizes]
    room = sum(min(ceiling, 100 * len(each)) for ceiling, each in zip(ceilings, sizes, strict=True))
    slots = data.draw(st.integers(0, room))
    share = shares(parts, slots, [100] * len(region), ceilings, [room])
    assert sum(share) == slots
    assert all(0 <= each <= 100 for each in share)
    by_node = [sum(share[d] for d in drives) for drives in parts.drives_of]
    assert all(number <= ceiling for number, ceiling in zip(by_node, ceilings, strict=True))
    free = [
        (share[d], parts.capacities[d])
        for n, drives in enumerate(parts.drives_of)
        if by_node[n] < ceilings[n]
        for d in drives
        if share[d] < 100
    ]
    for one, size in free:
        for other, other_size in free:
            assert abs(one * other_size - other * size) <= 3 * max(size, other_size), "who is under no ceiling is in proportion"


@pytest.mark.parametrize(("count", "per_node", "zones"), [(7, 2, 1), (9, 4, 3), (16, 1, 1), (30, 2, 5)])
def test_a_node_that_joins_takes_only_its_part(count: int, per_node: int, zones: int) -> None:
    before = fresh(count, per_node, zones, 6)
    after = compute(nodes(count + 1, per_node, zones), 6, 2, before)
    assert after.version == before.version + 1
    changes = changed(before, after)
    part = 6 * PARTITIONS / (count + 1)
    assert len(changes) <= 1.02 * part
    if zones == 1:
        assert len(changes) >= part - 1
        assert all(new.node_id == bytes([count]) * 16 for _, _, _, new in changes), "nothing moves between the others"
    assert moved(before, after) == {p for p, _, _, _ in changes}


@pytest.mark.parametrize(
    ("count", "per_node", "zones", "most"), [(7, 2, 1, 1.06), (9, 4, 3, 1.06), (16, 1, 1, 1.02), (30, 2, 5, 1.02)]
)
def test_a_node_that_leaves_moves_only_what_it_had(count: int, per_node: int, zones: int, most: float) -> None:
    """And a little for the columns' sake where the rules say who takes its places: of six nodes, or of two in a zone, all are in a row."""
    before = fresh(count, per_node, zones, 6)
    after = compute(nodes(count, per_node, zones)[per_node:], 6, 2, before)
    changes = changed(before, after)
    had = [change for change in changes if change[2].node_id == bytes(16)]
    assert len(had) == sum(d.node_id == bytes(16) for row in rows(before) for d in row[:6])
    assert len(changes) <= most * len(had)


def test_a_drive_more_takes_from_all_others() -> None:
    before = fresh(10, 2, 1, 6)
    more = [*nodes(10, 2), drive(0, 9, "z0")]
    changes = changed(before, compute(more, 6, 2, before))
    assert len(changes) <= 1.02 * 6 * PARTITIONS / 21
    assert len({old.drive_id for _, _, old, _ in changes}) == 20


def test_without_a_change_nothing_changes() -> None:
    before = fresh(8, 2, 2, 6)
    again = compute(nodes(8, 2, 2), 6, 2, before)
    assert (again.places, again.version) == (before.places, 2)
    assert moved(before, again) == frozenset()
    assert compute(list(reversed(nodes(8, 2, 2))), 6, 2) == before, "the order of the drives says nothing"


def test_growth_from_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step keeps what the rules let it keep: the primaries that stay, stay at their places."""
    monkeypatch.setattr("anvil.model.layout.PARTITIONS", FEWER)
    layout = compute(nodes(1, 6), 6, 2)
    for count in range(2, 8):
        after = compute(nodes(count, 6), 6, 2, layout)
        limit = math.ceil(6 / count)
        assert all(max(Counter(d.node_id for d in row[:6]).values()) <= limit for row in rows(after))
        old_limit = math.ceil(6 / (count - 1))
        kept = 6 * FEWER - len(changed(layout, after))
        if limit == old_limit:
            assert kept >= 0.99 * 6 * FEWER * (count - 1) / count
        layout = after


def test_a_lost_drive_is_rebuilt_from_all_others() -> None:
    layout = fresh(24, 1, 1, 6)
    with_first = [row for row in rows(layout) if any(d.node_id == bytes(16) for d in row[:6])]
    partners = Counter(d.node_id for row in with_first for d in row[:6] if d.node_id != bytes(16))
    assert len(partners) == 23
    assert max(partners.values()) <= 2 * min(partners.values())


def test_the_first_places_are_on_different_nodes() -> None:
    """Copies of small objects use only these."""
    few = fresh(3, 2, 1, 6)
    assert all(len({d.node_id for d in row[:3]}) == 3 for row in rows(few)), "three copies are on three nodes"


def test_more_shards_than_before() -> None:
    """What were spares become primaries, and no shard of what is stored moves."""
    before = fresh(6, 1, 1, 4)
    after = compute(nodes(6), 6, 2, before)
    assert (before.primaries, after.primaries, after.width) == (4, 6, 6)
    assert [[d.drive_id for d in row[:4]] for row in rows(before)] == [[d.drive_id for d in row[:4]] for row in rows(after)]


def test_a_layout_of_before_primaries_were_recorded() -> None:
    layout = fresh(4, 1, 1, 4)
    old = Layout(layout.version, layout.width, layout.drives, layout.places)
    assert Layout.unpack(old.pack()).primaries == 0
    assert compute(nodes(4), 4, 2, old).places == layout.places
    assert moved(old, layout) == frozenset()


def test_slices_are_ranges_of_blob_ids() -> None:
    together = [p for number in range(LAYOUT_SLICES) for p in slice_partitions(number)]
    assert together == list(range(PARTITIONS))
    assert {partition(bytes([n, 0]) + bytes(14)) in slice_partitions(n * LAYOUT_SLICES // 256) for n in range(256)} == {True}


def test_no_drives() -> None:
    with pytest.raises(ValueError, match="at least one drive"):
        compute([], 6, 2)
