"""The Coalescer: concurrent calls of one kind share one statement, one round trip and one flush.

There is no timer. Whatever queued while the previous batch was in flight is the next batch, so a lone call waits for nobody.
Invariants: a batch belongs to the coalescer, so cancelling a caller cancels its waiting only; two items of one key never share a
batch and keep their order; batches are sorted, so two of them lock rows in the same order; every wait and queue is bounded.

What can go wrong, by SQLSTATE (PostgreSQL manual, appendix A):
    class 22, 23         one row is bad: the batch is bisected until that row fails alone
    class 40             lost a race (deadlock, serialization): the whole batch again, a bounded number of times
    anything else        the statement was rolled back: DatabaseUnavailable, nothing happened
    connection lost      before the statement was sent: again on another connection, as long as the caller waits;
                         afterwards: a read is repeated; a write is settled by reading its rows back, once the old server process
                         is known to be gone. What cannot be found is OutcomeUnknown.
Not here: the statements (`objects`, `uploads`, ...), connecting (`link`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

import asyncpg

from anvil.base.errors import AnvilError, DatabaseUnavailable, InvalidRequest, OperationAborted, OutcomeUnknown, SlowDown
from anvil.base.limits import (
    BATCH_QUEUE_ROWS_MAX,
    BATCH_RETRIES_MAX,
    BATCH_ROWS_MAX,
    BATCH_SCAN_ROWS_MAX,
    DATABASE_WAIT_S,
    STATEMENT_TIMEOUT_S,
)
from anvil.base.underway import waited
from anvil.meta.link import Link, connection_lost, refused_to_encode

log = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")
Rows = Sequence[asyncpg.Record]


@dataclass(frozen=True)
class Query(Generic[I, R]):
    """A statement for a batch. `args` makes its parameters (usually one array each); `results` gives, for each item in order, its
    result, an error for it, or None for "not done" (see Operation)."""

    sql: str
    args: Callable[[Sequence[I]], Sequence[object]]
    results: Callable[[Sequence[I], Rows], Sequence[R | AnvilError | None]]


@dataclass(frozen=True)
class Operation(Generic[I, R]):
    """A kind of call.

    order    the sort key of an item; items of equal order never share a batch. None: any may be together, in order of arrival
    refused  asked about items whose result was None, for the reason. Without it None is a result
    settle   asked after a lost connection which items were committed (None: not found). Without it the query only reads
    """

    name: str
    query: Query[I, R]
    order: Callable[[I], Any] | None = None
    refused: Query[I, R] | None = None
    settle: Query[I, R] | None = None
    rows_max: int = BATCH_ROWS_MAX


class _Waiting(Generic[I, R]):
    __slots__ = ("deadline", "future", "item", "order")

    def __init__(self, item: I, order: Any, future: asyncio.Future[R], deadline: float) -> None:
        self.item = item
        self.order = order
        self.future = future
        self.deadline = deadline

    def succeed(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


Batch = list[_Waiting[I, R]]
Observe = Callable[[str, int], None]
"""Told the kind of call and the number of rows of each batch. Cheap, and never raises."""


class Coalescer(Generic[I, R]):
    """Runs one Operation on one Link. `start` before use, `close` at the end."""

    def __init__(
        self,
        link: Link,
        operation: Operation[I, R],
        *,
        wait_s: float = DATABASE_WAIT_S,
        observe: Observe = lambda statement, rows: None,
    ) -> None:
        self._link = link
        self._observe = observe
        self._operation = operation
        self._wait_s = wait_s
        self._queue: deque[_Waiting[I, R]] = deque()
        self._wake = asyncio.Event()
        self._pump_task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.batches = 0
        self.rows = 0

    def start(self) -> None:
        self._pump_task = asyncio.create_task(self._pump(), name=f"coalescer {self._operation.name}")

    async def close(self) -> None:
        """Let the batch in flight end; fail what still waits."""
        task, self._pump_task = self._pump_task, None
        if task is None:
            return
        for waiting in self._queue:
            waiting.fail(DatabaseUnavailable())
        self._queue.clear()
        self._wake.set()
        await asyncio.wait([task], timeout=STATEMENT_TIMEOUT_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def submit(self, item: I) -> R:
        """Raises SlowDown (queue full), DatabaseUnavailable (nothing happened), OutcomeUnknown, or the item's own error."""
        if self._pump_task is None:
            raise DatabaseUnavailable
        if len(self._queue) >= BATCH_QUEUE_ROWS_MAX:
            raise SlowDown
        order = None if self._operation.order is None else self._operation.order(item)
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.append(_Waiting(item, order, future, self._loop.time() + self._wait_s))
        self._wake.set()
        since = perf_counter()
        try:
            return await future
        finally:
            waited("metadata", since)

    @property
    def name(self) -> str:
        return self._operation.name

    # -- the pump -----------------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        while self._pump_task is not None:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            async with self._link.lock:
                # Taken under the lock: what queued while others used the connection is in the batch too.
                batch = self._take()
                if not batch:
                    continue
                self.batches += 1
                self.rows += len(batch)
                self._observe(self._operation.name, len(batch))
                try:
                    await self._run(batch)
                except asyncio.CancelledError:
                    for waiting in batch:
                        waiting.fail(OutcomeUnknown())
                    raise
                except Exception as error:
                    log.exception("%s: a batch failed in an unforeseen way", self._operation.name)
                    for waiting in batch:
                        waiting.fail(error)
                    self._link.drop()

    def _take(self) -> Batch[I, R]:
        """The next batch: the oldest waiting items, passing over keys that are already in it, sorted."""
        batch: Batch[I, R] = []
        passed: Batch[I, R] = []
        taken: set[Any] = set()
        ordered = self._operation.order is not None
        queue, rows_max = self._queue, self._operation.rows_max
        while queue and len(batch) < rows_max and len(passed) < BATCH_SCAN_ROWS_MAX:
            waiting = queue.popleft()
            if waiting.future.done():  # cancelled before it was sent
                continue
            if ordered and waiting.order in taken:
                passed.append(waiting)
                continue
            if ordered:
                taken.add(waiting.order)
            batch.append(waiting)
        queue.extendleft(reversed(passed))
        if ordered:
            batch.sort(key=lambda waiting: waiting.order)
        return batch

    # -- a batch ------------------------------------------------------------------------------------------------------

    async def _run(self, batch: Batch[I, R]) -> None:
        lost_races = 0
        while batch:
            incarnation = self._link.incarnation
            sent = False
            try:
                statement = await self._link.statement(self._operation.query.sql, min(waiting.deadline for waiting in batch))
                incarnation = self._link.incarnation
                items = [waiting.item for waiting in batch]
                args = self._operation.query.args(items)
                sent = True
                async with asyncio.timeout(STATEMENT_TIMEOUT_S + 5):
                    rows = await statement.fetch(*args)
            except DatabaseUnavailable as error:
                batch = self._expire(batch, error)
                continue
            except Exception as error:
                if connection_lost(error):
                    self._link.drop()
                    if sent and self._operation.settle is not None:
                        await self._settle(batch, incarnation, error)
                        return
                    batch = self._expire(batch, error)
                    continue
                state = (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""
                if state.startswith("40") and lost_races < BATCH_RETRIES_MAX:
                    lost_races += 1
                    continue
                await self._rejected(batch, error, state)
                return
            await self._deliver(batch, self._operation.query.results(items, rows))
            return

    def _expire(self, batch: Batch[I, R], error: BaseException) -> Batch[I, R]:
        """Fail those of the batch that have waited long enough; the others try again."""
        now = self._loop.time()
        rest = []
        for waiting in batch:
            if waiting.deadline <= now:
                failure = DatabaseUnavailable()
                failure.__cause__ = error
                waiting.fail(failure)
            else:
                rest.append(waiting)
        return rest

    async def _rejected(self, batch: Batch[I, R], error: Exception, state: str) -> None:
        """The server (or asyncpg, encoding) refused the statement, and nothing of it happened."""
        if state[:2] in ("22", "23") or refused_to_encode(error):
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._run(batch[:middle])
                await self._run(batch[middle:])
                return
            failure: AnvilError = InvalidRequest("The request contains a value that cannot be stored.")
            if state == "23505":
                failure = OperationAborted()
        elif state.startswith("40"):
            failure = SlowDown()
        elif isinstance(error, asyncpg.PostgresError):
            log.error("%s: PostgreSQL refused a statement: %s %s", self._operation.name, state, error)
            failure = DatabaseUnavailable()
        else:
            raise error
        failure.__cause__ = error
        for waiting in batch:
            waiting.fail(failure)

    async def _settle(self, batch: Batch[I, R], incarnation: str, error: BaseException) -> None:
        """A write was sent and the connection was lost: read back what became of it."""
        assert self._operation.settle is not None
        log.warning("%s: connection lost with %d rows in flight; reading them back", self._operation.name, len(batch))
        items = [waiting.item for waiting in batch]
        deadline = self._loop.time() + self._wait_s
        results: Sequence[R | AnvilError | None] = [None] * len(items)
        try:
            await self._link.bury(incarnation, deadline)
            results = self._operation.settle.results(items, await self._ask(self._operation.settle, items, deadline))
        except (OutcomeUnknown, DatabaseUnavailable) as failure:
            error = failure
        for waiting, result in zip(batch, results, strict=True):
            if result is None:
                unknown = OutcomeUnknown()
                unknown.__cause__ = error
                waiting.fail(unknown)
            elif isinstance(result, AnvilError):
                waiting.fail(result)
            else:
                waiting.succeed(result)

    async def _deliver(self, batch: Batch[I, R], results: Sequence[R | AnvilError | None]) -> None:
        undone: Batch[I, R] = []
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, AnvilError):
                waiting.fail(result)
            elif result is None and self._operation.refused is not None:
                undone.append(waiting)
            else:
                waiting.succeed(result)
        if not undone or self._operation.refused is None:
            return
        items = [waiting.item for waiting in undone]
        reasons: Sequence[R | AnvilError | None] = [None] * len(items)
        try:
            deadline = self._loop.time() + self._wait_s
            reasons = self._operation.refused.results(items, await self._ask(self._operation.refused, items, deadline))
        except DatabaseUnavailable:
            log.warning("%s: could not learn why %d rows were refused", self._operation.name, len(items))
        for waiting, reason in zip(undone, reasons, strict=True):
            if reason is None or isinstance(reason, AnvilError):
                waiting.fail(reason or DatabaseUnavailable())
            else:
                waiting.succeed(reason)

    async def _ask(self, query: Query[I, R], items: Sequence[I], deadline: float) -> Rows:
        return await _repeat(self._link, query.sql, query.args(items), deadline)


async def call(link: Link, sql: str, *args: object, wait_s: float = DATABASE_WAIT_S) -> Rows:
    """One statement outside of any batch. It must bear being run twice: it is repeated when the connection is lost.

    Raises DatabaseUnavailable.
    """
    deadline = asyncio.get_running_loop().time() + wait_s
    async with link.lock:
        return await _repeat(link, sql, args, deadline)


async def _repeat(link: Link, sql: str, args: Sequence[object], deadline: float) -> Rows:
    """Run a statement on as many connections as it takes until `deadline`."""
    lost_races = 0
    while True:
        try:
            statement = await link.statement(sql, deadline)
            async with asyncio.timeout(STATEMENT_TIMEOUT_S + 5):
                return await statement.fetch(*args)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            if connection_lost(error):
                link.drop()
            elif (
                isinstance(error, asyncpg.PostgresError)
                and (error.sqlstate or "").startswith("40")
                and lost_races < BATCH_RETRIES_MAX
            ):
                lost_races += 1
            elif isinstance(error, asyncpg.PostgresError) or refused_to_encode(error):
                log.error("PostgreSQL refused a statement: %s", error)
                raise DatabaseUnavailable from error
            else:
                raise
