"""Another node, as one process of this node sees it: the connection, whether it answers, how its drives are.

Owns: the channel, the pings, the verdicts *down* (it cannot be reached) and *stalled* (it does not answer). Invariants: whoever waits for a
peer is told as soon as either is known, so a peer that hangs costs everybody PEER_STALLED_S once, and nothing afterwards: no call is begun
until a ping was answered. A peer is stalled when it was asked something and then said nothing at all for PEER_STALLED_S: a slow drive of
a peer that answers pings is that drive's matter, and its own node's to judge. Not here: what is asked (`lanes.py`, `transfer.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, NamedTuple

import grpc
import msgspec
from google.protobuf.message import Message

from anvil.base.errors import AnvilError, DriveFailed, DriveStalled, SlowDown, Unavailable
from anvil.base.limits import (
    GRPC_MESSAGE_BYTES_MAX,
    PEER_ANSWER_S,
    PEER_CONNECT_S,
    PEER_PING_IDLE_S,
    PEER_PING_S,
    PEER_RECONNECT_S_MAX,
    PEER_RECONNECT_S_MIN,
    PEER_STALLED_S,
)
from anvil.base.owned import OwnedTasks
from anvil.base.types import Buffer
from anvil.model.cluster import NodeId
from anvil.model.records import DriveId
from anvil.peers.documents import Answers, document, read_document, seal
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import HEAD_NAME, Keys, Kind, NotAuthentic

log = logging.getLogger(__name__)

Observe = Callable[[str, float, str], None]
"""Called once for each call, after it: its method, seconds, and the reason of its failure or nothing."""
GiveUp = Callable[[AnvilError], None]
_PATH: Final = f"/{pb.DESCRIPTOR.services_by_name['Shards'].full_name}/"


class PeerTimes(NamedTuple):
    """The bounds of waiting; tests pass shorter ones. `idle_s`: between pings of a peer of which nothing else was asked for as long."""

    ping_s: float = PEER_PING_S
    idle_s: float = PEER_PING_IDLE_S
    stalled_s: float = PEER_STALLED_S
    answer_s: float = PEER_ANSWER_S


class DriveState(msgspec.Struct, frozen=True):
    """A drive as its node described it last."""

    readable: bool = False
    writable: bool = False
    reason: str = "its node is not reachable"
    free_bytes: int = 0
    capacity_bytes: int = 0


UNKNOWN: Final = DriveState()


class Peer:
    """Used from one event loop. `start` begins the pings."""

    def __init__(self, node_id: NodeId, keys: Keys, observe: Observe, times: PeerTimes) -> None:
        self.node_id: Final = node_id
        self.name = node_id.hex()[:8]
        self.address = ""
        self.drives: Mapping[DriveId, DriveState] = {}
        self.last_seen: float | None = None  # unix seconds
        self.streams = 0  # large shards and scans under way
        self.times: Final = times
        self.settled: Final = asyncio.Event()  # a ping was answered or failed
        self.tasks: Final = OwnedTasks(f"peer {self.name}")
        self._keys: Final = keys
        self._observe: Final = observe
        self._loop: Final = asyncio.get_running_loop()
        self._channel: grpc.aio.Channel | None = None
        self._callables: dict[str, Any] = {}
        self._up = False
        self._stalled = False
        self._asked: OrderedDict[int, tuple[float, GiveUp | None]] = OrderedDict()
        self._number = 0
        self._heard_s = 0.0
        self._used_s = -math.inf
        self._suspect = False
        self._timer: asyncio.TimerHandle | None = None
        self._hurry: Final = asyncio.Event()
        self._pinging: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._refused = ""  # why the last ping failed, as it was logged

    # -- its life

    def move(self, name: str, address: str) -> None:
        """Where it is from now on; an empty address is nowhere."""
        self.name = name or self.name
        if not address:
            self.settled.set()
        if address == self.address:
            return
        self.address = address
        self._lose(DriveFailed(reason="moved"), stalled=False)
        self._replace_channel()
        if address and self._watcher is None:
            self._watcher = self._loop.create_task(self._watch())

    async def close(self) -> None:
        """Give up what is under way."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])
        self._lose(Unavailable("The node leaves the cluster or this process ends."), stalled=False)
        channel, self._channel = self._channel, None
        self._callables = {}
        if channel is not None:
            await channel.close(None)
        await self.tasks.close(1.0)

    # -- whether it answers

    @property
    def reachable(self) -> bool:
        return self._up

    @property
    def stalled(self) -> bool:
        return self._stalled

    @property
    def trouble(self) -> str:
        """Why it is not reachable."""
        return "" if self._up else "its node does not answer" if self._stalled else UNKNOWN.reason

    def state(self, drive_id: DriveId) -> DriveState:
        if not self._up:
            return msgspec.structs.replace(UNKNOWN, reason=self.trouble)
        return self.drives.get(drive_id, UNKNOWN)

    def check(self, label: str) -> None:
        """Raises DriveStalled, DriveFailed while nothing may be asked."""
        if not self._up:
            raise (DriveStalled if self._stalled else DriveFailed)(drive=label, reason=self.trouble)

    def begin(self, give_up: GiveUp | None = None, *, ping: bool = False) -> int:
        """A question is asked; what is returned is its number, for `end`. `give_up` is told if the peer is found stalled or lost first."""
        self._number += 1
        now_s = self._loop.time()
        if not ping:
            if now_s - self._used_s >= self.times.idle_s:
                self.hurry()  # what is known of it may be old
            self._used_s = now_s
        self._asked[self._number] = now_s, give_up
        if self._timer is None:
            self._timer = self._loop.call_later(self.times.stalled_s, self._look)
        return self._number

    def end(self, number: int) -> None:
        """It was answered, or is of no interest any more."""
        self._asked.pop(number, None)

    def heard(self) -> None:
        """The peer said something, whatever it is."""
        self._heard_s = self._loop.time()
        self.last_seen = time.time()

    def hurry(self) -> None:
        """Something went wrong: look now how it is."""
        self._hurry.set()

    def _look(self) -> None:
        self._timer = None
        if not self._up or not self._asked:
            self._suspect = False
            return
        since_s = max(self._heard_s, next(iter(self._asked.values()))[0])
        left_s = since_s + self.times.stalled_s - self._loop.time()
        if left_s <= 0 and not self._suspect:
            # Was it the peer, or this process, which slept and has not yet seen what came?
            self._suspect, left_s = True, self.times.stalled_s / 20
        elif left_s > 0:
            self._suspect = False
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
            return
        self._suspect = False
        log.error("node %s does not answer: it is left alone until it does", self.name)
        self._lose(DriveStalled(reason="its node does not answer"), stalled=True)
        self._replace_channel()  # what it left unanswered goes with the connection

    def _lose(self, error: AnvilError, *, stalled: bool) -> None:
        self._up, self._stalled = False, stalled
        asked, self._asked = self._asked, OrderedDict()
        for _, give_up in asked.values():
            if give_up is not None:
                give_up(error)

    # -- pings

    async def _watch(self) -> None:
        while True:
            self._hurry.clear()
            waiting, began_s = not self._up and self.settled.is_set(), self._loop.time()
            self._pinging = self._loop.create_task(self._ping(waiting))
            try:
                await asyncio.wait([self._pinging])
            finally:
                self._pinging.cancel()
            if not self._pinging.cancelled() and (error := self._pinging.exception()) is not None:
                log.error("node %s could not be asked", self.name, exc_info=error)
            self.settled.set()
            if self._up:
                used = self._asked or self._ailing or self._loop.time() - self._used_s < self.times.idle_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self.times.ping_s if used else self.times.idle_s)
            elif waiting:  # it was reached, and refused
                await asyncio.sleep(began_s + self.times.ping_s - self._loop.time())
            if not self.address:
                await self._hurry.wait()

    @property
    def _ailing(self) -> bool:
        """Whether a drive there is in trouble: that it is over should be known soon."""
        return any(not (drive.readable and drive.writable) for drive in self.drives.values())

    async def _ping(self, waiting: bool) -> None:
        """One ping, and what follows from its end. `waiting`: it leaves when there is a connection."""
        try:
            payload = await self.ask("Ping", pb.PingRequest(), timeout_s=self.times.stalled_s * 2, wait_for_ready=waiting)
            answer, _ = read_document(pb.PingAnswer, payload)
        except AnvilError as error:
            self._ping_failed(error)
            if waiting:
                self._replace_channel()
            return
        if answer.node_id != self.node_id:
            self._ping_failed(Unavailable("another node answers there"))
            return
        self.drives = {
            one.drive_id: DriveState(one.readable, one.writable, one.reason, one.free_bytes, one.capacity_bytes)
            for one in answer.drives
        }
        if not self._up:
            log.info("node %s answers", self.name)
        self._up, self._stalled, self._refused = True, False, ""

    def _ping_failed(self, error: AnvilError) -> None:
        reason = str(error.fields.get("reason", error.message))
        if reason != self._refused:
            log.warning("node %s cannot be asked: %s", self.name, reason)
            self._refused = reason
        if self._up:
            self._lose(DriveFailed(reason="its node is not reachable"), stalled=False)

    # -- calls

    async def ask(
        self, rpc: str, request: Message, *data: Buffer, timeout_s: float | None = None, wait_for_ready: bool = False
    ) -> memoryview:
        """One document there and one back. Raises DriveFailed, DriveStalled (it took too long), what is to be done by whoever begins a
        question around it excepted."""
        started, reason = perf_counter(), ""
        call = self._keys.call(_PATH + rpc, self.node_id)
        message = seal(call.sealer, Kind.LAST, *document(request, *data))
        number = self.begin(ping=rpc == "Ping")
        try:
            answer = await self.method(rpc, "unary_unary")(
                message,
                metadata=((HEAD_NAME, call.head),),
                timeout=self.times.answer_s if timeout_s is None else timeout_s,
                wait_for_ready=wait_for_ready,
            )
            kind, payload = Answers(call).open(answer)
            if kind is not Kind.LAST:
                raise NotAuthentic("message")
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            fault = self.fault(error)  # also where the call was cancelled, with its channel, and not who waits for it
            reason = type(fault).__name__
            raise fault from None
        finally:
            self.end(number)
            self._observe(rpc, perf_counter() - started, reason)
        self.heard()
        return payload

    def head(self, rpc: str) -> Any:
        """A call to be made by the caller, and its metadata."""
        return self._keys.call(_PATH + rpc, self.node_id)

    def observed(self, rpc: str, started: float, error: BaseException | None) -> None:
        """A stream has ended."""
        self._observe(rpc, perf_counter() - started, "" if error is None else type(error).__name__)

    def method(self, rpc: str, arity: str) -> Any:
        """What makes calls of that method on the present connection. Raises DriveFailed where there is none."""
        found = self._callables.get(rpc)
        if found is None:
            if self._channel is None:
                raise DriveFailed(reason=UNKNOWN.reason)
            found = self._callables[rpc] = getattr(self._channel, arity)(_PATH + rpc)
        return found

    def fault(self, error: BaseException) -> AnvilError:
        """What a call that failed on its way means."""
        if isinstance(error, grpc.aio.AioRpcError):
            return self.fault_of(error.code())
        if isinstance(error, NotAuthentic):
            log.error("an answer of node %s is not authentic", self.name)
            return DriveFailed(reason="an answer of its node is not authentic")
        if isinstance(error, AnvilError):
            return error
        if self._stalled:
            return DriveStalled(reason=self.trouble)
        return DriveFailed(reason="the call ended")  # cancelled with its channel, or an end that grpcio has no status for

    def fault_of(self, code: grpc.StatusCode) -> AnvilError:
        """What the status of a call means that got no further."""
        if code is grpc.StatusCode.UNAVAILABLE:
            self.hurry()
            return DriveFailed(reason=UNKNOWN.reason)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DriveStalled(reason="its node did not answer in time")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return SlowDown()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return DriveFailed(reason="its node has another cluster secret, or its clock differs")
        return DriveFailed(reason=f"its node answered {code.name}")

    def _replace_channel(self) -> None:
        channel, self._channel = self._channel, None
        self._callables = {}
        if channel is not None:
            self.tasks.start(channel.close(None))
        if self.address:
            self._channel = _open_channel(self.address)
        if self._pinging is not None:
            self._pinging.cancel()
        self.hurry()


def _open_channel(address: str) -> grpc.aio.Channel:
    """Connects with the first call, and again by itself. Plaintext: see `sealing.py`."""
    return grpc.aio.insecure_channel(
        address,
        [
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, also its backoff
            ("grpc.enable_http_proxy", 0),  # the environment's proxy does not lead to other nodes
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_retries", 0),  # what may be repeated is decided here
            ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", int(PEER_RECONNECT_S_MIN * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(PEER_CONNECT_S * 1000)),  # is also the time one attempt may take
            ("grpc.max_reconnect_backoff_ms", int(PEER_RECONNECT_S_MAX * 1000)),
        ],
    )
