"""The background process: one per node, so that nothing it does stalls a request.

Owns: the socket that workers connect to, the catalog they read, the readiness checks, the collection of metrics, and the
background tasks. Invariants: a task that fails is logged and started again with a pause, and takes nothing else with it;
whatever a worker is told, it is told in order. Not here: the checks (`node/health.py`), the tasks (`tasks/`), which of them
there are (`node/assemble.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from isal import igzip

from anvil.base import instruments
from anvil.base.errors import Unavailable
from anvil.base.limits import HEARTBEAT_S, METRICS_GATHER_S, METRICS_PULL_S, WORKER_RESTART_BACKOFF_S_MAX
from anvil.base.metrics import REGISTRY, Snapshot
from anvil.base.version import COMMIT, VERSION
from anvil.model.cluster import ClusterView
from anvil.node.catalog import CatalogServer, CatalogSource
from anvil.node.channel import Channel, Handler, Listener, listen_socket
from anvil.node.child import Child, Members
from anvil.node.exposition import ProcessMetrics, exposition
from anvil.node.health import Check, DriveProbe, HealthMonitor, HealthSnapshot, Standings, WorkerReport
from anvil.node.process_use import ProcessUse
from anvil.node.rights import RightsServer, RightsSource
from anvil.node.worker import Hello, Welcome

log = logging.getLogger("anvil.node.background")
GZIP_LEVEL = 1


async def _nothing() -> None:
    return


class RegionSource(Protocol):
    """`node.membership.Membership`."""

    followers: list[Callable[[ClusterView], None]]

    @property
    def view(self) -> ClusterView: ...
    async def refresh(self) -> ClusterView:
        """Read anew. Raises DatabaseUnavailable."""
        ...


@dataclass(frozen=True)
class BackgroundParts:
    """What the background process is made of. `standing`: see `HealthMonitor`. `region`: what the workers follow. `tasks`: by name,
    functions that run for ever. `handlers`: what commands on this machine may ask. `notices`: what /ready tells operators. `close`: after
    the tasks have ended.
    """

    catalog: CatalogSource
    rights: RightsSource
    checks: Sequence[Check]
    drives: Sequence[DriveProbe]
    standing: Standings
    region: RegionSource | None = None
    tasks: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    notices: Callable[[], tuple[str, ...]] = tuple
    close: Callable[[], Awaitable[None]] = _nothing


Build = Callable[[Child], Awaitable[BackgroundParts]]


class Background:
    """The running process."""

    def __init__(self, process: Child, parts: BackgroundParts) -> None:
        self.process = process
        self.parts = parts
        self.numbers = ProcessMetrics()
        self._use = ProcessUse()
        self._began_s = asyncio.get_running_loop().time()
        self._gathered = False  # every worker has told its numbers
        self._channels: dict[Channel, tuple[WorkerReport, float] | None] = {}  # those that said hello; when each last reported
        self.catalog = CatalogServer(parts.catalog, lambda: tuple(self._channels))
        self.rights = RightsServer(parts.rights, self.catalog.forget)
        self.health = HealthMonitor(
            process.plan.node_id.hex(),
            parts.checks,
            parts.drives,
            parts.standing,
            process.config.node.worker_count,
            self._reports,
            lambda: process.node_draining,
            notices=parts.notices,
        )
        self._handlers: dict[str, Handler] = {
            **self.catalog.handlers,
            **self.rights.handlers,
            **parts.handlers,
            "hello": self._hello,
            "scrape": self._scrape,
            "region.view": self._region,
        }
        self._listeners: dict[str, Listener] = {"heartbeat": self._heartbeat, "metrics": self._metrics}
        process.on_members = self._members
        if parts.region is not None:
            parts.region.followers.append(self._follow)
        instruments.BUILD_INFO.labels(VERSION, COMMIT).set(1)

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        self._members(self.process.members)
        listener = listen_socket(self.process.plan.socket_path)
        server = await loop.create_unix_server(lambda: Channel(self._handlers, self._listeners, self._closed), sock=listener)
        tasks = {"catalog": self.catalog.run, "health": lambda: self.health.run(self._publish), **self.parts.tasks}
        running = [loop.create_task(forever(name, task)) for name, task in tasks.items()]
        self.process.serving()
        log.info("serving the workers")
        try:
            await self.process.draining.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            server.close()
            for channel in tuple(self._channels):
                channel.close()
            for drive in self.parts.drives:
                drive.close()
            await self.parts.close()

    # -- workers -----------------------------------------------------------------------------------------------------------

    async def _hello(self, channel: Channel, body: msgspec.Raw) -> Welcome:
        channel.name = msgspec.msgpack.decode(body, type=Hello).name
        self._channels[channel] = None
        view = self.parts.region.view if self.parts.region is not None else None
        return Welcome(self.catalog.greeting(), self.health.snapshot, view)

    async def _region(self, channel: Channel, body: msgspec.Raw) -> ClusterView:
        if self.parts.region is None:
            raise Unavailable("This node follows no region.")
        return await self.parts.region.refresh()

    def _heartbeat(self, channel: Channel, body: msgspec.Raw) -> None:
        if channel in self._channels:
            report = msgspec.msgpack.decode(body, type=WorkerReport)
            self._channels[channel] = report, asyncio.get_running_loop().time()

    def _reports(self) -> list[WorkerReport]:
        """The last one of each worker. One that is overdue tells that its sender's loop stands still."""
        now = asyncio.get_running_loop().time()
        return [
            msgspec.structs.replace(report, lag_s=max(report.lag_s, now - at - HEARTBEAT_S))
            for report, at in filter(None, self._channels.values())
        ]

    def _metrics(self, channel: Channel, body: msgspec.Raw) -> None:
        if channel in self._channels:
            self.numbers.update(channel.name, msgspec.msgpack.decode(body, type=Snapshot))

    def _closed(self, channel: Channel) -> None:
        if channel in self._channels:
            del self._channels[channel]
            if all(other.name != channel.name for other in self._channels):
                self.numbers.gone(channel.name)

    def _publish(self, snapshot: HealthSnapshot) -> None:
        for channel in self._channels:
            channel.push("health", snapshot)

    def _follow(self, view: ClusterView) -> None:
        for channel in self._channels:
            channel.push("region", view)

    def _members(self, members: Members) -> None:
        for name, restarts in members.restarts.items():
            instruments.PROCESS_RESTARTS.labels(name).set(restarts)

    # -- metrics -----------------------------------------------------------------------------------------------------------

    async def _scrape(self, channel: Channel, body: msgspec.Raw) -> bytes:
        compressed = msgspec.msgpack.decode(body, type=bool)
        if not self._gathered:
            self._gathered = len(self._channels) >= self.process.config.node.worker_count
            if not self._gathered and asyncio.get_running_loop().time() - self._began_s < METRICS_GATHER_S:
                # A sum without some workers is less than the last one, and Prometheus takes that for a restart from nothing: what the
                # missing ones have ever counted would be counted again when they are back.
                raise Unavailable("Not all workers have told their numbers yet.")
        await asyncio.gather(*(self._pull(worker) for worker in tuple(self._channels)))
        pids = list(self.process.members.pids.values()) or [os.getpid()]
        instruments.PROCESSES.set(len(pids))
        self.numbers.update(self.process.name, REGISTRY.snapshot())
        # In a thread: formatting thousands of series takes long enough to delay a heartbeat.
        return await asyncio.to_thread(self._render, self.numbers.snapshots(), pids, compressed)

    def _render(self, snapshots: Sequence[Snapshot], pids: Sequence[int], compressed: bool) -> bytes:
        text = exposition(snapshots, self._use.read(pids))
        return igzip.compress(text, GZIP_LEVEL) if compressed else text

    async def _pull(self, worker: Channel) -> None:
        try:
            snapshot = await worker.call("metrics.snapshot", None, Snapshot, METRICS_PULL_S)
        except Unavailable:
            return  # its last numbers stand
        if worker in self._channels:
            self.numbers.update(worker.name, snapshot)


async def forever(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run a task that should never end; when it does, say so and run it again, with growing pauses."""
    pause_s = 0.1
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await task()
            log.error("the task %s ended", name)
        except Exception:
            log.exception("the task %s failed", name)
        if asyncio.get_running_loop().time() - began > WORKER_RESTART_BACKOFF_S_MAX:
            pause_s = 0.1
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, WORKER_RESTART_BACKOFF_S_MAX)


async def run_background(process: Child, build: Build) -> None:
    """Build, serve, and end when told to."""
    await Background(process, await build(process)).run()
