"""Tasks of the queue, done by whoever comes first: claimed, kept alive, completed or given back.

Owns: one node's share of the queue: how many at a time, the pauses, the renewal of leases. Invariants: a task whose lease was lost is
cancelled before its next step, and its end is not reported; one that fails goes back with a pause that grows; one that met something that
is away for now (Unavailable) counts as done, since whoever leads asks again for what is still due, and soon; nothing that a task does wrong
ends the loop. Handlers are idempotent: a task may be done twice, or by two at once. Not here: the queue (`meta/tasks.py`), the work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from anvil.base.errors import AnvilError, Unavailable
from anvil.base.limits import TASK_LEASE_S, TASK_POLL_S_MAX, TASK_POLL_S_MIN, TASKS_AT_ONCE
from anvil.model.task import Payload, Task

log = logging.getLogger("anvil.tasks")

Handler = Callable[[Payload], Awaitable[None]]
"""Does one task, given its payload. Raises what makes it fail."""
Observe = Callable[[str, str, float], None]
"""type, result (`ok`, `retry`, `dead`), seconds"""


class Queue(Protocol):
    """What of `meta.tasks.TaskQueue` is used here. `woken`: set when something may be due."""

    woken: asyncio.Event

    async def claim(self, worker: str, types: Sequence[str], limit: int, lease_s: float, region: str) -> Sequence[Task]: ...
    async def heartbeat(self, tasks: Sequence[Task], lease_s: float) -> Collection[int]: ...
    async def complete(self, task: Task) -> bool: ...
    async def fail(self, task: Task, error: str) -> bool: ...


class TaskWorker:
    """`name`: this node's, for the queue. `at_once`: tasks that take their time by intent are done by a worker of their own, or the others
    would wait for them."""

    def __init__(
        self,
        queue: Queue,
        name: str,
        region: str,
        handlers: Mapping[str, Handler],
        observe: Observe,
        at_once: int = TASKS_AT_ONCE,
    ) -> None:
        self._queue = queue
        self._name = name
        self._region = region
        self._handlers = dict(handlers)
        self._observe = observe
        self._at_once = at_once
        self._running: dict[int, tuple[Task, asyncio.Task[None]]] = {}
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """For ever, until cancelled; then what runs is cancelled, too, and its lease runs out."""
        keeping = asyncio.get_running_loop().create_task(self._keep())
        try:
            while True:
                try:
                    claimed = await self._claim()
                except Unavailable as error:
                    log.debug("the task queue is away: %s", error)  # who needs the database says so
                    claimed = 0
                if not claimed or len(self._running) >= self._at_once:
                    await self._pause()
        finally:
            keeping.cancel()
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(keeping, *tasks, return_exceptions=True)

    async def _claim(self) -> int:
        room = self._at_once - len(self._running)
        if room <= 0:
            return 0
        self._freed.clear()
        tasks = await self._queue.claim(self._name, tuple(self._handlers), room, TASK_LEASE_S, self._region)
        for task in tasks:
            if (before := self._running.get(task.task_id)) is not None:
                before[1].cancel()  # its lease ran out, and it came back here
            doing = asyncio.get_running_loop().create_task(self._do(task), name=f"{task.type} {task.task_id}")
            self._running[task.task_id] = (task, doing)
        return len(tasks)

    async def _pause(self) -> None:
        """Until something is due, or a place is free again."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._queue.woken, self._freed)]
        try:
            await asyncio.wait(
                waiting, timeout=random.uniform(TASK_POLL_S_MIN, TASK_POLL_S_MAX), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for one in waiting:
                one.cancel()
        self._queue.woken.clear()

    async def _do(self, task: Task) -> None:
        began = time.monotonic()
        try:
            done = await self._work(task)
        except asyncio.CancelledError:
            self._ended(task, "retry", began)
            raise
        except Exception as error:
            if isinstance(error, AnvilError):
                log.warning("task %d (%s): %s", task.task_id, task.type, error)
            else:
                log.exception("task %d (%s) failed", task.task_id, task.type)
            dead = await self._report(self._queue.fail(task, str(error) or type(error).__name__), task)
            self._ended(task, "dead" if dead else "retry", began)
            return
        await self._report(self._queue.complete(task), task)
        self._ended(task, "ok" if done else "retry", began)

    async def _work(self, task: Task) -> bool:
        """False where something is away for now: left to fail, its pauses would grow, and keep a new one out of the queue for up to an hour
        after everything is there again."""
        try:
            await self._handlers[task.type](task.payload)
            return True
        except Unavailable as error:
            log.warning("task %d (%s) is put off: %s", task.task_id, task.type, error)
            return False

    async def _report(self, saying: Awaitable[bool], task: Task) -> bool:
        try:
            return await saying
        except AnvilError as error:
            log.warning("the end of task %d is not written down; it is done again: %s", task.task_id, error)
            return False

    def _ended(self, task: Task, result: str, began: float) -> None:
        running = self._running.get(task.task_id)
        if running is not None and running[0] is task:
            del self._running[task.task_id]
        self._freed.set()
        self._observe(task.type, result, time.monotonic() - began)

    async def _keep(self) -> None:
        """Renew leases; a task whose lease is gone is somebody else's."""
        while True:
            await asyncio.sleep(TASK_LEASE_S / 3)
            held = [task for task, _ in self._running.values()]
            if not held:
                continue
            try:
                ours = await self._queue.heartbeat(held, TASK_LEASE_S)
            except Unavailable as error:
                log.warning("the leases of %d tasks are not renewed: %s", len(held), error)
                continue
            for task in held:
                running = self._running.get(task.task_id)
                if task.task_id not in ours and running is not None:
                    log.warning("task %d (%s) was given to somebody else", task.task_id, task.type)
                    running[1].cancel()
