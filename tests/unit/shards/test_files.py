"""Large shards: what each step of publishing leaves behind, failures, leftovers."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import cast

import pytest

from anvil.base.errors import BadRecord, DriveFailed, DriveStalled, SlowDown, StorageFull
from anvil.base.limits import MIB
from anvil.model.shard import ShardHeader
from anvil.shards import identity
from anvil.shards.drive import LocalDrive
from anvil.shards.files import FolderSync, LargeShardFile, blob_path, blobs_in, parse_blob_name
from anvil.shards.io import Io
from anvil.shards.settings import DriveSettings
from tests.contract.plain_io import THREADS, FaultyJobs, ThreadExecutor
from tests.contract.shard_samples import SESSION, begun_and_over, make_footer, make_frames, make_header
from tests.unit.shards.support import get, opened, picture, put_large, run

SIZE = 1 * MIB


def test_a_crash_at_each_step_of_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the folder is taken before each step, and one after; each is opened as a drive of its own."""
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)
        picture(tmp_path / "d", tmp_path / f"crash-{name}")

    header = make_header(SIZE)
    frames = make_frames(header)

    async def main() -> None:
        async with opened(tmp_path / "d", settings=DriveSettings(floor_bytes=MIB, step=step)) as drive:
            shard = await drive.create(header)
            await shard.write(frames)
            await shard.publish(make_footer())
            step("after")
        assert steps == ["flush", "folder", "link", "enter", "tidy", "after"]
        for name in steps:
            async with opened(tmp_path / f"crash-{name}") as drive:
                expected = frames if name in ("enter", "tidy", "after") else None
                assert await get(drive, header) == expected, f"crash before {name}"
                places = [place async for place in drive.scan()]
                assert [place.damaged for place in places] == ([False] if expected else []), f"crash before {name}"
                assert list((tmp_path / f"crash-{name}/tmp").iterdir()) == []
                # And the shard can be stored afterwards, whatever was left.
                again = await drive.create(header)
                await again.write(frames)
                await again.publish(make_footer())
                assert await get(drive, header) == frames

    run(main())


@pytest.mark.parametrize(
    ("where", "number", "error"),
    [
        ("write_errnos", [errno.EIO], DriveFailed),
        ("write_errnos", [0, errno.EIO], DriveFailed),
        ("write_errnos", [errno.ENOSPC], StorageFull),
        ("write_errnos", [0, errno.ENOSPC], StorageFull),
        ("sync_errnos", [errno.EIO], DriveFailed),  # the file
        ("sync_errnos", [0, errno.EIO], DriveFailed),  # blobs/, for ab
        ("sync_errnos", [0, 0, 0, errno.EIO], DriveFailed),  # the folder that the name is in
        ("sync_errnos", [0, 0, 0, errno.ENOSPC], StorageFull),
    ],
)
@pytest.mark.parametrize("begun", [False, True], ids=["a task", "begun"])
def test_a_failure_leaves_nothing_visible(
    tmp_path: Path, where: str, number: list[int], error: type[Exception], begun: bool
) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            header = make_header(SIZE)
            frames = make_frames(header)
            shard = await drive.create(header)
            setattr(jobs.faults, where, list(number))
            with pytest.raises(error):
                await (begun_and_over(shard, frames) if begun else shard.write(frames))
                await shard.publish(make_footer())
            await shard.abort()
            assert await drive.open(header.blob.blob_id, 0) is None
            assert list((tmp_path / "d/tmp").iterdir()) == []
            assert (drive.readable, drive.writable) == (True, False)
            await drive.probe()
            assert drive.writable is (error is StorageFull)

    run(main())


def test_a_sound_record_is_not_overwritten_and_a_damaged_one_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, frames = await put_large(drive)
            path = blob_path(tmp_path / "d/blobs", header.blob.blob_id, 0)
            inode = path.stat().st_ino
            for damage in (False, True):
                if damage:
                    os.truncate(path, path.stat().st_size - 3)
                shard = await drive.create(header)
                await shard.write(frames)
                await shard.publish(make_footer())
                assert (path.stat().st_ino == inode) is not damage
            drive._store.files.discard(path)
            place = await drive.open(header.blob.blob_id, 0)
            assert place is not None
            assert await drive.verify(place) == make_footer()
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


