"""When an index is believed, when it is read first, and when it is given up and built anew: pages that were never flushed, sectors that
cannot be read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anvil.base.errors import DriveFailed
from anvil.shards import identity
from anvil.shards.drive import DriveSettings
from tests.unit.shards.support import get, opened, picture, put, put_large, run
from tests.unit.shards.test_recovery import check_acknowledged, kill_after, start_appender

PATIENT = DriveSettings(floor_bytes=1 << 20, probe_s=3600)
"""Probes only when the test says so."""
PAGES = 2 * 4096
"""LMDB's two meta pages: an index file cut here opens, and every look-up lies behind its end."""


class BadSector:
    """preads of files of that name fail once they reach `offset`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, offset: int = 0) -> None:
        self.hits = 0
        self.reads = 0
        pread = os.pread

        def failing(fd: int, count: int, at: int) -> bytes:
            if Path(f"/proc/self/fd/{fd}").readlink() == folder / "index/data.mdb":
                self.reads += 1
                if at + count > offset:
                    self.hits += 1
                    raise OSError(errno.EIO, "Input/output error")
            return pread(fd, count, at)

        monkeypatch.setattr(os, "pread", failing)


def test_an_index_that_cannot_be_read_is_rebuilt_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            stored = [await put(drive, 5000) for _ in range(20)] + [await put_large(drive)]
            picture(tmp_path / "d", tmp_path / "killed")
        sector = BadSector(monkeypatch, tmp_path / "killed")
        async with opened(tmp_path / "killed") as drive:
            assert sector.hits == 1
            assert drive.recovered is not None and drive.recovered.rebuilt
            assert drive.recovered.records == 20
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


def test_the_index_is_read_after_an_unclean_stop_and_once_per_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
            picture(tmp_path / "d", tmp_path / "killed")
        size = (tmp_path / "killed/index/data.mdb").stat().st_size
        for folder, boot, reads in (
            ("killed", None, True),
            ("d", None, False),
            ("d", "another boot", True),
            ("d", "another boot", False),
        ):
            with monkeypatch.context() as patch:
                if boot is not None:
                    patch.setattr(identity, "boot_id", lambda boot=boot: boot)
                sector = BadSector(patch, tmp_path / folder, offset=2 * size + (1 << 21))
                async with opened(tmp_path / folder) as drive:
                    assert bool(sector.reads) is reads, (folder, boot)
                    assert drive.recovered is not None and not drive.recovered.rebuilt

    run(main())


def test_an_index_shorter_than_its_pages_is_rebuilt(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            stored = [await put(drive) for _ in range(20)]
        os.truncate(tmp_path / "d/index/data.mdb", PAGES)
        async with opened(tmp_path / "d") as drive:
            assert drive.recovered is not None and drive.recovered.rebuilt
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


def test_an_interrupted_rebuild_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            stored = [await put(drive) for _ in range(20)]
        os.truncate(tmp_path / "d/index/data.mdb", PAGES)  # left cleanly: only the rebuild itself can say that it is not over

        def die(*_: object, alone: bool) -> None:
            raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr("anvil.shards.store.recover", die)
            with pytest.raises(RuntimeError):
                async with opened(tmp_path / "d"):
                    pass
        async with opened(tmp_path / "d") as drive:
            assert drive.recovered is not None and drive.recovered.rebuilt
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


PROCESS = """
import asyncio, sys, time
from pathlib import Path
from anvil.shards.drive import DriveSettings
from tests.unit.shards.support import opened
async def main():
    blob = bytes.fromhex(sys.argv[3])
    settings = DriveSettings(floor_bytes=0, probe_s=0.05)
    async with opened(Path(sys.argv[1]), expected=bytes.fromhex(sys.argv[2]), create=False, settings=settings) as drive:
        print("attached" if drive.readable else "missing", flush=True)
        sys.stdin.readline()
        deadline = time.monotonic() + 30
        while not drive.readable and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        print("found" if await drive.open(blob, 0) else "lost", flush=True)
