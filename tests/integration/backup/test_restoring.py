"""Metadata restored into new databases, without any node: what is changed on the way, and what is refused."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from anvil.backup.repository import Repository
from anvil.base.config import Config, load
from anvil.base.errors import BadRecord, Conflict, InvalidSetting, UnknownName
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.keyring import Keyring
from anvil.meta.migrate import Database, migrate
from anvil.meta.regional import RegionalStore
from anvil.node.backups import Backup
from anvil.node.repositories import verify
from anvil.node.restoring import RestoredMetadata, RestoreWanted, fingerprint, restore_metadata
from tests.integration.backup.test_parts import backup_of, url_of
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.backups import KEY, OTHER_KEY, flip, refusal, said
from tests.support.engine import Bench
from tests.support.node import AnvilNode


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.meta.recovery.HOLD_SETTLE_S", 0.0)


def config_of(tmp_path: Path, key: str = KEY, region: str = "us-east-1") -> Config:
    env = {
        "ANVIL_DATA_DIR": str(tmp_path / "data"),
        "ANVIL_SECRET_ENCRYPTION_KEY": key,
        "ANVIL_REGION": region,
        "ANVIL_DEV_MODE": "1",
    }
    return load(env)


async def new_databases(postgres: Postgres, name: str) -> tuple[str, str]:
    for kind in ("g", "r"):
        await postgres.execute(f"CREATE DATABASE {name}_{kind} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
    return postgres.cluster.url(f"{name}_g"), postgres.cluster.url(f"{name}_r")


async def ask(url: str, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]
    finally:
        await connection.close()


async def furnish(global_url: str, regional_url: str, keyring: Keyring) -> int:
    """A tenant with an app and a bucket, tasks, nodes and layouts. Returns the bucket's id."""
    store = RegionalStore(regional_url)
    catalog = GlobalCatalog(global_url, keyring, store, "us-east-1")
    await store.start()
    await catalog.start()
    await catalog.admin.bootstrap("us-east-1", "", stated=False)
    bucket = await catalog.create_bucket(1, "kept", "us-east-1")
    await catalog.close()
    await store.close()
    await ask(global_url, "INSERT INTO tasks (type) VALUES ('collect')")
    await ask(
        regional_url, "INSERT INTO nodes (node_id, name, state) VALUES ($1, 'n', 'active') ON CONFLICT DO NOTHING", b"n" * 16
    )
    return bucket.bucket_id


