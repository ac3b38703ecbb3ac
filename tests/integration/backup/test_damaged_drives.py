"""`restore data` onto drives that have every shard, of which more are damaged than the scheme bears."""

from __future__ import annotations

from pathlib import Path

import pytest

from anvil.meta.migrate import Database
from anvil.model.records import BlobRef, Owner
from tests.integration.backup.test_parts import at_once, create, refill, url_of
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.backups import flip
from tests.support.engine import Bench

__all__ = ["at_once"]


async def blob_of(bench: Bench, key: str) -> tuple[Owner, BlobRef]:
    record = await bench.metadata.get_object(7, key)
    assert record is not None and record.content is not None
    [place] = [place async for place in bench.drives[0].scan() if place.header.blob == record.content.blob]
    return place.header.owner, record.content.blob


@pytest.mark.parametrize("deep", [False, True])
def test_damage_in_the_middle_is_seen_and_mended(postgres: Postgres, tmp_path: Path, deep: bool) -> None:
    """Head and foot of each shard are sound. Without `--deep`, somebody has met it."""
    global_url = postgres.fresh(Database.GLOBAL)
    data = {"file": data_of(3_333_333), "segment": data_of(100_000)}

    async def scenario(bench: Bench) -> None:
        for key, content in data.items():
            await bench.put(key, content)
        await create(bench, url_of(bench), global_url, tmp_path / "repository")
        owner, blob = await blob_of(bench, "file")
        for path in sorted(tmp_path.rglob(f"{blob.blob_id.hex()}.*"))[:2]:
            flip(path, 0.6)
        _, small = await blob_of(bench, "segment")
        spoil_in_segments(tmp_path, small)
        if not deep:
            assert (await refill(bench, tmp_path, tmp_path / "repository")).refilled.written == 0, "nobody has met it"
            await bench.metadata.add_debt([(owner, blob.blob_id, 0b11)], corrupt=True)
            owner, small = await blob_of(bench, "segment")
            await bench.metadata.add_debt([(owner, small.blob_id, 0b11)], corrupt=True)
        report = await refill(bench, tmp_path, tmp_path / "repository", deep)
        assert report.complete and (report.refilled.written, report.refilled.shards) == (2, 4)
        for key, content in data.items():
            assert await bench.get(key) == content
        report = await refill(bench, tmp_path, tmp_path / "repository", deep=True)
        assert (report.refilled.written, report.refilled.present) == (0, 2)

    on_bench(postgres, tmp_path, scenario, drives=3)


def spoil_in_segments(folder: Path, blob: BlobRef) -> None:
    """Two shards of a blob, each in the middle of its payload."""
    spoiled = 0
    for path in sorted(folder.rglob("*")):
        if "segments" not in path.parts or not path.is_file() or spoiled == 2:
            continue
        at = path.read_bytes().find(blob.blob_id)
        if at >= 0:
            flip(path, at + blob.geometry.shard_bytes // 2)
            spoiled += 1
    assert spoiled == 2
