"""Dumps on drives in memory: whole or none, found without a database, read in spite of damage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from anvil.base.errors import Corrupt, DriveFailed, ReadQuorumLost
from anvil.base.limits import DUMP_PIECE_BYTES, INLINE_BYTES_MAX, METADATA_DUMPS_KEPT
from anvil.engine.engine import Engine
from anvil.model.dump import MANIFESTS_PARTITION, SYSTEM_BUCKET, DumpName, Manifest, system_bucket
from anvil.model.layout import partition
from anvil.model.records import ListQuery
from anvil.model.scheme import Scheme
from anvil.tasks.dump import DumpReader, DumpWriter, manifest_id
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

BUCKET = system_bucket(bytes(range(32)), "us-east-1")
Scenario = Callable[[Region], Awaitable[None]]
TABLES = {"objects": random.Random(1).randbytes(2 * DUMP_PIECE_BYTES + 77), "parts": b"few rows", "outbox": b""}


class Tables:
    """Rows to be dumped. `fail_at`: the table whose COPY ends in an error."""

    def __init__(self, taken_us: int, tables: dict[str, bytes] | None = None, fail_at: str = "") -> None:
        self._rows = TABLES if tables is None else tables
        self.tables = tuple(self._rows)
        self.taken_us, self.region, self.schema, self.ended = taken_us, "us-east-1", 20, (b"e" * 16,)
        self._fail_at = fail_at

    async def copy(self, table: str, sink: Callable[[bytes], Coroutine[Any, Any, None]]) -> tuple[tuple[str, ...], int]:
        data = self._rows[table]
        for at in range(0, len(data), 65_521):
            await sink(data[at : at + 65_521])
        if table == self._fail_at:
            raise DriveFailed("the writer is gone")
        return ("a", "b"), len(data)


class NoDatabase:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a database was asked: {name}")


def on_region(scenario: Scenario, scheme: Scheme | None = None) -> None:
    async def main() -> None:
        async with region(6, 1, scheme or Scheme(4, 2)) as made:
            await made.metadata.add_bucket(SYSTEM_BUCKET)
            await scenario(made)

    asyncio.run(main())


def reader(made: Region) -> DumpReader:
    return DumpReader(made.context, BUCKET)


async def read(made: Region, name: DumpName, manifest: Manifest) -> dict[str, bytes]:
    source = reader(made)
    return {table.name: b"".join([piece async for piece in source.rows(name, table)]) for table in manifest.tables}


async def keys(made: Region) -> list[str]:
    return [entry.key for entry in (await made.engine.list_objects(ListQuery(SYSTEM_BUCKET))).entries]


def test_what_was_dumped_is_read_without_any_row() -> None:
    async def scenario(made: Region) -> None:
        name, manifest = await DumpWriter(made.context, BUCKET).write(Tables(5))
        assert [(table.name, table.columns, table.rows) for table in manifest.tables] == [
            (table, ("a", "b"), len(data)) for table, data in TABLES.items()
        ]
        assert [len(table.pieces) for table in manifest.tables] == [3, 1, 0]
        assert all(piece.size > INLINE_BYTES_MAX for table in manifest.tables for piece in table.pieces)
        source = DumpReader(replace(made.context, metadata=NoDatabase()), BUCKET)
        [found] = await source.find()
        assert found.name == name and partition(found.blob.blob_id) == MANIFESTS_PARTITION
        again = await source.manifest(found)
        assert again == manifest
        assert (again.taken_us, again.region, again.schema, again.ended) == (5, "us-east-1", 20, (b"e" * 16,))
        for table in again.tables:
            assert b"".join([piece async for piece in source.rows(name, table)]) == TABLES[table.name]

    on_region(scenario)


def test_another_key_reads_nothing() -> None:
    async def scenario(made: Region) -> None:
        await DumpWriter(made.context, BUCKET).write(Tables(5))
        stranger = DumpReader(made.context, system_bucket(bytes(32), "us-east-1"))
        [found] = await stranger.find()
        with pytest.raises(Corrupt):
            await stranger.manifest(found)

    on_region(scenario)


def test_damage_on_m_shards_of_everything_is_read_past() -> None:
    async def scenario(made: Region) -> None:
        name, manifest = await DumpWriter(made.context, BUCKET).write(Tables(5))
        for drive in made.all:
            for (_, index), shard in drive.shards.items():
                if index in (0, 2):
                    shard.payload[len(shard.payload) // 2] ^= 1
        [found] = await reader(made).find()
        again = await reader(made).manifest(found)
        assert again == manifest and await read(made, name, again) == TABLES

    on_region(scenario)


def test_more_damage_is_said_and_never_read() -> None:
    async def scenario(made: Region) -> None:
        name, manifest = await DumpWriter(made.context, BUCKET).write(Tables(5))
        piece = manifest.tables[0].pieces[1]
        for index in range(3):
            made.nominal(piece.blob, index).flip(piece.blob_id, index, 100)
        got = []
        with pytest.raises(Corrupt):
            async for data in reader(made).rows(name, manifest.tables[0]):
                got.append(data)
        assert got == [TABLES["objects"][:DUMP_PIECE_BYTES]]

    on_region(scenario)


def test_drives_that_are_away_are_no_loss() -> None:
    async def scenario(made: Region) -> None:
        await DumpWriter(made.context, BUCKET).write(Tables(5))
        [found] = await reader(made).find()
        for number in range(6):
            made.down(number)
        with pytest.raises(ReadQuorumLost):
            await reader(made).manifest(found)

    on_region(scenario)


@pytest.mark.parametrize("fail_at", TABLES)
def test_a_writer_that_ends_early_leaves_no_dump(fail_at: str) -> None:
    async def scenario(made: Region) -> None:
        writer = DumpWriter(made.context, BUCKET)
        first, _ = await writer.write(Tables(5))
        with pytest.raises(DriveFailed):
            await writer.write(Tables(6, fail_at=fail_at))
        assert [dump.name for dump in await reader(made).find()] == [first]
        whole, _ = await writer.write(Tables(7))
        await writer.prune()
        assert {key.split("/")[1] for key in await keys(made)} == {name.prefix.split("/")[1] for name in (first, whole)}

    on_region(scenario)


def test_a_few_dumps_are_kept_and_older_ones_go() -> None:
    async def scenario(made: Region) -> None:
        writer = DumpWriter(made.context, BUCKET)
        names = [(await writer.write(Tables(taken_us, {"parts": b"x"})))[0] for taken_us in range(METADATA_DUMPS_KEPT + 2)]
        assert [dump.name for dump in await reader(made).find()] == names[::-1]
        assert await writer.prune() == 2
        assert await writer.prune() == 0
        kept = names[-METADATA_DUMPS_KEPT:]
        assert await keys(made) == sorted(key for name in kept for key in (name.piece(0), name.manifest))
        while await made.collector().run():
            pass
        assert [dump.name for dump in await reader(made).find()] == kept[::-1]

    on_region(scenario)


def test_only_manifests_of_the_system_bucket_are_dumps() -> None:
    async def scenario(made: Region) -> None:
        name, _ = await DumpWriter(made.context, BUCKET).write(Tables(5, {"parts": b"x"}))
        forged = DumpName(9, "f" * 16)
        tenant = Engine(replace(made.context, new_id=manifest_id))  # by chance in the same partition
        await tenant.put_object(made.bucket, forged.manifest, Bytes(bytes(5000)), plain_spec())
        assert [dump.name for dump in await reader(made).find()] == [name]
        assert DumpName.parse(forged.manifest) == (forged, True) and DumpName.parse(forged.piece(7)) == (forged, False)
        assert DumpName.parse("dumps/1-2/manifest") is None and DumpName.parse(f"x{forged.manifest}") is None

    on_region(scenario)
