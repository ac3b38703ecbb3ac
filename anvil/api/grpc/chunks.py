"""Uploads over gRPC: a message that says what comes, then chunks whose payload goes to the engine without becoming Python objects.

Owns: `engine.ports.Body` over the chunk messages of a call. Invariant: a body that returned its last byte without raising was followed by
nothing but one trailer at most, and the call's end. Not here: finding the payload in messages (`wire.grpc`), what header and trailer mean
(`services`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from anvil.base.errors import IncompleteBody, InvalidRequest
from anvil.base.limits import GRPC_DIRECT_BYTES_MIN, GRPC_MESSAGE_BYTES_MAX, GRPC_UPLOAD_READ_BYTES
from anvil.net.stream import TrailingStream
from anvil.rpc.messages import MessageReader
from anvil.wire.grpc import ChunkDecoder

F = TypeVar("F", bound=Callable[..., Any])
_NOTHING: Final = memoryview(b"")
_HEAD_BYTES: Final = 16  # holds the head of a chunk: where chunks are large, no more than that is read beside them


class UploadMessage(Protocol):
    """What the messages of an upload have in common: `oneof part { header = 1; bytes chunk = 2; trailer = 3; }`."""

    @property
    def chunk(self) -> bytes: ...
    def WhichOneof(self, oneof_group: str) -> str | None: ...


def takes_chunks(method: F) -> F:
    """Mark a client-streaming method: it gets an `Incoming` instead of an iterator of messages."""
    method.takes = Incoming  # type: ignore[attr-defined]
    return method


class Incoming:
    """The messages of one upload. `parse`: the deserializer of its messages."""

    def __init__(self, stream: TrailingStream, reader: MessageReader, parse: Callable[[bytes], UploadMessage]) -> None:
        self._stream: Final = stream
        self._reader: Final = reader
        self._parse: Final = parse

    async def first(self) -> bytes:
        """The first message, serialized. Raises InvalidRequest when there is none."""
        message = await self._reader.next()
        if message is None:
            raise InvalidRequest("The call has no message.")
        return message

    def body(self, length: int) -> ChunkBody:
        """The payload of all chunks that follow, `length` bytes of it."""
        return ChunkBody(self._stream, self._reader, self._parse, length)


class ChunkBody:
    """See `engine.ports.Body`."""

    def __init__(
        self, stream: TrailingStream, reader: MessageReader, parse: Callable[[bytes], UploadMessage], length: int
    ) -> None:
        self.length = length
        self.trailer: bytes | None = None  # the message that held the trailer; final once the last byte was read
        self._stream: Final = stream
        self._reader: Final = reader
        self._parse: Final = parse
        self._decoder: Final = ChunkDecoder(GRPC_MESSAGE_BYTES_MAX)
        self._scratch: Final = memoryview(bytearray(GRPC_UPLOAD_READ_BYTES))
        self._start = 0
        self._end = 0
        self._large = False  # the last chunk was received where it belongs
        self._extra = _NOTHING  # payload of a chunk that protobuf had to read
        self._produced = 0
        self._ended = False

    @property
    def trailers(self) -> dict[str, str]:
        return {}

    async def readinto(self, view: memoryview) -> int:
        """See `Body.readinto`. Raises IncompleteBody, InvalidRequest, MessageTooLarge, RequestTimeout."""
        filled = 0
        while not self._ended:
            if filled == len(view) and self._produced < self.length:
                return filled
            if self._extra:
                filled += self._take_extra(view[filled:])
            elif self._start < self._end:
                filled += self._decode(view[filled:])
                if self._decoder.message is not None:
                    await self._take_message()
            elif self._decoder.chunk_left >= GRPC_DIRECT_BYTES_MIN and filled < len(view):
                filled += await self._receive(view[filled:])
            else:
                self._start, self._end = 0, await self._stream.readinto(self._scratch[: _HEAD_BYTES if self._large else None])
                self._large = False
                if self._end == 0:
                    self._end_of_call()
        return filled

    async def _receive(self, view: memoryview) -> int:
        """Payload from the stream to its place."""
        want = min(len(view), self._decoder.chunk_left)
        count = await self._stream.readinto(view[:want])
        self._decoder.skip(count)
        self._large = True
        self._count(count)
        if count < want:
            raise IncompleteBody("The call ended in the middle of a message.")
        return count

    def _decode(self, view: memoryview) -> int:
        used, produced = self._decoder.decode(self._scratch[self._start : self._end], view)
        self._start += used
        self._count(produced)
        if used == 0 and self._decoder.message is None:
            raise _too_long()  # a chunk goes on, and there is no room for more
        self._reader.hold(2 * self._decoder.collecting)  # the message, and its payload beside it
        return produced

    async def _take_message(self) -> None:
        """A message that is no plain chunk."""
        compressed, message = self._decoder.compressed, self._decoder.take_message()
        assert message is not None
        await asyncio.sleep(0)  # thousands of them may have come at once: others get their turn
        if compressed:
            message = await self._reader.inflate(message)
        parsed = self._parse(message)
        part = parsed.WhichOneof("part")
        if self.trailer is not None or part not in ("chunk", "trailer"):
            raise InvalidRequest("After its header an upload has chunks, and at its end perhaps a trailer.")
        if part == "trailer":
            self.trailer = message
        elif parsed.chunk:
            self._extra = memoryview(parsed.chunk)
            return
        self._reader.free()

    def _take_extra(self, view: memoryview) -> int:
        count = min(len(view), len(self._extra))
        if count == 0:
            raise _too_long()
        view[:count] = self._extra[:count]
        self._extra = self._extra[count:]
        if not self._extra:
            self._extra = _NOTHING  # an empty view of it would keep it
            self._reader.free()
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        if count and self.trailer is not None:
            raise InvalidRequest("Chunks follow the trailer of the upload.")
        self._produced += count
        if self._produced > self.length:
            raise _too_long()

    def _end_of_call(self) -> None:
        if not self._decoder.at_boundary:
            raise IncompleteBody("The call ended in the middle of a message.")
        if self._produced < self.length:
            raise IncompleteBody("The chunks are fewer bytes than the header says.")
        self._ended = True


def _too_long() -> InvalidRequest:
    return InvalidRequest("The chunks are more bytes than the header says.")
