"""What every `Drive` does, whatever it is made of. Run on LocalDrive, on MemoryDrive, and on a LocalDrive behind the cluster port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from anvil._ec.codec import Codec
from anvil._ec.stripe import BlobKey, EncodeJob, OpenFrame, SealFrame
from anvil.base.limits import MIB, SEGMENT_SHARD_BYTES_MAX
from anvil.engine.ports import Drive, LargeShard
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardHeader
from anvil.shards.drive import LocalDrive
from anvil.shards.settings import DriveSettings
from tests.contract.memory_drive import MemoryDrive
from tests.contract.plain_io import FaultyJobs, ThreadExecutor
from tests.contract.shard_samples import SESSION, begun, make_footer, make_frames, make_header
from tests.support.peers import peers_of, served


@asynccontextmanager
async def local(path: Path) -> AsyncIterator[Drive]:
    executor = ThreadExecutor()
    settings = DriveSettings(floor_bytes=MIB)
    drive = await LocalDrive.attach(
        path / "drive", expected=None, create=True, executor=executor, jobs=FaultyJobs(), session=SESSION, settings=settings
    )
    try:
        yield drive
    finally:
        await drive.close()
        executor.close()


@asynccontextmanager
async def memory(path: Path) -> AsyncIterator[Drive]:
    yield MemoryDrive(b"d" * 16)


@asynccontextmanager
async def remote(path: Path) -> AsyncIterator[Drive]:
    async with local(path) as drive, served([drive]) as node, peers_of([node]) as peers:
        yield peers.drive(node.row_of(drive))


Check = Callable[[Drive], Awaitable[None]]


@pytest.fixture(params=[local, memory, remote], ids=["local", "memory", "remote"])
def on_drive(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Check], None]:
    """Runs a coroutine function with a fresh drive."""

    def run(check: Check) -> None:
        async def main() -> None:
            async with request.param(tmp_path) as drive:
                await check(drive)

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


async def store(drive: Drive, header: ShardHeader, frames: bytes, step: int = 100_000) -> None:
    """By `put` if it is small, else as a large shard."""
    if len(frames) <= SEGMENT_SHARD_BYTES_MAX:
        await drive.put(header, frames, make_footer())
        return
    shard: LargeShard = await drive.create(header)
    for start in range(0, len(frames), step):
        await shard.write(frames[start : start + step])
    await shard.publish(make_footer())


async def payload(drive: Drive, header: ShardHeader, offset: int = 0, length: int | None = None) -> bytes:
    place = await drive.open(header.blob.blob_id, header.index)
    assert place is not None
    assert place.header == header
    view = memoryview(bytearray(header.blob.geometry.shard_bytes if length is None else length))
    count = await drive.read(place, offset, view)
    return bytes(view[:count])


SIZES = [1, 4096, 65_535, 200_000, SEGMENT_SHARD_BYTES_MAX, 3 * MIB + 17]
"""Plaintext sizes, stored 1+1: both kinds of shard."""


@pytest.mark.parametrize("size", SIZES)
def test_what_was_stored_is_read(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(size, key="ключ/\U0001f600")
        frames = make_frames(header)
        await store(drive, header, frames)
        assert await payload(drive, header) == frames

    on_drive(check)


@pytest.mark.parametrize("size", SIZES)
def test_a_small_payload_is_at_hand_where_it_has_been_read(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(size)
        frames, blob_id = make_frames(header), header.blob.blob_id
        assert drive.at_hand(blob_id, header.index) is None
        await store(drive, header, frames)
        assert await payload(drive, header) == frames
        found = drive.at_hand(blob_id, header.index)
        assert found in (None, frames)
        if drive.local and size <= 65_535:
            assert found == frames
        assert drive.at_hand(blob_id, header.index + 1) is None
        await drive.remove(blob_id, header.index)
        assert drive.at_hand(blob_id, header.index) is None

    on_drive(check)


@pytest.mark.parametrize("size", [4096, 200_000, 3 * MIB])
def test_ranges_of_the_payload(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(size)
        frames = make_frames(header)
        await store(drive, header, frames)
        for offset, length in [(0, 1), (1, 100), (len(frames) - 1, 1), (len(frames) - 5, 50), (len(frames), 10)]:
            assert await payload(drive, header, offset, length) == frames[offset : offset + length]

    on_drive(check)


def stripes_of(header: ShardHeader) -> Iterator[tuple[int, int, bool]]:
    """Number, length and last flag of each stripe."""
    geometry = header.blob.geometry
    for stripe in range(geometry.stripes):
        yield stripe, geometry.stripe_len(stripe), stripe == geometry.stripes - 1


@pytest.mark.parametrize("size", [300_000, MIB, 3 * MIB + 17])
def test_frames_sealed_as_they_are_written_and_opened_as_they_are_read(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header, plain = make_header(size, scheme=Scheme(1, 0)), os.urandom(size)
        blob, key = header.blob, BlobKey(bytes(32), header.blob.blob_id)
        shard = await drive.create(header)
        for stripe, length, last in stripes_of(header):
            at = stripe * blob.stripe_bytes
            await shard.write_from(SealFrame(key, stripe, last, plain[at : at + length], length))
        with pytest.raises(ValueError, match="more frames"):
            await shard.write_from(SealFrame(key, 0, True, b"x", 1))
        assert await drive.open(blob.blob_id, 0) is None, "not published"
        shard = await drive.create(header)
        for stripe, length, last in stripes_of(header):
            at = stripe * blob.stripe_bytes
            await shard.write_from(SealFrame(key, stripe, last, plain[at : at + length], length))
        await shard.publish(make_footer())
        place = await drive.open(blob.blob_id, 0)
        assert place is not None
        for stripe, length, last in stripes_of(header):
            out = bytearray(length)
            frame = OpenFrame(key, stripe, last, length, out)
            await drive.read_into(place, blob.geometry.frame_offset(stripe), frame)
            frame.check()
            at = stripe * blob.stripe_bytes
            assert out == plain[at : at + length]
            out = bytearray(length)
            frame = OpenFrame(key, stripe, last, length, out)
            begun = drive.begin_into(place, blob.geometry.frame_offset(stripe), frame)
            if begun is None:
                assert not drive.local, "the file is open"
                await drive.read_into(place, blob.geometry.frame_offset(stripe), frame)
            else:
                await begun
            frame.check()
            assert out == plain[at : at + length]
        frame = OpenFrame(key, 0, True, MIB, bytearray(MIB))
        await drive.read_into(place, blob.geometry.shard_bytes - 5, frame)
        assert frame.wants, "the payload ends before the frame does"

    on_drive(check)


def test_a_small_shard_feeds_a_sink_too(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        header, plain = make_header(200_000, scheme=Scheme(1, 0)), os.urandom(200_000)
        key = BlobKey(bytes(32), header.blob.blob_id)
        frame = bytearray(header.blob.geometry.shard_bytes)
        for at, piece in SealFrame(key, 0, True, plain, len(plain)).pieces():
            frame[at : at + len(piece)] = piece
        await drive.put(header, frame, make_footer())
        place = await drive.open(header.blob.blob_id, 0)
        assert place is not None
        out = bytearray(len(plain))
        sink = OpenFrame(key, 0, True, len(plain), out)
        await drive.read_into(place, 0, sink)
        sink.check()
        assert out == plain

    on_drive(check)


def test_an_unknown_shard_is_none(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        header = make_header()
        await store(drive, header, make_frames(header))
        assert await drive.open(os.urandom(16), 0) is None
        assert await drive.open(header.blob.blob_id, 1) is None
        assert await drive.remove(header.blob.blob_id, 1) is False

    on_drive(check)


def test_shards_of_one_blob_are_apart(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        first = make_header(5000, scheme=Scheme(1, 2))
        others = [make_header(5000, scheme=Scheme(1, 2), index=i, blob_id=first.blob.blob_id) for i in range(3)]
        contents = [make_frames(header) for header in others]
        for header, frames in zip(others, contents, strict=True):
            await store(drive, header, frames)
        for header, frames in zip(others, contents, strict=True):
            assert await payload(drive, header) == frames

    on_drive(check)


@pytest.mark.parametrize("size", [4096, 3 * MIB])
def test_removed_is_gone(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(size)
        await store(drive, header, make_frames(header))
        assert await drive.remove(header.blob.blob_id, 0) is True
        assert await drive.open(header.blob.blob_id, 0) is None
        assert await drive.remove(header.blob.blob_id, 0) is False

    on_drive(check)


@pytest.mark.parametrize("size", [4096, 3 * MIB])
def test_storing_twice_is_harmless(on_drive: Any, size: int) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(size)
        frames = make_frames(header)
        await store(drive, header, frames)
        await store(drive, header, frames)
        assert await payload(drive, header) == frames
        assert len([place async for place in drive.scan()]) == 1
        assert await drive.remove(header.blob.blob_id, 0) is True
        assert await drive.open(header.blob.blob_id, 0) is None

    on_drive(check)


def test_many_at_once(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        headers = [make_header(100 + i * 37) for i in range(300)]
        contents = [make_frames(header) for header in headers]
        await asyncio.gather(*(store(drive, h, c) for h, c in zip(headers, contents, strict=True)))
        for header, frames in zip(headers, contents, strict=True):
            assert await payload(drive, header) == frames

    on_drive(check)


@pytest.mark.parametrize("sealed", [False, True], ids=["frames", "source"])
def test_frames_written_without_a_task(on_drive: Any, sealed: bool) -> None:
    """Where a drive can: `begin` does what `write` and `write_from` do, one call at a time."""

    async def check(drive: Drive) -> None:
        header, plain = make_header(3 * MIB + 17, scheme=Scheme(1, 0)), os.urandom(3 * MIB + 17)
        blob, key = header.blob, BlobKey(bytes(32), header.blob.blob_id)
        geometry, codec = blob.geometry, Codec(1, 0)
        expected = b""
        shard = await drive.create(header)
        for stripe, length, last in stripes_of(header):
            piece = plain[stripe * blob.stripe_bytes :][:length]
            job = EncodeJob(codec, key, stripe, last, piece, length, bytearray(geometry.frame_len(stripe)))
            job.run()
            expected += job.frame(0)
            source = SealFrame(key, stripe, last, piece, length) if sealed else job.frame(0)
            answer = begun(shard, source)
            if answer is None:
                await (shard.write_from(source) if isinstance(source, SealFrame) else shard.write(source))
                continue
            if drive.local and not isinstance(drive, MemoryDrive):
                with pytest.raises(RuntimeError):
                    begun(shard, source)
            await answer
        await shard.publish(make_footer())
        assert await payload(drive, header) == expected

    on_drive(check)


def test_a_large_shard_is_invisible_before_publish(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(2 * MIB)
        frames = make_frames(header)
        shard = await drive.create(header)
        await shard.write(frames)
        assert await drive.open(header.blob.blob_id, 0) is None
        assert [place async for place in drive.scan()] == []
        await shard.publish(make_footer())
        assert await payload(drive, header) == frames
        await shard.abort()  # after publish: nothing
        assert await payload(drive, header) == frames

    on_drive(check)


def test_an_aborted_shard_was_never_there(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(2 * MIB)
        shard = await drive.create(header)
        await shard.write(make_frames(header)[:1000])
        await shard.abort()
        await shard.abort()
        assert await drive.open(header.blob.blob_id, 0) is None
        assert [place async for place in drive.scan()] == []
        with pytest.raises(RuntimeError):
            await shard.write(b"x")

    on_drive(check)


def test_an_incomplete_or_overlong_shard_is_refused(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        header = make_header(2 * MIB)
        frames = make_frames(header)
        shard = await drive.create(header)
        await shard.write(frames[:-1])
        with pytest.raises(ValueError):
            await shard.publish(make_footer())
        with pytest.raises(ValueError):
            await shard.write(b"12")
        await shard.abort()
        with pytest.raises(ValueError):
            await drive.put(make_header(4096), b"too short", make_footer())

    on_drive(check)


def test_scan_sees_every_shard_once(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        headers = [make_header(size) for size in (10, 5000, 100_000, 2 * MIB, 3 * MIB)]
        for header in headers:
            await store(drive, header, make_frames(header))
        gone = headers.pop(1)
        await drive.remove(gone.blob.blob_id, 0)
        places = [place async for place in drive.scan()]
        assert not any(place.damaged for place in places)
        assert sorted(place.header.blob.blob_id for place in places) == sorted(h.blob.blob_id for h in headers)
        for place in places:
            assert place.header in headers

    on_drive(check)


def test_verify_returns_the_footer(on_drive: Any) -> None:
    async def check(drive: Any) -> None:
        for size in (100, 200_000, 2 * MIB):
            header = make_header(size)
            await store(drive, header, make_frames(header))
            place = await drive.open(header.blob.blob_id, 0)
            assert await drive.verify(place) == make_footer()

    on_drive(check)


def test_a_fresh_drive_is_usable(on_drive: Any) -> None:
    async def check(drive: Drive) -> None:
        assert drive.readable
        assert drive.writable
        assert len(drive.drive_id) == 16
        assert drive.label

    on_drive(check)
