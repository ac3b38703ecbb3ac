"""Messages between the processes of a node: requests with answers, and pushes, both ways over one Unix-domain socket.

A frame is its length (4 bytes, big-endian) and a msgpack array. Owns: framing, matching of answers, bounds, and how a
domain error crosses (by class name, message and fields, so that the caller catches what it would have caught in one
process). Invariants: a peer's frames are handled in order; a call ends with an answer, an error or a time-out, and all
end when the connection does; secrets cross only a socket that only the owner can open. Not here: what the messages mean
(`node/catalog.py`, `node/background.py`, `node/worker.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from anvil.base import errors
from anvil.base.errors import AnvilError, SlowDown, Unavailable
from anvil.base.limits import CHANNEL_CALL_S, CHANNEL_FRAME_BYTES_MAX, CHANNEL_PENDING_MAX

log = logging.getLogger(__name__)
T = TypeVar("T")


class Request(msgspec.Struct, tag="q", array_like=True, frozen=True):
    number: int
    method: str
    body: msgspec.Raw


class Answer(msgspec.Struct, tag="a", array_like=True, frozen=True):
    number: int
    body: msgspec.Raw


class Failure(msgspec.Struct, tag="f", array_like=True, frozen=True):
    number: int
    error: str
    message: str
    fields: dict[str, Any]


class Push(msgspec.Struct, tag="p", array_like=True, frozen=True):
    topic: str
    body: msgspec.Raw


Message = Request | Answer | Failure | Push
Handler = Callable[["Channel", msgspec.Raw], Awaitable[Any]]
"""Serves one method: gets the channel and the encoded argument, returns a value that msgspec can encode."""
Listener = Callable[["Channel", msgspec.Raw], None]
"""Takes one topic's pushes, in order, without awaiting anything."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def error_classes() -> Mapping[str, type[AnvilError]]:
    """Every domain error by name."""
    return {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, AnvilError)}


_ERRORS = error_classes()


class Channel(asyncio.Protocol):
    """One end of a connection. `name`: the process at the other end, once it said who it is."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        listeners: Mapping[str, Listener],
        closed: Callable[[Channel], None] | None = None,
        opened: Callable[[Channel], None] | None = None,
    ) -> None:
        self.name = ""
        self._handlers = handlers
        self._listeners = listeners
        self._on_closed = closed
        self._on_opened = opened
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._pending: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._number = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def call(self, method: str, argument: Any, result: type[T], timeout_s: float = CHANNEL_CALL_S) -> T:
        """Ask the other side. Raises what its handler raised, if that was an AnvilError; Unavailable when the connection is
        or gets lost, the answer does not come in time or the other side failed; SlowDown when too many calls wait."""
        if len(self._pending) >= CHANNEL_PENDING_MAX:
            raise SlowDown
        if not self.open:
            raise Unavailable("A process of this server is restarting. Try again.")
        self._number += 1
        number = self._number
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._send(Request(number, method, msgspec.Raw(_encoder.encode(argument))))
            async with asyncio.timeout(timeout_s):
                body = await answer
        except TimeoutError:
            raise Unavailable("A process of this server did not answer in time. Try again.") from None
        finally:
            self._pending.pop(number, None)
        return msgspec.msgpack.decode(body, type=result)

    def push(self, topic: str, body: Any) -> None:
        """Tell the other side something; nothing comes back. Dropped when the connection is gone."""
        if self.open:
            self._send(Push(topic, msgspec.Raw(_encoder.encode(body))))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a stream transport, by construction
        if self._on_opened is not None:
            self._on_opened(self)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= 4:
            length = int.from_bytes(received[start : start + 4], "big")
            if length > CHANNEL_FRAME_BYTES_MAX:
                log.error("a message between processes is too long", extra={"bytes": length})
                self.close()
                return
            if len(received) - start - 4 < length:
                break
            self._handle(bytes(memoryview(received)[start + 4 : start + 4 + length]))
            start += 4 + length
        if start:
            del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Unavailable("A process of this server went away. Try again."))
        self._pending.clear()
        for task in self._serving:
            task.cancel()
        if self._on_closed is not None:
            self._on_closed(self)

    # -- messages --------------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        frame = _encoder.encode(message)
        if len(frame) > CHANNEL_FRAME_BYTES_MAX:
            raise Unavailable("A message between the processes of this server is too long.")
        if self._transport is not None:
            self._transport.write(len(frame).to_bytes(4, "big") + frame)

    def _handle(self, frame: bytes) -> None:
        message = _decoder.decode(frame)
        match message:
            case Request():
                task = asyncio.get_running_loop().create_task(self._serve(message))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
            case Push():
                listener = self._listeners.get(message.topic)
                if listener is not None:
                    listener(self, message.body)
            case Answer() | Failure():
                self._settle(message)

    def _settle(self, message: Answer | Failure) -> None:
        answer = self._pending.pop(message.number, None)
        if answer is None or answer.done():
            return  # the caller gave up
        if isinstance(message, Answer):
            answer.set_result(message.body)
        else:
            answer.set_exception(_ERRORS.get(message.error, Unavailable)(message.message, **message.fields))

    async def _serve(self, request: Request) -> None:
        handler = self._handlers.get(request.method)
        try:
            if handler is None:
                raise Unavailable("The processes of this server are not of one version. Try again.")
            reply: Message = Answer(request.number, msgspec.Raw(_encoder.encode(await handler(self, request.body))))
        except AnvilError as error:
            reply = Failure(request.number, type(error).__name__, error.message, _plain(error.fields))
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a call between processes failed", extra={"method": request.method})
            reply = Failure(request.number, Unavailable.__name__, Unavailable.default, {})
        self._send(reply)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value if isinstance(value, (str, int, float, bool)) else str(value) for name, value in fields.items()}


# -- connections ---------------------------------------------------------------------------------------------------------


def listen_socket(path: Path) -> socket.socket:
    """A listening Unix-domain socket at `path`, replacing what a crashed predecessor left; only its owner can use it (mode
    0600).
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    short = _ShortName(path)
    try:
        listener.bind(short.name)
        path.chmod(0o600)  # the folder is 0700, so nobody else could have connected before this
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    finally:
        short.close()
    return listener


async def connect(
    path: Path, handlers: Mapping[str, Handler], listeners: Mapping[str, Listener], closed: Callable[[Channel], None]
) -> Channel:
    """Connect to the process that listens at `path`. Raises OSError."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    short = _ShortName(path)
    try:
        await loop.sock_connect(connection, short.name)
        _, channel = await loop.create_unix_connection(lambda: Channel(handlers, listeners, closed), sock=connection)
    except BaseException:
        connection.close()
        raise
    finally:
        short.close()
    return channel


class _ShortName:
    """A name that fits into the 108 bytes of a Unix address however deep the socket's folder is: through the folder's
    descriptor.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.name = f"/proc/self/fd/{self._fd}/{path.name}"

    def close(self) -> None:
        os.close(self._fd)