@pytest.mark.parametrize("cut", [1, 100, 1000, 500_000, 2 * MIB])
def test_a_truncated_file_is_damaged(tmp_path: Path, cut: int) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, frames = await put_large(drive)
            path = blob_path(tmp_path / "d/blobs", header.blob.blob_id, 0)
            os.truncate(path, path.stat().st_size - cut)
            assert [place.damaged async for place in drive.scan()] == [True]
            place = await drive.open(header.blob.blob_id, 0)
            assert place is not None
            with pytest.raises(BadRecord):
                await drive.verify(place)
            view = memoryview(bytearray(len(frames)))
            count = await drive.read(place, 0, view)
            assert bytes(view[:count]) == frames[:count]
            assert (count < len(frames)) is (cut > 200)

    run(main())


def test_a_file_cut_into_its_header_is_a_bad_record(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, _ = await put_large(drive)
            os.truncate(blob_path(tmp_path / "d/blobs", header.blob.blob_id, 0), 100)
            with pytest.raises(BadRecord):
                await drive.open(header.blob.blob_id, 0)
            places = [place async for place in drive.scan()]
            assert [(p.damaged, p.header.blob.blob_id, p.header.bucket_id) for p in places] == [(True, header.blob.blob_id, 0)]
            assert await drive.remove(header.blob.blob_id, 0)
            assert [place async for place in drive.scan()] == []

    run(main())


def test_a_misplaced_file_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, _ = await put_large(drive)
            blobs = tmp_path / "d/blobs"
            other = os.urandom(16)
            target = blob_path(blobs, other, 0)
            target.parent.mkdir(parents=True, exist_ok=True)
            blob_path(blobs, header.blob.blob_id, 0).rename(target)
            with pytest.raises(BadRecord):
                await drive.open(other, 0)

    run(main())


def test_a_read_error_is_the_drives_failure_and_damages_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            header, frames = await put_large(drive)
            place = await drive.open(header.blob.blob_id, 0)
            assert place is not None
            jobs.faults.read_errnos = [errno.EIO]
            with pytest.raises(DriveFailed):
                await drive.read(place, 0, memoryview(bytearray(10)))
            assert drive.stats.read_errors == 1
            assert await get(drive, header) == frames
            jobs.faults.read_errnos = [errno.EIO]
            assert [place.damaged async for place in drive.scan()] == [True], "an unreadable sector is damage"
            assert drive.writable

    run(main())


def test_leftovers_go_with_their_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            shard = await drive.create(make_header(SIZE))
            dead = tmp_path / "d/tmp" / f"{(b'x' * 16).hex()}-1-1.part"
            dead.write_bytes(b"abandoned")
            kept = await drive.recover(frozenset([SESSION, b"x" * 16]))
            assert kept.leftovers == 0
            assert (await drive.recover(frozenset([SESSION]))).leftovers == 1
            assert not dead.exists()
            assert (await drive.recover(frozenset())).leftovers == 0, "ours is open: its lock is held"
            await shard.write(make_frames(make_header(SIZE)))
            await shard.publish(make_footer())

    run(main())


def test_cancelled_in_the_middle_of_a_write(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header = make_header(SIZE)
            shard = await drive.create(header)
            task = asyncio.create_task(shard.write(make_frames(header)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await shard.abort()
            assert list((tmp_path / "d/tmp").iterdir()) == []
            assert drive.writable

    run(main())


def begin_of(header: ShardHeader) -> bytes:
    """Some of a shard's frames. (What comes last is flushed by `publish`.)"""
    return make_frames(header)[:-1]


async def given_up_in_a_write(drive: LocalDrive, jobs: FaultyJobs) -> tuple[LargeShardFile, list[BaseException | None]]:
    """A large shard that nobody wants any more, while a write to it is held at the gate; and what will be told."""
    shard = await drive.create(make_header(SIZE))
    told: list[BaseException | None] = []
    assert shard.begin(begin_of(make_header(SIZE)), told.append)
    await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
    await shard.abort()
    return shard, told


async def hanging_in_a_write(drive: LocalDrive, jobs: FaultyJobs) -> LargeShardFile:
    """A large shard whose writer was told that the drive hangs, in a write that is held at the gate."""
    shard = await drive.create(make_header(SIZE))
    jobs.faults.gate = threading.Event()
    with pytest.raises(DriveStalled):
        await begun_and_over(shard, begin_of(make_header(SIZE)))
    assert drive.stalled
    return shard


def test_aborted_after_a_write_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on, and the descriptor stays open for it."""
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 1)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            jobs.faults.gate = threading.Event()
            shard, told = await given_up_in_a_write(drive, jobs)
            os.fstat(shard._fd)
            assert told == []
            jobs.faults.gate.set()
            await drive._io.idle()
            assert told == [None]
            assert list((tmp_path / "d/tmp").iterdir()) == []
            assert drive.writable

    run(main())


def test_a_drive_that_hangs_in_a_write_that_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told; the file is closed and removed when the disk answers."""
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 1)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs, settings=DriveSettings(floor_bytes=MIB, stalled_s=0.2)) as drive:
            shard, header = await hanging_in_a_write(drive, jobs), make_header(SIZE)
            assert jobs.faults.gate is not None
            await shard.abort()
            os.fstat(shard._fd)
            with pytest.raises(RuntimeError):
                shard.begin(b"x", lambda error: None)
            other = LargeShardFile(drive._store.large, header, tmp_path / "d/tmp/other", os.dup(shard._fd))
            with pytest.raises(DriveStalled):
                await begun_and_over(other, begin_of(header))
            jobs.faults.gate.set()
            while drive.stalled or shard._open or other._open:
                await asyncio.sleep(0.01)
            await drive._io.idle()
            for closed in (shard, other):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(closed._fd)
            assert list((tmp_path / "d/tmp").iterdir()) == []
            assert drive.writable

    run(main())


def test_an_error_that_comes_when_nobody_waits_any_more_is_the_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 1)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs, settings=DriveSettings(floor_bytes=MIB, stalled_s=0.2)) as drive:
            jobs.faults.sync_errnos = [errno.EIO]
            shard = await hanging_in_a_write(drive, jobs)
            assert jobs.faults.gate is not None
            jobs.faults.gate.set()
            while drive.stalled or shard._open:
                await asyncio.sleep(0.01)
            await drive._io.idle()
            assert not drive.writable
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


