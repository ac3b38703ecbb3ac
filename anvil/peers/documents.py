"""What is sealed, in bytes: `Sealed` messages without protobuf, and the documents in them (`proto/shards.proto`).

Owns: that form, both ways. Invariants: a message is read only in the one form in which protobuf writes it, so its payload's place is known
before it comes, and it is received where it is wanted; a payload is handed out only after its tag was checked. Not here: tags
(`sealing.py`), errors inside documents (`failures.py`).
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from anvil.base.errors import IncompleteBody, InvalidRequest, MessageTooLarge
from anvil.base.limits import GRPC_MESSAGE_BYTES_MAX, INLINE_JOB_BYTES_MAX
from anvil.base.types import Buffer
from anvil.engine.context import Buffers
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.net.stream import TrailingStream
from anvil.peers.sealing import SALT_BYTES, TAG_BYTES, Call, Kind, NotAuthentic, Opener, Sealer, Served

M = TypeVar("M", bound=Message)

_TAG_FIELD: Final = 0x0A
_PAYLOAD_FIELD: Final = b"\x12"
_LENGTH_BYTES: Final = 4
_PREFIX_BYTES: Final = 5  # gRPC's own: flag and length

encode_plain: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(ShardHeader)
_decode_footer: Final = msgspec.msgpack.Decoder(ShardFooter)


class ReadsInto(Protocol):
    async def readinto(self, view: memoryview) -> int: ...


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def document(message: Message, *data: Buffer) -> list[Buffer]:
    """The payload of a document, in pieces."""
    body = message.SerializeToString()
    return [len(body).to_bytes(_LENGTH_BYTES, "little"), body, *data]


def read_document(kind: type[M], payload: memoryview) -> tuple[M, memoryview]:
    """A document and the bytes behind it. Raises InvalidRequest."""
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "little")
    if len(payload) < end:
        raise InvalidRequest("A message between nodes is cut short.")
    message = kind()
    try:
        message.ParseFromString(bytes(payload[_LENGTH_BYTES:end]))
    except DecodeError:
        raise InvalidRequest("A message between nodes is not what the call takes.") from None
    return message, payload[end:]


def read_header(data: bytes) -> ShardHeader:
    """Raises InvalidRequest."""
    try:
        return _decode_header.decode(data)
    except (msgspec.MsgspecError, ValueError):
        raise InvalidRequest("The header of a shard is not one.") from None


def read_footer(data: bytes) -> ShardFooter:
    """Raises InvalidRequest."""
    try:
        return _decode_footer.decode(data)
    except (msgspec.MsgspecError, ValueError):
        raise InvalidRequest("The footer of a shard is not one.") from None


def head_of(tag: bytes, payload_bytes: int) -> bytes:
    """What stands before the payload in a `Sealed`."""
    return bytes((_TAG_FIELD, len(tag))) + tag + _PAYLOAD_FIELD + _varint(payload_bytes)


def seal(sealer: Sealer, kind: Kind, *payload: Buffer, salt: bytes = b"") -> bytes:
    """A whole `Sealed`; its payload's pieces are copied."""
    tag = salt + sealer.tag(kind, *payload)
    return b"".join((head_of(tag, sum(map(len, payload))), *payload))


async def room(buffers: Buffers, nbytes: int) -> memoryview:
    """Memory for so many bytes, accounted where they are many. Raises SlowDown."""
    return memoryview(bytearray(nbytes) if nbytes <= INLINE_JOB_BYTES_MAX else await buffers.acquire(nbytes))


class Answers:
    """The messages that come back on one call of ours."""

    __slots__ = ("_call", "_opener")

    def __init__(self, call: Call) -> None:
        self._call: Final = call
        self._opener: Opener | None = None

    @property
    def ended(self) -> bool:
        """The last one has come."""
        return self._opener is not None and self._opener.ended

    def open(self, message: bytes) -> tuple[Kind, memoryview]:
        """The payload of the next one. Raises NotAuthentic."""
        tag_bytes = TAG_BYTES if self._opener is not None else SALT_BYTES + TAG_BYTES
        view = memoryview(message)
        if message[:2] != bytes((_TAG_FIELD, tag_bytes)):
            raise NotAuthentic("message")
        tag, rest = view[2 : 2 + tag_bytes], 2 + tag_bytes
        for start in range(rest + 2, rest + 6):
            payload = view[start:]
            if message[rest:start] == _PAYLOAD_FIELD + _varint(len(payload)):
                break
        else:
            raise NotAuthentic("message")
        if self._opener is None:
            self._opener = self._call.opener(tag[:SALT_BYTES])
            tag = tag[SALT_BYTES:]
        return self._opener.check(tag, payload), payload


class Requests:
    """The messages of one call that we serve. Large payloads lie in `buffers`, until their last view is gone."""

    __slots__ = ("_buffers", "_opener", "_stream")

    def __init__(self, stream: ReadsInto, served: Served, buffers: Buffers) -> None:
        self._stream: Final = stream
        self._opener: Final = served.opener
        self._buffers: Final = buffers

    async def next(self) -> tuple[Kind, memoryview]:
        """The payload of the next one. Raises NotAuthentic, IncompleteBody (the client ended the call), MessageTooLarge, SlowDown."""
        prefix = bytearray(_PREFIX_BYTES)
        await self._fill(memoryview(prefix))
        length = int.from_bytes(prefix[1:], "big")
        if length > GRPC_MESSAGE_BYTES_MAX:
            raise MessageTooLarge(Size=length, MaxSizeAllowed=GRPC_MESSAGE_BYTES_MAX)
        fixed = 2 + TAG_BYTES + 1
        count = next((size for size in (1, 2, 3, 4) if len(_varint(max(0, length - fixed - size))) == size), 0)
        payload_bytes = length - fixed - count
        if prefix[0] or not count or payload_bytes <= 0:
            raise NotAuthentic("message")
        head = bytearray(fixed + count)
        await self._fill(memoryview(head))
        tag = head[2 : 2 + TAG_BYTES]
        if bytes(head) != head_of(bytes(tag), payload_bytes):
            raise NotAuthentic("message")
        payload = await room(self._buffers, payload_bytes)
        await self._fill(payload)
        return self._opener.check(tag, payload), payload

    async def document(self, message: type[M], *, last: bool) -> tuple[M, memoryview]:
        """The next one, which must be a document of that type. Raises InvalidRequest, and as `next`."""
        kind, payload = await self.next()
        if kind is not (Kind.LAST if last else Kind.DOCUMENT):
            raise InvalidRequest("A message between nodes is out of place.")
        return read_document(message, payload)

    async def _fill(self, view: memoryview) -> None:
        if await self._stream.readinto(view) < len(view):
            raise IncompleteBody("The call ended before it was complete.")


def raw(stream: TrailingStream, reader: object, parse: object) -> TrailingStream:
    """For `takes` of a method: it reads its messages itself, by `Requests`."""
    return stream
