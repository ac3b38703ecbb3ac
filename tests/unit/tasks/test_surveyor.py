"""When the survey looks where, and how fast: with a survey that takes as long as the test says, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from anvil.base.errors import DatabaseUnavailable, DriveFailed
from anvil.base.limits import (
    LOOK_PARTITIONS_MAX,
    LOOK_S,
    LOOK_SHARDS,
    SCRUB_FASTEST_PARTITION_S,
    SURVEY_BUSY_SHARE,
    SWEEP_BUSY_SHARE,
)
from anvil.model.layout import PARTITIONS, slice_partitions
from anvil.tasks.survey import Findings, Surveyed
from anvil.tasks.surveyor import TURN_S, Surveyor

TOOK_S = 2.0


class Disk:
    def __init__(self, number: int, held: set[int]) -> None:
        self.drive_id = bytes((number,)) * 16
        self.label = f"disk{number}"
        self.readable = True
        self.failed = False
        self.local = True
        self.held = held
        self.wanted: set[int] = set()

    async def partitions(self) -> frozenset[int]:
        if self.failed:
            raise DriveFailed
        return frozenset(self.held)


class World:
    """A surveyor whose survey takes `took_s` per look and meets `shards` in each partition, so many that it looks at one at a time; and a
    record of what it did and how long it rested."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *disks: Disk) -> None:
        self.clock_s = 1e9
        self.took_s = TOOK_S
        self.shards = LOOK_SHARDS
        self.together: list[int] = []
        self.looked: list[tuple[int, bool]] = []
        self.rests: list[float] = []
        self.refreshed = 0
        self.swept = 0
        self.fail_at: int | None = None
        self.while_resting: Callable[[], None] = lambda: None
        self.disks = disks
        self.misplaced: set[int] = set()
        self.moved: list[int] = []
        self.placement = SimpleNamespace(drives={disk.drive_id: disk for disk in disks}, layouts=(None,), remote=False)
        self.placement.primaries = lambda number: {disk.drive_id for disk in disks if number in disk.wanted}
        monkeypatch.setattr("anvil.tasks.surveyor.time", SimpleNamespace(monotonic=self.now))
        monkeypatch.setattr("anvil.tasks.surveyor.asyncio.sleep", self.rest)
        self.surveyor = Surveyor(cast(Any, self), cast(Any, self.placement), self.refresh, self.over, self.now, self.move)

    def now(self) -> float:
        return self.clock_s

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.clock_s += seconds
        self.while_resting()

    async def refresh(self) -> None:
        self.refreshed += 1

    def over(self) -> None:
        self.swept += 1

    async def move(self, number: int) -> None:
        self.moved.append(number)

    async def partition(self, number: int, *, deep: bool, mine: bool = False) -> Findings:
        return (await self.partitions((number,), deep=deep, mine=mine)).findings

    async def partitions(self, numbers: Collection[int], *, deep: bool, mine: bool = False, known: object = None) -> Surveyed:
        if self.fail_at in numbers:
            raise DatabaseUnavailable
        self.clock_s += self.took_s
        self.looked += [(number, deep) for number in numbers]
        self.together.append(len(numbers))
        self.mine = mine
        misplaced = self.misplaced.intersection(numbers)
        return Surveyed(Findings(shards=self.shards * len(numbers), misplaced=len(misplaced)), misplaced)


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


def test_a_sweep_looks_at_what_is_held_and_takes_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {7, 3}), Disk(2, {3, 4000}))
    assert run(world.surveyor.sweep()) is False
    assert world.looked == [(3, False), (7, False), (4000, False)]
    assert world.refreshed == 3, "whether removals are held is asked before each"
    busy, resting = 3 * TOOK_S, sum(world.rests)
    assert busy / (busy + resting) == pytest.approx(SWEEP_BUSY_SHARE)
    assert (world.swept, world.surveyor.state.over, world.surveyor.state.findings.shards) == (1, True, 3 * LOOK_SHARDS)


