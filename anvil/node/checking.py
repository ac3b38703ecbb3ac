"""`anvil admin fsck` on the running node: one check at a time, begun by a command and looked at until it is over.

Owns: the check that runs, or ran last. Not here: what is checked (`tasks/fsck.py`), printing (`cli/admin.py`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from anvil.meta.recovery import Checked
from anvil.node.channel import Channel, Handler
from anvil.node.commanded import told
from anvil.tasks.fsck import Fsck, Report

_REMEMBERED = ("orphans", "missing", "corrupt", "lost", "dangling", "unseen", "debts")


class Wanted(msgspec.Struct, frozen=True):
    """`repair`: what is found is acted on, as the survey would."""

    deep: bool = False
    repair: bool = False


class CheckState(msgspec.Struct, frozen=True):
    """Of the last check. `number` counts those of this process. `failed`: why it could not be ended."""

    number: int
    over: bool
    failed: str
    report: Report

    @property
    def clean(self) -> bool:
        return self.over and not self.failed and self.report.clean


class Notes(Protocol):
    """What is remembered of a check: `meta.recovery.RegionNotes`."""

    async def now_us(self) -> int: ...
    async def note_fsck(self, checked: Checked) -> None: ...


class Checking:
    """Who asks while a check runs gets that one, if it is as thorough; else the next."""

    def __init__(self, fsck: Fsck, notes: Notes) -> None:
        self._fsck = fsck
        self._notes = notes
        self._wake = asyncio.Event()
        self._next: Wanted | None = None
        self._running: Wanted | None = None
        self._number = 0
        self._failed = ""
        self._report = Report()

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"fsck.ask": self._ask, "fsck.state": self._state}

    async def _ask(self, channel: Channel, body: msgspec.Raw) -> int:
        return self.ask(msgspec.msgpack.decode(body, type=Wanted))

    async def _state(self, channel: Channel, body: msgspec.Raw) -> CheckState:
        return self.state

    def ask(self, wanted: Wanted) -> int:
        """Have a check made, from the beginning. Returns its number."""
        if self._next is not None:
            wanted = Wanted(wanted.deep or self._next.deep, wanted.repair or self._next.repair)
        self._next = wanted
        self._wake.set()
        return self._number + 1

    @property
    def state(self) -> CheckState:
        return CheckState(self._number, self._running is None and self._next is None, self._failed, self._report)

    async def run(self) -> None:
        """Make the checks that are asked for, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._next is not None:
                self._running, self._next = self._next, None
                self._number, self._failed, self._report = self._number + 1, "", Report()
                try:
                    began_us = await self._notes.now_us()
                    await self._fsck.run(self._report, deep=self._running.deep, repair=self._running.repair)
                    await self._notes.note_fsck(checked(began_us, self._report))
                except Exception as error:
                    self._failed = told(error, "the check")
                finally:
                    self._running = None


def checked(began_us: int, report: Report) -> Checked:
    """What is remembered of a check."""
    found = {name: count for name in _REMEMBERED if (count := getattr(report, name))}
    return Checked(began_us, report.clean, found, tuple(report.away))
