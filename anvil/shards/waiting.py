"""Who waits for a drive, and whether it answers.

A disk can hang: a call to the kernel then does not fail, it does not return. Owns: the count of calls under way on one drive in this
process, and the verdict *stalled*: the oldest of them has been the oldest for longer than `stalled_s`. Invariants: at that moment
everybody who waits is told DriveStalled, so nobody waits longer; what hangs keeps its descriptors and buffers until it returns; the
drive is well again when all that was under way at the verdict has come back. Not here: what a stalled drive may be used for (drive.py).

The age of a call counts from when it became the oldest, not from when it was queued: a long queue that moves is no hang.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from anvil.base.errors import DriveStalled
from anvil.base.limits import DRIVE_STALLED_S

log = logging.getLogger(__name__)

GiveUp = Callable[[DriveStalled], None]


class Waiting:
    """Used from one event loop."""

    def __init__(self, label: str, stalled_s: float = DRIVE_STALLED_S) -> None:
        self.stalled = False
        self._label = label
        self._stalled_s = stalled_s
        self._under_way: OrderedDict[int, GiveUp | None] = OrderedDict()
        self._waiters: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._oldest = 0
        self._since = 0.0  # when the oldest became that
        self._last = 0  # the youngest that was under way when the drive was found stalled
        self._suspect = 0  # a call that was found late once
        self._timer: asyncio.TimerHandle | None = None

    def error(self) -> DriveStalled:
        return DriveStalled(drive=self._label)

    def check(self) -> None:
        """Raises DriveStalled while the drive is stalled."""
        if self.stalled:
            raise self.error()

    def begin(self, give_up: GiveUp | None = None) -> int:
        """A call goes off; what is returned is its number, for `end`. `give_up` is told if the drive is found stalled before that."""
        self._number += 1
        if not self._under_way:
            self._oldest, self._since = self._number, self._loop.time()
        self._under_way[self._number] = give_up
        if self._timer is None and not self.stalled:
            self._timer = self._loop.call_later(self._stalled_s, self._look)
        return self._number

    def end(self, number: int) -> None:
        """It came back, however it went."""
        del self._under_way[number]
        if number == self._oldest and self._under_way:
            self._oldest, self._since = next(iter(self._under_way)), self._loop.time()
        if self.stalled and (not self._under_way or self._oldest > self._last):
            self.stalled = False
            log.warning("drive %s answers again", self._label)
            if self._under_way:
                self._timer = self._loop.call_later(self._stalled_s, self._look)

    def add(self, waiter: asyncio.Future[Any]) -> None:
        """A future to be failed with DriveStalled if the drive is found stalled before `discard`."""
        self._waiters.add(waiter)

    def discard(self, waiter: asyncio.Future[Any]) -> None:
        self._waiters.discard(waiter)

    def _look(self) -> None:
        self._timer = None
        if not self._under_way:
            return
        left_s = self._since + self._stalled_s - self._loop.time()
        if left_s <= 0 and self._suspect != self._oldest:
            # Was it the drive, or this process, which slept and has not yet seen what came back?
            self._suspect, left_s = self._oldest, self._stalled_s / 20
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
            return
        self.stalled = True
        self._last = self._number
        log.error(
            "drive %s does not answer: %d calls are under way, the oldest for over %g s; it is left alone until they come back",
            self._label,
            len(self._under_way),
            self._stalled_s,
        )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self.error())
        for give_up in list(self._under_way.values()):
            if give_up is not None:
                give_up(self.error())
