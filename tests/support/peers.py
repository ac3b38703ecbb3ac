"""Nodes for tests: drives behind a cluster port, and the peers of another node that sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anvil.base.ids import random_id
from anvil.ec.buffers import Buffers
from anvil.engine.ports import Drive
from anvil.model.cluster import ClusterDrive, NodeId, NodeRow, NodeState
from anvil.model.records import DriveId
from anvil.net.server import Server, serve
from anvil.net.stream import Stream
from anvil.peers.directory import Peers
from anvil.peers.peer import PeerTimes
from anvil.peers.service import Removals, port_limits, shard_host

SECRET = "a secret of the cluster, of 32 characters or more"
QUICK = PeerTimes(ping_s=0.1, idle_s=0.1, stalled_s=0.6, answer_s=5.0)


async def nothing(stream: Stream) -> None:
    """Nothing but gRPC is served there."""
    await stream.respond(404, ())


@dataclass
class ServedNode:
    """A node that serves drives in this process."""

    node_id: NodeId
    server: Server
    buffers: Buffers
    drives: dict[DriveId, Drive] = field(default_factory=dict)

    @property
    def address(self) -> str:
        host, port = self.server.addresses[0]
        return f"{host}:{port}"

    @property
    def row(self) -> NodeRow:
        return node_row(self.node_id, self.address)

    def row_of(self, drive: Drive) -> ClusterDrive:
        return ClusterDrive(drive.drive_id, self.node_id, drive.label, 0)


def node_row(node_id: NodeId, address: str) -> NodeRow:
    return NodeRow(node_id, f"node-{node_id.hex()[:4]}", "", address, NodeState.ACTIVE)


@asynccontextmanager
async def served(
    drives: Sequence[Drive],
    *,
    node_id: NodeId | None = None,
    secret: str = SECRET,
    port: int = 0,
    removals: Removals | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> AsyncIterator[ServedNode]:
    node_id = node_id or random_id()
    table: dict[DriveId, Drive] = {drive.drive_id: drive for drive in drives}

    def here() -> Mapping[DriveId, Drive]:
        return table

    buffers = Buffers(asyncio.get_running_loop())
    host = shard_host(node_id, secret, here, buffers, removals or Removals(), now_s)
    server = await serve(nothing, [("127.0.0.1", port)], grpc=host, limits=port_limits())
    try:
        yield ServedNode(node_id, server, buffers, table)
    finally:
        await server.close()
    for _ in range(1000):  # what the drives' threads still held
        if not buffers.used:
            break
        await asyncio.sleep(0.002)
    assert buffers.used == 0, "nothing may wait for the garbage collector"


@asynccontextmanager
async def peers_of(nodes: Sequence[ServedNode], *, secret: str = SECRET, times: PeerTimes | None = None) -> AsyncIterator[Peers]:
    """What a node of its own sees of these, once it has asked each."""
    peers = Peers(random_id(), secret, times=times)
    peers.update([node.row for node in nodes])
    await peers.settled(5)
    try:
        yield peers
    finally:
        await peers.close()
