"""What a servicer's method sees of its call beside the messages: the part of `grpc.aio.ServicerContext` that servicers use.

Owns: metadata both ways, the status set by hand, the deadline, how answers' messages are put on the stream. Invariant: a call ends with
exactly one status; nothing follows it. Not here: reading messages, which method is called (`host.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final, NoReturn

import grpc

from anvil.base.types import Buffer
from anvil.net.stream import TrailingStream
from anvil.wire.grpc import chunk_head
from anvil.wire.grpc_head import Metadata, head_fields, read_metadata, status_fields

OK: Final = 0


class Aborted(Exception):
    """The method ended its call by `Context.abort`; what it said is in the context."""


class Context:
    """Of one call. `caller`: what the host's `admit` found out about who calls; `known`: whether that is anybody. Methods that a servicer
    may use are named as in grpcio."""

    __slots__ = (
        "_callbacks",
        "_code",
        "_details",
        "_details_bin",
        "_ended",
        "_initial",
        "_read",
        "_serialize",
        "_trailing",
        "caller",
        "deadline_s",
        "first_byte_at",
        "known",
        "method",
        "started_at",
        "stream",
    )

    def __init__(self, stream: TrailingStream, method: str, serialize: Callable[[Any], bytes]) -> None:
        """`method`: as in the request's path."""
        self.stream: Final = stream
        self.method: Final = method
        self.caller: Any = None
        self.known = True
        self.started_at: Final = perf_counter()
        self.first_byte_at: float | None = None
        self.deadline_s: float | None = None  # on the loop's clock
        self._serialize: Final = serialize
        self._initial: Metadata = ()
        self._trailing: Metadata = ()
        self._code = OK
        self._details = ""
        self._details_bin = b""
        self._read: Callable[[], Awaitable[Any]] | None = None
        self._callbacks: list[Callable[[Context], None]] | None = None
        self._ended = False

    # -- for servicers

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client said in the head of the call. Raises InvalidRequest."""
        return read_metadata(self.stream.head.headers)

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Send the head of the answer now. Raises ValueError for metadata that HTTP/2 cannot carry."""
        if self.stream.started:
            raise ValueError("the head of the answer has been sent")
        self.first_byte_at = perf_counter()
        self.stream.begin(head_fields(initial_metadata))

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code.value[0]

    def set_details(self, details: str) -> None:
        self._details = details

    def code(self) -> int:
        return self._code

    def details(self) -> str:
        return self._details

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with that status."""
        if code is grpc.StatusCode.OK:
            raise ValueError("a call is not aborted with OK")
        self.set_status(code.value[0], details)
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise Aborted

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def read(self) -> Any:
        """The next message of the client, grpc.aio.EOF after the last."""
        if self._read is None:
            raise RuntimeError("this method does not read messages")
        return await self._read()

    async def write(self, message: Any) -> None:
        """Send one message of an answer that has several."""
        payload = self._serialize(message)
        self._open()
        await self.stream.write(b"\0" + len(payload).to_bytes(4, "big") + payload)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        if self.deadline_s is None:
            return None
        return max(0.0, self.deadline_s - asyncio.get_running_loop().time())

    def peer(self) -> str:
        """As grpcio shows it; its port is nobody's business."""
        address = self.stream.head.peer
        return f"ipv6:[{address}]:0" if ":" in address else f"ipv4:{address}:0"

    def add_done_callback(self, callback: Callable[[Context], None]) -> None:
        """Called once the call is over, whatever its end."""
        self._callbacks = [*(self._callbacks or ()), callback]

    def done(self) -> bool:
        return self._ended

    def cancelled(self) -> bool:
        """A call that is cancelled has its method cancelled: who runs was not."""
        return False

    def disable_next_message_compression(self) -> None:
        """Answers are never compressed."""

    def set_compression(self, compression: grpc.Compression) -> None:
        """Answers are never compressed, which every client understands."""

    # -- for the host

    def reads_by(self, read: Callable[[], Awaitable[Any]]) -> None:
        self._read = read

    def set_status(self, code: int, message: str, details_bin: bytes = b"") -> None:
        self._code, self._details, self._details_bin = code, message, details_bin

    async def write_chunk(self, view: memoryview) -> None:
        """A message whose field 2 is `view`, which is not copied: it must not change until it was sent."""
        self._open()
        await self.stream.write(chunk_head(len(view)), view)

    async def write_pieces(self, *pieces: Buffer) -> None:
        """A message whose encoded form is these pieces, which are not copied: they must not change until they were sent."""
        self._open()
        length = sum([len(piece) for piece in pieces])
        await self.stream.write(b"\0" + length.to_bytes(4, "big"), *pieces)

    async def answer(self, response: Any) -> None:
        """The end of a call with one message."""
        payload = self._serialize(response)
        message = b"\0" + len(payload).to_bytes(4, "big") + payload
        if self.stream.started:
            await self.stream.write(message)
            await self.stream.finish(self._status())
        else:
            self.first_byte_at = perf_counter()
            await self.stream.reply(head_fields(), message, self._status())

    async def end(self) -> None:
        """The end of a call whose messages were sent, or that has none because it failed."""
        if self.stream.started:
            await self.stream.finish(self._status())
        else:
            self.first_byte_at = perf_counter()
            await self.stream.reply(head_fields() + self._status(), b"", None)

    def over(self) -> None:
        """Nothing happens to the call any more."""
        self._ended = True
        for callback in self._callbacks or ():
            callback(self)

    def _status(self) -> list[tuple[bytes, bytes]]:
        return status_fields(self._code, self._details, self._details_bin, self._trailing)

    def _open(self) -> None:
        if not self.stream.started:
            self.first_byte_at = perf_counter()
            self.stream.begin(head_fields())
