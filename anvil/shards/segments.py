"""Appending small shards to segments, with group commit.

Owns: the active segment of one writer on one drive and the spare one behind it. Invariants: a caller returns only after its
batch's fdatasync succeeded and the index was updated; bytes before `used` are never written again; after any failed write or
flush the segment is sealed and nothing is retried (a kernel that failed a flush has dropped the pages: a second one would lie).
Group commit needs no timer: what queued up while a batch was in flight is the next batch.
Not here: reading, recovery (recovery.py), moving records (compact.py).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from anvil._ec.fileio import Guard
from anvil.base.errors import AnvilError, DriveStalled, SlowDown
from anvil.base.limits import (
    APPEND_BATCH_BYTES,
    APPEND_BATCH_RECORDS,
    APPEND_QUEUE_RECORDS,
    MIB,
    SEGMENT_BYTES,
    SEGMENT_FIRST_BYTES,
    SEGMENT_ZERO_BYTES,
)
from anvil.base.types import Buffer
from anvil.model.records import DriveId, SessionId
from anvil.model.shard import ShardHeader
from anvil.shards.format import BLOCK_BYTES, SegmentHeader, align, encode_header, encode_segment, header_length
from anvil.shards.index import Entry, Place, ShardIndex
from anvil.shards.io import Io

log = logging.getLogger(__name__)

_ZEROS = bytes(1 * MIB)


def segment_name(segment: int) -> str:
    return f"{segment:016x}.seg"


def parse_segment_name(name: str) -> int | None:
    """The segment's number, or None for a file that is no segment."""
    stem, _, suffix = name.partition(".")
    if suffix != "seg" or len(stem) != 16:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


class ActiveSegment:
    """A segment open for appending. Its lock tells other processes that its writer lives."""

    __slots__ = ("fd", "number", "path", "size", "used")

    def __init__(self, number: int, path: Path, fd: int, size: int) -> None:
        self.number = number
        self.path = path
        self.fd = fd
        self.size = size
        self.used = BLOCK_BYTES

    @property
    def start(self) -> int:
        """Where the next batch goes: a fresh block, so that no sector with acknowledged bytes is written again."""
        return align(self.used, BLOCK_BYTES)


