"""Recovery mode and holds, as operators and the node itself see them.

Owns: `anvil admin recovery` and `backup hold|release` over the databases; the watch that has every node of a region in recovery mode say
so. Invariant: what an operator ends or holds stands in the audit. Not here: what recovery mode stops (`collection_allowed`), what may end
it (`restoring.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from anvil.base.config import Config
from anvil.base.errors import Unavailable
from anvil.base.limits import RECOVERY_LOOK_S, RECOVERY_WARN_S
from anvil.meta.recovery import RegionNotes, State
from anvil.node.admin import audit, open_catalog
from anvil.node.restoring import assert_may_end

log = logging.getLogger("anvil.recovery")
OPERATOR = "operator"
NOTICE = "recovery mode: nothing is removed before `anvil admin recovery end`"
Recorder = Callable[[str, str, str], Awaitable[None]]
"""action, resource, result"""


class RecoveryAdmin:
    """For one command."""

    def __init__(self, notes: RegionNotes, record: Recorder) -> None:
        self._notes = notes
        self._record = record

    async def state(self) -> State:
        return await self._notes.state()

    async def begin(self) -> bool:
        """False if the region is in recovery mode already."""
        begun = await self._notes.begin_recovery()
        if begun:
            await self._record("recovery:begin", "", "ok")
        return begun

    async def end(self, force: bool) -> bool:
        """False if the region was not in recovery mode. Raises Conflict."""
        state = await self._notes.state()
        assert_may_end(state, force)
        ended = await self._notes.end_recovery()
        if ended:
            await self._record(
                "recovery:end", (state.recovery.snapshot or "") if state.recovery else "", "forced" if force else "ok"
            )
        return ended

    async def hold(self, seconds: float) -> None:
        """Returns once nothing is unlinked any more."""
        await self._notes.hold(OPERATOR, "an operator", seconds)
        await self._record("backup:hold", f"{seconds:.0f} s", "ok")

    async def release(self) -> bool:
        """False if there was no hold of an operator."""
        held = await self._notes.release(OPERATOR)
        await self._record("backup:release", "", "ok")
        return held


@asynccontextmanager
async def open_recovery(config: Config, global_url: str, regional_url: str) -> AsyncIterator[RecoveryAdmin]:
    """Raises DatabaseUnavailable."""
    async with open_catalog(config, global_url, regional_url, "anvil admin") as (catalog, regional):
        yield RecoveryAdmin(RegionNotes(regional.query), audit(catalog.admin))


class RecoveryWatch:
    """Asks now and then whether the region is in recovery mode."""

    def __init__(self, notes: RegionNotes) -> None:
        self._notes = notes
        self._since_us = 0
        self._said_at = 0.0

    def __call__(self) -> tuple[str, ...]:
        """What /ready shows beside its checks."""
        return (NOTICE,) if self._since_us else ()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._look()
            except Unavailable as error:
                log.debug("whether the region is in recovery mode is not known: %s", error)
            await asyncio.sleep(RECOVERY_LOOK_S)

    async def _look(self) -> None:
        recovery, now = (await self._notes.state()).recovery, asyncio.get_running_loop().time()
        since_us = recovery.since_us if recovery is not None else 0
        if since_us and (since_us != self._since_us or now - self._said_at >= RECOVERY_WARN_S):
            log.warning(NOTICE)
            self._said_at = now
        if self._since_us and not since_us:
            log.warning("recovery mode is over: what is garbage goes once its grace has passed")
        self._since_us = since_us
