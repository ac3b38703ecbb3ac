"""Jobs awaited from asyncio: results, errors, cancellation, order, closing."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from anvil._ec.codec import Codec
from anvil._ec.fileio import OpenJob, ReadJob, WriteJob
from anvil._ec.pool import Job, Pool
from anvil._ec.stripe import BlobKey, DecodeJob, EncodeJob, SealBroken
from anvil.base.errors import ShuttingDown, SlowDown
from anvil.ec.executor import JobRunner, NativeExecutor

KEY = BlobKey(bytes(32), bytes(16))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(scenario(), 20))

    return runner


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class Held:
    """A queue whose jobs finish when the test says so: it keeps them back from a real pool."""

    def __init__(self) -> None:
        self.pool = Pool(1)
        self.kept: list[Job] = []

    def fileno(self) -> int:
        return self.pool.fileno()

    def submit(self, job: Job) -> None:
        self.kept.append(job)

    def collect(self) -> list[Job]:
        return self.pool.collect()

    def close(self) -> list[Job]:
        return self.pool.close()

    def let_go(self) -> None:
        while self.kept:
            self.pool.submit(self.kept.pop(0))


def encode_job(plain: bytes) -> EncodeJob:
    return EncodeJob(Codec(2, 1), KEY, 0, True, plain, len(plain), bytearray(3 * (len(plain) // 2 + 200)))


def test_many_jobs_many_waiters(run: Run) -> None:
    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 3)
        codec = Codec(2, 1)

        async def there_and_back(i: int) -> None:
            plain = os.urandom(50_000 + i)
            encode = encode_job(plain)
            await executor.run(encode)
            back = bytearray(len(plain))
            await executor.run(DecodeJob(codec, KEY, 0, True, len(plain), [None, encode.frame(1), encode.frame(2)], back))
            assert back == plain

        await asyncio.gather(*(there_and_back(i) for i in range(50)))
        assert executor.in_flight == 0
        await executor.close()

    run(scenario)


def test_errors_reach_who_waits(run: Run) -> None:
    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        with pytest.raises(OSError, match="Bad file") as caught:
            await executor.run(WriteJob(10_000, 0, [b"x"]))
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="Bad file"):
            await executor.run_to_end(WriteJob(10_000, 0, [b"x"]))
        encode = encode_job(b"x" * 1000)
        await executor.run(encode)
        frames = [encode.frame(i) for i in range(3)]
        with pytest.raises(SealBroken):
            await executor.run(DecodeJob(Codec(2, 1), KEY, 0, False, 1000, frames, bytearray(1000)))
        await executor.close()

    run(scenario)


def test_a_cancelled_waiter_leaves_the_job_to_finish(run: Run) -> None:
    async def scenario() -> None:
        queue = Held()
        runner = JobRunner[Job](asyncio.get_running_loop(), queue)
        out = bytearray(3 * 700)
        job = EncodeJob(Codec(2, 1), KEY, 0, True, b"x" * 1000, 1000, out)
        task = asyncio.create_task(runner.run(job))
        del job
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert runner.in_flight == 1
        with pytest.raises(BufferError):
            out.append(0)  # still pinned
        queue.let_go()
        await runner.close()
        assert runner.in_flight == 0
        assert any(out), "it ran all the same"
        out.append(0)

    run(scenario)


@pytest.mark.parametrize("fails", [False, True])
def test_run_to_end_returns_only_when_the_job_has_ended(run: Run, tmp_path: Path, fails: bool) -> None:
    async def scenario() -> None:
        queue = Held()
        runner = JobRunner[Job](asyncio.get_running_loop(), queue)
        fd = os.open(tmp_path / "file", os.O_CREAT | (os.O_RDONLY if fails else os.O_RDWR))

        async def write() -> None:
            try:
                await runner.run_to_end(WriteJob(fd, 0, [b"whole"]))
            finally:
                os.close(fd)

        task = asyncio.create_task(write())
        await asyncio.sleep(0)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        os.fstat(fd)
        queue.let_go()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (tmp_path / "file").read_bytes() == (b"" if fails else b"whole")
        await runner.close()

    run(scenario)


def test_one_thread_keeps_the_order(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        await asyncio.gather(*(executor.run(WriteJob(fd, 0, [b"%03d" % i])) for i in range(200)))
        view = bytearray(3)
        await executor.run(ReadJob(fd, 0, view))
        assert view == b"199"
        await executor.close()
        os.close(fd)

    run(scenario)


def test_jobs_in_flight_are_bounded(run: Run) -> None:
    async def scenario() -> None:
        queue = Held()
        runner = JobRunner[Job](asyncio.get_running_loop(), queue, jobs_max=2)
        tasks = [asyncio.create_task(runner.run(encode_job(b"x"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(SlowDown):
            await runner.run(encode_job(b"x"))
        queue.let_go()
        await asyncio.gather(*tasks)
        await runner.run(SyncLater(queue))
        await runner.close()

    class SyncLater(EncodeJob):
        """Accepted once there is room again; lets itself go at once."""

        def __new__(cls, queue: Held) -> SyncLater:
            job = super().__new__(cls, Codec(1, 0), KEY, 0, True, b"", 0, bytearray(24))
            asyncio.get_running_loop().call_soon(queue.let_go)
            return job

    run(scenario)


def test_closed_means_closed(run: Run) -> None:
    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        pending = asyncio.create_task(executor.run(encode_job(b"x" * 100_000)))
        await asyncio.sleep(0)
        await executor.close()
        await pending
        await executor.close()
        with pytest.raises(ShuttingDown):
            await executor.run(encode_job(b"x"))

    run(scenario)


def test_run_small_runs_here_and_now() -> None:
    out = bytearray(24)
    JobRunner.run_small(EncodeJob(Codec(1, 0), KEY, 0, True, b"", 0, out))
    assert out[8:] == KEY.seal(0, True, b"")


def test_a_job_that_hangs_can_be_given_up(run: Run, tmp_path: Path) -> None:
    """Opening a pipe for reading waits until somebody writes to it, as a call to a disk that hangs waits."""
    os.mkfifo(tmp_path / "pipe")

    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        over = asyncio.Event()
        job = OpenJob(str(tmp_path / "pipe"), os.O_RDONLY)
        waiting = executor.begin(job, over.set)
        executor.abandon(job, TimeoutError("given up"))
        with pytest.raises(TimeoutError, match="given up"):
            await waiting
        assert executor.in_flight == 1
        assert not over.is_set()
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
        await over.wait()
        assert executor.in_flight == 0
        executor.abandon(job, TimeoutError())  # it is over
        os.close(job.take())
        await executor.close()

    run(scenario)


def test_whoever_started_a_job_is_told_how_it_ended(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        loop = asyncio.get_running_loop()
        good, bad = loop.create_future(), loop.create_future()
        file = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        unwritable = os.open(tmp_path / "f", os.O_RDONLY)
        executor.start(WriteJob(file, 0, [b"x"]), good.set_result)
        executor.start(WriteJob(unwritable, 0, [b"x"]), bad.set_result)
        assert executor.in_flight == 2
        assert await good is None
        error = await bad
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        assert error.__traceback__ is None
        assert executor.in_flight == 0
        os.close(file)
        os.close(unwritable)
        await executor.close()

    run(scenario)


def test_closing_waits_for_what_was_started(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def scenario() -> None:
        executor = NativeExecutor(asyncio.get_running_loop(), 1)
        job, told = OpenJob(str(tmp_path / "pipe"), os.O_RDONLY), []
        executor.start(job, told.append)
        closing = asyncio.create_task(executor.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        with pytest.raises(ShuttingDown):
            executor.start(OpenJob(str(tmp_path / "pipe"), os.O_RDONLY), told.append)
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
        await closing
        assert told == [None]
        os.close(job.take())

    run(scenario)


def test_jobs_in_flight_are_bounded_however_they_were_begun(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        executor = JobRunner(loop, Pool(1), jobs_max=2)
        first, second = (OpenJob(str(tmp_path / "pipe"), os.O_RDONLY) for _ in range(2))
        waiting = executor.begin(first)
        told = loop.create_future()
        executor.start(second, told.set_result)
        with pytest.raises(SlowDown):
            executor.start(encode_job(b"x"), told.set_result)
        with pytest.raises(SlowDown):
            executor.begin(encode_job(b"x"))
        for job in (first, second):
            os.close(await asyncio.to_thread(os.open, tmp_path / "pipe", os.O_WRONLY))
            await (waiting if job is first else told)
            os.close(job.take())
        await executor.close()

    run(scenario)
