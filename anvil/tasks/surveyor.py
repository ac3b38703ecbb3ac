"""When the survey looks where: passes over all partitions, and how fast.

Owns: the schedule. Three occasions: a sweep of everything every SWEEP_EVERY_S (headers only), the scrub that reads every byte once
per SCRUB_PASS_S, and passes that somebody asked for (a drive returned, an operator). Invariants: what is idle stays idle, since a
sweep takes at most SWEEP_BUSY_SHARE of the time, however long it then lasts, and skips partitions that hold nothing; a restart does
not set the scrub back, because the partition whose turn it is follows from the clock alone. Not here: what is looked at
(`tasks/survey.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from anvil.base.errors import DriveFailed
from anvil.base.limits import SCRUB_FASTEST_PARTITION_S, SCRUB_PASS_S, SURVEY_BUSY_SHARE, SWEEP_BUSY_SHARE
from anvil.engine.context import Placement
from anvil.model.layout import PARTITIONS
from anvil.model.records import DriveId
from anvil.tasks.survey import Findings, Survey

log = logging.getLogger("anvil.survey")

TURN_S = SCRUB_PASS_S / PARTITIONS


class SurveyState(msgspec.Struct, frozen=True):
    """Of the last pass, ended or not. `number` counts passes since the start. `left`: partitions still to be looked at."""

    number: int
    deep: bool
    left: int
    findings: Findings

    @property
    def over(self) -> bool:
        return self.left == 0


class Surveyor:
    """`before`: awaited before each partition (it refreshes what is held back). `swept`: told when a pass is over."""

    def __init__(
        self,
        survey: Survey,
        placement: Placement,
        before: Callable[[], Awaitable[None]],
        swept: Callable[[], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._survey = survey
        self._placement = placement
        self._before = before
        self._swept = swept
        self._now_s = now_s
        self._readable: frozenset[DriveId] | None = None
        self._asked: set[bool] = set()  # passes to come: deep or not
        self._hurry = False
        self._deep = False
        self._todo: deque[int] = deque()
        self._number = 0
        self._findings = Findings()
        self._scrubbed: int | None = None
        self.wake = asyncio.Event()

    @property
    def state(self) -> SurveyState:
        return SurveyState(self._number, self._deep, len(self._todo), self._findings)

    def ask(self, reason: str, *, deep: bool = False) -> int:
        """Have a pass made soon, from the beginning. Returns its number (a later one may take its place, and includes it)."""
        log.info("a survey of all shards begins soon", extra={"reason": reason, "deep": deep})
        self._asked.add(deep)
        self.wake.set()
        return self._number + 1

    def watch(self) -> frozenset[DriveId]:
        """The drives that came back since the last call. What they bring may be deleted by now, and what they lack was written without
        them, so a pass is made."""
        readable = frozenset(drive.drive_id for drive in self._placement.drives.values() if drive.readable)
        came = readable - self._readable if self._readable is not None else frozenset()
        self._readable = readable
        if came:
            self.ask(f"back: {', '.join(self._placement.drives[drive_id].label for drive_id in came)}")
        return came

    async def sweep(self) -> bool:
        """One pass, or the rest of one that was interrupted. True when another was asked for. Raises DatabaseUnavailable."""
        if not self._todo or self._asked:
            await self._begin()
        share = SURVEY_BUSY_SHARE if self._hurry else SWEEP_BUSY_SHARE
        while self._todo and not self._asked:
            begin = time.monotonic()
            await self._before()
            self._findings.add(await self._survey.partition(self._todo[0], deep=self._deep))
            self._todo.popleft()
            took_s = time.monotonic() - begin
            await asyncio.sleep(max(took_s * (1 / share - 1), SCRUB_FASTEST_PARTITION_S if self._deep else 0.0))
        if self._asked:
            return True
        self._ended()
        return False

    async def _begin(self) -> None:
        self._hurry = bool(self._asked)
        self._deep = True in self._asked or (self._deep and bool(self._todo))  # a deep pass under way is not given up
        held: set[int] = set()
        for drive in self._placement.drives.values():
            try:
                held |= await drive.partitions() if drive.readable else frozenset()
            except DriveFailed as error:
                log.warning("survey of %s: %s", drive.label, error)
        self._asked.clear()  # a deep pass answers both
        self._todo = deque(sorted(held))
        self._findings = Findings()
        self._number += 1

    def _ended(self) -> None:
        found = self._findings
        remarkable = found.orphans or found.missing or found.corrupt or found.superseded
        level = logging.INFO if self._hurry or remarkable else logging.DEBUG
        log.log(level, "the survey is over", extra={"deep": self._deep, **msgspec.structs.asdict(found)})
        self._swept()

    async def scrub(self) -> bool:
        """Read every byte of the partitions whose turn came since the last call. Raises DatabaseUnavailable."""
        turn = int(self._now_s() / TURN_S)
        if self._scrubbed is None or self._scrubbed > turn:
            self._scrubbed = turn - 1
        self._scrubbed = max(self._scrubbed, turn - PARTITIONS)
        while self._scrubbed < turn:
            await self._before()
            await self._survey.partition((self._scrubbed + 1) % PARTITIONS, deep=True)
            self._scrubbed += 1
            await asyncio.sleep(SCRUB_FASTEST_PARTITION_S)
        return False
