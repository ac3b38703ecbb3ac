"""`RemoteDrive`: a drive of another node as the engine's `Drive`.

Owns: from the port's calls to lanes and streams. Invariants: as the port says, and a buffer that was given to a call is never touched after
that call returned or raised: what is written was copied before, what is read is copied by the call itself. A place that this drive hands
out names its shard and nothing else, so it holds wherever the other node moves it. Not here: whether the node answers (`peer.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from typing import NamedTuple

from anvil._ec.pieces import Sink
from anvil.base.errors import BadRecord
from anvil.base.limits import PEER_BATCH_READ_BYTES_MAX, SEGMENT_SHARD_BYTES_MAX
from anvil.base.types import Buffer
from anvil.model.records import BlobId, DriveId
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace
from anvil.peers.documents import encode_plain, read_document, read_footer, read_header
from anvil.peers.failures import error_of
from anvil.peers.lanes import Lane
from anvil.peers.peer import Peer
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import Kind
from anvil.peers.transfer import Incoming, RemoteShard


class RemoteRef(NamedTuple):
    """`ShardPlace.ref` of a shard elsewhere. `data`: the whole payload, where it came when the shard was opened."""

    data: memoryview | None = None


class RemoteDrive:
    """Made by `Peers.drive`; used from one event loop."""

    local = False

    def __init__(self, peer: Peer, drive_id: DriveId, label: str) -> None:
        self.drive_id = drive_id
        self.label = label
        self.use(peer)

    def use(self, peer: Peer) -> None:
        """The node that has it now."""
        self.peer = peer
        self._puts, self._looks, self._removals = (Lane(peer, self.drive_id, self.label) for _ in range(3))

    # -- state, as of the last ping

    @property
    def readable(self) -> bool:
        return self.peer.state(self.drive_id).readable

    @property
    def writable(self) -> bool:
        return self.peer.state(self.drive_id).writable

    @property
    def reason(self) -> str | None:
        """Why it is not writable, in words for an operator."""
        return self.peer.state(self.drive_id).reason or None

    @property
    def free_bytes(self) -> int:
        return self.peer.state(self.drive_id).free_bytes

    @property
    def capacity_bytes(self) -> int:
        return self.peer.state(self.drive_id).capacity_bytes

    # -- the port

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        """See the port. Raises SlowDown, too."""
        data = bytes(frames)
        payload = header.blob.geometry.shard_bytes
        if len(data) != payload or payload > SEGMENT_SHARD_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes are not the frames of a small shard of {payload}")
        op = pb.Op(kind=pb.Op.PUT, header=encode_plain(header), footer=encode_plain(footer), length=payload)
        await self._puts.ask(op, data)

    async def create(self, header: ShardHeader) -> RemoteShard:
        """See the port."""
        return await RemoteShard(self.peer, self.drive_id, self.label, header).create()

    async def open(self, blob_id: BlobId, index: int, patience_s: float | None = None) -> ShardPlace | None:
        """See the port."""
        if len(blob_id) != 16 or not 0 <= index <= 255:
            raise ValueError("no possible shard")
        op = pb.Op(kind=pb.Op.OPEN, blob_id=blob_id, index=index, patience_s=patience_s or 0.0)
        result, data = await self._looks.ask(op, patience_s=patience_s)
        if not result.found:
            return None
        header = read_header(result.header)
        if (header.blob.blob_id, header.index) != (blob_id, index):
            raise BadRecord("record belongs to another place")
        return ShardPlace(header, RemoteRef(data if result.length else None))

    async def read(self, place: ShardPlace, offset: int, view: memoryview) -> int:
        """See the port."""
        header = place.header
        wanted = max(0, min(len(view), header.blob.geometry.shard_bytes - offset))
        if offset < 0 or not wanted:
            return 0
        if not isinstance(place.ref, RemoteRef):
            raise TypeError("the place is of another drive")
        if place.ref.data is not None:
            view[:wanted] = place.ref.data[offset : offset + wanted]
            return wanted
        if wanted > PEER_BATCH_READ_BYTES_MAX:
            return await self._read_stream(header, offset, view[:wanted])
        op = pb.Op(kind=pb.Op.READ, blob_id=header.blob.blob_id, index=header.index, offset=offset, length=wanted)
        _, data = await self._looks.ask(op)
        count = min(len(data), wanted)
        view[:count] = data[:count]
        return count

    async def _read_stream(self, header: ShardHeader, offset: int, view: memoryview) -> int:
        request = pb.ReadShardRequest(
            drive_id=self.drive_id, blob_id=header.blob.blob_id, index=header.index, offset=offset, length=len(view)
        )
        filled = 0
        async with aclosing(Incoming(self.peer, self.label, "ReadShard", request).messages()) as messages:  # type: ignore[type-var]
            async for kind, payload in messages:
                if kind is Kind.FRAMES:
                    count = min(len(payload), len(view) - filled)
                    view[filled : filled + count] = payload[:count]
                    filled += count
                elif kind is Kind.LAST:
                    answer, _ = read_document(pb.ReadShardAnswer, payload)
                    if answer.HasField("failure"):
                        raise error_of(answer.failure, self.label)
        return filled

    def at_hand(self, blob_id: BlobId, index: int) -> memoryview | None:
        """See the port: nothing of another node's is."""
        return None

    async def read_into(self, place: ShardPlace, offset: int, sink: Sink) -> None:
        """See the port: a frame at a time."""
        geometry = place.header.blob.geometry
        while sink.wants and 0 <= offset < geometry.shard_bytes:
            whole = geometry.frame_len(0)
            end = min(offset - offset % whole + whole, geometry.shard_bytes)
            piece = memoryview(bytearray(end - offset))
            count, at = await self.read(place, offset, piece), 0
            while 0 < (wants := sink.wants) <= count - at:
                sink.feed(piece[at : at + wants])
                at += wants
            if at == 0:
                return  # cut short, or a piece that no frame's end divides
            offset += at

    def begin_into(self, place: ShardPlace, offset: int, sink: Sink) -> asyncio.Future[None] | None:
        """See the port: never here, where an answer has to be waited for."""
        return None

    async def verify(self, place: ShardPlace) -> ShardFooter:
        """See the port."""
        header = place.header
        op = pb.Op(kind=pb.Op.VERIFY, blob_id=header.blob.blob_id, index=header.index)
        result, _ = await self._looks.ask(op)
        return read_footer(result.footer)

    async def remove(self, blob_id: BlobId, index: int, *, superseded: bool = False) -> bool:
        """See the port. Raises Unavailable, too, while the other node holds removals or has no lease, and where the call was long on its
        way."""
        op = pb.Op(kind=pb.Op.REMOVE, blob_id=blob_id, index=index, superseded=superseded)
        result, _ = await self._removals.ask(op)
        return bool(result.found)

    async def partitions(self) -> frozenset[int]:
        """See the port."""
        self.peer.check(self.label)
        payload = await self.peer.ask("Partitions", pb.PartitionsRequest(drive_id=self.drive_id))
        answer, _ = read_document(pb.PartitionsAnswer, payload)
        if answer.HasField("failure"):
            raise error_of(answer.failure, self.label)
        return frozenset(answer.partitions)

    async def scan(self, partitions: Collection[int] | None = None) -> AsyncIterator[ShardPlace]:
        """See the port."""
        if partitions is not None and not partitions:
            return  # to name none would ask for all
        request = pb.ScanRequest(drive_id=self.drive_id, partitions=partitions)
        async with aclosing(Incoming(self.peer, self.label, "Scan", request).messages()) as messages:  # type: ignore[type-var]
            async for _, payload in messages:
                answer, _ = read_document(pb.ScanAnswer, payload)
                if answer.HasField("failure"):
                    raise error_of(answer.failure, self.label)
                for place in answer.places:
                    yield ShardPlace(read_header(place.header), RemoteRef(), damaged=place.damaged)
