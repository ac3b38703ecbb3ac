"""The composition root: builds the node's processes out of their parts. Only this and `assemble_background.py` know all of them.

Invariant: what is opened here is closed here, in the opposite order. Not here: any rule, any loop that serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from anvil._ec.digest import DigestLanes
from anvil.api.grpc.app import GrpcApi
from anvil.api.operations.caller import Services
from anvil.api.s3.app import S3Api
from anvil.auth.authenticate import Authenticator
from anvil.auth.authorize import Authorizer
from anvil.auth.tokens import Tokens
from anvil.base import instruments
from anvil.base.clock import SYSTEM_CLOCK
from anvil.base.config import Config
from anvil.base.errors import Unavailable, WriterFenced
from anvil.base.ids import random_id, request_id
from anvil.base.limits import (
    DRAIN_S,
    PEER_BUFFERS_BYTES_MAX,
    PEERS_DRAIN_S,
    PEERS_SETTLE_S,
)
from anvil.base.metrics import REGISTRY
from anvil.base.owned import OwnedTasks
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for, self_test
from anvil.ec.executor import JobRunner, NativeExecutor
from anvil.engine.context import Context, LayoutsInUse, Placement
from anvil.engine.engine import Engine
from anvil.engine.session import WriterSession
from anvil.meta.embedded import EmbeddedPostgres
from anvil.meta.health import check
from anvil.meta.migrate import Database, migrate
from anvil.meta.regional import RegionalStore
from anvil.model.cluster import ClusterView
from anvil.model.records import SessionId
from anvil.net.server import Listener, Server, serve
from anvil.net.stream import Handler, Stream
from anvil.net.tls import Certificate, load
from anvil.node.admin import NodeDrives, fsck, open_admin, open_catalog, survey
from anvil.node.child import Child, Plan
from anvil.node.local import (
    attach_drives,
    await_layout,
    detach_drives,
    prepare_drives,
    unwritable,
    use_session,
)
from anvil.node.observe import EngineEvents, Requests, batch, connections, internode, rejected_before
from anvil.node.parts import KeyPair
from anvil.node.payload import open_body
from anvil.node.region import Region
from anvil.node.upkeep import Hold
from anvil.node.worker import WorkerLink
from anvil.peers.directory import Peers
from anvil.peers.peer import PeerTimes
from anvil.peers.service import Removals, port_limits, shard_host

log = logging.getLogger(__name__)
CODING_THREADS: Final = 2  # per worker, beside one for the digest lanes


# -- before anything serves ------------------------------------------------------------------------------------------------


async def prepare(config: Config, global_url: str, regional_url: str, node_id: bytes) -> KeyPair | None:
    """Migrations, region, tenant and first app, drives."""
    self_test()
    await migrate(global_url, Database.GLOBAL)
    await migrate(regional_url, Database.REGIONAL)
    await prepare_drives(config, regional_url, node_id)
    async with open_catalog(config, global_url, regional_url, "anvil start") as (catalog, regional):
        await regional.fence(node_id)  # whoever wrote here before is gone: nothing of it waits for its lease
        api = config.api
        first = await catalog.admin.bootstrap(config.node.region, api.announced_url, stated=bool(api.public_addrs))
    await await_layout(regional_url)
    return KeyPair(first.access_key, first.secret)


def embedded(config: Config) -> EmbeddedPostgres:
    return EmbeddedPostgres(config.node.data_path / "postgres")


# -- a worker --------------------------------------------------------------------------------------------------------------


class Worker:
    """A built worker (`node/worker.py: Serving`)."""

    def __init__(
        self,
        process: Child,
        api: S3Api,
        grpc: GrpcApi,
        metadata: RegionalStore,
        session: WriterSession,
        region: Region,
        owned: OwnedTasks,
        buffers: Buffers,
        certificate: Certificate | None,
        removals: Removals,
        opened: AsyncExitStack,
    ) -> None:
        self.handler: Handler = api
        self._api = api
        self._grpc = grpc
        self._metadata = metadata
        self._process = process
        self._plan = process.plan
        self._session = session
        self._region = region
        self._owned = owned
        self._buffers = buffers
        self._certificate = certificate
        self._removals = removals
        self._opened = opened
        self._server: Server | None = None
        self._cluster: Server | None = None

    @property
    def lease(self) -> bool:
        return _leased(self._session)

    @property
    def unwritable(self) -> dict[str, str]:
        return unwritable(self._region.local.values())

    async def listen(self, handler: Handler) -> None:
        if self._plan.cluster_port:
            self._cluster = await serve_peers(self._process, self._region, self._removals)
        self._server = await serve(
            handler,
            listeners(self._plan, self._certificate),
            grpc=self._grpc,
            reuse_port=True,
            render_refusal=self._api.refusal,
            pressed=lambda: self._buffers.waiting > 0,
        )
        REGISTRY.before_snapshot.append(self._fill)

    def _fill(self) -> None:
        if self._server is not None:
            stats = self._server.stats
            instruments.API_IN_FLIGHT.labels("s3").set(stats.requests_in_flight - self._grpc.in_flight)
            instruments.API_IN_FLIGHT.labels("grpc").set(self._grpc.in_flight)
            for reason, count in rejected_before(stats).items():
                instruments.API_REJECTED.labels(reason).set(count)
        if self._cluster is not None:
            instruments.API_IN_FLIGHT.labels("internal").set(self._cluster.stats.requests_in_flight)
        connections("regional", self._metadata.connections())

    async def drain(self, deadline_s: float) -> None:
        if self._server is not None:
            await self._server.drain(deadline_s)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
        await self._owned.close(DRAIN_S)
        if self._cluster is not None:  # the others' writes as long as there is anything to write to
            await self._cluster.drain(PEERS_DRAIN_S)
        await self._opened.aclose()


async def build_worker(process: Child, link: WorkerLink) -> Worker:
    """Everything a request needs. Raises DatabaseUnavailable, DriveFailed."""
    loop, plan = asyncio.get_running_loop(), process.plan
    async with AsyncExitStack() as opened:
        metadata = RegionalStore(plan.regional_url, name=f"anvil {plan.name}", observe=batch)
        opened.push_async_callback(metadata.close)
        await metadata.start()
        await metadata.fence(plan.node_id, plan.index)  # this worker's predecessor
        layouts, known = LayoutsInUse(), list[Placement]()
        session = _session(metadata, plan, layouts, known)
        current = await session.open()
        opened.push_async_callback(session.close)
        native = NativeExecutor(loop, CODING_THREADS)
        opened.push_async_callback(native.close)
        lanes = JobRunner(loop, DigestLanes())
        opened.push_async_callback(lanes.close)
        region = await open_region(process, current, opened, PeerTimes())
        known.append(region.placement)
        link.follow(partial(_follow, region, session))
        owned = OwnedTasks(plan.name)
        session.opened = partial(use_session, tuple(region.local.values()), owned)
        opened.callback(loop.create_task(session.keep()).cancel)
        buffers = Buffers(loop)
        engine = Engine(
            Context(
                metadata=metadata,
                placement=lambda: region.placement,
                scheme=lambda: region.scheme,
                native=native,
                lanes=lanes,
                buffers=buffers,
                codecs=codec_for,
                session=session,
                events=EngineEvents(),
                owned=owned,
                new_id=random_id,
                now_us=SYSTEM_CLOCK.now_us,
                layouts=layouts,
                refresh=partial(_refresh, region, link),
            )
        )
        api, grpc = _apis(process, link, engine, lambda: region.view.closed)
        certificate = await _certificate(process)
        if certificate is not None:
            opened.callback(loop.create_task(certificate.keep()).cancel)
        removals = _removals(process, metadata, session, opened)
        return Worker(process, api, grpc, metadata, session, region, owned, buffers, certificate, removals, opened.pop_all())


def _leased(session: WriterSession) -> bool:
    try:
        return bool(session.current)
    except WriterFenced:
        return False


def _removals(process: Child, metadata: RegionalStore, session: WriterSession, opened: AsyncExitStack) -> Removals:
    """Whether other nodes may have shards removed here now: not while removals are held, or this worker may have missed that."""
    hold = Hold(metadata, process.config.storage.gc_grace_s)
    if process.plan.cluster_port:
        opened.callback(asyncio.get_running_loop().create_task(hold.keep()).cancel)
    return Removals(lambda: _leased(session), hold)


def _session(metadata: RegionalStore, plan: Plan, layouts: LayoutsInUse, known: list[Placement]) -> WriterSession:
    """`known`: the placement, once there is one; a session opened before goes by the layout that is current then."""
    return WriterSession(
        metadata,
        plan.node_id,
        plan.index,
        lambda: layouts.oldest(known[0].layout.version) if known else 0,
        lambda: known[0].layout.version if known else 0,
    )


def _apis(process: Child, link: WorkerLink, engine: Engine, closed: Callable[[], str]) -> tuple[S3Api, GrpcApi]:
    """Both APIs over one engine."""
    config = process.config
    observers = (Requests(config.log),)
    services = Services(engine, link.catalog, Authorizer(), link.rights, config.node.region, config.api.public_urls[0], closed)
    grpc = GrpcApi(
        services,
        Tokens(config.security.jwt_secret, time.time, link.catalog),
        ready=lambda: link.readiness().status == "ready",
        draining=lambda: link.readiness().status == "draining",
        request_ids=request_id,
        observers=observers,
    )
    api = S3Api(
        services,
        open_body,
        Authenticator(
            link.catalog,
            config.node.region,
            config.api.bucket_hosts,
            trusted_proxies=config.api.trusted_proxies,
            regions=link.catalog.regions,
        ),
        base_domains=config.api.bucket_hosts,
        observers=observers,
        host_id=process.plan.node_id.hex(),
        request_ids=request_id,
    )
    return api, grpc


def _follow(region: Region, session: WriterSession, view: ClusterView) -> None:
    _advance(region, view)
    session.hasten()  # a new layout waits for this session to report it


def _advance(region: Region, view: ClusterView) -> None:
    """A worker reads the first view itself, and the next ones come another way: an older one is left alone, since what a session reported
    holds. (Where the database was set back, the background process says so, and that the node has to be restarted.)"""
    if view.layout.version >= region.view.layout.version:
        region.follow(view)


async def _refresh(region: Region, link: WorkerLink) -> bool:
    """Whether nodes or layouts are others than this worker went by."""
    before = region.view.shape
    try:
        _advance(region, await link.region())
    except Unavailable as error:
        log.warning("nodes and layouts cannot be read: %s", error)
    return region.view.shape != before


async def open_region(
    process: Child, session: SessionId, opened: AsyncExitStack, times: PeerTimes, hold: Callable[[], bool] = lambda: False
) -> Region:
    """This process's drives, and those of the other nodes. Closed with `opened`. Raises DatabaseUnavailable, DriveFailed."""
    plan, config = process.plan, process.config
    view, local = await attach_drives(plan, session, hold)
    opened.push_async_callback(detach_drives, tuple(local.values()))
    peers = None
    if plan.cluster_port:
        peers = Peers(plan.node_id, config.security.cluster_secret, observe=internode, times=times)
        opened.push_async_callback(peers.close)
    region = Region(config.storage, plan.node_id, view, local, peers)
    if peers is not None:
        await peers.settled(PEERS_SETTLE_S)
    return region


