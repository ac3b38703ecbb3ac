"""The seam between this package and the native IO jobs: protocols, waiting that survives cancellation, classing of OS errors.

Owns: how a job is awaited. Invariant: an `Io` call returns, or raises, only when the job no longer touches its file or its buffers,
whatever became of the caller. Not here: the jobs themselves (`anvil/_ec/fileio.pyi`) and the executor (`anvil/ec/executor.py`);
tests put fault injection into this seam.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, Protocol

from anvil._ec.pieces import Sink, Source
from anvil.base.errors import AnvilError, DriveFailed, StorageFull
from anvil.base.limits import READ_INLINE_BYTES_MAX
from anvil.base.types import Buffer

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class Job(Protocol):
    """One native call, as `anvil._ec.pool.Job`."""

    def run(self) -> None: ...
    def check(self) -> None: ...


class CountingJob(Job, Protocol):
    """A read: `count` is the number of bytes read, once it has run."""

    @property
    def count(self) -> int: ...


class Executor(Protocol):
    """Runs the jobs of an `IoJobs` made for it: `run_to_end` on a C thread, ending only when the job has, even if cancelled;
    `run_small` here and now. Both raise what `check` raises."""

    async def run_to_end(self, job: Any) -> object: ...
    def run_small(self, job: Any) -> object: ...


class IoJobs(Protocol):
    """Makes IO jobs. All raise OSError from `check`."""

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> Job:
        """pwritev of all buffers (at most 1,024 of them), then fdatasync if `sync`."""
        ...

    def read(self, fd: int, offset: int, view: Buffer) -> CountingJob:
        """pread until `view` is full or the file ends."""
        ...

    def read_into(self, fd: int, offset: int, sink: Sink) -> Job:
        """pread a piece at a time and feed it to `sink`, until that wants no more or the file ends."""
        ...

    def write_from(self, fd: int, offset: int, source: Source, head: Buffer) -> Job:
        """pwrite of `head`, and of what `source` gives behind it, a piece at a time. `check` also raises what the source's raises."""
        ...

    def sync(self, fd: int, full: bool) -> Job:
        """fdatasync; with `full` fsync, which directories need (fdatasync need not write a new entry: on ext4 it does not
        commit the transaction of a directory whose size stayed the same)."""
        ...

    def reserve(self, fd: int, length: int) -> Job:
        """posix_fallocate of the first `length` bytes."""
        ...

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        """Read without waiting for a disk: bytes read, or -1 when (some of) them are not in memory or this is not supported."""
        ...


def preadv_nowait(fd: int, offset: int, view: memoryview) -> int:
    """`IoJobs.read_now` by preadv2(RWF_NOWAIT): the page cache answers inline in about 2 us, a disk never stalls the loop."""
    try:
        count = os.preadv(fd, [view], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return -1
        raise
    # A short count is the end of the file or the end of what is cached: only a waiting read can tell.
    return count if count == len(view) else -1


class Io:
    """An executor and a job factory together: what every file of this package uses to touch a disk."""

    def __init__(self, executor: Executor, jobs: IoJobs) -> None:
        self.executor = executor
        self.jobs = jobs

    async def write(self, fd: int, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        await self.executor.run_to_end(self.jobs.write(fd, offset, buffers, sync))

    async def reserve(self, fd: int, length: int) -> None:
        """Room for `length` bytes, or OSError (ENOSPC). It can take long: some file systems write zeros."""
        await self.executor.run_to_end(self.jobs.reserve(fd, length))

    async def sync(self, fd: int, *, full: bool = False) -> None:
        await self.executor.run_to_end(self.jobs.sync(fd, full))

    async def read(self, fd: int, offset: int, view: memoryview) -> int:
        """Bytes read into `view`, short only at the end of the file. Inline if they are in memory and few, else on a C thread."""
        if not len(view):
            return 0
        if len(view) <= READ_INLINE_BYTES_MAX:
            count = self.jobs.read_now(fd, offset, view)
            if count >= 0:
                return count
        job = self.jobs.read(fd, offset, view)
        await self.executor.run_to_end(job)
        return job.count

    async def read_into(self, fd: int, offset: int, sink: Sink) -> None:
        """Feed `sink` on a C thread until it wants no more, or the file ends."""
        await self.executor.run_to_end(self.jobs.read_into(fd, offset, sink))

    async def write_from(self, fd: int, offset: int, source: Source, head: Buffer) -> None:
        await self.executor.run_to_end(self.jobs.write_from(fd, offset, source, head))


def storage_error(error: OSError, label: str) -> AnvilError:
    """The domain error for an OS error on the drive `label`: StorageFull where space or quota ran out, else DriveFailed."""
    if error.errno in FULL_ERRNOS:
        return StorageFull(drive=label)
    return DriveFailed(drive=label, reason=os.strerror(error.errno) if error.errno else "input/output error")
