"""Tasks that outlive who started them, but never their owner.

Owns: the set of running tasks of one subsystem. Invariant: every task is awaited or logged; none is forgotten, and `close` returns
only when all have ended. Not here: restarting (supervisors do that).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

log = logging.getLogger("anvil.tasks")
T = TypeVar("T")


class OwnedTasks:
    """A set of tasks with an owner. Bound: the owner limits what it starts (requests in flight, stripes in flight)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task of its own. An exception nobody awaits is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], abandoned: Callable[[T], Coroutine[Any, Any, None]] | None = None) -> T:
        """Run `work` to its end even if the caller is cancelled: the caller then leaves, the work goes on here, and its result, which
        nobody will take, is given to `abandoned`."""
        task = self.start(work)
        over: asyncio.Future[None] = task.get_loop().create_future()  # what `asyncio.shield` does, for less
        task.add_done_callback(partial(_tell, over))
        try:
            await over
        except asyncio.CancelledError:
            if abandoned is not None:
                task.add_done_callback(lambda done: self._abandon(done, abandoned))
            raise
        try:
            return task.result()
        finally:
            del task  # its exception, which holds this frame

    def _abandon(self, task: asyncio.Task[T], abandoned: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.start(abandoned(task.result()))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("%s: task ended with %r", self._name, error)

    async def close(self, timeout_s: float) -> None:
        """Wait for what runs, at most `timeout_s`; then cancel the rest and wait for that."""
        if self._tasks:
            _, pending = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in pending:
                log.warning("%s: cancelled at shutdown: %r", self._name, task.get_coro())
                task.cancel()
            if pending:
                await asyncio.wait(pending)


async def ended(work: asyncio.Future[Any]) -> None:
    """Wait until `work` has ended, however it did. Cancelling the caller leaves it alone: `asyncio.wait` of one, for a third."""
    if not work.done():
        over: asyncio.Future[None] = work.get_loop().create_future()
        work.add_done_callback(partial(_tell, over))
        await over


def _tell(over: asyncio.Future[None], work: asyncio.Future[Any]) -> None:
    if not over.done():
        over.set_result(None)
