"""The seam between this package and the native IO jobs: protocols, waiting that survives cancellation, classing of OS errors.

Owns: how a job is awaited. Invariant: an `Io` call that writes returns, or raises, only when the job no longer touches its file or its
buffers, whatever became of the caller. One that reads may be left behind, by DriveStalled or a cancellation, and a write that was begun by
DriveStalled: the job then keeps its buffers, and its descriptor stays open, until it ends. Nothing that may have to wait for a disk runs
on the event loop. Not here: the jobs themselves (`anvil/_ec/fileio.pyi`), the executor (`anvil/ec/executor.py`), when a drive counts as
stalled (waiting.py); tests put fault injection into this seam.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from anvil._ec.fileio import Guard
from anvil._ec.pieces import Sink, Source
from anvil.base.errors import AnvilError, DriveFailed, DriveStalled, StorageFull
from anvil.base.limits import DRIVE_CALL_THREADS, READ_INLINE_BYTES_MAX
from anvil.base.owned import ended
from anvil.base.types import Buffer, Told
from anvil.shards.waiting import GiveUp, Waiting

log = logging.getLogger(__name__)
T = TypeVar("T")

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class Job(Protocol):
    """One native call, as `anvil._ec.pool.Job`."""

    def run(self) -> None: ...
    def check(self) -> None: ...


class CountingJob(Job, Protocol):
    """A read: `count` is the number of bytes read, once it has run."""

    @property
    def count(self) -> int: ...


class OpeningJob(Job, Protocol):
    """An open: `take` hands over the descriptor; one nobody takes is closed with the job."""

    def take(self) -> int: ...


class Lease(Protocol):
    """Something that stays open between `hold` and `release` (fds.py)."""

    @property
    def fd(self) -> int: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class Executor(Protocol):
    """Runs the jobs of an `IoJobs` made for it: `run_to_end` on a C thread, ending only when the job has, even if cancelled;
    `run_small` here and now. Both raise what `check` raises. `begin`, `start`, `abandon`: see `anvil/ec/executor.py`."""

    async def run_to_end(self, job: Any) -> object: ...
    def run_small(self, job: Any) -> object: ...
    def begin(self, job: Any, over: Callable[[], None] | None = None) -> asyncio.Future[None]: ...
    def start(self, job: Any, told: Told) -> None: ...
    def abandon(self, job: Any, error: Exception) -> None: ...


class IoJobs(Protocol):
    """Makes IO jobs. All raise OSError from `check`."""

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool, guard: Guard | None = None) -> Job:
        """pwritev of all buffers (at most 1,024 of them), then fdatasync if `sync`. ENODEV unless `guard` holds before and after."""
        ...

    def read(self, fd: int, offset: int, view: Buffer) -> CountingJob:
        """pread until `view` is full or the file ends."""
        ...

    def read_into(self, fd: int, offset: int, sink: Sink) -> Job:
        """pread a piece at a time and feed it to `sink`, until that wants no more or the file ends."""
        ...

    def write_from(self, fd: int, offset: int, source: Source, head: Buffer, sync: bool) -> Job:
        """pwrite of `head`, and of what `source` gives behind it, a piece at a time, then fdatasync if `sync`. `check` also raises what
        the source's raises."""
        ...

    def sync_folder(self, path: str, guard: Guard | None) -> Job:
        """fsync of a folder (fdatasync need not write a new entry: on ext4 it does not commit the transaction of a directory whose size
        stayed the same). ENODEV unless `guard` holds afterwards."""
        ...

    def open(self, path: str, flags: int, mode: int, guard: Guard | None) -> OpeningJob:
        """ENODEV unless `guard` holds before."""
        ...

    def watch(self, guard: Guard) -> Job:
        """ENODEV unless `guard` holds."""
        ...

    def link(self, path: str, to: str) -> Job: ...
    def unlink(self, path: str) -> Job: ...
    def make_folder(self, path: str) -> Job: ...
    def close(self, fd: int, path: str | None) -> Job:
        """Unlink `path`, if given and there, then close."""
        ...

    def reserve(self, fd: int, length: int) -> Job:
        """posix_fallocate of the first `length` bytes."""
        ...

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        """Read without waiting for a disk: bytes read, or -1 when (some of) them are not in memory or this is not supported."""
        ...

    def open_now(self, path: str) -> int:
        """Open for reading without waiting for a disk: a descriptor, or -1. Raises OSError."""
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
    """An executor, a job factory and the drive's `Waiting` together: what every file of this package uses to touch a disk.

    Native jobs for what requests do; `call` for the rest, on Python threads of the drive's own, since those of the process would all be
    taken by one disk that hangs. `index_lock`: whoever writes to the index holds it, so that the loop never waits in LMDB for a thread.
    """

    def __init__(self, executor: Executor, jobs: IoJobs, waiting: Waiting | None = None) -> None:
        self.executor = executor
        self.jobs = jobs
        self.waiting = waiting if waiting is not None else Waiting("without a name")
        self.index_lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(DRIVE_CALL_THREADS, thread_name_prefix="drive")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writing = 0  # jobs of `start_write` under way
        self._landed: asyncio.Future[None] | None = None  # when none is left

    # -- jobs

    async def _run(self, job: Any) -> None:
        number = self.waiting.begin()
        try:
            await self.executor.run_to_end(job)
        finally:
            self.waiting.end(number)

    def _begin(self, job: Any, lease: Lease | None) -> asyncio.Future[None]:
        """A job that nobody has to wait for: who does is released by DriveStalled or a cancellation. `lease` is kept until it ends."""
        executor, waiting = self.executor, self.waiting

        def over() -> None:
            waiting.end(number)
            if lease is not None:
                lease.release()

        number = waiting.begin(partial(executor.abandon, job))
        if lease is not None:
            lease.hold()
        try:
            return executor.begin(job, over)
        except BaseException:
            over()
            raise

    def start_write(self, job: Job, over: Told, give_up: GiveUp) -> int:
        """A write that nobody has to wait for: `over` is told when it has ended, `give_up` if the drive is found stalled before that.
        What is returned is for `end_write`, which `over` calls. Raises SlowDown, ShuttingDown."""
        number = self.waiting.begin(give_up)
        self._writing += 1
        try:
            self.executor.start(job, over)
        except BaseException:
            self.end_write(number)
            raise
        return number

    def end_write(self, number: int) -> None:
        self.waiting.end(number)
        self._writing -= 1
        if not self._writing and self._landed is not None and not self._landed.done():
            self._landed.set_result(None)

    async def _run_or_give_up(self, job: Any, lease: Lease | None, patience_s: float | None) -> None:
        """`_begin`, and wait `patience_s` at the most."""
        # The future is kept nowhere: it would hold its exception, which holds the frames up to here and with them the buffers.
        timer = None
        if patience_s is not None:
            timer = self._loop.call_later(patience_s, lambda: self.executor.abandon(job, self.waiting.error()))
        try:
            await self._begin(job, lease)
        finally:
            if timer is not None:
                timer.cancel()

    async def write(self, fd: int, offset: int, buffers: Sequence[Buffer], *, sync: bool, guard: Guard | None = None) -> None:
        await self._run(self.jobs.write(fd, offset, buffers, sync, guard))

    async def reserve(self, fd: int, length: int) -> None:
        """Room for `length` bytes, or OSError (ENOSPC). It can take long: some file systems write zeros."""
        await self._run(self.jobs.reserve(fd, length))

    async def sync_folder(self, folder: str, guard: Guard | None = None) -> None:
        await self._run(self.jobs.sync_folder(folder, guard))

    async def write_from(self, fd: int, offset: int, source: Source, head: Buffer, *, sync: bool) -> None:
        await self._run(self.jobs.write_from(fd, offset, source, head, sync))

    async def read(self, lease: Lease, offset: int, view: memoryview, patience_s: float | None = None) -> int:
        """Bytes read into `view`, short only at the end of the file. Inline if they are in memory and few, else on a C thread. Raises
        OSError, DriveStalled: see the invariant."""
        if not len(view):
            return 0
        if len(view) <= READ_INLINE_BYTES_MAX:
            count = self.jobs.read_now(lease.fd, offset, view)
            if count >= 0:
                return count
        job = self.jobs.read(lease.fd, offset, view)
        await self._run_or_give_up(job, lease, patience_s)
        return job.count

    def read_into(self, lease: Lease, offset: int, sink: Sink) -> asyncio.Future[None]:
        """Feed `sink` on a C thread until it wants no more, or the file ends; begun on return. The future raises OSError, DriveStalled:
        see the invariant."""
        return self._begin(self.jobs.read_into(lease.fd, offset, sink), lease)

    async def open(self, path: str, flags: int, mode: int = 0, guard: Guard | None = None) -> int:
        job = self.jobs.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, guard)
        await self._run(job)
        return job.take()

    async def open_to_read(self, path: str, patience_s: float | None = None) -> int:
        """Inline if the kernel has all of the path in memory (about 5 us). Raises OSError, DriveStalled."""
        fd = self.jobs.open_now(path)
        if fd < 0:
            job = self.jobs.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0, None)
            await self._run_or_give_up(job, None, patience_s)
            fd = job.take()
        return fd

    async def watch(self, guard: Guard) -> None:
        """Raises OSError (ENODEV) where `guard` does not hold."""
        await self._run(self.jobs.watch(guard))

    async def link(self, path: str, to: str) -> None:
        await self._run(self.jobs.link(path, to))

    async def unlink(self, path: str) -> None:
        """One that is not there is no error."""
        try:
            await self._run(self.jobs.unlink(path))
        except FileNotFoundError:
            return

    async def make_folder(self, path: str) -> None:
        """One that is there is no error."""
        try:
            await self._run(self.jobs.make_folder(path))
        except FileExistsError:
            return

    async def close_file(self, fd: int, path: str | None = None) -> None:
        """Close, and first take the name `path` away. Never raises."""
        try:
            await self._run(self.jobs.close(fd, path))
        except OSError as error:
            log.warning("a file could not be removed: %s", error)
        except AnvilError:  # the executor takes no more jobs
            os.close(fd)

    # -- Python functions and tasks

    async def call(self, work: Callable[..., T], *args: Any, counted: bool = True) -> T:
        """Run `work` on one of the drive's own Python threads. Cancelled, it ends only when `work` has. What may rightly take long
        (recovery) is not `counted`."""
        number = self.waiting.begin() if counted else None
        future = self._loop.run_in_executor(self._threads, work, *args)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not future.done():
                try:
                    await ended(future)
                except asyncio.CancelledError as error:
                    cancelled = error
        finally:
            if number is not None:
                self.waiting.end(number)
        if cancelled is not None:
            future.exception()
            try:
                raise cancelled
            finally:
                cancelled = None  # its traceback holds this frame, and with it what the caller works on
        return future.result()

    async def index_call(self, work: Callable[..., T], *args: Any) -> T:
        """`call` for what writes to the index."""
        async with self.index_lock:
            return await self.call(work, *args)

    async def ask(self, work: Callable[..., T], *args: Any, counted: bool = True) -> T:
        """`call` for who must not wait for ever. Raises DriveStalled; `work` then goes on by itself."""
        return await self.detached(self.call(work, *args, counted=counted))

    async def detached(self, work: Coroutine[Any, Any, T], wasted: Callable[[T], Coroutine[Any, Any, None]] | None = None) -> T:
        """Run `work` in a task of its own. Raises DriveStalled as soon as the drive is stalled: `work` goes on by itself, and its
        result, which nobody takes, goes to `wasted`; so also when the caller is cancelled, which takes effect when `work` has ended."""
        if self.waiting.stalled:
            work.close()
            self.waiting.check()
        task = self.background(work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            waiter: asyncio.Future[None] = self._loop.create_future()
            task.add_done_callback(lambda _, waiter=waiter: waiter.done() or waiter.set_result(None))  # type: ignore[misc]
            self.waiting.add(waiter)
            try:
                self.waiting.check()  # it may have been found stalled between a cancellation and here
                await waiter
            except asyncio.CancelledError as error:
                cancelled = error
                task.cancel()
            except DriveStalled as error:
                task.add_done_callback(lambda over: self._waste(over, wasted))
                raise cancelled or error from None
            finally:
                self.waiting.discard(waiter)
        if cancelled is not None:
            self._waste(task, wasted)
            try:
                raise cancelled
            finally:
                cancelled = None  # its traceback holds this frame, and with it the caller's buffers
        return task.result()

    def _waste(self, over: asyncio.Task[T], wasted: Callable[[T], Coroutine[Any, Any, None]] | None) -> None:
        if not over.cancelled() and over.exception() is None and wasted is not None:
            self.background(wasted(over.result()))

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` without waiting for it; `close` does."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def idle(self) -> None:
        """Wait for the writes that were begun and the tasks that run, but for the caller."""
        while True:
            if others := self._tasks - {asyncio.current_task()}:
                await asyncio.wait(others)
            elif self._writing:
                self._landed = self._loop.create_future()
                await self._landed
            else:
                return

    def close(self) -> None:
        """Threads end when what they run has ended."""
        self._threads.shutdown(wait=False)


def storage_error(error: OSError, label: str) -> AnvilError:
    """The domain error for an OS error on the drive `label`: StorageFull where space or quota ran out, else DriveFailed."""
    if error.errno in FULL_ERRNOS:
        return StorageFull(drive=label)
    return DriveFailed(drive=label, reason=os.strerror(error.errno) if error.errno else "input/output error")
