"""Child processes as the supervisor sees them: started, told things, watched, started again when they die, stopped.

Owns: the spawning (fork and exec of a fresh interpreter; plan and orders over a socket pair), the backoff. Invariants: a
child that dies is reaped; its restarts are counted; a stopped child is never started again. Not here: what they run
(`node/child.py`), and in which order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from anvil.base.config import child_environment
from anvil.base.errors import Unavailable
from anvil.base.limits import START_S_MAX, WORKER_HEALTHY_S, WORKER_RESTART_BACKOFF_S_MAX
from anvil.node.channel import Channel
from anvil.node.child import Drain, Plan

log = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.1


class ManagedProcess:
    """One child, kept running until `stop`. `changed` is called when its pid or its count of restarts changes."""

    def __init__(self, plan: Plan, module: str, changed: Callable[[], None]) -> None:
        self.plan = plan
        self._module = module
        self.restarts = 0
        self.served = False  # whether it ever got so far
        self.exit_code: int | None = None
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Channel | None = None
        self._serving = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

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
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)

    async def _start(self) -> None:
        self._serving.clear()
        ours = self._spawn()
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

    def _spawn(self) -> socket.socket:
        """Fork and exec (a few ms; from the main thread, since the kernel ties a child's death to that of its parent's
        thread).
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
                process_group=0,  # Ctrl-C at the terminal is for the supervisor alone
            )
        return ours

    def _is_serving(self) -> None:
        self.served = True
        self._serving.set()

    def _too_slow(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None and process is self._process and not self._serving.is_set() and process.poll() is None:
            log.error("%s did not serve in time; killing it", self.plan.name, extra={"after_s": START_S_MAX})
            process.send_signal(signal.SIGKILL)

    async def _ended(self) -> int:
        process = self._process
        if process is None:
            return 0
        code = await exited(process)
        if self._control is not None:
            self._control.close()
            self._control = None
        self.exit_code = code
        self._serving.clear()
        return code


async def exited(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process of ours to end, and reap it."""
    code = process.poll()
    if code is not None:
        return code
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(process.pid)
    over = asyncio.Event()
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return process.wait()


def describe(code: int) -> str:
    """An exit code in words."""
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
