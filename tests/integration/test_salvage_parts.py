"""Dump, loss, rebuild and acceptance over two real databases and drives in memory: test_lost_database.py without processes."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import msgspec

from anvil.base.clock import SYSTEM_CLOCK
from anvil.engine.engine import Engine
from anvil.engine.session import WriterSession
from anvil.meta.cluster import ClusterTables
from anvil.meta.dump import Loading, load, snapshot
from anvil.meta.migrate import Database, migrations
from anvil.meta.regional import RegionalStore
from anvil.meta.salvage import Loaded, SalvageTable
from anvil.model.dump import SYSTEM_BUCKET, DumpName, Manifest, Rebuilt, system_bucket
from anvil.model.records import NO_CONDITION, BucketId, ListQuery
from anvil.model.scheme import Scheme
from anvil.tasks.dump import DumpReader, DumpWriter
from anvil.tasks.salvage import Salvager
from tests.postgres_fixture import Postgres
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

SYSTEM = system_bucket(bytes(range(32)), "us-east-1")
LAST = migrations(Database.REGIONAL)[-1].number


@asynccontextmanager
async def database(postgres: Postgres, made: Region) -> AsyncIterator[tuple[tuple[str, str], RegionalStore]]:
    """A fresh one, to which the engine of the region changes over with a new writer session."""
    url = await postgres.fresh_async(Database.REGIONAL)
    async with ClusterTables(url) as tables:
        assert await tables.belongs_to("us-east-1") == "us-east-1"
    async with AsyncExitStack() as opened:
        store = RegionalStore(url)
        opened.push_async_callback(store.close)
        await store.start()
        session = WriterSession(store, os.urandom(16), 0)
        await session.open()
        made.context = replace(made.context, metadata=store, session=session, now_us=SYSTEM_CLOCK.now_us)
        made.engine = Engine(made.context)
        yield (url, await postgres.fresh_async(Database.GLOBAL)), store


def salvager(made: Region, urls: tuple[str, str], store: RegionalStore) -> Salvager:
    @asynccontextmanager
    async def loading(name: DumpName, manifest: Manifest) -> AsyncIterator[Loading]:
        ended = tuple(one.hex() for one in manifest.ended)
        note = msgspec.json.encode(Loaded(name.prefix, manifest.taken_us, manifest.rows, ended)).decode()
        async with load(*urls, note) as begun:
            yield begun

    async def buckets() -> frozenset[BucketId]:
        return frozenset({made.bucket.bucket_id})

    reader = DumpReader(made.context, SYSTEM)
    return Salvager(
        "us-east-1", LAST, store, made.placement, SalvageTable(store.query), reader, loading, buckets, store.add_bucket
    )


async def contents(made: Region) -> dict[str, bytes]:
    listed = await made.engine.list_objects(ListQuery(made.bucket.bucket_id))
    return {entry.key: await made.get(entry.key) for entry in listed.entries}


def test_a_database_comes_back_from_drives_alone(postgres: Postgres) -> None:
    rng = random.Random(3)

    async def main() -> None:
        async with region(6, 1, Scheme(4, 2)) as made:
            objects = {f"k{size}": rng.randbytes(size) for size in (0, 100, 5000, 70_000, 3_000_000)}
            later = {"later": rng.randbytes(80_000), "k5000": rng.randbytes(90_000)}
            async with database(postgres, made) as (urls, store):
                await store.add_bucket(made.bucket.bucket_id)
                await store.add_bucket(SYSTEM_BUCKET)
                for key, data in objects.items():
                    await made.put_any(key, data)
                await made.put_any("deleted", bytes(70_000))
                await made.engine.delete_object(made.bucket, "deleted", NO_CONDITION)
                async with snapshot(*urls) as rows:
                    name, manifest = await DumpWriter(made.context, SYSTEM).write(rows)
                for key, data in later.items():
                    await made.put_any(key, data)
                await made.put_any("later and deleted", bytes(60_000))
                await made.engine.delete_object(made.bucket, "later and deleted", NO_CONDITION)
                await made.engine.delete_object(made.bucket, "k70000", NO_CONDITION)
            async with database(postgres, made) as (urls, store):
                report = Rebuilt()
                await salvager(made, urls, store).run(report)
                assert (report.dump, report.rows) == (name.prefix, manifest.rows)
                assert (report.uncertain, report.garbage, report.away) == (3, 1, []), report
                assert await contents(made) == objects
                again = Rebuilt()
                await salvager(made, urls, store).run(again)
                assert msgspec.structs.replace(again, with_global=True) == report
                table = SalvageTable(store.query)
                waiting = await table.list(None)
                assert [one.key for one in waiting] == ["k5000", "later", "later and deleted"]
                accepted = await table.accept([one.blob_id for one in waiting[:2]])
                assert set(accepted.values()) == {""}
                assert await contents(made) == {**objects, **later}
                usage = (await store.usage([made.bucket.bucket_id]))[0]
                assert (usage.objects, usage.bytes) == (len(objects) + 1, sum(map(len, {**objects, **later}.values())))
                # It goes on as any region, and the dump was never its own: the next one is.
                await made.put_any("after", b"x" * 3000)
                async with snapshot(*urls) as rows:
                    newer, _ = await DumpWriter(made.context, SYSTEM).write(rows)
                assert newer > name

    asyncio.run(main())


def test_the_region_after_the_rebuild_may_be_lost_as_well(postgres: Postgres) -> None:
    """An older dump's own objects are part of a later dump, so they are pruned in time."""

    async def main() -> None:
        async with region(6, 1, Scheme(4, 2)) as made:
            async with database(postgres, made) as (urls, store):
                await store.add_bucket(made.bucket.bucket_id)
                await store.add_bucket(SYSTEM_BUCKET)
                await made.engine.put_object(made.bucket, "k", Bytes(b"a" * 5000), plain_spec())
                for _ in range(2):
                    async with snapshot(*urls) as rows:
                        await DumpWriter(made.context, SYSTEM).write(rows)
            for _ in range(2):
                async with database(postgres, made) as (urls, store):
                    await salvager(made, urls, store).run(Rebuilt())
                    assert await contents(made) == {"k": b"a" * 5000}
                    writer = DumpWriter(made.context, SYSTEM)
                    for _ in range(4):
                        async with snapshot(*urls) as rows:
                            await writer.write(rows)
                    await writer.prune()
                    page = await made.engine.list_objects(ListQuery(SYSTEM_BUCKET, limit=1000))
                    assert len({entry.key.split("/")[1] for entry in page.entries}) == 3

    asyncio.run(main())


