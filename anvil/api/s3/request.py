"""From the head of a request to what it names: bucket, key, query and headers, each decoded exactly once.

Owns: addressing (path-style and virtual-host-style), percent-decoding, duplicate rules. Invariants: a key is whatever follows
the first slash behind the bucket, decoded once and never normalized, so `.` and `..` are plain text and cannot leave the
bucket; text is valid UTF-8 without U+0000. Not here: which operation it is (`routes.py`), who asks (`auth`), which
names are valid (`operations/names.py`).

A presigned URL may carry `x-amz-*` headers as query parameters (SDKs hoist them, and they are signed there). They count as
headers, so that a feature asked for in the query is as little ignored as one asked for in a header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from anvil.api.operations.attributes import is_field_name
from anvil.api.operations.names import check_bucket_name, check_key
from anvil.base.errors import InvalidArgument, InvalidBucketName, InvalidRequest, InvalidURI
from anvil.net.stream import RequestHead

VirtualBucket = Callable[[bytes], str | None]

SERVICE, BUCKET, OBJECT = "service", "bucket", "object"

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_META = b"x-amz-meta-"

# Repeating these is the same as one comma-separated value (RFC 9110, 5.3); everything Anvil acts on must come once.
_SINGLE = frozenset(
    b"authorization content-length content-md5 content-type host if-modified-since if-range if-unmodified-since range expires "
    b"content-disposition".split()
)
_LISTS = frozenset((b"x-amz-object-attributes", b"x-amz-optional-object-attributes"))  # the Java SDK sends one line per value
# Every `x-amz-*` header that a handler reads or that means nothing to a store; all others go to `features.check`.
PLAIN_AMZ = frozenset(
    b"x-amz-" + name
    for name in (
        b"content-sha256 date decoded-content-length trailer sdk-checksum-algorithm user-agent checksum-algorithm checksum-type "
        b"checksum-mode checksum-crc32 checksum-crc32c checksum-crc64nvme checksum-sha1 checksum-sha256 copy-source "
        b"copy-source-range copy-source-if-match copy-source-if-none-match copy-source-if-modified-since "
        b"copy-source-if-unmodified-since metadata-directive object-attributes max-parts part-number-marker mp-object-size "
        b"expected-bucket-owner source-expected-bucket-owner website-redirect-location request-payer optional-object-attributes"
    ).split()
)
# Query parameters that are authentication's (or meaningless), not headers in disguise.
_NOT_HOISTED = frozenset(
    (b"x-amz-" + name).decode("ascii")
    for name in (
        b"algorithm credential date expires signedheaders signature security-token content-sha256 user-agent "
        b"sdk-checksum-algorithm"
    ).split()
)


class Address(NamedTuple):
    """What a request names. `bucket` is "" for the service, `key` is "" for a bucket."""

    bucket: str
    key: str
    virtual: bool

    @property
    def level(self) -> str:
        return OBJECT if self.key else BUCKET if self.bucket else SERVICE


class S3Request:
    """One request, parsed. `headers` maps lower-case names to values; `special` lists `x-amz-*` names that imply features."""

    __slots__ = ("bucket", "headers", "key", "level", "method", "query", "special", "user_metadata")

    def __init__(
        self,
        method: str,
        address: Address,
        query: dict[str, str],
        headers: dict[bytes, bytes],
        special: Sequence[bytes],
        user_metadata: Sequence[bytes],
    ) -> None:
        self.method = method
        self.bucket = address.bucket
        self.key = address.key
        self.level = address.level
        self.query = query
        self.headers = headers
        self.special = special
        self.user_metadata = user_metadata  # names of `x-amz-meta-*` headers, in order

    def text(self, name: bytes) -> str | None:
        """A header as text (Latin-1, so that nothing is lost), or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def owner(self) -> str | None:
        """Who the client expects to own the bucket."""
        return self.text(b"x-amz-expected-bucket-owner")

    @property
    def source_owner(self) -> str | None:
        """The same of the bucket that is copied from."""
        return self.text(b"x-amz-source-expected-bucket-owner")

    @property
    def version(self) -> str | None:
        return self.query.get("versionId")


