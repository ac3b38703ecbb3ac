"""A rate that background work keeps to, however many do it at once in this process."""

from __future__ import annotations

import asyncio

from anvil.base.limits import THROTTLE_STEP_S


class Throttle:
    """`bytes_per_s` may be changed at any time."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def take(self, nbytes: int) -> None:
        """Return when it is these bytes' turn. What was not used before is not made up for."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + nbytes / self.bytes_per_s
        ahead_s = self._free_at - now
        await asyncio.sleep(ahead_s if ahead_s > THROTTLE_STEP_S else 0)
