"""`IoJobs` by the native jobs of `anvil._ec.fileio`. Not here: the executor that runs them."""

from __future__ import annotations

from collections.abc import Sequence

from anvil._ec.fileio import ReadInto, ReadJob, ReserveJob, SyncJob, WriteFrom, WriteJob
from anvil._ec.pieces import Sink, Source
from anvil.base.types import Buffer
from anvil.shards.io import preadv_nowait


class NativeJobs:
    """The job factory a node passes to its drives."""

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> WriteJob:
        return WriteJob(fd, offset, buffers, sync)

    def read(self, fd: int, offset: int, view: Buffer) -> ReadJob:
        return ReadJob(fd, offset, view)

    def read_into(self, fd: int, offset: int, sink: Sink) -> ReadInto:
        return ReadInto(fd, offset, sink)

    def write_from(self, fd: int, offset: int, source: Source, head: Buffer) -> WriteFrom:
        return WriteFrom(fd, offset, source, head)

    def sync(self, fd: int, full: bool) -> SyncJob:
        return SyncJob(fd, full)

    def reserve(self, fd: int, length: int) -> ReserveJob:
        return ReserveJob(fd, length)

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        return preadv_nowait(fd, offset, view)
