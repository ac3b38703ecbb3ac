"""The task queue against PostgreSQL: nothing is done twice at a time, nothing is forgotten, whoever lost his lease is ignored."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import pytest

from anvil.base.errors import DatabaseUnavailable
from anvil.base.limits import TASK_DEAD_KEEP_S, TASK_ERROR_CHARS_MAX
from anvil.meta.coalesce import call
from anvil.meta.link import Link
from anvil.meta.migrate import Database
from anvil.meta.tasks import TaskQueue
from anvil.model.task import Task, TaskStatus
from tests.postgres_fixture import Postgres

HERE = "us-east-1"


@asynccontextmanager
async def queues(postgres: Postgres, number: int = 1) -> AsyncIterator[tuple[asyncpg.Connection, list[TaskQueue]]]:
    """A connection beside, and queues with connections of their own, on one fresh database."""
    url = await postgres.fresh_async(Database.GLOBAL)
    beside = await asyncpg.connect(url)
    links = [Link(url, f"test {n}") for n in range(number)]
    try:
        yield beside, [TaskQueue(partial(call, each)) for each in links]
    finally:
        for each in links:
            await each.close()
        await beside.close()


async def claim(queue: TaskQueue, limit: int = 1, lease_s: float = 60.0, type: str = "t", region: str = HERE) -> list[Task]:
    return list(await queue.claim("worker", [type], limit, lease_s, region))


async def due_now(beside: asyncpg.Connection) -> None:
    await beside.execute("UPDATE tasks SET run_at = clock_timestamp() - interval '1 s' WHERE status = 'pending'")


async def lose_lease(beside: asyncpg.Connection) -> None:
    await beside.execute("UPDATE tasks SET lease_until = clock_timestamp() - interval '1 s' WHERE status = 'running'")


@pytest.mark.parametrize("batch", [1, 25])
def test_none_of_many_tasks_is_run_twice(postgres: Postgres, batch: int) -> None:
    async def main() -> None:
        async with queues(postgres, 5) as (_, [queue, *workers]):
            total = 2000
            assert await queue.enqueue_all("t", [({"n": n}, None) for n in range(total)]) == total
            run: Counter[int] = Counter()

            async def work(worker: TaskQueue) -> None:
                while claimed := await claim(worker, batch):
                    run.update(task.payload["n"] for task in claimed)
                    assert await worker.heartbeat(claimed, 60.0) == {task.task_id for task in claimed}
                    for done in await asyncio.gather(*map(worker.complete, claimed)):
                        assert done

            await asyncio.gather(*map(work, workers))
            assert run == Counter(range(total))
            assert [(count.status, count.count) for count in await queue.counts()] == [(TaskStatus.COMPLETED, total)]

    asyncio.run(main())


def test_what_a_worker_left_behind_is_done_by_another(postgres: Postgres) -> None:
    """Workers die amid their tasks at random; each task is completed exactly once all the same."""

    async def main() -> None:
        async with queues(postgres, 4) as (beside, [queue, *workers]):
            total = 200
            await queue.enqueue_all("t", [({"n": n}, f"k{n}") for n in range(total)], max_attempts=50)
            seed = random.randrange(2**32)
            print("seed", seed)
            chance = random.Random(seed)
            completed: Counter[int] = Counter()
            abandoned: list[int] = []

            async def work(worker: TaskQueue) -> None:
                while sum(completed.values()) < total:
                    for task in await claim(worker, 10):
                        if chance.random() < 0.7:
                            assert await worker.complete(task)
                            completed[task.payload["n"]] += 1
                        else:
                            abandoned.append(task.task_id)

            async def reap() -> None:
                while sum(completed.values()) < total:
                    expire = (
                        "UPDATE tasks SET lease_until = clock_timestamp() - interval '1 s' WHERE task_id = ANY ($1::bigint[])"
                    )
                    left, abandoned[:] = list(abandoned), []
                    await beside.execute(expire, left)
                    assert await queue.reap() == len(left)
                    await due_now(beside)

            async with asyncio.timeout(60):
                await asyncio.gather(reap(), *map(work, workers))
            assert completed == Counter(range(total))
            assert await beside.fetchval("SELECT count(*) FROM tasks WHERE status = 'completed'") == total

    asyncio.run(main())


def test_a_worker_whose_lease_was_given_away_changes_nothing(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (beside, [queue]):
            await queue.enqueue("t", {})
            [asleep] = await claim(queue)
            assert await queue.reap() == 0
            await lose_lease(beside)
            assert await queue.heartbeat([asleep], 60.0) == {asleep.task_id}, "late, but nobody was faster"
            await lose_lease(beside)
            assert await queue.reap() == 1
            assert await queue.reap() == 0
            assert not await queue.complete(asleep)
            await due_now(beside)
            [again] = await claim(queue)
            assert (again.task_id, again.attempt) == (asleep.task_id, 2)
            assert not await queue.complete(asleep)
            assert not await queue.fail(asleep, "too late")
            assert await queue.heartbeat([asleep], 60.0) == frozenset()
            assert await queue.heartbeat([asleep, again], 60.0) == {again.task_id}
            [row] = await queue.list()
            assert (row.status, row.locked_by, row.last_error) == (TaskStatus.RUNNING, "worker", "the lease of worker ran out")
            assert await queue.complete(again)
            assert await queue.complete(again), "repeated, because the answer was lost"
            await queue.fail(again, "after all")
            assert (await queue.list())[0].status is TaskStatus.COMPLETED
            assert not await queue.complete(asleep)

    asyncio.run(main())


def test_of_one_key_one_task_is_active(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres, 4) as (beside, workers):
            queue = workers[0]
            made = await asyncio.gather(*(worker.enqueue("t", {}, dedupe_key="one") for worker in workers for _ in range(20)))
            assert made.count(True) == 1
            [task] = await claim(queue, 10)
            assert not await queue.enqueue("t", {}, dedupe_key="one"), "it runs"
            await queue.fail(task, "no")
            assert not await queue.enqueue("t", {}, dedupe_key="one"), "it is pending again"
            await due_now(beside)
            [task] = await claim(queue, 10)
            await queue.complete(task)
            assert await queue.enqueue("t", {}, dedupe_key="one")
            assert await queue.enqueue_all("t", [({}, "two"), ({}, "one"), ({}, "two"), ({}, None), ({}, None)]) == 3

            # Keys in any order, from all sides: no deadlock is left to the caller.
            keys = [({}, f"k{n}") for n in range(50)]
            orders = [keys, keys[::-1], keys[25:] + keys[:25], keys[::2] + keys[1::2]]
            assert sum(await asyncio.gather(*(w.enqueue_all("t", order) for w, order in zip(workers, orders, strict=True)))) == 50

    asyncio.run(main())


def test_waits_grow_until_a_task_is_dead(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (beside, [queue]):
            await queue.enqueue("t", {"a": [1, {"b": None}]}, max_attempts=9, dedupe_key="k")
            wait = "SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM tasks"
            for attempt in range(1, 10):
                await due_now(beside)
                [task] = await claim(queue)
                assert (task.attempt, task.payload) == (attempt, {"a": [1, {"b": None}]})
                assert await queue.fail(task, "x" * 5000) is (attempt == 9)
                if attempt < 9:
                    longest = min(attempt**4, 3600)
                    assert 0.75 * longest - 2 <= await beside.fetchval(wait) <= longest
                    assert await claim(queue) == []
            [row] = await queue.list(TaskStatus.DEAD, "t")
            assert row.finished_us is not None
            assert row.last_error == "x" * TASK_ERROR_CHARS_MAX
            assert await queue.fail(task, "repeated"), "it was this claim that ended it"
            await due_now(beside)
            assert await claim(queue) == []
            assert await queue.enqueue("t", {}, dedupe_key="k"), "the dead hold no key"

            # A worker that dies at its last attempt leaves a dead task, not one that is tried for ever.
            await queue.enqueue("u", {}, max_attempts=1)
            await claim(queue, type="u")
            await lose_lease(beside)
            assert await queue.reap() == 1
            assert [row.status for row in await queue.list(None, "u")] == [TaskStatus.DEAD]

    asyncio.run(main())


def test_retry_and_cancel(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (_, [queue]):
            await queue.enqueue("t", {}, max_attempts=1, dedupe_key="k")
            [task] = await claim(queue)
            assert not await queue.retry(task.task_id), "it runs"
            await queue.fail(task, "no")
            assert await queue.retry(task.task_id)
            [task] = await claim(queue)
            assert task.attempt == 1, "from the beginning"

            assert await queue.cancel(task.task_id)
            assert not await queue.cancel(task.task_id)
            assert not await queue.complete(task)
            assert not await queue.fail(task, "no")
            assert await queue.heartbeat([task], 60.0) == frozenset()
            [row] = await queue.list()
            assert (row.status, row.last_error) == (TaskStatus.CANCELLED, "cancelled")
            assert await queue.list(TaskStatus.DEAD) == [], "nobody has to be told of what an operator did"
            assert [one.task_id for one in await queue.list(TaskStatus.CANCELLED)] == [task.task_id]
            assert [(count.status, count.count) for count in await queue.counts()] == [(TaskStatus.CANCELLED, 1)]
            assert await queue.retry(task.task_id), "it may be tried again all the same"
            assert [one.status for one in await queue.list()] == [TaskStatus.PENDING]
            assert await queue.cancel(task.task_id)
            assert await queue.enqueue("t", {}, dedupe_key="k", delay_s=3600.0)
            assert not await queue.retry(task.task_id), "its like is pending"
            later = (await queue.list())[0].task_id
            assert await claim(queue) == []
            assert await queue.retry(later)
            [task] = await claim(queue)
            assert task.task_id == later
            await queue.complete(task)
            assert not await queue.retry(later)
            assert not await queue.cancel(later)
            assert not await queue.retry(2**40)

            await queue.enqueue("t", {}, delay_s=3600.0)
            pending = (await queue.list(TaskStatus.PENDING))[0].task_id
            assert await queue.cancel(pending)
            assert await queue.list(TaskStatus.PENDING) == []

            await queue.enqueue("u", {}, max_attempts=1)
            await queue.fail((await claim(queue, type="u"))[0], "cancelled")
            assert [row.status for row in await queue.list(None, "u")] == [TaskStatus.DEAD], "that is what its last error said"

    asyncio.run(main())


def test_urgency_types_and_regions(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (_, [queue]):
            await queue.enqueue("t", {"name": "first"})
            await queue.enqueue("t", {"name": "urgent"}, priority=5)
            await queue.enqueue("t", {"name": "elsewhere", "region": "eu"}, priority=9)
            await queue.enqueue("t", {"name": "here", "region": HERE})
            await queue.enqueue("t", {"name": "later"}, delay_s=3600.0, priority=9)
            await queue.enqueue("u", {"name": "other"})
            assert [task.payload["name"] for task in await claim(queue, 10)] == ["urgent", "first", "here"]
            assert [task.payload["name"] for task in await claim(queue, 10, region="eu")] == ["elsewhere"]
            assert [task.type for task in await queue.claim("w", ["t", "u"], 10, 1.0, HERE)] == ["u"]
            assert await queue.claim("w", [], 10, 1.0, HERE) == []

    asyncio.run(main())


def test_counts_and_pruning(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (beside, [queue]):
            assert await queue.counts() == []
            await queue.enqueue_all("t", [({}, None)] * 3)
            await queue.enqueue("u", {}, delay_s=3600.0)
            await beside.execute("UPDATE tasks SET run_at = run_at - interval '100 s' WHERE task_id = 2")
            found = {(count.type, count.status): count for count in await queue.counts()}
            assert 100 <= (found["t", TaskStatus.PENDING].oldest_s or 0) < 160
            assert found["u", TaskStatus.PENDING].oldest_s == 0, "it is not due"
            assert all(count.oldest_s is None for count in found.values() if count.status is not TaskStatus.PENDING)
            for task in await claim(queue, 2):
                await queue.complete(task)
            [third] = await claim(queue, 2)
            assert await queue.prune(3600.0) == 0
            await beside.execute("UPDATE tasks SET finished_us = finished_us - 7200 * 1000000::bigint WHERE task_id = 1")
            assert await queue.prune(3600.0) == 1
            await queue.cancel(third.task_id)
            assert await queue.prune(0.0) == 1, "the dead are kept for an operator"
            kept = int((TASK_DEAD_KEEP_S + 60) * 1_000_000)
            await beside.execute("UPDATE tasks SET finished_us = finished_us - $1::bigint", kept)
            assert await queue.prune(3600.0) == 1
            assert [row.type for row in await queue.list()] == ["u"]

    asyncio.run(main())


def test_idle_workers_are_woken_once(postgres: Postgres) -> None:
    async def main() -> None:
        async with queues(postgres) as (beside, [queue]):
            heard: list[str] = []
            mark = asyncio.Event()
            listening = TaskQueue(partial(call, None))  # type: ignore[arg-type]
            await listening.listen(beside)
            await beside.add_listener("anvil_tasks", lambda *args: heard.append(args[2]))
            await beside.add_listener("mark", lambda *_: mark.set())

            async def settled() -> int:
                """How many notifications came so far; they come in the order of commits."""
                mark.clear()
                await beside.execute("NOTIFY mark")
                await asyncio.wait_for(mark.wait(), 10)
                return len(heard)

            await queue.enqueue("t", {}, delay_s=60.0)
            assert await settled() == 0
            await queue.enqueue_all("t", [({}, None)] * 100)
            assert await settled() == 1
            assert listening.woken.is_set()
            for _ in range(10):
                await queue.enqueue("t", {})
            assert await settled() == 1, "who works asks for more by himself"
            await claim(queue, 200)
            await queue.enqueue("t", {}, dedupe_key="k")
            await claim(queue)
            await queue.enqueue("t", {}, dedupe_key="k")
            assert await settled() == 2, "and nothing came of the last one"

    asyncio.run(main())


def test_a_database_that_is_away(postgres: Postgres) -> None:
    async def main() -> None:
        away = Link("postgresql://nobody@127.0.0.1:1/none", "test")
        queue = TaskQueue(partial(call, away, wait_s=0.2))
        with pytest.raises(DatabaseUnavailable):
            await claim(queue)

    asyncio.run(main())
