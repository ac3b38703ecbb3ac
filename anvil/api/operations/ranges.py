"""Which bytes of an object a read asks for: a range, or a part number.

Owns: that choice. Invariant: `start + length <= size`. Sources: RFC 9110, 14; API Reference, GetObject, UploadPartCopy. Not
here: the grammar of the Range header (`api/s3/ranges.py`). `requested`: the range as the client put it, for the error.
"""

from __future__ import annotations

from typing import NamedTuple

from anvil.base.errors import InvalidArgument, InvalidPartNumber, InvalidRange
from anvil.base.limits import PART_NUMBER_MAX
from anvil.engine.types import ObjectInfo
from anvil.model.records import Checksum


class Selection(NamedTuple):
    """`partial`: it is the answer to a range or a part. `checksum`: of exactly these bytes, where one is stored."""

    start: int
    length: int
    partial: bool
    checksum: Checksum | None


def whole(info: ObjectInfo) -> Selection:
    return Selection(0, info.size, False, info.checksum)


def by_range(info: ObjectInfo, offset: int, length: int | None, requested: str) -> Selection:
    """Up to `length` bytes (None: all) from `offset` on, which counts from the end where it is negative.

    Raises InvalidRange when the object has none of them."""
    size = info.size
    start = offset if offset >= 0 else max(0, size + offset)
    if start >= size or length == 0:
        raise InvalidRange(RangeRequested=requested, ActualObjectSize=size)
    return Selection(start, size - start if length is None else min(length, size - start), True, None)


def by_part(number: int, info: ObjectInfo) -> Selection:
    """One part, as it was uploaded; `info` as `open` gives it. Any object that is no multipart one has part 1.

    Raises InvalidPartNumber."""
    if not info.part_count:
        if number != 1:
            raise InvalidPartNumber(PartNumberRequested=number, ActualPartCount=1)
        return Selection(0, info.size, info.size > 0, info.checksum)
    start = 0
    for part in info.parts:
        if part.number == number:
            return Selection(start, part.size, info.size > 0 and part.size > 0, part.checksum)
        start += part.size
    raise InvalidPartNumber(PartNumberRequested=number, ActualPartCount=info.part_count)


def part_number(number: int | None, shown: str | None = None) -> int:
    """Raises InvalidArgument unless it is 1 to 10,000. `shown`: as the client put it; `number` is None where that is no number."""
    if number is not None and 1 <= number <= PART_NUMBER_MAX:
        return number
    raise InvalidArgument(
        f"Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive",
        ArgumentName="partNumber",
        ArgumentValue=str(number) if shown is None else shown,
    )


def of_source(size: int, offset: int, length: int | None, requested: str) -> tuple[int, int]:
    """(start, length) of a copied part in a source of `size` bytes, in which all of it must lie. Raises InvalidRange."""
    start = offset if offset >= 0 else size + offset
    count = size - start if length is None else length
    if start < 0 or count < 1 or start + count > size:
        raise InvalidRange(
            f"Range specified is not valid for source object of size: {size}", RangeRequested=requested, ActualObjectSize=size
        )
    return start, count
