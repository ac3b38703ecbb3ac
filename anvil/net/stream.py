"""What a handler sees of one request: its head, its body, and a way to answer, whether over HTTP/1.1 or HTTP/2.

Owns: the contract between `net` and everything above it. Invariant: a handler answers exactly once, with `respond` or with
`start` + `write`* + `finish`; body bytes never pass through Python objects. Not here: sockets, parsing, S3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from anvil.base.types import Buffer
from anvil.wire.grpc_head import is_grpc

Headers = Sequence[tuple[bytes, bytes]]


class RequestHead(msgspec.Struct, frozen=True):
    """The head of a request, verbatim. Header names are lower case, values stripped of white space, order and duplicates kept."""

    method: str
    path: bytes  # raw, as sent: never decoded, never normalized
    query: bytes  # raw, without "?"
    headers: tuple[tuple[bytes, bytes], ...]
    authority: bytes  # Host or :authority; empty for HTTP/1.0 without Host
    version: str  # "1.0", "1.1", "2"
    peer: str  # address of the connection's other end, never a forwarded one
    content_length: int | None  # None: no body announced, or chunked transfer coding
    chunked: bool  # a body whose length is not announced: transfer-encoding: chunked, or an HTTP/2 stream without content-length

    def header(self, name: bytes) -> bytes | None:
        """The first value of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def is_grpc(self) -> bool:
        """Whether this is a gRPC call (gRPC over HTTP/2, "Requests"). S3 stores objects of gRPC's content type, too: what names it
        there is a PUT, or a POST with a query (`?uploads`), which no call has."""
        return not self.query and is_grpc(self.method, self.header(b"content-type") or b"")


class Stream(Protocol):
    """One request being served. Owned by one handler task; cancelled when the client goes away."""

    head: RequestHead

    async def readinto(self, view: memoryview) -> int:
        """Raw body bytes straight from the socket into `view`: its whole length, or less only at the end of the body, 0 after it.
        Sends `100 Continue` first where the client waits for it. Raises IncompleteBody, RequestTimeout."""
        ...

    async def read_all(self, limit: int) -> bytes:
        """A small body, whole. Raises EntityTooLarge beyond `limit`."""
        ...

    async def respond(self, status: int, headers: Headers, body: Buffer = b"") -> None:
        """A whole answer; `body` must not change any more. Adds content-length, date, server and connection as needed. For HEAD, pass
        content-length yourself and no body."""
        ...

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """Begin an answer of `length` body bytes (None: chunked, or until close for HTTP/1.0)."""
        ...

    async def write(self, data: Buffer) -> None:
        """Body bytes. Returns when the transport can take more. `data` must not change until `flushed`; a stream that
        ended otherwise may still have it on its way."""
        ...

    async def flushed(self) -> None:
        """Until everything written has left for the kernel, so that its buffers may be reused."""
        ...

    async def finish(self) -> None: ...

    @property
    def started(self) -> bool:
        """True once a status line has been sent: an error can then only cut the connection (`abort`)."""
        ...

    @property
    def received_bytes(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    def abort(self) -> None:
        """Cut the connection: the only honest end of an answer that failed half way."""
        ...


class Handler(Protocol):
    async def __call__(self, stream: Stream) -> None: ...


class TrailingStream(Protocol):
    """A stream whose answer can end with trailers: one of HTTP/2. What a gRPC call is served on, with the rules of `Stream`."""

    head: RequestHead

    def whole(self) -> bytes | None:
        """The whole body, if it has come already and nobody began to read it."""
        ...

    async def readinto(self, view: memoryview) -> int: ...

    async def reply(self, fields: list[tuple[bytes, bytes]], body: bytes, trailers: list[tuple[bytes, bytes]] | None) -> None:
        """A whole answer. `fields`: all of its head, `:status` first; without `trailers` there is nothing else."""
        ...

    def begin(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Begin an answer with all of its head; its body follows through `write`, then `finish`."""
        ...

    async def write(self, *pieces: Buffer) -> None:
        """As `Stream.write`; pieces of one call are never parted by a cancellation."""
        ...

    async def finish(self, trailers: list[tuple[bytes, bytes]] | None = None) -> None: ...
    def abort(self) -> None:
        """Reset the stream: nothing that waits on it is sent."""
        ...

    @property
    def started(self) -> bool: ...
    @property
    def finished(self) -> bool:
        """True once the end of the answer was said, whether it has left or not."""
        ...

    @property
    def writing(self) -> bool:
        """Whether bytes of the answer wait for the client."""
        ...

    @property
    def received_bytes(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...


class TrailingHandler(Protocol):
    async def __call__(self, stream: TrailingStream) -> None: ...
