"""What a client says about an object beside its bytes, and how it is said back: system headers and user metadata.

Owns: both directions. Invariant: a value that came in ASCII goes out byte for byte; nothing a client sends can add a header
or end one. Other text is read as UTF-8 where it is that, else as Latin-1; user metadata goes out as an RFC 2047 word, as S3
does (User Guide, "User-defined object metadata"), system headers as UTF-8. Not here: which values are
valid (`operations/attributes.py`), conditions, ranges, checksums.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from time import gmtime, strftime
from typing import Any

from anvil.api.operations import attributes as rules
from anvil.api.s3.request import S3Request
from anvil.base.errors import InvalidArgument, InvalidRequest
from anvil.engine.types import ObjectInfo
from anvil.model.records import Attributes

HeaderList = list[tuple[bytes, bytes]]

_PREFIX = "x-amz-meta-"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Every object is sealed with AES-256-GCM, so this is true of each of them, and what S3 answers since 2023.
SEALED = (b"x-amz-server-side-encryption", b"AES256")

# query parameter -> header (API Reference, GetObject)
_OVERRIDES = {
    "response-content-type": b"content-type",
    "response-content-language": b"content-language",
    "response-expires": b"expires",
    "response-cache-control": b"cache-control",
    "response-content-disposition": b"content-disposition",
    "response-content-encoding": b"content-encoding",
}


def _read(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def attributes(request: S3Request) -> Attributes:
    """The attributes of a new object. Raises MetadataTooLarge, InvalidArgument."""
    headers = request.headers
    found: dict[str, Any] = {}
    for name, field in (
        (b"content-type", "content_type"),
        (b"cache-control", "cache_control"),
        (b"content-disposition", "content_disposition"),
        (b"content-language", "content_language"),
        (b"expires", "expires"),
    ):
        if headers.get(name):
            found[field] = _read(headers[name])
    if b"content-encoding" in headers and (encoding := rules.content_encoding(_read(headers[b"content-encoding"]))):
        found["content_encoding"] = encoding
    if b"x-amz-website-redirect-location" in headers:
        found["website_redirect"] = rules.website_redirect(_read(headers[b"x-amz-website-redirect-location"]))
    if not request.user_metadata:
        return Attributes(**found)
    return Attributes(**found, user=_user_metadata(request))


def _user_metadata(request: S3Request) -> dict[str, str]:
    user = {}
    for name in request.user_metadata:
        key, value = name[len(_PREFIX) :].decode("latin-1"), _read(request.headers[name])
        if not key:
            raise InvalidArgument("A user metadata header has no name.", ArgumentName=_PREFIX)
        user[key] = value
    rules.check_user(user)
    return user


def _write_user(value: str) -> bytes:
    if value.isascii() and value.isprintable():
        return value.encode("ascii")
    return b"=?UTF-8?B?" + b64encode(value.encode("utf-8")) + b"?="


def object_headers(info: ObjectInfo) -> HeaderList:
    """Everything GET and HEAD say of an object, but its length, range and checksum."""
    attributes = info.attributes
    headers: HeaderList = [
        (b"content-type", attributes.content_type.encode("utf-8")),
        *validators(info),
        (b"accept-ranges", b"bytes"),
        SEALED,
    ]
    for name, value in (
        (b"cache-control", attributes.cache_control),
        (b"content-disposition", attributes.content_disposition),
        (b"content-encoding", attributes.content_encoding),
        (b"content-language", attributes.content_language),
        (b"expires", attributes.expires),
        (b"x-amz-website-redirect-location", attributes.website_redirect),
    ):
        if value is not None:
            headers.append((name, value.encode("utf-8")))
    for key, value in attributes.user.items():
        headers.append((_PREFIX.encode("ascii") + key.encode("latin-1", "replace"), _write_user(value)))
    return headers


def not_modified_headers(info: ObjectInfo) -> HeaderList:
    """What a 304 repeats of the 200 (RFC 9110, 15.4.5); its length is that of the 200 as well (8.6)."""
    headers = [*validators(info), (b"content-length", b"%d" % info.size)]
    for name, value in ((b"cache-control", info.attributes.cache_control), (b"expires", info.attributes.expires)):
        if value is not None:
            headers.append((name, value.encode("utf-8")))
    return headers


def validators(info: ObjectInfo) -> HeaderList:
    return [(b"etag", b'"%s"' % info.etag.encode("ascii")), (b"last-modified", http_date(info.modified_us // 1_000_000))]


def override(headers: HeaderList, query: Mapping[str, str], *, anonymous: bool) -> HeaderList:
    """Apply `response-*` parameters. Raises InvalidRequest for the anonymous, InvalidArgument for control characters."""
    wanted: dict[bytes, bytes] = {}
    for parameter, header in _OVERRIDES.items():
        text = query.get(parameter)
        if text is None:
            continue
        if anonymous:
            raise InvalidRequest("Request specific response headers cannot be used for anonymous GET requests.")
        if rules.has_controls(text):
            raise InvalidArgument("A response header contains control characters.", ArgumentName=parameter)
        wanted[header] = text.encode("utf-8")
    if not wanted:
        return headers
    return [pair for pair in headers if pair[0] not in wanted] + list(wanted.items())


@lru_cache(maxsize=4096)
def http_date(seconds: int) -> bytes:
    """IMF-fixdate (RFC 9110, 5.6.7), whatever the locale."""
    t = gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    ).encode("ascii")


@lru_cache(maxsize=4096)
def _iso(seconds: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(seconds))


def iso_date(modified_us: int) -> str:
    """As in S3's XML. Whole seconds, as in Last-Modified, so that listing and HEAD agree for tools that compare the two."""
    return _iso(modified_us // 1_000_000)
