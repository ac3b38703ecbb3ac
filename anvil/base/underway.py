"""The request that the running task serves: its id, for every line that is logged meanwhile, and what it waited for.

Owns: the context variable. Invariants: whoever is not serving a request pays next to nothing; tasks that a request starts account to it
too, so that what is waited for side by side adds up to more than the time that passed. Not here: who logs it (`base/log.py`,
`node/observe.py`).
"""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import Final

STAGES: Final = ("auth", "metadata", "receive", "buffers", "code", "drives", "send")
"""What is waited for: rights and signature; the databases; the client's bytes; memory; coding, sealing and digests on threads; drives, here
and on other nodes; the client, to take the answer."""
CLIENT_STAGES: Final = frozenset({"receive", "send"})


class Underway:
    """One request. `waits`: seconds by stage."""

    __slots__ = ("request_id", "waits")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.waits: dict[str, float] = {}


UNDERWAY: ContextVar[Underway | None] = ContextVar("underway", default=None)


def begin(request_id: str) -> Underway:
    """From now on the running task, and those it starts, serve that request."""
    request = Underway(request_id)
    UNDERWAY.set(request)
    return request


def waited(stage: str, since: float) -> None:
    """The request waited for that from `since` (`perf_counter`) until now."""
    request = UNDERWAY.get()
    if request is not None:
        request.waits[stage] = request.waits.get(stage, 0.0) + perf_counter() - since
