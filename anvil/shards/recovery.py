"""Finding records in segments again: after a crash, and when the index is lost.

Owns: the scan of a segment's bytes, the recovery of segments whose writer is gone, the removal of leftover temporary files.
Invariant: a record enters the index only if its header's checksum holds and it says itself that it belongs at that place; a
segment is touched only when its writer's session is gone and nobody holds its lock; a recovered segment is sealed, never appended
to. Beside other processes, what is empty and young, or has a row and no file yet, is left alone too: its maker may be about to lock it,
under a session opened since the living ones were asked for. All of this blocks, so callers run it on a thread. Not here: the payload's
checksums (readers and scrub look at those).

Why a tail may be ignored: records behind the last sound one were never acknowledged, since the acknowledgement of a batch comes
after its fdatasync, and the next batch after that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from anvil.base.errors import BadRecord
from anvil.base.limits import INDEX_PAGE_ENTRIES, LEFTOVER_YOUNG_S, RECORD_HEADER_BYTES_MAX, SCAN_WINDOW_BYTES
from anvil.model.records import SessionId
from anvil.shards.format import (
    BLOCK_BYTES,
    RECORD_ALIGN,
    RECORD_MAGIC,
    Record,
    align,
    decode_footer,
    decode_header,
    decode_segment,
)
from anvil.shards.index import Entry, Place, SegmentRow, ShardIndex
from anvil.shards.segments import parse_segment_name, segment_name

log = logging.getLogger(__name__)

_NOWHERE = Place(0, 0, 0, 0, 0)


class Found(NamedTuple):
    """A record whose header is sound. `whole`: its footer is there and sound too."""

    record: Record
    whole: bool

    @property
    def place(self) -> Place:
        record = self.record
        return Place(record.segment, record.offset, record.header_bytes, record.payload_bytes, record.footer_bytes)


class RecoveryReport(msgspec.Struct):
    """What a recovery found and did. `records` were entered into the index; `torn` had a header but no sound footer; `young` may be
    leftovers, or just being made: come again."""

    rebuilt: bool = False
    segments: int = 0
    records: int = 0
    torn: int = 0
    leftovers: int = 0
    young: int = 0


class _Window:
    """A file seen through one buffer of SCAN_WINDOW_BYTES. Blocks the disk cannot read appear as zeros."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._start = 0
        self._data = b""

    def piece(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes (at most a window), fewer at the end of the file."""
        inside = offset - self._start
        if inside < 0 or inside + length > len(self._data):
            self._start, inside = offset, 0
            self._data = self._read(offset)
        return self._data[inside : inside + length]

    def find(self, what: bytes, offset: int) -> int | None:
        """The first place of `what` at or behind `offset`."""
        while offset < self.size:
            self.piece(offset, min(len(what), self.size - offset))
            inside = self._data.find(what, offset - self._start)
            if inside >= 0:
                return self._start + inside
            offset = max(offset + 1, self._start + len(self._data) - len(what) + 1)
        return None

    def _read(self, offset: int) -> bytes:
        try:
            return os.pread(self._fd, SCAN_WINDOW_BYTES, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        parts: list[bytes] = []
        end = min(offset + SCAN_WINDOW_BYTES, self.size)
        while offset < end:
            length = min(BLOCK_BYTES - offset % BLOCK_BYTES, end - offset)
            try:
                parts.append(os.pread(self._fd, length, offset) or bytes(length))
            except OSError:
                parts.append(bytes(length))
            offset += length
        return b"".join(parts)


def walk_segment(fd: int, segment: int, start: int = BLOCK_BYTES) -> Iterator[Found]:
    """The records of a segment from `start` on, resynchronising behind what is damaged: the next place with the magic, aligned,
    whose header passes its checksum and names this very segment and offset. Blocking. Raises OSError."""
    window = _Window(fd)
    at = start
    while (offset := window.find(RECORD_MAGIC, at)) is not None:
        if offset % RECORD_ALIGN:
            at = offset + 1
            continue
        try:
            record = decode_header(window.piece(offset, RECORD_HEADER_BYTES_MAX))
            if (record.segment, record.offset) != (segment, offset):
                raise BadRecord("record belongs to another place")
        except BadRecord:
            at = offset + RECORD_ALIGN
            continue
        whole = _footer_is_sound(window, record)
        yield Found(record, whole)
        at = offset + (align(record.length) if whole else RECORD_ALIGN)


def _footer_is_sound(window: _Window, record: Record) -> bool:
    data = window.piece(record.offset + record.footer_offset, record.footer_bytes)
    try:
        decode_footer(record.header.blob.blob_id, record.header.index, data)
    except BadRecord:
        return False
    return True


def recover(segments: Path, tmp: Path, index: ShardIndex, gone: Callable[[SessionId], bool], *, alone: bool) -> RecoveryReport:
    """Index and seal every segment whose session is gone, and remove the temporary files of such sessions. Segments the index
    does not know are read from their start, others from where the index ends. `alone`: nobody else uses the drive, so nothing is just
    being made. Blocking. Raises OSError."""
    report = RecoveryReport()
    numbers = sorted(number for entry in segments.iterdir() if (number := parse_segment_name(entry.name)) is not None)
    rows = dict(index.segments())  # after the files: a row is made before its file, and goes after it
    for number in numbers:
        row = rows.get(number)
        if row is None or (not row.sealed and gone(row.session)):
            _recover_segment(segments / segment_name(number), number, row, index, gone, report, alone=alone)
    if alone:
        for number in rows.keys() - set(numbers):
            index.drop_segment(number)
    _remove_leftovers(tmp, gone, report, alone=alone)
    return report


def _just_made(fd: int) -> bool:
    """Whether a file nobody has locked may be about to be: nothing is written into one before."""
    stat = os.fstat(fd)
    return stat.st_size == 0 and time.time() - stat.st_mtime < LEFTOVER_YOUNG_S


def _recover_segment(
    path: Path,
    number: int,
    row: SegmentRow | None,
    index: ShardIndex,
    gone: Callable[[SessionId], bool],
    report: RecoveryReport,
    *,
    alone: bool,
) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # unlinked since it was listed
    try:
        if not alone and _just_made(fd):  # before it is locked, too: its maker would find it locked by somebody else
            report.young += 1
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its writer lives, whatever became of the session
        if not alone and _just_made(fd):
            report.young += 1
            return
        known = row is not None
        if row is None:
            session = _session_of(fd, number)
            if session is not None and not gone(session):
                return
            row = SegmentRow(session or bytes(16), os.fstat(fd).st_size)
            index.adopt_segment(number, row)
        used = _index_records(fd, number, row, known, path.parent, index, report)
        size = _cut(fd, used)
        index.seal(number, size)
        report.segments += 1
        after = index.segment(number)
        if after is not None and after.total == 0 and size <= BLOCK_BYTES:
            path.unlink()
            index.drop_segment(number)
    finally:
        os.close(fd)


def _index_records(
    fd: int, number: int, row: SegmentRow, known: bool, segments: Path, index: ShardIndex, report: RecoveryReport
) -> int:
    """Enter the records behind `row.used`; returns where the last one ends. A record without a sound footer is entered only when
    the whole segment is read (its index is lost) and a sound one follows: then it may have been acknowledged, and damaged later,
    and its payload may still be good."""
    page: list[Entry] = []
    doubtful: list[Found] = []
    used = row.used

    def enter(found: Found) -> None:
        nonlocal used
        page.append(_entry(found, segments, index))
        used = max(used, found.record.offset + found.place.space)
        if len(page) >= INDEX_PAGE_ENTRIES:
            index.commit(number, used, page)
            page.clear()
        report.records += 1

    for found in walk_segment(fd, number, row.used):
        if not found.whole:
            report.torn += 1
            if not known:
                doubtful.append(found)
            continue
        for earlier in doubtful:
            enter(earlier)
        doubtful.clear()
        enter(found)
    index.commit(number, used, page)
    return used


def _entry(found: Found, segments: Path, index: ShardIndex) -> Entry:
    """Of two records of one shard the one written later counts; the other is entered as dead bytes."""
    header = found.record.header
    held = index.get(header.blob.blob_id, header.index)
    older = held is not None and held != found.place and _written_us(segments, held) >= found.record.written_us
    return Entry(header.blob.blob_id, header.index, found.place, _NOWHERE if older else None)


def _written_us(segments: Path, place: Place) -> int:
    """When the record at `place` was written; -1 if it cannot be read any more."""
    try:
        fd = os.open(segments / segment_name(place.segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return decode_header(os.pread(fd, place.header_bytes, place.offset)).written_us
        finally:
            os.close(fd)
    except (OSError, BadRecord):
        return -1


def _session_of(fd: int, number: int) -> SessionId | None:
    """None where the first block is damaged: then only the lock tells whether the writer lives."""
    try:
        header = decode_segment(os.pread(fd, BLOCK_BYTES, 0))
    except BadRecord as error:
        log.warning("segment %d: %s", number, error)
        return None
    return header.session


def _cut(fd: int, used: int) -> int:
    """Give back the zeros behind `used` and behind the last byte that is none; returns the new size. Damaged bytes stay, for
    salvage."""
    size = os.fstat(fd).st_size
    end = size
    while end > used:
        start = max(used, end - SCAN_WINDOW_BYTES)
        try:
            content = os.pread(fd, end - start, start).rstrip(b"\0")
        except OSError:
            return size  # unreadable is not empty
        if content:
            end = align(start + len(content))
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
        return end
    return size


def _remove_leftovers(tmp: Path, gone: Callable[[SessionId], bool], report: RecoveryReport, *, alone: bool) -> None:
    for entry in tmp.iterdir():
        try:
            session = bytes.fromhex(entry.name[:32])
        except ValueError:
            continue
        if len(session) != 16 or not gone(session):
            continue
        try:
            fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if not alone and _just_made(fd):  # before it is locked, too: its maker would find it locked by somebody else
                report.young += 1
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.unlink(missing_ok=True)
            report.leftovers += 1
        except BlockingIOError:
            continue  # still being written
        finally:
            os.close(fd)
