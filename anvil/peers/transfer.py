"""Large shards to and from a peer's drive, and scans: streams.

Owns: the state of one stream at this end. Invariants: what is sent was copied before the call that sends it returns or raises, so a
caller's buffer is never looked at afterwards; whoever waits is told when the peer is lost, stalled, or says that it failed, whichever
comes first; a stream that nobody reads to its end is cancelled. Not here: small operations (`lanes.py`), the other end (`service.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from time import perf_counter
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from anvil._ec.pieces import Source
from anvil.base.errors import AnvilError, DriveFailed, DriveStalled, SlowDown
from anvil.base.limits import PEER_MESSAGE_BYTES, PEER_STREAMS_MAX
from anvil.base.types import Buffer, Told
from anvil.model.records import DriveId
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.peers.documents import Answers, document, encode_plain, read_document, seal
from anvil.peers.failures import error_of
from anvil.peers.peer import Peer
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import HEAD_NAME, Kind, NotAuthentic

T = TypeVar("T")


class _Stream:
    """What all streams have in common: the call, the peer's verdicts, the bound on their number."""

    def __init__(self, peer: Peer, label: str, rpc: str) -> None:
        """Raises DriveFailed, DriveStalled, SlowDown."""
        peer.check(label)
        if peer.streams >= PEER_STREAMS_MAX:
            raise SlowDown
        self.peer: Final = peer
        self.label: Final = label
        self.rpc: Final = rpc
        self.started: Final = perf_counter()
        self.error: AnvilError | None = None
        self.call: Any = None
        self.lost: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self._signed: Final = peer.head(rpc)
        self._answers: Final = Answers(self._signed)
        self._number = peer.begin(self.fail)
        self._open = True
        peer.streams += 1

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((HEAD_NAME, self._signed.head),)

    def sealed(self, kind: Kind, *payload: Buffer) -> bytes:
        return seal(self._signed.sealer, kind, *payload)

    def fail(self, error: AnvilError) -> None:
        """Whoever waits gets it, and the call is over; nothing if it was ended from here before."""
        if self.error is None and self._open:
            self.error = type(error)(error.message, **{**error.fields, "drive": self.label})
        if not self.lost.done():
            self.lost.set_result(None)
        self.close()

    def close(self) -> None:
        """The end, whatever led to it."""
        if not self._open:
            return
        self._open = False
        self.peer.streams -= 1
        self.peer.end(self._number)
        self.peer.observed(self.rpc, self.started, self.error)
        if self.call is not None and not self.call.done():
            self.call.cancel()

    def raised(self) -> AnvilError:
        """The error, to be raised: each time another, since one that is raised holds frames."""
        error = self.error or DriveFailed(drive=self.label, reason="the call ended")
        return type(error)(error.message, **error.fields)

    async def race(self, work: Awaitable[T]) -> T:
        """`work`, unless the stream is lost before. Raises as `raised`."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self.lost), timeout=self.peer.times.answer_s, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()
            raise
        if self.lost.done() or not task.done():
            task.cancel()
            if self.error is None:
                self.fail(DriveStalled())
            raise self.raised()
        if task.cancelled() or (error := task.exception()) is not None:
            self.fail(self.peer.fault(asyncio.CancelledError() if task.cancelled() else error))  # type: ignore[arg-type]
            raise self.raised()
        return task.result()

    async def message(self) -> tuple[Kind, memoryview] | None:
        """The next message of the peer; None at the end of the call. Raises as `race`."""
        raw = await self.race(self.call.read())
        if not isinstance(raw, bytes):
            return None
        self.peer.heard()
        try:
            return self._answers.open(raw)
        except NotAuthentic as error:
            self.fail(self.peer.fault(error))
            raise self.raised() from None


class RemoteShard(_Stream):
    """The `LargeShard` port over one call. Made by `create`."""

    def __init__(self, peer: Peer, drive_id: DriveId, label: str, header: ShardHeader) -> None:
        super().__init__(peer, label, "PutShard")
        self._drive_id: Final = drive_id
        self._header: Final = header
        self._left = header.blob.geometry.shard_bytes
        self._published = False
        self._busy = False
        loop = asyncio.get_running_loop()
        self._created: Final[asyncio.Future[None]] = loop.create_future()
        self._durable: Final[asyncio.Future[None]] = loop.create_future()

    async def create(self) -> RemoteShard:
        """Raises StorageFull, DriveFailed, SlowDown."""
        try:
            self.call = self.peer.method(self.rpc, "stream_stream")(metadata=self.metadata)
            self.peer.tasks.start(self._listen())
            request = pb.PutShardRequest(drive_id=self._drive_id, header=encode_plain(self._header))
            await self._send(Kind.DOCUMENT, *document(request))
            await self.race(self._created)
        except BaseException:
            self.close()
            raise
        return self

    async def write(self, frames: Buffer) -> None:
        """See the port."""
        view = memoryview(frames).cast("B")
        self._alone(len(view))
        self._busy = True
        try:
            for start in range(0, len(view), PEER_MESSAGE_BYTES):
                await self._send(Kind.FRAMES, view[start : start + PEER_MESSAGE_BYTES])
        except BaseException:
            self.close()  # also where the caller was cancelled: nobody knows how much of it went
            raise
        finally:
            self._busy = False

    def begin(self, frames: Buffer | Source, told: Told) -> bool:
        """See the port: never here."""
        return False

    async def write_from(self, source: Source) -> None:
        """See the port."""
        self._alone(source.length)
        frames = bytearray(source.length)
        for at, piece in source.pieces():
            frames[at : at + len(piece)] = piece
        source.check()
        self._left += source.length
        await self.write(frames)

    async def publish(self, footer: ShardFooter) -> None:
        """See the port."""
        if self._left:
            raise ValueError(f"shard is not complete: {self._left} bytes are missing")
        self._alone(0)
        self._busy = True
        try:
            await self._send(Kind.LAST, *document(pb.Footer(footer=encode_plain(footer))))
            await self.race(self._durable)
            self._published = True
        finally:
            self._busy = False
            self.close()

    async def abort(self) -> None:
        """See the port: the peer takes back what was written when the call ends."""
        self.close()

    def _alone(self, nbytes: int) -> None:
        if self.error is not None:
            raise self.raised()
        if self._busy or not self._open:
            raise RuntimeError("a large shard takes one call at a time, and none after its end")
        if nbytes > self._left:
            self.close()
            raise ValueError("more frames than the shard's geometry has")
        self._left -= nbytes

    async def _send(self, kind: Kind, *payload: Buffer) -> None:
        await self.race(self._write(self.sealed(kind, *payload)))

    async def _write(self, message: bytes) -> None:
        try:
            await self.call.write(message)
        except Exception:
            # The peer has ended the call. Why is in what it said last, which is being read.
            await asyncio.wait([self.lost], timeout=self.peer.times.stalled_s)
            raise

    async def _listen(self) -> None:
        """Take the answers: that it was created, that it is durable, or why not."""
        try:
            for reached in (self._created, self._durable):
                found = await self.message()
                if found is None:
                    self.fail(await self._status())
                    return
                answer, _ = read_document(pb.Answer, found[1])
                if answer.HasField("failure"):
                    self.fail(error_of(answer.failure, self.label))
                    return
                if (found[0] is Kind.LAST) is not (reached is self._durable):
                    self.fail(DriveFailed(reason="an answer of its node is not what it should be"))
                    return
                if not reached.done():
                    reached.set_result(None)
        except AnvilError as error:
            self.fail(error)

    async def _status(self) -> AnvilError:
        """Why the call ended without an answer."""
        return self.peer.fault_of(await self.call.code())

    async def message(self) -> tuple[Kind, memoryview] | None:
        """As for all streams, but without a bound: nothing is said while the shard is being written."""
        try:
            raw = await self.call.read()
            if not isinstance(raw, bytes):
                return None
            self.peer.heard()
            return self._answers.open(raw)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self.peer.fault(error) from None  # the call was cancelled, not this task
        except NotAuthentic as error:
            raise self.peer.fault(error) from None
        except Exception:
            raise await self._status() from None  # what grpcio raises at the end of a call depends on when it is asked


class Incoming(_Stream):
    """One request, and messages that come back until the last."""

    def __init__(self, peer: Peer, label: str, rpc: str, request: Message) -> None:
        super().__init__(peer, label, rpc)
        try:
            message = self.sealed(Kind.LAST, *document(request))
            self.call = self.peer.method(rpc, "unary_stream")(message, metadata=self.metadata)
        except BaseException:
            self.close()
            raise

    async def messages(self) -> AsyncIterator[tuple[Kind, memoryview]]:
        """All of them, the last included: a stream that ends before it is a failure."""
        try:
            while not self._answers.ended:
                found = await self.message()
                if found is None:
                    self.fail(DriveFailed(reason="the call ended"))
                    raise self.raised()
                yield found
        finally:
            self.close()
