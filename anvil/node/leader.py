"""What one node does for all of its region: looks after states and layout, and sees to it that what is due stands in the queue.

Owns: the schedule. Invariants: a task says only "do this for that slice"; what is due is asked of the regional database, so a queue that
was lost, or that two leaders fill at once, costs nothing but a look (`dedupe_key`). Not here: doing the tasks (`node/upkeep.py`), who
leads (`node/membership.py`), the layout (`node/layouts.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from anvil.base.config import Config
from anvil.base.errors import AnvilError
from anvil.base.limits import (
    BUCKET_CHANGE_STALE_S,
    COLLECT_EVERY_S,
    FOLD_USAGE_EVERY_S,
    HOLD_SETTLE_S,
    LAYOUT_SLICES,
    METADATA_DUMP_LOOK_S,
    RAISE_EVERY_S,
    SWEEP_EVERY_S,
    TASKS_KEEP_S,
    UPLOADS_EVERY_S,
    WORK_SLICES,
)
from anvil.meta.cluster import ClusterTables
from anvil.meta.regional import RegionalStore
from anvil.meta.tasks import TaskQueue
from anvil.model.cluster import ClusterView
from anvil.model.layout import slice_partitions
from anvil.model.scheme import Scheme
from anvil.model.task import Payload
from anvil.node.dumping import dump_due
from anvil.node.layouts import LayoutKeeper
from anvil.node.raising import RAISED, calm
from anvil.node.region import Region

log = logging.getLogger("anvil.leader")


class Leader:
    """`now_s`: any monotonic clock."""

    def __init__(
        self,
        config: Config,
        metadata: RegionalStore,
        region: Region,
        queue: TaskQueue,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = config.node.region
        self._grace_s = config.storage.gc_grace_s
        self._dump_s = config.storage.metadata_dump_s
        self._metadata = metadata
        self._here = region
        self._queue = queue
        self._now_s = now_s
        self._due: dict[str, float] = {}
        self._hurry = False  # the next survey
        self._scheme: Scheme | None = None  # at the last look
        self._keeper = LayoutKeeper(config.storage, config.cluster.repair_delay_s, self._move)

    async def lead(self, tables: ClusterTables, view: ClusterView) -> None:
        """One look. Raises DatabaseUnavailable."""
        for node_id in await tables.mark_down():
            node = view.node(node_id)
            log.warning("a node is down", extra={"node": node.name if node else node_id.hex()})
        self._tables = tables
        if await self._keeper.step(tables, view):
            # What was moved is there twice now. Everybody must have seen that the old layout is gone, else the copies stay.
            self._due["survey"] = min(self._due.get("survey", 0.0), self._now_s() + HOLD_SETTLE_S)
            self._hurry = True
        if self._is_due("relay", COLLECT_EVERY_S):
            await self._relay()
        if self._is_due("usage", FOLD_USAGE_EVERY_S):
            await self._ask("usage")
        if self._is_due("buckets", BUCKET_CHANGE_STALE_S):
            await self._ask("buckets")
        if self._is_due("uploads", UPLOADS_EVERY_S):
            await self._ask("uploads")
        if self._is_due("survey", SWEEP_EVERY_S):
            await self._ask("survey", range(LAYOUT_SLICES), LAYOUT_SLICES, hurry=int(self._hurry))
            self._hurry = False
        if self._here.scheme != self._scheme:
            self._scheme = self._here.scheme
            self._due.pop("raise", None)
        if self._is_due("raise", RAISE_EVERY_S):
            await self._raise()
        if self._is_due("dump", METADATA_DUMP_LOOK_S) and await dump_due(self._metadata, self._dump_s):
            await self._ask("dump")
        if self._is_due("queue", COLLECT_EVERY_S):
            await self._queue.reap()
            await self._queue.prune(TASKS_KEEP_S)

    def _is_due(self, what: str, every_s: float) -> bool:
        now = self._now_s()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every_s
        return True

    async def _raise(self) -> None:
        """Have older objects written anew when the scheme was another since they were last brought to it, and nothing else is going on."""
        noted, scheme = await self._metadata.noted(RAISED), str(self._here.scheme)
        if noted == scheme:
            return
        if noted:
            await self._metadata.note(RAISED, "")  # what is written from now on may have to be raised when that scheme is back
        if calm(self._here):
            await self._ask("raise")

    async def _relay(self) -> None:
        """From the regional outbox and the debts to tasks."""
        garbage, debts = await self._metadata.due_slices(WORK_SLICES, self._grace_s)
        await self._ask("collect", garbage, WORK_SLICES)
        await self._ask("repair", debts, WORK_SLICES, priority=1)

    async def _move(self, version: int, slices: Sequence[int]) -> None:
        held = await self._held()
        empty = [number for number in slices if held is not None and held.isdisjoint(slice_partitions(number))]
        for number in empty:  # nothing is there, and nobody writes by an older layout
            await self._tables.slice_done(version, number, 0, 0)
        left = [number for number in slices if number not in empty]
        await self._ask("rebalance", left, LAYOUT_SLICES, priority=1, version=version)

    async def _held(self) -> frozenset[int] | None:
        """The partitions of which any drive holds anything; None where one cannot be asked."""
        held: set[int] = set()
        for drive in self._here.placement.drives.values():
            try:
                held |= await drive.partitions()
            except AnvilError:
                return None
        return frozenset(held)

    async def _ask(self, kind: str, numbers: Sequence[int] = (0,), slices: int = 1, *, priority: int = 0, **more: int) -> None:
        """Have somebody do that for each of these slices, unless it stands in the queue already."""
        tasks: list[tuple[Payload, str | None]] = [
            ({"region": self._region, "slice": number, "slices": slices, **more}, f"{kind}/{self._region}/{number}")
            for number in numbers
        ]
        if tasks:
            await self._queue.enqueue_all(kind, tasks, priority=priority)
