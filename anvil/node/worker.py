"""A request worker: its link to the background process, and the order of its end.

Owns: the connection to the background process (catalog, heartbeats, metrics, readiness), and the drain. Invariants: the
worker serves only once it is built and linked; while it drains, /ready says so first, then nothing new is accepted,
requests finish within their time, and the writer session is given back. Not here: what a worker is made of
(`node/assemble.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from anvil.base.clock import SYSTEM_CLOCK
from anvil.base.errors import Unavailable
from anvil.base.limits import CHANNEL_RECONNECT_S, HEARTBEAT_S, READY_STALE_S
from anvil.base.metrics import REGISTRY, Snapshot
from anvil.model.cluster import ClusterView
from anvil.net.stream import Handler as StreamHandler
from anvil.node.catalog import Changes, RemoteCatalog
from anvil.node.channel import Channel, Handler, Listener, connect
from anvil.node.child import Child
from anvil.node.endpoints import NodeEndpoints
from anvil.node.health import HealthSnapshot, Readiness, WorkerReport, judged
from anvil.node.rights import RemoteRights

log = logging.getLogger("anvil.node.worker")
SNAPSHOT_EVERY = 4  # heartbeats


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """A worker's first call."""

    name: str


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The answer to it."""

    catalog: Changes
    health: HealthSnapshot | None
    region: ClusterView | None = None


class Serving(Protocol):
    """A built worker."""

    @property
    def handler(self) -> StreamHandler:
        """Serves what is not the node's own address."""
        ...

    @property
    def lease(self) -> bool:
        """Whether the writer session is held."""
        ...

    @property
    def unwritable(self) -> dict[str, str]:
        """By label, the drives that cannot be written to, and why."""
        ...

    async def listen(self, handler: StreamHandler) -> None:
        """Accept requests from now on."""
        ...

    async def drain(self, deadline_s: float) -> None:
        """Accept nothing new, finish what runs within `deadline_s`, cut the rest."""
        ...

    async def close(self) -> None:
        """Release leases, files, connections and threads."""
        ...


Build = Callable[[Child, "WorkerLink"], Awaitable[Serving]]


class WorkerLink:
    """The connection to the background process, kept up for ever."""

    def __init__(self, process: Child) -> None:
        self.process = process
        self.serving: Serving | None = None
        self.health: HealthSnapshot | None = None
        self.linked = asyncio.Event()
        self._channel: Channel | None = None
        self._view: ClusterView | None = None
        self._follow: Callable[[ClusterView], None] | None = None
        self._lost = asyncio.Event()
        self.catalog = RemoteCatalog(lambda: self._channel)
        self.rights = RemoteRights(self.catalog)
        self._handlers: dict[str, Handler] = {**self.catalog.handlers, "metrics.snapshot": self._snapshot}
        self._listeners: dict[str, Listener] = {
            **self.catalog.listeners,
            "health": self._take_health,
            "region": self._take_region,
        }

    async def run(self) -> None:
        """Connect, say hello, send heartbeats; again whenever the connection is lost."""
        while True:
            try:
                self._lost.clear()
                channel = await connect(self.process.plan.socket_path, self._handlers, self._listeners, self._closed)
                welcome = await channel.call("hello", Hello(self.process.name), Welcome)
            except (OSError, Unavailable):
                await asyncio.sleep(CHANNEL_RECONNECT_S)
                continue
            self._channel = channel
            self.catalog.connected(welcome.catalog)
            self._learn(welcome.health)
            if welcome.region is not None:
                self._show(welcome.region)
            self.linked.set()
            await self._beat(channel)

    async def _beat(self, channel: Channel) -> None:
        count = 0
        while channel.open:
            self.beat()
            if count % SNAPSHOT_EVERY == 0:
                channel.push("metrics", REGISTRY.snapshot())
            count += 1
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._lost.wait()
            except TimeoutError:
                pass

    def beat(self) -> None:
        """Report now. Not before it serves: a worker that is being started, with no lease yet and a loop that is busy with its building, is
        no reason to send clients away from the others."""
        if self._channel is not None and self.serving is not None:
            self._channel.push("heartbeat", WorkerReport(self.process.lag_s, self.serving.lease, self.serving.unwritable))

    def follow(self, follow: Callable[[ClusterView], None]) -> None:
        """Have every view of the region that comes told, the last one at once."""
        self._follow = follow
        if self._view is not None:
            follow(self._view)

    async def region(self) -> ClusterView:
        """The region as the database says now. Raises Unavailable."""
        return await self.catalog.ask("region.view", None, ClusterView)

    def _show(self, view: ClusterView) -> None:
        self._view = view
        if self._follow is not None:
            self._follow(view)

    def _take_region(self, channel: Channel, body: msgspec.Raw) -> None:
        self._show(msgspec.msgpack.decode(body, type=ClusterView))

    def last_words(self) -> None:
        """Leave the final numbers behind."""
        if self._channel is not None:
            self._channel.push("metrics", REGISTRY.snapshot())

    def readiness(self) -> Readiness:
        """This worker's answer on /ready, now."""
        draining = self.process.draining.is_set() or self.process.node_draining
        return judged(self.health, self.process.plan.node_id.hex(), draining, SYSTEM_CLOCK.monotonic())

    async def scrape(self, compressed: bool) -> bytes:
        """The node's metrics, from the background process. Raises Unavailable."""
        if self._channel is None:
            raise Unavailable("The process that holds the metrics is restarting.")
        return await self._channel.call("scrape", compressed, bytes)

    def _closed(self, channel: Channel) -> None:
        if channel is self._channel or self._channel is None:
            self._channel = None
            self._lost.set()

    def _take_health(self, channel: Channel, body: msgspec.Raw) -> None:
        self._learn(msgspec.msgpack.decode(body, type=HealthSnapshot))

    def _learn(self, told: HealthSnapshot | None) -> None:
        """Take what is told about the node's health. That a new background process is starting says nothing about a node that was seen to
        work: what its predecessor found stands until it is too old."""
        if told is None:
            return
        known = self.health
        if told.readiness.status == "starting" and known is not None and known.readiness.status != "starting":
            stands = SYSTEM_CLOCK.monotonic() - known.taken_at <= READY_STALE_S
            told = known if stands else told
        self.health = told

    async def _snapshot(self, channel: Channel, body: msgspec.Raw) -> Snapshot:
        return REGISTRY.snapshot()


async def run_worker(process: Child, build: Build) -> None:
    """Build, serve, and when told to, drain."""
    link = WorkerLink(process)
    linking = asyncio.get_running_loop().create_task(link.run())
    stopping = asyncio.get_running_loop().create_task(process.draining.wait())
    try:
        await asyncio.wait([asyncio.ensure_future(link.linked.wait()), stopping], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return
        serving = await build(process, link)
        try:
            await serving.listen(NodeEndpoints(serving.handler, process.config, link.readiness, lambda: link.health, link.scrape))
            link.serving = serving
            link.beat()
            process.serving()
            log.info("serving requests")
            await asyncio.wait([stopping, linking], return_when=asyncio.FIRST_COMPLETED)
            if linking.done():
                linking.result()  # it never ends by itself: this raises what broke it
            await asyncio.sleep(process.drain.notice_s)
            await serving.drain(process.drain.drain_s)
        finally:
            await serving.close()
            link.last_words()
    finally:
        linking.cancel()
        stopping.cancel()
