"""`Peers`: the other nodes of the region, and their drives, as one process sees them.

Owns: one `Peer` per other node and one `RemoteDrive` per drive, for as long as they are known. Not here: who is in the region
(`node/membership.py` tells), where shards go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from anvil._ec.buffers import keep_freed
from anvil.base.limits import PEER_HEAP_PIECE_BYTES, PEER_HEAP_SPARE_BYTES
from anvil.base.owned import OwnedTasks
from anvil.model.cluster import ClusterDrive, NodeId, NodeRow, NodeState
from anvil.model.records import DriveId
from anvil.peers.peer import Observe, Peer, PeerTimes
from anvil.peers.remote import RemoteDrive
from anvil.peers.sealing import Keys

_CLOSE_S: Final = 2.0


def _ignore(rpc: str, seconds: float, reason: str) -> None:
    """The default `Observe`."""


class Peers:
    """Used from one event loop. Makes this process keep some of the memory it frees (`keep_freed`): grpcio copies every message."""

    def __init__(self, own: NodeId, secret: str, *, observe: Observe = _ignore, times: PeerTimes | None = None) -> None:
        keep_freed(PEER_HEAP_PIECE_BYTES, PEER_HEAP_SPARE_BYTES)
        self._own: Final = own
        self._keys: Final = Keys(own, secret)
        self._observe: Final = observe
        self._times: Final = times or PeerTimes()
        self._peers: Final[dict[NodeId, Peer]] = {}
        self._drives: Final[dict[DriveId, RemoteDrive]] = {}
        self._tasks: Final = OwnedTasks("peers")

    def update(self, nodes: Sequence[NodeRow]) -> None:
        """Who they are and where. The own node and those that were removed are left out; who is missing is forgotten."""
        wanted = {node.node_id: node for node in nodes if node.node_id != self._own and node.state is not NodeState.REMOVED}
        for node_id in self._peers.keys() - wanted.keys():
            self._tasks.start(self._peers.pop(node_id).close())
            for drive_id in [one for one, drive in self._drives.items() if drive.peer.node_id == node_id]:
                del self._drives[drive_id]
        for node_id, node in wanted.items():
            self._peer(node_id).move(node.name, node.address)

    def _peer(self, node_id: NodeId) -> Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = Peer(node_id, self._keys, self._observe, self._times)
        return peer

    def drive(self, drive: ClusterDrive) -> RemoteDrive:
        """The same object for one drive as long as its node is known; it follows a disk that was carried to another node."""
        peer = self._peer(drive.node_id)
        found = self._drives.get(drive.drive_id)
        if found is None:
            found = self._drives[drive.drive_id] = RemoteDrive(peer, drive.drive_id, f"{peer.name}:{drive.label}")
        elif found.peer is not peer:
            found.use(peer)
        return found

    async def settled(self, timeout_s: float) -> None:
        """Until every peer answered a ping or failed one, at most `timeout_s`."""
        waiting = [asyncio.ensure_future(peer.settled.wait()) for peer in self._peers.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()

    @property
    def last_seen(self) -> Mapping[NodeId, float]:
        """Unix seconds of the last answer of each peer that ever gave one."""
        return {node_id: peer.last_seen for node_id, peer in self._peers.items() if peer.last_seen is not None}

    def reachable(self, node_id: NodeId) -> bool:
        peer = self._peers.get(node_id)
        return peer is not None and peer.reachable

    async def close(self) -> None:
        """Give up what is under way, and every connection."""
        peers = list(self._peers.values())
        self._peers.clear()
        self._drives.clear()
        await asyncio.gather(*(peer.close() for peer in peers))
        await self._tasks.close(_CLOSE_S)
