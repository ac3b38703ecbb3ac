"""While a backup holds removals nothing is unlinked, and afterwards everything that is garbage goes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from anvil.meta.regional import RegionalStore
from anvil.model.records import NO_CONDITION
from anvil.node.upkeep import Hold
from anvil.tasks.collect import Collector
from tests.integration.test_engine import data_of, on_bench, shards_on
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench
from tests.support.load import assert_clean, blobs_held, put_some, rows
from tests.support.node import AnvilNode

BLOBS = 60


def test_a_batch_under_way_stops_before_the_hold_is_set(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anvil.node.upkeep.HOLD_FRESH_S", 0.3)
    monkeypatch.setattr("anvil.meta.regional.HOLD_SETTLE_S", 0.6)

    async def scenario(bench: Bench) -> None:
        hold = Hold(bench.metadata, 0.0)
        removed = asyncio.Event()

        def slow(remove: Any) -> Any:
            async def after_a_while(blob_id: bytes, index: int) -> bool:
                await asyncio.sleep(0.03)  # a slow disk: the batch lasts much longer than the hold takes
                removed.set()
                return bool(await remove(blob_id, index))

            return after_a_while

        for number in range(BLOBS):
            await bench.put(f"k{number}", data_of(10_000))
            await bench.engine.delete_object(bench.bucket, f"k{number}", NO_CONDITION)
        everything = await shards_on(bench)
        for drive in bench.drives:
            drive._hold = hold
            drive.remove = slow(drive.remove)  # type: ignore[method-assign]
        collector = Collector(bench.metadata, bench.context.placement(), 0.0, hold)
        await hold.refresh()
        keeping = asyncio.create_task(hold.keep())
        batch = asyncio.create_task(collector.run())
        await removed.wait()
        await bench.metadata.hold_garbage("tonight")
        left = await shards_on(bench)
        assert 0 < left < everything
        assert await batch < BLOBS
        assert await collector.run() == 0
        assert await shards_on(bench) == left
        await bench.metadata.hold_garbage(None)
        await hold.refresh()
        while await shards_on(bench):
            await hold.refresh()
            await collector.run()
        assert await bench.metadata.garbage(1, 0.0) == []
        keeping.cancel()

    on_bench(postgres, tmp_path, scenario, drives=2)


def hold_garbage(node: AnvilNode, reason: str | None) -> None:
    url = json.loads((node.data_dir / "run" / "node.json").read_text())["regional_url"]

    async def main() -> None:
        store = RegionalStore(url)
        await store.start()
        try:
            await store.hold_garbage(reason)
        finally:
            await store.close()

    asyncio.run(main())


def test_a_node_unlinks_nothing_while_held(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    env = {"ANVIL_DRIVES": str(drive), "ANVIL_WORKERS": "1", "ANVIL_GC_GRACE_S": "0"}
    with AnvilNode(tmp_path / "data", env=env) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="held")
        objects = put_some(s3, "held")
        put_some(s3, "held")  # overwritten
        hold_garbage(node, "tonight")
        before = blobs_held(drive)
        for key in objects:
            s3.delete_object(Bucket="held", Key=key)
        assert node.anvil("admin", "scrub", "--shallow").returncode == 0
        assert blobs_held(drive) == before
        node.stop()
        node.start()
        assert node.anvil("admin", "scrub", "--shallow").returncode == 0
        assert blobs_held(drive) == before, "a restart does not end it"
        assert rows(node, "SELECT count(*) > 0 FROM outbox") == [(True,)]
        hold_garbage(node, None)
        assert_clean(node, [drive])
        assert blobs_held(drive) == set()
