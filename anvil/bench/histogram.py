"""Latencies in the buckets of HdrHistogram (hdrhistogram.org): three significant digits from 1 us to an hour.

Owns: the buckets, and HdrHistogram's V2 compressed log format, which every tool of that family reads. Invariant: the same value falls in
the same bucket as with HdrHistogram(1000, 3600 * 10^9, 3) on nanoseconds. Not here: clocks, and which requests count (`record.py`).

A process notes one dict of buckets per second (`index_of`): a dict is quick to count in, and its sum over seconds is the whole.
Source: HdrHistogram, "EncodableHistogram" and "ZigZagEncoding" of its Java implementation.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from anvil.base.errors import InvalidSetting
from anvil.base.limits import BENCH_LATENCY_NS_MAX

LOWEST_NS: Final = 1000
DIGITS: Final = 3
UNIT_BITS: Final = 9  # 512 ns: the largest power of two that is no more than the lowest value
HALF_BITS: Final = 10  # half of the 2,048 sub-buckets that three digits need
_MASK_BITS: Final = UNIT_BITS + HALF_BITS + 1
_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_HEAD: Final = struct.Struct(">iiiiqqd")  # cookie, payload length, offset, digits, lowest, highest, ratio


def index_of(value_ns: int) -> int:
    """The bucket of a value; less than 0 counts as 0, more than an hour as an hour."""
    if value_ns >= BENCH_LATENCY_NS_MAX:
        value_ns = BENCH_LATENCY_NS_MAX
    elif value_ns < 0:
        value_ns = 0
    shift = value_ns.bit_length() - _MASK_BITS
    if shift <= 0:
        return value_ns >> UNIT_BITS
    return (shift << HALF_BITS) + (value_ns >> (shift + UNIT_BITS))


def lowest_of(index: int) -> int:
    """The lowest value of a bucket, ns."""
    shift = max(0, (index >> HALF_BITS) - 1)
    return (index - (shift << HALF_BITS)) << (shift + UNIT_BITS)


def highest_of(index: int) -> int:
    """The highest value that is not told apart from the bucket's others, ns."""
    return lowest_of(index + 1) - 1


class Histogram:
    """Counts by bucket. `counts`: bucket -> how many; those that are missing are 0."""

    def __init__(self, parts: Iterable[Mapping[int, int]] = ()) -> None:
        self.counts: dict[int, int] = {}
        for part in parts:
            self.add(part)

    def add(self, part: Mapping[int, int]) -> None:
        counts = self.counts
        for index, count in part.items():
            counts[index] = counts.get(index, 0) + count

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int:
        """ns: the highest value of the bucket that holds the value of that rank (the smallest rank with at least `percent` of all at or
        below it). 0 without values."""
        total = self.total
        rank = max(1, _ceil(percent * total / 100))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return highest_of(index)
        return 0

    @property
    def mean(self) -> float:
        """ns, from the middles of the buckets. 0 without values."""
        total = self.total
        return (
            sum((lowest_of(at) + highest_of(at) + 1) / 2 * count for at, count in self.counts.items()) / total if total else 0.0
        )

    @property
    def largest(self) -> int:
        """ns, the highest value of the last bucket. 0 without values."""
        return highest_of(max(self.counts)) if self.counts else 0

    @property
    def smallest(self) -> int:
        """ns, the lowest value of the first bucket. 0 without values."""
        return lowest_of(min(self.counts)) if self.counts else 0

    def encode(self) -> str:
        """HdrHistogram's V2 compressed log format, base64."""
        payload = bytearray()
        gap = 0
        for index in range(max(self.counts, default=-1) + 1):
            count = self.counts.get(index, 0)
            if count == 0:
                gap += 1
                continue
            if gap:
                _put(payload, -gap)
                gap = 0
            _put(payload, count)
        body = _HEAD.pack(_COOKIE, len(payload), 0, DIGITS, LOWEST_NS, BENCH_LATENCY_NS_MAX, 1.0) + payload
        packed = zlib.compress(body)
        return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed).decode()


def decode(text: str) -> Histogram:
    """What `encode` wrote. Raises InvalidSetting for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
        cookie, length = struct.unpack_from(">ii", data)
        body = zlib.decompress(data[8 : 8 + length])
        head = _HEAD.unpack_from(body)
        if cookie != _COMPRESSED_COOKIE or head[0] != _COOKIE or head[2:6] != (0, DIGITS, LOWEST_NS, BENCH_LATENCY_NS_MAX):
            raise ValueError("another histogram")
        return _counts(body[_HEAD.size : _HEAD.size + head[1]])
    except (ValueError, struct.error, zlib.error, IndexError):
        raise InvalidSetting("the histogram of the report is damaged, or not of `anvil bench`") from None


def _counts(payload: bytes) -> Histogram:
    made, index, at = Histogram(), 0, 0
    while at < len(payload):
        value, at = _take(payload, at)
        if value < 0:
            index -= value
        else:
            made.counts[index] = value
            index += 1
    return made


def _put(out: bytearray, value: int) -> None:
    """ZigZag, then LEB128 of at most nine bytes, the last of which has all its bits."""
    value = (value << 1) ^ (value >> 63)
    for _ in range(8):
        if value < 0x80:
            out.append(value)
            return
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0xFF)


def _take(data: bytes, at: int) -> tuple[int, int]:
    """A value and where the next one begins."""
    value = 0
    for step in range(9):
        byte = data[at]
        at += 1
        if step == 8:
            value |= byte << 56
            break
        value |= (byte & 0x7F) << (7 * step)
        if byte < 0x80:
            break
    return (value >> 1) ^ -(value & 1), at


def _ceil(value: float) -> int:
    """Up, except for what floating point added to a whole number."""
    return int(value) if value - int(value) < 1e-9 * max(1.0, value) else int(value) + 1
