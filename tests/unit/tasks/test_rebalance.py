"""Moving shards to where the current layout wants them: over drives in memory that stand for those of several nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from anvil.base.errors import DatabaseUnavailable, DriveFailed, DriveStalled, StorageFull, Unavailable
from anvil.base.limits import COLLECT_TRIES, SURVEY_REMOVAL_TRIES
from anvil.model.layout import partition, slice_partitions
from anvil.model.records import NO_CONDITION, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardPlace
from anvil.tasks.rebalance import Moved
from anvil.tasks.repair import Result
from anvil.tasks.several import side_by_side
from anvil.tasks.throttle import Throttle
from tests.contract.memory_drive import MemoryDrive
from tests.support.memory_region import Region, region

Scenario = Callable[[Region], Awaitable[None]]
SIZES = {"copied": 10_000, "small": 300_000, "large": 3_000_000}


def on_region(scenario: Scenario, nodes: int = 6, drives: int = 1, scheme: Scheme | None = None) -> None:
    async def main() -> None:
        async with region(nodes, drives, scheme) as made:
            await scenario(made)

    asyncio.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def filled(made: Region) -> dict[str, BlobRef]:
    return {key: await made.put(key, data_of(size)) for key, size in SIZES.items()}


async def assert_readable(made: Region) -> None:
    for key, size in SIZES.items():
        assert await made.get(key) == data_of(size), key


async def moved(made: Region, *blobs: BlobRef) -> Moved:
    total = Moved()
    for number in sorted({partition(blob.blob_id) for blob in blobs}):
        total.add(await made.rebalancer.partition(number))
    return total


async def surveyed(made: Region, *blobs: BlobRef, deep: bool = False) -> dict[str, int]:
    total: dict[str, int] = {}
    for number in sorted({partition(blob.blob_id) for blob in blobs}):
        found = await made.survey.partition(number, deep=deep)
        for name in found.__struct_fields__:
            if name != "shards" and getattr(found, name):
                total[name] = total.get(name, 0) + getattr(found, name)
    return total


async def as_of_another_node(
    drive: MemoryDrive,
    read: Callable[[ShardPlace, int, memoryview], Awaitable[int]],
    place: ShardPlace,
    offset: int,
    view: memoryview,
) -> int:
    """Which looks for the shard at each read."""
    return await read(place, offset, view) if (place.header.blob.blob_id, place.header.index) in drive.shards else 0


def replaced(made: Region) -> None:
    """A layout of six other nodes."""
    made.begin([made.add_node(1) for _ in range(6)])


def test_everything_is_copied_home_and_nothing_is_removed_at_the_source() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        sources = {key: {one: bytes(shard.payload) for drive in made.all for one, shard in drive.shards.items()} for key in blobs}
        headers = {one: (shard.header, shard.footer) for drive in made.all for one, shard in drive.shards.items()}
        replaced(made)
        done = await moved(made, *blobs.values())
        shards = sum(blob.scheme.width for blob in blobs.values())
        assert (done.shards, done.rebuilt, done.waiting, done.away, done.lost) == (shards, 0, 0, 0, 0)
        assert done.bytes == sum(blob.scheme.width * blob.geometry.shard_bytes for blob in blobs.values())
        for key, blob in blobs.items():
            assert made.at_home(blob)
            for index in range(blob.scheme.width):
                assert len(made.holders(blob, index)) == 2, "the source keeps its own"
                copy = made.nominal(blob, index).shards[blob.blob_id, index]
                assert bytes(copy.payload) == sources[key][blob.blob_id, index]
                assert (copy.header, copy.footer) == headers[blob.blob_id, index]
        await assert_readable(made)
        made.asked()
        assert await moved(made, *blobs.values()) == Moved(), "done again it costs only the look"
        assert made.asked() == {}
        for number in range(6):
            made.down(number)
        await assert_readable(made)

    on_region(scenario)


def test_adding_a_node_moves_what_belongs_on_it_and_no_more() -> None:
    async def scenario(made: Region) -> None:
        blobs = {f"k{number}": await made.put(f"k{number}", data_of(300_000)) for number in range(30)}
        made.begin([*range(6), made.add_node(1)])
        wanted = sum(
            made.nominal(blob, index).label not in made.holders(blob, index) for blob in blobs.values() for index in range(6)
        )
        done = await moved(made, *blobs.values())
        assert 0 < done.shards == wanted < 30 * 6
        assert all(made.at_home(blob) for blob in blobs.values())

    on_region(scenario)


def test_what_no_drive_can_give_is_rebuilt_without_a_debt() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        made.down(4)
        made.down(5)
        made.begin([0, 1, 2, 3, made.add_node(1), made.add_node(1)])
        done = await moved(made, *blobs.values())
        assert done.rebuilt > 0 and (done.waiting, done.lost) == (0, 0)
        assert all(made.at_home(blob) for blob in blobs.values())
        assert list(await made.metadata.debts(10)) == []
        await assert_readable(made)
        assert await moved(made, *blobs.values()) == Moved()

    on_region(scenario)


def test_a_damaged_source_is_not_copied_but_rebuilt() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        for blob in blobs.values():
            made.nominal(blob, 0).flip(blob.blob_id, 0, blob.geometry.frame_offset(blob.geometry.stripes - 1) + 20)
        replaced(made)
        done = await moved(made, *blobs.values())
        assert done.rebuilt == len(blobs)
        assert [damage[::2] for damage in made.events.damages] == [("corrupt", 0)] * len(blobs)
        assert await surveyed(made, *blobs.values()) == {}
        made.retire()
        assert (await surveyed(made, *blobs.values()))["superseded"] == sum(blob.scheme.width for blob in blobs.values())
        assert await surveyed(made, *blobs.values(), deep=True) == {}
        await assert_readable(made)

    on_region(scenario)


def test_what_cannot_be_done_now_waits() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        replaced(made)
        targets = {drive.label: drive for drive in made.all if drive.label >= "node6"}
        full, failing, down = (targets[f"node{number}-0"] for number in (6, 7, 8))
        full.faults.put = full.faults.create = StorageFull()
        failing.faults.write = failing.faults.put = DriveFailed()
        down.away = True
        on = {
            drive: sum(made.nominal(b, i) is drive for b in blobs.values() for i in range(b.scheme.width)) for drive in made.all
        }
        done = await moved(made, *blobs.values())
        assert done.waiting == on[failing]
        assert done.away == on[down] + on[full], "where there is no room there is none before the old copies go"
        for drive in (full, failing):
            drive.faults.put = drive.faults.create = drive.faults.write = None
        down.away = False
        done = await moved(made, *blobs.values())
        assert (done.shards, done.waiting, done.away) == (on[full] + on[failing] + on[down], 0, 0)
        assert all(made.at_home(blob) for blob in blobs.values())

    on_region(scenario)


def test_a_full_drive_ends_the_move_and_gets_its_own_once_there_is_room() -> None:
    """What nobody has is rebuilt on the others at once; the full one's is a debt then, which is paid where there is room."""

    async def scenario(made: Region) -> None:
        copied, rebuilt = await made.put("copied", data_of(3_000_000)), await made.put("rebuilt", data_of(300_000))
        for index in range(2):
            made.nominal(rebuilt, index).lose(rebuilt.blob_id, index)
        replaced(made)
        full = made.nominal(rebuilt, 0)
        full.faults.put = full.faults.create = StorageFull()
        there = sum(made.nominal(copied, index) is full for index in range(6))
        done = await moved(made, copied, rebuilt)
        assert (done.rebuilt, done.waiting, done.away) == (1, 0, 1 + there)
        made.retire()
        assert await surveyed(made, copied, rebuilt) == {"superseded": 5 + 4 + (not there), "missing": 1, "misplaced": there}
        assert [debt.missing for debt in await made.metadata.debts(10)] == [1]
        assert await made.repairer.run() == [Result.FULL]
        full.faults.put = full.faults.create = None
        assert await made.repairer.run() == [Result.REPAIRED]
        assert (await moved(made, copied, rebuilt)).shards == there
        assert made.at_home(copied) and made.at_home(rebuilt)

    on_region(scenario)


