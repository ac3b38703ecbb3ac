"""`IoJobs` by the native jobs of `anvil._ec.fileio`. Not here: the executor that runs them."""

from __future__ import annotations

from collections.abc import Sequence

from anvil._ec.fileio import ReadJob, ReserveJob, SyncJob, WriteJob
from anvil._ec.pool import Job
from anvil.base.types import Buffer
from anvil.shards.io import preadv_nowait


class NativeJobs:
    """The job factory a node passes to its drives."""

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> WriteJob:
        return WriteJob(fd, offset, buffers, sync)

    def read(self, fd: int, offset: int, view: Buffer, then: Job | None = None) -> ReadJob:
        return ReadJob(fd, offset, view, then)

    def sync(self, fd: int, full: bool) -> SyncJob:
        return SyncJob(fd, full)

    def reserve(self, fd: int, length: int) -> ReserveJob:
        return ReserveJob(fd, length)

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        return preadv_nowait(fd, offset, view)
