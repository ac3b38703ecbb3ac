"""The engine on real parts: every storage form, ranges, multipart, loss and damage, cancellation, orphans, races with the sweep."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from anvil.base.errors import (
    BadDigest,
    DatabaseUnavailable,
    DataLost,
    EntityTooLarge,
    IncompleteBody,
    NoSuchKey,
    OutcomeUnknown,
    ReadQuorumLost,
    SlowDown,
    WriteQuorumLost,
    WriterFenced,
)
from anvil.base.types import Told
from anvil.engine.blobs_find import DamageOnce
from anvil.engine.blobs_read import BlobReader
from anvil.engine.types import CompletePart
from anvil.meta.migrate import Database
from anvil.model.layout import partition
from anvil.model.records import NO_CONDITION, Algorithm, Attributes, ChecksumType
from anvil.model.scheme import Scheme
from anvil.shards.drive import LocalDrive
from anvil.tasks.repair import Result
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench, Bytes, engine_bench, plain_spec

SIZES = (0, 1, 2047, 2048, 4096, 65_535, 65_536, 262_144, 1 << 20, (1 << 20) + 1, 3_333_333)


def on_bench(postgres: Postgres, tmp_path: Path, scenario: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
    url = postgres.fresh(Database.REGIONAL)

    async def main() -> None:
        async with engine_bench(url, tmp_path, **options) as bench:
            await scenario(bench)

    uvloop.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("drives", [1, 2, 3, 6])
def test_every_size_comes_back_in_whole_and_in_part(postgres: Postgres, tmp_path: Path, drives: int) -> None:
    async def scenario(bench: Bench) -> None:
        for size in SIZES:
            data = data_of(size)
            assert await bench.put(f"k{size}", data) == hashlib.md5(data).hexdigest()
            assert await bench.get(f"k{size}") == data
            for start, length in ((0, 1), (size // 2, 100), (size - 1, 1), (max(size - 1_100_000, 0), 1_100_000)):
                if start >= 0 and start + length <= size:
                    assert await bench.get(f"k{size}", start, length) == data[start : start + length]

    on_bench(postgres, tmp_path, scenario, drives=drives)


def test_overwriting_and_deleting_leaves_nothing_behind(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        for turn in range(3):
            for size in SIZES:
                await bench.put(f"k{size}", data_of(size + turn))
        for size in SIZES:
            assert await bench.engine.delete_object(bench.bucket, f"k{size}", NO_CONDITION)
            with pytest.raises(NoSuchKey):
                await bench.get(f"k{size}")
        assert [(u.objects, u.bytes) for u in await bench.metadata.usage()] in ([], [(0, 0)])
        while await bench.collector().run():
            pass
        assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario)


async def shards_on(bench: Bench) -> int:
    count = 0
    for drive in bench.drives:
        async for _ in drive.scan():
            count += 1
    return count


@pytest.mark.parametrize("size", [4096, 100_000, 3_000_000])
def test_any_two_drives_may_go(postgres: Postgres, tmp_path: Path, size: int) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(size)
        for number in range(8):
            await bench.put(f"k{number}", data)
        shutil.rmtree(tmp_path / "drive1")
        await bench.drives[1].probe()
        await bench.put("one away", data)
        shutil.rmtree(tmp_path / "drive4")
        await bench.drives[4].probe()
        for key in [*(f"k{number}" for number in range(8)), "one away"]:
            if key == "one away" and size > 65_535:
                continue  # written with one shard missing: its m is 1 until the debt is paid
            assert await bench.get(key) == data
        assert bench.events.damages == [], "what is away is not damaged"
        if size > 65_535:
            # 4 + 2 acknowledges with 5 durable shards, and there are four drives.
            with pytest.raises(WriteQuorumLost):
                await bench.put("two away", data)
            with pytest.raises(NoSuchKey):
                await bench.get("two away")
            shutil.rmtree(tmp_path / "drive0")
            await bench.drives[0].probe()
            with pytest.raises(ReadQuorumLost):
                await bench.get("k0")

    on_bench(postgres, tmp_path, scenario)


@pytest.mark.parametrize("size", [4096, 300_000, 3_000_000])
def test_damage_is_read_around_and_repaired(postgres: Postgres, tmp_path: Path, size: int) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(size)
        for number in range(6):
            await bench.put(f"k{number}", data)
        rng = random.Random(7)
        for number in (2, 5):
            for path in (tmp_path / f"drive{number}").rglob("*"):
                if path.is_file() and (path.suffix == ".seg" or "blobs" in path.parts):
                    spoil(path, rng)
        for _ in range(2):
            for number in range(6):
                assert await bench.get(f"k{number}") == data
        await bench.survey_all(deep=True)
        assert len(bench.events.damages) >= 1
        bench.hold = True  # a backup, or a database that is too young to be believed, does not stop the repair
        results = await bench.repairer.run()
        bench.hold = False
        assert Result.REPAIRED in results
        assert set(results) <= {Result.REPAIRED, Result.HEALTHY}
        assert list(await bench.metadata.debts(100)) == []
        found = len(bench.events.damages)
        await bench.survey_all(deep=True)
        assert len(bench.events.damages) == found, "a deep look after the repair finds nothing"

    on_bench(postgres, tmp_path, scenario)


def spoil(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for at in range(1500, len(data), 700):
        data[at] ^= 1 + rng.randrange(255)
    path.write_bytes(data)


@pytest.mark.parametrize("drives", [1, 3])
@pytest.mark.parametrize("at", [40, 2000, None], ids=["header", "payload", "missing"])
def test_a_small_object_that_lost_a_shard_is_never_at_hand(
    postgres: Postgres, tmp_path: Path, drives: int, at: int | None
) -> None:
    """Not even where another copy is: it is found, and said, by the read that follows. `at`: a byte of the record that is damaged."""

    async def scenario(bench: Bench) -> None:
        data = data_of(4096)
        await bench.put("k", data)
        info = await bench.engine.open(bench.bucket, "k")
        content = info.extents[0].content
        assert content is not None
        blob_id = content.blob.blob_id
        places = bench.context.placement().belongs(blob_id, content.blob.scheme.width)
        for index, drive in enumerate(places):
            assert isinstance(drive, LocalDrive)
            assert await drive.open(blob_id, index) is not None  # so that the segment of each is open
        assert bench.engine.at_hand(bench.bucket, info, 100, 50) == data[100:150]
        first = places[0]
        assert isinstance(first, LocalDrive)
        if at is None:
            await first.remove(blob_id, 0)
        else:
            [path] = (first.path / "segments").glob("*.seg")
            damaged = bytearray(path.read_bytes())
            damaged[4096 + at] ^= 1  # behind the header of the segment
            path.write_bytes(damaged)
        assert bench.engine.at_hand(bench.bucket, info, 0, len(data)) is None
        if drives == 1:
            with pytest.raises(DataLost):
                await bench.get("k")
        else:
            assert await bench.get("k") == data, "of the other copy"
        kind = "missing" if at is None else "corrupt"
        assert [(kind, index) for kind, _, index in bench.events.damages] == [(kind, 0)]

    on_bench(postgres, tmp_path, scenario, drives=drives)


def test_a_blob_with_too_many_bad_shards_is_an_honest_loss(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.put("k", data_of(3_000_000))
        for number in range(3):
            for path in (tmp_path / f"drive{number}" / "blobs").rglob("*"):
                if path.is_file():
                    spoil(path, random.Random(1))
        with pytest.raises(DataLost):
            await bench.get("k")
        assert set(await bench.repairer.run()) <= {Result.LOST, Result.WAITING}

    on_bench(postgres, tmp_path, scenario)


def test_a_refused_upload_leaves_no_shards(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        def refuse(digests: object) -> None:
            raise BadDigest()

        spec = plain_spec()
        bad = type(spec)(attributes=spec.attributes, verify=refuse)
        for size in (100, 4096, 3_000_000):
            with pytest.raises(BadDigest):
                await bench.engine.put_object(bench.bucket, "k", Bytes(data_of(size)), bad)
            with pytest.raises(IncompleteBody):
                await bench.engine.put_object(bench.bucket, "k", Bytes(data_of(size), length=size + 5), spec)
        await bench.context.owned.close(5)
        assert await shards_on(bench) == 0
        assert not list(tmp_path.rglob("*.part"))

    on_bench(postgres, tmp_path, scenario)


def test_a_cancelled_upload_leaves_no_shards(postgres: Postgres, tmp_path: Path) -> None:
    class Stalling(Bytes):
        async def readinto(self, view: memoryview) -> int:
            if len(self._left) < 1_500_000:
                await asyncio.get_running_loop().create_future()
            return await super().readinto(view)

    async def scenario(bench: Bench) -> None:
        put = asyncio.ensure_future(bench.engine.put_object(bench.bucket, "k", Stalling(data_of(4_000_000)), plain_spec()))
        while not list(tmp_path.rglob("*.part")):
            await asyncio.sleep(0.01)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await bench.context.owned.close(5)
        assert not list(tmp_path.rglob("*.part"))
        assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario)


@pytest.mark.parametrize("delay_steps", range(0, 24, 3))
def test_a_put_cancelled_at_any_moment_is_whole_or_not_there(postgres: Postgres, tmp_path: Path, delay_steps: int) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(10_000)
        put = asyncio.ensure_future(bench.engine.put_object(bench.bucket, "k", Bytes(data), plain_spec()))
        for _ in range(delay_steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        await bench.context.owned.close(5)
        record = await bench.metadata.get_object(bench.bucket.bucket_id, "k")
        if record is not None:
            assert await bench.get("k") == data
        else:
            assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario)


def test_multipart_from_the_inside(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        engine, bucket = bench.engine, bench.bucket
        upload = await engine.create_upload(
            bucket, "m", Attributes(content_type="x/y"), "me", Algorithm.CRC64NVME, ChecksumType.FULL_OBJECT
        )
        pieces = [data_of(5 << 20), data_of((5 << 20) + 7), data_of(900)]
        parts = []
        for number, data in enumerate(pieces, 1):
            done = await engine.put_part(bucket, "m", upload.upload_id, number, Bytes(data), plain_spec())
            parts.append(CompletePart(number, done.etag))
        await engine.put_part(bucket, "m", upload.upload_id, 9, Bytes(data_of(50_000)), plain_spec())
        done = await engine.complete_upload(
            bucket, "m", upload.upload_id, parts, condition=NO_CONDITION, expected_size=None, expected=None
        )
        whole = b"".join(pieces)
        digest = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
        assert done.etag == f"{digest}-3"
        assert await bench.get("m") == whole
        assert await bench.get("m", (5 << 20) - 10, 30) == whole[(5 << 20) - 10 : (5 << 20) + 20]
        assert await bench.get("m", len(whole) - 1000) == whole[-1000:]
        info = await engine.open(bucket, "m")
        await engine.copy_object(bucket, info, bucket, "copy", plain_spec())
        assert await bench.get("copy") == whole
        [usage] = await bench.metadata.usage()
        assert (usage.objects, usage.bytes, usage.upload_parts, usage.upload_bytes) == (2, 2 * len(whole), 0, 0)
        await engine.delete_object(bucket, "m", NO_CONDITION)
        await engine.delete_object(bucket, "copy", NO_CONDITION)
        while await bench.collector().run():
            pass
        assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario, drives=3, scheme=Scheme(2, 1))


def test_a_stopped_writer_against_the_sweep(postgres: Postgres, tmp_path: Path) -> None:
    """A writer that stood still longer than its lease: the sweep may take its shards, and then its commit must fail."""

    async def scenario(bench: Bench) -> None:
        data = data_of(200_000)
        await bench.put("before", data)
        frozen, thaw = asyncio.Event(), asyncio.Event()
        commit = bench.metadata.put_object

        async def stop_before_commit(request: Any) -> Any:
            frozen.set()
            await thaw.wait()
            return await commit(request)

        bench.metadata.put_object = stop_before_commit  # type: ignore[method-assign]
        put = asyncio.ensure_future(bench.put("frozen", data))
        await frozen.wait()
        everything = await shards_on(bench)
        await bench.survey_all(deep=False)
        assert await shards_on(bench) == everything, "its session lives: nothing is taken from it"
        await bench.metadata.close_session(bench.session.current)
        await bench.survey_all(deep=False)
        assert await shards_on(bench) == everything // 2, "its session is gone and nobody names its blob"
        thaw.set()
        with pytest.raises(WriterFenced):
            await put
        assert await bench.metadata.get_object(bench.bucket.bucket_id, "frozen") is None
        assert await bench.get("before") == data, "what was committed stays, though its session is gone too"

    on_bench(postgres, tmp_path, scenario)


async def put_multipart(bench: Bench, key: str, pieces: list[bytes]) -> None:
    engine, bucket = bench.engine, bench.bucket
    upload = await engine.create_upload(bucket, key, Attributes(), "me", None, None)
    parts = []
    for number, data in enumerate(pieces, 1):
        done = await engine.put_part(bucket, key, upload.upload_id, number, Bytes(data), plain_spec())
        parts.append(CompletePart(number, done.etag))
    await engine.complete_upload(bucket, key, upload.upload_id, parts, condition=NO_CONDITION, expected_size=None, expected=None)


def test_the_survey_takes_orphans_and_leaves_garbage_to_its_grace(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        engine, bucket = bench.engine, bench.bucket
        sizes = {"small": 10_000, "large": 3_000_000}
        pieces = [data_of(5 << 20), data_of(70_000)]
        for kind in ("kept", "deleted"):
            for name, size in sizes.items():
                await bench.put(f"{kind} {name}", data_of(size))
            await put_multipart(bench, f"{kind} parts", pieces)
        info = await engine.open(bucket, "kept small")
        await engine.copy_object(bucket, info, bucket, "kept small", plain_spec())  # its shards record the version of before
        with_rows = await shards_on(bench)

        async def lose_the_answer(request: Any) -> Any:
            raise OutcomeUnknown

        commit, bench.metadata.put_object = bench.metadata.put_object, lose_the_answer  # type: ignore[method-assign]
        for name, size in sizes.items():
            with pytest.raises(OutcomeUnknown):
                await bench.put(f"never {name}", data_of(size))
        bench.metadata.put_object = commit  # type: ignore[method-assign]
        assert await shards_on(bench) > with_rows

        opened = {name: await engine.open(bucket, f"deleted {name}") for name in ("small", "large", "parts")}
        for name in opened:
            assert await engine.delete_object(bucket, f"deleted {name}", NO_CONDITION)
        await bench.metadata.close_session(bench.session.current)
        assert (await bench.survey_all()).orphans > 0
        assert await shards_on(bench) == with_rows, "what no row ever named is gone, and nothing else"
        assert await bench.collector(grace_s=3600).run() == 0
        expected = {name: data_of(size) for name, size in sizes.items()} | {"parts": b"".join(pieces)}
        for name, info in opened.items():
            views = engine.read(bucket, info, 0, info.size)
            assert b"".join([bytes(view) async for view in views]) == expected[name], "a download begun before the delete"
            assert await bench.get(f"kept {name}") == expected[name]
        assert bench.events.damages == []

        while await bench.collector().run():
            pass
        assert await shards_on(bench) == with_rows // 2
        for name in opened:
            assert await bench.get(f"kept {name}") == expected[name]

    on_bench(postgres, tmp_path, scenario)


def test_a_short_write_becomes_a_debt_and_is_paid(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(3_000_000)
        (tmp_path / "drive3").rename(tmp_path / "elsewhere")
        await bench.drives[3].probe()
        await bench.put("k", data)
        assert bench.events.short == 1
        [debt] = await bench.metadata.debts(10)
        assert debt.missing.bit_count() == 1
        assert await bench.repairer.run() == [Result.WAITING], "five drives cannot hold six shards"
        (tmp_path / "elsewhere").rename(tmp_path / "drive3")
        await bench.drives[3].probe()
        assert await bench.repairer.run() == [Result.REPAIRED]
        assert list(await bench.metadata.debts(10)) == []
        record = await bench.metadata.get_object(bench.bucket.bucket_id, "k")
        assert record is not None and record.content is not None
        found = await bench.survey.partition(partition(record.content.blob.blob_id), deep=True)
        assert (found.shards, found.missing, found.corrupt) == (6, 0, 0)

    on_bench(postgres, tmp_path, scenario)


@pytest.mark.parametrize("size", [4096, 300_000, 3_000_000])
def test_a_drive_that_is_busy_counts_like_one_that_failed(postgres: Postgres, tmp_path: Path, size: int) -> None:
    """Its refusal must not leave the shards that other drives took meanwhile behind, nobody's for as long as the session lives."""

    class Busy:
        """Even ones refuse a write that is begun, odd ones begin none and refuse the other."""

        def __init__(self, shard: Any, number: int) -> None:
            self.abort = shard.abort
            self.number = number

        def begin(self, frames: object, told: Told) -> bool:
            if self.number % 2:
                return False
            asyncio.get_running_loop().call_soon(told, SlowDown())
            return True

        async def write(self, frames: object) -> None:
            raise SlowDown

    async def scenario(bench: Bench) -> None:
        def busy(number: int) -> None:
            drive = bench.drives[number]
            create = drive.create

            async def refuse(*args: object) -> None:
                raise SlowDown

            async def refuse_later(header: Any) -> Any:
                return Busy(await create(header), number)

            drive.put, drive.create = refuse, refuse_later  # type: ignore[method-assign, assignment]

        busy(0)
        data = data_of(size)
        await bench.put("one busy", data)
        assert await bench.get("one busy") == data
        for number in range(1, 5):
            busy(number)
        before = await shards_on(bench)
        with pytest.raises(SlowDown):
            await bench.put("nearly all busy", data)
        while len(bench.context.owned):
            await asyncio.sleep(0.01)
        assert await shards_on(bench) == before
        assert [path for drive in range(6) for path in (tmp_path / f"drive{drive}/tmp").iterdir()] == []

    on_bench(postgres, tmp_path, scenario)


