"""Every drive's places shared out evenly over the columns (place i of all rows), by swaps within rows.

Owns: the last step of `spread.py`. Shard i of a blob is at place i, reads take the first few shards and small objects have no others, so
drives that are even over all places together, but not in each column, are busy or idle for life. Invariants: every row keeps its drives,
so whatever rule it kept; swaps are preferred that move little of what is where it was; no swap brings two drives of one node into the
first places while that can be helped. Not here: which drives a row has.

Why this cannot get stuck: rows and drives are the two sides of a bipartite graph, places its edges, columns their colours; every such
graph has a colouring in which a node's edges are shared out evenly (D. de Werra, "Equitable colorations of graphs", RIRO 5, 1971). It is
reached from any other by exchanging two colours along paths: from a drive with too many of the one, to a drive with too many of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from anvil.model.quotas import EMPTY, Rows, by_column

_PASSES: Final = 8  # over all rows, and over all pairs of columns
_RATES: Final = (4, 2, 0)  # what a swap brings in lessening lacks, less two for each move
_SLACK: Final = 100  # a drive that is within 1 % of its part of a column is not worth a move

_Arcs = dict[int, dict[int, list[list[int]]]]  # by who has a place of the one column, then of the other: the rows


def even(table: Rows, count: int, drives: int) -> bool:
    """Whether every drive has its part of each of the first `count` columns."""
    counts = [Counter(row[at] for row in table) for at in range(count)]
    for drive in range(drives):
        each = [column[drive] for column in counts]
        if max(each) - min(each) > _slack(sum(each) // count):
            return False
    return True


def _slack(part: int) -> int:
    return 1 + part // _SLACK


def level(table: Rows, home: Rows, count: int, node: Sequence[int], order: Sequence[int]) -> None:
    """Swap places within rows until `even`. `home`: where drives were, which is where they are left if possible, EMPTY for a place that
    was nobody's; `node`: of each drive; `order`: of the rows, for chance."""
    columns = _Columns(table, home, count, node, order)
    columns.swap_single()
    columns.swap_paths()