async def serve_peers(process: Child, region: Region, removals: Removals) -> Server:
    """The cluster listener: this worker's drives, for the other nodes, and nothing else. `removals`: see `shard_host`."""
    plan, buffers = process.plan, Buffers(asyncio.get_running_loop(), PEER_BUFFERS_BYTES_MAX)
    host = shard_host(plan.node_id, process.config.security.cluster_secret, lambda: {**region.local}, buffers, removals)
    return await serve(
        _nothing_here, [Listener(plan.cluster_host, plan.cluster_port)], grpc=host, limits=port_limits(), reuse_port=True
    )


async def _nothing_here(stream: Stream) -> None:
    """Whoever speaks HTTP to the cluster listener is at the wrong address."""
    await stream.respond(404, [(b"content-length", b"0")])


async def _certificate(process: Child) -> Certificate | None:
    """The certificate of the configuration; SIGHUP has it read again. Raises InvalidSetting."""
    api = process.config.api
    if not api.tls_cert:
        return None
    certificate = await Certificate.open(api.tls_cert, api.tls_key)
    process.on_reload = certificate.reload
    return certificate


def listeners(plan: Plan, certificate: Certificate | None) -> list[Listener]:
    """Where a worker listens, and where with TLS."""
    tls = certificate.context if certificate is not None else None
    if not plan.tls_port:
        return [Listener(plan.listen_host, plan.listen_port, tls)]
    return [Listener(plan.listen_host, plan.listen_port), Listener(plan.tls_host, plan.tls_port, tls)]


async def database_settings(url: str, name: str) -> tuple[str, tuple[str, ...]]:
    """The server's version, and what is wrong with the database `global` or `regional`, for `anvil doctor`."""
    found = await check(url, Database(name))
    return found.version, found.problems


def certificate_ends(config: Config) -> float:
    """Unix time at which the configured certificate ends, for `anvil doctor`. Raises InvalidSetting."""
    return load(config.api.tls_cert, config.api.tls_key).expires_s


__all__ = [
    "NodeDrives",
    "build_worker",
    "certificate_ends",
    "database_settings",
    "fsck",
    "open_admin",
    "survey",
]
