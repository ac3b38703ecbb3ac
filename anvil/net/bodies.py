"""Request bodies as the engine pulls them: implements `engine.ports.Body` over a `Stream`.

Owns: that exactly the announced number of payload bytes arrives, and that nothing follows it. Invariant: a body that returned its
last byte without raising was complete, framing and trailers included. Payload goes from the stream into the engine's view; an
aws-chunked body passes through one small buffer from which the native decoder writes it. Not here: the decoder
(`wire.awschunked`), digests of the payload (`engine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anvil.base.errors import IncompleteBody, InvalidRequest
from anvil.base.limits import DECODE_BYTES
from anvil.net.stream import Stream

if TYPE_CHECKING:
    from anvil.wire.awschunked import ChunkedDecoder

_PROBE: Final = 1


class RawBody:
    """A body that is its own payload: content-length, or chunked transfer coding with the length known from elsewhere."""

    def __init__(self, stream: Stream, length: int) -> None:
        """`length`: payload bytes; with a content-length it must be that."""
        if stream.head.content_length is not None and stream.head.content_length != length:
            raise ValueError("a raw body is as long as its content-length")
        self.length = length
        self._stream: Final = stream
        self._left = length
        self._framed: Final = stream.head.content_length is None and stream.head.chunked

    @property
    def trailers(self) -> dict[str, str]:
        return {}

    async def readinto(self, view: memoryview) -> int:
        """See `Body.readinto`. Raises IncompleteBody, InvalidRequest, RequestTimeout."""
        wanted = min(len(view), self._left)
        count = await self._stream.readinto(view[:wanted]) if wanted else 0
        self._left -= count
        if count < wanted:
            raise IncompleteBody()
        if self._framed and self._left == 0 and await self._stream.readinto(memoryview(bytearray(_PROBE))):
            raise InvalidRequest("The body is longer than announced.")
        return count


class AwsChunkedBody:
    """A body in aws-chunked coding, with or without chunk signatures and trailers."""

    def __init__(self, stream: Stream, decoder: ChunkedDecoder, length: int) -> None:
        """`length`: payload bytes (x-amz-decoded-content-length), the same that `decoder` was given."""
        self.length = length
        self._stream: Final = stream
        self._decoder: Final = decoder
        announced = stream.head.content_length
        # At most DECODE_BYTES: the decoder hashes on the event loop's thread and must not hold it for long.
        self._scratch: Final = memoryview(bytearray(DECODE_BYTES if announced is None else max(1, min(DECODE_BYTES, announced))))
        self._start = 0
        self._end = 0
        self._ended = False

    @property
    def trailers(self) -> dict[str, str]:
        return self._decoder.trailers

    async def readinto(self, view: memoryview) -> int:
        """See `Body.readinto`. Raises IncompleteBody, InvalidRequest, SignatureMismatch, RequestTimeout."""
        if self._ended:
            return 0
        decoder = self._decoder
        filled = 0
        while not decoder.finished:
            if filled == len(view) and decoder.produced < self.length:
                return filled
            if self._start == self._end:
                self._start, self._end = 0, await self._stream.readinto(self._scratch)
                if self._end == 0:
                    raise IncompleteBody()
            consumed, produced = decoder.decode(self._scratch[self._start : self._end], view[filled:])
            if consumed == produced == 0:
                raise InvalidRequest("The body is longer than announced.")
            self._start += consumed
            filled += produced
        if decoder.produced < self.length:
            raise IncompleteBody()
        if decoder.produced > self.length:
            raise InvalidRequest("The body is longer than announced.")
        if self._start != self._end or await self._stream.readinto(self._scratch[:_PROBE]):
            raise InvalidRequest("Bytes follow the last chunk of the body.")
        self._ended = True
        return filled
