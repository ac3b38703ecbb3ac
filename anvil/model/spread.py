"""Which drives hold the places of every partition: rules, quotas, and an assignment that moves as little as it can.

Owns: the computation behind `model/layout.py`. Invariants, whatever the predecessor was: a drive is at most once in a row; primaries keep
to `Limits.per_node` and `per_zone`. Within these, every drive gets its quota (`shares`), and a place that needs no other drive keeps the
one it has: shard i of a blob is on the i-th drive of its row, so nobody changes place without need. Not here: layouts and their versions.

Why the rules and the quotas can hold together: give every row of a drive's quota the same fraction, and all limits of nodes and zones
hold in every row, because the quotas keep to them in total. Where such a fractional assignment exists, so does a whole one (the limits of
a row are nested, so it is a flow). A first layout is one directly, by systematic sampling (W. G. Madow, "On the theory of systematic
sampling, II", Ann. Math. Statist. 20, 1949): with the drives of a node and the nodes of a zone side by side, equal steps meet a run of
weights the rounded number of times. A later layout starts from what is there and exchanges single places, then
pairs and chains of them.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec

EMPTY: Final = -1
Rows = list[list[int]]
Open = dict[int, list[tuple[list[int], int]]]  # by drive: rows and places

_ORDERS: Final = 64  # different orders of the drives, for a first layout
_SAMPLE: Final = 16  # drives that are looked at for a place, of those that have fewer than they should
_PASSES: Final = 8  # over all rows, exchanging single places
_TOLERANCE: Final = 100  # a drive within 1 % of its quota is not worth a pair of moves
_SCANS: Final = 96  # of the whole table, in search of longer chains
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


# -- quotas --------------------------------------------------------------------------------------------------------------------


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


# -- the assignment ------------------------------------------------------------------------------------------------------------


def spread(tree: Tree, rows: int, primaries: int, spares: int, previous: Rows | None) -> Rows:
    """`rows` rows of `primaries` + `spares` drives. `previous`: as many rows of what was there, EMPTY for a drive that left."""
    rng = random.Random(rows)  # chance without surprise: the same drives get the same layout
    limits = tree.limits(primaries)
    every = [rows] * len(tree.capacities)
    by_node, by_zone = [limits.per_node * rows] * len(tree.drives_of), [limits.per_zone * rows] * len(tree.nodes_of)
    quota = shares(tree, primaries * rows, every, by_node, by_zone)
    table = [[*row[: primaries + spares], *[EMPTY] * (primaries + spares - len(row))] for row in previous or []]
    if any(drive != EMPTY for row in table for drive in row[:primaries]):
        _Primaries(tree, limits, table, quota, rng).run()
    else:
        table = [[*row, *[EMPTY] * spares] for row in _first(tree, rows, primaries, quota, rng)]
    if spares:
        _Spares(tree, tree.limits(primaries + spares), primaries, table, rng).run()
    return table


def _first(tree: Tree, rows: int, count: int, quota: Sequence[int], rng: random.Random) -> Rows:
    """Whole quotas and all limits, with neighbours that vary: a lost drive is rebuilt from, and to, all the others."""
    orders = []
    for _ in range(_ORDERS):
        zones = [[node[:] for node in (tree.drives_of[n] for n in numbers)] for numbers in tree.nodes_of]
        for nodes in zones:
            for drives in nodes:
                rng.shuffle(drives)
            rng.shuffle(nodes)
        rng.shuffle(zones)
        orders.append([drive for nodes in zones for drives in nodes for drive in drives])
    left = list(quota)
    table: Rows = []
    for step in range(rows, 0, -1):  # what is left adds up to count * step, and nobody has more than his limit times step
        order = orders[rng.randrange(_ORDERS)]
        weights = list(accumulate(map(left.__getitem__, order)))
        start = rng.randrange(step)
        row = [order[bisect_right(weights, start + i * step)] for i in range(count)]
        for drive in row:
            left[drive] -= 1
        rng.shuffle(row)
        met: Counter[int] = Counter()
        turns = []
        for drive in row:
            turns.append(met[tree.node[drive]])
            met[tree.node[drive]] += 1
        # Copies of small objects use the first few places: those are on different nodes, too.
        table.append([drive for _, drive in sorted(zip(turns, row, strict=True), key=lambda pair: pair[0])])
    return table


class _Places(ABC):
    """Some places of all rows, to be filled so that `lack` becomes 0 for every drive: its quota less what it has."""

    def __init__(self, tree: Tree, table: Rows, places: range, quota: Sequence[int], rng: random.Random) -> None:
        self.tree, self.table, self.places, self.rng = tree, table, places, rng
        self.quota = quota
        self.lack = list(quota)
        self.order = list(range(len(table)))
        rng.shuffle(self.order)
        self.below: list[int] = []
        self.scans = 0

    def count(self) -> None:
        for row in self.table:
            for at in self.places:
                if row[at] != EMPTY:
                    self.lack[row[at]] -= 1
        self.below = [drive for drive, lack in enumerate(self.lack) if lack > 0]

    @abstractmethod
    def fits(self, row: list[int], at: int, drive: int) -> bool:
        """Whether it may take that place of the row, instead of who has it."""

    def any_for(self, row: list[int], at: int) -> Iterable[int]:
        """All who may take an empty place, also beyond their quota; one at least."""
        return (drive for drive in range(len(self.quota)) if self.fits(row, at, drive))

    def put(self, row: list[int], at: int, drive: int) -> None:
        before = row[at]
        row[at] = drive
        self.lack[drive] -= 1
        if self.lack[drive] == 0:
            self.below.remove(drive)
        if before != EMPTY:
            self.lack[before] += 1
            if self.lack[before] == 1:
                self.below.append(before)

    def need(self, drive: int) -> float:
        return self.lack[drive] / max(self.quota[drive], 1)

    def choose(self, row: list[int], at: int, *, thorough: bool) -> int:
        """Of those with less than their quota who fit, one of the neediest; EMPTY if there is none. `thorough`: look at all."""
        below = self.below
        if len(below) > _SAMPLE:
            draw = self.rng.random
            fitting = [drive for _ in range(_SAMPLE) if self.fits(row, at, drive := below[int(draw() * len(below))])]
            if not fitting and thorough:
                fitting = [drive for drive in below if self.fits(row, at, drive)]
        else:
            fitting = [drive for drive in below if self.fits(row, at, drive)]
        return max(fitting, key=self.need, default=EMPTY)

    def fill(self) -> None:
        for number in self.order:
            row = self.table[number]
            for at in self.places:
                if row[at] == EMPTY:
                    drive = self.choose(row, at, thorough=True)
                    self.put(row, at, drive if drive != EMPTY else max(self.any_for(row, at), key=self.need))

    def exchange(self) -> None:
        """Single places, from drives above their quota to drives below theirs: no way with fewer moves."""
        for _ in range(_PASSES):
            moved = False
            for number in self.order:
                if not self.below:
                    return
                row = self.table[number]
                for at in sorted((at for at in self.places if self.lack[row[at]] < 0), key=lambda at: self.need(row[at])):
                    if self.lack[row[at]] < 0 and (drive := self.choose(row, at, thorough=False)) != EMPTY:
                        self.put(row, at, drive)
                        moved = True
            if not moved:
                return

    def exchange_pairs(self) -> None:
        """What single places cannot settle: a third drive takes the place, and gives one of its own to the drive below its quota."""
        for needy in sorted(self.below, key=self.need, reverse=True):
            if self.lack[needy] * _TOLERANCE <= self.quota[needy]:
                continue
            open_places = self._open_places(needy)
            for number in self.order:
                if self.lack[needy] <= 0:
                    break
                row = self.table[number]
                for at in self.places:
                    if self.lack[row[at]] < 0 and self.lack[needy] > 0:
                        self._pair(row, at, needy, open_places)

    def _pair(self, row: list[int], at: int, needy: int, open_places: Open) -> None:
        for third, places in open_places.items():
            if not self.fits(row, at, third):
                continue
            while places:
                other, place = places.pop()
                if other is not row and other[place] == third and self.fits(other, place, needy):
                    self.put(other, place, needy)
                    self.put(row, at, third)
                    return

    def _open_places(self, drive: int) -> Open:
        """The places it may take, by who has them."""
        places: Open = {}
        for number in self.order:
            row = self.table[number]
            for at in self.places:
                if self.fits(row, at, drive):
                    places.setdefault(row[at], []).append((row, at))
        return places

    def exchange_chains(self) -> None:
        """What pairs cannot settle, where rules and ceilings leave little room: from drive to drive, each giving a place to the next, until
        one is met that has more than its quota. At most _SCANS looks at the whole table."""
        opened: dict[int, Open] = {}
        for needy in sorted(self.below, key=self.need, reverse=True):
            opened.clear()  # what was seen before the last exchanges may not be so any more
            while self.lack[needy] * _TOLERANCE > self.quota[needy]:
                chain = self._chain(needy, opened)
                if not chain:
                    break
                picks = [self._pick(opened[taker], giver, taker) for giver, taker in pairwise(chain)]
                rows = [id(pick[0]) for pick in picks if pick is not None]
                if len(rows) == len(set(rows)) == len(picks):
                    for pick, taker in zip(picks, chain[1:], strict=True):
                        assert pick is not None
                        self.put(*pick, taker)

    def _chain(self, needy: int, opened: dict[int, Open]) -> list[int]:
        """The shortest chain of drives that ends with `needy` and begins with one above its quota; empty if there is none."""
        following = {needy: EMPTY}
        for taker in (queue := [needy]):
            if taker not in opened:
                if self.scans >= _SCANS:
                    return []
                self.scans += 1
                opened[taker] = self._open_places(taker)
            for giver, places in opened[taker].items():
                if places and giver not in following:
                    following[giver] = taker
                    queue.append(giver)
                    if self.lack[giver] < 0:
                        chain = [giver]
                        while chain[-1] != needy:
                            chain.append(following[chain[-1]])
                        return chain
        return []

    def _pick(self, places: Open, giver: int, taker: int) -> tuple[list[int], int] | None:
        """A place that is still the giver's, and still open to the taker. What was looked at is not looked at again."""
        while places[giver]:
            row, at = places[giver].pop()
            if row[at] == giver and self.fits(row, at, taker):
                return row, at
        return None


