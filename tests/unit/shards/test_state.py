"""A drive's identity and its states: missing, another drive, back again; nothing is initialised by accident."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from anvil.base.errors import DriveFailed, InvalidSetting, Unavailable
from anvil.base.limits import MIB
from anvil.shards.drive import LocalDrive
from anvil.shards.settings import DriveSettings
from tests.contract.plain_io import FaultyJobs, ThreadExecutor
from tests.contract.shard_samples import SESSION, make_header
from tests.unit.shards.support import get, opened, picture, put, put_large, run

PATIENT = DriveSettings(floor_bytes=MIB, probe_s=3600)
"""Probes only when the test says so."""


async def attach(path: Path, **options: object) -> LocalDrive:
    return await LocalDrive.attach(path, executor=ThreadExecutor(1), jobs=FaultyJobs(), session=SESSION, **options)


def test_an_empty_folder_is_not_taken_for_a_known_drive(tmp_path: Path) -> None:
    async def main() -> None:
        for path in (tmp_path / "absent", tmp_path):
            async with opened(path, expected=b"d" * 16, settings=PATIENT) as drive:
                assert (drive.readable, drive.writable, drive.drive_id) == (False, False, b"d" * 16)
                with pytest.raises(DriveFailed):
                    await put(drive)
                with pytest.raises(DriveFailed):
                    await drive.open(b"b" * 16, 0)
                await drive.probe()
                assert not drive.readable
        assert list(tmp_path.iterdir()) == []

    run(main())


def test_a_folder_is_initialised_only_if_asked_and_empty(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(InvalidSetting):
            await attach(tmp_path / "new", expected=None, create=False)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/holiday.jpg").write_bytes(b"x")
        with pytest.raises(InvalidSetting):
            await attach(tmp_path / "photos", expected=None, create=True)
        (tmp_path / "disk/lost+found").mkdir(parents=True)
        async with opened(tmp_path / "disk") as drive:
            assert drive.writable

    run(main())


def test_shards_without_an_identity_are_not_adopted(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
        (tmp_path / "d/drive.json").unlink()
        with pytest.raises(InvalidSetting):
            await attach(tmp_path / "d", expected=None, create=True)

    run(main())


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"drive_id": "00", "format": 1, "created_us": 1}', b'{"drive_id":"%b","format":99}']
)
def test_a_damaged_or_newer_identity_is_an_error(tmp_path: Path, content: bytes) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d"):
            pass
        (tmp_path / "d/drive.json").write_bytes(content)
        with pytest.raises(DriveFailed):
            await attach(tmp_path / "d", expected=None, create=True)

    run(main())


def test_another_drive_in_the_place_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "one") as drive:
            header, _ = await put(drive)
            known = drive.drive_id
        async with opened(tmp_path / "two"):
            pass
        async with opened(tmp_path / "two", expected=known, settings=PATIENT) as drive:
            assert not drive.readable
            with pytest.raises(DriveFailed):
                await drive.open(header.blob.blob_id, 0)

    run(main())


@pytest.mark.parametrize("how", ["moved", "unmounted", "copied"])
def test_a_folder_that_vanishes_and_returns(tmp_path: Path, how: str) -> None:
    path, away = tmp_path / "d", tmp_path / "away"

    async def main() -> None:
        async with opened(path, settings=PATIENT) as drive:
            stored = [await put(drive), await put_large(drive)]
            path.rename(away)
            if how == "unmounted":
                path.mkdir()
            with pytest.raises(DriveFailed):
                await put(drive)
            assert (drive.readable, drive.writable) == (False, False)
            with pytest.raises(DriveFailed):
                await drive.create(make_header(MIB))
            with pytest.raises(DriveFailed):
                await drive.open(stored[0][0].blob.blob_id, 0)
            with pytest.raises(DriveFailed):
                await drive.remove(stored[0][0].blob.blob_id, 0)
            await drive.probe()
            await drive.probe()
            assert drive.stats.vanished == 1
            assert not drive.readable
            if how == "unmounted":
                assert list(path.iterdir()) == [], "nothing was written under the mount point"
                path.rmdir()
            if how == "copied":
                shutil.copytree(away, path)
            else:
                away.rename(path)
            await drive.probe()
            assert (drive.readable, drive.writable, drive.reason) == (True, True, None)
            stored.append(await put(drive))
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


def test_not_finding_a_shard_means_nothing_if_the_folder_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=PATIENT) as drive:
            (tmp_path / "d").rename(tmp_path / "away")
            with pytest.raises(DriveFailed):
                await drive.open(b"b" * 16, 0)
            assert not drive.readable

    run(main())


def test_a_known_drive_that_is_plugged_in_later_is_found_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, frames = await put(drive)
            known = drive.drive_id
        (tmp_path / "d").rename(tmp_path / "away")
        settings = DriveSettings(floor_bytes=MIB, probe_s=0.01)
        async with opened(tmp_path / "d", expected=known, settings=settings) as drive:
            assert not drive.readable
            (tmp_path / "away").rename(tmp_path / "d")
            deadline = time.monotonic() + 20
            while not drive.readable:
                assert time.monotonic() < deadline, "the drive never came back"
                await drive.probe()
            assert await get(drive, header) == frames

    run(main())


def test_under_hold_nothing_is_removed(tmp_path: Path) -> None:
    held = [True]

    async def main() -> None:
        async with opened(tmp_path / "d", hold=lambda: held[0]) as drive:
            header, frames = await put_large(drive)
            with pytest.raises(Unavailable):
                await drive.remove(header.blob.blob_id, 0)
            assert await get(drive, header) == frames
            held[0] = False
            assert await drive.remove(header.blob.blob_id, 0)

    run(main())


def test_a_hold_that_begins_while_the_drive_is_busy_leaves_the_entry_too(tmp_path: Path) -> None:
    answers: list[bool] = []

    async def main() -> None:
        async with opened(tmp_path / "d", hold=lambda: answers.pop(0)) as drive:
            small, large = await put(drive), await put_large(drive)
            for header, frames in (small, large):
                answers[:] = [False, True]  # asked for, and when its turn has come
                with pytest.raises(Unavailable):
                    await drive.remove(header.blob.blob_id, 0)
                assert await get(drive, header) == frames
            answers[:] = [False] * 8
            for header, _ in (small, large):
                assert await drive.remove(header.blob.blob_id, 0)
                assert await drive.open(header.blob.blob_id, 0) is None

    run(main())


def test_the_second_drive_object_of_a_process_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            with pytest.raises(DriveFailed):
                await attach(tmp_path / "d", expected=None, create=False)
            await put(drive)

    run(main())


def test_a_copied_drive_is_a_drive(tmp_path: Path) -> None:
    """Nothing in the records depends on the path."""

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            stored = [await put(drive), await put_large(drive)]
        picture(tmp_path / "d", tmp_path / "elsewhere")
        async with opened(tmp_path / "elsewhere") as drive:
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())
