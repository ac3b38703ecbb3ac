"""Background work that repeats: collector, repair, survey, folding of usage.

Owns: pacing, back-off and the count of results. Invariant: one run of a task at a time; a failing task is logged, counted and tried
again with growing pauses, and never takes the others with it. Not here: the work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from anvil.base.errors import Unavailable
from anvil.base.limits import TASK_BACKOFF_S_MAX

log = logging.getLogger("anvil.tasks")

Observe = Callable[[str, str, float], None]
"""task name, result (`ok`, `retry`, `failed`), seconds"""


class Periodic:
    """`work` returns True when there is more to be done at once. `every_s` lies between two runs otherwise, less when
    `wake` is set meanwhile."""

    def __init__(
        self, name: str, every_s: float, work: Callable[[], Awaitable[bool]], observe: Observe, wake: asyncio.Event | None = None
    ) -> None:
        self.name = name
        self._every_s = every_s
        self._work = work
        self._observe = observe
        self._wake = wake or asyncio.Event()

    async def run(self) -> None:
        """For ever, until cancelled."""
        failures = 0
        while True:
            begin = time.monotonic()
            more = False
            try:
                more = await self._work()
                failures = 0
                self._observe(self.name, "ok", time.monotonic() - begin)
            except Unavailable as error:
                failures += 1
                self._observe(self.name, "retry", time.monotonic() - begin)
                log.warning("%s waits: %s", self.name, error)
            except Exception:
                failures += 1
                self._observe(self.name, "failed", time.monotonic() - begin)
                log.exception("%s failed", self.name)
            if failures:
                await asyncio.sleep(min(2.0**failures, TASK_BACKOFF_S_MAX))
            elif more:
                await asyncio.sleep(0)
            else:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._every_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
