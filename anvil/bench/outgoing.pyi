from collections.abc import Callable, Iterator

from anvil.base.types import Buffer

STAMP_BYTES: int
"""How many bytes at the begin of an object tell it from all others."""

class Contents:
    """Makes contents. `seed`: 64 bits; `pattern`: BENCH_PATTERN_BYTES random bytes, and the first BENCH_PIECE_BYTES of them again;
    `size`: bytes of every object, or what they are for a number in [0, 1). Raises ValueError for a pattern of another length."""

    def __init__(self, seed: int, pattern: bytes, size: int | Callable[[float], int]) -> None: ...
    def of(self, key: bytes) -> Content:
        """The content of that key. SHA-256 of seed and key gives the first 16 bytes, a place in the pattern and the size's number."""

class Content:
    """The bytes of one object, `size` of them: byte `i` is the stamp's, and from 16 on that of the pattern at (place + i) modulo its
    length."""

    @property
    def size(self) -> int: ...
    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[memoryview]:
        """The bytes from `begin` to `end` (None: all that are left), in pieces of at most BENCH_PIECE_BYTES, not copied."""
    def whole(self) -> bytes:
        """All of it, copied."""
    def matches(self, at: int, data: Buffer) -> bool:
        """Whether `data` is what belongs from byte `at` on. Raises ValueError for more than BENCH_PIECE_BYTES."""

class HeadSigner:
    """For one second: `key` is the day's signing key (32 bytes), `prefix` the string to sign up to the hash of the canonical request."""

    def __init__(self, key: bytes, prefix: bytes) -> None: ...
    def head(self, method: bytes, path: bytes, query: bytes, tail: bytes, lines: bytes, length: int = -1) -> bytes:
        """A whole head with its blank line. `tail`: the canonical request from its headers on; `lines`: the head's, up to where the
        signature belongs; `length`: of the body, -1: without Content-Length."""