class _Primaries(_Places):
    """The places that hold shards. Limits are kept, quotas as far as these allow."""

    def __init__(self, tree: Tree, limits: Limits, table: Rows, quota: Sequence[int], rng: random.Random) -> None:
        super().__init__(tree, table, range(limits.count), quota, rng)
        self.limits = limits

    def run(self) -> None:
        self.count()
        for row in self.table:
            self._keep_limits(row)
        self.fill()
        self.exchange()
        self.exchange_pairs()
        self.exchange_chains()

    def _keep_limits(self, row: list[int]) -> None:
        """Vacate what breaks a rule: of the drives that could go, the one that has the most beyond its quota."""
        for group, limit in ((self.tree.node, self.limits.per_node), (self.tree.zone, self.limits.per_zone)):
            met = Counter(group[row[at]] for at in self.places if row[at] != EMPTY)
            for name, number in met.items():
                for _ in range(number - limit):
                    at = min(
                        (at for at in self.places if row[at] != EMPTY and group[row[at]] == name),
                        key=lambda at: (self.need(row[at]), at),
                    )
                    self.lack[row[at]] += 1
                    if self.lack[row[at]] == 1:
                        self.below.append(row[at])
                    row[at] = EMPTY

    def fits(self, row: list[int], at: int, drive: int) -> bool:
        if drive in row[: self.limits.count]:
            return False
        node, zone = self.tree.node, self.tree.zone
        node_left, zone_left = self.limits.per_node, self.limits.per_zone
        for place in self.places:
            other = row[place]
            if place != at and other != EMPTY:
                node_left -= node[other] == node[drive]
                zone_left -= zone[other] == zone[drive]
        return node_left > 0 and zone_left > 0


