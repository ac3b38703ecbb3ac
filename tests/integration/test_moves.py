"""A change of layout over real folders: every form of shard is moved, found meanwhile, and what it left behind goes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from anvil.model.layout import Layout, LayoutDrive, compute, partition
from anvil.model.records import NO_CONDITION, BlobRef
from anvil.tasks.fsck import Report
from anvil.tasks.rebalance import Moved
from tests.integration.test_engine import data_of, on_bench, shards_on
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench

SIZES = (100, 4096, 60_000, 262_144, 1 << 20, 3_333_333)
SCHEME_WIDTH = 6


async def filled(bench: Bench) -> dict[str, BlobRef]:
    blobs = {}
    for size in SIZES:
        await bench.put(f"k{size}", data_of(size))
        [extent] = (await bench.engine.open(bench.bucket, f"k{size}")).extents
        assert extent.content is not None
        if extent.content.inline is None:
            blobs[f"k{size}"] = extent.content.blob
    return blobs


def change(bench: Bench, members: list[int]) -> Layout:
    """A layout of these drives, one node each, while the one before is old."""
    placement = bench.context.placement()
    drives = [LayoutDrive(bench.drives[at].drive_id, bench.drives[at].drive_id, 1 << 40) for at in members]
    made = compute(drives, SCHEME_WIDTH, 2, placement.layout)
    placement.follow([placement.layout, made], placement.drives)
    return made


async def moved(bench: Bench, blobs: dict[str, BlobRef]) -> Moved:
    total = Moved()
    for number in {partition(blob.blob_id) for blob in blobs.values()}:
        total.add(await bench.rebalancer.partition(number))
    return total


async def assert_readable(bench: Bench) -> None:
    for size in SIZES:
        assert await bench.get(f"k{size}") == data_of(size)


async def checked(bench: Bench) -> Report:
    report = Report()
    await bench.fsck.run(report, deep=True)
    return report


@pytest.mark.parametrize("away", [0, 1])
def test_every_form_of_shard_moves(postgres: Postgres, tmp_path: Path, away: int) -> None:
    async def scenario(bench: Bench) -> None:
        placement = bench.context.placement()
        placement.follow([change(bench, list(range(6)))], placement.drives)
        blobs = await filled(bench)
        shards = sum(blob.scheme.width for blob in blobs.values())
        assert await shards_on(bench) == shards
        for number in range(away):
            (tmp_path / f"drive{number}").rename(tmp_path / f"away{number}")
            await bench.drives[number].probe()
        made = change(bench, list(range(6, 12)))
        await assert_readable(bench)
        done = await moved(bench, blobs)
        assert done.shards + done.rebuilt == shards and (done.rebuilt > 0) == bool(away)
        assert (done.waiting, done.away, done.lost) == (0, 0, 0)
        assert await moved(bench, blobs) == Moved()
        for blob in blobs.values():
            for index, drive in enumerate(placement.order(blob.blob_id)[: blob.scheme.width]):
                assert drive is not None and await drive.open(blob.blob_id, index) is not None
        assert list(await bench.metadata.debts(10)) == []
        for number in range(away):
            (tmp_path / f"away{number}").rename(tmp_path / f"drive{number}")
            await bench.drives[number].probe()
        await assert_readable(bench)
        placement.follow([made], placement.drives)
        for number in {partition(blob.blob_id) for blob in blobs.values()}:
            await bench.survey.partition(number, deep=False)
        assert await shards_on(bench) == shards
        report = await checked(bench)
        assert report.clean and (report.shards, report.blobs) == (shards, len(blobs)), report
        assert bench.events.damages == []
        await assert_readable(bench)

    on_bench(postgres, tmp_path, scenario, drives=12)


def test_what_was_deleted_does_not_move_and_leaves_nothing(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        blobs = await filled(bench)
        change(bench, list(range(6, 12)))
        for key in blobs:
            assert await bench.engine.delete_object(bench.bucket, key, NO_CONDITION)
        assert await moved(bench, blobs) == Moved()
        while await bench.collector().run():
            pass
        assert await shards_on(bench) == 0

    on_bench(postgres, tmp_path, scenario, drives=12)
