"""A child process of a node: how it starts, what it is told, and that it never outlives its parent.

Owns: the control connection (an inherited socket pair: the configuration comes over it, then orders), the signals, the
loop, and the watch on the loop's lag. Invariants: a child dies with its supervisor (PR_SET_PDEATHSIG on the fork server, and the end
of the control connection); no secret is on its command line or in its environment; Ctrl-C does not reach it. Not here: what
workers and the background process do.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from anvil.base import instruments
from anvil.base import log as logs
from anvil.base.config import Config
from anvil.base.errors import AnvilError, Unavailable
from anvil.base.limits import GC_GENERATION_RUNS, GC_YOUNG_OBJECTS, HEARTBEAT_S
from anvil.base.metrics import REGISTRY
from anvil.node.channel import Channel

log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1


class Plan(msgspec.Struct, frozen=True):
    """The first message of the supervisor: everything a child needs to know."""

    name: str
    index: int
    config: Config
    global_url: str
    regional_url: str
    node_id: bytes
    listen_host: str
    listen_port: int
    tls_host: str = ""
    tls_port: int = 0  # of TLS beside plaintext; 0: there is none
    cluster_host: str = ""
    cluster_port: int = 0  # for the other nodes; 0: this one is alone

    def __repr__(self) -> str:
        return f"Plan({self.name})"

    @property
    def socket_path(self) -> Path:
        """Where the background process listens."""
        return self.config.node.data_path / "run" / "background.sock"


class Drain(msgspec.Struct, frozen=True):
    """The order to stop: answer 503 on /ready at once, stop accepting after `notice_s`, finish what runs within `drain_s`."""

    notice_s: float
    drain_s: float


class Members(msgspec.Struct, frozen=True):
    """The node's processes as the supervisor knows them, told to the background process. `restarts`: by process name."""

    pids: dict[str, int]
    restarts: dict[str, int]


class Child:
    """What a target gets. `draining` is set when the process is to stop; `drain` then says how."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.config = plan.config
        self.name = plan.name
        self.draining = asyncio.Event()
        self.drain = Drain(0.0, plan.config.node.drain_s)
        self.members = Members({}, {})
        self.on_members: Callable[[Members], None] | None = None
        self.on_reload: Callable[[], None] | None = None
        self.lag_s = 0.0
        self.node_draining = False  # the whole node is about to stop
        self._control: Channel | None = None

    def serving(self) -> None:
        """Tell the supervisor that this process does its work now."""
        if self._control is not None:
            self._control.push("serving", None)

    def attach(self, control: Channel) -> None:
        self._control = control

    def ordered(self, drain: Drain) -> None:
        self.drain = drain
        self.draining.set()

    def announced(self) -> None:
        self.node_draining = True

    def reload(self) -> None:
        """SIGHUP to the supervisor."""
        if self.on_reload is not None:
            self.on_reload()

    def told(self, members: Members) -> None:
        self.members = members
        if self.on_members is not None:
            self.on_members(members)

    async def watch_loop(self) -> None:
        """Measure for ever how late the loop wakes up."""
        loop = asyncio.get_running_loop()
        series = instruments.EVENT_LOOP_LAG.labels(self.name)
        while True:
            due = loop.time() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            self.lag_s = max(0.0, loop.time() - due)
            series.observe(self.lag_s)


Target = Callable[[Child], Awaitable[None]]


def bind_to_parent(parent: int, sig: int = signal.SIGKILL) -> None:
    """Have the kernel send `sig` to this process when its parent dies, and leave at once if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(target: Target, control: socket.socket, parent: int) -> int:
    """What a child does: take the plan from the control socket, run `target`. Returns the exit code. `parent`: who forked it."""
    bind_to_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan = _receive_plan(control)
    logs.setup(plan.config.log, plan.name)
    logs.protect(*plan.config.secret_values)
    runner = asyncio.Runner(loop_factory=_new_loop)
    with runner:
        return runner.run(_run(plan, control, target))


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _receive_plan(control: socket.socket) -> Plan:
    control.setblocking(True)
    with control.makefile("rb", buffering=0) as stream:
        length = int.from_bytes(_exactly(stream.read, 4), "big")
        return msgspec.msgpack.decode(_exactly(stream.read, length), type=Plan)


def _exactly(read: Callable[[int], bytes | None], count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = read(count - len(data))
        if not more:
            os._exit(1)  # the supervisor died while it started us
        data += more
    return data


async def _run(plan: Plan, control: socket.socket, target: Target) -> int:
    loop = asyncio.get_running_loop()
    child = Child(plan)
    control.setblocking(False)
    listeners = {
        "drain": lambda channel, body: child.ordered(msgspec.msgpack.decode(body, type=Drain)),
        "draining": lambda channel, body: child.announced(),
        "reload": lambda channel, body: child.reload(),
        "members": lambda channel, body: child.told(msgspec.msgpack.decode(body, type=Members)),
    }
    _, channel = await loop.create_unix_connection(lambda: Channel({}, listeners, _supervisor_gone), sock=control)
    child.attach(channel)
    loop.add_signal_handler(signal.SIGTERM, child.ordered, Drain(0.0, plan.config.node.drain_s))
    gc.collect()
    gc.set_threshold(GC_YOUNG_OBJECTS, GC_GENERATION_RUNS, GC_GENERATION_RUNS)
    gc.freeze()  # what was imported lives as long as the process: the collector need not look at it again
    REGISTRY.before_snapshot.append(lambda: instruments.METRICS_DROPPED_SERIES.set(REGISTRY.dropped_series))
    watch = loop.create_task(child.watch_loop())
    try:
        await target(child)
    except Unavailable as error:
        log.error("%s cannot run: %s", plan.name, error.message)
        return 1
    except AnvilError as error:
        log.error("%s cannot run: %s", plan.name, error.message)
        return 2
    finally:
        watch.cancel()
    return 0


def _supervisor_gone(channel: Channel) -> None:
    os._exit(1)  # nothing that is acknowledged depends on an orderly end