class Append:
    """One record on its way into a segment."""

    __slots__ = ("footer", "frames", "future", "given_up", "header", "over", "replaces", "space", "written_us")

    def __init__(self, header: ShardHeader, frames: Buffer, footer: bytes, *, written_us: int, replaces: Place | None) -> None:
        self.header = header
        self.frames = frames
        self.footer = footer
        self.written_us = written_us
        self.replaces = replaces
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
        self.given_up = False  # its caller was told that the drive stalled: it must not be indexed any more
        self.space = align(header_length(header.key) + len(frames) + len(footer))

    def end(self, error: BaseException | None = None) -> None:
        """The record is durable, or failed: its buffers are not used any more."""
        self.over = True
        if self.future.done():
            return  # its waiter was cancelled
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class SegmentWriter:
    """Appends records for one writer session. `failed(OSError)` is told of every failure before the callers are.

    While the drive hangs, so does the batch; whoever waits for it is told DriveStalled, and the records they gave up are not indexed
    when the disk answers after all."""

    def __init__(
        self,
        folder: Path,
        index: ShardIndex,
        io: Io,
        drive_id: DriveId,
        session: SessionId,
        *,
        clock_us: Callable[[], int],
        guard: Guard,
        failed: Callable[[OSError], Awaitable[None]],
        segment_bytes: int = SEGMENT_BYTES,
        first_bytes: int = SEGMENT_FIRST_BYTES,
    ) -> None:
        """`guard` holds while the drive is the one it was; looked at before a batch is written and before its acknowledgement."""
        self._folder = folder
        self._index = index
        self._io = io
        self._drive_id = drive_id
        self.session = session
        self._clock_us = clock_us
        self._guard = guard
        self._failed = failed
        self._segment_bytes = segment_bytes
        self._next_bytes = min(first_bytes, segment_bytes)
        self._queue: deque[Append] = deque()
        self._active: ActiveSegment | None = None
        self._spare: asyncio.Task[ActiveSegment] | None = None
        self._drainer: asyncio.Task[None] | None = None
        self._closed = False
        self.batches = 0
        self.records = 0

    async def append(
        self, header: ShardHeader, frames: Buffer, footer: bytes, *, written_us: int | None = None, replaces: Place | None = None
    ) -> None:
        """Durable and indexed on return. `frames` must not change until then: a cancelled caller whose record is already being
        written is released only when that is over; one whose record still waits takes it out. Raises OSError, SlowDown, and
        what the executor refuses a job with; and DriveStalled, after which `frames` are read, but not used, until the disk answers."""
        self._io.waiting.check()
        if self._closed:
            raise OSError(errno.EBADF, "segment writer is closed")
        if len(self._queue) >= APPEND_QUEUE_RECORDS:
            raise SlowDown
        loop = asyncio.get_running_loop()
        item = Append(
            header, frames, footer, written_us=self._clock_us() if written_us is None else written_us, replaces=replaces
        )
        self._queue.append(item)
        if self._drainer is None:
            self._drainer = loop.create_task(self._drain())
        await self._wait(item)

    async def _wait(self, item: Append) -> None:
        cancelled: asyncio.CancelledError | None = None
        while not item.over:
            future = item.future
            self._io.waiting.add(future)
            try:
                await future
            except asyncio.CancelledError as error:
                if item in self._queue:
                    self._queue.remove(item)
                    raise
                cancelled = error
                if not item.over:  # cancelling the caller cancelled the future: wait on another one
                    item.future = asyncio.get_running_loop().create_future()
            except DriveStalled as error:
                item.given_up = True
                if item in self._queue:
                    self._queue.remove(item)
                raise cancelled or error from None
            except Exception:
                if cancelled is None:
                    raise
            finally:
                self._io.waiting.discard(future)
        if cancelled is not None:
            raise cancelled

    async def close(self) -> None:
        """Write what is queued, seal, drop the spare. The writer cannot be used again."""
        self._closed = True
        while self._drainer is not None:
            await asyncio.wait([self._drainer])
        if self._spare is not None:
            await asyncio.wait([self._spare])
            if not self._spare.cancelled() and self._spare.exception() is None:
                await self._discard(self._spare.result())
            self._spare = None
        if self._active is not None:
            await self._seal(self._active)

    # -- the batch loop

    async def _drain(self) -> None:
        try:
            while self._queue:
                await self._next_batch()
        finally:
            self._drainer = None

    async def _next_batch(self) -> None:
        batch: list[Append] = []
        try:
            segment = await self._room(self._queue[0].space)
            batch = self._take(segment)
            if batch:  # else all were cancelled meanwhile
                await self._write(segment, batch)
        except OSError as error:
            await self._failed(error)
            self._fail(batch or self._take_all(), error)
        except AnvilError as error:  # the executor refused the job (busy, closing): nothing was written, the segment is as it was
            self._fail(batch or self._take_all(), error)
        except BaseException as error:
            # Not a disk's failure: nobody may wait for ever, and what was written is not known.
            if self._active is not None:
                await self._seal(self._active, cut=False)
            self._fail(batch + self._take_all(), OSError(errno.EIO, f"append failed: {type(error).__name__}"))
            raise
        else:
            for item in batch:
                item.end()

    def _take(self, segment: ActiveSegment) -> list[Append]:
        """The next batch: what fits into the segment and into the bounds of a batch."""
        room = min(segment.size - segment.start, max(APPEND_BATCH_BYTES, self._queue[0].space if self._queue else 0))
        batch: list[Append] = []
        while self._queue and len(batch) < APPEND_BATCH_RECORDS and self._queue[0].space <= room:
            room -= self._queue[0].space
            batch.append(self._queue.popleft())
        return batch

    def _take_all(self) -> list[Append]:
        batch = list(self._queue)
        self._queue.clear()
        return batch

    async def _write(self, segment: ActiveSegment, batch: list[Append]) -> None:
        start = offset = segment.start
        buffers: list[Buffer] = []
        entries: list[Entry] = []
        for item in list(batch):
            try:
                head = encode_header(
                    item.header,
                    footer_bytes=len(item.footer),
                    segment=segment.number,
                    offset=offset,
                    written_us=item.written_us,
                )
            except ValueError as error:  # one bad caller fails alone
                batch.remove(item)
                item.end(error)
                continue
            place = Place(segment.number, offset, len(head), len(item.frames), len(item.footer))
            buffers += (head, item.frames, item.footer.ljust(item.space - len(head) - len(item.frames), b"\0"))
            entries.append(Entry(item.header.blob.blob_id, item.header.index, place, item.replaces))
            offset += item.space
        if not entries:
            return
        try:
            await self._io.write(segment.fd, start, buffers, sync=True, guard=self._guard)
            # On the loop, 20 us: the disk has answered just now, and on a thread of Python every small PUT would wait for the GIL.
            async with self._io.index_lock:
                entries = [entry for entry, item in zip(entries, batch, strict=True) if not item.given_up]
                self._index.commit(segment.number, offset, entries)
        except OSError:
            await self._seal(segment, cut=False)
            raise
        segment.used = offset
        self.batches += 1
        self.records += len(batch)
        if self._spare is None and segment.used * 4 > segment.size:
            self._spare = asyncio.get_running_loop().create_task(self._create())
            self._spare.add_done_callback(_look)

    @staticmethod
    def _fail(batch: list[Append], error: OSError | AnvilError) -> None:
        for item in batch:
            item.end(error)

    # -- segments

    async def _room(self, need: int) -> ActiveSegment:
        """The active segment if `need` bytes fit, else the next one."""
        if self._active is not None:
            if self._active.size - self._active.start >= need:
                return self._active
            await self._seal(self._active)
        spare, self._spare = self._spare, None
        if spare is not None:
            await asyncio.wait([spare])
            if spare.exception() is None:
                if spare.result().size - spare.result().start >= need:
                    self._active = spare.result()
                    return self._active
                await self._discard(
                    spare.result()
                )  # closed: it must never be taken for the active one, should the next line fail
        self._active = await self._create(need)
        return self._active

    async def _create(self, need: int = 0) -> ActiveSegment:
        """A new segment, filled with zeros and flushed, so that appending to it changes no metadata of the file system."""
        size = max(self._next_bytes, align(need + BLOCK_BYTES, BLOCK_BYTES))
        number = await self._io.index_call(self._index.new_segment, self.session, size)
        path = self._folder / segment_name(number)
        fd = await self._io.open(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, self._guard)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await self._io.reserve(fd, size)
            first = encode_segment(SegmentHeader(number, size, self._drive_id, self.session, self._clock_us()))
            await self._zero(fd, first, size)
            await self._io.sync_folder(str(self._folder))
        except BaseException:
            await self._discard(ActiveSegment(number, path, fd, size))
            raise
        self._next_bytes = min(self._segment_bytes, size * 4)
        return ActiveSegment(number, path, fd, size)

    async def _zero(self, fd: int, first: bytes, size: int) -> None:
        offset = 0
        while offset < size:
            end = min(offset + SEGMENT_ZERO_BYTES, size)
            buffers: list[Buffer] = [first] if offset == 0 else []
            left = end - offset - (len(first) if offset == 0 else 0)
            while left > 0:
                buffers.append(memoryview(_ZEROS)[: min(left, len(_ZEROS))])
                left -= len(_ZEROS)
            await self._io.write(fd, offset, buffers, sync=True)
            offset = end

    async def _seal(self, segment: ActiveSegment, *, cut: bool = True) -> None:
        """Close for ever. With `cut`, give back the unused end; without, leave the file as the failure left it."""
        if self._active is segment:
            self._active = None
        if segment.used == BLOCK_BYTES and cut:
            await self._discard(segment)
            return
        try:
            await self._io.index_call(self._cut_and_mark, segment, cut)
        except OSError as error:
            # It stays unsealed in the index: recovery seals it. Nothing acknowledged depends on it.
            log.warning("segment %d could not be sealed: %s", segment.number, error)
        await self._io.close_file(segment.fd)

    def _cut_and_mark(self, segment: ActiveSegment, cut: bool) -> None:
        if cut:
            os.ftruncate(segment.fd, segment.used)
        self._index.seal(segment.number, segment.used if cut else None)

    async def _discard(self, segment: ActiveSegment) -> None:
        """Remove a segment that holds nothing."""
        try:
            await self._io.unlink(str(segment.path))
            await self._io.index_call(self._index.drop_segment, segment.number)
        except OSError as error:
            log.warning("empty segment %d could not be removed: %s", segment.number, error)
        await self._io.close_file(segment.fd)


def _look(task: asyncio.Task[ActiveSegment]) -> None:
    """A spare that failed is created again, and fails aloud, when it is needed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("next segment could not be prepared: %s", error)
