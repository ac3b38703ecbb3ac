"""Columns of a layout (place i of all rows): every drive has its part of each, whatever was before, and for few moves.

Shard i of a blob is at place i; small objects have no shards but the first, and reads need no others.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anvil.model.columns import even, level
from anvil.model.layout import PARTITIONS, Layout, LayoutDrive, compute
from anvil.model.quotas import EMPTY, Rows, by_column, shares
from anvil.model.scheme import default_scheme
from anvil.model.spread import spread
from tests.support.examples import examples
from tests.support.layouts import FEWER, ROWS, changed, drive, fresh, nodes, rows, tree

UP_AND_DOWN = [1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1]


def width(count: int, drives: int = 1) -> int:
    return default_scheme(count if count > 1 else drives).width


def off(layout: Layout) -> float:
    """How far the worst cell is from an equal part of its column, beyond one place: as a part of that part."""
    per_column = columns(layout.rows(), layout.primaries)
    part = per_column[0].total() / len(layout.drives)
    worst = max(abs(column[number] - part) for column in per_column for number in range(len(layout.drives)))
    return max(0.0, worst - 1) / part


def assert_few_moves(before: Layout, after: Layout, most: float) -> None:
    """Of all places together: `most` times what had to move for the numbers in each column to change as they did."""
    new, old = (columns(layout.rows(), layout.primaries) for layout in (after, before))
    place = {drive.drive_id: number for number, drive in enumerate(after.drives)}
    needed = 0
    for now, was in zip(new, old, strict=False):
        had = Counter({place.get(before.drives[number].drive_id, -1): count for number, count in was.items()})
        needed += (now - had).total()
    moves = len(changed(before, after))
    assert needed <= moves <= most * needed, (moves, needed)


@pytest.mark.parametrize("drives", [1, 2])
def test_growth_and_decline_with_the_default_schemes(drives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node after the other, up to eight and back, as regions begin: more nodes, wider schemes."""
    rows_each = PARTITIONS if drives == 1 else FEWER
    monkeypatch.setattr("anvil.model.layout.PARTITIONS", rows_each)
    layout: Layout | None = None
    for count in UP_AND_DOWN:
        after = compute(nodes(count, drives), width(count, drives), 2, layout)
        assert off(after) <= 0.01, count
        if layout is not None:
            assert_few_moves(layout, after, 1.15)
            few, many = sorted((len(layout.drives), len(after.drives)))
            moves = Counter(at for _, at, _, _ in changed(layout, after))
            assert max(moves.values()) <= 1.25 * (many - few) / many * rows_each, (count, moves)
        assert compute(nodes(count, drives), width(count, drives), 2, after).places == after.places, "what is even stays"
        layout = after


@pytest.mark.parametrize("count", [5, 6, 7, 8, 12, 24])
def test_a_region_that_grows_from_one_node_at_once(count: int) -> None:
    """All of the first column is on one drive then."""
    first = fresh(1, 1, 1, 1)
    after = compute(nodes(count), width(count), 2, first)
    assert off(after) <= 0.01
    assert_few_moves(first, after, 1.0)
    assert off(compute(nodes(count), width(count), 2)) <= 0.01, "as it is without a predecessor"
    with_first = [row for row in after.rows() if 0 in row[: after.primaries]]
    partners = Counter(d for row in with_first for d in row[: after.primaries] if d)
    assert len(partners) == count - 1
    assert max(partners.values()) <= 1.5 * min(partners.values()), "what the first loses is rebuilt from all others"


@pytest.mark.parametrize("shift", [0, 1])
def test_a_layout_with_uneven_columns_is_levelled_at_its_next_change(shift: int) -> None:
    """One and the same row for all partitions, or always the same drives at the same places, as layouts have been."""
    six = fresh(6, 1, 1, 6)
    uneven = [[(at + number % (shift + 1)) % 6 for at in range(6)] for number in range(PARTITIONS)]
    places = b"".join(d.to_bytes(2, "little") for row in uneven for d in row)
    old = Layout(1, 6, six.drives, places, 6)
    for members in (nodes(7), nodes(6), nodes(6)[1:]):
        after = compute(members, width(len(members)), 2, old)
        assert off(after) <= 0.01
        assert_few_moves(old, after, 1.25)


def test_columns_that_exist_keep_their_drives_when_there_are_more() -> None:
    before = fresh(12, 1, 1, 4)
    after = compute(nodes(12), 6, 2, before)
    assert not changed(before, after)
    assert off(after) <= 0.01


@pytest.mark.parametrize("drives", [1, 2])
def test_a_node_that_was_away_finds_wide_blobs_where_they_were(drives: int) -> None:
    """Six nodes, five, six again: places of the wider scheme are spares in between, and hold the shards of what was stored before."""
    five = compute(nodes(6, drives)[drives:], width(5), 2, compute(nodes(6, drives), width(6), 2))
    six = compute(nodes(6, drives), width(6), 2, five)
    for at in range(min(five.width, six.width)):
        moves = sum(old[at].drive_id != new[at].drive_id for old, new in zip(rows(five), rows(six), strict=True))
        assert moves <= 1.15 * PARTITIONS / 6, at


