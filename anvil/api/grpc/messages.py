"""The messages of a call on their way in: out of its body, whole, decompressed.

Invariant: a message is never longer than GRPC_MESSAGE_BYTES_MAX, compressed or not, and that is known before it is read or inflated. Not
here: the chunks of uploads (`chunks.py`).
"""

from __future__ import annotations

import zlib
from typing import Final

from anvil.base.errors import IncompleteBody, InvalidRequest, MessageTooLarge
from anvil.base.limits import GRPC_MESSAGE_BYTES_MAX
from anvil.net.stream import TrailingStream

PREFIX_BYTES: Final = 5
_GZIP: Final = 16 + zlib.MAX_WBITS


class MessageReader:
    """`gzip`: whether the call's head says that messages may be compressed with it."""

    __slots__ = ("_gzip", "_stream")

    def __init__(self, stream: TrailingStream, *, gzip: bool) -> None:
        self._stream = stream
        self._gzip = gzip

    async def next(self) -> bytes | None:
        """The next message; None after the last. Raises MessageTooLarge, InvalidRequest, IncompleteBody, RequestTimeout."""
        prefix = bytearray(PREFIX_BYTES)
        count = await self._stream.readinto(memoryview(prefix))
        if count == 0:
            return None
        if count < PREFIX_BYTES:
            raise _cut()
        length = _length(prefix)
        message = bytearray(length)
        if length and await self._stream.readinto(memoryview(message)) < length:
            raise _cut()
        return self.inflate(bytes(message)) if prefix[0] else bytes(message)

    async def only(self) -> bytes:
        """The one message of a call that has one. Raises as `next`."""
        whole = self._stream.whole()
        if whole is not None:
            return self._only_of(whole)
        message = await self.next()
        if message is None:
            raise _none()
        if await self.next() is not None:
            raise _several()
        return message

    def _only_of(self, whole: bytes) -> bytes:
        """The same, of a body that is there already."""
        if len(whole) < PREFIX_BYTES:
            raise _cut() if whole else _none()
        end = PREFIX_BYTES + _length(whole)
        if len(whole) != end:
            raise _cut() if len(whole) < end else _several()
        return self.inflate(whole[PREFIX_BYTES:]) if whole[0] else whole[PREFIX_BYTES:]

    def inflate(self, message: bytes) -> bytes:
        """A message with the compressed flag. Raises InvalidRequest, MessageTooLarge."""
        if not self._gzip:
            raise InvalidRequest("A message is compressed, and the call's grpc-encoding does not say how.")
        inflater = zlib.decompressobj(_GZIP)
        try:
            plain = inflater.decompress(message, GRPC_MESSAGE_BYTES_MAX + 1)
        except zlib.error:
            raise InvalidRequest("A compressed message of the call is damaged.") from None
        if len(plain) > GRPC_MESSAGE_BYTES_MAX:
            raise MessageTooLarge(MaxSizeAllowed=GRPC_MESSAGE_BYTES_MAX)
        if not inflater.eof or inflater.unused_data:
            raise InvalidRequest("A compressed message of the call is damaged.")
        return plain


def _length(prefix: bytes | bytearray) -> int:
    length = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
    if prefix[0] > 1:
        raise InvalidRequest("A message of the call has flags that gRPC does not know.")
    if length > GRPC_MESSAGE_BYTES_MAX:
        raise MessageTooLarge(Size=length, MaxSizeAllowed=GRPC_MESSAGE_BYTES_MAX)
    return length


def _cut() -> IncompleteBody:
    return IncompleteBody("The call ended in the middle of a message.")


def _none() -> InvalidRequest:
    return InvalidRequest("The call has no message.")


def _several() -> InvalidRequest:
    return InvalidRequest("The call has more than one message.")