def test_a_write_that_the_executor_refuses_takes_the_shard_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header = make_header(SIZE)
            shard = await drive.create(header)
            executor = drive._io.executor
            assert isinstance(executor, ThreadExecutor)
            executor.refusal = SlowDown()
            with pytest.raises(SlowDown):
                await begun_and_over(shard, make_frames(header))
            with pytest.raises(RuntimeError):
                shard.begin(b"x", lambda error: None)
            assert list((tmp_path / "d/tmp").iterdir()) == []
            assert drive.writable

    run(main())


@pytest.mark.parametrize("begun", [False, True], ids=["a task", "begun"])
def test_a_write_to_a_drive_that_hangs_already_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """With every thread of the drive hanging, so that not even a file can be closed."""
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 1)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs, settings=DriveSettings(floor_bytes=MIB, stalled_s=0.2)) as drive:
            header, frames = make_header(SIZE), begin_of(make_header(SIZE))
            hanging = [await drive.create(header) for _ in range(THREADS)]
            late = await drive.create(header)
            jobs.faults.gate = threading.Event()
            for writing in [asyncio.create_task(begun_and_over(shard, frames)) for shard in hanging]:
                with pytest.raises(DriveStalled):
                    await writing
            try:
                with pytest.raises(DriveStalled):
                    await asyncio.wait_for(begun_and_over(late, frames) if begun else late.write(frames), 10)
                with pytest.raises(RuntimeError):
                    late.begin(frames, lambda error: None)
            finally:
                jobs.faults.gate.set()
            while drive.stalled:
                await asyncio.sleep(0.01)
            await drive._io.idle()
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


def test_a_drive_is_left_only_when_what_was_begun_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 1)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            jobs.faults.gate = threading.Event()
            shard, told = await given_up_in_a_write(drive, jobs)
            asyncio.get_running_loop().call_later(0.3, jobs.faults.gate.set)
            await drive.close()
            assert jobs.faults.gate.is_set()
            assert told == [None]
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(shard._fd)
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


