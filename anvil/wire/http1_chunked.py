"""The chunked transfer coding of request bodies (RFC 9112, 7.1), sans I/O and strict.

Owns: where chunks begin and end. Invariant: any split of the same bytes gives the same payload or the same error; nothing but
CR LF ends a line, so no other parser on the way can see other chunks. Payload is moved by slice assignment between buffers, or
received by the caller straight into its destination (`data_left`, `skip`). Not here: aws-chunked, which is a content coding.
"""

from __future__ import annotations

import re
from typing import Final

from anvil.base.errors import InvalidRequest
from anvil.base.limits import CHUNK_HEADER_BYTES_MAX, KIB, TRAILER_BYTES_MAX

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_EXTENSION_BYTES_FREE: Final = 16 * KIB  # extensions are ignored; beyond this they may not outweigh the payload

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class TransferDecoder:
    """Decodes one chunked body. HTTP trailers are checked for form and dropped: proxies drop them too, S3 never uses them."""

    __slots__ = ("_extension_bytes", "_line", "_state", "_trailer_bytes", "data_left", "payload_bytes")

    def __init__(self) -> None:
        self._state = _SIZE
        self._line = b""
        self._trailer_bytes = 0
        self._extension_bytes = 0
        self.data_left = 0  # payload bytes of the present chunk still to come
        self.payload_bytes = 0

    @property
    def finished(self) -> bool:
        """True once the blank line after the last chunk was consumed."""
        return self._state == _DONE

    def skip(self, count: int) -> None:
        """`count` <= data_left payload bytes went to their destination without passing through `decode`."""
        self.data_left -= count
        self.payload_bytes += count
        if self.data_left == 0:
            self._state = _DATA_END

    def decode(self, source: memoryview, target: memoryview | None) -> tuple[int, int]:
        """Consume from `source`, put payload into `target` (None: drop it). Returns (consumed, produced); stops at the end of the
        body or when either is exhausted, except that framing after a full target is still consumed, so that the end is seen.
        Raises InvalidRequest."""
        consumed = produced = 0
        room = len(source) if target is None else len(target)
        while consumed < len(source) and self._state != _DONE:
            if self._state == _DATA:
                count = min(self.data_left, len(source) - consumed, room - produced)
                if count == 0:
                    break
                if target is not None:
                    target[produced : produced + count] = source[consumed : consumed + count]
                consumed += count
                produced += count
                self.skip(count)
            else:
                consumed += self._consume_line(source[consumed : consumed + CHUNK_HEADER_BYTES_MAX + 2])
        return consumed, produced

    def _consume_line(self, source: memoryview) -> int:
        """Take bytes up to and including the next line end, or all there are; act on the line when it is whole."""
        held = len(self._line)
        line = self._line + bytes(source)
        end = line.find(b"\n", held)
        if end < 0:
            if len(line) > CHUNK_HEADER_BYTES_MAX:
                raise InvalidRequest("A line of the chunked body is too long.")
            self._line = line
            self._check_partial(line)
            return len(source)
        self._line = b""
        if end == 0 or line[end - 1] != 0x0D or end > CHUNK_HEADER_BYTES_MAX:
            raise InvalidRequest("A line of the chunked body is malformed.")
        self._on_line(line[: end - 1])
        return end + 1 - held

    def _check_partial(self, line: bytes) -> None:
        if self._state == _DATA_END and not b"\r\n".startswith(line):
            raise InvalidRequest("A chunk is longer than its announced size.")

    def _on_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise InvalidRequest("A chunk size is malformed.")
            self._extension_bytes += len(line) - len(match[1])
            if self._extension_bytes > _EXTENSION_BYTES_FREE + self.payload_bytes:
                raise InvalidRequest("The chunk extensions are too long.")
            self.data_left = int(match[1], 16)
            self._state = _DATA if self.data_left else _TRAILER
        elif self._state == _DATA_END:
            if line:
                raise InvalidRequest("A chunk is longer than its announced size.")
            self._state = _SIZE
        elif not line:
            self._state = _DONE
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > TRAILER_BYTES_MAX or not _TRAILER_LINE.fullmatch(line):
                raise InvalidRequest("The trailer of the chunked body is malformed.")
