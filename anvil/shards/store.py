"""What a drive holds open while its folder is there: lock, index, writer, cached files.

Owns: attaching (identity, lock, recovery, markers) and detaching; the decision that an index is not to be trusted. Invariants: whoever
is first to attach recovers before anybody writes, and the marker of use is removed only by the last one, when nothing is left to recover;
nobody maps an index after an unclean end, or for the first time in a boot, before its file was read from end to end. Not here: states
and ports (drive.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from anvil._ec.fileio import Guard
from anvil.base.errors import DriveFailed
from anvil.base.limits import DRIVE_FILES_OPEN_MAX, INDEX_CHECK_START_S, SEGMENT_BYTES, SEGMENT_FIRST_BYTES
from anvil.model.records import DriveId, SessionId
from anvil.shards import identity
from anvil.shards.fds import FileCache
from anvil.shards.files import LargeShards, Step
from anvil.shards.index import IndexDamaged, ShardIndex, check_readable
from anvil.shards.io import Io
from anvil.shards.recovery import RecoveryReport, recover
from anvil.shards.segments import SegmentWriter, segment_name

log = logging.getLogger(__name__)

_ATTACH_TRIES = 16  # each failed one waited for another process to end its own attaching


class Folder:
    """An attached folder, without anything that writes. Everything here blocks; made and closed on a thread."""

    def __init__(
        self,
        path: Path,
        label: str,
        expected: DriveId | None,
        create: bool,
        now_us: int,
        *,
        patience_s: float = INDEX_CHECK_START_S,
    ) -> None:
        """`patience_s`: how long a process that takes a dead one's place beside others waits for the reading of the index. Raises
        DriveFailed (also when that takes longer: try again with more), InvalidSetting, OSError."""
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
        self.use = identity.present_use(path)
        self._mark: identity.UserMark | None = None
        self.lock = identity.FolderLock(path)
        try:
            self.index = self._attach(label, patience_s)
        except BaseException:
            if self._mark is not None:
                self._mark.close()
            self.lock.close()
            raise

    def _attach(self, label: str, patience_s: float) -> ShardIndex:
        for _ in range(_ATTACH_TRIES):
            if self.lock.alone():
                index = self._recover(label)
                self.lock.share()
                return index
            self.lock.share()  # waits while another process recovers
            if identity.read_running(self.path) == self.use:
                return self._join(label, patience_s)
            # Whoever held it died before it was done, or was closing, or has not noticed yet that its index is condemned.
            self.lock.release()
        raise DriveFailed(f"drive {label} is being attached and left by other processes", drive=label)

    def _join(self, label: str, patience_s: float) -> ShardIndex:
        """Use the index that others are using. If one of them died, it may have died of that index."""
        dead = identity.dead_users(self.path)
        try:
            if dead and not check_readable(self.path / "index", patience_s):
                raise DriveFailed(f"the index of drive {label} is being read, since a process died that used it", drive=label)
            index = ShardIndex(self.path / "index")
        except IndexDamaged as error:
            log.error("drive %s: %s; it is rebuilt once every process has let go of it", label, error)
            identity.distrust_index(self.path)
            raise DriveFailed(f"the index of drive {label} is damaged and waits to be rebuilt", drive=label) from error
        try:
            self._mark = identity.UserMark(self.path)
            for path in dead:
                path.unlink(missing_ok=True)
        except BaseException:
            index.close()
            raise
        return index

    def _recover(self, label: str) -> ShardIndex:
        """The first one here: all others are gone, in order or not."""
        running = identity.read_running(self.path)
        for name in identity.FOLDERS:
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        why = None
        if running is not None and running != self.use:
            why = "was given up" if running == identity.NOBODY else "may have lost what was not flushed"
        index: ShardIndex | None = None
        if why is None:
            try:
                if running is not None or identity.index_checked(self.path) != self.use:
                    check_readable(self.path / "index")
                index = ShardIndex(self.path / "index")
            except OSError as error:
                why = f"cannot be used ({error.strerror})"
        if why is not None:
            log.warning("the index of drive %s %s: it is rebuilt from the segments", label, why)
            identity.distrust_index(self.path)  # until it is whole again: this, too, can be interrupted
            for name in ("data.mdb", "lock.mdb"):
                (self.path / "index" / name).unlink(missing_ok=True)
        if index is None:
            index = ShardIndex(self.path / "index")
        try:
            self.recovered = recover(self.segments, self.tmp, index, lambda session: True, alone=True)
            self.recovered.rebuilt = why is not None
            identity.forget_users(self.path)
            self._mark = identity.UserMark(self.path)
            identity.note_index_checked(self.path, self.use)
            identity.mark_running(self.path, self.use)
        except BaseException:
            index.close()
            raise
        return index

    def distrusted(self) -> bool:
        """Whether this index must not be used any more: this process or another found it damaged. Blocking. Raises OSError where that
        cannot be written or read."""
        if self.index.damaged:
            identity.distrust_index(self.path)
        elif identity.read_running(self.path) != self.use:
            self.index.damaged = True
        return self.index.damaged

    def close(self) -> None:
        """Leave the folder; the last one to leave it clean says so on disk. Raises OSError."""
        try:
            if self.lock.alone() and identity.identity_place(self.path) == self.place and not self.distrusted():
                clean = all(row.sealed for _, row in self.index.segments())
                self.index.sync()
                if clean:
                    identity.mark_clean(self.path)
        finally:
            self.index.close()
            try:
                if self._mark is not None:
                    self._mark.close()
            finally:
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
        failed: Callable[[OSError], Coroutine[Any, Any, None]],
        freed: Callable[[int], None],
        step: Step,
        segment_bytes: int = SEGMENT_BYTES,
        first_bytes: int = SEGMENT_FIRST_BYTES,
    ) -> None:
        self.folder = folder
        self.index = folder.index
        self.io = io
        self.files = FileCache(DRIVE_FILES_OPEN_MAX, io)
        self._paths: dict[int, Path] = {}
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
        """One object for each: making and hashing it costs as much as looking a shard up."""
        path = self._paths.get(segment)
        if path is None:
            if len(self._paths) >= DRIVE_FILES_OPEN_MAX:
                self._paths.clear()
            path = self._paths[segment] = self.folder.segments / segment_name(segment)
        return path

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
