"""Which bytes of an object a read asks for: the Range header, or a part number.

Owns: that choice. Invariant: `start + length <= size`. Sources: RFC 9110, 14; API Reference, GetObject ("Amazon S3 doesn't
support retrieving multiple ranges of data per GET request": several ranges get the whole object, as does a header that is no
byte range).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from anvil.base.errors import InvalidArgument, InvalidPartNumber, InvalidRange
from anvil.base.limits import PART_NUMBER_MAX
from anvil.engine.types import ObjectInfo
from anvil.model.records import Checksum

_RANGE = re.compile(rb"\s*bytes\s*=\s*(\d{0,20})\s*-\s*(\d{0,20})\s*", re.IGNORECASE)
_SOURCE_RANGE = re.compile(rb"bytes=(\d{1,20})-(\d{1,20})")


class Selection(NamedTuple):
    """`partial`: answer 206 with Content-Range."""

    start: int
    length: int
    partial: bool
    checksum: Checksum | None

    def content_range(self, size: int) -> bytes:
        return b"bytes %d-%d/%d" % (self.start, self.start + self.length - 1, size)


def whole(info: ObjectInfo) -> Selection:
    return Selection(0, info.size, False, info.checksum)


def by_range(value: bytes, info: ObjectInfo) -> Selection:
    """The Range header. Raises InvalidRange when it is a valid byte range that this object cannot satisfy."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return whole(info)
    first, last = match.groups()
    size = info.size
    if first:
        start = int(first)
        end = min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return whole(info)
    elif last:
        start, end = max(0, size - int(last)), size - 1
        if int(last) == 0:
            start = size
    else:
        return whole(info)
    if start >= size:
        raise InvalidRange(RangeRequested=value.decode("latin-1"), ActualObjectSize=size)
    return Selection(start, end - start + 1, True, None)


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


def part_number(text: str) -> int:
    """Raises InvalidArgument unless it is 1 to 10,000."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PART_NUMBER_MAX:
        return int(text)
    raise InvalidArgument(
        f"Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive",
        ArgumentName="partNumber",
        ArgumentValue=text,
    )


def source_range(value: bytes, size: int) -> tuple[int, int]:
    """`x-amz-copy-source-range`: (start, length). Both ends must be given and lie in the source. Raises InvalidArgument,
    InvalidRange."""
    match = _SOURCE_RANGE.fullmatch(value)
    shown = value.decode("latin-1")
    if match is None or int(match[1]) > int(match[2]):
        raise InvalidArgument(
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based "
            "offsets of the first and last bytes to copy",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=shown,
        )
    if int(match[2]) >= size:
        raise InvalidRange(
            f"Range specified is not valid for source object of size: {size}", RangeRequested=shown, ActualObjectSize=size
        )
    return int(match[1]), int(match[2]) - int(match[1]) + 1
