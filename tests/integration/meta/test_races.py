"""The race rules of the metadata, each provoked.

Several stores (each with connections of its own) stand for several workers.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from anvil.base.errors import AnvilError, BucketNotEmpty, NoSuchBucket, NoSuchUpload, PreconditionFailed, WriterFenced
from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from anvil.model.records import Condition, PutCommit, Usage
from tests.contract.metadata_world import NODE, World, new_bucket_id
from tests.postgres_fixture import Postgres


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh(Database.REGIONAL)


@asynccontextmanager
async def workers(url: str, number: int) -> AsyncIterator[list[World]]:
    """Workers on one bucket, each with its own store and session."""
    stores = [RegionalStore(url) for _ in range(number)]
    for store in stores:
        await store.start()
    try:
        bucket_id = new_bucket_id()
        await stores[0].add_bucket(bucket_id)
        yield [World(store, bucket_id, await store.open_session(NODE, n)) for n, store in enumerate(stores)]
    finally:
        for store in stores:
            await store.close()


async def holder(url: str) -> asyncpg.Connection:
    """A connection of the test's own, to hold locks with."""
    connection: asyncpg.Connection = await asyncpg.connect(url)
    return connection


async def someone_waits_for_a_lock(connection: asyncpg.Connection, database_too: int = 1) -> None:
    """Until that many other sessions of this database wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(20):
        while await connection.fetchval(sql) < database_too:
            await asyncio.sleep(0.005)


def test_racing_overwrites_leak_no_blob(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 3) as worlds:
            keys = [f"hot/{n}" for n in range(7)]
            sizes: dict[bytes, int] = {}
            rng = random.Random(7)

            async def hammer(w: World) -> None:
                for _ in range(60):
                    commit = w.put(rng.choice(keys), rng.randrange(1, 10_000))
                    assert commit.content is not None
                    sizes[commit.content.blob.blob_id] = commit.size
                    if rng.random() < 0.15:
                        await w.delete(rng.choice(keys))
                    await w.store.put_object(commit)

            await asyncio.gather(*(hammer(w) for w in worlds for _ in range(16)))
            w = worlds[0]
            current = [await w.store.get_object(w.bucket_id, key) for key in keys]
            blobs = [record.content.blob.blob_id for record in current if record and record.content]
            garbage = [g.blob_id for g in await w.store.garbage(100_000, 0.0)]
            assert sorted([*blobs, *garbage]) == sorted(sizes), (
                "every blob ever written is either current or garbage, exactly once"
            )
            (usage,) = await w.store.usage()
            assert usage == Usage(w.bucket_id, len(blobs), sum(sizes[blob] for blob in blobs))
            assert await w.store.fold_usage() > 0
            assert await w.store.usage() == [usage]

    asyncio.run(scenario())


def test_usage_is_exact_while_it_is_folded(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 2) as worlds:
            reader, writer = worlds
            written = 0
            done = asyncio.Event()

            async def fold() -> None:
                while not done.is_set():
                    await asyncio.gather(reader.store.fold_usage(), writer.store.fold_usage())

            async def watch() -> None:
                while not done.is_set():
                    low = written
                    (usage,) = await reader.store.usage()
                    assert low <= usage.objects <= written + 1
                    assert usage.bytes == usage.objects * 10

            async def write() -> None:
                nonlocal written
                for n in range(150):
                    await writer.store.put_object(writer.put(f"k{n}", 10))
                    written += 1
                done.set()

            async with asyncio.TaskGroup() as group:
                for part in (fold(), watch(), write()):
                    group.create_task(part)

    asyncio.run(scenario())


def test_racing_if_none_match_has_one_winner(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 3) as worlds:
            for round_ in range(20):
                commits = [
                    (w, w.put(f"new/{round_}", condition=Condition(if_none_match=("*",)))) for w in worlds for _ in range(5)
                ]
                results = await asyncio.gather(*(w.store.put_object(c) for w, c in commits), return_exceptions=True)
                winners = [c for (_, c), result in zip(commits, results, strict=True) if not isinstance(result, BaseException)]
                assert len(winners) == 1
                assert sum(isinstance(result, PreconditionFailed) for result in results) == len(commits) - 1
                record = await worlds[0].store.get_object(worlds[0].bucket_id, f"new/{round_}")
                assert record is not None
                assert record.version_id == winners[0].version_id

    asyncio.run(scenario())


def test_racing_if_match_has_one_winner(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 3) as worlds:
            etag = "0" * 32
            await worlds[0].store.put_object(worlds[0].put("cas", etag=etag))
            for round_ in range(1, 15):
                fresh = [f"{round_:016x}{n:016x}" for n in range(9)]
                commits = [w.put("cas", etag=new, condition=Condition(if_match=(etag,))) for w in worlds for new in fresh[:3]]
                stores = [w.store for w in worlds for _ in range(3)]
                attempts = (store.put_object(commit) for store, commit in zip(stores, commits, strict=True))
                results = await asyncio.gather(*attempts, return_exceptions=True)
                winners = [c for c, result in zip(commits, results, strict=True) if not isinstance(result, BaseException)]
                assert len(winners) == 1
                etag = winners[0].etag

    asyncio.run(scenario())


def test_put_against_delete_bucket(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 2) as worlds:
            first, second = worlds
            outcomes = {"deleted": 0, "kept": 0}
            for round_ in range(40):
                bucket_id = new_bucket_id()
                await first.store.add_bucket(bucket_id)
                first.bucket_id = second.bucket_id = bucket_id
                put: object
                dropped: object
                order = [first.store.put_object(first.put(f"k{round_}")), second.store.drop_bucket(bucket_id)]
                put, dropped = await asyncio.gather(*order, return_exceptions=True)
                record = await first.store.get_object(bucket_id, f"k{round_}")
                if isinstance(dropped, BucketNotEmpty):
                    outcomes["kept"] += 1
                    assert not isinstance(put, BaseException)
                    assert record is not None
                else:
                    outcomes["deleted"] += 1
                    assert dropped is None
                    assert isinstance(put, NoSuchBucket)
                    assert record is None, "an object in a bucket that is gone could never be found again"
            assert sum(outcomes.values()) == 40

    asyncio.run(scenario())


def test_delete_bucket_waits_for_a_put_in_flight(url: str) -> None:
    """Both orders, forced: the put holds the fence while the delete comes, and the reverse."""

    async def scenario() -> None:
        async with workers(url, 2) as (first, second):
            lock = await holder(url)
            # The put is stopped at a row another transaction has inserted; it holds its fences by then.
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute(
                "INSERT INTO objects (bucket_id, key, version_id, size, etag) VALUES ($1, 'k', $2, 0, 'e')",
                first.bucket_id,
                bytes(16),
            )
            put = asyncio.create_task(first.store.put_object(first.put("k")))
            await someone_waits_for_a_lock(lock)
            drop = asyncio.create_task(second.store.drop_bucket(second.bucket_id))
            await someone_waits_for_a_lock(lock, 2)
            await transaction.rollback()
            await put
            with pytest.raises(BucketNotEmpty):
                await drop
            await lock.close()

    asyncio.run(scenario())


def test_a_fenced_writer_commits_nothing(url: str) -> None:
    """Its session ends while its commit is on the way: the commit that comes after writes nothing, and says so."""

    async def scenario() -> None:
        async with workers(url, 2) as (first, second):
            lock = await holder(url)
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute("DELETE FROM writer_sessions WHERE session_id = $1", first.session)
            put = asyncio.create_task(first.store.put_object(first.put("k", missing=1)))
            conditional = asyncio.create_task(first.store.put_object(first.put("c", condition=Condition(if_none_match=("*",)))))
            await someone_waits_for_a_lock(lock)
            await transaction.commit()
            for attempt in (put, conditional):
                with pytest.raises(WriterFenced):
                    await attempt
            assert await second.store.get_object(second.bucket_id, "k") is None
            assert await second.store.debts(10) == []
            assert await second.store.usage() == [Usage(second.bucket_id, 0, 0)]
            await lock.close()

    asyncio.run(scenario())


def test_a_session_ends_only_after_its_commits_in_flight(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 2) as (first, second):
            lock = await holder(url)
            await lock.execute("UPDATE writer_sessions SET lease_until = '-infinity' WHERE session_id = $1", first.session)
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute(
                "INSERT INTO objects (bucket_id, key, version_id, size, etag) VALUES ($1, 'k', $2, 0, 'e')",
                first.bucket_id,
                bytes(16),
            )
            put = asyncio.create_task(first.store.put_object(first.put("k")))
            await someone_waits_for_a_lock(lock)
            expire = asyncio.create_task(second.store.expire_sessions())
            await someone_waits_for_a_lock(lock, 2)
            await transaction.rollback()
            await put
            assert await expire == [first.session]
            with pytest.raises(WriterFenced):
                await first.store.put_object(first.put("k"))
            assert second.session in await second.store.live_sessions()
            await lock.close()

    asyncio.run(scenario())


def test_a_poison_row_fails_alone(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 1) as (w,):
            lock = await holder(url)
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute("SELECT FROM buckets WHERE bucket_id = $1 FOR UPDATE", w.bucket_id)
            stopper = asyncio.create_task(w.store.put_object(w.put("stopper")))
            await someone_waits_for_a_lock(lock)
            # All of these share the next batch.
            keys = [f"k{n:03}" for n in range(100)]
            keys[37] = "k037\0"
            keys[38] = "k038" + "x" * 1024
            attempts = [asyncio.create_task(w.store.put_object(w.put(key))) for key in keys]
            await asyncio.sleep(0)
            batches_before = w.store.batch_sizes()["put_object"]
            await transaction.rollback()
            await stopper
            results = await asyncio.gather(*attempts, return_exceptions=True)
            assert [n for n, result in enumerate(results) if isinstance(result, AnvilError)] == [37, 38]
            batches, rows = w.store.batch_sizes()["put_object"]
            assert (batches - batches_before[0], rows - batches_before[1]) == (1, 100)
            (usage,) = await w.store.usage()
            assert usage.objects == 99
            await lock.close()

    asyncio.run(scenario())


def test_a_cancelled_caller_does_not_cancel_its_batch(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 1) as (w,):
            lock = await holder(url)
            transaction = lock.transaction()
            await transaction.start()
            await lock.execute("SELECT FROM buckets WHERE bucket_id = $1 FOR UPDATE", w.bucket_id)
            attempts = [asyncio.create_task(w.store.put_object(w.put(f"k{n}"))) for n in range(10)]
            await someone_waits_for_a_lock(lock)
            for attempt in attempts[::2]:
                attempt.cancel()
            late = asyncio.create_task(w.store.put_object(w.put("never sent")))
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.gather(*attempts[::2], late, return_exceptions=True)
            await transaction.rollback()
            await asyncio.gather(*attempts[1::2])
            for n in range(10):
                assert await w.store.get_object(w.bucket_id, f"k{n}") is not None, "what was sent happens, cancelled or not"
            assert await w.store.get_object(w.bucket_id, "never sent") is None
            await lock.close()

    asyncio.run(scenario())


def test_operations_on_one_key_keep_their_order(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 1) as (w,):
            commits: list[PutCommit] = [w.put("same", 100 + n) for n in range(20)]
            others = [w.put(f"other{n}") for n in range(20)]
            both = [commit for pair in zip(commits, others, strict=True) for commit in pair]
            await asyncio.gather(*(w.store.put_object(commit) for commit in both))
            record = await w.store.get_object(w.bucket_id, "same")
            assert record is not None
            assert record.version_id == commits[-1].version_id
            assert len(await w.store.garbage(1000, 0.0)) == 19

    asyncio.run(scenario())


def test_parts_against_complete_and_abort(url: str) -> None:
    """Parts racing with completion and abortion: a part is in the manifest, or garbage, or was refused; never forgotten."""

    async def scenario() -> None:
        async with workers(url, 3) as worlds:
            for round_ in range(15):
                w = worlds[0]
                key = f"mp/{round_}"
                upload_id = await w.upload(key)
                first = w.part(key, upload_id, 1)
                await w.store.put_part(first)
                racing = [x.part(key, upload_id, n) for n, x in enumerate(worlds, 2)]
                end = (
                    w.store.complete_upload(w.complete(key, upload_id, [first]))
                    if round_ % 2
                    else w.store.abort_upload(w.session, w.bucket_id, key, upload_id)
                )
                attempts = [x.store.put_part(part) for x, part in zip(worlds, racing, strict=True)]
                results = (await asyncio.gather(end, *attempts, return_exceptions=True))[1:]
                garbage = {g.blob_id for g in await w.store.garbage(10_000, 0.0)}
                for part, result in zip(racing, results, strict=True):
                    assert part.content is not None
                    if isinstance(result, BaseException):
                        assert isinstance(result, NoSuchUpload)
                        assert part.content.blob.blob_id not in garbage
                    else:
                        assert part.content.blob.blob_id in garbage
                (usage,) = await w.store.usage()
                assert (usage.upload_parts, usage.upload_bytes) == (0, 0)

    asyncio.run(scenario())


def test_racing_completions_agree(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 3) as worlds:
            for round_ in range(10):
                w = worlds[0]
                upload_id = await w.upload(f"k{round_}")
                part = w.part(f"k{round_}", upload_id, 1)
                await w.store.put_part(part)
                attempts = (x.store.complete_upload(x.complete(f"k{round_}", upload_id, [part])) for x in worlds)
                results = await asyncio.gather(*attempts)
                assert len({result.version_id for result in results}) == 1

    asyncio.run(scenario())


def test_garbage_waits_after_history_branched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.meta.regional.HOLD_SETTLE_S", 0.0)

    """A restored or promoted database gives no garbage for `grace`, and none at all while a backup holds it."""

    async def scenario() -> None:
        async with workers(url, 1) as (w,):
            await w.store.put_object(w.put("k"))
            await w.store.put_object(w.put("k"))
            connection = await holder(url)
            await connection.execute("UPDATE outbox SET since_us = 0")
            assert await w.store.garbage(10, 3600.0) == [], "this database was first seen a moment ago"
            await connection.execute("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch'")
            assert len(await w.store.garbage(10, 3600.0)) == 1
            await connection.execute(
                """UPDATE settings SET value = '["another system", "00000001", null]' WHERE name = 'gc_epoch'"""
            )
            assert await w.store.garbage(10, 3600.0) == []
            await connection.execute("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch'")
            await w.store.hold_garbage("backup of tonight")
            assert await w.store.garbage(10, 3600.0) == []
            await w.store.hold_garbage(None)
            assert len(await w.store.garbage(10, 3600.0)) == 1
            await connection.close()

    asyncio.run(scenario())


def test_an_owned_blob_is_never_garbage(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 1) as (w,):
            commit = w.put("k")
            await w.store.put_object(commit)
            assert commit.content is not None
            connection = await holder(url)
            await connection.execute(
                """INSERT INTO outbox (bucket_id, key, version_id, part_number, blob_id, scheme, since_us)
                   VALUES ($1, 'k', $5, 0, $2, $3, 0), ($1, 'k', $5, 0, $4, $3, 0)""",
                w.bucket_id,
                commit.content.blob.blob_id,
                commit.content.blob.scheme.pack(),
                os.urandom(16),
                commit.version_id,
            )
            (only,) = await w.store.garbage(10, 0.0)
            assert only.blob_id != commit.content.blob.blob_id
            assert await connection.fetchval("SELECT count(*) FROM outbox") == 1
            await connection.close()

    asyncio.run(scenario())


def test_metadata_only_copy_races_with_overwrite(url: str) -> None:
    async def scenario() -> None:
        async with workers(url, 2) as (first, second):
            for round_ in range(20):
                key = f"k{round_}"
                put = first.put(key, 10)
                await first.store.put_object(put)
                change, over = first.put(key, 10), second.put(key, 20)
                await asyncio.gather(
                    first.store.replace_attributes(change, put.version_id), second.store.put_object(over), return_exceptions=True
                )
                record = await first.store.get_object(first.bucket_id, key)
                assert record is not None
                assert record.content == over.content, "the overwrite is last, whoever came first"
            (usage,) = await first.store.usage()
            assert usage == Usage(first.bucket_id, 20, 400)
            assert len(await first.store.garbage(1000, 0.0)) == 20

    asyncio.run(scenario())
