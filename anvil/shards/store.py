"""What a drive holds open while its folder is there: lock, index, writer, cached files.

Owns: attaching (identity, lock, recovery, marker) and detaching. Invariant: whoever is first to attach recovers before anybody
writes, and the marker of use is removed only by the last one, when nothing is left to recover. Not here: states and ports
(drive.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from anvil._ec.fileio import Guard
from anvil.base.errors import DriveFailed
from anvil.base.limits import DRIVE_FILES_OPEN_MAX, SEGMENT_BYTES, SEGMENT_FIRST_BYTES
from anvil.model.records import DriveId, SessionId
from anvil.shards import identity
from anvil.shards.fds import FileCache
from anvil.shards.files import LargeShards, Step
from anvil.shards.index import ShardIndex
from anvil.shards.io import Io
from anvil.shards.recovery import RecoveryReport, recover
from anvil.shards.segments import SegmentWriter, segment_name

log = logging.getLogger(__name__)

_ATTACH_TRIES = 16  # each failed one waited for another process to end its own attaching


class Folder:
    """An attached folder, without anything that writes. Everything here blocks; made and closed on a thread."""

    def __init__(self, path: Path, label: str, expected: DriveId | None, create: bool, now_us: int) -> None:
        """Raises DriveFailed, InvalidSetting, OSError."""
        self.path = path
        known = identity.ensure_identity(path, label, expected, create, now_us)
        self.drive_id = bytes.fromhex(known.drive_id)
        place = identity.identity_place(path)
        if place is None:
            raise DriveFailed(f"the folder of drive {label} went away", drive=label)
        self.place = place
        self.guard = Guard(f"{path}/{identity.IDENTITY}", place)
        self.recovered: RecoveryReport | None = None
        self.segments, self.blobs, self.tmp = path / "segments", path / "blobs", path / "tmp"
        self.lock = identity.FolderLock(path)
        try:
            self.index = self._attach(label)
        except BaseException:
            self.lock.close()
            raise

    def _attach(self, label: str) -> ShardIndex:
        for _ in range(_ATTACH_TRIES):
            if self.lock.alone():
                index = self._recover()
                self.lock.share()
                return index
            self.lock.share()  # waits while another process recovers
            running = identity.read_running(self.path)
            if running is not None and running.boot_id == identity.boot_id():
                return ShardIndex(self.path / "index")
            # Whoever held it died before it was done, or was closing.
            self.lock.release()
        raise DriveFailed(f"drive {label} is being attached and left by other processes", drive=label)

    def _recover(self) -> ShardIndex:
        running = identity.read_running(self.path)
        rebuild = running is not None and running.boot_id != identity.boot_id()
        for name in identity.FOLDERS:
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        if rebuild:
            self._wipe_index()
        try:
            index = ShardIndex(self.path / "index")
        except OSError as error:
            log.warning("index cannot be opened and is rebuilt: %s", error)
            self._wipe_index()
            index, rebuild = ShardIndex(self.path / "index"), True
        try:
            self.recovered = recover(self.segments, self.tmp, index, lambda session: True)
            self.recovered.rebuilt = rebuild
            identity.mark_running(self.path)
        except BaseException:
            index.close()
            raise
        return index

    def _wipe_index(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            (self.path / "index" / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the folder; the last one to leave it clean says so on disk. Raises OSError."""
        try:
            if self.lock.alone() and identity.identity_place(self.path) == self.place:
                clean = all(row.sealed for _, row in self.index.segments())
                self.index.sync()
                if clean:
                    identity.mark_clean(self.path)
        finally:
            self.index.close()
            self.lock.close()


class Store:
    """A folder with its writers and caches; lives on the event loop."""

    def __init__(
        self,
        folder: Folder,
        io: Io,
        session: SessionId,
        label: str,
        *,
        clock_us: Callable[[], int],
        failed: Callable[[OSError], Awaitable[None]],
        freed: Callable[[int], None],
        step: Step,
        segment_bytes: int = SEGMENT_BYTES,
        first_bytes: int = SEGMENT_FIRST_BYTES,
    ) -> None:
        self.folder = folder
        self.index = folder.index
        self.io = io
        self.files = FileCache(DRIVE_FILES_OPEN_MAX, io)
        self._clock_us = clock_us
        self._failed = failed
        self._segment_bytes = segment_bytes
        self._first_bytes = first_bytes
        self.writer = self.new_writer(session)
        self.large = LargeShards(
            folder.blobs,
            folder.tmp,
            io,
            session,
            label,
            clock_us=clock_us,
            failed=failed,
            freed=freed,
            guard=folder.guard,
            step=step,
        )

    def new_writer(self, session: SessionId) -> SegmentWriter:
        return SegmentWriter(
            self.folder.segments,
            self.index,
            self.io,
            self.folder.drive_id,
            session,
            clock_us=self._clock_us,
            guard=self.folder.guard,
            failed=self._failed,
            segment_bytes=self._segment_bytes,
            first_bytes=self._first_bytes,
        )

    async def use_session(self, session: SessionId) -> None:
        """From now on everything is written under another session."""
        old, self.writer = self.writer, self.new_writer(session)
        self.large.session = session
        await old.close()

    def segment_path(self, segment: int) -> Path:
        return self.folder.segments / segment_name(segment)

    async def drop_if_empty(self, segment: int) -> bool:
        """Unlink a sealed segment in which nothing lives. Raises OSError."""
        dropped = await self.io.index_call(self._drop_if_empty, segment)
        if dropped:
            self.files.discard(self.segment_path(segment))
        return dropped

    def _drop_if_empty(self, segment: int) -> bool:
        """The file goes before its row: a crash between leaves a row without a file, which recovery drops. Blocking."""
        row = self.index.segment(segment)
        if row is None or not row.sealed or not row.empty:
            return False
        self.segment_path(segment).unlink(missing_ok=True)
        self.index.drop_segment(segment)
        return True

    async def close(self) -> None:
        """Finish what is under way and seal; the folder is closed by whoever made it."""
        await self.writer.close()
        await self.large.folders.close()
        self.files.close()
        await self.io.idle()
