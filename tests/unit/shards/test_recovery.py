"""After a crash: every acknowledged shard is there, torn ones are not, damage does not hide what follows it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anvil.base.errors import BadRecord
from anvil.base.limits import LEFTOVER_YOUNG_S
from anvil.model.records import BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardHeader
from anvil.shards import identity
from anvil.shards.format import BLOCK_BYTES, align, encode_footer, encode_header, encode_segment
from anvil.shards.format import SegmentHeader as Segment
from anvil.shards.recovery import Found, walk_segment
from tests.contract.shard_samples import SESSION, make_footer, make_frames, make_header
from tests.unit.shards.support import SMALL_SEGMENTS, get, opened, picture, put, put_large, run, segments_of

SEGMENT = 1


def make_record(header: ShardHeader, offset: int, segment: int = SEGMENT, written_us: int = 5) -> bytes:
    foot = encode_footer(header.blob.blob_id, header.index, make_footer())
    head = encode_header(header, footer_bytes=len(foot), segment=segment, offset=offset, written_us=written_us)
    data = head + make_frames(header) + foot
    return data.ljust(align(len(data)), b"\0")


def make_segment(sizes: list[int]) -> tuple[bytes, list[ShardHeader], list[int]]:
    """(bytes, headers, offsets) of a segment with a record of each plaintext size, zeros behind."""
    data = encode_segment(Segment(SEGMENT, 1 << 20, b"d" * 16, SESSION, 1))
    headers, offsets = [], []
    for size in sizes:
        headers.append(make_header(size))
        offsets.append(len(data))
        data += make_record(headers[-1], len(data))
    return data + bytes(2 * BLOCK_BYTES), headers, offsets


def walk(path: Path, data: bytes) -> list[Found]:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return list(walk_segment(fd, SEGMENT))
    finally:
        os.close(fd)


def whole(found: list[Found]) -> list[ShardHeader]:
    return [one.record.header for one in found if one.whole]


def test_a_last_record_torn_at_any_byte_is_not_whole(tmp_path: Path) -> None:
    data, headers, offsets = make_segment([300, 20])
    end = len(data) - 2 * BLOCK_BYTES
    last = len(data[offsets[1] : end].rstrip(b"\0"))
    for length in range(last):
        torn = data[: offsets[1] + length].ljust(len(data), b"\0")
        assert whole(walk(tmp_path / "s", torn)) == headers[:1], f"torn after {length} of {last} bytes"
        assert whole(walk(tmp_path / "s", torn[: offsets[1] + length])) == headers[:1], f"cut after {length} bytes"
    assert whole(walk(tmp_path / "s", data)) == headers


def test_damage_at_any_byte_hides_only_that_record(tmp_path: Path) -> None:
    data, headers, offsets = make_segment([100, 20, 100])
    payload = headers[1].blob.geometry.shard_bytes
    for at in range(offsets[1], offsets[2]):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        found = walk(tmp_path / "s", bytes(damaged))
        seen = whole(found)
        assert seen[0] == headers[0] and seen[-1] == headers[2], f"flipped byte {at - offsets[1]}"
        inside = at - offsets[1] - 192  # the header is 192 bytes long
        if inside < 0:
            assert len(found) == 2
        elif inside < payload:
            assert seen == headers, "the payload has checksums of its own"


def test_records_longer_than_the_window_are_found(tmp_path: Path) -> None:
    data, headers, _ = make_segment([200_000] * 12 + [10])
    assert whole(walk(tmp_path / "s", data)) == headers


def test_a_record_of_another_place_is_not_believed(tmp_path: Path) -> None:
    data, headers, offsets = make_segment([100, 100])
    stray = make_record(make_header(100), offset=8192, segment=SEGMENT + 1)
    start = len(data) - 2 * BLOCK_BYTES
    data = data[:start] + stray + data[start:]
    shifted = data[: offsets[1]] + bytes(64) + data[offsets[1] :]
    for content, expected in ((data, headers), (shifted, headers[:1])):
        found = walk(tmp_path / "s", content)
        assert [one.record.header for one in found] == whole(found) == expected


def test_killed_and_started_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = [await put(drive, 5000) for _ in range(30)] + [await put_large(drive)]
            gone, _ = stored.pop(3)
            await drive.remove(gone.blob.blob_id, 0)
            picture(tmp_path / "d", tmp_path / "killed")
        async with opened(tmp_path / "killed") as drive:
            report = drive.recovered
            assert not report.rebuilt
            assert report.records == 0, "the index knew all of them"
            assert all(row.sealed for _, row in drive._store.index.segments())
            for header, frames in stored:
                assert await get(drive, header) == frames
            assert await get(drive, gone) is None, "same boot: what was removed stays removed"
            more, frames = await put(drive)
            assert await get(drive, more) == frames

    run(main())


def test_a_durable_record_that_was_not_indexed_is_found(tmp_path: Path) -> None:
    """Killed between fdatasync and the index's commit."""

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await put(drive)
            offset = drive._store.writer._active.start
            picture(tmp_path / "d", tmp_path / "killed")
        header = make_header(500)
        with (segments_of(tmp_path / "killed")[0]).open("r+b") as file:
            file.seek(offset)
            file.write(make_record(header, offset))
            file.seek(offset + 4096)
            file.write(make_record(make_header(500), offset + 4096)[:400])  # and one that is torn
        async with opened(tmp_path / "killed") as drive:
            assert (drive.recovered.records, drive.recovered.torn) == (1, 1)
            assert await get(drive, header) is not None
            assert len([place async for place in drive.scan()]) == 2

    run(main())


