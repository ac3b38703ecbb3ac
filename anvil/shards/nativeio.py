"""`IoJobs` by the native jobs of `anvil._ec.fileio`. Not here: the executor that runs them."""

from __future__ import annotations

from collections.abc import Sequence

from anvil._ec.fileio import (
    CloseJob,
    Guard,
    GuardJob,
    LinkJob,
    MakeFolderJob,
    OpenJob,
    ReadInto,
    ReadJob,
    ReserveJob,
    SyncFolderJob,
    UnlinkJob,
    WriteFrom,
    WriteJob,
    open_cached,
)
from anvil._ec.pieces import Sink, Source
from anvil.base.types import Buffer
from anvil.shards.io import preadv_nowait


class NativeJobs:
    """The job factory a node passes to its drives."""

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool, guard: Guard | None = None) -> WriteJob:
        return WriteJob(fd, offset, buffers, sync, guard)

    def read(self, fd: int, offset: int, view: Buffer) -> ReadJob:
        return ReadJob(fd, offset, view)

    def read_into(self, fd: int, offset: int, sink: Sink) -> ReadInto:
        return ReadInto(fd, offset, sink)

    def write_from(self, fd: int, offset: int, source: Source, head: Buffer, sync: bool) -> WriteFrom:
        return WriteFrom(fd, offset, source, head, sync)

    def sync_folder(self, path: str, guard: Guard | None) -> SyncFolderJob:
        return SyncFolderJob(path, guard)

    def open(self, path: str, flags: int, mode: int, guard: Guard | None) -> OpenJob:
        return OpenJob(path, flags, mode, guard)

    def watch(self, guard: Guard) -> GuardJob:
        return GuardJob(guard)

    def link(self, path: str, to: str) -> LinkJob:
        return LinkJob(path, to)

    def unlink(self, path: str) -> UnlinkJob:
        return UnlinkJob(path)

    def make_folder(self, path: str) -> MakeFolderJob:
        return MakeFolderJob(path)

    def close(self, fd: int, path: str | None) -> CloseJob:
        return CloseJob(fd, path)

    def reserve(self, fd: int, length: int) -> ReserveJob:
        return ReserveJob(fd, length)

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        return preadv_nowait(fd, offset, view)

    def open_now(self, path: str) -> int:
        return open_cached(path)
