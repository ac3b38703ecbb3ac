"""Which bytes a request asks for: the Range header, a part number, `x-amz-copy-source-range`.

Owns: their grammar. Sources: RFC 9110, 14; API Reference, GetObject ("Amazon S3 doesn't support retrieving multiple ranges of
data per GET request": several ranges get the whole object, as does a header that is no byte range). Not here: which bytes these
are of an object (`operations/ranges.py`).
"""

from __future__ import annotations

import re

from anvil.api.operations import ranges
from anvil.api.operations.ranges import Selection
from anvil.base.errors import InvalidArgument
from anvil.engine.types import ObjectInfo

_RANGE = re.compile(rb"\s*bytes\s*=\s*(\d{0,20})\s*-\s*(\d{0,20})\s*", re.IGNORECASE)
_SOURCE_RANGE = re.compile(rb"bytes=(\d{1,20})-(\d{1,20})")


def content_range(chosen: Selection, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (chosen.start, chosen.start + chosen.length - 1, size)


def by_range(value: bytes, info: ObjectInfo) -> Selection:
    """The Range header. Raises InvalidRange when it is a valid byte range that this object cannot satisfy."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return ranges.whole(info)
    first, last = match.groups()
    if first:
        offset, length = int(first), int(last) - int(first) + 1 if last else None
        if length is not None and length < 1:
            return ranges.whole(info)
    elif last:
        # The last 0 bytes are none, which no object has.
        offset, length = -int(last), None if int(last) else 0
    else:
        return ranges.whole(info)
    return ranges.by_range(info, offset, length, value.decode("latin-1"))


def part_number(text: str) -> int:
    """Raises InvalidArgument unless it is 1 to 10,000."""
    digits = text.isascii() and text.isdigit() and len(text) <= 5
    return ranges.part_number(int(text) if digits else None, text)


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
    return ranges.of_source(size, int(match[1]), int(match[2]) - int(match[1]) + 1, shown)
