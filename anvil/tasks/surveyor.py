"""When the survey looks where: passes over all partitions, and how fast.

Owns: the schedule. Three occasions: a sweep of everything every SWEEP_EVERY_S (headers only), the scrub that reads every byte once
per SCRUB_PASS_S, and passes that somebody asked for (a drive returned, an operator). Where there are other nodes, the sweep of everything
is shared out by slices, as tasks; each node scrubs its own drives, and passes that were asked for cover what those hold. Invariants: what
is idle stays idle, since a sweep takes at most SWEEP_BUSY_SHARE of the time, however long it then lasts, and skips partitions that hold
nothing; a restart does not set the scrub back, because the partition whose turn it is follows from the clock alone; what is misplaced is
moved at once, unless a change of layout is under way, which moves everything anyway. Not here: what is looked at (`tasks/survey.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import msgspec

from anvil.base.limits import SCRUB_FASTEST_PARTITION_S, SCRUB_PASS_S, SURVEY_BUSY_SHARE, SWEEP_BUSY_SHARE
from anvil.engine.context import Placement
from anvil.engine.ports import Drive
from anvil.model.layout import PARTITIONS, slice_partitions
from anvil.model.records import DriveId
from anvil.tasks.inventory import Held, Together, held
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
    """`before`: awaited before each look (it refreshes what is held back). `swept`: told when a pass is over. `move`: brings the
    shards of a partition home."""

    def __init__(
        self,
        survey: Survey,
        placement: Placement,
        before: Callable[[], Awaitable[None]],
        swept: Callable[[], None],
        now_s: Callable[[], float] = time.time,
        move: Callable[[int], Awaitable[object]] | None = None,
    ) -> None:
        self._survey = survey
        self._placement = placement
        self._before = before
        self._swept = swept
        self._now_s = now_s
        self._move = move
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

    def _local(self) -> list[Drive]:
        return [drive for drive in self._placement.drives.values() if drive.local]

    def watch(self) -> frozenset[DriveId]:
        """The drives of this node that came back since the last call. What they bring may be deleted by now, and what they lack was written
        without them, so a pass is made."""
        readable = frozenset(drive.drive_id for drive in self._local() if drive.readable)
        came = readable - self._readable if self._readable is not None else frozenset()
        self._readable = readable
        if came:
            self.ask(f"back: {', '.join(self._placement.drives[drive_id].label for drive_id in came)}")
        return came

    async def sweep(self) -> bool:
        """One pass, or the rest of one that was interrupted. True when another was asked for. Raises DatabaseUnavailable."""
        if not self._todo or self._asked:
            if self._placement.remote and not self._asked:
                return False
            await self._begin()
        together = Together()
        while self._todo and not self._asked:
            batch = [*islice(self._todo, 1 if self._deep else together.count)]
            together.met(*await self._look(batch, self._findings, hurry=self._hurry, deep=self._deep))
            for _ in batch:
                self._todo.popleft()
        if self._asked:
            return True
        self._ended()
        return False

    async def slice(self, number: int, *, hurry: Callable[[], bool] = lambda: False) -> Findings:
        """Sweep the partitions of one slice, whoever's turn it is. `hurry`: whether somebody waits for it, asked before each. Raises
        DatabaseUnavailable."""
        findings, known = Findings(), await held(self._placement.drives.values())
        together, waiting = Together(), [*slice_partitions(number)]
        while waiting:
            batch, waiting = waiting[: together.count], waiting[together.count :]
            together.met(*await self._look(batch, findings, hurry=hurry(), deep=False, known=known))
        return findings

    async def _look(
        self, partitions: Sequence[int], findings: Findings, *, hurry: bool, deep: bool, known: Held | None = None
    ) -> tuple[int, float]:
        """Some partitions, and a rest as long as its share of the time demands. Returns how many shards were met, and how long it took."""
        begin = time.monotonic()
        found = await self._partitions(partitions, deep=deep, known=known)
        findings.add(found)
        took_s = time.monotonic() - begin
        share = SURVEY_BUSY_SHARE if hurry else SWEEP_BUSY_SHARE
        await asyncio.sleep(max(took_s * (1 / share - 1), SCRUB_FASTEST_PARTITION_S if deep else 0.0))
        return found.shards, took_s

    async def _partitions(self, partitions: Sequence[int], *, deep: bool, known: Held | None = None) -> Findings:
        await self._before()
        findings, misplaced = await self._survey.partitions(partitions, deep=deep, known=known)
        if self._move is not None and len(self._placement.layouts) == 1:
            for partition in sorted(misplaced):
                await self._move(partition)
        return findings

    async def _begin(self) -> None:
        self._hurry = bool(self._asked)
        self._deep = True in self._asked or (self._deep and bool(self._todo))  # a deep pass under way is not given up
        todo = await self._concerned()
        self._asked.clear()  # a deep pass answers both
        self._todo = deque(sorted(todo))
        self._findings = Findings()
        self._number += 1

    async def _concerned(self) -> set[int]:
        """The partitions of which a drive of this node holds anything, or should: one that was emptied has lost what others still hold."""
        local = self._local()
        known = await held(self._placement.drives.values())
        anywhere = set[int]().union(*known.values())
        names = {drive.drive_id for drive in local if drive.readable}
        mine = set[int]().union(*(numbers for drive_id, numbers in known.items() if drive_id in names))
        return mine | {number for number in anywhere - mine if not names.isdisjoint(self._placement.primaries(number))}

    def _ended(self) -> None:
        found = self._findings
        remarkable = found.orphans or found.missing or found.corrupt or found.superseded or found.misplaced
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
            number = (self._scrubbed + 1) % PARTITIONS
            if self._placement.remote:
                # All nodes are at this one now: each acts on what it has, and nobody moves what all of them would move.
                await self._before()
                await self._survey.partition(number, deep=True, mine=True)
            else:
                await self._partitions((number,), deep=True)
            self._scrubbed += 1
            await asyncio.sleep(SCRUB_FASTEST_PARTITION_S)
        return False
