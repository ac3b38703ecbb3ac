"""Native jobs awaited from asyncio: the event loop's side of a pool of C threads.

Owns: who waits for which job, and the bound on jobs in flight. Invariant: a job that was submitted runs to its end and
is collected, whatever became of who waited for it; its buffers stay pinned until then. Not here: the threads
(`anvil/_ec/pool.pyx`, `anvil/_ec/digest.pyx`), the jobs.

When to use what: a job of up to INLINE_JOB_BYTES_MAX runs inline (`run_small`), since a trip to a thread and back costs more than
that much work; a longer one goes to a thread (`run`). Jobs on a file descriptor use `run_to_end`, or `begin`
with an `over`, or `start`, that keeps it open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from anvil._ec.pool import Job, Pool
from anvil.base.errors import ShuttingDown, SlowDown
from anvil.base.limits import NATIVE_JOBS_MAX
from anvil.base.types import Told

J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class JobQueue(Protocol[J_contra]):
    """What runs jobs on C threads: `Pool`, `DigestLanes`."""

    def fileno(self) -> int: ...
    def submit(self, job: J_contra) -> None: ...
    def collect(self) -> list[Job]: ...
    def close(self) -> list[Job]: ...


class JobRunner(Generic[J]):
    """Runs jobs on a queue's threads and wakes who awaits them. Belongs to one event loop; closing it closes the queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: JobQueue[J], jobs_max: int = NATIVE_JOBS_MAX) -> None:
        self._loop = loop
        self._queue = queue
        self._jobs_max = jobs_max
        self._waiting: dict[Job, asyncio.Future[None]] = {}
        self._over: dict[Job, Callable[[], None]] = {}
        self._told: dict[Job, Told] = {}
        self._idle: asyncio.Future[None] = loop.create_future()  # once closing, when nothing is in flight
        self._closing = False
        loop.add_reader(queue.fileno(), self._collect)

    @property
    def in_flight(self) -> int:
        """Jobs submitted and not collected yet, those of cancelled waiters included."""
        return len(self._waiting) + len(self._told)

    async def run(self, job: J) -> None:
        """Run the job on a thread, then raise what its `check` raises. Cancelling leaves the job to finish by itself.

        Raises SlowDown (too many jobs in flight), ShuttingDown (closed).
        """
        await self._wait_for(job)

    def begin(self, job: J, over: Callable[[], None] | None = None) -> asyncio.Future[None]:
        """`run` in two steps: the job is queued on return, its end is the future's. Raises as `run`. `over` is called when the job has
        really ended, whatever became of the future."""
        future = self._wait_for(job)
        if over is not None:
            self._over[job] = over
        return future

    def start(self, job: J, told: Told) -> None:
        """`begin` without a future, whose way through the event loop costs as much as the rest: `told` is called when the job has ended.
        Raises as `run`."""
        self._submit(job)
        self._told[job] = told

    async def run_to_end(self, job: J) -> None:
        """As `run`, but a cancellation is delivered only when the job has ended: for jobs that use something their caller is
        going to take away, such as a file descriptor."""
        try:
            await self._wait_for(job)
        except asyncio.CancelledError:
            # Cancelling has cancelled the future as well: wait on others. How the job ended does not matter any more.
            while job in self._waiting:
                future = self._waiting[job] = self._loop.create_future()
                with suppress(asyncio.CancelledError, Exception):
                    await future
            raise

    def abandon(self, job: J, error: Exception) -> None:
        """Whoever waits for the job gets `error` now, if it has not ended; the job goes on."""
        future = self._waiting.get(job)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # perhaps nobody waits

    @staticmethod
    def run_small(job: Job) -> None:
        """Run the job here and now (the GIL released). For jobs of up to INLINE_JOB_BYTES_MAX."""
        job.run()

    async def close(self) -> None:
        """Refuse new jobs, wait for all in flight, end the threads. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self.in_flight:
            await self._idle
        self._loop.remove_reader(self._queue.fileno())
        self._queue.close()

    def _submit(self, job: J) -> None:
        if self._closing:
            raise ShuttingDown
        if len(self._waiting) + len(self._told) >= self._jobs_max:
            raise SlowDown
        self._queue.submit(job)

    def _wait_for(self, job: J) -> asyncio.Future[None]:
        self._submit(job)
        future = self._waiting[job] = self._loop.create_future()
        return future

    def _collect(self) -> None:
        for job in self._queue.collect():
            if self._told and (told := self._told.pop(job, None)) is not None:
                told(_failure(job))
                continue
            future = self._waiting.pop(job)
            if self._over and (over := self._over.pop(job, None)) is not None:
                over()
            if future.done():
                continue  # cancelled: nobody is left to be told how it went
            error = _failure(job)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        if self._closing and not self.in_flight and not self._idle.done():
            self._idle.set_result(None)


def _failure(job: Job) -> Exception | None:
    try:
        job.check()
    except Exception as error:
        return error.with_traceback(None)  # else it would hold a frame, which holds the job
    return None


class NativeExecutor(JobRunner[Job]):
    """A pool of `threads` C threads and the runner on it. With one thread, jobs finish in the order submitted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int) -> None:
        super().__init__(loop, Pool(threads))
