"""A layout: for each partition of the blob-id space, the ordered drives that hold its shards.

Owns: the packed form of a layout, and what follows from one or two of them. Invariants: a layout is a pure function of (drives, width,
predecessor); a drive appears at most once in a partition. Of a partition's primaries
- no two are on one node, where there are nodes enough; else at most ceil(shards / nodes): what survives the loss of m shards survives
  the loss of m nodes;
- at most ceil(shards / zones) are in one zone, where the zones' sizes and the rule before allow it.
Within these rules primaries are shared out by capacity, those at each place of the rows alone as well as all together: small objects use
only the first places, and so do reads. Spares prefer nodes that the partition does not have yet, then the same. What the predecessor says
stays wherever it fits, at its place: a node that joins n others takes about 1/(n+1) of each place, one that leaves moves only its own and
what balance needs. Not here: how that is computed (`spread.py`), when a layout changes, and who moves data (that is the cluster's
business).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from anvil.base.limits import LAYOUT_SLICES
from anvil.model.quotas import EMPTY, Rows, Tree
from anvil.model.records import BlobId, DriveId
from anvil.model.spread import spread

PARTITION_BITS = 12
PARTITIONS = 1 << PARTITION_BITS
assert PARTITIONS % LAYOUT_SLICES == 0


class LayoutDrive(msgspec.Struct, frozen=True):
    drive_id: DriveId
    node_id: bytes
    capacity_bytes: int
    zone: str = ""


class Layout(msgspec.Struct, frozen=True):
    """`places`: PARTITIONS x width indexes into `drives`, row by row, as little-endian u16. `primaries`: how many of a row hold shards, the
    rest are spares; 0 in layouts of before that was recorded."""

    version: int
    width: int
    drives: tuple[LayoutDrive, ...]
    places: bytes
    primaries: int = 0

    def order(self, blob_id: BlobId) -> tuple[int, ...]:
        """Indexes into `drives` for that blob, primaries first, then spares."""
        row = partition(blob_id) * self.width
        return struct.unpack_from(f"<{self.width}H", self.places, row * 2)

    def row(self, number: int) -> tuple[int, ...]:
        """The same for all blobs of a partition."""
        return struct.unpack_from(f"<{self.width}H", self.places, number * self.width * 2)

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


def slice_partitions(number: int) -> range:
    """The partitions of one of the LAYOUT_SLICES slices, in which a change of layout is moved: neighbours, so blob ids of one range."""
    size = PARTITIONS // LAYOUT_SLICES
    return range(number * size, (number + 1) * size)


def slice_of(blob_id: BlobId) -> int:
    """Which of the LAYOUT_SLICES slices that blob is in."""
    return partition(blob_id) * LAYOUT_SLICES // PARTITIONS


def finest_slices(number: int, of: int) -> tuple[int, int]:
    """The first and the last of the LAYOUT_SLICES slices that make up slice `number`, where there are only `of`, each of several."""
    if LAYOUT_SLICES % of or not 0 <= number < of:
        raise ValueError(f"there is no slice {number} of {of}")
    size = LAYOUT_SLICES // of
    return number * size, number * size + size - 1


def moved(old: Layout, new: Layout) -> frozenset[int]:
    """The partitions whose primaries differ: only of their blobs can a shard be elsewhere than where `new` wants it. Shards are told apart
    by their place in the row, so two drives that changed places have moved."""
    count = max(old.primaries or old.width, new.primaries or new.width)
    numbers = {drive.drive_id: number for number, drive in enumerate(new.drives)}
    renamed = [numbers.get(drive.drive_id, EMPTY) for drive in old.drives]
    before = struct.unpack(f"<{PARTITIONS * old.width}H", old.places)
    after = struct.unpack(f"<{PARTITIONS * new.width}H", new.places)
    different = set()
    for number in range(PARTITIONS):
        row = [renamed[index] for index in before[number * old.width : number * old.width + min(count, old.width)]]
        if row != list(after[number * new.width : number * new.width + min(count, new.width)]):
            different.add(number)
    return frozenset(different)


def compute(drives: Sequence[LayoutDrive], shards: int, spares: int, previous: Layout | None = None) -> Layout:
    """A layout of `shards` primaries and up to `spares` spares per partition (fewer where there are not enough drives). Takes some 0.1 s
    for ten drives and 0.7 s for 256, so not for an event loop."""
    ordered = tuple(sorted(drives, key=lambda drive: drive.drive_id))
    if not ordered:
        raise ValueError("a layout needs at least one drive")
    primaries = min(shards, len(ordered))
    width = min(shards + spares, len(ordered))
    tree = Tree(
        [drive.node_id for drive in ordered], [drive.zone for drive in ordered], [drive.capacity_bytes for drive in ordered]
    )
    before = None if previous is None else _renamed(ordered, previous)
    rows = spread(tree, PARTITIONS, primaries, width - primaries, before)
    places = struct.pack(f"<{PARTITIONS * width}H", *(drive for row in rows for drive in row))
    version = 1 if previous is None else previous.version + 1
    return Layout(version=version, width=width, drives=ordered, places=places, primaries=primaries)


def _renamed(drives: tuple[LayoutDrive, ...], previous: Layout) -> Rows:
    """What the predecessor had, in terms of the new drive indexes; EMPTY for drives that left."""
    numbers = {drive.drive_id: number for number, drive in enumerate(drives)}
    renamed = [numbers.get(drive.drive_id, EMPTY) for drive in previous.drives]
    return [[renamed[old] for old in row] for row in previous.rows()]