def test_what_cannot_be_read_by_anybody_is_lost_and_stops_nothing() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        bad = blobs["large"]
        for index in range(3):
            made.nominal(bad, index).lose(bad.blob_id, index)
        replaced(made)
        done = await moved(made, *blobs.values())
        assert (done.lost, done.waiting) == (3, 0)
        assert made.at_home(blobs["small"]) and made.at_home(blobs["copied"])
        # With a drive away it may come back.
        made.down(0)
        again = await moved(made, bad)
        assert (again.lost, again.waiting) == (0, 3)

    on_region(scenario)


def test_what_only_a_replaced_drive_had_is_lost_and_stops_nothing() -> None:
    """A drive that nobody knows any more brings nothing back, so nobody waits for it."""

    async def scenario(made: Region) -> None:
        bad = await made.put("k", data_of(3_000_000))
        for index in range(2):
            made.nominal(bad, index).lose(bad.blob_id, index)
        node = next(number for number, drives in made.drives.items() if made.nominal(bad, 2) in drives)
        made.drives[node].clear()
        await made.metadata.add_debt([(await made.owner("k"), bad.blob_id, 0b111)])
        made.begin([*(number for number in range(6) if number != node), made.add_node(1)])
        done = await moved(made, bad)
        assert (done.lost, done.waiting) == (3, 0)
        assert await made.repairer.run() == [Result.LOST]

    on_region(scenario)


