"""The index of a drive's segments in LMDB: which record holds which shard, and how much of each segment is dead.

Owns: one LMDB environment per drive, shared by all processes that use the drive. Invariant: every change is one transaction, and
a segment's `total` and `dead` bytes always agree with the entries. LMDB runs without sync: a killed process leaves it consistent
(the page cache survives), a power cut may not, and then `recovery` rebuilds it from the segments. Not here: files; large shards,
which are found by their path.

LMDB reads through a memory map, so a sector that the disk cannot read is no error but SIGBUS, which ends the process. What follows
(store.py): the supervisor starts it again; it finds the marker of its predecessor, which did not leave in order, and reads the whole
file (`check_readable`) before it maps it; what cannot be read condemns the index, all other processes let go of it at their next
probe, and the first one to come then rebuilds it from the segments.

Key of a shard: partition (12 leading bits of the blob id, u16 big-endian), blob id, index (u8); so one cursor walks a partition.
"""

from __future__ import annotations

import errno
import math
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import lmdb

from anvil.base.limits import INDEX_MAP_BYTES, SCAN_WINDOW_BYTES
from anvil.model.records import BlobId, SessionId
from anvil.shards.format import BLOCK_BYTES, align

_PLACE = struct.Struct("<QQIII")
_SEGMENT_ROW = struct.Struct("<16sQQQQB7x")
_U64 = struct.Struct(">Q")
_NEXT_SEGMENT = b"next-segment"
_KEY_BYTES = 2 + 16 + 1
# BadTxnError: every transaction here is new, so only what it met on a page can have spoiled it.
_DAMAGE = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


class Place(NamedTuple):
    """Where a record is inside the segments, and how it is laid out. Bytes."""

    segment: int
    offset: int
    header_bytes: int
    payload_bytes: int
    footer_bytes: int

    @property
    def length(self) -> int:
        return self.header_bytes + self.payload_bytes + self.footer_bytes

    @property
    def space(self) -> int:
        """What the record occupies, padding included: the unit of `total` and `dead`."""
        return align(self.length)


class Entry(NamedTuple):
    """A shard to be indexed. With `replaces`, only if the index still names that place (a record moved by compaction)."""

    blob_id: BlobId
    shard: int  # its index within the blob
    place: Place
    replaces: Place | None = None


class SegmentRow(NamedTuple):
    """The state of a segment. `used`: everything before it is indexed. `total`, `dead`: bytes of records ever appended, and of
    those that no entry names any more."""

    session: SessionId
    size: int
    used: int = BLOCK_BYTES
    total: int = 0
    dead: int = 0
    sealed: bool = False

    @property
    def empty(self) -> bool:
        return self.dead >= self.total


def partition_key(partition: int) -> bytes:
    """What the keys of a partition begin with."""
    return partition.to_bytes(2, "big")


def shard_key(blob_id: BlobId, index: int) -> bytes:
    return bytes((blob_id[0] >> 4, (blob_id[0] & 0x0F) << 4 | blob_id[1] >> 4)) + blob_id + bytes((index,))


class IndexDamaged(OSError):
    """The index contradicts itself or cannot be read: only rebuilding it helps."""

    def __init__(self, why: object) -> None:
        super().__init__(errno.EIO, f"index: {why}")


def check_readable(folder: Path, patience_s: float = math.inf) -> bool:
    """Read the index's file from end to end, past the map. False if that takes longer than `patience_s`. Blocking. Raises IndexDamaged
    where the disk cannot read it, OSError."""
    deadline = time.monotonic() + patience_s
    try:
        fd = os.open(folder / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        offset, size = 0, os.fstat(fd).st_size
        while offset < size:
            if time.monotonic() > deadline:
                return False
            count = len(os.pread(fd, SCAN_WINDOW_BYTES, offset))
            if not count:
                raise IndexDamaged("its file ends before its length")
            offset += count
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise IndexDamaged(error.strerror) from error
    finally:
        os.close(fd)
    return True


class _Errors:
    """LMDB's errors as OSError, so that the drive has one kind to class. `with` it: one made by `contextlib` costs every read of a small
    object a twentieth of its time."""

    __slots__ = ("_index",)

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def __enter__(self) -> None:
        if self._index.damaged:
            raise IndexDamaged("it was given up")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, lmdb.Error):
            return
        if isinstance(error, (lmdb.MapFullError, lmdb.DbsFullError)):
            raise OSError(errno.ENOSPC, "index is full") from error
        if isinstance(error, _DAMAGE):
            self._index.damaged = True
            raise IndexDamaged(error) from error
        full = "No space left" in str(error) or "quota" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, f"index: {error}") from error


