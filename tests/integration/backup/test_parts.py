"""A backup in this process, on real drives and a real PostgreSQL: every storage form, damage on drives and in packs, dumps loaded again."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from anvil.backup.packs import PackWriter
from anvil.backup.repository import BLOBS, GLOBAL, REGIONAL, Manifest, Repository
from anvil.backup.verify import Verification
from anvil.base.errors import BadRecord, Conflict, InvalidSetting
from anvil.ec.codecs import codec_for
from anvil.meta import dumps, recovery
from anvil.meta.migrate import Database, migrate
from anvil.meta.recovery import RegionNotes
from anvil.model.records import NO_CONDITION, OwnedMark
from anvil.model.scheme import Scheme
from anvil.node.backups import Backup
from anvil.node.refilling import Refiller
from anvil.node.upkeep import Hold
from anvil.tasks.collect import Collector
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.backups import flip, packs
from tests.support.engine import Bench

SIZES = (0, 1, 2047, 2048, 65_535, 65_536, 262_144, 1 << 20, (1 << 20) + 1, 3_333_333)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no node whose unlinks would have to be waited for."""
    monkeypatch.setattr("anvil.meta.recovery.HOLD_SETTLE_S", 0.0)


def backup_of(bench: Bench, url: str, global_url: str) -> Backup:
    context = bench.context
    return Backup(
        (global_url, url),
        RegionNotes(bench.metadata.query),
        context.placement(),
        context.buffers,
        context.native,
        codec_for,
        "11" * 16,
        "us-east-1",
        "abcd1234",
    )


async def create(bench: Bench, url: str, global_url: str, path: Path) -> Manifest:
    moved: list[int] = []
    phases: dict[str, int] = {}
    manifest = await backup_of(bench, url, global_url).create(path, False, phases.__setitem__, moved.append)
    assert sum(moved) == phases["copying"] or manifest.unread
    return manifest


def url_of(bench: Bench) -> str:
    return bench.metadata._misc._url


def refiller(bench: Bench, folder: Path) -> Refiller:
    context = bench.context
    return Refiller(url_of(bench), bench.metadata, context.placement(), context.buffers, context.native, codec_for, folder)


async def refill(bench: Bench, folder: Path, path: Path, deep: bool = False) -> Any:
    return await refiller(bench, folder).run(path, lambda name, total: None, lambda size: None, deep)


def files_of(drive: Path) -> dict[str, bytes]:
    """The large shards, but for the time they were written at and the check over it (docs/FORMATS.md, "Header")."""
    found = {}
    for path in (drive / "blobs").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            header = int.from_bytes(data[12:16], "little")
            data[120:128] = data[header - 8 : header] = bytes(8)
            found[path.name] = bytes(data)
    return found


async def empty(bench: Bench) -> int:
    """Remove every shard from every drive. Returns how many there were."""
    count = 0
    for drive in bench.drives:
        for place in [place async for place in drive.scan()]:
            count += await drive.remove(place.header.blob.blob_id, place.header.index)
    return count


@pytest.mark.parametrize(("drives", "scheme"), [(1, None), (3, Scheme(2, 1)), (6, Scheme(4, 2))])
def test_every_form_comes_back_as_it_was(postgres: Postgres, tmp_path: Path, drives: int, scheme: Scheme | None) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        for size in SIZES:
            await bench.put(f"k{size}", data_of(size))
        repository = tmp_path / "repository"
        manifest = await create(bench, url_of(bench), global_url, repository)
        assert manifest.complete and manifest.blobs == manifest.copied == 7, "the empty one and two inline ones have no blob"
        assert manifest.counts["objects"] == len(SIZES) and manifest.blob_bytes == sum(SIZES[3:])
        before = {number: files_of(drive.path) for number, drive in enumerate(bench.drives)}
        assert any(before.values())
        assert await empty(bench) > 0
        report = await refill(bench, tmp_path, repository)
        assert report.complete and (report.refilled.written, report.refilled.owing) == (7, 0)
        assert {number: files_of(drive.path) for number, drive in enumerate(bench.drives)} == before, "byte for byte"
        for size in SIZES:
            assert await bench.get(f"k{size}") == data_of(size)
        again = await refill(bench, tmp_path, repository)
        assert (again.refilled.present, again.refilled.written) == (7, 0)
        assert not (tmp_path / "refill.blobs").exists()

    on_bench(postgres, tmp_path, scenario, drives=drives, scheme=scheme)