def test_who_is_cut_off_calls_nothing_done() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        replaced(made)
        made.cut_off = frozenset(range(1, 12))
        for number in made.cut_off:
            made.down(number)
        assert (await moved(made, *blobs.values())).waiting > 0, "others reach them"
        unmet = next(number for number in range(4096) if number not in {partition(blob.blob_id) for blob in blobs.values()})
        assert (await made.rebalancer.partition(unmet)).waiting > 0, "nor does it know what it does not see"
        made.cut_off = frozenset()
        assert (await moved(made, *blobs.values())).waiting == 0, "they are down: everything stays where it is"

    on_region(scenario, scheme=Scheme(1, 5))


def test_who_is_cut_off_forgets_no_garbage() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        await made.engine.delete_object(made.bucket, "k", NO_CONDITION)
        made.cut_off = frozenset(range(1, 6))
        for number in made.cut_off:
            made.down(number)
        assert await made.collector().run() == 0
        for number in range(1, 5):
            made.down(number, away=False)
        assert await made.collector().run() == 1, "that nobody reaches one of them stops nothing"
        made.down(5, away=False)
        assert sum(len(made.holders(blob, index)) for index in range(6)) == 1, "the survey's"

    on_region(scenario)


def test_a_call_that_fails_on_the_way_leaves_the_garbage_for_another_try() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        await made.engine.delete_object(made.bucket, "k", NO_CONDITION)
        collector, remote = made.collector(), made.drives[3][0]
        remote.faults.remove = DriveFailed()
        assert await collector.run() == 0
        remote.faults.remove = None
        assert await collector.run() == 1
        assert sum(len(made.holders(blob, index)) for index in range(6)) == 0
        other = await made.put("other", data_of(300_000))
        await made.engine.delete_object(made.bucket, "other", NO_CONDITION)
        remote.faults.remove = DriveFailed()
        assert [await collector.run() for _ in range(COLLECT_TRIES)] == [0] * (COLLECT_TRIES - 1) + [1]
        assert sum(len(made.holders(other, index)) for index in range(6)) == 1, "what one disk keeps failing is the survey's"

    on_region(scenario)


