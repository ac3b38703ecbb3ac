"""Backups of servers of several major versions, by programs of others: what is dumped can be loaded again where it came from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from anvil.backup.repository import GLOBAL, REGIONAL, Repository
from anvil.base.errors import DatabaseUnavailable, InvalidSetting
from anvil.meta import dumps, embedded, tools
from anvil.meta.embedded import DATABASE_GLOBAL, DATABASE_REGIONAL, EmbeddedPostgres
from anvil.meta.migrate import Database, migrate
from tests.integration.backup.test_parts import at_once, create, url_of
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench

__all__ = ["at_once"]
EIGHTEEN, SIXTEEN = embedded.installed()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL 16."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("old"), fsync=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_INSTALLS", (("16", "pginstall"),))
        server.start()
    try:
        yield server
    finally:
        server.stop()


def only(patch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Have the machine no other programs."""
    patch.setattr(tools, "_candidates", lambda program: ((folder / program, False) for folder in folders))


def new_database(server: EmbeddedPostgres, name: str) -> str:
    async def make() -> None:
        connection = await asyncpg.connect(server.url("postgres"))
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        await connection.close()

    asyncio.run(make())
    return server.url(name)


async def tables(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
    finally:
        await connection.close()


def test_sixteen_dumped_by_eighteen_goes_back_into_sixteen(
    old: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, EIGHTEEN)
    source, target, broken_target = old.url(DATABASE_REGIONAL), new_database(old, "again"), new_database(old, "broken")
    odd = "SET transaction_timeout = 0;"
    dump, broken = tmp_path / REGIONAL, tmp_path / "broken"

    async def main() -> None:
        await migrate(source, Database.REGIONAL)
        connection = await asyncpg.connect(source)
        await connection.execute("INSERT INTO settings (name, value) VALUES ('odd', to_jsonb($1::text))", odd)
        await connection.execute("INSERT INTO settings (name, value) SELECT 'n' || n, '1' FROM generate_series(1, 50000) n")
        await connection.close()
        tool = await dumps.dump_tool(source, Database.REGIONAL)
        facts = await dumps.dump_regional(source, tool, dump, lambda blobs: None)
        assert (tool.major, facts.server) == (18, 16)

        broken.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
        restore = await dumps.prepare_load(broken_target, Database.REGIONAL, 18, 16, facts.migration)
        with pytest.raises(DatabaseUnavailable, match="pg_restore failed"):
            await dumps.load(broken_target, Database.REGIONAL, restore, broken)
        assert await tables(broken_target) == 0, "all or nothing"
        await dumps.load(broken_target, Database.REGIONAL, restore, dump)
        with pytest.raises(DatabaseUnavailable, match=r"psql failed.*already exists"):
            await dumps.load(broken_target, Database.REGIONAL, restore, dump)

        restore = await dumps.prepare_load(target, Database.REGIONAL, 18, 16, facts.migration)
        await dumps.load(target, Database.REGIONAL, restore, dump)
        connection = await asyncpg.connect(target)
        assert await connection.fetchval("SELECT value #>> '{}' FROM settings WHERE name = 'odd'") == odd
        assert await connection.fetchval("SELECT count(*) FROM settings WHERE name ~ '^n[0-9]+$'") == 50_000
        await connection.close()
        assert await migrate(target, Database.REGIONAL, restoring=True) == 0

    asyncio.run(main())


def test_each_database_has_its_own_versions(
    postgres: Postgres, old: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The global database on 16, the regional one on 18: both go back to where they came from, and the newer one nowhere else."""
    only(monkeypatch, EIGHTEEN, SIXTEEN)
    global_url, global_target = old.url(DATABASE_GLOBAL), new_database(old, "global_target")
    asyncio.run(migrate(global_url, Database.GLOBAL))
    asyncio.run(postgres.execute("CREATE DATABASE regional_target TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"))
    regional_target = postgres.cluster.url("regional_target")

    async def scenario(bench: Bench) -> None:
        await bench.put("k", data_of(100_000))
        manifest = await create(bench, url_of(bench), global_url, tmp_path / "repository")
        assert manifest.servers == manifest.tools == {"regional": 18, "global": 16}
        repository = Repository(tmp_path / "repository")
        assert repository.manifest(manifest.snapshot) == manifest
        folder = repository.folder(manifest.snapshot)
        for database, url, file in (
            (Database.GLOBAL, global_target, GLOBAL),
            (Database.REGIONAL, regional_target, REGIONAL),
        ):
            made = manifest.tool_of(database.value), manifest.server_of(database.value)
            tool = await dumps.prepare_load(url, database, *made, manifest.migrations[database.value])
            assert tool.major == made[0]
            await dumps.load(url, database, tool, folder / file)
            assert await migrate(url, database, restoring=True) == 0
        with pytest.raises(InvalidSetting, match="dumped from PostgreSQL 18, and this is 16"):
            await dumps.prepare_load(old.url("postgres"), Database.REGIONAL, 18, 18, 1)

    on_bench(postgres, tmp_path, scenario, drives=1)
