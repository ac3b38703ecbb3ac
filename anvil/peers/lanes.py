"""Small operations on drives of a peer, many in one message.

Owns: what waits for one drive and kind of operation, and when it goes. Invariants: nothing waits for a timer: what queued up while the
batches before it were on their way is the next one, so one lone operation waits for nobody; a drive that is slow holds up its own lanes
alone; who gives up waiting takes nothing from the others of the batch. Not here: what a batch does (`batch.py`), the call (`peer.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from anvil.base.errors import AnvilError, DriveFailed, DriveStalled, SlowDown
from anvil.base.limits import PEER_BATCH_BYTES_MAX, PEER_BATCH_OPS_MAX, PEER_BATCHES_IN_FLIGHT, PEER_QUEUE_OPS_MAX
from anvil.base.types import Buffer
from anvil.model.records import DriveId
from anvil.peers.documents import read_document
from anvil.peers.failures import error_of
from anvil.peers.peer import Peer
from anvil.peers.proto import shards_pb2 as pb

Reply = tuple[pb.Result, memoryview]


class _Asked(NamedTuple):
    op: pb.Op
    data: bytes
    answered: asyncio.Future[Reply]


class Lane:
    """Of one drive and one kind of operation."""

    def __init__(self, peer: Peer, drive_id: DriveId, label: str) -> None:
        self._peer: Final = peer
        self._drive_id: Final = drive_id
        self._label: Final = label
        self._loop: Final = asyncio.get_running_loop()
        self._queue: deque[_Asked] = deque()
        self._in_flight = 0
        self._due = False

    async def ask(self, op: pb.Op, data: bytes = b"", patience_s: float | None = None) -> Reply:
        """Its result and the bytes that came with it. Raises what the drive raised; DriveFailed, DriveStalled for the peer; SlowDown."""
        self._peer.check(self._label)
        if len(self._queue) >= PEER_QUEUE_OPS_MAX:
            raise SlowDown
        answered: asyncio.Future[Reply] = self._loop.create_future()
        self._queue.append(_Asked(op, data, answered))
        if not self._due and self._in_flight < PEER_BATCHES_IN_FLIGHT:
            self._due = True
            self._loop.call_soon(self._pump)
        if patience_s is None:
            return await answered
        try:
            async with asyncio.timeout(patience_s):
                return await answered
        except TimeoutError:
            raise DriveStalled(drive=self._label) from None

    def _pump(self) -> None:
        self._due = False
        while self._in_flight < PEER_BATCHES_IN_FLIGHT and (batch := self._next()):
            self._in_flight += 1
            self._peer.tasks.start(self._send(batch))

    def _next(self) -> list[_Asked]:
        """What goes together, without those who wait no more."""
        batch: list[_Asked] = []
        nbytes = 0
        while self._queue and len(batch) < PEER_BATCH_OPS_MAX:
            first = self._queue[0]
            if first.answered.done():
                self._queue.popleft()
                continue
            nbytes += first.op.length
            if batch and nbytes > PEER_BATCH_BYTES_MAX:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _send(self, batch: list[_Asked]) -> None:
        task = asyncio.current_task()

        def give_up(error: AnvilError) -> None:
            self._fail(batch, error)
            self._fail(list(self._queue), error)
            self._queue.clear()
            if task is not None:
                task.cancel()

        number = self._peer.begin(give_up)
        try:
            self._peer.check(self._label)
            request = pb.BatchRequest(drive_id=self._drive_id, ops=[asked.op for asked in batch])
            data: list[Buffer] = [asked.data for asked in batch if asked.data]
            answer, rest = read_document(pb.BatchAnswer, await self._peer.ask("Batch", request, *data))
            self._settle(batch, answer, rest)
        except AnvilError as error:
            self._fail(batch, error)
        finally:
            self._peer.end(number)
            self._fail(batch, DriveFailed(reason="the call ended"))  # cancelled; of those that were answered nothing changes
            self._in_flight -= 1
            self._pump()

    def _settle(self, batch: list[_Asked], answer: pb.BatchAnswer, data: memoryview) -> None:
        if answer.HasField("failure"):
            self._fail(batch, error_of(answer.failure, self._label))
            return
        if len(answer.results) != len(batch) or sum([result.length for result in answer.results]) != len(data):
            self._fail(batch, DriveFailed(reason="an answer of its node is not what it should be"))
            return
        at = 0
        for asked, result in zip(batch, answer.results, strict=True):
            piece, at = data[at : at + result.length], at + result.length
            if asked.answered.done():
                continue
            if result.HasField("failure"):
                asked.answered.set_exception(error_of(result.failure, self._label))
            else:
                asked.answered.set_result((result, piece))

    def _fail(self, batch: list[_Asked], error: AnvilError) -> None:
        """Each gets an error of its own: one that is raised holds frames."""
        for asked in batch:
            if not asked.answered.done():
                named = {**error.fields, "drive": self._label}
                asked.answered.set_exception(type(error)(error.message, **named))
