"""What the databases know, in the metrics: read from real ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import asyncpg
import pytest

from anvil.base import instruments
from anvil.base.metrics import REGISTRY, Labels
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.keyring import Keyring
from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from anvil.node.assemble_background import _database_check
from anvil.node.gauges import Gauges
from anvil.node.observe import batch, connections
from tests.postgres_fixture import Postgres

REGION = "us-east-1"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    for metric in REGISTRY.metrics.values():
        metric.clear()
    yield
    for metric in REGISTRY.metrics.values():
        metric.clear()


def told(name: str) -> dict[Labels, float]:
    """The series of a gauge."""
    return {labels: child.numbers()[0] for labels, child in REGISTRY.metrics[name].children.items()}


def test_debts_tasks_usage_and_backup_are_those_of_the_databases(postgres: Postgres) -> None:
    global_url, regional_url = postgres.fresh(Database.GLOBAL), postgres.fresh(Database.REGIONAL)

    async def scenario() -> None:
        store = RegionalStore(regional_url)
        catalog = GlobalCatalog(global_url, Keyring(b"k" * 32), store, REGION, observe=batch)
        await store.start()
        await catalog.start()
        regional = await asyncpg.connect(regional_url)
        try:
            await catalog.admin.bootstrap(REGION)
            (tenant,) = await catalog.admin.tenants()
            bucket = await catalog.create_bucket(tenant.tenant_id, "stored", REGION)
            insert = "INSERT INTO usage_deltas (bucket_id, objects, bytes, upload_parts, upload_bytes) VALUES ($1, $2, $3, 0, 0)"
            await regional.execute(insert, bucket.bucket_id, 3, 3000)
            await regional.execute(insert, bucket.bucket_id, -1, -1000)
            await catalog.tasks.enqueue("collect", {"region": REGION, "slice": 0})
            await catalog.tasks.enqueue("collect", {"region": REGION, "slice": 1}, delay_s=600)
            began, gauges = time.time(), Gauges(catalog, store)
            assert await gauges.refresh() is False
            assert told("bucket_objects") == {("default", "stored"): 2}
            assert told("bucket_usage_bytes") == {("default", "stored"): 2000}
            assert told("tenant_usage_bytes") == {("default",): 2000}
            assert told("tasks") == {("collect", "pending"): 2}
            assert 0 <= told("task_oldest_pending_age_seconds")[("collect",)] < 60
            assert told("shards_unhealthy") == {("missing",): 0, ("corrupt",): 0}
            assert began <= told("usage_last_update_timestamp_seconds")[()] <= time.time()
            assert told("backup_last_success_timestamp_seconds") == {}
            note = """INSERT INTO settings (name, value) VALUES ('last_backup', jsonb_build_object('finished_us', $1::bigint))
                      ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value"""
            for finished_us in (1_700_000_000_500_000, 1_700_086_400_000_000):
                await regional.execute(note, finished_us)
                await gauges.refresh()
                assert told("backup_last_success_timestamp_seconds") == {(): finished_us / 1e6}
            assert await catalog.bucket("stored") == bucket
            assert ("bucket",) in REGISTRY.metrics["db_batch_size"].children
            connections("regional", store.connections())
            assert told("db_pool_connections") == {("regional", "busy"): 0, ("regional", "idle"): 3, ("regional", "down"): 0}
        finally:
            await regional.close()
            await catalog.close()
            await store.close()
        connections("regional", store.connections())
        assert told("db_pool_connections")[("regional", "down")] == 3

    asyncio.run(scenario())


def test_a_database_that_does_not_answer_in_time_is_not_up() -> None:
    """The check is given up by whoever asks; what was true before is not told any longer."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def scenario() -> None:
        instruments.DB_UP.labels("regional").set(1)  # as of the check before
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ask = _database_check(f"postgresql://nobody@127.0.0.1:{port}/nothing", Database.REGIONAL)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ask()
        assert told("db_up") == {("regional",): 0}
        server.close()

    asyncio.run(scenario())
