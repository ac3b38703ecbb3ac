"""`LocalDrive`: one folder on a local disk as the engine's `Drive`.

Owns: the drive's state (missing, failed, full) and the face of the package. Invariant: what a drive returns as a shard has a
header whose checksum holds and that names this blob and index; a write is refused, never half-done, once the drive is not what
it was. Not here: bytes (format.py), commits (segments.py, files.py), reads (reader.py), what is open (store.py), content
checksums (the engine).

States: *missing* (folder or identity gone, or another drive in its place; ends by itself when the same drive returns), *failed*
(a write or flush failed: read-only until the process restarts, since what the kernel still holds is not known), *full* (ends by
itself when there is room), *stalled* (it does not answer; ends by itself when it does: waiting.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

from anvil._ec.pieces import Sink
from anvil.base.errors import AnvilError, BadRecord, DriveFailed, DriveStalled, StorageFull, Unavailable
from anvil.base.limits import (
    INDEX_CHECK_START_S,
    SEGMENT_SHARD_BYTES_MAX,
)
from anvil.base.types import Buffer
from anvil.model.records import BlobId, DriveId, SessionId
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace
from anvil.shards import reader, removal
from anvil.shards.compact import CompactionReport, Hold, OwnerCheck, compact
from anvil.shards.files import LargeShardFile, partitions_in
from anvil.shards.format import encode_footer
from anvil.shards.identity import identity_place, touch_medium
from anvil.shards.index import IndexDamaged
from anvil.shards.io import FULL_ERRNOS, Executor, Io, IoJobs, storage_error
from anvil.shards.recovery import RecoveryReport, recover
from anvil.shards.scan import names
from anvil.shards.settings import DriveSettings, DriveStats, check_header
from anvil.shards.store import Folder, Store
from anvil.shards.waiting import Waiting

log = logging.getLogger(__name__)

_PASSING_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EBADF, errno.ECANCELED})
"""Failures of this process, not of the drive."""


class LocalDrive:
    """The `Drive` port (anvil/engine/ports.py) over a folder. Made by `attach`; used from one event loop; several processes may
    each have one on the same folder, but a process only one."""

    local = True

    def __init__(
        self, path: Path, label: str, io: Io, session: SessionId, hold: Hold, clock_us: Callable[[], int], settings: DriveSettings
    ) -> None:
        self.path = path
        self.label = label
        self.drive_id: DriveId = b""
        self.stats = DriveStats()
        self.free_bytes = 0
        self.capacity_bytes = 0
        self._io = io
        self._reason: str | None = None
        self._session = session
        self._hold = hold
        self._clock_us = clock_us
        self._settings = settings
        self._store: Store | None = None
        self._missing = False
        self._failed = False
        self._full = False
        self._compacting = False
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
        settings, label = settings or DriveSettings(), label or path.name
        io = Io(executor, jobs, Waiting(label, settings.stalled_s))
        drive = cls(path, label, io, session, hold, clock_us, settings)
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
        """Finish what is queued, seal, and leave the folder; clean if this was its last user and nothing failed. A drive that hangs is
        left as a crash would leave it."""
        if self._watcher is not None:
            self._watcher.cancel()
        try:
            await self._io.detached(self._leave())
        except DriveStalled:
            log.error("drive %s does not answer and is left as it is", self.label)
        self._io.close()

    async def _leave(self) -> None:
        if self._watcher is not None:
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
        return self._store is not None and not self._missing and not self._io.waiting.stalled

    @property
    def writable(self) -> bool:
        return self.readable and not self._failed and not self._full

    @property
    def stalled(self) -> bool:
        """It does not answer, and nothing new is asked of it until what is under way has come back."""
        return self._io.waiting.stalled

    @property
    def reason(self) -> str | None:
        """Why it is not writable, in words for an operator."""
        return "does not answer" if self._io.waiting.stalled else self._reason

    @property
    def recovered(self) -> RecoveryReport | None:
        """What was recovered when this process attached the folder; None if another one was using it already."""
        return self._store.folder.recovered if self._store is not None else None

    async def probe(self) -> None:
        """Look whether the folder is there and how much room it has; attach it again if it came back. Done every `probe_s` by the
        drive itself. Never raises for the drive's failures."""
        async with self._probing:
            place = await self._io.call(identity_place, self.path)
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
            return await self._io.call(store.folder.distrusted)
        except OSError as error:
            log.warning("drive %s: whether its index is good cannot be read: %s", self.label, error)
            return False  # a worn sector under this one file is no reason to leave the drive

    async def _attach(self, expected: DriveId | None, create: bool) -> None:
        try:
            await self._io.ask(touch_medium, self.path)  # first something short: recovery may rightly take long
            patience_s = INDEX_CHECK_START_S if self._watcher is None else math.inf  # a start does not wait for a long check
            folder = await self._io.ask(
                partial(Folder, self.path, self.label, expected, create, self._clock_us(), patience_s=patience_s), counted=False
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
            failed=self._write_failed,
            freed=self._give_back,
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
            await self._io.call(store.folder.close)
        except OSError as error:
            log.warning("drive %s could not be left cleanly: %s", self.label, error)

    async def _measure(self) -> None:
        try:
            stat = await self._io.call(os.statvfs, self.path)
        except OSError as error:
            self._vanish(f"its folder cannot be read ({os.strerror(error.errno or errno.EIO)})")
            return
        self.free_bytes = stat.f_bavail * stat.f_frsize
        self.capacity_bytes = stat.f_blocks * stat.f_frsize
        self._full = self.free_bytes < self._settings.floor_bytes
        if not self._failed:
            self._reason = "full" if self._full else None
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
        self._reason = reason

    async def _write_failed(self, error: OSError) -> None:
        """Class a failed write: it decides what the drive is good for from now on."""
        self.stats.write_errors += 1
        if error.errno in FULL_ERRNOS:
            self._full = True
            self._reason = "full"
        elif error.errno == errno.ENODEV or await self._gone():
            self._vanish("its folder is missing")
        elif isinstance(error, IndexDamaged):
            self._vanish("its index is damaged and will be rebuilt")
        elif error.errno not in _PASSING_ERRNOS and not self._failed:
            self._failed = True
            self._reason = f"read-only after a failed write ({os.strerror(error.errno or errno.EIO)})"
            log.error("drive %s is %s", self.label, self._reason)

    def _reading(self) -> Store:
        self._io.waiting.check()
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

    def _give_back(self, payload: int) -> None:
        self.free_bytes += payload

    @asynccontextmanager
    async def _reads(self) -> AsyncIterator[None]:
        try:
            yield
        except BadRecord:
            self.stats.damaged += 1
            raise
        except OSError as error:
            raise await self._read_failed(error) from error

    async def _read_failed(self, error: OSError) -> AnvilError:
        self.stats.read_errors += 1
        if error.errno == errno.ENODEV or await self._io.detached(self._gone()):
            self._vanish("its folder is missing")
        return storage_error(error, self.label)

    # -- the port

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        """A small shard (at most SEGMENT_SHARD_BYTES_MAX), whole: durable and indexed on return. An older record of the same
        shard is forgotten. `frames` must not change until this returns or raises. Raises StorageFull, DriveFailed, SlowDown; DriveStalled:
        see the port."""
        view = memoryview(frames).cast("B")
        check_header(header)
        payload = header.blob.geometry.shard_bytes
        if len(view) != payload or payload > SEGMENT_SHARD_BYTES_MAX:
            raise ValueError(f"{len(view)} bytes are not the frames of a small shard of {payload}")
        store = self._writing(len(view))
        foot = encode_footer(header.blob.blob_id, header.index, footer)
        try:
            await store.writer.append(header, view, foot)
        except BaseException as error:
            self._give_back(len(view))
            if isinstance(error, OSError):
                raise storage_error(error, self.label) from error
            raise
        self.stats.puts += 1

    async def create(self, header: ShardHeader) -> LargeShardFile:
        """A shard in a file of its own, begun where there is room for all of it now. To replace a damaged one, `remove` it first:
        publishing keeps a record whose header and footer are sound. Raises StorageFull, DriveFailed."""
        check_header(header)
        store = self._writing(header.blob.geometry.shard_bytes)
        shard = await self._io.detached(self._create(store, header), LargeShardFile.abort)
        self.stats.large += 1
        return shard

    async def _create(self, store: Store, header: ShardHeader) -> LargeShardFile:
        try:
            return await store.large.create(header)
        except BaseException as error:
            self._give_back(header.blob.geometry.shard_bytes)
            if not isinstance(error, OSError):
                raise
            await self._write_failed(error)
            raise storage_error(error, self.label) from error

    async def open(self, blob_id: BlobId, index: int, patience_s: float | None = None) -> ShardPlace | None:
        """Find a shard; None if this drive does not have it. Raises BadRecord, DriveFailed, DriveStalled: see the port."""
        store = self._reading()
        try:
            place = await reader.find(store, blob_id, index, patience_s)
            if place is None:
                await self._present()
        except BadRecord:
            self.stats.damaged += 1
            raise
        except OSError as error:
            raise await self._read_failed(error) from error
        return place

    def at_hand(self, blob_id: BlobId, index: int) -> memoryview | None:
        """See the port."""
        store = self._store
        return reader.at_hand(store, blob_id, index) if store is not None and self.readable else None

    async def read(self, place: ShardPlace, offset: int, view: memoryview) -> int:
        """Payload bytes from `offset` into `view`; returns how many (short = truncated, or gone). Raises DriveFailed."""
        store = self._reading()
        try:
            count = await reader.read(store, place, offset, view)
            if count < len(view):
                await self._present()
        except OSError as error:
            raise await self._read_failed(error) from error
        return count

    async def read_into(self, place: ShardPlace, offset: int, sink: Sink) -> None:
        """Payload bytes from `offset` into `sink`; see the port. Raises DriveFailed."""
        store = self._reading()
        try:
            await reader.read_into(store, place, offset, sink)
            if sink.wants:
                await self._present()
        except OSError as error:
            raise await self._read_failed(error) from error

    def begin_into(self, place: ShardPlace, offset: int, sink: Sink) -> asyncio.Future[None] | None:
        """See the port."""
        return reader.begin_into(self._reading(), place, offset, sink)

    async def verify(self, place: ShardPlace) -> ShardFooter:
        """Check that a shard's record is whole, apart from its payload's own checksums. Raises BadRecord, DriveFailed."""
        store = self._reading()
        async with self._reads():
            return await reader.verify(store, place)

    async def remove(self, blob_id: BlobId, index: int, *, superseded: bool = False) -> bool:
        """Forget a shard. Its space comes back at once (a file; a segment with nothing else living) or by compaction. A power cut
        may bring it back: the owner's row decides, not the drive. Raises Unavailable while unlinking is on hold (but for a
        `superseded` shard: see the port), DriveFailed."""
        held: Hold = (lambda: False) if superseded else self._hold
        removal.assert_free(held)
        return await self._io.detached(self._remove(self._reading(), blob_id, index, held))

    async def _remove(self, store: Store, blob_id: BlobId, index: int, held: Hold) -> bool:
        try:
            had = await removal.remove(store, blob_id, index, held)
        except OSError as error:
            await self._write_failed(error)
            raise storage_error(error, self.label) from error
        if not had:
            async with self._reads():
                await self._present()
            return False
        self.stats.removed += 1
        return True

    async def partitions(self) -> frozenset[int]:
        """The partitions of which this drive holds anything (or did: folders stay). Raises DriveFailed."""
        store = self._reading()
        async with self._reads():
            return frozenset(store.index.partitions() | await self._io.ask(partitions_in, store.folder.blobs))

    async def scan(self, partitions: Collection[int] | None = None) -> AsyncIterator[ShardPlace]:
        """Every shard (of these partitions), with header, footer and length checked; places hold no payload. Of a damaged one whose header
        is unreadable only blob id and index are true (`reader.unknown_header`). Shards that come or go meanwhile may or may not be seen.
        Raises DriveFailed."""
        async for blob_id, index in names(self._reading, self._reads, partitions):
            if (place := await self._examine(blob_id, index)) is not None:
                yield reader.without_data(place)

    async def _examine(self, blob_id: BlobId, index: int) -> ShardPlace | None:
        store = self._reading()
        try:
            place = await reader.examine(store, blob_id, index)
        except OSError as error:
            self.stats.read_errors += 1
            async with self._reads():
                await self._present()  # one unreadable sector is damage, a drive that is gone is not
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
        folder = store.folder
        async with self._reads():
            work = partial(recover, folder.segments, folder.tmp, store.index, lambda one: one not in live_sessions, alone=False)
            return await self._io.ask(work, counted=False)

    async def compact(self, owned: OwnerCheck) -> CompactionReport:
        """Rewrite the sealed segments in which most bytes are dead, and unlink those that became empty. One at a time per drive
        and process. A full drive may use its reserve for it. Raises StorageFull, DriveFailed, SlowDown."""
        store = self._reading()
        if self._failed:
            raise DriveFailed(drive=self.label, reason="read-only")
        if self._compacting:
            raise Unavailable("an earlier compaction waits for the drive")
        return await self._io.detached(self._compact(store, owned))

    async def _compact(self, store: Store, owned: OwnerCheck) -> CompactionReport:
        self._compacting = True
        writer = store.new_writer(self._session)
        try:
            return await compact(store, writer, owned, self._hold)
        except OSError as error:
            raise storage_error(error, self.label) from error
        finally:
            await writer.close()
            self._compacting = False

    async def _present(self) -> None:
        """Not finding something means nothing if the folder is not there. Raises OSError(ENODEV), DriveStalled."""
        if await self._io.detached(self._gone()):
            self._vanish("its folder is missing")
            raise OSError(errno.ENODEV, "drive is missing")

    async def _gone(self) -> bool:
        if self._store is None:
            return True
        try:
            await self._io.watch(self._store.folder.guard)
        except OSError:
            return True
        return False
