"""Waiting for the shards of a blob: for all of them, but not for ever for the last ones."""

from __future__ import annotations

import asyncio

import pytest

from anvil.base.errors import AnvilError, DriveFailed, InvalidRequest
from anvil.engine.quorum import Step


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.engine.quorum.STRAGGLER_S", 0.05)


async def settled(step: Step, within_s: float = 5.0) -> None:
    await asyncio.wait_for(step.settled(), within_s)


def test_nothing_to_do_is_done() -> None:
    asyncio.run(settled(Step(0)))
    asyncio.run(settled(Step(3)))


def test_all_are_waited_for_as_long_as_there_is_no_quorum() -> None:
    async def main() -> None:
        step = Step(2)
        first, second, third = (step.begin(index) for index in range(3))
        waiting = asyncio.create_task(step.settled())
        first(None)
        second(DriveFailed(drive="d", reason="r"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        third(None)
        await waiting
        assert (step.good, step.left, set(step.errors)) == ({0, 2}, set(), {1})

    asyncio.run(main())


@pytest.mark.parametrize("before", [False, True], ids=["meanwhile", "before it is waited for"])
def test_stragglers_are_left_behind_and_heard_of_when_they_land(before: bool) -> None:
    async def main() -> None:
        step = Step(2)
        told = [step.begin(index) for index in range(4)]
        if before:
            told[0](None), told[1](None)
        waiting = asyncio.create_task(settled(step))
        await asyncio.sleep(0)
        if not before:
            told[0](None), told[1](None)
        await waiting
        assert (step.good, step.left) == ({0, 1}, {2, 3})
        landed: list[int] = []
        step.landed = landed.append
        told[2](DriveFailed(drive="d", reason="r"))
        told[3](None)
        assert landed == [3]
        assert (step.good, step.left) == ({0, 1, 3}, set())

    asyncio.run(main())


def test_tasks_count_by_what_they_return() -> None:
    async def main() -> None:
        async def work(done: bool) -> bool:
            return done

        async def fail() -> bool:
            raise DriveFailed(drive="d", reason="r")

        step = Step(1)
        for index, coroutine in enumerate((work(True), work(False), fail())):
            step.watch(index, asyncio.create_task(coroutine))
        await settled(step)
        assert (step.good, step.left, set(step.errors)) == ({0}, set(), {2})

    asyncio.run(main())


@pytest.mark.parametrize("error", [InvalidRequest("no"), ValueError("no")], ids=["an error of ours", "a fault"])
def test_what_is_no_failure_of_a_drive_is_raised_when_nobody_writes_any_more(error: Exception) -> None:
    async def main() -> None:
        step = Step(1)
        told = [step.begin(index) for index in range(2)]
        waiting = asyncio.create_task(step.settled())
        told[0](error)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        told[1](None)
        with pytest.raises(type(error)) as raised:
            await waiting
        assert (raised.value is error) is not isinstance(error, AnvilError)  # `again`: without the frames it came through

    asyncio.run(main())


def test_a_cancelled_task_is_no_failure_of_a_drive() -> None:
    async def main() -> None:
        step = Step(1)
        task = asyncio.create_task(asyncio.sleep(60, True))
        step.watch(0, task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step.settled()

    asyncio.run(main())
