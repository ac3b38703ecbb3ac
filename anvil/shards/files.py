"""Large shards: a file of its own for each.

Owns: the paths of large shards, their temporary files, and the one function that publishes them. Invariant: a file under its
final name is a whole record, durable, and never changes. Not here: small shards (segments.py), reading (drive.py).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from anvil._ec.fileio import Guard
from anvil._ec.pieces import Source
from anvil.base.errors import AnvilError, BadRecord, DriveStalled
from anvil.base.limits import DRIVE_FLUSH_BYTES, FOOTER_BYTES_MAX, RECORD_HEADER_BYTES_MAX
from anvil.base.owned import ended
from anvil.base.types import Buffer, Told
from anvil.model.records import BlobId, SessionId
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.shards.format import Record, decode_footer, decode_header, encode_footer, encode_header
from anvil.shards.io import Io, storage_error

log = logging.getLogger(__name__)

Step = Callable[[str], None]
"""Told before each step of a publish; tests raise from it to stop a publish half-way."""


def blob_path(blobs: Path, blob_id: BlobId, index: int) -> Path:
    """`ab/cd/<32 hex digits>.<index>`: made of hex digits only, so nothing a client sends can name another place."""
    name = blob_id.hex()
    return blobs / f"{name[:2]}/{name[2:4]}/{name}.{index}"  # joined once: removing a blob asks for many of these


def parse_blob_name(name: str) -> tuple[BlobId, int] | None:
    stem, _, index = name.partition(".")
    if len(stem) != 32 or not index.isdecimal() or int(index) > 255:
        return None
    try:
        return bytes.fromhex(stem), int(index)
    except ValueError:
        return None


def outer_folders(blobs: Path, partitions: Collection[int] | None = None) -> list[Path]:
    """`blobs/ab` for each that is there (and can hold shards of these partitions): at most 256. Blocking. Raises OSError."""
    wanted = None if partitions is None else {f"{number >> 4:02x}" for number in partitions}
    return [entry for entry in sorted(blobs.iterdir()) if len(entry.name) == 2 and (wanted is None or entry.name in wanted)]


def partitions_in(blobs: Path) -> set[int]:
    """The partitions that have a folder: `ab`, and the first digit of `cd`. At most 65,536 names are read. Blocking. Raises OSError."""
    found: set[int] = set()
    for outer in outer_folders(blobs):
        for inner in os.listdir(outer):  # noqa: PTH208 - names are enough
            try:
                found.add(int(outer.name + inner[:1], 16))
            except ValueError:
                continue  # no folder of ours
    return found


def blobs_in(outer: Path, partitions: Collection[int] | None = None) -> list[tuple[BlobId, int]]:
    """The large shards in one of `outer_folders` (of these partitions). Blocking. Raises OSError."""
    # A partition is the leading 12 bits: ab, and the first digit of cd.
    wanted = None if partitions is None else {f"{number & 15:x}" for number in partitions if f"{number >> 4:02x}" == outer.name}
    inner = (entry for entry in sorted(outer.iterdir()) if wanted is None or entry.name[:1] in wanted)
    found: list[tuple[BlobId, int]] = []
    for folder in inner:
        for entry in sorted(folder.iterdir()):
            name = parse_blob_name(entry.name)
            if name is not None and blob_path(outer.parent, *name) == entry:  # a file put anywhere else is no shard
                found.append(name)
    return found


def unlink_if_there(path: Path) -> bool:
    """Whether it was. Blocking. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def inspect(fd: int, blob_id: BlobId, index: int) -> tuple[Record, ShardFooter]:
    """Header and footer of a large shard's file. Blocking. Raises BadRecord, OSError."""
    record = decode_header(os.pread(fd, RECORD_HEADER_BYTES_MAX, 0))
    check_identity(record, blob_id, index, 0, 0)
    return record, decode_footer(blob_id, index, os.pread(fd, FOOTER_BYTES_MAX + 1, record.footer_offset))


def check_identity(record: Record, blob_id: BlobId, index: int, segment: int, offset: int) -> None:
    """A record must say that it is what its place says it is: misdirected writes are found here. Raises BadRecord."""
    header = record.header
    if (header.blob.blob_id, header.index, record.segment, record.offset) != (blob_id, index, segment, offset):
        raise BadRecord("record belongs to another place")


