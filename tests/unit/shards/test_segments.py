"""Group commit: what is acknowledged, what fails together, what a cancelled caller may and may not do."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from anvil.base.errors import DriveFailed, SlowDown, StorageFull
from anvil.base.limits import APPEND_QUEUE_RECORDS, KIB, MIB
from anvil.shards.format import BLOCK_BYTES
from anvil.shards.settings import DriveSettings
from tests.contract.plain_io import FaultyJobs
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.unit.shards.support import SMALL_SEGMENTS, get, opened, picture, put, put_large, run, segments_of


def test_what_queues_up_during_a_batch_is_the_next_batch(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            await put(drive)
            writer = drive._store.writer
            before = writer.batches
            jobs.faults.gate = threading.Event()
            jobs.faults.at_gate.clear()
            first = asyncio.create_task(put(drive))
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            others = [asyncio.create_task(put(drive)) for _ in range(50)]
            await asyncio.sleep(0)
            jobs.faults.gate.set()
            await asyncio.gather(first, *others)
            assert writer.batches == before + 2
            for task in others:
                header, frames = task.result()
                assert await get(drive, header) == frames

    run(main())


def test_nobody_is_acknowledged_before_the_flush(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            await put(drive)
            jobs.faults.gate = threading.Event()
            jobs.faults.at_gate.clear()
            header = make_header()
            task = asyncio.create_task(put(drive, header=header))
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            assert not task.done()
            assert await get(drive, header) is None
            jobs.faults.gate.set()
            await task
            assert await get(drive, header) is not None

    run(main())


def test_a_batch_starts_in_a_fresh_block_and_records_are_aligned(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
            first = drive._store.index.page(b"", 10)[0][1].place
            assert first.offset == BLOCK_BYTES
            await put(drive)
            offsets = sorted(entry.place.offset for _, entry in drive._store.index.page(b"", 10))
            assert offsets == [BLOCK_BYTES, 2 * BLOCK_BYTES]
            await asyncio.gather(*(put(drive, 10 + i) for i in range(20)))
            assert all(entry.place.offset % 64 == 0 for _, entry in drive._store.index.page(b"", 100))

    run(main())


def test_cancelling_a_caller_in_flight_cancels_nothing(tmp_path: Path) -> None:
    """The record is written all the same, and the caller is held until its buffer is free again."""

    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            await put(drive)
            jobs.faults.gate = threading.Event()
            jobs.faults.at_gate.clear()
            mine, other = make_header(), make_header()
            frames = {h.blob.blob_id: make_frames(h) for h in (mine, other)}
            tasks = [asyncio.create_task(drive.put(h, frames[h.blob.blob_id], make_footer())) for h in (mine, other)]
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            tasks[0].cancel()
            await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0)
            assert not tasks[0].done()
            jobs.faults.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            await tasks[1]
            for header in (mine, other):
                assert await get(drive, header) == frames[header.blob.blob_id]

    run(main())


def test_cancelling_a_waiting_caller_takes_its_record_out(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            await put(drive)
            jobs.faults.gate = threading.Event()
            jobs.faults.at_gate.clear()
            flying = asyncio.create_task(put(drive))
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            header = make_header()
            waiting = asyncio.create_task(put(drive, header=header))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            jobs.faults.gate.set()
            await flying
            assert await get(drive, header) is None

    run(main())


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            await put(drive)
            jobs.faults.gate = threading.Event()
            jobs.faults.at_gate.clear()
            flying = asyncio.create_task(put(drive, 1))
            await asyncio.to_thread(jobs.faults.at_gate.wait, 20)
            waiting = [asyncio.create_task(put(drive, 1)) for _ in range(APPEND_QUEUE_RECORDS)]
            await asyncio.sleep(0)
            with pytest.raises(SlowDown):
                await put(drive, 1)
            jobs.faults.gate.set()
            await asyncio.gather(flying, *waiting)

    run(main())


@pytest.mark.parametrize("where", ["write_errnos", "sync_errnos"])
def test_a_failed_write_or_flush_makes_the_drive_read_only(tmp_path: Path, where: str) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            kept, frames = await put(drive)
            setattr(jobs.faults, where, [errno.EIO])
            lost = [make_header() for _ in range(3)]
            outcomes = await asyncio.gather(*(put(drive, header=h) for h in lost), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [DriveFailed] * 3
            assert (drive.readable, drive.writable) == (True, False)
            assert await get(drive, kept) == frames
            for header in lost:
                assert await get(drive, header) is None
            flushed = jobs.faults.syncs
            with pytest.raises(DriveFailed):
                await put(drive)
            with pytest.raises(DriveFailed):
                await drive.create(make_header(1 << 21))
            await drive.probe()
            assert not drive.writable, "no probe makes a failed flush good"
            assert jobs.faults.syncs == flushed, "a failed flush is never repeated"

    run(main())


@pytest.mark.parametrize("where", ["write_errnos", "sync_errnos"])
def test_a_full_disk_fails_the_batch_and_recovers(tmp_path: Path, where: str) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            kept, frames = await put(drive)
            setattr(jobs.faults, where, [errno.ENOSPC])
            jobs.faults.write_prefix = 300
            with pytest.raises(StorageFull):
                await put(drive)
            assert (drive.readable, drive.writable) == (True, False)
            with pytest.raises(StorageFull):
                await put(drive)
            assert await get(drive, kept) == frames
            first = segments_of(tmp_path / "d")[0]
            size = first.stat().st_size
            await drive.probe()
            assert drive.writable
            later, more = await put(drive)
            assert await get(drive, later) == more
            assert first.stat().st_size == size, "nothing is appended behind a failed batch"
            places = [entry.place.segment for _, entry in drive._store.index.page(b"", 10)]
            assert len(set(places)) == 2

    run(main())


def test_a_batch_that_failed_half_written_leaves_the_acknowledged_ones(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs) as drive:
            kept, frames = await put(drive)
            jobs.faults.write_errnos = [errno.EIO]
            jobs.faults.write_prefix = 250
            with pytest.raises(DriveFailed):
                await put(drive)
            picture(tmp_path / "d", tmp_path / "copy")
        async with opened(tmp_path / "copy") as drive:
            assert await get(drive, kept) == frames
            assert [place.damaged async for place in drive.scan()] == [False]

    run(main())


def test_a_busy_executor_fails_the_batch_and_harms_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
            executor = drive._io.executor
            run_job = executor.run

            async def refuse(job: object) -> None:
                raise SlowDown

            executor.run = refuse
            header = make_header()
            with pytest.raises(SlowDown):
                await put(drive, header=header)
            with pytest.raises(SlowDown):
                await put_large(drive)
            executor.run = run_job
            assert drive.writable
            assert await get(drive, header) is None
            header, frames = await put(drive)
            assert await get(drive, header) == frames
            assert len(segments_of(tmp_path / "d")) == 1
            assert list((tmp_path / "d/tmp").iterdir()) == []

    run(main())


def test_one_bad_caller_fails_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
            bad = make_header(key="k" * 1025)
            outcomes = await asyncio.gather(put(drive), put(drive, header=bad), put(drive), return_exceptions=True)
            assert isinstance(outcomes[1], ValueError)
            for outcome in (outcomes[0], outcomes[2]):
                assert await get(drive, outcome[0]) == outcome[1]
            assert drive.writable

    run(main())


def test_segments_roll_over_and_are_sealed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = [await put(drive, 10_000) for _ in range(30)]
            rows = [row for _, row in drive._store.index.segments()]
            assert len(rows) > 5
            assert sum(not row.sealed for row in rows) <= 2, "the active one and the spare"
            for header, frames in stored:
                assert await get(drive, header) == frames
        # Left cleanly: everything is sealed, nothing empty is kept.
        async with opened(tmp_path / "d") as drive:
            assert drive.recovered.segments == 0
            assert all(row.sealed and row.total for _, row in drive._store.index.segments())
            for header, frames in stored:
                assert await get(drive, header) == frames

    run(main())


def test_the_free_space_floor_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        settings = SMALL_SEGMENTS.__class__(floor_bytes=1 << 60)
        async with opened(tmp_path / "d", settings=settings) as drive:
            assert (drive.readable, drive.writable) == (True, False)
            with pytest.raises(StorageFull):
                await put(drive)
            with pytest.raises(StorageFull):
                await drive.create(make_header(1 << 21))
            assert 0 < drive.free_bytes <= drive.capacity_bytes

    run(main())


def test_a_new_session_writes_new_segments(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            old, _ = await put(drive)
            await drive.use_session(b"n" * 16)
            new, frames = await put(drive)
            rows = dict(drive._store.index.segments())
            assert [row.session for row in rows.values()] == [bytes(range(16)), b"n" * 16]
            assert rows[1].sealed
            assert await get(drive, new) == frames
            assert await get(drive, old) is not None

    run(main())


def test_a_spare_that_was_too_small_is_never_written(tmp_path: Path) -> None:
    """Its descriptor is closed, and its number may mean another file by then."""

    async def main() -> None:
        jobs = FaultyJobs()
        tiny = DriveSettings(floor_bytes=MIB, segment_bytes=16 * KIB, segment_first_bytes=16 * KIB)
        async with opened(tmp_path / "d", jobs, settings=tiny) as drive:
            await put(drive)
            spare = drive._store.writer._spare
            assert spare is not None
            await asyncio.wait([spare])
            jobs.faults.write_errnos = [errno.ENOSPC]
            with pytest.raises(StorageFull):
                await put(drive, 50_000)
            await drive.probe()
            header, frames = await put(drive)
            assert await get(drive, header) == frames

    run(main())