def test_what_somebody_asked_for_goes_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {1, 2}))
    number = world.surveyor.ask("a test")
    assert world.surveyor.wake.is_set()
    assert run(world.surveyor.sweep()) is False
    assert world.surveyor.state.number == number
    busy, resting = 2 * TOOK_S, sum(world.rests)
    assert busy / (busy + resting) == pytest.approx(SURVEY_BUSY_SHARE)
    run(world.surveyor.sweep())
    assert world.rests[-1] == pytest.approx(TOOK_S * (1 / SWEEP_BUSY_SHARE - 1)), "the next one of its own accord does not hurry"


def test_partitions_that_hold_little_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, set(range(0, 1000, 2))))
    world.shards, world.took_s = 10, LOOK_S / 2
    run(world.surveyor.sweep())
    assert [number for number, _ in world.looked] == list(range(0, 1000, 2))
    assert world.together[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert max(world.together) == LOOK_PARTITIONS_MAX
    assert world.refreshed == len(world.together)
    world.together.clear()
    world.shards = LOOK_SHARDS // 4
    run(world.surveyor.sweep())
    assert set(world.together) == {1, 2, 4}, "what they hold together has a bound"
    world.together.clear()
    world.shards, world.took_s = 10, LOOK_S * 2
    run(world.surveyor.sweep())
    assert set(world.together) == {1}, "and so has the time"
    world.together.clear()
    world.surveyor.ask("every byte", deep=True)
    run(world.surveyor.sweep())
    assert set(world.together) == {1}


def test_a_deep_pass_never_goes_faster_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {1, 2}))
    world.took_s = 0.0
    world.surveyor.ask("a test", deep=True)
    run(world.surveyor.sweep())
    assert world.looked == [(1, True), (2, True)]
    assert world.rests == [SCRUB_FASTEST_PARTITION_S] * 2


def test_asking_under_way_begins_again_and_keeps_a_deep_pass_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {1, 2, 3}))
    world.surveyor.ask("an operator", deep=True)

    def ask_once() -> None:
        world.while_resting = lambda: None
        world.surveyor.ask("a drive is back")

    world.while_resting = ask_once
    assert run(world.surveyor.sweep()) is True, "it is to be called again at once"
    assert (world.looked, world.swept) == ([(1, True)], 0)
    assert run(world.surveyor.sweep()) is False
    assert world.looked[1:] == [(1, True), (2, True), (3, True)]
    assert world.surveyor.state.number == 2
    assert world.surveyor.state.findings.shards == 3 * LOOK_SHARDS, "counted from the beginning of this pass"


def test_a_pass_that_the_database_interrupts_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {1, 2, 3}))
    world.fail_at = 2
    with pytest.raises(DatabaseUnavailable):
        run(world.surveyor.sweep())
    assert world.surveyor.state.left == 2
    world.fail_at = None
    assert run(world.surveyor.sweep()) is False
    assert [number for number, _ in world.looked] == [1, 2, 3]
    assert world.swept == 1


def test_drives_that_cannot_be_asked_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    away, failing = Disk(1, {1}), Disk(2, {2})
    away.readable, failing.failed = False, True
    world = World(monkeypatch, away, failing, Disk(3, {3}))
    run(world.surveyor.sweep())
    assert world.looked == [(3, False)]


def test_a_drive_that_comes_back_is_a_reason_and_the_first_look_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(1, {1})
    world = World(monkeypatch, disk)
    assert world.surveyor.watch() == frozenset()
    disk.readable = False
    assert world.surveyor.watch() == frozenset()
    assert not world.surveyor.wake.is_set()
    disk.readable = True
    assert world.surveyor.watch() == {disk.drive_id}
    assert world.surveyor.wake.is_set()
    assert world.surveyor.watch() == frozenset()


def test_the_scrub_follows_the_clock_and_a_restart_does_not_set_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    turn = 12_345
    world.clock_s = turn * TURN_S + TURN_S / 4
    assert run(world.surveyor.scrub()) is False
    assert world.looked == [(turn % PARTITIONS, True)]
    run(world.surveyor.scrub())
    assert len(world.looked) == 1, "its turn has not come"
    world.clock_s = (turn + 3) * TURN_S + TURN_S / 4
    run(world.surveyor.scrub())
    assert [number for number, _ in world.looked[1:]] == [(turn + n) % PARTITIONS for n in (1, 2, 3)], (
        "what was missed is made up"
    )
    assert set(world.rests) == {SCRUB_FASTEST_PARTITION_S}
    again = World(monkeypatch)
    again.clock_s = (turn + 4) * TURN_S + TURN_S / 4
    run(again.surveyor.scrub())
    assert again.looked == [((turn + 4) % PARTITIONS, True)]


