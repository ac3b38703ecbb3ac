"""Reading, the cache of open files, the classes of errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anvil.base.errors import DriveFailed, StorageFull
from anvil.shards.fds import FileCache, OpenFile
from anvil.shards.io import Io, storage_error
from tests.contract.plain_io import FaultyJobs, ThreadExecutor
from tests.unit.shards.support import run


@pytest.mark.parametrize("length", [10, 100_000, 300_000])
def test_reads_inside_and_past_the_end(tmp_path: Path, length: int) -> None:
    """Short only at the end of the file, whether read inline or on a thread."""
    data = os.urandom(400_000)
    (tmp_path / "f").write_bytes(data)

    async def main() -> None:
        executor = ThreadExecutor(1)
        io = Io(executor, FaultyJobs())
        file = OpenFile(os.open(tmp_path / "f", os.O_RDONLY), io)
        for offset in (0, 7, 399_990, 400_000, 500_000):
            view = memoryview(bytearray(length))
            count = await io.read(file, offset, view)
            assert bytes(view[:count]) == data[offset : offset + length]
        os.close(file.fd)
        executor.close()

    run(main())


def test_a_leased_file_is_closed_only_after_its_lease(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)

    async def main() -> None:
        io = Io(ThreadExecutor(1), FaultyJobs())
        cache = FileCache(2, io)
        with await cache.open(tmp_path / "a") as first:
            for name in "bc":
                with await cache.open(tmp_path / name):
                    pass
            assert len(cache) == 2
            await io.idle()
            assert os.pread(first.fd, 1, 0) == b"a", "pushed out of the cache, and still open"
            cache.close()
            await io.idle()
            assert os.pread(first.fd, 1, 0) == b"a"
        await io.idle()
        with pytest.raises(OSError):
            os.fstat(first.fd)

    run(main())


def test_files_that_were_unlinked_elsewhere_are_let_go(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")

    async def main() -> None:
        io = Io(ThreadExecutor(1), FaultyJobs())
        cache = FileCache(10, io)
        with await cache.open(tmp_path / "a") as gone, await cache.open(tmp_path / "b") as kept:
            pass
        (tmp_path / "a").unlink()
        cache.discard_unlinked()
        await io.idle()
        assert len(cache) == 1
        with pytest.raises(OSError):
            os.fstat(gone.fd)
        os.fstat(kept.fd)
        cache.close()
        await io.idle()

    run(main())


def test_no_space_and_no_quota_are_full_and_the_rest_is_failure() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(storage_error(OSError(number, "x"), "d1"), StorageFull)
    for number in (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENOENT):
        error = storage_error(OSError(number, "x"), "d1")
        assert isinstance(error, DriveFailed)
        assert error.fields["drive"] == "d1"
