"""Digests of many streams side by side: the same bytes as one after the other, in order, whatever is mixed."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import select
import time
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil._ec import digest
from anvil._ec.digest import DigestJob, DigestLanes, Digests
from anvil._ec.pool import Job

DEADLINE_S = 20.0


@pytest.fixture(params=digest.md5_kernels())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    before = digest.md5_kernel()
    digest.set_md5_kernel(request.param)
    yield request.param
    digest.set_md5_kernel(before)


def collect(lanes: DigestLanes, count: int) -> list[Job]:
    """Exactly `count` finished jobs, waiting on the eventfd as an event loop would."""
    jobs: list[Job] = []
    until = time.monotonic() + DEADLINE_S
    while len(jobs) < count:
        ready, _, _ = select.select([lanes.fileno()], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"{len(jobs)} of {count} jobs finished in time"
        jobs += lanes.collect()
    assert len(jobs) == count
    return jobs


def is_readable(lanes: DigestLanes) -> bool:
    return bool(select.select([lanes.fileno()], [], [], 0)[0])


def wait_until_idle(stream: Digests) -> None:
    """Until every job of `stream` has finished, collected or not: from then on its state is free to be taken."""
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            Job.run(DigestJob(stream, b"", 0))  # past DigestJob.run, which asks first whether everything was collected
        except RuntimeError:
            assert time.monotonic() < until
        else:
            return


def check(algorithms: tuple[str, ...], data: bytes, results: dict[str, bytes]) -> None:
    assert tuple(results) == algorithms
    for name, value in results.items():
        if name in ("md5", "sha1", "sha256"):
            assert value == hashlib.new(name, data).digest()
        elif name == "crc32":
            assert value == zlib.crc32(data).to_bytes(4, "big")
        else:
            assert value == {"crc32c": digest.crc32c, "crc64nvme": digest.crc64nvme}[name](data).to_bytes(len(value), "big")


MIXES = st.sampled_from([("md5",), ("md5", "crc32c"), ("md5", "sha256", "crc64nvme"), ("sha1", "crc32"), ("md5", "sha1"), ()])


@settings(max_examples=80, deadline=None)
@given(
    mixes=st.lists(MIXES, min_size=1, max_size=20),
    order=st.lists(st.tuples(st.integers(0, 19), st.sampled_from([0, 1, 63, 64, 65, 127, 128, 200, 5000, 40_000])), max_size=60),
    threads=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("kernel", digest.md5_kernels())
def test_interleaved_streams(
    kernel: str, mixes: list[tuple[str, ...]], order: list[tuple[int, int]], threads: int, seed: int
) -> None:
    before = digest.md5_kernel()
    digest.set_md5_kernel(kernel)
    try:
        lanes = DigestLanes(threads)
    finally:
        digest.set_md5_kernel(before)
    noise = random.Random(seed).randbytes(40_000)
    streams = [Digests(mix) for mix in mixes]
    fed = [bytearray() for _ in mixes]
    submitted: list[DigestJob] = []
    for index, size in order:
        which = index % len(mixes)
        start = random.Random(size + seed).randrange(len(noise) - size + 1)
        piece = noise[start : start + size]
        fed[which] += piece
        job = DigestJob(streams[which], piece, size)
        lanes.submit(job)
        submitted.append(job)
    finished = collect(lanes, len(submitted))
    for done in finished:
        done.check()
    for stream in streams:  # order within a stream is kept
        mine = [job for job in submitted if job.digests is stream]
        assert [job for job in finished if isinstance(job, DigestJob) and job.digests is stream] == mine
    for mix, stream, data in zip(mixes, streams, fed, strict=True):
        check(tuple(dict.fromkeys(mix)), bytes(data), stream.results())
    assert lanes.in_flight == 0
    assert lanes.close() == []


def test_lanes_are_refilled_when_jobs_of_other_lengths_end(kernel: str) -> None:
    lanes = DigestLanes()
    assert lanes.lanes == {"avx512": 16, "avx512vl": 8, "avx2": 8, "scalar": 1}[kernel]
    noise = random.Random(5).randbytes(100_000)
    streams = [Digests(["md5"]) for _ in range(50)]
    lengths = [(i * 7919) % 100_001 for i in range(50)]
    for stream, length in zip(streams, lengths, strict=True):
        lanes.submit(DigestJob(stream, noise, length))
    assert lanes.in_flight == 50
    collect(lanes, 50)
    for stream, length in zip(streams, lengths, strict=True):
        assert stream.results()["md5"] == hashlib.md5(noise[:length]).digest()
    lanes.close()


def test_jobs_of_one_stream_follow_each_other(kernel: str) -> None:
    lanes = DigestLanes(2)
    stream = Digests(["md5", "sha256"])
    pieces = [random.Random(i).randbytes(i * 31 % 700) for i in range(300)]
    jobs = [DigestJob(stream, piece, len(piece)) for piece in pieces]
    for job in jobs:
        lanes.submit(job)
    assert collect(lanes, 300) == jobs
    check(("md5", "sha256"), b"".join(pieces), stream.results())
    lanes.close()


def test_only_the_length_given_is_digested() -> None:
    lanes = DigestLanes()
    stream = Digests(["md5"])
    lanes.submit(DigestJob(stream, memoryview(b"abcdef"), 3))
    collect(lanes, 1)
    assert stream.results()["md5"] == hashlib.md5(b"abc").digest()
    for length in (-1, 7):
        with pytest.raises(ValueError, match="does not fit"):
            DigestJob(stream, b"abcdef", length)
    lanes.close()


def test_the_event_is_written_once_until_collected() -> None:
    lanes = DigestLanes()
    stream = Digests(["md5"])
    assert not is_readable(lanes)
    for _ in range(5):
        lanes.submit(DigestJob(stream, b"x" * 1000, 1000))
    wait_until_idle(stream)
    assert int.from_bytes(os.read(lanes.fileno(), 8), "little") == 1
    assert len(lanes.collect()) == 5
    assert lanes.collect() == []
    lanes.submit(DigestJob(stream, b"", 0))
    collect(lanes, 1)
    assert not is_readable(lanes)
    lanes.close()


def test_a_stream_in_flight_is_left_alone() -> None:
    lanes, others = DigestLanes(), DigestLanes()
    stream = Digests(["md5"])
    data = bytes(1 << 20)
    lanes.submit(DigestJob(stream, data, len(data)))
    for forbidden in (stream.results, lambda: stream.update(b"x"), DigestJob(stream, b"x", 1).run):
        with pytest.raises(RuntimeError, match="in flight"):
            forbidden()
    with pytest.raises(RuntimeError, match="in flight"):
        others.submit(DigestJob(stream, b"x", 1))
    wait_until_idle(stream)
    with pytest.raises(RuntimeError, match="in flight"):
        stream.results()  # finished, not collected
    collect(lanes, 1)
    stream.update(b"x")
    others.submit(DigestJob(stream, b"yz", 2))  # now it may go elsewhere
    collect(others, 1)
    assert stream.results()["md5"] == hashlib.md5(data + b"xyz").digest()
    lanes.close()
    others.close()


def test_jobs_run_inline_too() -> None:
    stream = Digests(["md5", "crc32"])
    DigestJob(stream, b"ab", 2).run()
    DigestJob(stream, b"c!", 1).run()
    check(("md5", "crc32"), b"abc", stream.results())


def test_a_job_is_submitted_once() -> None:
    lanes = DigestLanes()
    job = DigestJob(Digests(["md5"]), b"x", 1)
    lanes.submit(job)
    with pytest.raises(RuntimeError, match="submitted before"):
        lanes.submit(job)
    collect(lanes, 1)
    lanes.close()


def test_close_waits_and_returns_what_nobody_collected(kernel: str) -> None:
    lanes = DigestLanes(2)
    data = random.Random(9).randbytes(300_000)
    streams = [Digests(["md5"]) for _ in range(20)]
    jobs = [DigestJob(stream, data, len(data)) for stream in streams for _ in range(2)]
    for job in jobs:
        lanes.submit(job)
    finished = lanes.close()
    assert sorted(map(id, finished)) == sorted(map(id, jobs))
    for stream in streams:
        assert stream.results()["md5"] == hashlib.md5(data * 2).digest()
    assert lanes.close() == []
    with pytest.raises(RuntimeError, match="closed"):
        lanes.submit(DigestJob(streams[0], b"x", 1))
    with pytest.raises(ValueError, match="at least one thread"):
        DigestLanes(0)


def test_a_job_keeps_its_buffer_and_its_stream_alive() -> None:
    lanes = DigestLanes()
    buffer = bytearray(b"q" * 500_000)
    job = DigestJob(Digests(["md5"]), buffer, len(buffer))
    with pytest.raises(BufferError):
        buffer.clear()
    lanes.submit(job)
    del job
    gc.collect()
    (done,) = collect(lanes, 1)
    assert isinstance(done, DigestJob)
    assert done.digests.results()["md5"] == hashlib.md5(b"q" * 500_000).digest()
    del done
    buffer.clear()
    lanes.close()


def test_lanes_may_be_dropped_without_close() -> None:
    lanes = DigestLanes()
    stream = Digests(["md5"])
    lanes.submit(DigestJob(stream, b"x", 1))
    collect(lanes, 1)
    del lanes
    gc.collect()
    assert stream.results()["md5"] == hashlib.md5(b"x").digest()
