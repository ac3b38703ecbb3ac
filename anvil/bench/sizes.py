"""Sizes of objects: one, a range, or several with weights; and how sizes are written.

    4KiB                 every object is of that size
    1KiB..1MiB           log-uniform: as many objects between 1 and 2 KiB as between 512 KiB and 1 MiB
    4KiB:70,1MiB:30      weights, of any sum

Owns: this notation. Invariant: the size of an object is a function of one number in [0, 1). Not here: where that number comes from
(`content.py`).
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import GIB, KIB, MIB, OBJECT_BYTES_MAX, TIB

_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)")
_WEIGHT: Final = re.compile(r"\d{1,9}(?:\.\d{1,6})?")


class Choice(msgspec.Struct, frozen=True):
    """Sizes from `low` to `high` bytes, both included, chosen where the number is below `until`."""

    low: int
    high: int
    until: float


class Sizes(msgspec.Struct, frozen=True):
    """A distribution. `text`: as it was written; `choices`: in order, the last one's `until` is 1."""

    text: str
    choices: tuple[Choice, ...]

    @property
    def largest(self) -> int:
        """Bytes."""
        return max(one.high for one in self.choices)

    @property
    def smallest(self) -> int:
        """Bytes."""
        return min(one.low for one in self.choices)

    def of(self, number: float) -> int:
        """Bytes of the object whose number, in [0, 1), this is."""
        begin = 0.0
        for one in self.choices:
            if number < one.until:
                if one.low == one.high:
                    return one.low
                share = (number - begin) / (one.until - begin)
                low = max(one.low, 1)  # a range from 0 has its logarithms from 1 byte on
                return min(one.high, round(math.exp(math.log(low) + share * (math.log(one.high) - math.log(low)))))
            begin = one.until
        return self.choices[-1].high


def parse_size(text: str) -> int:
    """Bytes: `4096`, `4KiB`, `1.5MiB`, `10MB` (powers of ten). Raises InvalidSetting."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise InvalidSetting(f"{text!r} is not a size: a number with B, KiB, MiB, GiB or TiB (or KB, MB, GB, TB)")
    size = float(found[1]) * unit
    if size != int(size):
        raise InvalidSetting(f"{text!r} is not a whole number of bytes")
    if size > OBJECT_BYTES_MAX:
        raise InvalidSetting(f"{text!r} is more than an object can have, 5 TiB")
    return int(size)


def parse_sizes(text: str) -> Sizes:
    """Raises InvalidSetting with one line that says what is wrong."""
    parts = text.split(",")
    if len(parts) == 1:
        return Sizes(text, (_choice(text, 1.0),))
    weighted = []
    for part in parts:
        size, colon, weight = part.rpartition(":")
        if not colon or not _WEIGHT.fullmatch(weight.strip()) or float(weight) <= 0:
            raise InvalidSetting(f"{part.strip()!r} in --size is not of the form SIZE:WEIGHT, with a weight above 0")
        weighted.append((size, float(weight)))
    total, sum_so_far, choices = sum(weight for _, weight in weighted), 0.0, []
    for what, share in weighted:
        sum_so_far += share
        choices.append(_choice(what, sum_so_far / total))
    choices[-1] = msgspec.structs.replace(choices[-1], until=1.0)
    return Sizes(text, tuple(choices))


def _choice(text: str, until: float) -> Choice:
    low, dots, high = text.partition("..")
    if not dots:
        size = parse_size(text)
        return Choice(size, size, until)
    found = Choice(parse_size(low), parse_size(high), until)
    if found.low > found.high:
        raise InvalidSetting(f"{text!r} in --size is empty: the smaller size stands first")
    return found


def shown(nbytes: float) -> str:
    """For people: `4.0 KiB`."""
    if abs(nbytes) < KIB:
        return f"{nbytes:.0f} B"
    unit, name = next((one for one in ((KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB")) if abs(nbytes) < KIB * one[0]), (TIB, "TiB"))
    return f"{nbytes / unit:,.1f} {name}"
