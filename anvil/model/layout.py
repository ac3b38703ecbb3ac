"""A layout: for each partition of the blob-id space, the ordered drives that hold its shards.

Owns: the computation and the packed form of a layout. Invariant: a layout is a pure function of (drives, width, predecessor); a drive
appears at most once in a partition; primaries and spares are each balanced by capacity within one partition per drive where the
number of drives allows. Not here: when a layout changes, and who moves data (that is the cluster's business).

The assignment is greedy with quotas, which keeps what the predecessor says wherever it still fits, so adding a drive to n others
moves about 1/(n+1) of the partitions' places and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from anvil.model.records import BlobId, DriveId

PARTITION_BITS = 12
PARTITIONS = 1 << PARTITION_BITS


class LayoutDrive(msgspec.Struct, frozen=True):
    drive_id: DriveId
    node_id: bytes
    capacity_bytes: int
    zone: str = ""


class Layout(msgspec.Struct, frozen=True):
    """`places`: PARTITIONS x width indexes into `drives`, row by row, as little-endian u16."""

    version: int
    width: int
    drives: tuple[LayoutDrive, ...]
    places: bytes

    def order(self, blob_id: BlobId) -> tuple[int, ...]:
        """Indexes into `drives` for that blob, primaries first, then spares."""
        row = partition(blob_id) * self.width
        return struct.unpack_from(f"<{self.width}H", self.places, row * 2)

    def rows(self) -> Iterator[tuple[int, ...]]:
        """The same for every partition, in order."""
        return struct.iter_unpack(f"<{self.width}H", self.places)

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @staticmethod
    def unpack(data: bytes) -> Layout:
        return msgspec.msgpack.decode(data, type=Layout)


def partition(blob_id: BlobId) -> int:
    """The leading PARTITION_BITS bits of a blob id."""
    return blob_id[0] << 4 | blob_id[1] >> 4


def slice_partitions(number: int, slices: int = 64) -> range:
    """The partitions of one of `slices` equal pieces."""
    each = PARTITIONS // slices
    return range(number * each, (number + 1) * each)


def compute(drives: Sequence[LayoutDrive], shards: int, spares: int, previous: Layout | None = None) -> Layout:
    """A layout of `shards` primaries and up to `spares` spares per partition (fewer where there are not enough drives)."""
    ordered = tuple(sorted(drives, key=lambda drive: drive.drive_id))
    if not ordered:
        raise ValueError("a layout needs at least one drive")
    primaries = min(shards, len(ordered))
    width = min(shards + spares, len(ordered))
    rows: list[list[int]] = [[] for _ in range(PARTITIONS)]
    kept = _kept(ordered, previous)
    _assign(rows, ordered, primaries, [row[:primaries] for row in kept])
    _assign(rows, ordered, width - primaries, kept)
    places = b"".join(struct.pack(f"<{width}H", *row) for row in rows)
    return Layout(version=1 if previous is None else previous.version + 1, width=width, drives=ordered, places=places)


def _kept(drives: tuple[LayoutDrive, ...], previous: Layout | None) -> list[list[int]]:
    """For each partition, what the predecessor had, in terms of the new drive indexes (drives that left drop out)."""
    if previous is None:
        return [[] for _ in range(PARTITIONS)]
    index_of = {drive.drive_id: number for number, drive in enumerate(drives)}
    renamed = [index_of.get(drive.drive_id, -1) for drive in previous.drives]
    width = previous.width
    table = struct.unpack(f"<{PARTITIONS * width}H", previous.places)
    return [[new for old in table[p * width : (p + 1) * width] if (new := renamed[old]) >= 0] for p in range(PARTITIONS)]


def quotas(capacities: Sequence[int], slots: int, ceiling: int) -> list[int]:
    """Share `slots` out in proportion to capacity, nobody above `ceiling`, remainders to the largest fractions."""
    share = [0] * len(capacities)
    open_drives = list(range(len(capacities)))
    left = slots
    while open_drives:
        total = sum(max(capacities[i], 1) for i in open_drives)
        full = [i for i in open_drives if left * max(capacities[i], 1) >= ceiling * total]
        if not full:
            exact = {i: left * max(capacities[i], 1) / total for i in open_drives}
            for i in open_drives:
                share[i] = int(exact[i])
            short = left - sum(share[i] for i in open_drives)
            for i in sorted(open_drives, key=lambda i: (int(exact[i]) - exact[i], i))[:short]:
                share[i] += 1
            break
        for i in full:
            share[i] = ceiling
            left -= ceiling
        open_drives = [i for i in open_drives if i not in full]
    return share


def _assign(rows: list[list[int]], drives: tuple[LayoutDrive, ...], count: int, wishes: list[list[int]]) -> None:
    """Append `count` drives to every row: wishes first as far as quotas allow, then whoever is furthest below its quota, preferring
    zones and nodes the row does not have yet."""
    if count == 0:
        return
    taken_before = [0] * len(drives)
    for row in rows:
        for place in row:
            taken_before[place] += 1
    free_ceiling = [PARTITIONS - taken for taken in taken_before]
    quota = quotas([drive.capacity_bytes for drive in drives], count * PARTITIONS, PARTITIONS)
    quota = [min(q, ceiling) for q, ceiling in zip(quota, free_ceiling, strict=True)]
    used = [0] * len(drives)
    target = [len(row) + count for row in rows]
    # A drive over its quota gives up places spread evenly over the partitions (Bresenham, each drive with a phase of its own): were
    # they all given up in the same rows, a new drive, which may appear only once in a row, could not take them.
    have = [0] * len(drives)
    for wished in wishes:
        for wish in wished:
            have[wish] += 1
    seen = [index * max(have) // len(drives) for index in range(len(drives))]
    for number, row in enumerate(rows):
        for wish in wishes[number]:
            if wish in row or len(row) == target[number]:
                continue
            kept = min(quota[wish], have[wish])
            before = seen[wish] * kept // have[wish]
            seen[wish] += 1
            if seen[wish] * kept // have[wish] > before and used[wish] < quota[wish]:
                row.append(wish)
                used[wish] += 1
    for number, row in enumerate(rows):
        while len(row) < target[number]:
            zones = {drives[i].zone for i in row}
            nodes = {drives[i].node_id for i in row}
            choice = min(
                (i for i in range(len(drives)) if i not in row),
                # The partition's number turns ties, so that equal drives do not always follow each other in the same order.
                key=lambda i: (
                    used[i] >= quota[i],
                    drives[i].zone in zones,
                    drives[i].node_id in nodes,
                    used[i] / max(quota[i], 1),
                    (i * 2654435761 + number * 40503) & 0xFFFF,
                ),
            )
            row.append(choice)
            used[choice] += 1
    _settle(rows, count, used, quota)


def _settle(rows: list[list[int]], count: int, used: list[int], quota: list[int]) -> None:
    """Move single places from drives above their quota to drives below it, until the quotas hold wherever that is possible."""
    below = {i for i in range(len(quota)) if used[i] < quota[i]}
    for row in rows:
        if not below:
            return
        for place in range(len(row) - count, len(row)):
            if used[row[place]] <= quota[row[place]]:
                continue
            candidates = below.difference(row)
            if candidates:
                choice = max(candidates, key=lambda i: (quota[i] - used[i], i))
                used[row[place]] -= 1
                used[choice] += 1
                row[place] = choice
                if used[choice] >= quota[choice]:
                    below.discard(choice)
