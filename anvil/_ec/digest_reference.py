"""Readable references for `digest.pyx`: the block function of MD5, the three CRCs bit by bit and by table, and their combination.

Invariant: written from the specifications (RFC 1321; RFC 3720 for CRC-32C; NVM Express NVM Command Set for CRC-64), not from the
kernels, so that equality proves something. Not here: SHA-1 and SHA-256, for which `hashlib` is the reference; use by a server.
"""

from __future__ import annotations

import math
import struct
from typing import Final, NamedTuple

MD5_START: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
MASK_32: Final = 0xFFFFFFFF

_SINES: Final = [int(2**32 * abs(math.sin(n))) for n in range(1, 65)]
_ROTATIONS: Final = [(7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21)]

State = tuple[int, int, int, int]


def _round_function(which: int, b: int, c: int, d: int) -> int:
    if which == 0:
        return (b & c) | (~b & d)
    if which == 1:
        return (b & d) | (c & ~d)
    if which == 2:
        return b ^ c ^ d
    return c ^ (b | (~d & MASK_32))


def _word_index(which: int, step: int) -> int:
    return (step, 5 * step + 1, 3 * step + 5, 7 * step)[which] % 16


def md5_block(state: State, block: bytes) -> State:
    """The state after one 64-byte block (RFC 1321, 3.4)."""
    words = struct.unpack("<16I", block)
    a, b, c, d = state
    for step in range(64):
        which = step // 16
        total = a + _round_function(which, b, c, d) + words[_word_index(which, step)] + _SINES[step] & MASK_32
        by = _ROTATIONS[which][step % 4]
        rotated = (total << by | total >> (32 - by)) & MASK_32
        a, b, c, d = d, (b + rotated) & MASK_32, b, c
    return (
        (state[0] + a) & MASK_32,
        (state[1] + b) & MASK_32,
        (state[2] + c) & MASK_32,
        (state[3] + d) & MASK_32,
    )


def md5_blocks(state: State, data: bytes) -> State:
    """The state after whole blocks."""
    for at in range(0, len(data), 64):
        state = md5_block(state, data[at : at + 64])
    return state


def md5(data: bytes) -> bytes:
    """The digest: padding of a one bit, zeros and the length in bits, then the blocks (RFC 1321, 3.1-3.5)."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack("<Q", 8 * len(data))
    return struct.pack("<4I", *md5_blocks(MD5_START, padded))


class Crc(NamedTuple):
    """A reflected CRC that starts from all ones and inverts its result."""

    polynomial: int  # reflected: the top bit is the coefficient of x^0
    width: int

    def bitwise(self, data: bytes, value: int = 0) -> int:
        """Long division, a bit at a time; `value` continues from an earlier result."""
        ones = (1 << self.width) - 1
        remainder = value ^ ones
        for byte in data:
            remainder = self._after_zeros(remainder ^ byte, 8)
        return remainder ^ ones

    def table(self) -> list[int]:
        """The remainder of every byte."""
        return [self._after_zeros(byte, 8) for byte in range(256)]

    def tabled(self, data: bytes, value: int = 0) -> int:
        """Long division, a byte at a time."""
        ones = (1 << self.width) - 1
        remainder = value ^ ones
        table = self.table()
        for byte in data:
            remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
        return remainder ^ ones

    def combine(self, first: int, second: int, second_len: int) -> int:
        """CRC of A + B: that of A, moved on over as many zero bytes as B has, and that of B. Their inversions cancel out."""
        return self._after_zeros(first, 8 * second_len) ^ second

    def _after_zeros(self, remainder: int, bits: int) -> int:
        for _ in range(bits):
            remainder = (remainder >> 1) ^ (self.polynomial if remainder & 1 else 0)
        return remainder


CRC32: Final = Crc(0xEDB88320, 32)
CRC32C: Final = Crc(0x82F63B78, 32)
CRC64NVME: Final = Crc(0x9A6C9329AC4BC9B5, 64)
CRCS: Final = {"crc32": CRC32, "crc32c": CRC32C, "crc64nvme": CRC64NVME}
