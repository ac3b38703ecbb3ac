"""Space of removed shards comes back, and nothing living is lost on the way."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from anvil.base.errors import DriveFailed
from anvil.model.shard import ShardHeader
from anvil.shards import identity
from anvil.shards.drive import LocalDrive
from anvil.shards.reader import SegmentRef
from tests.contract.plain_io import FaultyJobs
from tests.unit.shards.support import SMALL_SEGMENTS, get, opened, picture, put, run, segments_of

Stored = list[tuple[ShardHeader, bytes]]


async def keep_all(headers: Sequence[ShardHeader]) -> list[bool]:
    return [True] * len(headers)


async def fill(drive: LocalDrive, count: int = 24, size: int = 10_000) -> Stored:
    return [await put(drive, size) for _ in range(count)]


async def remove(drive: LocalDrive, stored: Stored) -> None:
    for header, _ in stored:
        assert await drive.remove(header.blob.blob_id, 0)


def test_a_dead_segment_is_unlinked_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            before = len(segments_of(tmp_path / "d"))
            await remove(drive, stored[:20])
            assert len(segments_of(tmp_path / "d")) < before - 2
            for header, frames in stored[20:]:
                assert await get(drive, header) == frames

    run(main())


def test_living_records_are_moved_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            living = stored[::4]
            await remove(drive, [one for one in stored if one not in living])
            before = sum(path.stat().st_size for path in segments_of(tmp_path / "d"))
            places = {h.blob.blob_id: await drive.open(h.blob.blob_id, 0) for h, _ in living}
            report = await drive.compact(keep_all)
            assert report.moved > 0 and report.unlinked == report.segments
            assert sum(path.stat().st_size for path in segments_of(tmp_path / "d")) < before
            for header, frames in living:
                assert await get(drive, header) == frames
                place = places[header.blob.blob_id]
                assert place is not None and isinstance(place.ref, SegmentRef)
                moved = place.__class__(place.header, SegmentRef(place.ref.place, None))
                view = memoryview(bytearray(len(frames)))
                assert await drive.read(moved, 0, view) == len(frames), "a reader finds the record where it went"
                assert bytes(view) == frames
                assert (await drive.verify(moved)).etag == (await drive.verify(place)).etag, "and so does who checks its footer"
            assert (await drive.compact(keep_all)).moved == 0
            picture(tmp_path / "d", tmp_path / "killed")
        monkeypatch.setattr(identity, "boot_id", lambda: "another boot")
        async with opened(tmp_path / "killed") as drive:
            for header, frames in living:
                assert await get(drive, header) == frames

    run(main())


def test_orphans_are_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            orphan, kept = stored[1], stored[2]
            await remove(drive, [stored[0], *stored[3:]])

            async def owned(headers: Sequence[ShardHeader]) -> list[bool]:
                return [header != orphan[0] for header in headers]

            report = await drive.compact(owned)
            assert report.orphans == 1
            assert await get(drive, orphan[0]) is None
            assert await get(drive, kept[0]) == kept[1]

    run(main())


def test_removed_while_it_is_moved_stays_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            living = stored[::4]
            await remove(drive, [one for one in stored if one not in living])
            gone, again = living[0], living[1]
            newer: Stored = []

            async def owned(headers: Sequence[ShardHeader]) -> list[bool]:
                """Called between reading the records and writing them again: the worst moment."""
                if gone[0] in headers:
                    assert await drive.remove(gone[0].blob.blob_id, 0)
                if again[0] in headers:
                    newer.append(await put(drive, header=again[0]))
                return [True] * len(headers)

            await drive.compact(owned)
            assert await get(drive, gone[0]) is None
            assert await get(drive, again[0]) == newer[0][1]
            for header, frames in living[2:]:
                assert await get(drive, header) == frames
            for _, row in drive._store.index.segments():
                assert 0 <= row.dead <= row.total

    run(main())


def test_racing_readers_and_removers(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive, 60)
            living = stored[::3]
            await remove(drive, [one for one in stored if one not in living])
            kept, going = living[::2], living[1::2]

            async def read() -> None:
                for _ in range(20):
                    for header, frames in kept:
                        assert await get(drive, header) == frames

            await asyncio.gather(read(), remove(drive, going), drive.compact(keep_all), drive.compact(keep_all), read())
            for header, _ in going:
                assert await get(drive, header) is None
            assert len([place async for place in drive.scan()]) == len(kept)

    run(main())


def test_a_damaged_record_keeps_its_segment(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            living = stored[:2]
            await remove(drive, stored[2:])
            place = drive._store.index.get(living[0][0].blob.blob_id, 0)
            path = drive._store.segment_path(place.segment)
            with path.open("r+b") as file:
                file.seek(place.offset + 40)
                file.write(b"\xff\xff\xff")
            report = await drive.compact(keep_all)
            assert (report.moved, report.unlinked) == (1, 0)
            assert path.exists()
            assert await get(drive, living[1][0]) == living[1][1]
            await drive.remove(living[0][0].blob.blob_id, 0)
            assert not path.exists(), "with the damaged one gone, nothing lives in it"

    run(main())


def test_under_hold_nothing_is_unlinked(tmp_path: Path) -> None:
    held = [False]

    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS, hold=lambda: held[0]) as drive:
            stored = await fill(drive)
            await remove(drive, [one for one in stored if one not in stored[::4]])
            held[0] = True
            before = segments_of(tmp_path / "d")
            assert (await drive.compact(keep_all)).unlinked == 0
            assert segments_of(tmp_path / "d") == before
            held[0] = False
            assert (await drive.compact(keep_all)).unlinked > 0

    run(main())


def test_a_failing_disk_stops_it_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        jobs = FaultyJobs()
        async with opened(tmp_path / "d", jobs, settings=SMALL_SEGMENTS) as drive:
            stored = await fill(drive)
            living = stored[::4]
            await remove(drive, [one for one in stored if one not in living])
            jobs.faults.write_errnos = [0, errno.EIO]  # the new segment, then the first batch
            with pytest.raises(DriveFailed):
                await drive.compact(keep_all)
            for header, frames in living:
                assert await get(drive, header) == frames

    run(main())
