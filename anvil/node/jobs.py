"""Long work that an operator asked for, in the background process: a backup, or writing its data back. One at a time.

Owns: the job that runs or ran last, and what is told of it. Not here: the work (`backups.py`, `refilling.py`), printing
(`cli/admin_backup.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from anvil.backup.repository import Manifest
from anvil.base.errors import AnvilError, Conflict
from anvil.node.backups import Backup
from anvil.node.channel import Channel, Handler
from anvil.node.refilling import Refiller, RefillReport

log = logging.getLogger("anvil.backup")


class BackupWanted(msgspec.Struct, frozen=True):
    """`path`: absolute, of a folder of this machine. `new_key`: the master key was replaced."""

    path: str
    new_key: bool = False


class RefillWanted(msgspec.Struct, frozen=True):
    """`deep`: what is there is read, too."""

    path: str
    deep: bool = False


class JobState(msgspec.Struct, frozen=True):
    """`number` counts the jobs of this process. `failed`: why it could not be ended, with the class of the error in `error`. `total`: bytes
    of this phase, 0 where nobody knows. `manifest`, `report`: what came of it."""

    number: int = 0
    over: bool = True
    phase: str = ""
    done: int = 0
    total: int = 0
    failed: str = ""
    error: str = ""
    manifest: Manifest | None = None
    report: RefillReport | None = None


class Jobs:
    """The jobs of one background process."""

    def __init__(self, backup: Backup, refiller: Refiller) -> None:
        self._backup = backup
        self._refiller = refiller
        self._asked: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._state = JobState()

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"backup.ask": self._ask_backup, "refill.ask": self._ask_refill, "job.state": self._tell}

    async def _ask_backup(self, channel: Channel, body: msgspec.Raw) -> int:
        wanted = msgspec.msgpack.decode(body, type=BackupWanted)

        async def work() -> None:
            manifest = await self._backup.create(Path(wanted.path), wanted.new_key, self._phase, self._moved)
            self._set(manifest=manifest)

        return self._begin(work)

    async def _ask_refill(self, channel: Channel, body: msgspec.Raw) -> int:
        wanted = msgspec.msgpack.decode(body, type=RefillWanted)

        async def work() -> None:
            self._set(report=await self._refiller.run(Path(wanted.path), self._phase, self._moved, wanted.deep))

        return self._begin(work)

    async def _tell(self, channel: Channel, body: msgspec.Raw) -> JobState:
        return self._state

    def _begin(self, work: Callable[[], Awaitable[None]]) -> int:
        if not self._state.over:
            raise Conflict(f"another job of this node is under way ({self._state.phase}): wait for its end")
        self._state = JobState(self._state.number + 1, over=False, phase="beginning")
        self._asked.put_nowait(work)
        return self._state.number

    def _phase(self, name: str, total: int) -> None:
        self._set(phase=name, total=total, done=0)

    def _moved(self, size: int) -> None:
        self._set(done=self._state.done + size)

    def _set(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)

    async def run(self) -> None:
        """Do what is asked for, for ever."""
        while True:
            work = await self._asked.get()
            try:
                await work()
            except AnvilError as error:
                self._fail(error.message, type(error).__name__)
            except OSError as error:
                where = f" ({error.filename})" if error.filename else ""
                self._fail(f"{error.strerror or error}{where}", "OSError")
            except Exception as error:
                log.exception("a job failed")
                self._fail(f"it failed: {error!r}; the log says more", "Exception")
            finally:
                self._set(over=True)

    def _fail(self, why: str, kind: str) -> None:
        log.warning("a job was not ended: %s", why)
        self._set(failed=why, error=kind)