def test_the_scrub_makes_up_for_one_pass_at_most_and_bears_a_clock_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.took_s = 0.0
    world.clock_s = 10 * TURN_S
    run(world.surveyor.scrub())
    world.clock_s = (10 + 3 * PARTITIONS) * TURN_S
    world.looked.clear()
    run(world.surveyor.scrub())
    assert len(world.looked) <= PARTITIONS + 1
    assert {number for number, _ in world.looked} == set(range(PARTITIONS))
    world.looked.clear()
    world.clock_s = 5.5 * TURN_S
    run(world.surveyor.scrub())
    assert world.looked == [(5, True)]


def test_a_scrub_that_the_database_interrupts_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.clock_s = 50.5 * TURN_S
    world.fail_at = 50
    with pytest.raises(DatabaseUnavailable):
        run(world.surveyor.scrub())
    world.fail_at = None
    run(world.surveyor.scrub())
    assert world.looked == [(50, True)]


def test_what_is_misplaced_is_moved_unless_the_layout_changes_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, {1, 2, 3}))
    world.misplaced = {2}
    run(world.surveyor.sweep())
    assert world.moved == [2]
    world.placement.layouts = (None, None)
    run(world.surveyor.sweep())
    assert world.moved == [2]


def test_with_other_nodes_only_what_somebody_asked_for_is_swept_and_only_what_is_held_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = Disk(1, {1, 2}), Disk(2, {2, 3})
    there.local = False
    world = World(monkeypatch, here, there)
    world.placement.remote = True
    assert run(world.surveyor.sweep()) is False
    assert (world.looked, world.swept) == ([], 0)
    world.surveyor.watch()
    there.readable = False
    world.surveyor.watch()
    there.readable = True
    assert world.surveyor.watch() == frozenset(), "each node looks after its own drives"
    world.surveyor.ask("an operator")
    assert run(world.surveyor.sweep()) is False
    assert world.looked == [(1, False), (2, False)]


def test_a_drive_that_was_emptied_is_looked_at_where_it_should_hold_something(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Disk(1, set()), Disk(2, {2, 3, 4})
    there.local = False
    here.wanted, there.wanted = {2, 3, 9}, {4}
    world = World(monkeypatch, here, there)
    world.placement.remote = True
    world.surveyor.ask("back: it was replaced by an empty one")
    assert run(world.surveyor.sweep()) is False
    assert world.looked == [(2, False), (3, False)], "not what is empty everywhere, nor what is another node's"


def test_a_slice_is_swept_at_the_same_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Disk(1, set()))
    findings = run(world.surveyor.slice(2))
    numbers = [number for number, deep in world.looked]
    assert numbers == list(slice_partitions(2))
    assert findings.shards / LOOK_SHARDS == world.refreshed == len(numbers)
    assert set(world.rests) == {TOOK_S * (1 / SWEEP_BUSY_SHARE - 1)}
    assert world.surveyor.state.number == 0, "no pass of its own"
    world.rests.clear()
    run(world.surveyor.slice(3, hurry=lambda: len(world.rests) >= 2))
    assert world.rests[:2] == [TOOK_S * (1 / SWEEP_BUSY_SHARE - 1)] * 2
    assert set(world.rests[2:]) == {TOOK_S * (1 / SURVEY_BUSY_SHARE - 1)}, "from when somebody waits for it"


def test_with_other_nodes_each_scrubs_what_it_has_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.placement.remote = True
    world.misplaced = {50}
    world.clock_s = 50.5 * TURN_S
    run(world.surveyor.scrub())
    assert (world.looked, world.mine, world.moved, world.refreshed) == ([(50, True)], True, [], 1)