class ShardIndex:
    """All methods are short and synchronous; those that write may wait for another process's transaction (well under a
    millisecond: every writer keeps its transactions small). Raises OSError: ENOSPC where disk or map are full, IndexDamaged, else EIO.

    `damaged`: set where LMDB finds it so, or by whoever learns it otherwise; from then on the map is not touched any more."""

    def __init__(self, folder: Path, *, map_bytes: int = INDEX_MAP_BYTES) -> None:
        self.damaged = False
        self._errors = _Errors(self)
        with self._errors:
            self._env = lmdb.open(
                str(folder), map_size=map_bytes, max_dbs=3, sync=False, readahead=False, mode=0o600, max_readers=512
            )
            try:
                # Before any page is touched: what lies behind the end of the file would be SIGBUS as well.
                needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
                if (folder / "data.mdb").stat().st_size < needed:
                    raise IndexDamaged("its file is shorter than its pages")
                self._open_tables()
            except BaseException:
                self._env.close()
                raise

    def _open_tables(self) -> None:
        self._env.reader_check()  # slots of readers that were killed
        self._shards = self._env.open_db(b"shards")
        self._segments = self._env.open_db(b"segments")
        self._meta = self._env.open_db(b"meta")

    # -- shards

    def get(self, blob_id: BlobId, index: int) -> Place | None:
        with self._errors, self._env.begin(self._shards) as txn:
            value = txn.get(shard_key(blob_id, index))
        return Place._make(_PLACE.unpack(value)) if value is not None else None

    def commit(self, segment: int, used: int, entries: Sequence[Entry]) -> None:
        """Index a batch that was appended to `segment` up to `used`. Places that are no longer named become dead bytes."""
        with self._errors, self._env.begin(write=True) as txn:
            self._enter(txn, segment, used, entries)

    def _enter(self, txn: lmdb.Transaction, segment: int, used: int, entries: Sequence[Entry]) -> None:
        row = self._row(txn, segment)
        if row is None:
            raise OSError(errno.EIO, "segment is not in the index")
        total, dead = row.total, row.dead
        for entry in entries:
            key = shard_key(entry.blob_id, entry.shard)
            total += entry.place.space
            held = txn.get(key, db=self._shards)
            old = Place._make(_PLACE.unpack(held)) if held is not None else None
            if entry.replaces is not None and old != entry.replaces:
                dead += entry.place.space  # removed or rewritten while it was being moved
                continue
            txn.put(key, _PLACE.pack(*entry.place), db=self._shards)
            if old is None:
                continue
            if old.segment == segment:
                dead += old.space
            else:
                self._add_dead(txn, old)
        self._set_row(txn, segment, row._replace(used=used, total=total, dead=dead))

    def remove(self, blob_id: BlobId, index: int, *, only: Place | None = None) -> Place | None:
        """Forget a shard (with `only`, if it is there); returns where it was. One that is not there costs writers nothing."""
        if self.get(blob_id, index) is None:
            return None
        key = shard_key(blob_id, index)
        with self._errors, self._env.begin(write=True) as txn:
            value = txn.get(key, db=self._shards)
            if value is None:
                return None
            place = Place._make(_PLACE.unpack(value))
            if only is not None and place != only:
                return None
            txn.delete(key, db=self._shards)
            self._add_dead(txn, place)
            return place

    def page(self, after: bytes, limit: int, end: bytes = b"\xff" * 3) -> list[tuple[bytes, Entry]]:
        """Up to `limit` entries with keys above `after` (b"" = from the start) and below `end`, each with its key to continue from."""
        found: list[tuple[bytes, Entry]] = []
        with self._errors, self._env.begin(self._shards) as txn, txn.cursor() as cursor:
            more = cursor.set_range(after + b"\0") if after else cursor.first()
            while more and len(found) < limit:
                key, value = bytes(cursor.key()), cursor.value()
                if key >= end:
                    break
                if len(key) == _KEY_BYTES:
                    found.append((key, Entry(key[2:18], key[18], Place._make(_PLACE.unpack(value)))))
                more = cursor.next()
        return found

    def partitions(self) -> set[int]:
        """Those with an entry: one seek for each."""
        found: set[int] = set()
        with self._errors, self._env.begin(self._shards) as txn, txn.cursor() as cursor:
            more = cursor.first()
            while more:
                number = int.from_bytes(cursor.key()[:2], "big")
                found.add(number)
                more = cursor.set_range(partition_key(number + 1))
        return found

    def count(self) -> int:
        with self._errors, self._env.begin() as txn:
            return int(txn.stat(self._shards)["entries"])

    # -- segments

    def new_segment(self, session: SessionId, size: int) -> int:
        """A number never used before on this drive, with its row. The row comes before the file: see `recovery`."""
        with self._errors, self._env.begin(write=True) as txn:
            value = txn.get(_NEXT_SEGMENT, db=self._meta)
            number: int = _U64.unpack(value)[0] if value is not None else 1
            txn.put(_NEXT_SEGMENT, _U64.pack(number + 1), db=self._meta)
            self._set_row(txn, number, SegmentRow(session, size))
            return number

    def adopt_segment(self, segment: int, row: SegmentRow) -> None:
        """Enter a segment that was found on disk (rebuilding); later ones get higher numbers."""
        with self._errors, self._env.begin(write=True) as txn:
            value = txn.get(_NEXT_SEGMENT, db=self._meta)
            if value is None or _U64.unpack(value)[0] <= segment:
                txn.put(_NEXT_SEGMENT, _U64.pack(segment + 1), db=self._meta)
            self._set_row(txn, segment, row)

    def seal(self, segment: int, size: int | None = None) -> None:
        """Nothing is appended any more. `size`: new length of the file, if it was cut."""
        with self._errors, self._env.begin(write=True) as txn:
            row = self._row(txn, segment)
            if row is not None:
                self._set_row(txn, segment, row._replace(sealed=True, size=row.size if size is None else size))

    def drop_segment(self, segment: int) -> None:
        """Forget a segment whose file is gone."""
        with self._errors, self._env.begin(write=True) as txn:
            txn.delete(_U64.pack(segment), db=self._segments)

    def segment(self, segment: int) -> SegmentRow | None:
        with self._errors, self._env.begin() as txn:
            return self._row(txn, segment)

    def segments(self) -> list[tuple[int, SegmentRow]]:
        """All segments, ascending (a 16 TiB drive has about 260,000)."""
        with self._errors, self._env.begin(self._segments) as txn, txn.cursor() as cursor:
            return [(_U64.unpack(key)[0], _unpack_row(value)) for key, value in cursor]

    # -- whole

    def sync(self) -> None:
        with self._errors:
            self._env.sync(True)

    def close(self) -> None:
        self._env.close()

    def _row(self, txn: lmdb.Transaction, segment: int) -> SegmentRow | None:
        value = txn.get(_U64.pack(segment), db=self._segments)
        return _unpack_row(value) if value is not None else None

    def _set_row(self, txn: lmdb.Transaction, segment: int, row: SegmentRow) -> None:
        txn.put(_U64.pack(segment), _SEGMENT_ROW.pack(*row), db=self._segments)

    def _add_dead(self, txn: lmdb.Transaction, place: Place) -> None:
        row = self._row(txn, place.segment)
        if row is not None:
            self._set_row(txn, place.segment, row._replace(dead=row.dead + place.space))


def _unpack_row(value: bytes | memoryview) -> SegmentRow:
    session, size, used, total, dead, sealed = _SEGMENT_ROW.unpack(value)
    return SegmentRow(session, size, used, total, dead, bool(sealed))
