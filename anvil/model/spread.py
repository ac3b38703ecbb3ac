"""Which drives hold the places of every partition: an assignment that moves as little as it can.

Owns: the computation behind `model/layout.py`. Invariants, whatever the predecessor was: a drive is at most once in a row; primaries keep
to `Limits.per_node` and `per_zone`. Within these, every drive gets its quota (`quotas.py`), the same part of it in every column of
primaries (place i of all rows), and a place that needs no other drive keeps the one it has: shard i of a blob is on the i-th drive of its
row, so nobody changes place without need. Not here: layouts and their versions.

Why the rules and the quotas can hold together: give every row of a drive's quota the same fraction, and all limits of nodes and zones
hold in every row, because the quotas keep to them in total. Where such a fractional assignment exists, so does a whole one (the limits of
a row are nested, so it is a flow). A first layout is one directly, by systematic sampling (W. G. Madow, "On the theory of systematic
sampling, II", Ann. Math. Statist. 20, 1949): with the drives of a node and the nodes of a zone side by side, equal steps meet a run of
weights the rounded number of times. A later layout starts from what is there and exchanges single places, at
first by what drives lack of a column, then by what they lack over all, then pairs and chains of them. What then is uneven in columns is
levelled within rows (`columns.py`): where rows leave no choice of drives, as with as many nodes as shards, that is most of it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

from anvil.model.columns import even, level
from anvil.model.quotas import EMPTY, Limits, Rows, Tree, by_column, shares

Open = dict[int, list[tuple[list[int], int]]]  # by drive: rows and places

_ORDERS: Final = 64  # different orders of the drives, for a first layout
_SAMPLE: Final = 16  # drives that are looked at for a place, of those that have fewer than they should
_DRAWN: Final = 2  # of those that fit an empty place; were it all, the neediest would always have the same neighbours
_PASSES: Final = 8  # over all rows, exchanging single places
_TOLERANCE: Final = 100  # a drive within 1 % of its quota is not worth a pair of moves
_NEAR: Final = 50  # where all are within 2 %, and nothing else has to change, nothing does
_SCANS: Final = 96  # of the whole table, in search of longer chains


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
        level(table, [[EMPTY] * primaries] * rows, primaries, tree.node, rng.sample(range(rows), rows))
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
            turns.append((met[tree.node[drive]], rng.random(), drive))
            met[tree.node[drive]] += 1
        # Copies of small objects use the first few places: those are on different nodes, too.
        table.append([drive for _, _, drive in sorted(turns)])
    return table


class _Ledger:
    """What drives lack of their quota of some places; below 0 for those that have more."""

    def __init__(self, quota: Sequence[int], has: Sequence[int]) -> None:
        self.quota = quota
        self.lack = [due - had for due, had in zip(quota, has, strict=True)]
        self.below = [drive for drive, lack in enumerate(self.lack) if lack > 0]

    def take(self, drive: int) -> None:
        self.lack[drive] -= 1
        if self.lack[drive] == 0:
            self.below.remove(drive)

    def give(self, drive: int) -> None:
        self.lack[drive] += 1
        if self.lack[drive] == 1:
            self.below.append(drive)

    def need(self, drive: int) -> float:
        return self.lack[drive] / max(self.quota[drive], 1)

    def wanting(self) -> list[int]:
        """Whoever is so far below that it is worth more than one move for each place."""
        return [drive for drive in sorted(self.below, key=self.need, reverse=True) if self.wants(drive)]

    def wants(self, drive: int) -> bool:
        return self.lack[drive] * _TOLERANCE > self.quota[drive]


class _Places(ABC):
    """Some places of all rows, to be filled so that every drive gets its quota."""

    def __init__(self, tree: Tree, table: Rows, places: range, quota: Sequence[int], rng: random.Random) -> None:
        self.tree, self.table, self.places, self.rng = tree, table, places, rng
        self.order = list(range(len(table)))
        rng.shuffle(self.order)
        self.total = _Ledger(quota, self.has(places))
        self.scans = 0

    def has(self, places: Iterable[int]) -> list[int]:
        """How many of these places each drive has."""
        met: Counter[int] = Counter()
        for at in places:
            met.update(row[at] for row in self.table)
        return [met[drive] for drive in range(len(self.tree.node))]

    @abstractmethod
    def fits(self, row: list[int], at: int, drive: int) -> bool:
        """Whether it may take that place of the row, instead of who has it."""

    def any_for(self, row: list[int], at: int) -> Iterable[int]:
        """All who may take an empty place, also beyond their quota; one at least."""
        return (drive for drive in range(len(self.tree.node)) if self.fits(row, at, drive))

    def put(self, row: list[int], at: int, drive: int) -> None:
        """EMPTY to vacate it."""
        before = row[at]
        row[at] = drive
        if drive != EMPTY:
            self.total.take(drive)
        if before != EMPTY:
            self.total.give(before)

    def choose(self, row: list[int], at: int, ledger: _Ledger, *, empty: bool) -> int:
        """Of those with less than their quota who fit, one of the neediest; EMPTY if there is none. `empty`: whoever fits must be found,
        and who gets the place is left to chance a little."""
        below = ledger.below
        if len(below) > _SAMPLE:
            draw = self.rng.random
            fitting = [drive for _ in range(_SAMPLE) if self.fits(row, at, drive := below[int(draw() * len(below))])]
            if not fitting and empty:
                fitting = [drive for drive in below if self.fits(row, at, drive)]
        else:
            fitting = [drive for drive in below if self.fits(row, at, drive)]
        if empty and len(fitting) > _DRAWN:
            fitting = self.rng.sample(fitting, _DRAWN)
        return max(fitting, key=ledger.need, default=EMPTY)

    def fill(self, ledgers: Mapping[int, _Ledger]) -> None:
        """The empty ones of these places, each by its ledger."""
        for number in self.order:
            row = self.table[number]
            for at, ledger in ledgers.items():
                if row[at] == EMPTY:
                    drive = self.choose(row, at, ledger, empty=True)
                    self.put(row, at, drive if drive != EMPTY else max(self.any_for(row, at), key=self.total.need))

    def exchange(self, ledgers: Mapping[int, _Ledger]) -> None:
        """Single places, from drives above their quota to drives below theirs: no way with fewer moves."""
        for _ in range(_PASSES):
            moved = False
            for number in self.order:
                row = self.table[number]
                above = [
                    (ledger.need(row[at]), at) for at, ledger in ledgers.items() if ledger.below and ledger.lack[row[at]] < 0
                ]
                for _, at in sorted(above):
                    ledger = ledgers[at]
                    if ledger.lack[row[at]] < 0 and (drive := self.choose(row, at, ledger, empty=False)) != EMPTY:
                        self.put(row, at, drive)
                        moved = True
            if not moved:
                return

    def exchange_pairs(self) -> None:
        """What single places cannot settle: a third drive takes the place, and gives one of its own to the drive below its quota."""
        lack = self.total.lack
        for needy in self.total.wanting():
            open_places = self._open_places(needy)
            for number in self.order:
                if lack[needy] <= 0:
                    break
                row = self.table[number]
                for at in self.places:
                    if lack[row[at]] < 0 < lack[needy]:
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
        for needy in self.total.wanting():
            opened.clear()  # what was seen before the last exchanges may not be so any more
            while self.total.wants(needy):
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
                    if self.total.lack[giver] < 0:
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
    """The places that hold shards. Limits are kept, quotas as far as these allow, those of columns too."""

    def __init__(self, tree: Tree, limits: Limits, table: Rows, quota: Sequence[int], rng: random.Random) -> None:
        super().__init__(tree, table, range(limits.count), quota, rng)
        self.limits = limits
        self.home = [row[:] for row in table]
        had = [self.has([at]) for at in self.places]
        self.columns = {at: _Ledger(*pair) for at, pair in enumerate(zip(by_column(quota, had), had, strict=True))}
        self.old = {at: ledger for at, ledger in self.columns.items() if any(had[at])}

    def put(self, row: list[int], at: int, drive: int) -> None:
        ledger, before = self.columns[at], row[at]
        super().put(row, at, drive)
        if drive != EMPTY:
            ledger.take(drive)
        if before != EMPTY:
            ledger.give(before)

    def run(self) -> None:
        for row in self.table:
            self._keep_limits(row)
        if self._settled():
            return
        for ledgers in (self.old, self.columns):  # what is there has the first choice, where there are more columns than before
            self.fill(ledgers)
            self.exchange(ledgers)
        self.exchange(dict.fromkeys(self.places, self.total))
        self.exchange_pairs()
        self.exchange_chains()
        level(self.table, self.home, self.limits.count, self.tree.node, self.order)

    def _settled(self) -> bool:
        """Whether all are so near to their quotas that nothing has to move."""
        if any(row[at] == EMPTY for row in self.table for at in self.places):
            return False
        if any(abs(lack) > 1 + due // _NEAR for lack, due in zip(self.total.lack, self.total.quota, strict=True)):
            return False
        return even(self.table, self.limits.count, len(self.tree.node))

    def _keep_limits(self, row: list[int]) -> None:
        """Vacate what breaks a rule: of the drives that could go, the one that has the most beyond its quota of the column."""
        for group, limit in ((self.tree.node, self.limits.per_node), (self.tree.zone, self.limits.per_zone)):
            met = Counter(group[row[at]] for at in self.places if row[at] != EMPTY)
            for name, number in met.items():
                for _ in range(number - limit):
                    breaking = (at for at in self.places if row[at] != EMPTY and group[row[at]] == name)
                    self.put(row, min(breaking, key=lambda at: (self.columns[at].need(row[at]), at)), EMPTY)

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
                    self.put(row, at, EMPTY)
        ledgers = dict.fromkeys(self.places, self.total)
        self.fill(ledgers)
        self.exchange(ledgers)

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
