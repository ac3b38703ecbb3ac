"""Long work that an operator asked for, in the background process: a backup, or writing its data back. One at a time.

Owns: the job that runs or ran last, and what is told of it. Invariant: a job that is given up is over for whoever looks, and holds no
removals; where it hangs it is left. (`commanded.py` is another thing: whoever asks there meanwhile gets a run of his own.) Not here: the
work (`backups.py`, `refilling.py`), printing (`cli/admin_backup.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from anvil.backup.repository import Manifest
from anvil.base.errors import AnvilError, Conflict, Unavailable
from anvil.base.limits import JOB_CANCEL_S, JOB_CANCEL_STEPS
from anvil.node.backups import Backup
from anvil.node.channel import Channel, Handler
from anvil.node.commanded import told
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
        self._given_up: asyncio.Future[str] | None = None
        self._left: set[asyncio.Task[None]] = set()

    @property
    def handlers(self) -> dict[str, Handler]:
        return {
            "backup.ask": self._ask_backup,
            "refill.ask": self._ask_refill,
            "job.state": self._tell,
            "job.cancel": self._cancel,
        }

    async def _ask_backup(self, channel: Channel, body: msgspec.Raw) -> int:
        wanted = msgspec.msgpack.decode(body, type=BackupWanted)

        async def work() -> None:
            manifest = await self._backup.create(Path(wanted.path), wanted.new_key, self._phase, self._moved, self._give_up)
            self._set(manifest=manifest)

        return self._begin(work)

    async def _ask_refill(self, channel: Channel, body: msgspec.Raw) -> int:
        wanted = msgspec.msgpack.decode(body, type=RefillWanted)

        async def work() -> None:
            self._set(report=await self._refiller.run(Path(wanted.path), self._phase, self._moved, wanted.deep))

        return self._begin(work)

    async def _tell(self, channel: Channel, body: msgspec.Raw) -> JobState:
        return self._state

    async def _cancel(self, channel: Channel, body: msgspec.Raw) -> bool:
        """False where no job runs."""
        if self._given_up is None:
            return False
        self._give_up("it was cancelled")
        return True

    def _give_up(self, why: str) -> None:
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(why)

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
            await self._do(await self._asked.get())

    async def _do(self, asked: Callable[[], Awaitable[None]]) -> None:
        given_up = self._given_up = asyncio.get_running_loop().create_future()
        work = asyncio.create_task(_awaited(asked))
        try:
            await asyncio.wait({work, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if given_up.done():
                log.warning("a job is given up: %s", given_up.result())
                self._set(failed=given_up.result(), error=Unavailable.__name__)
                await self._backup.let_go()
            elif (error := work.exception()) is not None:
                self._fail(error)
        finally:
            self._given_up = None
            if not work.done():
                await self._undo(work)
            self._set(over=True)

    async def _undo(self, work: asyncio.Task[None]) -> None:
        """Cancel it, at each step back that it waits for; one that hangs all the same is left."""
        for _ in range(JOB_CANCEL_STEPS):
            work.cancel()
            if (await asyncio.wait({work}, timeout=JOB_CANCEL_S))[0]:
                return
        log.error("a job that was given up still waits for its disk")
        self._left.add(work)
        work.add_done_callback(self._left.discard)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        kind = type(error).__name__ if isinstance(error, AnvilError) else "OSError" if isinstance(error, OSError) else "Exception"
        self._set(failed=told(error, "a job"), error=kind)


async def _awaited(asked: Callable[[], Awaitable[None]]) -> None:
    await asked()
