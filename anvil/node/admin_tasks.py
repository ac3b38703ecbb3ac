"""`anvil admin task` over the queue of the deployment: that part of the AdminOps of `cli/admin_ops.py`.

Invariant: what an operator changes stands in the audit. Not here: the queue (`meta/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from anvil.base.errors import Conflict
from anvil.cli.admin_ops import TaskInfo
from anvil.meta.tasks import TaskQueue
from anvil.model.task import TaskStatus

Audit = Callable[[str, str, str], Awaitable[None]]
"""action, resource, result"""


class TaskAdmin:
    def __init__(self, queue: TaskQueue, audit: Audit) -> None:
        self._queue = queue
        self._audit = audit

    async def task_list(self, status: str | None, kind: str | None, limit: int) -> Sequence[TaskInfo]:
        return [
            TaskInfo(
                task.task_id,
                task.type,
                str(task.status),
                task.payload,
                task.attempt,
                task.max_attempts,
                task.locked_by or "",
                task.last_error or "",
            )
            for task in await self._queue.list(TaskStatus(status) if status else None, kind, limit)
        ]

    async def task_retry(self, number: int) -> None:
        if not await self._queue.retry(number):
            raise Conflict(f"task {number} is neither dead nor waiting, or its like is: see `anvil admin task list`")
        await self._audit("task:retry", str(number), "ok")

    async def task_cancel(self, number: int) -> None:
        if not await self._queue.cancel(number):
            raise Conflict(f"task {number} neither waits nor runs: see `anvil admin task list`")
        await self._audit("task:cancel", str(number), "ok")
