"""How long calls of other nodes were on their way, whatever the clocks of two nodes say.

Owns: what is known of each caller's clock. Invariant: of a node's calls the one that came soonest after it was sent (pings come every
second) tells how its clock differs from this one's, which goes on while the process or the machine stands still; every other call is as
old as it is later than that. Not here: whether a call is authentic (`sealing.py`), what is too old (`service.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from anvil.base.limits import PEER_CLOCK_S
from anvil.model.cluster import NodeId


def uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ages:
    """Of one process's callers: as many entries as nodes know the secret. `now_s`: a clock that is never set."""

    def __init__(self, now_s: Callable[[], float] = uptime_s) -> None:
        self._now_s: Final = now_s
        self._leads: Final[dict[NodeId, tuple[float, float, float]]] = {}
        """Since when, and by how much at most a caller's clock is ahead of this one, now and in the period before."""

    def heard(self, caller: NodeId, sent_s: float) -> None:
        """A call came, sent at that time by its caller's clock. What is known stays known over a pause, however long: calls that waited in
        one are measured by those before it."""
        now = self._now_s()
        lead = sent_s - now
        since, most, before = self._leads.get(caller, (now, lead, lead))
        if now - since >= PEER_CLOCK_S:
            since, most, before = now, lead, most
        self._leads[caller] = since, max(most, lead), before

    def of(self, caller: NodeId, sent_s: float) -> float:
        """How old a call is now that was heard of."""
        _, most, before = self._leads[caller]
        return max(most, before) - (sent_s - self._now_s())