def test_many_published_at_once_share_flushes(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            prefix = os.urandom(2)
            headers = [make_header(300_000, blob_id=prefix + os.urandom(14)) for _ in range(12)]
            shards = [await drive.create(header) for header in headers]
            contents = [make_frames(header) for header in headers]
            for shard, frames in zip(shards, contents, strict=True):
                await shard.write(frames)
            before = jobs.faults.syncs
            await asyncio.gather(*(shard.publish(make_footer()) for shard in shards))
            assert jobs.faults.syncs - before < 2 * 12, "12 files, and fewer folder flushes than files"
            for header, frames in zip(headers, contents, strict=True):
                assert await get(drive, header) == frames

    run(main())


def test_only_owner_may_look(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put_large(drive)
            await drive.put(make_header(), make_frames(make_header()), make_footer())
        for path in (tmp_path / "d").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
        assert (tmp_path / "d").stat().st_mode & 0o077 == 0

    run(main())


def test_names_are_hex_only() -> None:
    assert parse_blob_name("0" * 32 + ".7") == (bytes(16), 7)
    for name in (
        "..",
        "../x.1",
        "0" * 32,
        "0" * 32 + ".x",
        "0" * 31 + ".1",
        "z" * 32 + ".1",
        "0" * 32 + ".256",
        "0" * 32 + ".-1",
    ):
        assert parse_blob_name(name) is None
    path = blob_path(Path("/blobs"), b"../../../../etc/", 3)
    assert path == Path("/blobs/2e/2e/2e2e2f2e2e2f2e2e2f2e2e2f6574632f.3")


def test_the_identity_is_not_disturbed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            first = drive.drive_id
        async with opened(tmp_path / "d", expected=first) as drive:
            assert drive.drive_id == first
            assert (tmp_path / "d" / identity.IDENTITY).exists()

    run(main())


def test_aborting_in_the_middle_of_a_flush_keeps_the_descriptor_until_it_ended(tmp_path: Path) -> None:
    """A closed number comes to mean another file, and the C thread would write into that."""

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            header = make_header(SIZE)
            shard = await drive.create(header)
            await shard.write(make_frames(header))
            jobs.faults.gate = threading.Event()
            publishing = asyncio.create_task(shard.publish(make_footer()))
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            await shard.abort()
            os.fstat(shard._fd)  # raises once it is closed
            jobs.faults.gate.set()
            with pytest.raises(DriveFailed):
                await publishing
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(shard._fd)
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


def test_a_failed_flush_of_a_folder_fails_those_who_came_meanwhile(tmp_path: Path) -> None:
    """The kernel reports a lost write once: the next flush succeeds, though what they had entered may be lost too."""

    class OneFailure:
        def __init__(self) -> None:
            self.begun, self.go_on, self.flushes = asyncio.Event(), asyncio.Event(), 0

        async def sync_folder(self, folder: str, guard: object) -> None:
            self.flushes += 1
            self.begun.set()
            await self.go_on.wait()
            if self.flushes == 1:
                raise OSError(errno.EIO, "lost")

    async def main() -> None:
        io = OneFailure()
        folders = FolderSync(cast(Io, io))
        first = asyncio.create_task(folders.sync(tmp_path))
        await io.begun.wait()
        second = asyncio.create_task(folders.sync(tmp_path))
        await asyncio.sleep(0)
        io.go_on.set()
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
        await folders.sync(tmp_path)

    run(main())


def test_room_that_was_not_used_is_given_back(tmp_path: Path) -> None:
    """At once: what is free is measured every few seconds only."""

    async def main() -> None:
        jobs = FaultyJobs()
        settings = DriveSettings(floor_bytes=MIB, probe_s=3600)
        async with opened(tmp_path / "d", jobs, settings=settings) as drive:
            free = drive.free_bytes
            shard = await drive.create(make_header(100 * MIB))
            assert drive.free_bytes == free - make_header(100 * MIB).blob.geometry.shard_bytes
            await shard.abort()
            assert drive.free_bytes == free
            shard = await drive.create(make_header(SIZE))
            jobs.faults.write_errnos = [errno.ENOSPC]
            with pytest.raises(StorageFull):
                await shard.write(make_frames(make_header(SIZE)))
            assert drive.free_bytes == free
            await drive.probe()
            free = drive.free_bytes
            await put_large(drive)
            assert drive.free_bytes < free, "and what was used is not"

    run(main())


@pytest.mark.parametrize("count", [7, 8])
def test_a_large_shard_is_flushed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A flush of gigabytes at the end would take as long as a disk that hangs; but what comes last is flushed once, with the footer."""
    monkeypatch.setattr("anvil.shards.files.DRIVE_FLUSH_BYTES", 2 * MIB)

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            header = make_header(count * MIB)
            frames = memoryview(make_frames(header))
            shard = await drive.create(header)
            step = len(frames) // count
            for at in range(0, len(frames), step):
                await shard.write(frames[at : at + step])
            assert jobs.faults.syncs == 3
            await shard.publish(make_footer())
            assert jobs.faults.syncs > 3
            assert await get(drive, header) == frames

    run(main())


def test_only_the_right_place_makes_a_file_a_shard(tmp_path: Path) -> None:
    """A copy that somebody put aside must not be met as a second one of the shard that is at its place."""
    blob_id = bytes.fromhex("abcd" + "0" * 28)
    real = blob_path(tmp_path, blob_id, 1)
    for path in (
        real,
        real.with_name(f"{blob_id.hex()}.01"),
        real.with_name(f"{blob_id.hex().upper()}.1"),
        tmp_path / "ab" / "cd.bak" / real.name,
        tmp_path / "ab" / "ce" / real.name,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert blobs_in(tmp_path / "ab") == [(blob_id, 1)]
