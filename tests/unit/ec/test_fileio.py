"""File jobs: whole or with the kernel's reason, at any offset, with any number of buffers."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from anvil._ec.fileio import (
    CloseJob,
    Guard,
    GuardJob,
    LinkJob,
    MakeFolderJob,
    OpenJob,
    ReadJob,
    SyncFolderJob,
    UnlinkJob,
    WriteJob,
    open_cached,
)
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
    os.close(read_end)
    os.close(write_end)


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
        WriteJob(fd, 0, [b""]).check()


def guard_of(path: Path) -> Guard:
    found = path.stat()
    return Guard(str(path), (found.st_dev, found.st_ino))


def test_jobs_on_names(tmp_path: Path) -> None:
    MakeFolderJob(str(tmp_path / "d")).run()
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        MakeFolderJob(str(tmp_path / "d")).run()
    opening = OpenJob(str(tmp_path / "d/one"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    opening.run()
    fd = opening.take()
    with pytest.raises(RuntimeError, match="taken"):
        opening.take()
    WriteJob(fd, 0, [b"bytes"], sync=True).run()
    LinkJob(str(tmp_path / "d/one"), str(tmp_path / "d/two")).run()
    with pytest.raises(FileExistsError):
        LinkJob(str(tmp_path / "d/one"), str(tmp_path / "d/two")).run()
    SyncFolderJob(str(tmp_path / "d")).run()
    CloseJob(fd, str(tmp_path / "d/one")).run()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["two"]
    UnlinkJob(str(tmp_path / "d/two")).run()
    with pytest.raises(FileNotFoundError):
        UnlinkJob(str(tmp_path / "d/two")).run()
    with pytest.raises(NotADirectoryError):
        SyncFolderJob(__file__).run()


def test_an_opened_file_that_nobody_takes_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    opening = OpenJob(str(tmp_path / "file"), os.O_RDONLY)
    opening.run()
    held = len(list(Path("/proc/self/fd").iterdir()))
    del opening
    assert len(list(Path("/proc/self/fd").iterdir())) == held - 1


def test_opening_what_the_kernel_has_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    fd = open_cached(str(tmp_path / "file"))
    if fd < 0:
        pytest.skip("this kernel or sandbox has no openat2 with RESOLVE_CACHED")
    assert os.pread(fd, 10, 0) == b"x"
    assert not os.get_inheritable(fd)
    os.close(fd)
    with suppress(FileNotFoundError):  # where the kernel remembers that there is none
        assert open_cached(str(tmp_path / "absent")) == -1
    with pytest.raises(OSError, match="symbolic"):
        open_cached(str(tmp_path / "link"))


def test_nothing_is_written_where_another_disk_is(fd: int, tmp_path: Path) -> None:
    identity = tmp_path / "identity"
    identity.write_text("1")
    guard = guard_of(identity)
    assert (guard.path, guard.place[1]) == (str(identity), identity.stat().st_ino)
    GuardJob(guard).run()
    WriteJob(fd, 0, [b"before"], True, guard).run()
    identity.rename(tmp_path / "away")
    jobs = {
        "write": WriteJob(fd, 0, [b"after"], True, guard),
        "open": OpenJob(str(tmp_path / "new"), os.O_RDWR | os.O_CREAT, 0o600, guard),
        "flush": SyncFolderJob(str(tmp_path), guard),
        "look": GuardJob(guard),
    }
    for put_there in (None, "another"):
        if put_there:
            identity.write_text(put_there)
        for name, job in list(jobs.items()):
            with pytest.raises(OSError, match="No such device"):
                job.run()
            assert not (tmp_path / "new").exists(), name
    assert os.pread(fd, 10, 0) == b"before"