def test_any_k_shards_are_enough_and_one_lost_blob_is_named(postgres: Postgres, tmp_path: Path) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        await bench.put("good", data_of(3_333_333))
        await bench.put("lost", data_of(2_000_000))
        await bench.put("small", data_of(5_000))
        for key, spoil in (("good", 2), ("lost", 3)):
            record = await bench.metadata.get_object(7, key)
            assert record is not None and record.content is not None
            found = list(tmp_path.rglob(f"{record.content.blob.blob_id.hex()}.*"))
            assert len(found) == 6
            for path in sorted(found)[:spoil]:
                flip(path, 0.6)
        path = tmp_path / "repository"
        manifest = await create(bench, url_of(bench), global_url, path)
        assert (manifest.unread, manifest.copied, manifest.complete) == (1, 2, False)
        assert (manifest.examples[0].key, manifest.examples[0].bucket_id) == ("lost", 7)
        assert (await RegionNotes(bench.metadata.query).state()).last_backup_us == 0, "not a backup to rely on"
        verdict = Verification(Repository(path)).run([manifest])
        assert verdict.missing == 1 and not verdict.good
        await empty(bench)
        report = await refill(bench, tmp_path, path)
        assert (report.refilled.written, report.refilled.absent, report.complete) == (2, 1, False)
        assert report.examples[0].key == "lost"
        assert await bench.get("good") == data_of(3_333_333)

    on_bench(postgres, tmp_path, scenario)


