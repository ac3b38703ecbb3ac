"""What an API asks of the engine and what it gets back. The rules of S3 that do not depend on the wire are behind these."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from anvil.model.records import (
    NO_CONDITION,
    Algorithm,
    Attributes,
    Checksum,
    Condition,
    Content,
    Owner,
    PartRecord,
    VersionId,
)

Verify = Callable[[Mapping[Algorithm, bytes]], Checksum | None]
"""Called once with the digests of all bytes received, before anything becomes visible. Raises BadDigest, ContentSHA256Mismatch or
whatever else is wrong (trailers are final by then); returns the checksum to store with the object."""


class PutSpec(msgspec.Struct, frozen=True):
    """`digests`: what `verify` needs beside MD5, which is always computed for the ETag."""

    attributes: Attributes
    verify: Verify
    digests: frozenset[Algorithm] = frozenset()
    condition: Condition = NO_CONDITION


class PutResult(msgspec.Struct, frozen=True):
    etag: str
    version_id: VersionId
    modified_us: int
    size: int
    checksum: Checksum | None = None


class Extent(msgspec.Struct, frozen=True):
    """One piece of an object: a part, or the whole. `start` is its offset in the object."""

    start: int
    size: int
    content: Content | None
    owner: Owner  # whose row names the content's blob


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object as a reader sees it: enough for HEAD, and the handle that `read` takes."""

    key: str
    size: int
    etag: str
    modified_us: int
    version_id: VersionId
    is_null: bool
    attributes: Attributes
    checksum: Checksum | None
    part_count: int
    extents: tuple[Extent, ...] = ()  # filled by `open`, empty from `stat`
    parts: tuple[PartRecord, ...] = ()  # likewise, for multipart objects


class CompletePart(msgspec.Struct, frozen=True):
    """A part as CompleteMultipartUpload lists it. `etag` without quotes; `checksum` raw bytes where the client gave one."""

    number: int
    etag: str
    checksum: bytes | None = None