def decode(raw: bytes) -> str:
    """Percent-decode once. Raises InvalidURI for bad escapes, text that is not UTF-8, and U+0000."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise InvalidURI()
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidURI("The request target is not valid UTF-8.") from None
    if "\0" in text:
        raise InvalidURI("The request target contains U+0000.")
    return text


def parse_address(head: RequestHead, virtual_bucket: VirtualBucket | None) -> Address:
    """Bucket and key. `virtual_bucket`: the bucket that an authority names, the same function that authentication asks
    (`auth.hosts`), for a signature must not be verified for one bucket and served from another.

    Raises InvalidURI, InvalidBucketName (nothing outside the charset of bucket names gets any further), KeyTooLong."""
    path = head.path
    if path[:1] != b"/":
        raise InvalidURI()
    virtual = virtual_bucket(head.authority) if virtual_bucket is not None else None
    if virtual is not None:
        bucket, raw_key = virtual, path[1:]
    else:
        raw_bucket, slash, raw_key = path[1:].partition(b"/")
        if not raw_bucket:
            if slash:
                raise InvalidBucketName(BucketName="")
            return Address("", "", False)
        bucket = decode(raw_bucket)
    check_bucket_name(bucket)
    if not raw_key:
        return Address(bucket, "", virtual is not None)
    return Address(bucket, check_key(decode(raw_key)), virtual is not None)


def parse_request(head: RequestHead, address: Address, *, signed: bool) -> S3Request:
    """Query and headers. Raises InvalidURI, InvalidArgument (a parameter twice), InvalidRequest (a header twice)."""
    headers: dict[bytes, bytes] = {}
    special: list[bytes] = []
    user: list[bytes] = []
    for name, value in head.headers:
        if name in headers:
            if name in _SINGLE or (name.startswith(b"x-amz-") and not name.startswith(_META) and name not in _LISTS):
                raise InvalidRequest(f"The header {name.decode('latin-1')} is given more than once.")
            # S3 joins repeated user metadata with a bare comma (UserGuide, "User-defined object metadata").
            headers[name] += (b"," if name.startswith(_META) else b", ") + value
            continue
        headers[name] = value
        if name.startswith(b"x-amz-") and name not in PLAIN_AMZ:
            (user if name.startswith(_META) else special).append(name)
    query = parse_query(head.query) if head.query else {}
    if query and signed:
        _hoist(query, headers, special, user)
    return S3Request(head.method, address, query, headers, special, user)


def parse_query(raw: bytes) -> dict[str, str]:
    """Parameters by name; `+` is a space; one without `=` has the value "". Raises InvalidArgument for a repeated name."""
    query: dict[str, str] = {}
    for field in raw.split(b"&"):
        if not field:
            continue
        raw_name, _, raw_value = field.replace(b"+", b" ").partition(b"=")
        name = decode(raw_name)
        if name in query:
            raise InvalidArgument("A query parameter is given more than once.", ArgumentName=name)
        query[name] = decode(raw_value)
    return query


def _hoist(query: dict[str, str], headers: dict[bytes, bytes], special: list[bytes], user: list[bytes]) -> None:
    for parameter, text in query.items():
        if parameter[:6].lower() != "x-amz-":
            continue
        lower = parameter.lower()
        if lower in _NOT_HOISTED:
            continue
        name, value = lower.encode("utf-8"), text.encode("utf-8")
        if not is_field_name(lower) or any(byte < 0x20 or byte == 0x7F for byte in value):
            raise InvalidArgument("A query parameter that stands for a header could not be one.", ArgumentName=parameter)
        if name in headers:
            if headers[name] != value:
                raise InvalidRequest(f"{parameter} is given as a header and as a query parameter, with different values.")
            continue
        headers[name] = value
        if name not in PLAIN_AMZ:
            (user if name.startswith(_META) else special).append(name)
