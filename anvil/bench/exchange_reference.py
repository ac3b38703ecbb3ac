"""`outgoing.pyx` and the answers of `exchange.pyx`, readable and slow: contents, the head of a request, and an answer's head with where
its body ends.

`tests/unit/bench/test_exchange.py` proves both equal. Not here: the step from an answer to the next request, which `test_http.py` beside
it covers.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from anvil.base.errors import InvalidRequest
from anvil.base.limits import BENCH_HEAD_BYTES_MAX, BENCH_PATTERN_BYTES
from anvil.bench.exchange import BadAnswer
from anvil.wire.http1_chunked import TransferDecoder

STAMP_BYTES = 16


def content(seed: int, pattern: bytes, size: int | Callable[[float], int], key: bytes) -> bytes:
    """All bytes of the object with this key."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + key).digest()
    stamp, start, number = digest[:16], int.from_bytes(digest[16:24], "little"), int.from_bytes(digest[24:31], "little")
    count = size if isinstance(size, int) else size(number / 2**56)
    rest = (pattern[(start % BENCH_PATTERN_BYTES + at) % BENCH_PATTERN_BYTES] for at in range(STAMP_BYTES, count))
    return stamp[:count] + bytes(rest)


def head(key: bytes, prefix: bytes, method: bytes, path: bytes, query: bytes, tail: bytes, lines: bytes, length: int) -> bytes:
    """The head of a request, signed with the day's `key`; the other arguments are those of HeadSigner."""
    canonical = b"\n".join((method, path, query, tail))
    text = prefix + hashlib.sha256(canonical).hexdigest().encode()
    proof = hmac.new(key, text, hashlib.sha256).hexdigest().encode()
    target = path + b"?" + query if query else path
    last = b"" if length < 0 else b"content-length: %d\r\n" % length
    return b"%s %s HTTP/1.1\r\n%s%s\r\n%s\r\n" % (method, target, lines, proof, last)


class AnswerParser:
    """The same contract as the extension's."""

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, head_only: bool) -> None:
        self._head_only = head_only
        self._held = b""
        self._in_head = True
        self._left: int | None = 0  # bytes of the body still to come; None: until the end of the connection
        self._chunks: TransferDecoder | None = None
        self._done = False
        self.status = 0
        self.head = b""
        self.keep_alive = False

    def closed(self) -> bool:
        return not self._in_head and self._chunks is None and self._left is None

    def feed(self, data: bytes) -> tuple[bool, bytes]:
        if self._done:
            raise BadAnswer("bytes behind the end of an answer")
        if self._in_head:
            self._held += data
            data = self._take_head()
            if self._in_head:
                return False, b""
        if self._chunks is not None:
            return self._take_chunks(self._chunks, data)
        if self._left is None:
            return False, data
        if len(data) > self._left:
            raise BadAnswer("bytes behind the end of an answer")
        self._left -= len(data)
        self._done = self._left == 0
        return self._done, data

    def _take_head(self) -> bytes:
        """What is behind the head, once it is whole."""
        while True:
            head, blank, rest = self._held.partition(b"\r\n\r\n")
            if not blank or len(head) + 4 > BENCH_HEAD_BYTES_MAX:
                if len(self._held) >= BENCH_HEAD_BYTES_MAX:
                    raise BadAnswer("the head of an answer is too long")
                if self._held[:7] != b"HTTP/1."[: len(self._held)]:
                    raise BadAnswer("no answer of HTTP/1.1")
                return b""
            self._read_status(head)
            self._held = rest
            if self.status == 101:
                raise BadAnswer("the protocol was changed, which nobody asked for")
            if self.status >= 200:
                self.head = head + b"\r\n"
                self._in_head = False
                self._frame(head)
                return rest

    def _read_status(self, head: bytes) -> None:
        version, status, after = head[:9], head[9:12], head[12:13]
        if version not in (b"HTTP/1.1 ", b"HTTP/1.0 ") or not status.isdigit() or len(status) != 3 or int(status) < 100:
            raise BadAnswer("no answer of HTTP/1.1")
        if after not in (b"", b" ", b"\r"):
            raise BadAnswer("no answer of HTTP/1.1")
        self.status = int(status)

    def _frame(self, head: bytes) -> None:
        """RFC 9112, 6.3."""
        lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        lengths = {value.strip() for name, _, value in lines if name.lower() == b"content-length"}
        coding = b"".join(value.strip().lower() for name, _, value in lines if name.lower() == b"transfer-encoding")
        connection = b"".join(value.lower() for name, _, value in lines if name.lower() == b"connection")
        if len(lengths) > 1 or any(not length.isdigit() or len(length) > 18 for length in lengths):
            raise BadAnswer("a malformed Content-Length, or two of them")
        self.keep_alive = b"close" not in connection and (head[7:8] == b"1" or b"keep-alive" in connection)
        if self._head_only or self.status in (204, 304):
            return
        if coding:
            if coding != b"chunked":
                raise BadAnswer("a transfer coding other than chunked")
            self._chunks = TransferDecoder()
        elif lengths:
            self._left = int(lengths.pop())
        else:
            self._left = None
            self.keep_alive = False

    def _take_chunks(self, chunks: TransferDecoder, data: bytes) -> tuple[bool, bytes]:
        out = bytearray(max(1, len(data)))
        try:
            consumed, produced = chunks.decode(memoryview(data), memoryview(out))
        except InvalidRequest as error:
            raise BadAnswer(error.message) from None
        if consumed < len(data):
            raise BadAnswer("bytes behind the end of an answer")
        self._done = chunks.finished
        return self._done, bytes(out[:produced])
