"""Layouts for tests: regions in few words, and what differs from one layout to the next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from anvil.model.layout import PARTITIONS, Layout, LayoutDrive, compute
from anvil.model.quotas import EMPTY, Rows, Tree
from anvil.model.spread import spread

ROWS = 256  # enough for the rules; whole layouts have PARTITIONS of them
FEWER = PARTITIONS // 4  # whole layouts where there are many: as even as all, within the same bounds


def drive(node: int, number: int, zone: str = "", capacity: int = 1 << 40) -> LayoutDrive:
    return LayoutDrive(bytes([node, number, *range(14)]), bytes([node]) * 16, capacity, zone)


def nodes(count: int, drives: int = 1, zones: int = 1) -> list[LayoutDrive]:
    return [drive(node, number, f"z{node % zones}") for node in range(count) for number in range(drives)]


def computed(drives: Sequence[LayoutDrive], shards: int, spares: int, before: Layout | None = None) -> Layout:
    """`compute`, which takes a good part of a second; the same input has the same layout, and layouts are values, so tests share them."""
    return _computed(tuple(drives), shards, spares, before)


@lru_cache(maxsize=256)
def _computed(drives: tuple[LayoutDrive, ...], shards: int, spares: int, before: Layout | None) -> Layout:
    return compute(drives, shards, spares, before)


def fresh(count: int, drives: int, zones: int, shards: int) -> Layout:
    """Of `nodes`, without a predecessor."""
    return computed(nodes(count, drives, zones), shards, 2)


def rows(layout: Layout) -> list[list[LayoutDrive]]:
    return [[layout.drives[number] for number in row] for row in layout.rows()]


def tree(drives: Sequence[LayoutDrive]) -> Tree:
    return Tree([d.node_id for d in drives], [d.zone for d in drives], [d.capacity_bytes for d in drives])


def following(drives: Sequence[LayoutDrive], shards: int, spares: int, before: tuple[Sequence[LayoutDrive], Rows] | None) -> Rows:
    """ROWS rows, of which those `before` are the predecessor's."""
    primaries = min(shards, len(drives))
    previous = None
    if before is not None:
        numbers = {d.drive_id: number for number, d in enumerate(drives)}
        renamed = [numbers.get(d.drive_id, EMPTY) for d in before[0]]
        previous = [[renamed[old] for old in row] for row in before[1]]
    return spread(tree(drives), ROWS, primaries, min(shards + spares, len(drives)) - primaries, previous)


def changed(before: Layout, after: Layout) -> list[tuple[int, int, LayoutDrive, LayoutDrive]]:
    """Partition, place, drive before, drive after, of every place that is for shards in both and moved."""
    number_of = {drive.drive_id: number for number, drive in enumerate(after.drives)}
    same = [number_of.get(drive.drive_id) for drive in before.drives]
    both = min(before.primaries, after.primaries)
    return [
        (number, place, before.drives[olds[place]], after.drives[news[place]])
        for number, (olds, news) in enumerate(zip(before.rows(), after.rows(), strict=True))
        for place in range(both)
        if same[olds[place]] != news[place]
    ]