asyncio.run(main())
"""


def test_a_process_that_died_of_the_index_makes_all_others_let_go(tmp_path: Path) -> None:
    """One process touches a page that is not there and dies of SIGBUS. Neither the one that takes its place nor this one may follow."""

    async def main() -> None:
        async with opened(tmp_path / "d", settings=PATIENT) as drive:
            stored = [await put(drive) for _ in range(20)]

            def another() -> subprocess.Popen[bytes]:
                words = [str(tmp_path / "d"), drive.drive_id.hex(), stored[0][0].blob.blob_id.hex()]
                return subprocess.Popen([sys.executable, "-c", PROCESS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

            victim = another()
            assert victim.stdout is not None and victim.stdout.readline() == b"attached\n"
            os.truncate(tmp_path / "d/index/data.mdb", PAGES)
            victim.communicate(b"go\n", 30)
            assert victim.returncode == -signal.SIGBUS
            successor = another()
            assert successor.stdout is not None and successor.stdout.readline() == b"missing\n"
            await drive.probe()
            assert drive.readable, "it let go, and built another"
            assert drive.recovered is not None and drive.recovered.rebuilt
            stored.append(await put(drive))
            for header, frames in stored:
                assert await get(drive, header) == frames
            assert successor.communicate(b"go\n", 60)[0] == b"found\n"
            assert successor.returncode == 0

    run(main())


def test_an_index_that_contradicts_itself_is_given_up_while_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=PATIENT) as drive:
            stored = [await put(drive) for _ in range(200)]
            data = tmp_path / "d/index/data.mdb"
            with data.open("r+b") as file:  # the map shows it at once
                file.seek(PAGES)
                file.write(bytes(data.stat().st_size - PAGES))
            with pytest.raises(DriveFailed):
                await put(drive)
            assert not drive.readable
            await drive.probe()
            assert drive.writable
            stored.append(await put(drive))
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


def test_a_successor_does_not_wait_long_for_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while others use the drive: its successor reads the whole index, and if that takes long, after it has started."""
    done: dict[bytes, str] = {}

    async def main() -> None:
        writer = start_appender(tmp_path / "d", b"k" * 16)
        done.update(kill_after(start_appender(tmp_path / "d", b"l" * 16), 50))
        known = bytes.fromhex(identity.read_identity(tmp_path / "d", "d").drive_id)
        assert len(identity.dead_users(tmp_path / "d")) == 1
        with monkeypatch.context() as patch:
            patch.setattr("anvil.shards.drive.INDEX_CHECK_START_S", -1.0)
            async with opened(tmp_path / "d", expected=known, create=False, settings=PATIENT) as drive:
                assert not drive.readable
                await drive.probe()
                assert drive.readable
                assert identity.dead_users(tmp_path / "d") == []
                await check_acknowledged(drive, done)
        kill_after(writer, 1)

    run(main())


@pytest.mark.parametrize("disk", ["8:16", "8:17"])
def test_the_number_of_the_disk_is_part_of_whose_pages_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    """sysfs as the kernel shows it: a partition lies below its disk, which alone has the number."""
    sys_block = tmp_path / "sys"
    (sys_block / "devices/sdb/sdb1").mkdir(parents=True)
    (sys_block / "devices/sdb/diskseq").write_text("7\n")
    (sys_block / "devices/sdb/sdb1/partition").write_text("1\n")
    (sys_block / disk).symlink_to(sys_block / ("devices/sdb" if disk == "8:16" else "devices/sdb/sdb1"))
    device = os.makedev(*map(int, disk.split(":")))
    stat = Path.stat

    def on_that_disk(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result([*found[:2], device, *found[3:10]]) if path == tmp_path else found

    monkeypatch.setattr(Path, "stat", on_that_disk)
    assert identity.device_of(tmp_path) == disk, "an older kernel has no such numbers"
    monkeypatch.setattr(identity, "_BLOCK_DEVICES", sys_block)
    assert identity.device_of(tmp_path) == f"{disk}/7"


def test_a_disk_that_was_pulled_out_lost_what_was_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes back within the same boot. Its folder says nothing about that; the number of the disk does."""
    number = [1]
    monkeypatch.setattr(identity, "device_of", lambda folder: f"8:16/{number[0]}")

    async def main() -> None:
        async with opened(tmp_path / "d", settings=PATIENT) as drive:
            stored = [await put(drive) for _ in range(30)]
            picture(tmp_path / "d", tmp_path / "seen")
            (tmp_path / "d").rename(tmp_path / "away")
            await drive.probe()
            assert not drive.readable
            # What the disk has of the index: nothing since the last flush by chance.
            (tmp_path / "seen").rename(tmp_path / "d")
            (tmp_path / "d/index/data.mdb").unlink()
            async with opened(tmp_path / "empty"):
                pass
            (tmp_path / "empty/index/data.mdb").rename(tmp_path / "d/index/data.mdb")
            number[0] = 2
            await drive.probe()
            assert drive.readable
            assert drive.recovered is not None and drive.recovered.rebuilt
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())