def test_who_reads_while_second_copies_go_meets_no_damage() -> None:
    async def scenario(made: Region) -> None:
        data = data_of(9_000_000)
        blob = await made.put("k", data)
        for drive in made.all:
            drive.read = partial(as_of_another_node, drive, drive.read)  # type: ignore[method-assign]
        info = await made.engine.open(made.bucket, "k")
        pieces = made.engine.read(made.bucket, info, 0, info.size)
        got = bytes(await anext(pieces))
        replaced(made)
        await moved(made, blob)
        made.retire()
        assert (await surveyed(made, blob))["superseded"] == blob.scheme.width
        got += b"".join([bytes(view) async for view in pieces])
        assert got == data
        assert made.events.damages == []

    on_region(scenario)


def test_no_copy_is_kept_on_a_drive_that_leaves_in_place_of_one_that_stays() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        made.begin([*range(1, 6), *(made.add_node(1) for _ in range(3))])
        await moved(made, blob)
        made.retire()
        home, [leaving] = made.nominal(blob, 2), made.drives[0]
        staying = made.placement.order(blob.blob_id)[6]
        assert isinstance(staying, MemoryDrive) and leaving.drive_id < staying.drive_id
        shard = home.shards[blob.blob_id, 2]
        for drive in made.all:
            drive.shards.pop((blob.blob_id, 2), None)
        staying.shards[blob.blob_id, 2] = leaving.shards[blob.blob_id, 2] = shard
        home.away = True
        await surveyed(made, blob)
        assert (blob.blob_id, 2) in staying.shards and (blob.blob_id, 2) not in leaving.shards

    on_region(scenario)


def test_no_debt_is_paid_on_a_drive_that_leaves() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        made.begin([*range(5), made.add_node(1)])
        await moved(made, blob)
        made.retire()
        home = made.nominal(blob, 2)
        for drive in made.all:
            drive.shards.pop((blob.blob_id, 2), None)
        home.away = True
        await made.metadata.add_debt([(await made.owner("k"), blob.blob_id, 0b100)])
        assert await made.repairer.run() == [Result.WAITING], "the sixth node of before is up, and may go at any time"
        home.away = False
        assert await made.repairer.run() == [Result.REPAIRED]
        assert made.holders(blob, 2) == [home.label]

    on_region(scenario)


def test_a_good_copy_takes_the_place_of_a_damaged_one() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        replaced(made)
        await moved(made, *blobs.values())
        blob = blobs["large"]
        made.nominal(blob, 2).damage_header(blob.blob_id, 2)
        assert await surveyed(made, *blobs.values()) == {"misplaced": 1}
        done = await moved(made, *blobs.values())
        assert (done.shards, done.rebuilt, done.waiting) == (1, 0, 0)
        assert await moved(made, *blobs.values()) == Moved()
        assert await surveyed(made, *blobs.values(), deep=True) == {}
        assert made.at_home(blob)

    on_region(scenario)


def test_blobs_that_nobody_owns_are_not_touched() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        for key in ("small", "copied"):
            await made.engine.delete_object(made.bucket, key, NO_CONDITION)
        while await made.collector().run():
            pass
        garbage = await made.put("kept", data_of(400_000))
        await made.engine.delete_object(made.bucket, "kept", NO_CONDITION)
        replaced(made)
        done = await moved(made, *blobs.values(), garbage)
        assert done.shards == 6
        assert not any(made.holders(garbage, index)[1:] for index in range(6))

    on_region(scenario)


