"""Conditional headers, as conditions: on reads, on copy sources, on writes.

Owns: reading them. Source: RFC 9110, 13.1. Not here: judging them (`operations/conditions.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from anvil.api.operations import conditions
from anvil.api.operations.conditions import ReadConditions
from anvil.base.errors import NotSupported
from anvil.engine.types import ObjectInfo
from anvil.model.records import NO_CONDITION, Condition

Headers = Mapping[bytes, bytes]

_READ = (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since")
_COPY = tuple(b"x-amz-copy-source-" + name for name in _READ)
_ANY = Condition(if_none_match=())


def etags(value: bytes) -> tuple[str, ...]:
    """`"a", W/"b"` -> ("a", "b"); `*` -> ("*",). Quotes may be missing, as many clients have it. Raises InvalidArgument."""
    return conditions.etags(value.decode("latin-1").split(","))


def http_seconds(value: bytes) -> int | None:
    """An HTTP date in any of the three forms; None when it is not one, and is then ignored (RFC 9110, 13.1.3)."""
    try:
        date = parsedate_to_datetime(value.decode("latin-1"))
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):  # a year or a zone beyond what the library can hold overflows
        return None


def not_modified(headers: Headers, info: ObjectInfo) -> bool:
    """Judge the conditions of a read: True means 304. Raises PreconditionFailed, InvalidArgument."""
    stated = _read(headers, _READ)
    return stated is not None and conditions.not_modified(stated, info)


def check_copy_source(headers: Headers, info: ObjectInfo) -> None:
    """Judge the `x-amz-copy-source-if-*` headers; each failure is 412. Raises PreconditionFailed, InvalidArgument."""
    stated = _read(headers, _COPY)
    if stated is not None:
        conditions.check_source(stated, info)


def _read(headers: Headers, names: tuple[bytes, ...]) -> ReadConditions | None:
    """None where there is no condition, as in most requests."""
    if not any(name in headers for name in names):
        return None
    if_match, if_none_match, modified_since, unmodified_since = (headers.get(name) for name in names)
    return ReadConditions(
        if_match=None if if_match is None else etags(if_match),
        if_none_match=None if if_none_match is None else etags(if_none_match),
        if_modified_since_s=None if modified_since is None else http_seconds(modified_since),
        if_unmodified_since_s=None if unmodified_since is None else http_seconds(unmodified_since),
    )


def range_applies(headers: Headers, info: ObjectInfo) -> bool:
    """Whether If-Range lets the Range header count: its validator must match strongly (RFC 9110, 13.1.5)."""
    value = headers.get(b"if-range")
    if value is None:
        return True
    if value.startswith((b'"', b"W/")):
        return value == b'"%s"' % info.etag.encode("ascii")
    return http_seconds(value) == info.modified_us // 1_000_000


def write_condition(headers: Headers, *, delete: bool = False) -> Condition:
    """If-Match and If-None-Match of a write, for the commit to judge. Raises NotSupported for what S3 does not have there."""
    if_match, if_none_match = headers.get(b"if-match"), headers.get(b"if-none-match")
    if b"if-modified-since" in headers or b"if-unmodified-since" in headers:
        raise NotSupported(Header="If-Modified-Since, If-Unmodified-Since")
    if if_match is None and if_none_match is None:
        return NO_CONDITION
    if delete:
        conditions.check_delete(_ANY if if_none_match is not None else NO_CONDITION)  # refused whatever it says
    return Condition(
        if_match=None if if_match is None else etags(if_match),
        if_none_match=None if if_none_match is None else etags(if_none_match),
    )