@st.composite
def regions(draw: st.DrawFn) -> list[tuple[list[LayoutDrive], int]]:
    """Drives and shards, one after the other: nodes come and go, drives change their size, schemes change."""
    region: dict[int, list[LayoutDrive]] = {}
    equal = draw(st.booleans())
    zones = [""] if equal else ["", "a", "b"]
    sizes = st.integers(8, 8) if equal else st.integers(1, 20)
    steps = []
    for step in range(draw(st.integers(2, 5))):
        for _ in range(draw(st.integers(0, 2))):
            if len(region) > 1:
                del region[draw(st.sampled_from(sorted(region)))]
        for node in range(10 * step, 10 * step + draw(st.integers(0 if region else 1, 5))):
            zone = draw(st.sampled_from(zones))
            region[node] = [drive(node, number, zone, draw(sizes)) for number in range(2 if equal else draw(st.integers(1, 4)))]
        if draw(st.booleans()):
            node = draw(st.sampled_from(sorted(region)))
            region[node] = [drive(node, number, one.zone, draw(sizes)) for number, one in enumerate(region[node])]
        steps.append(([one for node in sorted(region) for one in region[node]], draw(st.sampled_from([1, 2, 3, 4, 6, 8]))))
    return steps


@examples(6)
@given(regions())
@example([(nodes(1), 1), (nodes(6), 6)])
@example([(nodes(5, 2), 6), (nodes(6, 2), 6)])
def test_every_drive_has_its_part_of_every_column(history: list[tuple[list[LayoutDrive], int]]) -> None:
    """Its quota over the number of columns, give or take 2 % and two places, after any changes; and then next to nothing moves any more."""
    before: tuple[list[LayoutDrive], Rows] | None = None
    for drives, shards in history:
        primaries = min(shards, len(drives))
        parts = tree(drives)
        limits = parts.limits(primaries)
        node, zone = [limits.per_node * ROWS] * len(parts.drives_of), [limits.per_zone * ROWS] * len(parts.nodes_of)
        quota = shares(parts, primaries * ROWS, [ROWS] * len(drives), node, zone)
        spares = min(2, len(drives) - primaries)
        table = spread(parts, ROWS, primaries, spares, None if before is None else carried(*before, drives))
        for column in columns(table, primaries):
            for number, due in enumerate(quota):
                part = due / primaries
                assert abs(column[number] - part) <= 2 + 0.02 * part, (number, column[number], part)
        again = spread(parts, ROWS, primaries, spares, table)
        assert (
            sum(old != new for a, b in zip(table, again, strict=True) for old, new in zip(a, b, strict=True))
            <= 0.02 * ROWS * primaries
        )
        before = (drives, table)


def carried(old: Sequence[LayoutDrive], table: Rows, drives: Sequence[LayoutDrive]) -> Rows:
    """A predecessor's rows in terms of the new drives."""
    numbers = {one.drive_id: number for number, one in enumerate(drives)}
    renamed = [numbers.get(one.drive_id, EMPTY) for one in old]
    return [[renamed[d] for d in row] for row in table]


def columns(table: Iterable[Sequence[int]], count: int) -> list[Counter[int]]:
    return [Counter(column) for column in itertools.islice(zip(*table, strict=True), count)]


@examples(60)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_any_table_can_be_levelled_within_its_rows(count: int, drives: int, copies: int, shards: int, seed: int) -> None:
    """However drives are combined, and whichever nodes they are of: rows keep theirs, and no drive is over or under in a column."""
    total = count * drives
    shards = min(shards, total)
    rng = random.Random(seed)
    kinds = [sorted(rng.sample(range(total), shards)) for _ in range(8)]
    table = [rng.choice(kinds)[:] for _ in range(copies * 64)]
    before = [row[:] for row in table]
    node = [d % count for d in range(total)]
    level(table, before, shards, node, range(len(table)))
    assert [sorted(row) for row in table] == before
    assert even(table, shards, total)
    for number in range(total):
        each = [column[number] for column in columns(table, shards)]
        assert max(each) - min(each) <= 1 + sum(each) / shards / 100
    after = [row[:] for row in table]
    level(table, after, shards, node, range(len(table)))
    assert sum(one != other for one, other in zip(table, after, strict=True)) <= 0.05 * len(table), "there is little left to do"


def test_levelling_moves_what_has_moved_already() -> None:
    """The places of a drive that left are anybody's: whoever got there makes room for others without another move."""
    home = [[EMPTY, 1], [0, 1], [1, EMPTY], [1, 0]] * 32
    table = [row[:] for row in [[0, 1], [0, 1], [0, 1], [1, 0]] * 32]
    level(table, home, 2, [0, 1], range(len(table)))
    assert even(table, 2, 2)
    kept = sum(now == was for row, places in zip(table, home, strict=True) for now, was in zip(row, places, strict=True))
    assert kept >= 6 * 32 - 2, "of the six places in four rows that were somebody's"


@examples(100)
@given(st.integers(1, 6), st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 1000))
def test_quotas_by_column(count: int, quota: list[int], seed: int) -> None:
    """Columns are equal, parts of a drive differ by at most one, and what is so already is left as it is."""
    quota[-1] += -sum(quota) % count
    rng = random.Random(seed)
    present = [[rng.randrange(50) for _ in quota] for _ in range(count)]
    shared = by_column(quota, present)
    assert [sum(column) for column in shared] == [sum(quota) // count] * count
    for number, due in enumerate(quota):
        each = [column[number] for column in shared]
        assert sum(each) == due
        assert max(each) - min(each) <= 1
    assert by_column(quota, shared) == shared
