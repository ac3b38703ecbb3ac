"""Small operations of another node on one of this node's drives, done side by side, each with its own end.

Owns: what each operation does, and how much an answer may hold. Invariant: one operation that fails or hangs takes nothing from another but
its place in the answer. A place is never trusted across the wire: whoever reads names the shard, and it is looked up here, since
compaction may have moved it. Not here: messages and calls (`service.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from anvil.base.errors import BadRecord, InvalidRequest
from anvil.base.limits import OPEN_READ_BYTES, PEER_BATCH_BYTES_MAX, PEER_BATCH_OPS_MAX, PEER_BATCH_READ_BYTES_MAX
from anvil.base.types import Buffer
from anvil.engine.context import Buffers
from anvil.engine.ports import Drive
from anvil.peers.documents import encode_plain, read_footer, read_header, room
from anvil.peers.failures import failure_of
from anvil.peers.proto import shards_pb2 as pb

_NOTHING: Final = memoryview(b"")


class Batch:
    """One batch; `data`: what stands behind its document. `assert_removable`: asked before each removal, with its
    `superseded`."""

    def __init__(
        self,
        drive: Drive,
        request: pb.BatchRequest,
        data: memoryview,
        buffers: Buffers,
        assert_removable: Callable[[bool], None],
    ) -> None:
        """Raises InvalidRequest for one that is larger than it may be."""
        puts = sum([op.length for op in request.ops if op.kind == pb.Op.PUT])
        reads = [op.length for op in request.ops if op.kind == pb.Op.READ]
        if len(request.ops) > PEER_BATCH_OPS_MAX or puts != len(data) or max(reads, default=0) > PEER_BATCH_READ_BYTES_MAX:
            raise InvalidRequest("A batch between nodes is not what it may be.")
        if sum(reads) > PEER_BATCH_BYTES_MAX + PEER_BATCH_READ_BYTES_MAX:
            raise InvalidRequest("A batch between nodes is not what it may be.")
        self._drive: Final = drive
        self._assert_removable: Final = assert_removable
        self._ops: Final = request.ops
        self._data: Final = data
        self._buffers: Final = buffers
        self._spare_bytes = PEER_BATCH_BYTES_MAX - sum(reads)  # for payloads of small shards that are opened

    async def run(self) -> tuple[pb.BatchAnswer, list[Buffer]]:
        """The answer, and what stands behind it."""
        works, at = [], 0
        for op in self._ops:
            piece = _NOTHING
            if op.kind == pb.Op.PUT:
                piece, at = self._data[at : at + op.length], at + op.length
            works.append(self._one(op, piece))
        done = [await works[0]] if len(works) == 1 else await asyncio.gather(*works)
        return pb.BatchAnswer(results=[result for result, _ in done]), [piece for _, piece in done if piece]

    async def _one(self, op: pb.Op, piece: memoryview) -> tuple[pb.Result, Buffer]:
        try:
            if op.kind == pb.Op.PUT:
                await self._drive.put(read_header(op.header), piece, read_footer(op.footer))
                return pb.Result(), _NOTHING
            if op.kind == pb.Op.OPEN:
                return await self._open(op)
            if op.kind == pb.Op.READ:
                found = await read_some(self._drive, op.blob_id, op.index, op.offset, await room(self._buffers, op.length))
                return pb.Result(length=len(found)), found
            if op.kind == pb.Op.VERIFY:
                place = await self._drive.open(op.blob_id, op.index)
                if place is None:
                    raise BadRecord("the record is gone")
                return pb.Result(footer=encode_plain(await self._drive.verify(place))), _NOTHING
            if op.kind == pb.Op.REMOVE:
                self._assert_removable(op.superseded)
                had = await self._drive.remove(op.blob_id, op.index, superseded=op.superseded)
                return pb.Result(found=had), _NOTHING
            raise InvalidRequest("Another node asks for something that is not known here.")
        except Exception as error:
            return pb.Result(failure=failure_of(error)), _NOTHING

    async def _open(self, op: pb.Op) -> tuple[pb.Result, Buffer]:
        """A small shard is on its way as a whole, which spares whoever reads it a second trip."""
        drive = self._drive
        place = await drive.open(op.blob_id, op.index, op.patience_s or None)
        if place is None:
            return pb.Result(), _NOTHING
        result, size = pb.Result(found=True, header=encode_plain(place.header)), place.header.blob.geometry.shard_bytes
        if size > min(self._spare_bytes, OPEN_READ_BYTES):
            return result, _NOTHING
        self._spare_bytes -= size
        view = await room(self._buffers, size)
        count = await drive.read(place, 0, view)
        if count < size:
            return result, _NOTHING  # whoever reads will see that it is cut short
        result.length = size
        return result, view


async def read_some(drive: Drive, blob_id: bytes, index: int, offset: int, view: memoryview) -> memoryview:
    """The beginning of `view` that could be filled with the shard's payload: less where the shard is cut short, damaged or gone."""
    try:
        place = await drive.open(blob_id, index)
    except BadRecord:
        return _NOTHING
    return view[: await drive.read(place, offset, view)] if place is not None else _NOTHING
