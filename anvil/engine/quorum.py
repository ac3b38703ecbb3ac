"""Work for the shards of one blob, on all their drives at once: waiting for it without waiting for the slowest.

Owns: what counts as done, and for how long stragglers are waited for. Invariant: `settled` returns when all has ended, or STRAGGLER_S after
the quorum was there; a straggler goes on by itself. Not here: what that means for the blob (blobs_write.py), when a drive counts as
stalled (`shards/waiting.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter

from anvil.base.errors import AnvilError, Unavailable
from anvil.base.limits import STRAGGLER_S
from anvil.base.types import Told
from anvil.base.underway import waited


class Step:
    """One thing to do for each of some shards, known by their indexes."""

    __slots__ = ("_over", "_quorum", "_timer", "errors", "good", "landed", "left")

    def __init__(self, quorum: int) -> None:
        self.left: set[int] = set()  # under way; after `settled` the stragglers
        self.good: set[int] = set()
        self.errors: dict[int, BaseException] = {}  # of those that failed, where they said why
        self.landed: Callable[[int], object] | None = None  # told of each straggler that comes to a good end after all
        self._quorum = quorum
        self._over: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, index: int) -> Told:
        """It is under way; whoever does it is given what is returned, to tell how it ended."""
        self.left.add(index)
        return partial(self._ended, index)

    def watch(self, index: int, task: asyncio.Task[bool]) -> None:
        """It is under way in that task, which returns whether it is done."""
        self.left.add(index)
        task.add_done_callback(partial(self._task_ended, index))

    async def settled(self) -> None:
        """Wait, and raise what is no failure of a drive: nobody writes behind its back then."""
        since = perf_counter()
        if self.left:
            self._over = asyncio.get_running_loop().create_future()
            self._look()
            try:
                await self._over
            finally:
                if self._timer is not None:
                    self._timer.cancel()
        waited("drives", since)
        for error in self.errors.values():
            if not isinstance(error, Unavailable):
                raise error.again() if isinstance(error, AnvilError) else error

    def _task_ended(self, index: int, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            self._ended(index, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            # Its frames hold what it wrote, and this object is kept until the next step, for which a client may take its time.
            self._ended(index, error.again() if isinstance(error, AnvilError) else error)
        else:
            self._ended(index, None, task.result())

    def _ended(self, index: int, error: BaseException | None, done: bool = True) -> None:
        self.left.discard(index)
        if error is not None:
            self.errors[index] = error
        elif done:
            self.good.add(index)
            if self.landed is not None:
                self.landed(index)
        if self._over is not None:
            self._look()

    def _look(self) -> None:
        if not self.left:
            self._end()
        elif self._timer is None and len(self.good) >= self._quorum:
            self._timer = asyncio.get_running_loop().call_later(STRAGGLER_S, self._end)

    def _end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
