"""A node's share of the task queue, on a queue in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from anvil.base.errors import BadRecord, DatabaseUnavailable, SlowDown
from anvil.base.limits import TASKS_AT_ONCE
from anvil.model.task import Task
from anvil.tasks import worker as module
from anvil.tasks.worker import TaskWorker


class Queue:
    def __init__(self, count: int = 0) -> None:
        self.waiting = [Task(number, "work", {}, 1, b"token") for number in range(count)]
        self.completed: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.held: set[int] | None = None  # None: all
        self.away = False
        self.woken = asyncio.Event()

    async def claim(self, worker: str, types: Sequence[str], limit: int, lease_s: float, region: str) -> Sequence[Task]:
        if self.away:
            raise DatabaseUnavailable
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    async def heartbeat(self, tasks: Sequence[Task], lease_s: float) -> Collection[int]:
        return {task.task_id for task in tasks} if self.held is None else self.held

    async def complete(self, task: Task) -> bool:
        self.completed.append(task.task_id)
        return True

    async def fail(self, task: Task, error: str) -> bool:
        self.failed.append((task.task_id, error))
        return False


def run(
    queue: Queue, work: Callable[[Mapping[str, Any]], Awaitable[None]], until: Callable[[], bool], ended: list[str] | None = None
) -> None:
    async def main() -> None:
        observe = (lambda kind, result, seconds: ended.append(result)) if ended is not None else (lambda *_: None)
        running = asyncio.ensure_future(TaskWorker(queue, "n", "here", {"work": work}, observe).run())
        async with asyncio.timeout(10):
            while not until():
                queue.woken.set()
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_everything_is_done_and_only_so_many_at_once() -> None:
    queue, now, most = Queue(50), 0, 0

    async def work(payload: Mapping[str, Any]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    run(queue, work, lambda: len(queue.completed) == 50)
    assert sorted(queue.completed) == list(range(50))
    assert most == TASKS_AT_ONCE


def test_what_fails_is_given_back_and_does_not_end_the_loop() -> None:
    queue, errors = Queue(3), iter([ValueError("broken"), BadRecord("worn"), ValueError()])

    async def work(payload: Mapping[str, Any]) -> None:
        raise next(errors)

    run(queue, work, lambda: len(queue.failed) == 3)
    assert sorted(error for _, error in queue.failed) == ["ValueError", "broken", "worn"]
    assert queue.completed == []


def test_what_met_something_that_is_away_is_asked_for_again_by_whoever_leads() -> None:
    queue, ended = Queue(1), list[str]()

    async def work(payload: Mapping[str, Any]) -> None:
        raise SlowDown

    run(queue, work, lambda: queue.completed == [0], ended)
    assert (queue.failed, ended) == ([], ["retry"])


def test_a_queue_that_is_away_is_asked_again() -> None:
    queue = Queue(1)
    queue.away = True

    async def work(payload: Mapping[str, Any]) -> None:
        return

    looks = 0

    def until() -> bool:
        nonlocal looks
        looks += 1
        if looks == 20:
            queue.away = False
        return queue.completed == [0]

    run(queue, work, until)


def test_a_task_whose_lease_is_gone_is_cancelled_and_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASK_LEASE_S", 0.03)
    queue, cancelled = Queue(1), asyncio.Event()
    queue.held = set()

    async def work(payload: Mapping[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    run(queue, work, cancelled.is_set)
    assert queue.completed == []
    assert queue.failed == []


def test_a_task_that_comes_back_to_who_lost_it_is_done_once_at_a_time_and_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASK_LEASE_S", 0.03)
    queue, begun, kept, cancelled = Queue(1), 0, set[bytes](), asyncio.Event()
    again = Task(0, "work", {}, 2, b"another token")

    async def heartbeat(tasks: Sequence[Task], lease_s: float) -> Collection[int]:
        kept.update(task.lease_token for task in tasks)
        return {task.task_id for task in tasks}

    queue.heartbeat = heartbeat  # type: ignore[method-assign]

    async def work(payload: Mapping[str, Any]) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            queue.waiting.append(again)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            kept.clear()
            cancelled.set()
            raise

    run(queue, work, lambda: cancelled.is_set() and begun == 2 and kept == {again.lease_token})