class _Columns:
    def __init__(self, table: Rows, home: Rows, count: int, node: Sequence[int], order: Sequence[int]) -> None:
        self.rows = [(table[number], home[number]) for number in order]
        self.home_of = {id(row): home for row, home in self.rows}
        self.count, self.node = count, node
        self.head = min(len(set(node)), count)
        self.crowded = self.head < count  # else a row has no two drives of a node
        self.has = [[0] * len(node) for _ in range(count)]
        for row in table:
            for has, drive in zip(self.has, row, strict=False):  # primaries only
                has[drive] += 1
        quota = [sum(has) for has in zip(*self.has, strict=True)]
        self.slack = [_slack(total // count) for total in quota]
        targets = by_column(quota, self.has)
        self.lack = [[due - had for due, had in zip(*pair, strict=True)] for pair in zip(targets, self.has, strict=True)]

    def swap(self, row: list[int], a: int, b: int) -> None:
        for drive, before, after in ((row[a], a, b), (row[b], b, a)):
            self.lack[before][drive] += 1
            self.lack[after][drive] -= 1
            self.has[before][drive] -= 1
            self.has[after][drive] += 1
        row[a], row[b] = row[b], row[a]

    def cost(self, row: list[int], home: list[int], a: int, b: int) -> int:
        """How many more places differ from what was, after that swap."""
        cost = 0
        if home[a] != EMPTY:
            cost += (home[a] == row[a]) - (home[a] == row[b])
        if home[b] != EMPTY:
            cost += (home[b] == row[b]) - (home[b] == row[a])
        return cost

    def crowds(self, row: list[int], a: int, b: int) -> bool:
        """Whether that swap brings a node into the first places that is there already, for one that is not."""
        inner, outer = min(a, b), max(a, b)
        if inner >= self.head or outer < self.head:
            return False
        others = [self.node[row[at]] for at in range(self.head) if at != inner]
        return self.node[row[outer]] in others and self.node[row[inner]] not in others

    # -- single swaps ----------------------------------------------------------------------------------------------------------

    def swap_single(self) -> None:
        """Those that bring as much as moves can, each place that moves being one that had to; those that bring more come first."""
        for least in _RATES:
            for _ in range(_PASSES):
                swapped = False
                for row, home in self.rows:
                    for a in range(self.count):
                        if self.lack[a][row[a]] < 0:
                            swapped |= self._swap_best(row, home, a, least)
                if not swapped:
                    break

    def _swap_best(self, row: list[int], home: list[int], a: int, least: int) -> bool:
        best, best_rate = EMPTY, 0
        mine = row[a]
        lack = self.lack[a]
        for b in range(self.count):
            other = row[b]
            if b == a:
                continue
            theirs = self.lack[b]
            gain = 2 * ((theirs[mine] > 0) + (theirs[other] < 0) + (lack[other] > 0)) - 2
            if gain <= 0:
                continue
            rate = gain - 2 * self.cost(row, home, a, b)
            if rate < least or (self.crowded and self.crowds(row, a, b)):
                continue
            if best == EMPTY or rate > best_rate:
                best, best_rate = b, rate
        if best == EMPTY:
            return False
        self.swap(row, a, best)
        return True

    # -- paths -----------------------------------------------------------------------------------------------------------------

    def swap_paths(self) -> None:
        """What single swaps leave, between two columns at a time. At first only from and to drives that have too many of the one and too
        few of the other; at last whatever lessens a difference. The node rule of the first places gives way to balance."""
        for strict, crowding in ((True, False), (False, False), (False, True))[: 3 if self.crowded else 2]:
            for _ in range(_PASSES):
                swapped = False
                for a, b in self._pairs():
                    starts = [drive for drive in range(len(self.node)) if self._uneven(drive, a, b, strict)]
                    if starts:
                        swapped |= self._swap_between(a, b, starts, strict, crowding)
                if not swapped:
                    break

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """The last columns first: where more primaries than before are wanted, theirs were nobody's."""
        for outer in range(self.count - 1, 0, -1):
            for inner in range(outer - 1, -1, -1):
                yield outer, inner
                yield inner, outer

    def _uneven(self, drive: int, a: int, b: int, strict: bool) -> bool:
        if self.has[a][drive] - self.has[b][drive] <= self.slack[drive]:
            return False
        return not strict or (self.lack[a][drive] < 0 < self.lack[b][drive])

    def _swap_between(self, a: int, b: int, starts: list[int], strict: bool, crowding: bool) -> bool:
        arcs = self._arcs(a, b, crowding)
        swapped = False
        for drive in starts:
            while self._uneven(drive, a, b, strict):
                path = self._path(arcs, drive, a, b, strict)
                if not path:
                    break
                for giver, taker in pairwise(path):
                    row = arcs[giver][taker].pop()
                    self.swap(row, a, b)
                    arcs.setdefault(taker, {}).setdefault(giver, []).append(row)
                swapped = True
        return swapped

    def _arcs(self, a: int, b: int, crowding: bool) -> _Arcs:
        """The rows by the drives that would swap; of each two drives', those that cost least come last."""
        arcs: _Arcs = {}
        for row, _ in self.rows:
            if crowding or not self.crowds(row, a, b):
                arcs.setdefault(row[a], {}).setdefault(row[b], []).append(row)
        for takers in arcs.values():
            for rows in takers.values():
                rows.sort(key=lambda row: -self.cost(row, self.home_of[id(row)], a, b))
        return arcs

    def _path(self, arcs: _Arcs, start: int, a: int, b: int, strict: bool) -> list[int]:
        """The shortest from `start` to a drive with more in b than in a, best one above its part of b and below that of a; else []."""
        before = {start: EMPTY}
        last = EMPTY
        for giver in (queue := [start]):
            for taker, rows in arcs.get(giver, {}).items():
                if not rows or taker in before:
                    continue
                before[taker] = giver
                queue.append(taker)
                if self.lack[b][taker] < 0 < self.lack[a][taker]:
                    return _back(before, taker)
                if last == EMPTY and self.has[b][taker] > self.has[a][taker]:
                    last = taker
        return [] if strict or last == EMPTY else _back(before, last)


def _back(before: dict[int, int], last: int) -> list[int]:
    path = [last]
    while before[path[-1]] != EMPTY:
        path.append(before[path[-1]])
    return path[::-1]
