"""The messages of a call on their way in: out of its body, whole, decompressed.

Invariants: a message is never longer than GRPC_MESSAGE_BYTES_MAX, compressed or not, and that is known before it is read or inflated; what
was announced takes no memory before it comes; what messages take, read and parsed, is bounded for the whole worker (`Room`), and who is not
known gets little of it. Not here: the chunks of uploads (`chunks.py`).
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from anvil.base.errors import IncompleteBody, InvalidRequest, MessageTooLarge, SlowDown
from anvil.base.limits import (
    GRPC_MESSAGE_BYTES_MAX,
    GRPC_MESSAGES_BYTES_MAX,
    GRPC_PARSED_FACTOR,
    GRPC_SMALL_MESSAGE_BYTES,
    GRPC_STRANGERS_WAITING_MAX,
    INLINE_JOB_BYTES_MAX,
    READ_BYTES,
)
from anvil.net.stream import TrailingStream

PREFIX_BYTES: Final = 5
_GZIP: Final = 16 + zlib.MAX_WBITS


class Room:
    """What the calls of one worker have in messages, and how many of them wait for one from somebody who is not known."""

    __slots__ = ("strangers", "used_bytes")

    def __init__(self) -> None:
        self.used_bytes = 0
        self.strangers = 0


class MessageReader:
    """Of one call; to be closed with it. `gzip`: whether the call's head says that messages may be compressed with it. `known`: whether
    the client has shown who it is; its messages may then be large."""

    __slots__ = ("_bytes_max", "_gzip", "_held_bytes", "_known", "_room", "_stream")

    def __init__(self, stream: TrailingStream, room: Room, *, gzip: bool, known: bool) -> None:
        self._stream = stream
        self._room = room
        self._gzip = gzip
        self._known = known
        self._bytes_max = GRPC_MESSAGE_BYTES_MAX if known else GRPC_SMALL_MESSAGE_BYTES
        self._held_bytes = 0

    def hold(self, nbytes: int) -> None:
        """Have room for so many bytes, if they are not few. Raises SlowDown."""
        more = nbytes - self._held_bytes
        if nbytes <= GRPC_SMALL_MESSAGE_BYTES or more <= 0:
            return
        if self._room.used_bytes + more > GRPC_MESSAGES_BYTES_MAX:
            raise SlowDown()
        self._room.used_bytes += more
        self._held_bytes = nbytes

    def free(self) -> None:
        """Nothing is left of the last message."""
        self._room.used_bytes -= self._held_bytes
        self._held_bytes = 0

    async def next(self) -> bytes | None:
        """The next message; None after the last. Raises MessageTooLarge, InvalidRequest, IncompleteBody, RequestTimeout, SlowDown."""
        if self._known:
            return await self._next()
        if self._room.strangers >= GRPC_STRANGERS_WAITING_MAX:
            raise SlowDown()
        self._room.strangers += 1
        try:
            return await self._next()
        finally:
            self._room.strangers -= 1

    async def _next(self) -> bytes | None:
        prefix = bytearray(PREFIX_BYTES)
        count = await self._stream.readinto(memoryview(prefix))
        if count == 0:
            return None
        self.free()
        if count < PREFIX_BYTES:
            raise _cut()
        message = await self._read(self._length(prefix))
        return await self._plain(message, compressed=bool(prefix[0]))

    async def _read(self, length: int) -> bytes:
        """So many bytes; they take memory as they come. Raises IncompleteBody, SlowDown."""
        parts, left = [], length
        while left:
            piece = bytearray(min(left, READ_BYTES))
            self.hold(length - left + len(piece))
            if await self._stream.readinto(memoryview(piece)) < len(piece):
                raise _cut()
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    async def _plain(self, message: bytes, *, compressed: bool) -> bytes:
        """The message, decompressed, with the room that it may take when it is parsed. Raises as `inflate`."""
        if compressed:
            message = await self.inflate(message)
        if len(message) > GRPC_SMALL_MESSAGE_BYTES:
            self.hold(GRPC_PARSED_FACTOR * len(message))
        return message

    async def only(self) -> bytes:
        """The one message of a call that has one. Raises as `next`."""
        whole = self._stream.whole()
        if whole is not None:
            return await self._only_of(whole)
        message = await self.next()
        if message is None:
            raise _none()
        if await self.next() is not None:
            raise _several()
        return message

    async def _only_of(self, whole: bytes) -> bytes:
        """The same, of a body that is there already."""
        if len(whole) < PREFIX_BYTES:
            raise _cut() if whole else _none()
        end = PREFIX_BYTES + self._length(whole)
        if len(whole) != end:
            raise _cut() if len(whole) < end else _several()
        return await self._plain(whole[PREFIX_BYTES:], compressed=bool(whole[0]))

    async def inflate(self, message: bytes) -> bytes:
        """A message with the compressed flag. A large one is inflated on another thread: it takes 10 ms, of which 4 KiB on the wire are
        enough. Raises InvalidRequest, MessageTooLarge, SlowDown."""
        if not self._gzip:
            raise InvalidRequest("A message is compressed, and the call's grpc-encoding does not say how.")
        inflater = zlib.decompressobj(_GZIP)
        most = self._bytes_max + 1
        first = min(most, INLINE_JOB_BYTES_MAX)
        try:
            plain = inflater.decompress(message, first)
            if len(plain) == first < most:
                self.hold(self._held_bytes + most)
                plain += await asyncio.to_thread(inflater.decompress, inflater.unconsumed_tail, most - first)
        except zlib.error:
            raise InvalidRequest("A compressed message of the call is damaged.") from None
        if len(plain) > self._bytes_max:
            raise MessageTooLarge(MaxSizeAllowed=self._bytes_max)
        if not inflater.eof or inflater.unused_data:
            raise InvalidRequest("A compressed message of the call is damaged.")
        return plain

    def _length(self, prefix: bytes | bytearray) -> int:
        length = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
        if prefix[0] > 1:
            raise InvalidRequest("A message of the call has flags that gRPC does not know.")
        if length > self._bytes_max:
            raise MessageTooLarge(Size=length, MaxSizeAllowed=self._bytes_max)
        return length


def _cut() -> IncompleteBody:
    return IncompleteBody("The call ended in the middle of a message.")


def _none() -> InvalidRequest:
    return InvalidRequest("The call has no message.")


def _several() -> InvalidRequest:
    return InvalidRequest("The call has more than one message.")
