"""Long work that a command begins and looks at until it is over.

Owns: one run at a time, its number, how far it is and why it failed. Invariant: who asks while it runs gets another run after this one.
Not here: the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from anvil.base.errors import AnvilError
from anvil.node.channel import Channel, Handler

log = logging.getLogger("anvil.commanded")

Report = TypeVar("Report")


def told(error: Exception, what: str) -> str:
    """Why something long was not ended, for who began it; logged. What nobody expects is a failure as well, never a success."""
    if isinstance(error, AnvilError):
        why = error.message or type(error).__name__
    elif isinstance(error, OSError):
        why = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    else:
        log.error("%s failed", what, exc_info=error)
        return f"it failed: {error!r}; the log says more"
    log.warning("%s was not ended: %s", what, why)
    return why


class Run(msgspec.Struct, Generic[Report], frozen=True):
    """Of the last run. `number` counts those of this process. `failed`: why it could not be ended."""

    number: int
    over: bool
    failed: str
    report: Report


class Commanded(Generic[Report]):
    """`work`: fills the report as it goes; told what the command said. `fresh`: an empty report."""

    def __init__(self, name: str, work: Callable[[Report, bool], Awaitable[None]], fresh: Callable[[], Report]) -> None:
        self._name = name
        self._work = work
        self._fresh = fresh
        self._wake = asyncio.Event()
        self._wanted: bool | None = None
        self._running = False
        self._number = 0
        self._failed = ""
        self._report = fresh()

    @property
    def handlers(self) -> dict[str, Handler]:
        return {f"{self._name}.ask": self._ask, f"{self._name}.state": self._state}

    async def _ask(self, channel: Channel, body: msgspec.Raw) -> int:
        self._wanted = msgspec.msgpack.decode(body, type=bool)
        self._wake.set()
        return self._number + 1

    async def _state(self, channel: Channel, body: msgspec.Raw) -> Run[Report]:
        return Run(self._number, not self._running and self._wanted is None, self._failed, self._report)

    async def run(self) -> None:
        """Do what is asked for, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._wanted is None:
                continue
            wanted, self._wanted = self._wanted, None
            self._running, self._number, self._failed, self._report = True, self._number + 1, "", self._fresh()
            try:
                await self._work(self._report, wanted)
            except Exception as error:
                self._failed = told(error, self._name)
            finally:
                self._running = False
