"""Conditional headers: on reads, on copy sources, on writes.

Owns: their precedence. Invariant: reads are judged on a row that was just read, after rights were checked; conditions of
writes are only handed on, since they are true or false under the row lock alone. Sources: RFC 9110, 13.2.2; API Reference,
GetObject, CopyObject and "Conditional requests". Times are compared in whole seconds, which is all that Last-Modified shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from anvil.base.errors import InvalidArgument, NotSupported, PreconditionFailed
from anvil.engine.types import ObjectInfo
from anvil.model.records import NO_CONDITION, Condition

Headers = Mapping[bytes, bytes]

_READ = (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since")
_COPY = tuple(b"x-amz-copy-source-" + name for name in _READ)
_SHOWN = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
_ETAGS_MAX = 64


def etags(value: bytes) -> tuple[str, ...]:
    """`"a", W/"b"` -> ("a", "b"); `*` -> ("*",). Quotes may be missing, as many clients have it. Raises InvalidArgument."""
    found = []
    for token in value.decode("latin-1").split(","):
        etag = token.strip()
        etag = etag[2:] if etag.startswith("W/") else etag
        if len(etag) >= 2 and etag[0] == etag[-1] == '"':
            etag = etag[1:-1]
        if etag:
            found.append(etag)
    if not found or len(found) > _ETAGS_MAX:
        raise InvalidArgument("The list of entity tags is not valid.", ArgumentName="If-Match")
    return tuple(found)


def http_seconds(value: bytes) -> int | None:
    """An HTTP date in any of the three forms; None when it is not one, and is then ignored (RFC 9110, 13.1.3)."""
    try:
        date = parsedate_to_datetime(value.decode("latin-1"))
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):  # a year or a zone beyond what the library can hold overflows
        return None


def not_modified(headers: Headers, info: ObjectInfo) -> bool:
    """Judge the conditions of a read: True means 304. Raises PreconditionFailed."""
    if not any(name in headers for name in _READ):
        return False
    failed = _judge(headers, info, _READ)
    if failed is None:
        return False
    if failed in ("If-None-Match", "If-Modified-Since"):
        return True
    raise PreconditionFailed(Condition=failed)


def check_copy_source(headers: Headers, info: ObjectInfo) -> None:
    """Judge the `x-amz-copy-source-if-*` headers; each failure is 412. Raises PreconditionFailed."""
    failed = _judge(headers, info, _COPY)
    if failed is not None:
        raise PreconditionFailed(Condition=f"x-amz-copy-source-{failed}")


def _judge(headers: Headers, info: ObjectInfo, names: tuple[bytes, ...]) -> str | None:
    """The first condition that does not hold, by the precedence of RFC 9110, 13.2.2."""
    if_match, if_none_match, modified_since, unmodified_since = (headers.get(name) for name in names)
    modified_s = info.modified_us // 1_000_000
    if if_match is not None:
        if not _matches(if_match, info):
            return _SHOWN[0]
    elif unmodified_since is not None:
        limit = http_seconds(unmodified_since)
        if limit is not None and modified_s > limit:
            return _SHOWN[3]
    if if_none_match is not None:
        if _matches(if_none_match, info):
            return _SHOWN[1]
    elif modified_since is not None:
        limit = http_seconds(modified_since)
        if limit is not None and modified_s <= limit:
            return _SHOWN[2]
    return None


def _matches(value: bytes, info: ObjectInfo) -> bool:
    wanted = etags(value)
    return "*" in wanted or info.etag in wanted


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
    if b"if-match" not in headers and b"if-none-match" not in headers:
        if b"if-modified-since" in headers or b"if-unmodified-since" in headers:
            raise NotSupported(Header="If-Modified-Since, If-Unmodified-Since")
        return NO_CONDITION
    if_match, if_none_match = headers.get(b"if-match"), headers.get(b"if-none-match")
    if b"if-modified-since" in headers or b"if-unmodified-since" in headers:
        raise NotSupported(Header="If-Modified-Since, If-Unmodified-Since")
    if delete and if_none_match is not None:
        raise NotSupported(Header="If-None-Match")
    return Condition(
        if_match=None if if_match is None else etags(if_match),
        if_none_match=None if if_none_match is None else etags(if_none_match),
    )