class _Spares(_Places):
    """The places behind: those of nodes that the row has least of, then of zones, then by quota."""

    def __init__(self, tree: Tree, limits: Limits, primaries: int, table: Rows, rng: random.Random) -> None:
        rows = len(table)
        used = Counter(drive for row in table for drive in row[:primaries])
        drive = [rows - used[d] for d in range(len(tree.node))]
        by_node = [limits.per_node * rows - sum(used[d] for d in drives) for drives in tree.drives_of]
        quota = shares(tree, (limits.count - primaries) * rows, drive, by_node, [rows * limits.count] * len(tree.nodes_of))
        super().__init__(tree, table, range(primaries, limits.count), quota, rng)

    def run(self) -> None:
        for row in self.table:
            for at in self.places:
                if row[at] != EMPTY and (row[at] in row[:at] or self._crowd(row, at, row[at]) > self._least_crowd(row, at)):
                    row[at] = EMPTY
        self.count()
        self.fill()
        self.exchange()

    def _crowd(self, row: list[int], at: int, drive: int) -> int:
        """How many others of the row are on its node."""
        node = self.tree.node
        return sum(other != EMPTY and node[other] == node[drive] for place, other in enumerate(row) if place != at)

    def _least_crowd(self, row: list[int], at: int) -> int:
        met = Counter(self.tree.node[other] for place, other in enumerate(row) if place != at and other != EMPTY)
        if len(met) < len(self.tree.drives_of):
            return 0
        return min(number for node, number in met.items() if number < len(self.tree.drives_of[node]))

    def fits(self, row: list[int], at: int, drive: int) -> bool:
        if drive in row:
            return False
        if row[at] != EMPTY:
            return self._crowd(row, at, drive) <= self._crowd(row, at, row[at])
        return self._crowd(row, at, drive) == self._least_crowd(row, at)