def test_a_shard_found_bad_by_one_stripe_while_another_is_about_to_read_it(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(3_000_000)
        await bench.put("k", data)
        [extent] = (await bench.engine.open(bench.bucket, "k")).extents
        assert extent.content is not None
        reader = BlobReader(bench.context, bench.bucket, extent.content.blob, extent.owner, DamageOnce())
        assert bytes(await reader.stripe(0)) == data[: 1 << 20]
        start = bench.context.owned.start

        def start_and_report(work: Any) -> Any:
            task = start(work)
            reader._shards.report("corrupt", 0)
            return task

        bench.context.owned.start = start_and_report  # type: ignore[method-assign]
        assert bytes(await reader.stripe(1)) == data[1 << 20 : 2 << 20]
        assert [damage[::2] for damage in bench.events.damages] == [("corrupt", 0)]

    on_bench(postgres, tmp_path, scenario)


@pytest.mark.parametrize("size", [4096, 60_000, 100_000, 3_000_000])
def test_truncated_files_are_read_around(postgres: Postgres, tmp_path: Path, size: int) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(size)
        await bench.put("k", data)
        [extent] = (await bench.engine.open(bench.bucket, "k")).extents
        assert extent.content is not None
        blob = extent.content.blob
        holders = bench.context.placement().order(blob.blob_id)[:2]
        for index, drive in enumerate(holders):
            assert drive is not None
            place = await drive.open(blob.blob_id, index)
            assert place is not None
            ref: Any = place.ref
            folder = next(tmp_path / f"drive{n}" for n, d in enumerate(bench.drives) if d is drive)
            if hasattr(ref, "path"):
                os.truncate(ref.path, 2000)
            else:
                [segment] = (folder / "segments").glob(f"{ref.place.segment:016x}.seg")
                os.truncate(segment, ref.place.offset + ref.place.header_bytes + 100)
        assert await bench.get("k") == data
        assert [damage[0] for damage in bench.events.damages] == ["corrupt", "corrupt"]

    on_bench(postgres, tmp_path, scenario)


def test_a_drive_that_is_away_does_not_stop_collection(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows would fill the head of the outbox, and space would run out on all the others."""
    monkeypatch.setattr("anvil.tasks.collect.COLLECT_BATCH", 2)

    async def scenario(bench: Bench) -> None:
        for number in range(5):
            await bench.put(f"k{number}", data_of(3_000_000))
        (tmp_path / "drive1").rename(tmp_path / "elsewhere")
        await bench.drives[1].probe()
        for number in range(5):
            assert await bench.engine.delete_object(bench.bucket, f"k{number}", NO_CONDITION)
        while await bench.collector().run():
            pass
        assert list(await bench.metadata.garbage(10, 0.0)) == []
        (tmp_path / "elsewhere").rename(tmp_path / "drive1")
        await bench.drives[1].probe()
        assert await shards_on(bench) == 5, "only the drive that was away still holds its shards"
        await bench.metadata.close_session(bench.session.current)
        await bench.survey_all(deep=False)
        assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario)


def test_completing_again_with_other_parts_names_the_object_that_is_there(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        upload = await bench.engine.create_upload(bench.bucket, "k", Attributes(), "owner", None, None)
        data = [data_of(5 << 20), data_of(1000)]
        parts = []
        for number, piece in enumerate(data, 1):
            put = await bench.engine.put_part(bench.bucket, "k", upload.upload_id, number, Bytes(piece), plain_spec())
            parts.append(CompletePart(number, put.etag))
        options: Any = {"condition": NO_CONDITION, "expected_size": None, "expected": None}
        first = await bench.engine.complete_upload(bench.bucket, "k", upload.upload_id, parts, **options)
        again = await bench.engine.complete_upload(bench.bucket, "k", upload.upload_id, parts[:1], **options)
        assert again == first
        assert (await bench.engine.stat(bench.bucket, "k")).etag == first.etag

    on_bench(postgres, tmp_path, scenario)


def test_an_object_of_parts_has_a_largest_size(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 TiB in S3; 1,000 bytes here."""
    monkeypatch.setattr("anvil.engine.multipart.OBJECT_BYTES_MAX", 1000)

    async def scenario(bench: Bench) -> None:
        upload = await bench.engine.create_upload(bench.bucket, "k", Attributes(), "owner", None, None)
        put = await bench.engine.put_part(bench.bucket, "k", upload.upload_id, 1, Bytes(data_of(1001)), plain_spec())
        options: Any = {"condition": NO_CONDITION, "expected_size": None, "expected": None}
        with pytest.raises(EntityTooLarge):
            await bench.engine.complete_upload(bench.bucket, "k", upload.upload_id, [CompletePart(1, put.etag)], **options)

    on_bench(postgres, tmp_path, scenario)


def test_damage_that_could_not_be_written_down_is_reported_again(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        data = data_of(3_000_000)
        await bench.put("k", data)
        [extent] = (await bench.engine.open(bench.bucket, "k")).extents
        assert extent.content is not None
        first = bench.context.placement().order(extent.content.blob.blob_id)[0]
        assert first is not None
        for path in (tmp_path / first.label / "blobs").rglob("*"):
            if path.is_file():
                spoil(path, random.Random(3))
        write = bench.metadata.add_debt

        async def away(*args: Any, **kwargs: Any) -> None:
            raise DatabaseUnavailable()

        bench.metadata.add_debt = away  # type: ignore[method-assign]
        for number in range(2):
            assert await bench.get("k") == data
            while len(bench.context.owned):
                await asyncio.sleep(0)
            assert len(bench.events.damages) == number + 1
        bench.metadata.add_debt = write  # type: ignore[method-assign]
        assert await bench.get("k") == data
        while len(bench.context.owned):
            await asyncio.sleep(0)
        [debt] = await bench.metadata.debts(10)
        assert debt.missing == 1

    on_bench(postgres, tmp_path, scenario, drives=2)
