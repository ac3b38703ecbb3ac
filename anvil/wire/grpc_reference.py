"""What `grpc.pyx` does, readably: the two are proved equal by `tests/unit/wire/test_grpc.py`. Not used by the node."""

from __future__ import annotations

from anvil.base.errors import InvalidRequest, MessageTooLarge
from anvil.base.types import Buffer

_PREFIX_BYTES = 5


def chunk_head(size: int) -> bytes:
    """See `grpc.pyi`."""
    tag = _tag(size)
    return b"\0" + (size + len(tag)).to_bytes(4, "big") + tag


def _tag(size: int) -> bytes:
    """Field 2, bytes, of that length."""
    out = bytearray(b"\x12")
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


class ChunkDecoder:
    """See `grpc.pyi`."""

    def __init__(self, message_max: int) -> None:
        self._message_max = message_max
        self._head = b""  # of the present message, until it is known what it is
        self._other: bytearray | None = None
        self._length = 0
        self.chunk_left = 0
        self.message: bytes | None = None
        self.compressed = False

    @property
    def collecting(self) -> int:
        return 0 if self._other is None else self._length

    @property
    def at_boundary(self) -> bool:
        return not self._head and self._other is None and not self.chunk_left and self.message is None

    def take_message(self) -> bytes | None:
        message, self.message = self.message, None
        return message

    def skip(self, count: int) -> None:
        if not 0 <= count <= self.chunk_left or not self.chunk_left:
            raise ValueError("more than is left of the chunk")
        self.chunk_left -= count

    def decode(self, data: Buffer, view: Buffer) -> tuple[int, int]:
        source, target = memoryview(data), memoryview(view)
        used = produced = 0
        while self.message is None:
            if self.chunk_left:
                count = min(self.chunk_left, len(source) - used, len(target) - produced)
                if count == 0:
                    break
                target[produced : produced + count] = source[used : used + count]
                used, produced, self.chunk_left = used + count, produced + count, self.chunk_left - count
            elif used == len(source):
                break
            else:
                self._byte(source[used])
                used += 1
        return used, produced

    def _byte(self, byte: int) -> None:
        """One byte that is not payload."""
        if self._other is not None:
            self._other.append(byte)
        else:
            self._head += bytes((byte,))
            if len(self._head) == _PREFIX_BYTES:
                self._read_prefix()
            elif len(self._head) > _PREFIX_BYTES:
                self._read_tag()
        if self._other is not None and len(self._other) == self._length:
            self.message, self._other, self._head = bytes(self._other), None, b""

    def _read_prefix(self) -> None:
        self._length = int.from_bytes(self._head[1:], "big")
        if self._head[0] > 1:
            raise InvalidRequest("A message of the call has flags that gRPC does not know.")
        if self._length > self._message_max:
            raise MessageTooLarge(Size=self._length, MaxSizeAllowed=self._message_max)
        self.compressed = self._head[0] == 1
        if self.compressed or self._chunk_tag() is None:
            self._other = bytearray()

    def _chunk_tag(self) -> bytes | None:
        """The tag that fills a message of this length together with its payload, where there is one."""
        for size in range(2, 7):
            if self._length >= size and len(_tag(self._length - size)) == size:
                return _tag(self._length - size)
        return None

    def _read_tag(self) -> None:
        tag, expected = self._head[_PREFIX_BYTES:], self._chunk_tag()
        assert expected is not None
        if len(tag) < len(expected):
            return
        if tag == expected:
            self.chunk_left, self._head = self._length - len(tag), b""
        else:
            self._other = bytearray(tag)