class FolderSync:
    """fsync of folders, coalesced: whoever asks while one is running shares the next one. One per drive. `guard`: looked at after."""

    def __init__(self, io: Io, guard: Guard | None = None) -> None:
        self._io = io
        self._guard = guard
        self._running: dict[Path, asyncio.Task[None]] = {}
        self._waiting: dict[Path, asyncio.Task[None]] = {}

    async def sync(self, folder: Path) -> None:
        """On return everything that was entered into `folder` before the call is durable. Raises OSError, also where the flush that was
        under way at the call failed."""
        task = self._waiting.get(folder)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._turn(folder, self._running.get(folder)))
            task.add_done_callback(_look)
            self._waiting[folder] = task
        await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is under way."""
        while tasks := [*self._running.values(), *self._waiting.values()]:
            await asyncio.wait(tasks)

    async def _turn(self, folder: Path, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await ended(before)
        self._running[folder] = self._waiting.pop(folder)
        try:
            if before is not None:
                # Entries of ours may have been among those it failed to write, and a second flush would not say so.
                before.result()
            await self._io.sync_folder(str(folder), self._guard)
        finally:
            del self._running[folder]


def _look(task: asyncio.Task[None]) -> None:
    """Those who wait raise it; this is for the case that all of them were cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("folder could not be flushed: %s", error)


class LargeShards:
    """The large shards of one drive, as a writer sees them."""

    def __init__(
        self,
        blobs: Path,
        tmp: Path,
        io: Io,
        session: SessionId,
        label: str,
        *,
        clock_us: Callable[[], int],
        failed: Callable[[OSError], Coroutine[Any, Any, None]],
        freed: Callable[[int], None],
        guard: Guard,
        step: Step = lambda name: None,
    ) -> None:
        self.blobs = blobs
        self.tmp = tmp
        self.io = io
        self.session = session
        self.label = label
        self.clock_us = clock_us
        self.failed = failed
        self.freed = freed
        self.guard = guard
        self.step = step
        self.folders = FolderSync(io, guard)
        self._known: set[Path] = set()  # folders known to exist durably; at most 65,792
        self._number = 0

    async def create(self, header: ShardHeader) -> LargeShardFile:
        """Start a temporary file. Raises OSError. `freed` is told when it is dropped.

        Its room is not reserved: a client would then hold as much of the disk as it declares, for as long as it takes to send it; and on
        some file systems reserving costs as much as writing. A disk that fills up meanwhile is found by the write."""
        self._number += 1
        path = self.tmp / f"{self.session.hex()}-{os.getpid()}-{self._number}.part"
        fd = await self.io.open(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, self.guard)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells the collector of leftovers that somebody writes it
        except BaseException:
            await self.io.close_file(fd, str(path))
            raise
        return LargeShardFile(self, header, path, fd)

    async def make_folder(self, folder: Path) -> None:
        """Make `blobs/ab/cd` durable, each level in its parent."""
        if folder in self._known:
            return
        for level in (folder.parent, folder):
            if level not in self._known:
                await self.io.make_folder(str(level))
                # Also when it was there already: its maker may have died before it was flushed.
                await self.folders.sync(level.parent)
                self._known.add(level)


