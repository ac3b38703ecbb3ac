"""File jobs: whole or with the kernel's reason, at any offset, with any number of buffers."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from anvil._ec.fileio import ReadJob, SyncJob, WriteJob
from anvil._ec.pool import Pool


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_write_then_read(fd: int) -> None:
    buffers: list[bytes | bytearray | memoryview] = [b"one", bytearray(b"two"), b"", memoryview(b"three"), b""]
    WriteJob(fd, 5, buffers, sync=True).run()
    assert os.pread(fd, 100, 0) == b"\0\0\0\0\0onetwothree"
    view = bytearray(b"\xee" * 20)
    job = ReadJob(fd, 8, view)
    job.run()
    assert job.count == 8, "short at the end of the file"
    assert view == b"twothree" + b"\xee" * 12
    job = ReadJob(fd, 100, view)
    job.run()
    assert job.count == 0


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1024, 3000])
def test_more_buffers_than_one_call_takes(fd: int, count: int) -> None:
    buffers = [bytes([i % 251]) * (i % 7) for i in range(count)]
    WriteJob(fd, 0, buffers).run()
    assert os.pread(fd, 100_000, 0) == b"".join(buffers)


def test_errors_come_with_their_errno(fd: int, tmp_path: Path) -> None:
    with open(tmp_path / "file", "rb") as readonly:
        job = WriteJob(readonly.fileno(), 0, [b"x"])
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            job.run()
        assert caught.value.errno == errno.EBADF
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match="seek") as caught:
        ReadJob(read_end, 0, bytearray(1)).run()
    assert caught.value.errno == errno.ESPIPE
    with pytest.raises(OSError, match="argument") as caught:
        SyncJob(write_end).run()
    assert caught.value.errno == errno.EINVAL
    os.close(read_end)
    os.close(write_end)
    SyncJob(fd).run()


def test_a_full_device() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space") as caught:
            WriteJob(full, 0, [b"x"]).run()
        assert caught.value.errno == errno.ENOSPC
    finally:
        os.close(full)


def test_a_short_write_is_continued_until_the_reason_shows(fd: int) -> None:
    """With a file size limit the kernel writes what fits (short), and says EFBIG only when asked again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            WriteJob(fd, 0, [b"a" * 6000, b"b" * 6000]).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.errno == errno.EFBIG
    assert os.pread(fd, 20_000, 0) == b"a" * 6000 + b"b" * 4000


def test_on_threads_at_disjoint_offsets(fd: int) -> None:
    pool = Pool(3)
    for i in range(50):
        pool.submit(WriteJob(fd, i * 1000, [bytes([i]) * 400, bytes([i]) * 600]))
    for job in pool.close():
        job.check()
    views = [bytearray(1000) for _ in range(50)]
    pool = Pool(3)
    for i, view in enumerate(views):
        pool.submit(ReadJob(fd, i * 1000, view))
    for job in pool.close():
        job.check()
    assert views == [bytes([i]) * 1000 for i in range(50)]


def test_interrupted_by_signals(fd: int) -> None:
    """A storm of signals without SA_RESTART shortens and interrupts calls; the data is whole all the same."""
    ignored = signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, True)
    stop = threading.Event()
    target = threading.get_ident()

    def storm() -> None:
        while not stop.is_set():
            signal.pthread_kill(target, signal.SIGUSR1)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        data = os.urandom(2 << 20)
        view = bytearray(len(data))
        for _ in range(2):
            WriteJob(fd, 0, [data[: 1 << 20], data[1 << 20 :]], sync=False).run()
            ReadJob(fd, 0, view).run()
            assert view == data
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, ignored)


def test_buffers_are_pinned_until_the_job_is_dropped(fd: int) -> None:
    data = bytearray(10)
    job = WriteJob(fd, 0, [data])
    with pytest.raises(BufferError):
        data.append(0)
    del job
    data.append(0)


def test_bad_arguments(fd: int) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        WriteJob(-1, 0, [b""])
    for offset in (-1, 2**63):
        with pytest.raises(ValueError, match="offset"):
            ReadJob(fd, offset, bytearray(1))
    with pytest.raises(BufferError):
        ReadJob(fd, 0, b"read-only")
    with pytest.raises(TypeError):
        WriteJob(fd, 0, [b"good", "bad"])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="has not run"):
        SyncJob(fd).check()