@pytest.mark.parametrize("how", ["deleted", "collected", "overwritten"])
def test_a_blob_that_goes_while_it_is_copied_leaves_nothing(how: str) -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(3_000_000))
        replaced(made)

        async def meanwhile(operation: str) -> None:
            if operation != "publish":
                return
            for drive in made.all:
                drive.faults.delay = None
            if how == "overwritten":
                await made.put("k", data_of(300_000))
            else:
                await made.engine.delete_object(made.bucket, "k", NO_CONDITION)
            if how == "collected":
                await made.collector().run()

        for drive in made.all:
            drive.faults.delay = meanwhile
        await moved(made, blob)
        while await made.collector().run():
            pass
        assert not any(made.holders(blob, index) for index in range(6))
        if how == "overwritten":
            assert await made.get("k") == data_of(300_000)

    on_region(scenario)


@pytest.mark.parametrize("collected", [False, True])
def test_a_mover_that_dies_then_leaves_it_to_collector_and_survey(collected: bool) -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(3_000_000))
        replaced(made)
        made.hold = True  # as good as dead: nothing is taken back
        home = made.nominal(blob, 0)

        async def meanwhile(operation: str) -> None:
            if operation == "publish":
                home.faults.delay = None
                await made.engine.delete_object(made.bucket, "k", NO_CONDITION)
                if collected:
                    made.hold = False
                    await made.collector().run()
                    made.hold = True

        home.faults.delay = meanwhile
        await moved(made, blob)
        assert made.holders(blob, 0)
        made.hold = False
        await made.collector().run()
        if collected:
            assert await surveyed(made, blob) == {}, "its writer lives: it might have been going to commit"
            await made.session.close()
            found = await surveyed(made, blob)
            assert found == {"orphans": 6}
        assert not any(made.holders(blob, index) for index in range(6))

    on_region(scenario)


def test_two_at_once_do_no_harm() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        replaced(made)
        both = await asyncio.gather(moved(made, *blobs.values()), moved(made, *blobs.values()))
        assert all(one.waiting == 0 for one in both)
        assert all(made.at_home(blob) for blob in blobs.values())
        assert await surveyed(made, *blobs.values(), deep=True) == {}
        await assert_readable(made)

    on_region(scenario)


def test_a_failing_look_is_not_taken_for_an_empty_drive() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        replaced(made)
        await moved(made, *blobs.values())
        made.retire()
        sick = made.nominal(blobs["large"], 1)

        def failing(number: int | None = None) -> object:
            raise DriveFailed

        sick.scan, whole = failing, sick.scan  # type: ignore[assignment,method-assign]
        done = await moved(made, blobs["large"])
        assert done.waiting >= 1 and done.shards == done.rebuilt == 0
        assert "missing" not in await surveyed(made, blobs["large"])
        sick.scan = whole  # type: ignore[method-assign]
        assert await moved(made, blobs["large"]) == Moved()

    on_region(scenario)


# -- what the survey makes of it -----------------------------------------------------------------------------------------------


def test_second_copies_stay_until_the_old_layout_is_retired_and_known_to_be() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        shards = sum(blob.scheme.width for blob in blobs.values())
        replaced(made)
        assert await surveyed(made, *blobs.values()) == {"misplaced": shards}, "to be moved: neither missing nor a debt"
        assert list(await made.metadata.debts(10)) == []
        await moved(made, *blobs.values())
        assert await surveyed(made, *blobs.values()) == {}
        assert all(len(made.holders(blob, 0)) == 2 for blob in blobs.values())
        made.retire()
        made.settled = False
        assert await surveyed(made, *blobs.values()) == {}, "this process may be behind"
        made.settled = True
        assert await surveyed(made, *blobs.values()) == {"superseded": shards}
        assert all(made.at_home(blob) and len(made.holders(blob, 0)) == 1 for blob in blobs.values())
        await assert_readable(made)

    on_region(scenario)


@pytest.mark.parametrize(("refused", "left"), [(1, 0), (SURVEY_REMOVAL_TRIES, 1)])
def test_a_removal_that_came_late_is_asked_for_again(refused: int, left: int) -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        busy, calls = made.nominal(blob, 3), 0
        replaced(made)
        await moved(made, blob)
        made.retire()

        async def late(operation: str) -> None:
            nonlocal calls
            calls += operation == "remove"
            if operation == "remove" and calls <= refused:
                raise Unavailable

        busy.faults.delay = late
        assert await surveyed(made, blob) == {"superseded": 6 - left}
        assert len(made.holders(blob, 3)) == 1 + left

    on_region(scenario)