class LargeShardFile:
    """The `LargeShard` port over one file."""

    def __init__(self, owner: LargeShards, header: ShardHeader, path: Path, fd: int) -> None:
        self._owner = owner
        self._header = header
        self._path = path
        self._fd = fd
        self._head = encode_header(header, footer_bytes=0, segment=0, offset=0, written_us=owner.clock_us())
        self._offset = 0
        self._start = len(self._head)
        self._end = self._start + header.blob.geometry.shard_bytes
        self._unflushed = 0
        self._busy = False
        self._told: Told | None = None  # who waits for the write that was begun
        self._number = 0  # of that write, among the drive's
        self._unwanted = False
        self._published = False
        self._open = True

    async def write(self, frames: Buffer) -> None:
        """Append frames in order; one call at a time. Raises StorageFull, DriveFailed; after DriveStalled the shard is lost."""
        await self._alone(self._append(frames, memoryview(frames).nbytes))

    def begin(self, frames: Buffer | Source, told: Told) -> bool:
        """See the port: what `write` and `write_from` do, but by callbacks, since each task costs as much as the rest of it."""
        self._check_free()
        io = self._owner.io
        self._told = told
        try:
            io.waiting.check()
            if isinstance(frames, Source):
                offset, head, flush = self._advance(frames.length)
                job = io.jobs.write_from(self._fd, offset, frames, head, flush)
            else:
                offset, head, flush = self._advance(memoryview(frames).nbytes)
                job = io.jobs.write(self._fd, offset, [head, frames] if head else [frames], flush)
            self._number = io.start_write(job, self._begun_over, self._tell)
            self._busy = True
        except AnvilError as error:  # the drive hangs already, or the executor takes no more jobs
            self._tell(error.again())
        return True

    def _begun_over(self, error: BaseException | None) -> None:
        """Also where nobody waits for it any more."""
        self._owner.io.end_write(self._number)
        self._busy = False
        if self._unwanted:
            self._owner.io.background(self._close())
        self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        """Whoever waits: once."""
        told, self._told = self._told, None
        if error is not None:
            self._unwanted = True
        if told is None:
            if isinstance(error, OSError):  # nobody waits any more, but the drive is judged by it
                self._owner.io.background(self._owner.failed(error))
            return
        if error is None:
            told(None)
            return
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        known.add_done_callback(lambda known: told(known.exception()))
        self._owner.io.background(self._refuse(known, error))

    async def _refuse(self, known: asyncio.Future[None], error: BaseException) -> None:
        """A write that was begun came to nothing, and the shard with it: `known` when that is cleaned up, or as soon as the drive hangs."""
        owner = self._owner
        owner.io.waiting.add(known)
        if owner.io.waiting.stalled:
            known.set_exception(owner.io.waiting.error())
        try:
            if isinstance(error, OSError):
                await owner.failed(error)
                error = storage_error(error, owner.label)
            if not self._busy:
                await self._close()
        finally:
            owner.io.waiting.discard(known)
            if not known.done():
                known.set_exception(error)

    async def write_from(self, source: Source) -> None:
        """Append the frames that `source` gives, as `write` does."""
        await self._alone(self._append(source, source.length))

    async def publish(self, footer: ShardFooter) -> None:
        """Durable and readable under its name on return. Raises StorageFull, DriveFailed; then nothing is visible."""
        if self._offset != self._end:
            raise ValueError(f"shard is not complete: {max(0, self._offset - self._start)} of {self._end - self._start} bytes")
        await self._alone(self._publish(footer))

    async def abort(self) -> None:
        """Remove what was written; after publish nothing. A call under way ends first: a C thread may be writing to the descriptor, whose
        number, once closed, comes to mean another file. Never raises, and does not wait for a drive that hangs."""
        self._unwanted = True
        if self._open and not self._busy:
            closing = self._owner.io.background(self._close())
            with suppress(DriveStalled):
                await self._owner.io.detached(ended(closing))

    def _check_free(self) -> None:
        if self._busy or self._unwanted or not self._open:
            raise RuntimeError("a large shard takes one call at a time, and none after its end")

    async def _alone(self, work: Coroutine[Any, Any, None]) -> None:
        io = self._owner.io
        try:
            self._check_free()
        except RuntimeError:
            work.close()
            raise
        if io.waiting.stalled:
            work.close()
            self._unwanted = True
            io.background(self._close())
            raise io.waiting.error()
        self._busy = True
        try:
            await io.detached(self._guarded(work))
        except DriveStalled:
            self._unwanted = True  # `_guarded` sees it when the disk answers
            raise

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """`work`, and what must follow it however it ends. Nobody may be waiting any more: see `Io.detached`."""
        try:
            await work
        except OSError as error:
            await self._owner.failed(error)
            self._unwanted = True
            raise storage_error(error, self._owner.label) from error
        except BaseException:
            self._unwanted = True
            raise
        finally:
            if self._unwanted:
                await self._close()
            self._busy = False

    async def _append(self, frames: Buffer | Source, length: int) -> None:
        io = self._owner.io
        offset, head, flush = self._advance(length)
        if isinstance(frames, Source):
            await io.write_from(self._fd, offset, frames, head, sync=flush)
        else:
            await io.write(self._fd, offset, [head, frames], sync=flush)

    def _advance(self, length: int) -> tuple[int, bytes, bool]:
        """Where the next frames go, what goes before them, and whether to flush. (If they do not get there, the shard is lost.) Raises
        ValueError."""
        if max(self._offset, self._start) + length > self._end:
            raise ValueError("more frames than the shard's geometry has")
        offset, head = self._offset, self._head if self._offset == 0 else b""
        self._offset += len(head) + length
        self._unflushed += length
        flush = self._unflushed >= DRIVE_FLUSH_BYTES and self._offset < self._end  # `publish` flushes the last of it
        if flush:
            self._unflushed = 0
        return offset, head, flush

    async def _publish(self, footer: ShardFooter) -> None:
        """The one place where a large shard becomes visible. What a crash leaves behind, step by step:

        1. Before: header and frames are in the temporary file, durable or not. A crash leaves a temporary file that nothing
           reads; recovery removes it once its session is gone and its lock is free. Nobody was told anything.
        2. `flush`: the footer is written, then fdatasync: header, payload, footer and the file's length are durable. If it fails,
           it is not repeated (the kernel may have dropped the pages): the file is removed and the drive turns read-only. A crash
           leaves what 1. leaves, though perhaps whole.
        3. `folder`: `blobs/ab/cd` exists durably. A crash leaves an empty folder.
        4. `link`: the name appears, atomically, and only now, so under the name there is never anything but the whole record.
           A link does not overwrite. If the name is taken, the same shard was published before (a blob id is never reused, and
           its bytes are sealed once): a sound record stays and ours is dropped; a damaged one gives way by rename, atomically.
           A crash before step 5 may lose the name or keep it: nobody was told, and either is right. If it is kept, the shard
           is whole (step 2 came before) and the owner's row decides, as for every shard whose writer died.
        5. `enter`: fsync of the folder: the name is durable. If it fails, the name is taken back as far as possible.
        6. `tidy`: the temporary name goes. A crash leaves a second name for the same file, removed as in 1.

        A drive that hangs holds this up at any of the steps, for as long as it does. Whoever waited was told DriveStalled then, and made
        the shard unwanted: when the drive answers, it goes no further than `folder`; a name already given stays.
        """
        owner, blob_id, index = self._owner, self._header.blob.blob_id, self._header.index
        foot = encode_footer(blob_id, index, footer)
        owner.step("flush")
        await owner.io.write(self._fd, self._end, [foot], sync=True, guard=owner.guard)
        final = blob_path(owner.blobs, blob_id, index)
        owner.step("folder")
        await owner.make_folder(final.parent)
        self._still_wanted()
        owner.step("link")
        ours = await self._link(final)
        owner.step("enter")
        try:
            await owner.folders.sync(final.parent)
            # It stays from here on, wanted or not: whoever looked meanwhile has found it sound, and may have taken it off its debts.
        except OSError:
            if ours:
                await owner.io.unlink(str(final))
            raise
        self._published = True
        owner.step("tidy")
        await self._close()

    def _still_wanted(self) -> None:
        if self._unwanted:
            raise OSError(errno.ECANCELED, "nobody waits for this shard any more")

    async def _link(self, final: Path) -> bool:
        """Give the file its final name. False if a sound record has it already."""
        try:
            await self._owner.io.link(str(self._path), str(final))
        except FileExistsError:
            return await self._owner.io.call(self._replace, final)
        return True

    def _replace(self, final: Path) -> bool:
        """Take the name from a damaged record; False if the record is sound. Blocking."""
        blob_id, index = self._header.blob.blob_id, self._header.index
        try:
            fd = os.open(final, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                inspect(fd, blob_id, index)
            finally:
                os.close(fd)
        except BadRecord:
            log.warning("damaged record of blob %s, shard %d is replaced", blob_id.hex(), index)
            self._path.rename(final)
            return True
        return False

    async def _close(self) -> None:
        """Drop the temporary name and the descriptor; the final name, if given, is not touched."""
        if not self._open:
            return
        self._open = False
        await self._owner.io.close_file(self._fd, str(self._path))
        if not self._published:
            self._owner.freed(self._header.blob.geometry.shard_bytes)

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            os.close(self._fd)  # dropped without publish or abort: the file is collected as a leftover
            self._open = False
