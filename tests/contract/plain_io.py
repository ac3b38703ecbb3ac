"""A plain executor and plain IO jobs with fault injection: what the disk tests run on, without the native pool.

`Faults` says what goes wrong: an errno for the n-th next write or flush, or an event that jobs wait for. `ThreadExecutor` runs
jobs on Python threads, which the product never does (they starve beside a busy loop), but which behave the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anvil._ec.fileio import Guard
from anvil._ec.pieces import Sink, Source
from anvil.base.errors import AnvilError
from anvil.base.types import Buffer, Told
from anvil.shards.identity import identity_place
from anvil.shards.io import preadv_nowait


class PlainJob:
    """Runs `work` once; keeps its error for `check`."""

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self._error: Exception | None = None
        self.count = 0

    def run(self) -> None:
        self.execute()
        self.check()

    def execute(self) -> None:
        try:
            self.count = self._work()
        except Exception as error:
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def take(self) -> int:
        """The descriptor of an open."""
        return self.count


THREADS = 2


def _bare(error: BaseException | None) -> BaseException | None:
    return None if error is None else error.with_traceback(None)


class ThreadExecutor:
    """The executor's surface over a thread pool."""

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: dict[PlainJob, asyncio.Future[None]] = {}
        self.ran = 0
        self.refusal: AnvilError | None = None  # what `start` raises

    async def run(self, job: PlainJob) -> None:
        self.ran += 1
        await asyncio.get_running_loop().run_in_executor(self._pool, job.execute)
        job.check()

    async def run_to_end(self, job: PlainJob) -> None:
        task = asyncio.ensure_future(self.run(job))
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            task.exception()  # whoever wanted to know has gone
            raise asyncio.CancelledError
        task.result()

    def run_small(self, job: PlainJob) -> None:
        job.run()

    def begin(self, job: PlainJob, over: Callable[[], None] | None = None) -> asyncio.Future[None]:
        task = asyncio.ensure_future(self.run_to_end(job))
        future = self._waiting[job] = task.get_loop().create_future()

        def ended(task: asyncio.Task[None]) -> None:
            del self._waiting[job]
            if over is not None:
                over()
            error = task.exception()
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        task.add_done_callback(ended)
        return future

    def start(self, job: PlainJob, told: Told) -> None:
        if self.refusal is not None:
            raise self.refusal
        asyncio.ensure_future(self.run_to_end(job)).add_done_callback(lambda task: told(_bare(task.exception())))

    def abandon(self, job: PlainJob, error: Exception) -> None:
        future = self._waiting.get(job)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # perhaps nobody waits

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Faults:
    """What is to go wrong. `write_errnos`, `sync_errnos`, `read_errnos`: one entry is taken per operation, 0 = goes well."""

    def __init__(self) -> None:
        self.write_errnos: list[int] = []
        self.sync_errnos: list[int] = []
        self.read_errnos: list[int] = []
        self.write_prefix: int | None = None  # a failing write leaves that many of its bytes in the file
        self.gate: threading.Event | None = None  # writes that flush wait for it
        self.at_gate = threading.Event()  # set when one waits there
        self.syncs = 0
        self.writes = 0

    @staticmethod
    def take(errnos: list[int]) -> None:
        number = errnos.pop(0) if errnos else 0
        if number:
            raise OSError(number, os.strerror(number))


class FaultyJobs:
    """`IoJobs` that fail as `faults` says."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()

    def write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool, guard: Guard | None = None) -> PlainJob:
        return PlainJob(lambda: self._watch(guard) or self._write(fd, offset, buffers, sync) or self._watch(guard))

    @staticmethod
    def _watch(guard: Guard | None) -> int:
        if guard is not None and identity_place(Path(guard.path).parent) != guard.place:
            raise OSError(errno.ENODEV, "another disk")
        return 0

    def _write(self, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool) -> int:
        faults = self.faults
        faults.writes += 1
        if sync and faults.gate is not None:
            faults.at_gate.set()
            assert faults.gate.wait(20), "gate was never opened"
        data = b"".join(buffers)
        try:
            faults.take(faults.write_errnos)
        except OSError:
            if faults.write_prefix is not None:
                os.pwrite(fd, data[: faults.write_prefix], offset)
            raise
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        if sync:
            self._sync(fd, False)
        return 0

    def sync_folder(self, path: str, guard: Guard | None) -> PlainJob:
        def work() -> int:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return self._sync(fd, True) or self._watch(guard)
            finally:
                os.close(fd)

        return PlainJob(work)

    def open(self, path: str, flags: int, mode: int, guard: Guard | None) -> PlainJob:
        return PlainJob(lambda: self._watch(guard) or os.open(path, flags, mode))

    def watch(self, guard: Guard) -> PlainJob:
        return PlainJob(lambda: self._watch(guard))

    def link(self, path: str, to: str) -> PlainJob:
        return PlainJob(lambda: os.link(path, to) or 0)

    def unlink(self, path: str) -> PlainJob:
        return PlainJob(lambda: Path(path).unlink() or 0)

    def make_folder(self, path: str) -> PlainJob:
        return PlainJob(lambda: Path(path).mkdir(0o700) or 0)

    def close(self, fd: int, path: str | None) -> PlainJob:
        def work() -> int:
            try:
                if path is not None:
                    Path(path).unlink(missing_ok=True)
            finally:
                os.close(fd)
            return 0

        return PlainJob(work)

    def _sync(self, fd: int, full: bool) -> int:
        self.faults.syncs += 1
        self.faults.take(self.faults.sync_errnos)
        if full:
            os.fsync(fd)
        else:
            os.fdatasync(fd)
        return 0

    def reserve(self, fd: int, length: int) -> PlainJob:
        return PlainJob(lambda: self._reserve(fd, length))

    def _reserve(self, fd: int, length: int) -> int:
        os.posix_fallocate(fd, 0, length)
        return length

    def read(self, fd: int, offset: int, view: Buffer) -> PlainJob:
        return PlainJob(lambda: self._read(fd, offset, memoryview(view)))

    def _read(self, fd: int, offset: int, view: memoryview) -> int:
        self.faults.take(self.faults.read_errnos)
        done = 0
        while done < len(view):
            count = os.preadv(fd, [view[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def write_from(self, fd: int, offset: int, source: Source, head: Buffer, sync: bool) -> PlainJob:
        return PlainJob(lambda: self._write_from(fd, offset, source, bytes(head), sync))

    def _write_from(self, fd: int, offset: int, source: Source, head: bytes, sync: bool) -> int:
        whole = bytearray(source.length)
        for at, piece in source.pieces():
            whole[at : at + len(piece)] = piece
        source.check()
        return self._write(fd, offset, [head, whole], sync)

    def read_into(self, fd: int, offset: int, sink: Sink) -> PlainJob:
        return PlainJob(lambda: self._read_into(fd, offset, sink))

    def _read_into(self, fd: int, offset: int, sink: Sink) -> int:
        done = 0
        while wants := sink.wants:
            piece = memoryview(bytearray(wants))
            count = self._read(fd, offset + done, piece)
            done += count
            if count < wants:
                break
            sink.feed(piece)
        return done

    def read_now(self, fd: int, offset: int, view: memoryview) -> int:
        if self.faults.read_errnos:
            return -1
        return preadv_nowait(fd, offset, view)

    def open_now(self, path: str) -> int:
        return -1
