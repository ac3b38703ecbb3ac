"""Tasks of the queue in the global database, as frozen values. Not here: claiming and finishing them (`meta/tasks.py`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

Payload = dict[str, Any]  # JSON; `region` says whose nodes may claim the task, without it all may


class TaskStatus(StrEnum):
    """DEAD: given up after its last attempt; CANCELLED: by an operator, who may have either tried again."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Task(msgspec.Struct, frozen=True):
    """A task that was claimed. `lease_token` is this claim's: whoever claims it later has another. `attempt`: from 1."""

    task_id: int
    type: str
    payload: Payload
    attempt: int
    lease_token: bytes


class TaskRow(msgspec.Struct, frozen=True):
    """A task as an operator sees it. `run_us`: not to be claimed before."""

    task_id: int
    type: str
    payload: Payload
    status: TaskStatus
    priority: int
    attempt: int
    max_attempts: int
    run_us: int
    created_us: int
    locked_by: str | None = None
    dedupe_key: str | None = None
    last_error: str | None = None
    finished_us: int | None = None


class TaskCount(msgspec.Struct, frozen=True):
    """How many tasks of a type are in a state, and of pending ones for how long the oldest could have been claimed."""

    type: str
    status: TaskStatus
    count: int
    oldest_s: float | None = None
