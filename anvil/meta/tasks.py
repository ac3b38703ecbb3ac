"""The task queue in the global database: who does which piece of work, once at a time.

Owns: the table `tasks`. Invariants: a task is claimed by one statement, which passes over what others are claiming, so none is given to
two; it is finished only by who holds its present lease token, so a worker that wakes up after its lease was given away changes nothing;
of one dedupe key at most one task is pending or running. A task only says what to do: handlers look for themselves what is true, and a
task that is lost, late or done twice does no harm. Every statement may be repeated. Not here: handlers, and the loop of a worker
(`tasks/`): polling with jitter, heartbeats at a third of the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from anvil.base.limits import TASK_ATTEMPTS_MAX, TASK_DEAD_KEEP_S, TASK_ERROR_CHARS_MAX, TASK_RETRY_S_MAX, TASKS_LISTED_MAX
from anvil.meta.coalesce import Rows
from anvil.model.task import Payload, Task, TaskCount, TaskRow, TaskStatus

_CHANNEL: Final = "anvil_tasks"

# Waiting grows with the fourth power of the attempts, and is spread so that what failed together does not come back together.
_WAIT: Final = f"""make_interval(secs => least(power(attempt, 4), {TASK_RETRY_S_MAX}) * (0.75 + 0.25 * random()))"""

# A notification takes a lock of the whole server at commit: it is sent only where nothing was due before, to workers that may be idle.
# Those that have work ask for more by themselves, and all poll.
_ENQUEUE_SQL: Final = f"""
    WITH made AS (
        INSERT INTO tasks (type, payload, dedupe_key, run_at, priority, max_attempts)
        SELECT $1, i.payload, i.dedupe_key, clock_timestamp() + make_interval(secs => $4), $5, $6
        FROM unnest($2::jsonb[], $3::text[]) AS i (payload, dedupe_key) ORDER BY i.dedupe_key
        ON CONFLICT (dedupe_key) WHERE dedupe_key IS NOT NULL AND status IN ('pending', 'running') DO NOTHING
        RETURNING task_id
    )
    SELECT m.number, CASE WHEN m.number > 0 AND $4 <= 0 AND (
            SELECT true FROM tasks WHERE status = 'pending' AND run_at <= statement_timestamp() LIMIT 1) IS NULL
        THEN pg_notify('{_CHANNEL}', '') END
    FROM (SELECT count(*) AS number FROM made) AS m"""

_CLAIM_SQL: Final = """
    WITH due AS MATERIALIZED (
        SELECT task_id FROM tasks
        WHERE status = 'pending' AND run_at <= statement_timestamp() AND type = ANY ($2::text[])
            AND coalesce(payload ->> 'region', $5) = $5
        ORDER BY priority DESC, run_at, task_id LIMIT $3 FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks t SET status = 'running', attempt = t.attempt + 1, locked_by = $1, lease_token = uuid_send(gen_random_uuid()),
        lease_until = clock_timestamp() + make_interval(secs => $4)
    FROM due WHERE t.task_id = due.task_id
    RETURNING t.task_id, t.type, t.payload, t.attempt, t.lease_token, t.priority, t.run_at"""

_HEARTBEAT_SQL: Final = """
    UPDATE tasks t SET lease_until = clock_timestamp() + make_interval(secs => $3)
    FROM unnest($1::bigint[], $2::bytea[]) AS i (task_id, lease_token)
    WHERE t.task_id = i.task_id AND t.lease_token = i.lease_token AND t.status = 'running' RETURNING t.task_id"""

# The token stays when a task leaves its worker, so that a repeated statement finds that it was this claim which did it.
_FINISHED: Final = (
    "SELECT status FROM ended UNION ALL SELECT status FROM tasks WHERE task_id = $1 AND lease_token = $2 AND status <> 'running'"
)
_COMPLETE_SQL: Final = f"""
    WITH ended AS (
        UPDATE tasks SET status = 'completed', lease_until = NULL, finished_us = now_us(), last_error = NULL
        WHERE task_id = $1 AND lease_token = $2 AND status = 'running' RETURNING status
    ) {_FINISHED}"""
_GIVEN_UP: Final = f"""
    status = CASE WHEN attempt >= max_attempts THEN 'dead' ELSE 'pending' END,
    finished_us = CASE WHEN attempt >= max_attempts THEN now_us() END,
    run_at = clock_timestamp() + {_WAIT}, lease_until = NULL, locked_by = NULL"""
_FAIL_SQL: Final = f"""
    WITH ended AS (
        UPDATE tasks SET {_GIVEN_UP}, last_error = $3
        WHERE task_id = $1 AND lease_token = $2 AND status = 'running' RETURNING status
    ) {_FINISHED}"""
_REAP_SQL: Final = f"""
    WITH ended AS MATERIALIZED (
        SELECT task_id FROM tasks WHERE status = 'running' AND lease_until < statement_timestamp() FOR UPDATE SKIP LOCKED
    )
    UPDATE tasks SET {_GIVEN_UP}, lease_token = NULL, last_error = 'the lease of ' || coalesce(locked_by, '?') || ' ran out'
    WHERE task_id IN (SELECT task_id FROM ended) RETURNING status"""

_PRUNE_SQL: Final = """
    DELETE FROM tasks WHERE (status = 'completed' AND finished_us < now_us() - $1::bigint)
        OR (status = 'dead' AND finished_us < now_us() - greatest($1::bigint, $2::bigint)) RETURNING true"""
# What an operator gave up. In the table it is dead: the release before, which may run beside, knows no other word for it. A task that fails
# keeps its lease token.
_STATUS: Final = "CASE WHEN status = 'dead' AND lease_token IS NULL AND last_error = 'cancelled' THEN 'cancelled' ELSE status END"
_LIST_SQL: Final = f"""
    SELECT task_id, type, payload, {_STATUS} AS status, priority, attempt, max_attempts,
        (extract(epoch FROM run_at) * 1000000)::bigint AS run_us, created_us, locked_by, dedupe_key, last_error, finished_us
    FROM tasks WHERE ($1::text IS NULL OR {_STATUS} = $1) AND ($2::text IS NULL OR type = $2) ORDER BY task_id DESC LIMIT $3"""
_RETRY_SQL: Final = """
    UPDATE tasks t SET status = 'pending', run_at = clock_timestamp(), finished_us = NULL, lease_token = NULL,
        attempt = CASE t.status WHEN 'dead' THEN 0 ELSE t.attempt END
    WHERE t.task_id = $1 AND (t.status = 'pending' OR (t.status = 'dead' AND NOT EXISTS (
        SELECT FROM tasks o WHERE o.dedupe_key = t.dedupe_key AND o.status IN ('pending', 'running')))) RETURNING true"""
_CANCEL_SQL: Final = """
    UPDATE tasks SET status = 'dead', lease_token = NULL, lease_until = NULL, locked_by = NULL, finished_us = now_us(),
        last_error = 'cancelled'
    WHERE task_id = $1 AND status IN ('pending', 'running') RETURNING true"""
_COUNTS_SQL: Final = f"""
    SELECT type, shown AS status, count(*) AS count,
        CASE shown WHEN 'pending' THEN greatest(extract(epoch FROM clock_timestamp() - min(run_at)), 0)::float8 END AS oldest_s
    FROM (SELECT type, run_at, {_STATUS} AS shown FROM tasks) AS t GROUP BY type, shown ORDER BY type, shown"""


class TaskQueue:
    """`query` runs a statement that may be run twice on the global database: it shares the catalog's connection. `woken` is set when tasks
    came while none was due; a hint, that polling does not need. All calls raise DatabaseUnavailable."""

    def __init__(self, query: Callable[..., Awaitable[Rows]]) -> None:
        self._query = query
        self.woken = asyncio.Event()

    async def listen(self, connection: asyncpg.Connection) -> None:
        """For Link's on_connect."""
        await connection.add_listener(_CHANNEL, lambda *_: self.woken.set())

    async def enqueue(
        self,
        kind: str,
        payload: Payload,
        *,
        dedupe_key: str | None = None,
        delay_s: float = 0.0,
        priority: int = 0,
        max_attempts: int = TASK_ATTEMPTS_MAX,
    ) -> bool:
        """`kind`: the task's type. False: a task with that key is pending or running."""
        tasks = [(payload, dedupe_key)]
        return await self.enqueue_all(kind, tasks, delay_s=delay_s, priority=priority, max_attempts=max_attempts) > 0

    async def enqueue_all(
        self,
        kind: str,
        tasks: Sequence[tuple[Payload, str | None]],
        *,
        delay_s: float = 0.0,
        priority: int = 0,
        max_attempts: int = TASK_ATTEMPTS_MAX,
    ) -> int:
        """Several at once, each with its dedupe key. Returns how many there were none of yet."""
        payloads, keys = [msgspec.json.encode(payload).decode() for payload, _ in tasks], [key for _, key in tasks]
        rows = await self._query(_ENQUEUE_SQL, kind, payloads, keys, delay_s, priority, max_attempts)
        return int(rows[0]["number"])

    async def claim(self, worker: str, types: Sequence[str], limit: int, lease_s: float, region: str) -> Sequence[Task]:
        """Up to `limit` tasks that are due, the most urgent first: of that region or of none. They are this worker's for `lease_s`."""
        rows = await self._query(_CLAIM_SQL, worker, list(types), limit, lease_s, region)
        ordered = sorted(rows, key=lambda row: (-row["priority"], row["run_at"], row["task_id"]))
        return [
            Task(row["task_id"], row["type"], msgspec.json.decode(row["payload"]), row["attempt"], row["lease_token"])
            for row in ordered
        ]

    async def heartbeat(self, tasks: Sequence[Task], lease_s: float) -> frozenset[int]:
        """Renew the leases. Returns the ids of those that are still held: work on the others is to be dropped."""
        ids, tokens = [task.task_id for task in tasks], [task.lease_token for task in tasks]
        return frozenset(row[0] for row in await self._query(_HEARTBEAT_SQL, ids, tokens, lease_s))

    async def complete(self, task: Task) -> bool:
        """False: it was not held any more, and somebody else does it again."""
        return bool(await self._query(_COMPLETE_SQL, task.task_id, task.lease_token))

    async def fail(self, task: Task, error: str) -> bool:
        """To be tried again after attempt^4 seconds, TASK_RETRY_S_MAX at most; after its last attempt it is dead: True. Nothing happens to
        one that is not held any more."""
        rows = await self._query(_FAIL_SQL, task.task_id, task.lease_token, error[:TASK_ERROR_CHARS_MAX])
        return [row[0] for row in rows] == [TaskStatus.DEAD]

    async def reap(self) -> int:
        """Take back what workers left behind whose lease ran out: as if it had failed. Returns how many."""
        return len(await self._query(_REAP_SQL))

    async def prune(self, older_than_s: float) -> int:
        """Forget completed tasks; dead ones after TASK_DEAD_KEEP_S. Returns how many."""
        return len(await self._query(_PRUNE_SQL, int(older_than_s * 1_000_000), int(TASK_DEAD_KEEP_S * 1_000_000)))

    # -- for operators ------------------------------------------------------------------------------------------------

    async def list(
        self, status: TaskStatus | None = None, type: str | None = None, limit: int = TASKS_LISTED_MAX
    ) -> Sequence[TaskRow]:
        """The newest first, TASKS_LISTED_MAX at most."""
        rows = await self._query(_LIST_SQL, status and status.value, type, min(limit, TASKS_LISTED_MAX))
        return [TaskRow(**_fields(row)) for row in rows]

    async def retry(self, task_id: int) -> bool:
        """Have a dead or cancelled task tried again from its first attempt, or a pending one now. False: it is none of these, or its like
        is active."""
        return bool(await self._query(_RETRY_SQL, task_id))

    async def cancel(self, task_id: int) -> bool:
        """Give up a task that is pending or running; its worker learns of it by its heartbeat. False: it is neither."""
        return bool(await self._query(_CANCEL_SQL, task_id))

    async def counts(self) -> Sequence[TaskCount]:
        """For metrics."""
        rows = await self._query(_COUNTS_SQL)
        return [TaskCount(**{**row, "status": TaskStatus(row["status"])}) for row in rows]


def _fields(row: asyncpg.Record) -> dict[str, Any]:
    return {**row, "payload": msgspec.json.decode(row["payload"]), "status": TaskStatus(row["status"])}
