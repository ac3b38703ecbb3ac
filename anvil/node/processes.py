"""Child processes as the supervisor sees them: started, told things, watched, started again when they die, stopped.

Owns: the control connection (plan and orders over a socket pair), the backoff. Invariants: the restarts of a child that dies are counted;
a stopped child is never started again. Not here: fork and reaping (`node/forkserver.py`), what they run (`node/child.py`), in which order.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from anvil.base.errors import Unavailable
from anvil.base.limits import START_S_MAX, WORKER_HEALTHY_S, WORKER_RESTART_BACKOFF_S_MAX
from anvil.node.channel import Channel
from anvil.node.child import Drain, Plan
from anvil.node.forkserver import ForkedChild, ForkServer

log = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.1


class ManagedProcess:
    """One child, kept running until `stop`. `target`: what it runs, by the name that the fork server knows; `changed` is called when its
    pid or its count of restarts changes."""

    def __init__(self, plan: Plan, target: str, forks: ForkServer, changed: Callable[[], None]) -> None:
        self.plan = plan
        self._target = target
        self._forks = forks
        self.restarts = 0
        self.served = False  # whether it ever got so far
        self.exit_code: int | None = None
        self._changed = changed
        self._process: ForkedChild | None = None
        self._control: Channel | None = None
        self._serving = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.code is None else None

    async def run(self) -> None:
        """Keep it running. Returns after `stop`, when it has ended. Raises Unavailable if it ends before it ever served."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._start()
            except OSError as error:  # no memory, no descriptors: perhaps later
                log.error("%s could not be started: %s", self.plan.name, error.strerror)
                if not self.served:
                    raise Unavailable(f"{self.plan.name} could not be started: {error.strerror}") from error
            if self._stopping.is_set():
                self.kill()  # `stop` came before there was anything to tell it
            code = await self._ended()
            if self._stopping.is_set():
                return
            if not self.served:
                raise Unavailable(f"{self.plan.name} ended with {describe(code)} before it served; the lines above say why")
            if time.monotonic() - began > WORKER_HEALTHY_S:
                backoff_s = FIRST_BACKOFF_S
            self.restarts += 1
            self._changed()
            log.error(
                "%s died; starting it again",
                self.plan.name,
                extra={"how": describe(code), "restarts": self.restarts, "backoff_s": backoff_s},
            )
            await _wait(self._stopping, backoff_s)
            backoff_s = min(backoff_s * 2, WORKER_RESTART_BACKOFF_S_MAX)

    async def serving(self) -> None:
        """Wait until it serves."""
        await self._serving.wait()

    def tell(self, topic: str, body: Any) -> None:
        if self._control is not None:
            self._control.push(topic, body)

    async def stop(self, drain: Drain, patience_s: float) -> None:
        """Order it to drain; kill it if it has not ended after `patience_s`."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        self.tell("drain", drain)
        try:
            async with asyncio.timeout(patience_s):
                await self._ended()
        except TimeoutError:
            log.error("%s did not stop in time; killing it", self.plan.name, extra={"after_s": patience_s})
            self.kill()
            await self._ended()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    async def _start(self) -> None:
        self._serving.clear()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await self._forks.fork(self._target, f"anvil: {self.plan.name}", theirs)
        except BaseException:
            ours.close()
            raise
        plan = msgspec.msgpack.encode(self.plan)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(ours, len(plan).to_bytes(4, "big") + plan)
        except OSError:
            ours.close()  # it died at once; `_ended` tells
            return
        listeners = {"serving": lambda channel, body: self._is_serving()}
        _, self._control = await loop.create_unix_connection(lambda: Channel({}, listeners), sock=ours)
        self._changed()
        loop.call_later(START_S_MAX, self._too_slow, self._process)

    def _is_serving(self) -> None:
        self.served = True
        self._serving.set()

    def _too_slow(self, process: ForkedChild | None) -> None:
        if process is not None and process is self._process and not self._serving.is_set() and process.code is None:
            log.error("%s did not serve in time; killing it", self.plan.name, extra={"after_s": START_S_MAX})
            process.kill()

    async def _ended(self) -> int:
        process = self._process
        if process is None:
            return 0
        code = await process.ended()
        if self._control is not None:
            self._control.close()
            self._control = None
        self.exit_code = code
        self._serving.clear()
        return code


def describe(code: int) -> str:
    """An exit code in words."""
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
