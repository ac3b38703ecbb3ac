"""Conditions on reads, on copy sources, on writes.

Owns: their precedence. Invariant: reads are judged on a row that was just read, after rights were checked; conditions of
writes are only handed on, since they are true or false under the row lock alone. Sources: RFC 9110, 13.2.2; API Reference,
GetObject, CopyObject and "Conditional requests". Times are compared in whole seconds, which is all that Last-Modified shows.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from anvil.base.errors import InvalidArgument, NotModified, NotSupported, PreconditionFailed
from anvil.engine.types import ObjectInfo
from anvil.model.records import Condition

_IF_MATCH, _IF_NONE_MATCH, _IF_MODIFIED_SINCE, _IF_UNMODIFIED_SINCE = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
)
_ETAGS_MAX = 64


class ReadConditions(msgspec.Struct, frozen=True):
    """None: not asked for. ETags without quotes, `*` for any; times in whole seconds since the epoch."""

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None
    if_modified_since_s: int | None = None
    if_unmodified_since_s: int | None = None


def etags(tokens: Iterable[str]) -> tuple[str, ...]:
    """`"a"`, `W/"b"`, `c` -> ("a", "b", "c"); empty ones do not count. Raises InvalidArgument for none and for too many."""
    found = []
    for token in tokens:
        etag = token.strip()
        etag = etag[2:] if etag.startswith("W/") else etag
        if len(etag) >= 2 and etag[0] == etag[-1] == '"':
            etag = etag[1:-1]
        if etag:
            found.append(etag)
    if not found or len(found) > _ETAGS_MAX:
        raise InvalidArgument("The list of entity tags is not valid.", ArgumentName=_IF_MATCH)
    return tuple(found)


def not_modified(conditions: ReadConditions, info: ObjectInfo) -> bool:
    """Judge the conditions of a read: True means that what the client has is what there is. Raises PreconditionFailed."""
    failed = _first_failed(conditions, info)
    if failed is None:
        return False
    if failed in (_IF_NONE_MATCH, _IF_MODIFIED_SINCE):
        return True
    raise PreconditionFailed(Condition=failed)


def require_modified(conditions: ReadConditions, info: ObjectInfo) -> None:
    """`not_modified` as an error. Raises NotModified, PreconditionFailed."""
    if not_modified(conditions, info):
        raise NotModified(ETag=info.etag)


def check_source(conditions: ReadConditions, info: ObjectInfo) -> None:
    """Judge the conditions on the source of a copy; each failure is the same. Raises PreconditionFailed."""
    failed = _first_failed(conditions, info)
    if failed is not None:
        raise PreconditionFailed(Condition=f"x-amz-copy-source-{failed}")


def _first_failed(conditions: ReadConditions, info: ObjectInfo) -> str | None:
    """The first condition that does not hold, by the precedence of RFC 9110, 13.2.2."""
    modified_s = info.modified_us // 1_000_000
    if conditions.if_match is not None:
        if not _matches(conditions.if_match, info):
            return _IF_MATCH
    elif conditions.if_unmodified_since_s is not None and modified_s > conditions.if_unmodified_since_s:
        return _IF_UNMODIFIED_SINCE
    if conditions.if_none_match is not None:
        if _matches(conditions.if_none_match, info):
            return _IF_NONE_MATCH
    elif conditions.if_modified_since_s is not None and modified_s <= conditions.if_modified_since_s:
        return _IF_MODIFIED_SINCE
    return None


def _matches(wanted: tuple[str, ...], info: ObjectInfo) -> bool:
    return "*" in wanted or info.etag in wanted


def check_delete(condition: Condition) -> None:
    """S3 deletes on If-Match alone (API Reference, DeleteObject). Raises NotSupported."""
    if condition.if_none_match is not None:
        raise NotSupported(Header=_IF_NONE_MATCH)
