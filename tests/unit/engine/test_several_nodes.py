"""Reading and writing where most drives are other nodes', and layouts change: which shards are turned to, when something is called lost,
how long a write counts as going by its layout."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from anvil.base.errors import (
    DatabaseUnavailable,
    DataLost,
    DriveFailed,
    NoSuchUpload,
    PreconditionFailed,
    ReadQuorumLost,
    SlowDown,
)
from anvil.engine.types import CompletePart
from anvil.model.records import NO_CONDITION, Attributes, Condition
from anvil.model.scheme import Scheme
from tests.contract.memory_drive import MemoryDrive
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

Scenario = Callable[[Region], Awaitable[None]]


def on_region(scenario: Scenario, nodes: int = 6, drives: int = 1, scheme: Scheme | None = None) -> None:
    async def main() -> None:
        async with region(nodes, drives, scheme) as made:
            await scenario(made)

    asyncio.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [10_000, 300_000, 3_000_000])
def test_local_shards_first_then_data_and_no_more_than_needed(size: int) -> None:
    async def scenario(made: Region) -> None:
        data = data_of(size)
        for number in range(8):
            blob = await made.put(f"k{number}", data)
            made.asked()
            assert await made.get(f"k{number}") == data
            order = [made.nominal(blob, index) for index in range(blob.scheme.width)]
            local = [drive for drive in order if drive.local]
            rest = [drive for drive in order if not drive.local]
            expected = {drive.label for drive in [*local, *rest][: blob.scheme.k]}
            assert set(made.asked()) == expected

    on_region(scenario)


def test_shards_of_a_node_that_is_down_cost_no_search() -> None:
    async def scenario(made: Region) -> None:
        data = data_of(2_000_000)
        for number in range(6):
            await made.put(f"k{number}", data)
        made.down(3)
        made.asked()
        for number in range(6):
            assert await made.get(f"k{number}") == data
            assert len(made.asked()) == 4
        assert made.events.damages == []
        made.down(4)
        for number in range(6):
            assert await made.get(f"k{number}") == data
        made.down(5)
        with pytest.raises(ReadQuorumLost):
            await made.get("k0")

    on_region(scenario, drives=2)


def test_during_a_change_of_layout_everything_is_found_where_it_was() -> None:
    async def scenario(made: Region) -> None:
        objects = {f"k{size}": data_of(size) for size in (5_000, 200_000, 2_500_000)}
        for key, data in objects.items():
            await made.put(key, data)
        nodes = [made.add_node(1) for _ in range(6)]
        made.begin(nodes)
        for key, data in objects.items():
            assert await made.get(key) == data
        await made.put("new", data_of(400_000))
        assert await made.get("new") == data_of(400_000)
        made.retire()
        for key, data in objects.items():
            assert await made.get(key) == data, "anywhere else is looked at, too"

    on_region(scenario)


def test_nothing_is_missing_while_an_older_place_cannot_be_asked() -> None:
    async def scenario(made: Region) -> None:
        await made.put("k", data_of(2_000_000))
        blob = await made.blob("k")
        homes = [made.nominal(blob, index) for index in range(6)]
        made.begin([made.add_node(1) for _ in range(6)])
        for home in homes[:3]:
            home.away = True
        with pytest.raises(ReadQuorumLost):
            await made.get("k")
        assert made.events.damages == []
        for home in homes[:3]:
            home.away = False
        assert await made.get("k") == data_of(2_000_000)

    on_region(scenario)


def test_a_loss_is_declared_only_after_another_look_at_the_layouts() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(2_000_000))
        hidden = {}
        for index in range(3):
            drive = made.nominal(blob, index)
            hidden[index] = drive.shards.pop((blob.blob_id, index))

        async def newer() -> bool:
            for index, shard in hidden.items():
                made.nominal(blob, index).shards[blob.blob_id, index] = shard
            return True

        with pytest.raises(DataLost):
            await made.get("k")
        assert made.refreshed >= 1
        made.newer = newer
        assert await made.get("k") == data_of(2_000_000)

    on_region(scenario)


def test_nothing_is_lost_while_any_drive_cannot_be_asked() -> None:
    """Not even one on which nothing of the blob is expected: it may have been left there."""

    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(2_000_000))
        [far] = made.placement.far(blob.blob_id, 0)
        for index in range(3):
            made.nominal(blob, index).lose(blob.blob_id, index)
        assert isinstance(far, MemoryDrive)
        far.away = True
        with pytest.raises(ReadQuorumLost):
            await made.get("k")
        far.away = False
        with pytest.raises(DataLost):
            await made.get("k")

    on_region(scenario, nodes=9)


def test_an_object_that_was_replaced_meanwhile_is_not_lost() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(2_000_000))
        info = await made.engine.open(made.bucket, "k")
        await made.put("k", b"another" * 1000)
        for drive in made.all:
            for index in range(6):
                drive.shards.pop((blob.blob_id, index), None)
        with pytest.raises(ReadQuorumLost):
            async for _ in made.engine.read(made.bucket, info, 0, info.size):
                pass
        assert await made.get("k") == b"another" * 1000

    on_region(scenario)


@pytest.mark.parametrize("operation", ["open", "read"])
@pytest.mark.parametrize("error", [DriveFailed(), SlowDown()])
def test_a_call_that_fails_on_the_way_says_nothing_about_the_shard(operation: str, error: Exception) -> None:
    async def scenario(made: Region) -> None:
        objects = {f"k{size}": data_of(size) for size in (5_000, 300_000, 2_500_000)}
        for key, data in objects.items():
            await made.put(key, data)
        for number in (1, 2):
            setattr(made.drives[number][0].faults, operation, error)
        for key, data in objects.items():
            assert await made.get(key) == data
        setattr(made.drives[3][0].faults, operation, error)
        with pytest.raises(ReadQuorumLost):
            await made.get("k300000")
        assert made.events.damages == []
        assert list(await made.metadata.debts(10)) == []

    on_region(scenario)


# -- the layout that a write goes by ---------------------------------------------------------------------------------------------


class Pausing(Bytes):
    """A body that stops in the middle until it is told to go on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def readinto(self, view: memoryview) -> int:
        self.reached.set()
        await self.go_on.wait()
        return await super().readinto(view)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_write_keeps_its_layout_in_use_until_it_is_over(cancelled: bool) -> None:
    async def scenario(made: Region) -> None:
        body = Pausing(data_of(2_000_000))
        put = asyncio.create_task(made.engine.put_object(made.bucket, "k", body, plain_spec()))
        await body.reached.wait()
        made.begin([made.add_node(1) for _ in range(6)])
        version = made.layout.version
        assert made.layouts_in_use.oldest(version) == version - 1
        if cancelled:
            put.cancel()
            await asyncio.wait([put])
        else:
            body.go_on.set()
            await put
        assert made.layouts_in_use.oldest(version) == version

    on_region(scenario)