def test_only_what_is_new_is_copied_and_damaged_packs_are_made_up_for(postgres: Postgres, tmp_path: Path) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        for number in range(20):
            await bench.put(f"k{number}", data_of(10_000 + number))
        first = await create(bench, url_of(bench), global_url, path)
        await bench.put("k3", data_of(70_000))
        await bench.put("k20", data_of(80_000))
        second = await create(bench, url_of(bench), global_url, path)
        assert (first.copied, second.copied, second.blobs) == (20, 2, 21)
        repository = Repository(path)
        assert Verification(repository).run([first, second]).good
        whole = packs(path)
        assert len(whole) == 2
        [spoiled] = [pack for pack in whole if pack.stat().st_size > 170_000]
        original = spoiled.read_bytes()

        for at in (0.0, 70, 0.5, len(original) - 40, len(original) - 3):
            flip(spoiled, at)
            verdict = Verification(Repository(path)).run([first, second])
            assert not verdict.good and verdict.damaged == [spoiled.name], f"a bit at {at}"
            spoiled.write_bytes(original)
        spoiled.write_bytes(original[: len(original) // 2])
        assert Verification(Repository(path)).run([first]).damaged == [spoiled.name]
        with repository.writing():
            repository.set_aside([spoiled.name])
        third = await create(bench, url_of(bench), global_url, path)
        assert third.copied == 20 - 1, "what it held and rows still name: not the old k3"
        assert Verification(Repository(path)).run([third]).good

    on_bench(postgres, tmp_path, scenario, drives=2)


def test_forgetting_takes_the_packs_that_nobody_needs(postgres: Postgres, tmp_path: Path) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        await bench.put("stays", data_of(10_000))
        first = await create(bench, url_of(bench), global_url, path)
        await bench.put("goes", data_of(20_000))
        second = await create(bench, url_of(bench), global_url, path)
        await bench.put("goes", data_of(30_000))
        third = await create(bench, url_of(bench), global_url, path)
        repository = Repository(path)
        before = packs(path)
        with repository.writing():
            with pytest.raises(Conflict, match="another command"), Repository(path).writing():
                pass
            assert repository.forget(first.snapshot) == [], "the third still names what is in its pack"
            gone = repository.forget(second.snapshot)
        assert len(gone) == 1 and len(packs(path)) == len(before) - 1
        assert Verification(repository).run([third]).good
        manifest = path / "snapshots" / third.snapshot / "manifest.json"
        text = manifest.read_bytes()
        manifest.write_bytes(text.replace(b'"blobs": 2', b'"blobs": 1'))
        with pytest.raises(BadRecord, match="damaged"):
            repository.manifest(third.snapshot)
        manifest.unlink()
        with pytest.raises(BadRecord, match="no manifest"):
            repository.manifest(third.snapshot)
        fourth = await create(bench, url_of(bench), global_url, path)
        with repository.writing(), pytest.raises(Conflict, match="not known"):
            repository.forget(fourth.snapshot)
        assert len(packs(path)) == len(before) - 1, "a damaged snapshot keeps its packs"

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_what_is_deleted_meanwhile_is_still_copied(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between dump and copy everything is deleted and collected, without any grace: the hold is what keeps it."""
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        for number in range(10):
            await bench.put(f"k{number}", data_of(20_000 + number))
        hold = Hold(bench.metadata, 0.0)
        collector = Collector(bench.metadata, bench.context.placement(), 0.0, hold)
        copy = Backup._copy

        async def later(self: Backup, *arguments: Any) -> Any:
            for number in range(10):
                await bench.engine.delete_object(bench.bucket, f"k{number}", NO_CONDITION)
            await hold.refresh()
            assert await collector.run() == 0
            return await copy(self, *arguments)

        monkeypatch.setattr(Backup, "_copy", later)
        manifest = await create(bench, url_of(bench), global_url, tmp_path / "repository")
        assert manifest.complete and manifest.copied == 10
        await hold.refresh()
        assert await collector.run() == 10, "and then it goes"

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_an_interrupted_backup_is_taken_up(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global_url = postgres.fresh(Database.GLOBAL)
    monkeypatch.setattr(PackWriter.__init__, "__defaults__", (50_000,))

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        for number in range(12):
            await bench.put(f"k{number}", data_of(20_000))
        backup = backup_of(bench, url_of(bench), global_url)
        done = 0

        def moved(size: int) -> None:
            nonlocal done
            done += 1
            if done == 8:
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            await backup.create(path, False, lambda name, total: None, moved)
        assert 0 < len(packs(path)) < 4
        assert not list((path / "packs").glob("*.part"))
        assert Repository(path).snapshots() == ([], {})
        (path / "packs" / ("ab" * 16 + ".part")).write_bytes(b"left by a process that was killed")
        manifest = await create(bench, url_of(bench), global_url, path)
        assert manifest.complete and 0 < manifest.copied < 12
        assert Verification(Repository(path)).run([manifest]).good
        assert not list((path / "packs").glob("*.part")) and not list((path / "snapshots").glob("*.new"))

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_dump_and_list_are_of_one_moment(postgres: Postgres, tmp_path: Path) -> None:
    """Writers that overwrite all the time: what the dump names is exactly what the list says."""
    global_url = postgres.fresh(Database.GLOBAL)
    empty_url = asyncio.run(_new_database(postgres, "loaded"))

    async def scenario(bench: Bench) -> None:
        stop = False

        async def write(worker: int) -> None:
            number = 0
            while not stop:
                await bench.put(f"{worker}/{number % 10}", os.urandom(5_000))
                number += 1

        writers = [asyncio.create_task(write(worker)) for worker in range(4)]
        while len((await bench.metadata.owned_blobs(OwnedMark(), 1000)).blobs) < 20:
            await asyncio.sleep(0)
        path = tmp_path / "repository"
        manifest = await create(bench, url_of(bench), global_url, path)
        stop = True
        await asyncio.gather(*writers)
        assert manifest.complete
        repository = Repository(path)
        made_by = manifest.tool_of("regional"), manifest.server_of("regional")
        tool = await dumps.prepare_load(empty_url, Database.REGIONAL, *made_by, 1)
        await dumps.load(empty_url, Database.REGIONAL, tool, repository.folder(manifest.snapshot) / REGIONAL)
        connection = await asyncpg.connect(empty_url)
        named = {row[0] for row in await connection.fetch("SELECT blob_id FROM objects WHERE blob_id IS NOT NULL")}
        await connection.close()
        assert named == {blob.blob_id for blob in repository.listed(manifest.snapshot)} and len(named) >= 20
        assert Verification(repository).run([manifest]).good

    on_bench(postgres, tmp_path, scenario, drives=1)


async def _new_database(postgres: Postgres, name: str) -> str:
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
    return postgres.cluster.url(name)


def test_loading_is_refused_or_finished(postgres: Postgres, tmp_path: Path) -> None:
    """Not empty, too new, interrupted: and the database says so to whoever wants to start on it."""
    source, target = postgres.fresh(Database.REGIONAL), asyncio.run(_new_database(postgres, "half"))

    async def main() -> None:
        tool = await dumps.dump_tool(source, Database.REGIONAL)
        dump = tmp_path / REGIONAL
        facts = await dumps.dump_regional(source, tool, dump, lambda blobs: None)
        newest = facts.migration
        with pytest.raises(Conflict, match="not empty"):
            await dumps.prepare_load(source, Database.REGIONAL, tool.major, facts.server, newest)
        with pytest.raises(InvalidSetting, match="newer Anvil"):
            await dumps.prepare_load(target, Database.REGIONAL, tool.major, facts.server, newest + 1)
        with pytest.raises(InvalidSetting, match="PostgreSQL 99"):
            await dumps.prepare_load(target, Database.REGIONAL, tool.major, 99, newest)
        restore = await dumps.prepare_load(target, Database.REGIONAL, tool.major, facts.server, newest)
        broken = tmp_path / "broken.dump"
        shutil.copy(dump, broken)
        broken.write_bytes(dump.read_bytes()[:5000])
        with pytest.raises(Exception, match="pg_restore failed"):
            await dumps.load(target, Database.REGIONAL, restore, broken)
        with pytest.raises(InvalidSetting, match="interrupted"):
            await migrate(target, Database.REGIONAL)
        await dumps.prepare_load(target, Database.REGIONAL, tool.major, facts.server, newest)  # half of it is nothing
        await dumps.load(target, Database.REGIONAL, restore, dump)
        with pytest.raises(InvalidSetting, match="interrupted"):
            await migrate(target, Database.REGIONAL)
        await recovery.begin_recovery(target, "s", [5, 6], keep_nodes=False)
        await recovery.end_restore(target, Database.REGIONAL)
        assert await migrate(target, Database.REGIONAL) == 0
        with pytest.raises(Conflict, match="just restored"):
            await recovery.begin_recovery(target, "s", [], keep_nodes=False)

    asyncio.run(main())


def test_bucket_keys_come_out_of_a_dump(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh(Database.GLOBAL)
    sealed = {17: bytes(range(61)), 2**62: os.urandom(61)}

    async def main() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("INSERT INTO regions (name) VALUES ('r'); INSERT INTO tenants (name) VALUES ('t')")
        for bucket_id, key in sealed.items():
            await connection.execute(
                """INSERT INTO buckets (bucket_id, tenant_id, name, region, state, sealed_key, config)
                   SELECT $1::bigint, tenant_id, 'b' || $1::text, 'r', 'active', $2, '{"a": "tab\\tand \\\\ more"}' FROM tenants""",
                bucket_id,
                key,
            )
        await connection.close()
        tool = await dumps.dump_tool(url, Database.GLOBAL)
        await dumps.dump_global(url, tool, tmp_path / GLOBAL)
        await dumps.readable(tmp_path / GLOBAL, tool.major)
        assert await dumps.sealed_bucket_keys(tmp_path / GLOBAL, tool.major) == sealed

    asyncio.run(main())


def test_the_list_is_part_of_what_is_checked(postgres: Postgres, tmp_path: Path) -> None:
    global_url = postgres.fresh(Database.GLOBAL)

    async def scenario(bench: Bench) -> None:
        path = tmp_path / "repository"
        await bench.put("k", data_of(10_000))
        manifest = await create(bench, url_of(bench), global_url, path)
        for name in (BLOBS, REGIONAL, GLOBAL):
            file = path / "snapshots" / manifest.snapshot / name
            before = file.read_bytes()
            flip(file, 0.5)
            verdict = Verification(Repository(path)).run([manifest])
            assert any(name in line for line in verdict.troubles), name
            file.write_bytes(before)
        assert Verification(Repository(path)).run([manifest]).good

    on_bench(postgres, tmp_path, scenario, drives=1)