def test_two_wiped_drives_and_a_layout_made_anew_are_no_obstacle(postgres: Postgres) -> None:
    """As many as parity survives. Everything is somewhere else than the new layout wants it."""
    rng = random.Random(5)

    async def main() -> None:
        async with region(6, 1, Scheme(4, 2)) as made:
            objects = {f"k{size}": rng.randbytes(size) for size in (5000, 70_000, 3_000_000)}
            later = {"later": rng.randbytes(80_000)}
            async with database(postgres, made) as (urls, store):
                await store.add_bucket(made.bucket.bucket_id)
                await store.add_bucket(SYSTEM_BUCKET)
                for key, data in objects.items():
                    await made.put_any(key, data)
                async with snapshot(*urls) as rows:
                    await DumpWriter(made.context, SYSTEM).write(rows)
                await made.put_any("later", later["later"])
            for number in (1, 4):
                made.drives[number][0].shards.clear()
            made.layout = msgspec.structs.replace(made.layout, drives=made.layout.drives[::-1])  # other drives at the same places
            made.placement.follow([made.layout], made.reachable)
            async with database(postgres, made) as (urls, store):
                report = Rebuilt()
                await salvager(made, urls, store).run(report)
                assert (report.uncertain, report.unreadable, report.rows > 0) == (1, 0, True)
                assert await contents(made) == objects
                table = SalvageTable(store.query)
                await table.accept([one.blob_id for one in await table.list(None)])
                assert await contents(made) == {**objects, **later}
                [debt] = [debt for debt in await store.debts(100) if debt.owner.key == "later"]
                assert debt.missing.bit_count() == 2, "what the wiped drives had is owed"

    asyncio.run(main())