def test_a_write_whose_client_left_counts_until_its_commit_is_answered() -> None:
    async def scenario(made: Region) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()
        put_object = made.metadata.put_object

        async def slowly(commit: object) -> object:
            asked.set()
            await answer.wait()
            return await put_object(commit)  # type: ignore[arg-type]

        made.metadata.put_object = slowly  # type: ignore[assignment,method-assign]
        put = asyncio.create_task(made.engine.put_object(made.bucket, "k", Bytes(data_of(10_000)), plain_spec()))
        await asked.wait()
        put.cancel()
        await asyncio.wait([put])
        made.begin([made.add_node(1) for _ in range(6)])
        version = made.layout.version
        assert made.layouts_in_use.oldest(version) == version - 1
        answer.set()
        await made.context.owned.close(5)
        assert made.layouts_in_use.oldest(version) == version
        assert await made.get("k") == data_of(10_000)

    on_region(scenario)


def test_refused_and_failed_writes_end_their_use() -> None:
    async def scenario(made: Region) -> None:
        spec = plain_spec(condition=Condition(if_match=("*",)))
        with pytest.raises(PreconditionFailed):
            await made.engine.put_object(made.bucket, "k", Bytes(data_of(10_000)), spec)
        made.metadata.fail_next = DatabaseUnavailable()
        with pytest.raises(DatabaseUnavailable):
            await made.put("k", data_of(10_000))
        with pytest.raises(NoSuchUpload):
            await made.engine.put_part(made.bucket, "k", bytes(16), 1, Bytes(b"x"), plain_spec())
        upload = await made.engine.create_upload(made.bucket, "k", Attributes(), "AK", None, None)
        part = await made.engine.put_part(made.bucket, "k", upload.upload_id, 1, Bytes(data_of(100_000)), plain_spec())
        await made.engine.complete_upload(
            made.bucket,
            "k",
            upload.upload_id,
            [CompletePart(1, part.etag)],
            condition=NO_CONDITION,
            expected_size=None,
            expected=None,
        )
        assert made.layouts_in_use.oldest(99) == 99

    on_region(scenario)