class Told:
    """Checks that as much was loaded as was said to come."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.left: int | None = None

    def say(self, line: str) -> None:
        self.lines.append(line)

    def expect(self, size: int | None) -> None:
        self.left = size

    def moved(self, size: int) -> None:
        assert self.left is not None and 0 < size <= self.left
        self.left -= size


async def run(config: Config, urls: tuple[str, str], path: Path, **wanted: Any) -> RestoredMetadata:
    told = Told()
    done = await restore_metadata(config, *urls, RestoreWanted(str(path), **wanted), told)
    assert told.left == 0 and told.lines[-1] == "beginning recovery mode"
    return done


def test_databases_come_back_fenced_and_in_recovery_mode(postgres: Postgres, tmp_path: Path) -> None:
    old_global = postgres.fresh(Database.GLOBAL)
    keyring = Keyring(bytes.fromhex(KEY))
    config = config_of(tmp_path)

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        bucket_id = await furnish(old_global, url_of(bench), keyring)
        await bench.put("k", data_of(10_000))
        backup: Backup = backup_of(bench, url_of(bench), old_global)
        backup._key = fingerprint(config)
        manifest = await backup.create(path, False, lambda name, total: None, lambda size: None)
        assert (await verify(path, "", config, lambda size: None)).keyless == 1, "the bench's bucket is in no global database"

        urls = await new_databases(postgres, "restored")
        await refused(postgres, config, urls, path, tmp_path)
        before = await ask(old_global, "SELECT bucket_id, name, sealed_key FROM buckets")
        done = await run(config, urls, path)
        assert (done.manifest, done.changes.epoch, done.changes.fenced, done.changes.strangers) == (manifest, 1, 0, 1)
        assert await ask(urls[0], "SELECT bucket_id, name, sealed_key FROM buckets") == before
        assert await ask(urls[0], "SELECT access_key, sealed_secret FROM apps") == await ask(
            old_global, "SELECT access_key, sealed_secret FROM apps"
        )
        assert await ask(urls[0], "SELECT count(*) FROM tasks") == [(0,)]
        assert await ask(urls[0], "SELECT action, resource FROM audit ORDER BY audit_id DESC LIMIT 1") == [
            ("restore", f"snapshot {manifest.snapshot}")
        ]
        for table in ("writer_sessions", "nodes", "drives", "layouts", "layout_slices"):
            assert await ask(urls[1], f"SELECT count(*) FROM {table}") == [(0,)], table
        assert await ask(url_of(bench), "SELECT count(*) FROM writer_sessions") == [(1,)]
        held = "SELECT name FROM settings WHERE name = 'recovery' OR starts_with(name, 'backup_hold')"
        assert await ask(urls[1], held) == [("recovery",)], "the backup's own hold was in its dump"
        assert await ask(urls[1], "SELECT key FROM objects") == [("k",)]
        with pytest.raises(Conflict, match="not empty"):
            await run(config, urls, path)

        # Only the regional database: into the global one that is there, where a bucket was made since.
        regional = (await new_databases(postgres, "again"))[1]
        await ask(urls[0], "UPDATE buckets SET bucket_id = bucket_id + 1 WHERE bucket_id = $1", bucket_id)
        done = await run(config, (urls[0], regional), path, regional_only=True, keep_nodes=True)
        assert (done.changes.fenced, done.changes.strangers) == (1, 2)
        assert await ask(regional, "SELECT count(*) FROM nodes") == [(1,)]
        assert await ask(regional, "SELECT count(*) FROM writer_sessions") == [(0,)]

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_into_the_embedded_database(postgres: Postgres, tmp_path: Path) -> None:
    """By the command, on a data directory that no node has used yet; the PostgreSQL that it starts is stopped again."""
    global_url, config, path = postgres.fresh(Database.GLOBAL), config_of(tmp_path), tmp_path / "repository"

    async def scenario(bench: Bench) -> None:
        await furnish(global_url, url_of(bench), Keyring(bytes.fromhex(KEY)))
        await bench.put("k", data_of(10_000))
        backup = backup_of(bench, url_of(bench), global_url)
        backup._key = fingerprint(config)
        await backup.create(path, False, lambda name, total: None, lambda size: None)

    on_bench(postgres, tmp_path, scenario, drives=1)
    node = AnvilNode(tmp_path / "data", env={"ANVIL_SECRET_ENCRYPTION_KEY": ""})
    assert "master key of the backup is needed" in refusal(node, "restore", "metadata", str(path), code=2)
    assert not (tmp_path / "data").exists(), "nothing was made"
    node.configure(ANVIL_SECRET_ENCRYPTION_KEY=KEY)
    done = said(node, "restore", "metadata", str(path))
    assert done["changes"]["epoch"] == 1 and done["manifest"]["counts"]["objects"] == 1
    assert not (tmp_path / "data" / "postgres" / "cluster" / "postmaster.pid").exists()
    assert "not empty" in refusal(node, "restore", "metadata", str(path), code=5)


async def refused(postgres: Postgres, config: Config, urls: tuple[str, str], path: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="made under the master key"):
        await run(config_of(tmp_path, OTHER_KEY), urls, path)
    with pytest.raises(InvalidSetting, match="ANVIL_REGION"):
        await run(config_of(tmp_path, region="elsewhere"), urls, path)
    with pytest.raises(UnknownName):
        await run(config, urls, path, snapshot="another")
    spoiled = tmp_path / "spoiled"
    shutil.copytree(path, spoiled)
    flip(next((spoiled / "snapshots").glob("*/regional.dump")), 0.5)
    with pytest.raises(BadRecord, match="not what was written"):
        await run(config, urls, spoiled)
    manifest = Repository(path).newest()
    (spoiled / "snapshots" / manifest.snapshot / "manifest.json").unlink()
    with pytest.raises(UnknownName, match="no snapshot"):
        await run(config, urls, spoiled)
    for url in urls:
        assert await ask(url, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]
    # Interrupted behind the loading: no node starts on it.
    half = await new_databases(postgres, "interrupted")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("anvil.meta.recovery.begin_recovery", fails)
        with pytest.raises(KeyboardInterrupt):
            await run(config, half, path)
    for url, database in zip(half, (Database.GLOBAL, Database.REGIONAL), strict=True):
        with pytest.raises(InvalidSetting, match="interrupted"):
            await migrate(url, database)


async def fails(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once(postgres: Postgres, tmp_path: Path) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        await bench.put("k", data_of(100_000))
        both = [
            backup_of(bench, url_of(bench), global_url).create(path, False, lambda name, total: None, lambda size: None)
            for _ in range(2)
        ]
        outcomes = await asyncio.gather(*both, return_exceptions=True)  # whichever was second at the lock
        assert [type(one) for one in outcomes if isinstance(one, BaseException)] == [Conflict]
        assert [one.complete for one in outcomes if not isinstance(one, BaseException)] == [True]

    on_bench(postgres, tmp_path, scenario, drives=1)
