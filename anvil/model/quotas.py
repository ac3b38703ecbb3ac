"""How many places each drive is due: by capacity, within the limits of nodes and zones, and the same part of every column.

Owns: rules and quotas of `spread.py`. Invariants: the quotas of all drives add up to the places there are; a drive's quotas of the
columns (place i of all rows is column i) add up to its quota, and differ by at most one. Not here: who gets which place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

EMPTY: Final = -1
Rows = list[list[int]]

_STEPS: Final = 200  # of bisection: more than a double has bits


class Limits(msgspec.Struct, frozen=True):
    """How many of the first `count` places of a row may be on one node, and in one zone."""

    count: int
    per_node: int
    per_zone: int


class Tree:
    """The drives by node and zone. `nodes`, `zones`: one name for each drive."""

    def __init__(self, nodes: Sequence[bytes], zones: Sequence[str], capacities: Sequence[int]) -> None:
        names = sorted(set(nodes))
        zone_of = dict(sorted(zip(nodes, zones, strict=True), reverse=True))  # one for each node, whatever its drives say
        zone_names = sorted(set(zone_of.values()))
        self.capacities = [max(capacity, 1) for capacity in capacities]
        self.node = [names.index(node) for node in nodes]
        self.zone = [zone_names.index(zone_of[node]) for node in nodes]
        self.drives_of: list[list[int]] = [[] for _ in names]
        for drive, number in enumerate(self.node):
            self.drives_of[number].append(drive)
        self.nodes_of: list[list[int]] = [[] for _ in zone_names]
        for number, name in enumerate(names):
            self.nodes_of[zone_names.index(zone_of[name])].append(number)

    def limits(self, count: int) -> Limits:
        """An equal part each, rounded up; more where nodes have too few drives, or zones too few nodes, for that."""
        per_node = _least([len(drives) for drives in self.drives_of], count)
        sizes = [sum(min(per_node, len(self.drives_of[node])) for node in nodes) for nodes in self.nodes_of]
        return Limits(count, per_node, _least(sizes, count))


def _least(sizes: Sequence[int], wanted: int) -> int:
    limit = -(-wanted // len(sizes))
    while sum(min(limit, size) for size in sizes) < wanted:
        limit += 1
    return limit


class _Part(msgspec.Struct):
    """A drive, or a group of parts; takes at most `ceiling`."""

    ceiling: int
    weight: int = 0
    drive: int = EMPTY
    parts: list[_Part] = []

    def takes(self, level: float) -> float:
        """When everybody is filled to `level` times its weight."""
        if not self.parts:
            return min(self.ceiling, self.weight * level)
        return min(self.ceiling, sum(part.takes(level) for part in self.parts))


def shares(tree: Tree, slots: int, drive: Sequence[int], node: Sequence[int], zone: Sequence[int]) -> list[int]:
    """`slots` shared out in proportion to capacity, no drive, node or zone above its ceiling: whatever that leaves over, the others share
    in the same way. Remainders go to the largest fractions."""
    zones = []
    for z, numbers in enumerate(tree.nodes_of):
        nodes = []
        for n in numbers:
            drives = [_Part(drive[d], tree.capacities[d], d) for d in tree.drives_of[n]]
            nodes.append(_Part(min(node[n], sum(part.ceiling for part in drives)), parts=drives))
        zones.append(_Part(min(zone[z], sum(part.ceiling for part in nodes)), parts=nodes))
    share = [0] * len(tree.capacities)
    _share(_Part(sum(part.ceiling for part in zones), parts=zones), slots, share)
    return share


def _share(group: _Part, amount: int, share: list[int]) -> None:
    low, high = 0.0, 1.0
    while group.takes(high) < min(amount, group.ceiling) and high < 1e30:
        low, high = high, high * 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if group.takes(middle) < amount else (low, middle)
    exact = [part.takes(high) for part in group.parts]
    whole = [int(amount_of) for amount_of in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    left = amount - sum(whole)
    while left:
        step = 1 if left > 0 else -1
        for i in order if left > 0 else reversed(order):
            if left and 0 <= whole[i] + step <= group.parts[i].ceiling:
                whole[i] += step
                left -= step
    for part, number in zip(group.parts, whole, strict=True):
        if part.parts:
            _share(part, number, share)
        else:
            share[part.drive] = number


def by_column(quota: Sequence[int], present: Sequence[Sequence[int]]) -> list[list[int]]:
    """The quotas shared out evenly over the columns. `present`: for each column, what each drive has there; who has more of a column gets
    the larger part of it. The quotas must add up to equal columns.

    One column after the other: with r places due in c columns, a drive gets r // c or one more of the next, so the rest is as even."""
    left = list(quota)
    columns = []
    for number, had in enumerate(present):
        share = len(present) - number
        column = [due // share for due in left]
        odd = [drive for drive, due in enumerate(left) if due % share]
        odd.sort(key=lambda drive: (column[drive] - had[drive], -(left[drive] % share), drive))
        for drive in odd[: sum(left) // share - sum(column)]:
            column[drive] += 1
        left = [due - part for due, part in zip(left, column, strict=True)]
        columns.append(column)
    return columns