@pytest.mark.parametrize("lose", ["boot", "index", "garbage"])
def test_a_lost_index_is_rebuilt(tmp_path: Path, lose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d", settings=SMALL_SEGMENTS) as drive:
            stored = [await put(drive, 5000) for _ in range(40)] + [await put_large(drive)]
            again, _ = stored[5]
            stored[5] = await put(drive, header=again)
            picture(tmp_path / "d", tmp_path / "killed")
        data = tmp_path / "killed/index/data.mdb"
        if lose == "boot":
            monkeypatch.setattr(identity, "boot_id", lambda: "another boot")
        elif lose == "index":
            data.unlink()
        else:
            data.write_bytes(b"garbage" * 5000)
        async with opened(tmp_path / "killed") as drive:
            assert drive.recovered.records == 41
            assert drive.recovered.rebuilt is (lose != "index")
            for header, frames in stored:
                assert await get(drive, header) == frames
            assert sum(row.dead for _, row in drive._store.index.segments()) > 0, "the older of two records is dead"
            header, frames = await put(drive)
            assert await get(drive, header) == frames

    run(main())


def test_a_rebuild_of_damaged_segments_resynchronises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            stored = [await put(drive, 3000) for _ in range(20)]
            places = {e.blob_id: e.place for _, e in drive._store.index.page(b"", 100)}
            picture(tmp_path / "d", tmp_path / "killed")
        hurt = [stored[4], stored[9], stored[19]]
        with (segments_of(tmp_path / "killed")[0]).open("r+b") as file:
            for (header, _), at in zip(hurt, ("header", "footer", "footer"), strict=True):
                place = places[header.blob.blob_id]
                file.seek(place.offset + (20 if at == "header" else place.header_bytes + place.payload_bytes + 20))
                file.write(b"\xff\xff\xff")
        monkeypatch.setattr(identity, "boot_id", lambda: "another boot")
        async with opened(tmp_path / "killed") as drive:
            for header, frames in stored:
                found = await get(drive, header)
                if header in (stored[4][0], stored[19][0]):
                    assert found is None, "header gone, or not acknowledged as far as anybody can tell"
                else:
                    assert found == frames, "a footer damaged in the middle leaves the payload"
            damaged = [place.header async for place in drive.scan() if place.damaged]
            assert damaged == [stored[9][0]]

    run(main())


def test_damage_under_a_living_index(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            (one, _), (two, frames) = [await put(drive, 3000) for _ in range(2)]
            place = drive._store.index.get(one.blob.blob_id, 0)
            with segments_of(tmp_path / "d")[0].open("r+b") as file:
                file.seek(place.offset + 30)
                file.write(b"\xff\xff")
            with pytest.raises(BadRecord):
                await drive.open(one.blob.blob_id, 0)
            assert await get(drive, two) == frames
            seen = {place.header.blob.blob_id: place async for place in drive.scan()}
            assert seen[one.blob.blob_id].damaged and seen[one.blob.blob_id].header.bucket_id == 0
            assert not seen[two.blob.blob_id].damaged
            assert drive.stats.damaged == 2
            await put(drive, header=one)  # repair writes it again
            assert await get(drive, one) is not None
            assert drive.writable

    run(main())


def test_leaving_cleanly_needs_no_recovery_even_in_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, frames = await put(drive)
            assert (tmp_path / "d/running.json").exists()
        assert not (tmp_path / "d/running.json").exists()
        monkeypatch.setattr(identity, "boot_id", lambda: "another boot")
        async with opened(tmp_path / "d") as drive:
            assert (drive.recovered.rebuilt, drive.recovered.segments) == (False, 0)
            assert await get(drive, header) == frames

    run(main())


def start_appender(folder: Path, session: bytes, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.shards.appender", str(folder), session.hex(), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def kill_after(process: subprocess.Popen[str], acknowledged: int) -> dict[bytes, str]:
    """What the process acknowledged until it was killed: blob id -> digest of the frames."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledged)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    done = [line.split() for line in lines if line.endswith("\n")]
    return {bytes.fromhex(blob_id): digest for blob_id, digest in done}


async def check_acknowledged(drive: object, done: dict[bytes, str]) -> None:
    for blob_id, digest in done.items():
        place = await drive.open(blob_id, 0)
        assert place is not None, f"acknowledged shard {blob_id.hex()} is lost"
        view = memoryview(bytearray(place.header.blob.geometry.shard_bytes))
        assert await drive.read(place, 0, view) == len(view)
        assert hashlib.sha256(view).hexdigest() == digest
        await drive.verify(place)


@pytest.mark.parametrize(("words", "acknowledged"), [((), 400), (("large",), 40)])
def test_killed_by_sigkill_while_appending(tmp_path: Path, words: tuple[str, ...], acknowledged: int) -> None:
    done = kill_after(start_appender(tmp_path / "d", b"k" * 16, *words), acknowledged)
    assert len(done) >= acknowledged

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            await check_acknowledged(drive, done)
            assert not list((tmp_path / "d/tmp").iterdir()), "leftovers are collected"
            assert not [place async for place in drive.scan() if place.damaged]

    run(main())


def test_killed_by_sigkill_and_the_index_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = kill_after(start_appender(tmp_path / "d", b"k" * 16), 200)
    monkeypatch.setattr(identity, "boot_id", lambda: "another boot")

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            assert drive.recovered.rebuilt
            await check_acknowledged(drive, done)

    run(main())


def test_two_processes_on_one_drive_and_one_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            mine = [await put(drive)]
            process = start_appender(tmp_path / "d", b"k" * 16)
            mine += [await put(drive) for _ in range(20)]
            assert process.stdout is not None
            first = process.stdout.readline().split()[0]
            assert await drive.open(bytes.fromhex(first), 0) is not None, "the index is shared"
            early = await drive.recover(frozenset([SESSION]))
            assert early.segments == 0, "a segment whose writer lives is not touched, whatever its session"
            done = kill_after(process, 100)
            held = await drive.recover(frozenset([SESSION, b"k" * 16]))
            assert held.segments == 0, "its session may still live"
            report = await drive.recover(frozenset([SESSION]))
            assert report.segments >= 1
            await check_acknowledged(drive, done)
            mine.append(await put(drive))
            rows = [row for _, row in drive._store.index.segments()]
            assert [row.sealed for row in rows if row.session == SESSION] == [False]
            assert all(row.sealed for row in rows if row.session != SESSION)
            for header, frames in mine:
                assert await get(drive, header) == frames

    run(main())


def test_another_process_still_there_keeps_the_marker(tmp_path: Path) -> None:
    async def main() -> None:
        process = start_appender(tmp_path / "d", b"k" * 16)
        async with opened(tmp_path / "d") as drive:
            assert drive.recovered is None, "only the first one recovers"
        assert (tmp_path / "d/running.json").exists()
        kill_after(process, 1)

    run(main())


def test_scheme_and_size_survive(tmp_path: Path) -> None:
    """A header read back is the header written, for a coded shard too."""

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            blob = BlobRef(os.urandom(16), 900_000, Scheme(4, 2))
            header = ShardHeader(blob, 5, 1 << 62, "k" * 1024, b"v" * 16, SESSION, 10_000)
            await put(drive, header=header)
            place = await drive.open(blob.blob_id, 5)
            assert place is not None and place.header == header

    run(main())


def test_what_is_just_being_made_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """Between the making of a file and its lock, by a session that was opened after somebody asked which ones live."""

    async def main() -> None:
        async with opened(tmp_path / "d") as drive:
            header, frames = await put(drive)
            index = drive._store.index
            number = index.new_segment(b"n" * 16, 1 << 20)  # its file is not there yet
            assert (await drive.recover(frozenset())).segments == 0
            assert index.segment(number) is not None
            making = [tmp_path / f"d/segments/{number:016x}.seg", tmp_path / f"d/tmp/{(b'n' * 16).hex()}-1-1.part"]
            for path in making:
                path.touch()
            report = await drive.recover(frozenset())
            assert (report.segments, report.leftovers, report.young) == (0, 0, 2)
            assert index.segment(number) is not None and not index.segment(number).sealed
            assert all(path.exists() for path in making)
            old = time.time() - LEFTOVER_YOUNG_S
            os.utime(making[1], (old, old))
            report = await drive.recover(frozenset())
            assert (report.leftovers, report.young) == (1, 1), "nobody takes so long"
        async with opened(tmp_path / "d") as drive:
            assert not any(path.exists() for path in making), "whoever is alone knows that nobody makes them"
            assert drive._store.index.segment(number) is None
            assert await get(drive, header) == frames

    run(main())