def test_nothing_is_missing_while_its_old_place_is_away() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        old = [made.nominal(blobs["large"], index) for index in range(6)]
        replaced(made)
        old[0].away = True
        found = await surveyed(made, blobs["large"])
        assert found == {"misplaced": 5}
        old[0].away = False
        old[0].lose(blobs["large"].blob_id, 0)
        assert await surveyed(made, blobs["large"]) == {"misplaced": 5, "missing": 1}

    on_region(scenario)


def test_a_drive_that_returns_resurrects_nothing() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        made.down(2)
        for key in SIZES:
            await made.engine.delete_object(made.bucket, key, NO_CONDITION)
        while await made.collector().run():
            pass
        await made.session.close()
        made.down(2, away=False)
        assert any(drive.shards for drive in made.drives[2])
        assert await moved(made, *blobs.values()) == Moved()
        assert "orphans" in await surveyed(made, *blobs.values())
        assert not any(drive.shards for drive in made.all)

    on_region(scenario)


def test_a_nodes_scrub_reads_its_own_drives_only() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(3_000_000))
        mine = next(index for index in range(6) if made.nominal(blob, index).local)
        made.nominal(blob, mine).flip(blob.blob_id, mine, 30)
        made.asked()
        found = await made.survey.partition(partition(blob.blob_id), deep=True)
        assert (found.shards, found.corrupt, found.missing) == (6, 1, 0)
        assert set(made.asked()) == {made.nominal(blob, mine).label}
        assert await made.repairer.run() == [Result.REPAIRED]
        assert await made.get("k") == data_of(3_000_000)

    on_region(scenario)


def test_a_node_acts_on_what_it_has_when_all_of_them_look() -> None:
    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        large = blobs["large"]
        mine = next(index for index in range(6) if made.nominal(large, index).local)
        others = [index for index in range(6) if index != mine]
        made.nominal(large, others[0]).lose(large.blob_id, others[0])
        made.nominal(large, others[1]).damage_header(large.blob_id, others[1])
        number = partition(large.blob_id)
        found = await made.survey.partition(number, deep=True, mine=True)
        assert (found.missing, found.corrupt) == (0, 0), "theirs"
        own = made.nominal(large, mine).shards.pop((large.blob_id, mine))
        found = await made.survey.partition(number, deep=True, mine=True)
        assert (found.missing, found.corrupt) == (1, 0)
        made.nominal(large, mine).shards[large.blob_id, mine] = own
        await made.engine.delete_object(made.bucket, "large", NO_CONDITION)
        for garbage in await made.metadata.garbage(10, 0.0):
            await made.metadata.garbage_done([garbage.outbox_id])
        await made.session.close()
        assert (await made.survey.partition(number, deep=False, mine=True)).orphans == 1
        assert not any(name[0] == large.blob_id for drive in made.drives[0] for name in drive.shards)
        assert len([name for drive in made.all for name in drive.shards if name[0] == large.blob_id]) == 4

    on_region(scenario)


def test_a_call_that_fails_on_the_way_is_no_reason_to_rebuild() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(3_000_000))
        index = next(index for index in range(6) if not made.nominal(blob, index).local)
        remote = made.nominal(blob, index)
        await made.metadata.add_debt([(await made.owner("k"), blob.blob_id, 1 << index)])
        remote.faults.open = DriveFailed()
        assert await made.repairer.run() == [Result.WAITING]
        remote.faults.open, remote.faults.read = None, DriveStalled()
        assert await made.repairer.run() == [Result.WAITING]
        assert sum(len(made.holders(blob, number)) for number in range(6)) == 6
        remote.faults.read = DriveFailed()  # it answers, and fails again: it is the shard
        assert await made.repairer.run() == [Result.REPAIRED]
        remote.faults.read = None
        assert await made.get("k") == data_of(3_000_000)

    on_region(scenario)


