"""When a region closes by itself, and when a dump is due."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg

from anvil.base.config import Config, load
from anvil.meta.cluster import ClusterTables
from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from anvil.meta.salvage import SalvageTable
from anvil.node.child import Plan
from anvil.node.dumping import DUMPED, dump_due
from anvil.node.local import attach_drives, detach_drives, prepare_drives
from tests.contract.shard_samples import SESSION, make_footer, make_frames, make_header
from tests.postgres_fixture import Postgres

NODE = b"n" * 16


def config_of(folder: Path, count: int = 2) -> Config:
    (folder / "data").mkdir(exist_ok=True)
    drives = ",".join(str(folder / f"disk{number}") for number in range(count))
    return load({"ANVIL_DATA_DIR": str(folder / "data"), "ANVIL_DRIVES": drives})


async def started(config: Config, url: str, node_id: bytes = NODE) -> str:
    """Why the region is closed after a start, "" if it is not."""
    await prepare_drives(config, url, node_id)
    async with ClusterTables(url) as tables:
        return (await tables.view()).closed


async def store(config: Config, url: str) -> None:
    """One shard on each drive."""
    _, attached = await attach_drives(Plan("worker-0", 0, config, "", url, NODE, "127.0.0.1", 0), SESSION)
    for drive in attached.values():
        header = make_header()
        await drive.put(header, make_frames(header), make_footer())
    await detach_drives(attached.values())


def test_drives_with_data_on_an_empty_database_close_the_region(tmp_path: Path, postgres: Postgres) -> None:
    config = config_of(tmp_path)

    async def main() -> None:
        first, second, third = [await postgres.fresh_async(Database.REGIONAL) for _ in range(3)]
        assert await started(config, first) == "", "nothing is on them yet"
        assert await started(config, second) == "", "nor now"
        assert await started(config, first) == ""
        await store(config, first)
        assert await started(config, first) == "", "they are known"
        why = await started(config, third)
        assert "2 drives hold data" in why and "--rebuild-metadata" in why
        assert await started(config, third) == why, "and it stays so"
        store_ = RegionalStore(third)
        await store_.start()
        try:
            assert not await store_.removal_allowed(0.0)
            assert await SalvageTable(store_.query).open("looked at")
            assert await started(config, third) == "", "they are known by now"
            assert not await store_.removal_allowed(0.0)
        finally:
            await store_.close()

    asyncio.run(main())


def test_a_disk_with_data_that_comes_to_a_region_with_objects_closes_nothing(tmp_path: Path, postgres: Postgres) -> None:
    config = config_of(tmp_path)

    async def main() -> None:
        first, second = [await postgres.fresh_async(Database.REGIONAL) for _ in range(2)]
        await started(config, first)
        await store(config, first)
        connection = await asyncpg.connect(second)
        try:
            await connection.execute(
                "INSERT INTO objects (bucket_id, key, version_id, size, etag) VALUES (77, 'k', $1, 0, '')", bytes(16)
            )
        finally:
            await connection.close()
        assert await started(config, second) == ""

    asyncio.run(main())


def test_a_dump_is_due_an_interval_after_the_last_and_never_in_recovery(postgres: Postgres) -> None:
    async def main() -> None:
        metadata = RegionalStore(await postgres.fresh_async(Database.REGIONAL))
        await metadata.start()
        try:
            assert not await dump_due(metadata, 60.0), "the first is due an interval from now"
            noted = await metadata.noted(DUMPED)
            assert noted is not None
            assert abs(int(noted) - time.time()) < 30
            assert not await dump_due(metadata, 60.0)
            await metadata.note(DUMPED, str(int(time.time()) - 60))
            assert await dump_due(metadata, 60.0)
            assert not await dump_due(metadata, 3600.0)
            assert not await dump_due(metadata, 0.0), "none are taken"
            assert await SalvageTable(metadata.query).close("for a test")
            assert not await dump_due(metadata, 60.0)
        finally:
            await metadata.close()

    asyncio.run(main())
