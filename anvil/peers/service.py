"""`anvil.internal.v1.Shards`: this node's drives, for the other nodes of the region.

Owns: who may call and how much at a time, and the calls themselves. Invariants: nothing of a call is read before its head is proved, and
nothing of a message is believed before its tag is; what a drive says is an answer, sealed, so that nobody between the nodes can make up
either success or loss; a large shard whose writer goes away is taken back. Not here: single operations (`batch.py`), where it listens.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from anvil.base import instruments
from anvil.base.errors import AnvilError, BadRecord, DriveFailed, IncompleteBody, InvalidRequest, SlowDown, Unavailable
from anvil.base.limits import (
    H2_STREAMS_MAX,
    JOIN_BYTES_MAX,
    PEER_CALLS_MAX,
    PEER_CALLS_PER_NODE_MAX,
    PEER_LOST_S,
    PEER_MESSAGE_BYTES,
    PEER_REMOVAL_S,
    PEER_SCAN_PLACES,
)
from anvil.base.owned import ended
from anvil.base.types import Buffer
from anvil.engine.context import Buffers
from anvil.engine.ports import Drive, LargeShard
from anvil.model.cluster import NodeId
from anvil.model.layout import PARTITIONS
from anvil.model.records import DriveId
from anvil.net.port import NetLimits
from anvil.net.stream import TrailingHandler, TrailingStream
from anvil.peers.ages import Ages, uptime_s
from anvil.peers.batch import Batch
from anvil.peers.documents import Requests, document, encode_plain, head_of, raw, read_document, read_footer, read_header, seal
from anvil.peers.failures import failure_of
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import HEAD_NAME, Keys, Kind, NotAuthentic, Served
from anvil.rpc.context import Context
from anvil.rpc.host import GrpcHost, Status

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
Drives = Callable[[], Mapping[DriveId, Drive]]

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Shards"].full_name
METHODS: Final = frozenset(method.name for method in pb.DESCRIPTOR.services_by_name["Shards"].methods)
_PREFIX: Final = f"/{SERVICE}/"
_STATUS_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_UNAUTHENTICATED: Final = 16
_RESOURCE_EXHAUSTED: Final = 8
_INVALID_ARGUMENT: Final = 3
_INTERNAL: Final = 13


class Removals(NamedTuple):
    """Whether other nodes may have shards removed here now: `leased`: this process holds the lease of its session; `held`: removals are."""

    leased: Callable[[], bool] = lambda: True
    held: Callable[[], bool] = lambda: False


def shard_host(
    own: NodeId,
    secret: str,
    drives: Drives,
    buffers: Buffers,
    removals: Removals,
    now_s: Callable[[], float] = uptime_s,
) -> TrailingHandler:
    """What serves this process's drives (`net.server.serve(grpc=...)`, with `port_limits()`). `buffers`: a pool of its own. In one with the
    requests of this node, two nodes could each hold all of theirs and wait for the other's. `now_s`: a clock that goes on while the
    machine stands still."""
    service = ShardService(Keys(own, secret), own, drives, buffers, removals, Ages(now_s))
    host = GrpcHost(admit=service.admit, describe=service.describe, observe=service.over)
    host.add_registered_method_handlers(
        SERVICE,
        {
            "Ping": grpc.stream_unary_rpc_method_handler(service.ping),
            "Batch": grpc.stream_stream_rpc_method_handler(service.batch),  # of one answer, whose bytes are not copied
            "Partitions": grpc.stream_unary_rpc_method_handler(service.partitions),
            "PutShard": grpc.stream_stream_rpc_method_handler(service.put_shard),
            "ReadShard": grpc.stream_stream_rpc_method_handler(service.read_shard),
            "Scan": grpc.stream_stream_rpc_method_handler(service.scan),
        },
    )
    return host


def port_limits() -> NetLimits:
    """Of the cluster port. A large shard comes as fast as some client sends the object, and a scan is taken as fast as a survey may work:
    there is no least rate. A node that went away is noticed by its silence (PEER_LOST_S)."""
    return NetLimits(
        body_stall_s=math.inf, write_stall_s=math.inf, streams_shown=H2_STREAMS_MAX, requests_in_flight=PEER_CALLS_MAX
    )


def _takes_raw(method: F) -> F:
    method.takes = raw  # type: ignore[attr-defined]
    return method


class ShardService:
    """The methods; each gets the stream of its call."""

    def __init__(self, keys: Keys, own: NodeId, drives: Drives, buffers: Buffers, removals: Removals, ages: Ages) -> None:
        self._keys: Final = keys
        self._own: Final = own
        self._drives: Final = drives
        self._buffers: Final = buffers
        self._removals: Final = removals
        self._ages: Final = ages
        self._calls: Final[Counter[NodeId]] = Counter()
        self._heard: Final[dict[NodeId, float]] = {}

    # -- for the host

    async def admit(self, context: Context) -> None:
        """Raises NotAuthentic."""
        head = context.stream.head.all(HEAD_NAME.encode())
        context.known = False
        served = self._keys.admit(context.method, head)
        self._calls[served.caller] += 1
        self._heard[served.caller] = asyncio.get_running_loop().time()
        self._ages.heard(served.caller, served.sent_s)
        context.caller, context.known = served, True

    def over(self, context: Context, error: Exception | None) -> None:
        if isinstance(error, NotAuthentic):
            instruments.PEER_REFUSED.labels(error.reason).inc()
            log.debug("a call of %s was refused: %s", context.stream.head.peer, error.reason)
        self._count(context)
        if context.caller is not None:
            caller = context.caller.caller
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

    def _count(self, context: Context) -> None:
        """One call more of the API `internal`."""
        stream, code, first = context.stream, context.code(), context.first_byte_at
        name = context.method.removeprefix(_PREFIX)
        operation = name if name in METHODS else "other"
        instruments.API_REQUESTS.labels("internal", operation, str(code)).inc()
        instruments.API_DURATION.labels("internal", operation).observe(perf_counter() - context.started_at)
        if first is not None:
            instruments.API_TTFB.labels("internal", operation).observe(first - context.started_at)
        if code:
            instruments.API_ERRORS.labels("internal", operation, _STATUS_NAMES.get(code, "UNKNOWN")).inc()
        instruments.API_RECEIVED.labels("internal").inc(stream.received_bytes)
        instruments.API_SENT.labels("internal").inc(stream.sent_bytes)

    def describe(self, error: Exception, context: Context) -> Status:
        """Little: who is not one of us learns nothing, and who is finds what matters in the documents."""
        if isinstance(error, NotAuthentic):
            return Status(_UNAUTHENTICATED, NotAuthentic.default)
        if isinstance(error, SlowDown):
            return Status(_RESOURCE_EXHAUSTED, SlowDown.default)
        if isinstance(error, AnvilError):
            return Status(_INVALID_ARGUMENT, error.message)
        log.error("call %s of another node failed", context.method, exc_info=error)
        return Status(_INTERNAL, "")

    # -- one document each way

    @_takes_raw
    async def ping(self, stream: TrailingStream, context: Context) -> bytes:
        await self._only(stream, context, pb.PingRequest)
        states = [_state(drive) for drive in self._drives().values()]
        return _whole(context.caller, pb.PingAnswer(node_id=self._own, drives=states))

    @_takes_raw
    async def batch(self, stream: TrailingStream, context: Context) -> None:
        request, data = await self._only(stream, context, pb.BatchRequest)
        pieces: list[Buffer] = []
        try:
            drive, may = self._drive(context, request.drive_id), partial(self._assert_removable, context.caller)
            answer, pieces = await Batch(drive, request, data, self._buffers, may).run()
        except AnvilError as error:
            answer = pb.BatchAnswer(failure=failure_of(error))
        del data  # what was put needs no room any more
        await _Out(context).last(answer, *pieces)

    @_takes_raw
    async def partitions(self, stream: TrailingStream, context: Context) -> bytes:
        request, _ = await self._only(stream, context, pb.PartitionsRequest)
        try:
            answer = pb.PartitionsAnswer(partitions=sorted(await self._drive(context, request.drive_id).partitions()))
        except AnvilError as error:
            answer = pb.PartitionsAnswer(failure=failure_of(error))
        return _whole(context.caller, answer)

    # -- streams

    @_takes_raw
    async def put_shard(self, stream: TrailingStream, context: Context) -> None:
        out, requests = _Out(context), Requests(stream, context.caller, self._buffers)
        request, _ = await requests.document(pb.PutShardRequest, last=False)
        try:
            with _Lifeline(self._heard, context.caller.caller):
                header = read_header(request.header)
                shard = await self._drive(context, request.drive_id).create(header)
                await _receive(shard, header.blob.geometry.shard_bytes, requests, out)
        except (NotAuthentic, IncompleteBody):
            raise
        except Exception as error:
            await out.last(pb.Answer(failure=failure_of(error)))
        else:
            await out.last(pb.Answer())

    @_takes_raw
    async def read_shard(self, stream: TrailingStream, context: Context) -> None:
        out = _Out(context)
        request, _ = await self._only(stream, context, pb.ReadShardRequest)
        try:
            with _Lifeline(self._heard, context.caller.caller):
                await self._send_range(self._drive(context, request.drive_id), request, out)
        except AnvilError as error:
            await out.last(pb.ReadShardAnswer(failure=failure_of(error)))
        else:
            await out.last(pb.ReadShardAnswer())

    @_takes_raw
    async def scan(self, stream: TrailingStream, context: Context) -> None:
        out = _Out(context)
        request, _ = await self._only(stream, context, pb.ScanRequest)
        partitions = frozenset(request.partitions) or None
        places: list[pb.Place] = []
        try:
            if partitions is not None and max(partitions) >= PARTITIONS:
                raise InvalidRequest("There is no such partition.")
            with _Lifeline(self._heard, context.caller.caller):
                async for place in self._drive(context, request.drive_id).scan(partitions):
                    places.append(pb.Place(header=encode_plain(place.header), damaged=place.damaged))
                    if len(places) >= PEER_SCAN_PLACES:
                        await out.document(pb.ScanAnswer(places=places))
                        places = []
        except AnvilError as error:
            await out.last(pb.ScanAnswer(failure=failure_of(error)))
        else:
            await out.last(pb.ScanAnswer(places=places))

    # -- inside

    async def _send_range(self, drive: Drive, request: pb.ReadShardRequest, out: _Out) -> None:
        """What there is of it: less where the shard is cut short, damaged or gone."""
        offset, left = request.offset, request.length
        try:
            place = await drive.open(request.blob_id, request.index)
        except BadRecord:
            return
        while left and place is not None:
            view = memoryview(await self._buffers.acquire(min(left, PEER_MESSAGE_BYTES)))
            count = await drive.read(place, offset, view)
            if count:
                await out.frames(view[:count])
            if count < len(view):
                break
            offset, left = offset + count, left - count
            del view

    async def _only(self, stream: TrailingStream, context: Context, message: type[Message]) -> tuple[Any, memoryview]:
        return await Requests(stream, context.caller, self._buffers).document(message, last=True)

    def _assert_removable(self, served: Served, superseded: bool) -> None:
        """What is `superseded` is not held. Raises Unavailable; DriveFailed where the asker had better not wait for this node."""
        if self._ages.of(served.caller, served.sent_s) > PEER_REMOVAL_S:
            raise Unavailable("The removal was too long on its way.")
        if not self._removals.leased():
            raise DriveFailed("The node has lost its lease.", reason="lease")
        if self._removals.held() and not superseded:
            raise Unavailable("The node holds removals.")

    def _drive(self, context: Context, drive_id: DriveId) -> Drive:
        if self._calls[context.caller.caller] > PEER_CALLS_PER_NODE_MAX:
            raise SlowDown  # pings are answered also then: a node that has much to do is not one that does not answer
        drive = self._drives().get(drive_id)
        if drive is None:
            raise DriveFailed("The node does not have that drive.", reason="unknown")
        return drive


async def _receive(shard: LargeShard, left: int, requests: Requests, out: _Out) -> None:
    """All of a shard that was created: while one message is written, the next one comes in."""
    writing: asyncio.Task[None] | None = None
    published = False
    try:
        await out.document(pb.Answer())
        while left:
            kind, frames = await requests.next()
            if kind is not Kind.FRAMES or len(frames) > min(left, PEER_MESSAGE_BYTES):
                raise InvalidRequest("A message between nodes is out of place.")
            left -= len(frames)
            await _over(writing)
            writing = asyncio.get_running_loop().create_task(shard.write(frames))
            del frames
        kind, payload = await requests.next()
        if kind is not Kind.LAST:
            raise InvalidRequest("A message between nodes is out of place.")
        footer, _ = read_document(pb.Footer, payload)
        await _over(writing)
        await shard.publish(read_footer(footer.footer))
        published = True
    finally:
        if not published:
            await _take_back(shard, writing)


async def _over(writing: asyncio.Task[None] | None) -> None:
    """Until it is. Whoever waits may be cancelled, what is written may not."""
    if writing is not None:
        await ended(writing)
        writing.result()


async def _take_back(shard: LargeShard, writing: asyncio.Task[None] | None) -> None:
    if writing is not None:
        await ended(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.debug("a shard of another node is taken back: %s", error)
    await shard.abort()


class _Out:
    """The answers of one call."""

    __slots__ = ("_context", "_salt", "_served")

    def __init__(self, context: Context) -> None:
        self._context: Final = context
        self._served: Final[Served] = context.caller
        self._salt = self._served.salt

    async def document(self, message: Message) -> None:
        await self._send(Kind.DOCUMENT, *document(message))

    async def last(self, message: Message, *data: Buffer) -> None:
        """`data` is not copied and must not change."""
        await self._send(Kind.LAST, *document(message, *data))

    async def frames(self, view: memoryview) -> None:
        """`view` is not copied and must not change."""
        await self._send(Kind.FRAMES, view)

    async def _send(self, kind: Kind, *pieces: Buffer) -> None:
        salt, self._salt = self._salt, b""
        size = sum(map(len, pieces))
        head = head_of(salt + self._served.sealer.tag(kind, *pieces), size)
        if size <= JOIN_BYTES_MAX:
            await self._context.write_pieces(b"".join((head, *pieces)))
        else:
            await self._context.write_pieces(head, *pieces)


class _Lifeline:
    """Cancels the task it was made in when nothing has been heard of a node for PEER_LOST_S: no connection of a machine that lost its power
    says that it is over."""

    def __init__(self, heard: Mapping[NodeId, float], caller: NodeId) -> None:
        self._heard: Final = heard
        self._caller: Final = caller
        self._task: Final = asyncio.current_task()
        self._loop: Final = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PEER_LOST_S, self._look)

    def _look(self) -> None:
        left_s = self._heard[self._caller] + PEER_LOST_S - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        elif self._task is not None:
            log.warning("node %s has not been heard of; a shard it was writing is taken back", self._caller.hex())
            self._task.cancel()

    def __enter__(self) -> None:
        """From here on."""

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()


def _whole(served: Served, message: Message, *data: Buffer) -> bytes:
    return seal(served.sealer, Kind.LAST, *document(message, *data), salt=served.salt)


def _state(drive: Drive) -> pb.DriveState:
    return pb.DriveState(
        drive_id=drive.drive_id,
        readable=drive.readable,
        writable=drive.writable,
        reason=getattr(drive, "reason", None) or "",
        free_bytes=getattr(drive, "free_bytes", 0),
        capacity_bytes=getattr(drive, "capacity_bytes", 0),
    )