def test_what_one_of_several_raises_is_raised_as_it_is() -> None:
    async def main() -> None:
        todo = iter(range(10))
        done: list[int] = []

        async def work() -> None:
            for number in todo:
                await asyncio.sleep(0)
                if number == 4:
                    raise DatabaseUnavailable
                done.append(number)

        with pytest.raises(DatabaseUnavailable):
            await side_by_side(3, work)
        assert len(done) < 9

    asyncio.run(main())


# -- pace, slices ---------------------------------------------------------------------------------------------------------------


def test_the_rate_is_kept_by_all_together() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        throttle = Throttle(1_000_000)
        began = loop.time()
        await asyncio.gather(*(throttle.take(25_000) for _ in range(8)))
        assert loop.time() - began >= 0.19
        throttle.bytes_per_s = 1e12
        began = loop.time()
        await throttle.take(1_000_000)
        assert loop.time() - began < 0.1

    asyncio.run(main())


def test_slices_make_up_the_whole() -> None:
    from anvil.base.limits import LAYOUT_SLICES
    from anvil.model.layout import PARTITIONS

    assert [number for one in range(LAYOUT_SLICES) for number in slice_partitions(one)] == list(range(PARTITIONS))


def test_a_repair_does_not_crowd_a_node_that_holds_a_shard_already() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        taken = {made.nominal(blob, index).label.split("-")[0] for index in (0, 2, 3)}
        lost = made.nominal(blob, 1)
        for drive in [lost, *made.placement.order(blob.blob_id)[4:]]:
            assert isinstance(drive, MemoryDrive)
            drive.away = True
        await made.metadata.add_debt([(await made.owner("k"), blob.blob_id, 1 << 1)])
        assert await made.repairer.run() == [Result.REPAIRED]
        [holder] = [label for label in made.holders(blob, 1) if label != lost.label]
        assert holder.split("-")[0] not in taken

    on_region(scenario, nodes=8, drives=2, scheme=Scheme(2, 2))


def test_blobs_wider_than_their_row_have_a_home_for_every_shard() -> None:
    """Written 4+2 on six nodes, then the scheme is set to 2+1: rows of five places, and a drain leaves four nodes."""

    async def scenario(made: Region) -> None:
        blobs = await filled(made)
        made.scheme = Scheme(2, 1)
        made.begin([0, 1, 2, 3])
        assert made.placement.layout.width == 4
        done = await moved(made, *blobs.values())
        assert (done.waiting, done.away, done.lost) == (0, 0, 0)
        made.retire()
        for blob in blobs.values():
            assert made.at_home(blob)
        await surveyed(made, *blobs.values())
        for drive in [*made.drives[4], *made.drives[5]]:
            assert not drive.shards, "nothing is left on those that went"
        for number in (4, 5, 1):  # two shards of the wide ones are on each of two nodes
            made.down(number)
        await assert_readable(made)
        assert (await made.metadata.unhealthy()) == (0, 0)

    on_region(scenario)


def test_a_repair_puts_a_shard_of_a_wide_blob_beside_another_where_it_belongs() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("k", data_of(300_000))
        made.scheme = Scheme(2, 1)
        made.begin([0, 1, 2, 3])
        await moved(made, blob)
        made.retire()
        await surveyed(made, blob)
        home = made.nominal(blob, 5)
        assert home is made.nominal(blob, 1)
        del home.shards[blob.blob_id, 5]
        await made.metadata.add_debt([(await made.owner("k"), blob.blob_id, 1 << 5)])
        assert await made.repairer.run() == [Result.REPAIRED]
        assert made.holders(blob, 5) == [home.label]

    on_region(scenario)
