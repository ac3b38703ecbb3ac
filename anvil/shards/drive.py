"""`LocalDrive`: one folder on a local disk as the engine's `Drive`.

Owns: the drive's state (missing, failed, full) and the face of the package. Invariant: what a drive returns as a shard has a
header whose checksum holds and that names this blob and index; a write is refused, never half-done, once the drive is not what
it was. Not here: bytes (format.py), commits (segments.py, files.py), reads (reader.py), what is open (store.py), content
checksums (the engine).

States: *missing* (folder or identity gone, or another drive in its place; ends by itself when the same drive returns), *failed*
(a write or flush failed: read-only until the process restarts, since what the kernel still holds is not known), *full* (ends by
itself when there is room).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from anvil._ec.pieces import Sink
from anvil.base.errors import AnvilError, BadRecord, DriveFailed, StorageFull, Unavailable
from anvil.base.limits import (
    DRIVE_FLOOR_BYTES,
    DRIVE_PROBE_S,
    INDEX_CHECK_START_S,
    INDEX_PAGE_ENTRIES,
    SEGMENT_BYTES,
    SEGMENT_FIRST_BYTES,
    SEGMENT_SHARD_BYTES_MAX,
)
from anvil.base.types import Buffer
from anvil.model.records import BlobId, DriveId, SessionId
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace
from anvil.shards import reader
from anvil.shards.compact import CompactionReport, Hold, OwnerCheck, compact
from anvil.shards.files import LargeShardFile, Step, blob_path, blobs_in, outer_folders, partitions_in
from anvil.shards.format import encode_footer
from anvil.shards.identity import identity_place
from anvil.shards.index import IndexDamaged, partition_key
from anvil.shards.io import FULL_ERRNOS, Executor, Io, IoJobs, storage_error
from anvil.shards.recovery import RecoveryReport, recover
from anvil.shards.store import Folder, Store

log = logging.getLogger(__name__)

_PASSING_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EBADF})
"""Failures of this process, not of the drive."""


class DriveStats(msgspec.Struct):
    """Counters since this process opened the drive."""

    puts: int = 0
    large: int = 0
    removed: int = 0
    write_errors: int = 0
    read_errors: int = 0
    damaged: int = 0  # records whose header or footer was found damaged
    vanished: int = 0  # times the folder went away


class DriveSettings(msgspec.Struct, frozen=True):
    """What tests and small disks set differently."""

    floor_bytes: int = DRIVE_FLOOR_BYTES
    segment_bytes: int = SEGMENT_BYTES
    segment_first_bytes: int = SEGMENT_FIRST_BYTES
    probe_s: float = DRIVE_PROBE_S
    step: Step = lambda name: None  # told before each step of publishing a large shard


class LocalDrive:
    """The `Drive` port (anvil/engine/ports.py) over a folder. Made by `attach`; used from one event loop; several processes may
    each have one on the same folder, but a process only one."""

    def __init__(
        self, path: Path, label: str, io: Io, session: SessionId, hold: Hold, clock_us: Callable[[], int], settings: DriveSettings
    ) -> None:
        self.path = path
        self.label = label
        self.drive_id: DriveId = b""
        self.stats = DriveStats()
        self.reason: str | None = None  # why it is not writable, in words for an operator
        self.free_bytes = 0
        self.capacity_bytes = 0
        self._io = io
        self._session = session
        self._hold = hold
        self._clock_us = clock_us
        self._settings = settings
        self._store: Store | None = None
        self._missing = False
        self._failed = False
        self._full = False
        self._probing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def attach(
        cls,
        path: Path,
        *,
        expected: DriveId | None,
        create: bool,
        executor: Executor,
        jobs: IoJobs,
        session: SessionId,
        label: str | None = None,
        hold: Hold = lambda: False,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        settings: DriveSettings | None = None,
    ) -> Self:
        """Attach the folder, recovering it if it was not left cleanly. A folder that is no drive is initialised only with
        `create`, without `expected`, and if it is empty. With `expected` and that drive not there, the result is a drive that is
        neither readable nor writable, until the right folder appears. Raises DriveFailed, InvalidSetting."""
        drive = cls(path, label or path.name, Io(executor, jobs), session, hold, clock_us, settings or DriveSettings())
        try:
            await drive._attach(expected, create)
        except DriveFailed as error:
            if expected is None:
                raise
            drive.drive_id = expected
            drive._vanish(error.message)
        drive._watcher = asyncio.get_running_loop().create_task(drive._watch())
        return drive

    async def close(self) -> None:
        """Finish what is queued, seal, and leave the folder; clean if this was its last user and nothing failed."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        async with self._probing:
            await self._detach()

    @property
    def executor(self) -> Executor:
        """What runs this drive's jobs; whoever made it closes it after the drive."""
        return self._io.executor

    # -- state

    @property
    def readable(self) -> bool:
        return self._store is not None and not self._missing

    @property
    def writable(self) -> bool:
        return self.readable and not self._failed and not self._full

    @property
    def recovered(self) -> RecoveryReport | None:
        """What was recovered when this process attached the folder; None if another one was using it already."""
        return self._store.folder.recovered if self._store is not None else None

    async def probe(self) -> None:
        """Look whether the folder is there and how much room it has; attach it again if it came back. Done every `probe_s` by the
        drive itself. Never raises for the drive's failures."""
        async with self._probing:
            place = await asyncio.to_thread(identity_place, self.path)
            if place is None:
                self._vanish("its folder is missing")
                return
            store = self._store
            if store is None or store.folder.place != place or await self._distrusted(store):
                self._vanish("another folder is in its place, or its index was given up")
                await self._detach()
                try:
                    await self._attach(self.drive_id, create=False)
                except AnvilError as error:
                    self._vanish(error.message)
                    return
                log.warning("drive %s is back", self.label)
            elif self._missing:
                log.warning("drive %s is back", self.label)
            self._missing = False
            await self._measure()

    async def _distrusted(self, store: Store) -> bool:
        try:
            return await asyncio.to_thread(store.folder.distrusted)
        except OSError as error:
            log.warning("drive %s: whether its index is good cannot be read: %s", self.label, error)
            return False  # a worn sector under this one file is no reason to leave the drive

    async def _attach(self, expected: DriveId | None, create: bool) -> None:
        try:
            patience_s = INDEX_CHECK_START_S if self._watcher is None else math.inf  # a start does not wait for a long check
            folder = await asyncio.to_thread(
                Folder, self.path, self.label, expected, create, self._clock_us(), patience_s=patience_s
            )
        except OSError as error:
            raise storage_error(error, self.label) from error
        self.drive_id = folder.drive_id
        self._store = Store(
            folder,
            self._io,
            self._session,
            self.label,
            clock_us=self._clock_us,
            guard=self._guard,
            failed=self._write_failed,
            step=self._settings.step,
            segment_bytes=self._settings.segment_bytes,
            first_bytes=self._settings.segment_first_bytes,
        )
        await self._measure()

    async def _detach(self) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        await store.close()
        try:
            await asyncio.to_thread(store.folder.close)
        except OSError as error:
            log.warning("drive %s could not be left cleanly: %s", self.label, error)

    async def _measure(self) -> None:
        try:
            stat = await asyncio.to_thread(os.statvfs, self.path)
        except OSError as error:
            self._vanish(f"its folder cannot be read ({os.strerror(error.errno or errno.EIO)})")
            return
        self.free_bytes = stat.f_bavail * stat.f_frsize
        self.capacity_bytes = stat.f_blocks * stat.f_frsize
        self._full = self.free_bytes < self._settings.floor_bytes
        if not self._failed:
            self.reason = "full" if self._full else None
        if self._store is not None:
            self._store.files.discard_unlinked()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.probe_s)
            try:
                await self.probe()
            except Exception:
                log.exception("probe of drive %s failed", self.label)

    def _vanish(self, reason: str) -> None:
        if not self._missing:
            self._missing = True
            self.stats.vanished += 1
            log.error("drive %s is missing: %s", self.label, reason)
        self.reason = reason

    def _guard(self) -> None:
        """Raises OSError(ENODEV) if the folder is not the attached one any more."""
        store = self._store
        if store is None or self._missing or identity_place(self.path) != store.folder.place:
            raise OSError(errno.ENODEV, "drive is missing")

    def _write_failed(self, error: OSError) -> None:
        """Class a failed write: it decides what the drive is good for from now on."""
        self.stats.write_errors += 1
        if error.errno in FULL_ERRNOS:
            self._full = True
            self.reason = "full"
            return
        store = self._store
        if store is None or identity_place(self.path) != store.folder.place:
            self._vanish("its folder is missing")
        elif isinstance(error, IndexDamaged):
            self._vanish("its index is damaged and will be rebuilt")
        elif error.errno not in _PASSING_ERRNOS and not self._failed:
            self._failed = True
            self.reason = f"read-only after a failed write ({os.strerror(error.errno or errno.EIO)})"
            log.error("drive %s is %s", self.label, self.reason)

    def _reading(self) -> Store:
        if self._store is None or self._missing:
            raise DriveFailed(drive=self.label, reason="missing")
        return self._store

    def _writing(self, payload: int) -> Store:
        store = self._reading()
        if self._failed:
            raise DriveFailed(drive=self.label, reason="read-only")
        if self._full or self.free_bytes - payload < self._settings.floor_bytes:
            raise StorageFull(drive=self.label)
        self.free_bytes -= payload  # an estimate until the next measurement
        return store

    @contextmanager
    def _reads(self) -> Iterator[None]:
        try:
            yield
        except BadRecord:
            self.stats.damaged += 1
            raise
        except OSError as error:
            self.stats.read_errors += 1
            if self._gone():
                self._vanish("its folder is missing")
            raise storage_error(error, self.label) from error

    # -- the port

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        """A small shard (at most SEGMENT_SHARD_BYTES_MAX), whole: durable and indexed on return. An older record of the same
        shard is forgotten. `frames` must not change until this returns or raises. Raises StorageFull, DriveFailed, SlowDown."""
        view = memoryview(frames).cast("B")
        _check_header(header)
        payload = header.blob.geometry.shard_bytes
        if len(view) != payload or payload > SEGMENT_SHARD_BYTES_MAX:
            raise ValueError(f"{len(view)} bytes are not the frames of a small shard of {payload}")
        store = self._writing(len(view))
        foot = encode_footer(header.blob.blob_id, header.index, footer)
        try:
            await store.writer.append(header, view, foot)
        except OSError as error:
            raise storage_error(error, self.label) from error
        self.stats.puts += 1

    async def create(self, header: ShardHeader) -> LargeShardFile:
        """A shard in a file of its own, begun where there is room for all of it now. To replace a damaged one, `remove` it first:
        publishing keeps a record whose header and footer are sound. Raises StorageFull, DriveFailed."""
        _check_header(header)
        store = self._writing(header.blob.geometry.shard_bytes)
        try:
            shard = store.large.create(header)
        except OSError as error:
            self._write_failed(error)
            raise storage_error(error, self.label) from error
        self.stats.large += 1
        return shard

    async def open(self, blob_id: BlobId, index: int) -> ShardPlace | None:
        """Find a shard; None if this drive does not have it. Raises BadRecord, DriveFailed."""
        store = self._reading()
        with self._reads():
            place = await reader.find(store, blob_id, index)
            if place is None:
                self._present()
        return place

    async def read(self, place: ShardPlace, offset: int, view: memoryview) -> int:
        """Payload bytes from `offset` into `view`; returns how many (short = truncated, or gone). Raises DriveFailed."""
        store = self._reading()
        with self._reads():
            count = await reader.read(store, place, offset, view)
            if count < len(view):
                self._present()
        return count

    async def read_into(self, place: ShardPlace, offset: int, sink: Sink) -> None:
        """Payload bytes from `offset` into `sink`; see the port. Raises DriveFailed."""
        store = self._reading()
        with self._reads():
            await reader.read_into(store, place, offset, sink)
            if sink.wants:
                self._present()

    async def verify(self, place: ShardPlace) -> ShardFooter:
        """Check that a shard's record is whole, apart from its payload's own checksums. Raises BadRecord, DriveFailed."""
        store = self._reading()
        with self._reads():
            return await reader.verify(store, place)

    async def remove(self, blob_id: BlobId, index: int, *, superseded: bool = False) -> bool:
        """Forget a shard. Its space comes back at once (a file; a segment with nothing else living) or by compaction. A power cut
        may bring it back: the owner's row decides, not the drive. Raises Unavailable while unlinking is on hold (but for a
        `superseded` shard: see the port), DriveFailed."""
        if self._hold() and not superseded:
            raise Unavailable("removal is on hold while a backup is taken")
        store = self._reading()
        path = blob_path(store.folder.blobs, blob_id, index)
        try:
            place = store.index.remove(blob_id, index)
            if place is not None:
                store.drop_if_empty(place.segment)
            had_file = path.exists()
            if had_file:
                store.files.discard(path)
                await asyncio.to_thread(path.unlink, True)
        except OSError as error:
            self._write_failed(error)
            raise storage_error(error, self.label) from error
        if place is None and not had_file:
            with self._reads():
                self._present()
            return False
        self.stats.removed += 1
        return True

    async def partitions(self) -> frozenset[int]:
        """The partitions of which this drive holds anything (or did: folders stay). Raises DriveFailed."""
        store = self._reading()
        with self._reads():
            return frozenset(store.index.partitions() | await asyncio.to_thread(partitions_in, store.folder.blobs))

    async def scan(self, partition: int | None = None) -> AsyncIterator[ShardPlace]:
        """Every shard (of one partition), with header, footer and length checked. Of a damaged one whose header is unreadable only blob
        id and index are true (`reader.unknown_header`). Shards that come or go meanwhile may or may not be seen. Raises DriveFailed."""
        after = b"" if partition is None else partition_key(partition)
        end = b"\xff" * 3 if partition is None else partition_key(partition + 1)
        while True:
            store = self._reading()
            with self._reads():
                page = store.index.page(after, INDEX_PAGE_ENTRIES, end)
            if not page:
                break
            for key, entry in page:
                after = key
                if (place := await self._examine(entry.blob_id, entry.shard)) is not None:
                    yield place
        with self._reads():
            outer = await asyncio.to_thread(outer_folders, self._reading().folder.blobs, partition)
        for folder in outer:
            with self._reads():
                names = await asyncio.to_thread(blobs_in, folder, partition)
            for blob_id, index in names:
                if (place := await self._examine(blob_id, index)) is not None:
                    yield place

    async def _examine(self, blob_id: BlobId, index: int) -> ShardPlace | None:
        store = self._reading()
        try:
            place = await reader.examine(store, blob_id, index)
        except OSError as error:
            self.stats.read_errors += 1
            with self._reads():
                self._present()  # one unreadable sector is damage, a drive that is gone is not
            log.warning("drive %s: shard %s.%d: %s", self.label, blob_id.hex(), index, error)
            place = reader.unreadable(store, blob_id, index)
        if place is not None and place.damaged:
            self.stats.damaged += 1
        return place

    # -- upkeep

    async def use_session(self, session: SessionId) -> None:
        """Write everything from now on (from before the first wait) under another writer session; returns once the segment of the one
        before is sealed."""
        self._session = session
        if self._store is not None:
            await self._store.use_session(session)

    async def recover(self, live_sessions: frozenset[SessionId]) -> RecoveryReport:
        """Index and seal the segments of writers that died while other processes went on, and remove their temporary files. Needs
        no knowledge of this process's own, nor of sessions opened since `live_sessions` were asked for: what is written to is locked.
        Raises DriveFailed."""
        store = self._reading()
        with self._reads():
            return await asyncio.to_thread(
                recover,
                store.folder.segments,
                store.folder.tmp,
                store.index,
                lambda session: session not in live_sessions,
                alone=False,
            )

    async def compact(self, owned: OwnerCheck) -> CompactionReport:
        """Rewrite the sealed segments in which most bytes are dead, and unlink those that became empty. One at a time per drive
        and process. A full drive may use its reserve for it. Raises StorageFull, DriveFailed, SlowDown."""
        store = self._reading()
        if self._failed:
            raise DriveFailed(drive=self.label, reason="read-only")
        writer = store.new_writer(self._session)
        try:
            return await compact(store, writer, owned, self._hold)
        except OSError as error:
            raise storage_error(error, self.label) from error
        finally:
            await writer.close()

    def _present(self) -> None:
        """Not finding something means nothing if the folder is not there. Raises OSError(ENODEV)."""
        if self._gone():
            self._vanish("its folder is missing")
            raise OSError(errno.ENODEV, "drive is missing")

    def _gone(self) -> bool:
        store = self._store
        return store is None or identity_place(self.path) != store.folder.place


def _check_header(header: ShardHeader) -> None:
    if len(header.blob.blob_id) != 16 or not 0 <= header.index < header.blob.scheme.width:
        raise ValueError("shard header names no possible shard")
    if len(header.version_id) != 16 or len(header.session) != 16:
        raise ValueError("version and session ids are 16 bytes")
