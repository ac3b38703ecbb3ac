"""What the client takes and gives: frozen values, in Anvil's words, times in UTC.

Not here: the messages on the wire (`convert.py` turns one into the other).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec

from anvil.base import limits

__all__ = [
    "Attributes",
    "Bucket",
    "BucketPolicy",
    "ByteRange",
    "Checksum",
    "ChecksumAlgorithm",
    "CopyResult",
    "Download",
    "Grant",
    "ListPage",
    "ObjectInfo",
    "ObjectSummary",
    "Part",
    "Prefix",
    "Progress",
    "PutResult",
    "ReadConditions",
    "StoredPolicy",
    "Token",
    "TransferOptions",
    "UploadedPart",
    "WriteConditions",
]

Progress = Callable[[int], None]
"""Told how many bytes moved since it was last told; less than zero when a part that broke is begun again."""


class Ask(msgspec.Struct, frozen=True):
    """What a call asks for, in the words of rights (`object:write` on `bucket/key`), and how it may be treated.

    `repeatable`: doing it twice is the same as doing it once, so it is tried again when the server is unavailable."""

    action: str
    resource: str
    repeatable: bool = True
    timeout_s: float = limits.CLIENT_CALL_S


class Token(msgspec.Struct, frozen=True):
    """An access token. Never printed but by `anvil auth get-token`."""

    value: str
    renew_at_s: float  # seconds since the epoch
    expires_at_s: float

    def __repr__(self) -> str:
        return "Token(...)"


class Bucket(msgspec.Struct, frozen=True):
    name: str
    region: str
    created_at: datetime


class Grant(msgspec.Struct, frozen=True):
    """`app`: its access key; given to the server also its name. `resource`: BUCKET, BUCKET/key, or a prefix in it ending in `*`."""

    app: str
    action: str
    resource: str


class BucketPolicy(msgspec.Struct, frozen=True):
    """Who has rights on exactly one bucket or in it, and whether everybody may read."""

    public_read: bool = False
    grants: tuple[Grant, ...] = ()


class StoredPolicy(msgspec.Struct, frozen=True):
    """`etag` is for `put_policy(if_match=...)`."""

    policy: BucketPolicy
    etag: str


class ChecksumAlgorithm(StrEnum):
    CRC32 = "crc32"
    CRC32C = "crc32c"
    CRC64NVME = "crc64nvme"
    SHA1 = "sha1"
    SHA256 = "sha256"


class Checksum(msgspec.Struct, frozen=True):
    """`value`: raw, CRCs big-endian. `parts`: of a COMPOSITE one, the checksum of the parts' checksums."""

    algorithm: ChecksumAlgorithm
    value: bytes
    type: Literal["FULL_OBJECT", "COMPOSITE"] = "FULL_OBJECT"
    parts: int = 0


class Attributes(msgspec.Struct, frozen=True):
    """What an uploader says of an object beside its bytes. `user_metadata`: lower-case names, together at most 2 KiB."""

    content_type: str = ""
    cache_control: str = ""
    content_disposition: str = ""
    content_encoding: str = ""
    content_language: str = ""
    expires: str = ""
    website_redirect: str = ""
    user_metadata: dict[str, str] = {}


class ObjectInfo(msgspec.Struct, frozen=True):
    """`part_count`: of a multipart object, else 0. `checksum`: None where none is stored."""

    key: str
    size: int
    etag: str
    modified_at: datetime
    version_id: str
    attributes: Attributes
    checksum: Checksum | None
    part_count: int


class ObjectSummary(msgspec.Struct, frozen=True):
    """An object in a listing."""

    key: str
    size: int
    etag: str
    modified_at: datetime


class Prefix(msgspec.Struct, frozen=True):
    """What several keys have in common up to the delimiter, in a listing."""

    prefix: str


class ListPage(msgspec.Struct, frozen=True):
    """`next_page_token` is empty on the last page."""

    objects: tuple[ObjectSummary, ...]
    prefixes: tuple[Prefix, ...]
    next_page_token: str


class ReadConditions(msgspec.Struct, frozen=True):
    """Etags, or `*`. Raises PreconditionFailed or NotModified where they do not hold."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()
    if_modified_since: datetime | None = None
    if_unmodified_since: datetime | None = None


class WriteConditions(msgspec.Struct, frozen=True):
    """`if_match`: etags, or `*` = must exist. `if_none_match`: etags it must not have, or `*` = must not exist."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()


class ByteRange(msgspec.Struct, frozen=True):
    """`offset` < 0: the last -offset bytes. `length` None: to the end."""

    offset: int = 0
    length: int | None = None


class PutResult(msgspec.Struct, frozen=True):
    """An object that was stored. `checksum`: the server's, equal to the one the client computed."""

    etag: str
    version_id: str
    size: int
    checksum: Checksum | None
    modified_at: datetime


class CopyResult(msgspec.Struct, frozen=True):
    etag: str
    version_id: str
    checksum: Checksum | None
    modified_at: datetime


class UploadedPart(msgspec.Struct, frozen=True):
    """What `complete` needs to know of a part."""

    number: int
    size: int
    etag: str
    checksum: bytes = b""  # of the upload's algorithm; empty: not compared again


class Part(msgspec.Struct, frozen=True):
    """A part as the server lists it."""

    number: int
    size: int
    etag: str
    modified_at: datetime
    checksum: Checksum | None


class Download(msgspec.Struct, frozen=True):
    """`verified`: the bytes were compared with the object's checksum; False where the server has none of the whole object."""

    info: ObjectInfo
    size: int
    verified: bool


class TransferOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How large objects are moved. The defaults suit a network; each is explained in `base/limits.py`."""

    part_bytes: int = limits.CLIENT_PART_BYTES
    multipart_bytes: int = limits.CLIENT_MULTIPART_BYTES
    range_bytes: int = limits.CLIENT_RANGE_BYTES
    ranged_bytes: int = limits.CLIENT_RANGED_BYTES
    parallel: int = limits.CLIENT_PARALLEL
    stream_bytes: int = limits.CLIENT_STREAM_BYTES_MAX
    attempts: int = limits.CLIENT_ATTEMPTS

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
