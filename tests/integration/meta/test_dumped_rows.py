"""Dump and load between two PostgreSQL databases, and what becomes of candidates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import pytest

from anvil.base.errors import Conflict, Corrupt
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.dump import DUMPED, GLOBAL_DUMPED, GLOBAL_LEFT_OUT, LEFT_OUT, load, snapshot
from anvil.meta.keyring import Keyring
from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from anvil.meta.salvage import SalvageTable
from anvil.model.dump import SYSTEM_BUCKET, Candidate, TableDump
from anvil.model.identity import Action, Policy
from anvil.model.records import Algorithm, Attributes, BlobRef, Checksum, Owner
from anvil.model.scheme import Scheme
from tests.contract.metadata_world import World, world
from tests.postgres_fixture import Postgres

Taken = list[tuple[TableDump, bytes]]


class Urls(NamedTuple):
    regional: str
    deployment: str


async def take(url: Urls) -> Taken:
    taken: Taken = []
    async with snapshot(*url) as rows:
        for table in rows.tables:
            data = bytearray()

            async def sink(piece: bytes, data: bytearray = data) -> None:
                data.extend(piece)

            columns, count = await rows.copy(table, sink)
            taken.append((TableDump(table, columns, count, ()), bytes(data)))
    return taken


async def source(data: bytes, step: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def put_back(url: Urls, taken: Taken) -> None:
    async with load(*url, '{"dump": "d", "taken_us": 1, "rows": 2}') as loading:
        for table, data in taken:
            await loading.table(table, source(data))


async def everything(url: Urls) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url.regional)
    try:
        columns = {"outbox": "bucket_id, key, version_id, part_number, blob_id, scheme, since_us"}
        return {
            table: sorted(
                [tuple(row) for row in await connection.fetch(f"SELECT {columns.get(table, '*')} FROM {table}")], key=repr
            )
            for table in DUMPED
        }
    finally:
        await connection.close()


async def fill(made: World, beside: asyncpg.Connection) -> None:
    """Rows of every kind, in every table of a dump."""
    store = made.store
    for key, size, inline in (
        ("empty", 0, False),
        ("inline", 100, True),
        ("ü/ñ", 5000, False),
        ("twice", 6000, False),
        ("gone", 7000, False),
    ):
        await store.put_object(
            made.put(key, size, inline=inline, attributes=Attributes(user={"a": "b"}), missing=2 * (key == "ü/ñ"))
        )
    await store.put_object(made.put("twice", 8000))
    await made.delete("gone")
    for key, done in (("whole", True), ("open", False)):
        upload = await made.upload(key)
        parts = [made.part(key, upload, number, 100 * number) for number in (1, 2, 3)]
        for part in parts:
            await store.put_part(part)
        if done:
            await store.complete_upload(made.complete(key, upload, parts[:2]))
    await beside.execute(
        """INSERT INTO versions (bucket_id, key, version_id, is_null, size, etag, is_delete_marker)
           VALUES ($1, 'v', $2, false, 0, '', true)""",
        made.bucket_id,
        os.urandom(16),
    )
    await store.add_bucket(77)
    await store.drop_bucket(77)


@asynccontextmanager
async def two(postgres: Postgres) -> AsyncIterator[tuple[World, asyncpg.Connection, Urls, Urls]]:
    url, other = [
        Urls(await postgres.fresh_async(Database.REGIONAL), await postgres.fresh_async(Database.GLOBAL)) for _ in range(2)
    ]
    beside = await asyncpg.connect(url.regional)
    try:
        async with world(url.regional) as made:
            yield made, beside, url, other
    finally:
        await beside.close()


def test_every_table_is_dumped_or_left_out_for_a_reason(postgres: Postgres) -> None:
    async def main() -> None:
        for database, wanted in (
            (Database.REGIONAL, {*DUMPED, *LEFT_OUT}),
            (Database.GLOBAL, {*GLOBAL_DUMPED, *GLOBAL_LEFT_OUT}),
        ):
            connection = await asyncpg.connect(await postgres.fresh_async(database))
            try:
                found = {row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
            finally:
                await connection.close()
            assert found == wanted

    asyncio.run(main())


def test_a_load_gives_back_every_row_and_the_usage(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, beside, url, other):
            await fill(made, beside)
            taken = await take(url)
            assert all(table.rows for table, _ in taken if table.name in DUMPED), "or this proves nothing"
            await put_back(other, taken)
            assert await everything(other) == await everything(url)
            async with world(other.regional) as copy:
                assert await copy.store.usage([made.bucket_id]) == await made.store.usage([made.bucket_id])
                # What comes after behaves as ever: triggers are on, and the next version is the newest.
                before = await copy.store.get_object(made.bucket_id, "twice")
                again = World(copy.store, made.bucket_id, copy.session)
                assert (await copy.store.put_object(again.put("twice", 10))).seq > before.seq
                assert (await copy.store.usage([made.bucket_id]))[0].bytes == (await made.store.usage([made.bucket_id]))[
                    0
                ].bytes - 7990
                blob_id = before.content.blob.blob_id
                assert await copy.store.query("SELECT FROM outbox WHERE blob_id = $1", blob_id)

    asyncio.run(main())


def test_a_dump_is_one_snapshot(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, beside, url, other):
            await fill(made, beside)
            async with snapshot(*url) as rows:
                wanted = await everything(url)
                taken: Taken = []
                for table in rows.tables:
                    await made.store.put_object(made.put(f"meanwhile {table}"))
                    await made.delete("inline")
                    data: list[bytes] = []

                    async def sink(piece: bytes, data: list[bytes] = data) -> None:
                        data.append(piece)

                    columns, count = await rows.copy(table, sink)
                    taken.append((TableDump(table, columns, count, ()), b"".join(data)))
                with pytest.raises(Conflict):
                    async with snapshot(*url):
                        pass
            await put_back(other, taken)
            assert await everything(other) == wanted

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["torn", "short", "unknown table", "unknown column", "given up"])
def test_a_load_is_whole_or_nothing(postgres: Postgres, harm: str) -> None:
    async def main() -> None:
        async with two(postgres) as (made, beside, url, other):
            await fill(made, beside)
            before = await everything(other)
            taken = await take(url)
            taken = [one for one in taken if one[0].name in DUMPED]
            table, data = taken[-1]
            if harm == "torn":
                taken[-1] = (table, data[:-20])
            elif harm == "short":
                taken[-1] = (TableDump(table.name, table.columns, table.rows + 1, ()), data)
            elif harm == "unknown table":
                taken.append((TableDump("settings", ("name",), 1, ()), data))
            elif harm == "unknown column":
                taken[-1] = (TableDump(table.name, (*table.columns[:-1], "new"), table.rows, ()), data)
            with pytest.raises(Corrupt if harm != "given up" else ZeroDivisionError):
                async with load(*other, "{}") as loading:
                    for table, data in taken:
                        await loading.table(table, source(data))
                    raise ZeroDivisionError
            assert await everything(other) == before
            async with world(other.regional) as copy:
                await copy.store.put_object(copy.put("k", 10))
                assert (await copy.store.usage([copy.bucket_id]))[0].bytes == 10, "the triggers are on"

    asyncio.run(main())


def test_a_load_goes_into_an_empty_database_only(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, beside, url, other):
            await fill(made, beside)
            taken = await take(url)
            async with world(other.regional) as copy:
                await copy.store.put_object(copy.put("k"))
                with pytest.raises(Conflict):
                    await put_back(other, taken)
                assert await copy.store.get_object(copy.bucket_id, "k")
                assert await copy.store.get_object(made.bucket_id, "twice") is None

    asyncio.run(main())


def test_ended_sessions_are_remembered_with_the_snapshot(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, _, url, _other):
            await made.store.close_session(made.session)
            alive = await made.store.open_session(bytes(16), 1)
            async with snapshot(*url) as rows:
                await made.store.close_session(alive)
                assert rows.ended == (made.session,)
            assert await SalvageTable(made.store.query).sessions() == {made.session, alive}

    asyncio.run(main())


@asynccontextmanager
async def deployment(url: Urls) -> AsyncIterator[GlobalCatalog]:
    """As a node starts: its region, and the first tenant and app."""
    async with AsyncExitStack() as opened:
        store = RegionalStore(url.regional)
        opened.push_async_callback(store.close)
        await store.start()
        catalog = GlobalCatalog(url.deployment, Keyring(bytes(32)), store, "us-1")
        opened.push_async_callback(catalog.close)
        await catalog.start()
        await catalog.admin.bootstrap("us-1")
        yield catalog


def test_a_global_database_that_was_lost_as_well_comes_back(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (_, _, url, other):
            async with deployment(url) as catalog:
                keys = await catalog.admin.create_app((await catalog.admin.create_tenant("acme")).name, "writer")
                await catalog.admin.grant("acme", "writer", Policy(Action.ANY, "*"))
                tenant = await catalog.admin.tenant("acme")
                bucket = await catalog.create_bucket(tenant.tenant_id, "kept", "us-1")
                app = await catalog.app(keys.access_key)
                first = await catalog.admin.apps("default")
            taken = await take(url)
            async with deployment(other) as catalog:
                assert await catalog.admin.apps("default") != first
                await put_back(other, taken)
                assert await catalog.admin.apps("default") == first, "its keys are those of before"
                assert await catalog.app(keys.access_key) == app, "with its secret and rights"
                assert await catalog.bucket("kept") == bucket, "with its key"
                made = await catalog.admin.create_tenant("new")
                assert made.tenant_id > tenant.tenant_id
                await catalog.admin.create_app("new", "app")
                await catalog.create_bucket(made.tenant_id, "new-bucket", "us-1")

    asyncio.run(main())


def test_a_global_database_that_is_in_use_is_left_alone(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (_, _, url, other):
            async with deployment(url) as catalog:
                await catalog.create_bucket((await catalog.admin.tenant("default")).tenant_id, "theirs", "us-1")
            taken = await take(url)
            async with deployment(other) as catalog:
                await catalog.create_bucket((await catalog.admin.tenant("default")).tenant_id, "ours", "us-1")
                before = await catalog.admin.apps()
                await put_back(other, taken)
                assert await catalog.admin.apps() == before
                assert await catalog.bucket("theirs") is None and await catalog.bucket("ours") is not None

    asyncio.run(main())


# -- candidates ----------------------------------------------------------------------------------------------------------------


def candidate(bucket_id: int, key: str, modified_us: int, *, part: int = 0, version: bytes = b"", **fields: Any) -> Candidate:
    blob = BlobRef(os.urandom(16), fields.pop("size", 5000), Scheme(1, 2))
    owner = Owner(bucket_id, key, version or os.urandom(16), part)
    values: dict[str, Any] = {
        "etag": "e" * 32,
        "attributes": Attributes(content_type="text/x", user={"k": "v"}),
        "checksum": Checksum(Algorithm.CRC32C, b"1234"),
        "missing": 0,
        "readable": True,
        **fields,
    }
    return Candidate(owner=owner, blob=blob, modified_us=modified_us, **values)


def test_a_candidate_is_an_object_once_it_is_accepted(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, _, _url, _other):
            store, table, later = made.store, SalvageTable(made.store.query), 2**52
            await store.put_object(made.put("k", 100))
            old = await store.get_object(made.bucket_id, "k")
            first, second, third = (candidate(made.bucket_id, "k", later + n, size=5000 + n) for n in range(3))
            new = candidate(made.bucket_id, "n", later, missing=0b10)
            found = [second, first, third, new]
            await table.add(found)
            await table.add(found)
            assert [(one.key, one.modified_us - later, one.obstacle) for one in await table.list(None)] == [
                *(("k", 2, ""), ("k", 1, ""), ("k", 0, ""), ("n", 0, "")),
            ]
            assert (await table.list(None))[0].present_us == old.modified_us
            assert await table.list(made.bucket_id + 1) == []
            assert await store.get_object(made.bucket_id, "n") is None, "hidden"

            ids = [one.blob.blob_id for one in found]
            assert await table.accept(ids) == {ids[2]: "", ids[0]: "older", ids[1]: "older", ids[3]: ""}
            row = await store.get_object(made.bucket_id, "k")
            assert (row.size, row.etag, row.modified_us, row.attributes) == (5002, "e" * 32, later + 2, third.attributes)
            assert (row.checksum, row.content.blob, row.version_id) == (third.checksum, third.blob, third.owner.version_id)
            assert row.seq > old.seq
            assert [usage.bytes for usage in await store.usage([made.bucket_id])] == [5002 + 5000]
            assert await store.query("SELECT FROM outbox WHERE blob_id = $1", old.content.blob.blob_id)
            [debt] = await store.debts(10)
            assert (debt.blob, debt.missing, debt.owner) == (new.blob, 0b10, new.owner)
            assert await table.waiting() == 0
            assert await table.accept(ids) == {}, "it may be repeated"

    asyncio.run(main())


def test_what_stands_in_the_way_is_said_and_nothing_happens(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, _, _url, _other):
            store, table = made.store, SalvageTable(made.store.query)
            await store.put_object(made.put("k", 100))
            row = await store.get_object(made.bucket_id, "k")
            older = candidate(made.bucket_id, "k", row.modified_us - 1)
            few = candidate(made.bucket_id, "few", 2**52, readable=False, missing=0b111)
            nowhere = candidate(made.bucket_id ^ 1, "x", 2**52)
            orphan = candidate(made.bucket_id, "p", 2**52, part=3)
            found = [(older, "older"), (few, "shards missing"), (nowhere, "no bucket"), (orphan, "no upload")]
            await table.add([one for one, _ in found])
            wanted = {one.blob.blob_id: obstacle for one, obstacle in found}
            assert {one.blob_id: one.obstacle for one in await table.list(None)} == wanted
            assert await table.accept(list(wanted)) == wanted
            assert await store.get_object(made.bucket_id, "k") == row
            assert await table.waiting() == 4
            await store.query('INSERT INTO settings (name, value) VALUES (\'recovery\', \'{"since_us": 1, "why": "x"}\')')
            assert not await table.end()
            assert await table.reject([older.blob.blob_id]) == 1
            assert await table.reject(await table.named(None, None)) == 3
            assert await table.end() and await table.recovery() is None

    asyncio.run(main())


def test_parts_are_accepted_into_open_uploads(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, _, _url, _other):
            store, table = made.store, SalvageTable(made.store.query)
            upload, done = await made.upload("o"), await made.upload("d")
            for target, key in ((upload, "o"), (done, "d")):
                await store.put_part(made.part(key, target, 1))
            await store.complete_upload(made.complete("d", done, [made.part("d", done, 1)]))
            new, again = (candidate(made.bucket_id, "o", 2**52, part=n, version=upload) for n in (2, 1))
            other_key = candidate(made.bucket_id, "z", 2**52, part=4, version=upload)
            rewritten = candidate(made.bucket_id, "d", 2**52, part=1, version=done, size=100, etag=made.part("d", done, 1).etag)
            changed = candidate(made.bucket_id, "d", 2**52, part=1, version=done, size=100)
            found = [(new, ""), (again, ""), (other_key, "no upload"), (rewritten, ""), (changed, "older")]
            await table.add([one for one, _ in found])
            said = await table.accept([one.blob.blob_id for one, _ in found])
            assert said == {one.blob.blob_id: obstacle for one, obstacle in found}
            parts = await store.list_parts(made.bucket_id, upload, 0, 10)
            assert [(part.number, part.content.blob) for part in parts] == [(1, again.blob), (2, new.blob)]
            [part] = await store.list_parts(made.bucket_id, done, 0, 10)
            assert part.content.blob == rewritten.blob, "the same bytes in another blob"
            assert (await store.usage([made.bucket_id]))[0].upload_parts == 2

    asyncio.run(main())


def test_nothing_is_removed_in_recovery(postgres: Postgres) -> None:
    async def main() -> None:
        async with two(postgres) as (made, _, _url, _other):
            table = SalvageTable(made.store.query)
            assert await made.store.removal_allowed(0.0)
            await made.store.put_object(made.put("k"))
            assert not await table.close("for a test") and await made.store.removal_allowed(0.0), "it has objects"
            await made.delete("k")
            assert await table.close("for a test")
            assert not await made.store.removal_allowed(0.0) and await made.store.in_recovery()
            assert not await table.end(), "closed"
            assert await table.open("opened") and not await table.open("opened")
            assert not await made.store.removal_allowed(0.0), "open, and not over"
            assert await table.end()
            assert not await made.store.removal_allowed(60.0), "a whole grace begins"
            assert await made.store.removal_allowed(0.0)
            assert await made.store.add_bucket(SYSTEM_BUCKET)

    asyncio.run(main())
