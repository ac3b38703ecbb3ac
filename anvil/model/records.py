"""Frozen values that travel between `engine`, `meta`, `shards` and `api`: what is stored, and how it is asked for.

Owns: names and types of stored facts. Not here: behaviour, SQL, wire formats. Times are integer microseconds since the Unix
epoch (`_us`), lengths bytes, ids raw bytes unless a comment says otherwise.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from anvil.base.limits import STRIPE_BYTES
from anvil.model.scheme import Geometry, Scheme

BlobId = bytes  # 16 random bytes, never reused
VersionId = bytes  # 16 random bytes
UploadId = bytes  # 16 random bytes
SessionId = bytes  # 16 random bytes
BucketId = int  # random, 1 .. 2**63-1
DriveId = bytes  # 16 random bytes, kept in the drive's own folder


class Algorithm(StrEnum):
    """Digests a request can ask for. The checksum names are those of the `x-amz-checksum-*` headers, lower case."""

    MD5 = "md5"
    SHA256 = "sha256"
    SHA1 = "sha1"
    CRC32 = "crc32"
    CRC32C = "crc32c"
    CRC64NVME = "crc64nvme"


class ChecksumType(StrEnum):
    FULL_OBJECT = "FULL_OBJECT"
    COMPOSITE = "COMPOSITE"


class Checksum(msgspec.Struct, frozen=True):
    """An additional checksum. `value` is raw bytes (big-endian for CRCs, as S3 encodes them), `parts` > 0 for COMPOSITE."""

    algorithm: Algorithm
    value: bytes
    type: ChecksumType = ChecksumType.FULL_OBJECT
    parts: int = 0


class KeyMode(IntEnum):
    """How a blob's key comes about. Recorded with every blob so that SSE-C needs no change of format."""

    BUCKET = 1  # HKDF(bucket key, blob id)
    CUSTOMER = 2  # reserved: SSE-C


class Attributes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client may say about an object beside its bytes. Header values verbatim; user metadata names lower case."""

    content_type: str = "binary/octet-stream"
    cache_control: str | None = None
    content_disposition: str | None = None
    content_encoding: str | None = None  # without `aws-chunked`
    content_language: str | None = None
    expires: str | None = None
    website_redirect: str | None = None
    user: dict[str, str] = msgspec.field(default_factory=dict)


class BlobRef(msgspec.Struct, frozen=True):
    """Everything a reader needs to find and open a blob, beside the bucket's key."""

    blob_id: BlobId
    size: int
    scheme: Scheme
    stripe_bytes: int = STRIPE_BYTES
    key_mode: KeyMode = KeyMode.BUCKET

    @property
    def geometry(self) -> Geometry:
        return Geometry(scheme=self.scheme, size=self.size, stripe_bytes=self.stripe_bytes)


class Content(msgspec.Struct, frozen=True):
    """Where bytes are: in the row (`inline`, sealed under blob.blob_id as stripe 0, last), or in shards.

    An empty object or part has no Content at all.
    """

    blob: BlobRef
    inline: bytes | None = None


class ObjectRecord(msgspec.Struct, frozen=True):
    """One visible current object, as stored. Exactly one of these holds:
    size == 0 (nothing stored) / content is set / upload_id is set (the parts of that upload are the manifest)."""

    bucket_id: BucketId
    key: str
    version_id: VersionId
    is_null: bool  # the "null" version (bucket not versioned when written)
    seq: int  # orders versions of a key; assigned by the database
    size: int
    etag: str  # without quotes: md5 hex, or md5-of-md5s hex + "-N"
    modified_us: int
    attributes: Attributes
    checksum: Checksum | None = None
    content: Content | None = None
    upload_id: UploadId | None = None
    part_count: int = 0  # of a multipart object


class PartRecord(msgspec.Struct, frozen=True):
    """One part of an upload, in progress or completed."""

    number: int
    size: int
    etag: str  # md5 hex
    modified_us: int
    checksum: Checksum | None = None
    content: Content | None = None


class UploadRecord(msgspec.Struct, frozen=True):
    upload_id: UploadId
    bucket_id: BucketId
    key: str
    initiated_us: int
    attributes: Attributes
    owner: str  # access key of the initiator
    checksum_algorithm: Algorithm | None = None
    checksum_type: ChecksumType | None = None
    completed: bool = False


class Condition(msgspec.Struct, frozen=True):
    """Write conditions, evaluated only inside the commit statement, under the row lock.

    if_match: etags without quotes, or ("*",) = must exist. if_none_match: ("*",) = must not exist, else etags it must not have.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None


NO_CONDITION = Condition()


class PutCommit(msgspec.Struct, frozen=True):
    """One object to become visible. `missing` is the mask of shard indexes that are not durable yet (repair debt)."""

    session: SessionId
    bucket_id: BucketId
    key: str
    version_id: VersionId
    size: int
    etag: str
    attributes: Attributes
    checksum: Checksum | None = None
    content: Content | None = None
    missing: int = 0
    condition: Condition = NO_CONDITION


class PartCommit(msgspec.Struct, frozen=True):
    session: SessionId
    bucket_id: BucketId
    key: str
    upload_id: UploadId
    number: int
    size: int
    etag: str
    checksum: Checksum | None = None
    content: Content | None = None
    missing: int = 0


class CompleteCommit(msgspec.Struct, frozen=True):
    """Make an upload visible. `parts` = the listed part numbers with the etags the client believes in, ascending."""

    session: SessionId
    bucket_id: BucketId
    key: str
    upload_id: UploadId
    version_id: VersionId
    parts: tuple[tuple[int, str], ...]
    size: int
    etag: str
    checksum: Checksum | None = None
    condition: Condition = NO_CONDITION


class ContentCommit(msgspec.Struct, frozen=True):
    """The same bytes in another blob, whole: what `owner` names as `old` until then."""

    session: SessionId
    owner: Owner
    old: BlobId
    content: Content

    @property
    def bucket_id(self) -> BucketId:
        return self.owner.bucket_id


class Committed(msgspec.Struct, frozen=True):
    version_id: VersionId
    seq: int
    modified_us: int


class ListQuery(msgspec.Struct, frozen=True):
    """A page of keys in byte order, strictly after `after`, all starting with `prefix`; keys sharing the text up to the next
    `delimiter` behind the prefix are rolled up. `after` may be a key or a common prefix: a rolled-up prefix <= `after`, and every
    key under it when `after` ends with the delimiter and is itself a common prefix, is skipped."""

    bucket_id: BucketId
    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    limit: int = 1000


class ListEntry(msgspec.Struct, frozen=True):
    key: str
    size: int
    etag: str
    modified_us: int
    checksum: Checksum | None = None


class ListPage(msgspec.Struct, frozen=True):
    """Entries and prefixes together number at most `limit`; `next_after` is set when (and only when) more would follow."""

    entries: tuple[ListEntry, ...]
    prefixes: tuple[str, ...]
    next_after: str | None = None


class UploadsQuery(msgspec.Struct, frozen=True):
    """Uploads in order of (key, initiation time, id), strictly after (`key_marker`, `upload_marker`)."""

    bucket_id: BucketId
    prefix: str = ""
    delimiter: str = ""
    key_marker: str = ""
    upload_marker: UploadId | None = None  # None: after every upload of key_marker
    limit: int = 1000


class UploadsPage(msgspec.Struct, frozen=True):
    uploads: tuple[UploadRecord, ...]
    prefixes: tuple[str, ...]
    next_key_marker: str | None = None
    next_upload_marker: UploadId | None = None


class Owner(msgspec.Struct, frozen=True):
    """Where to look for the row that names a blob; every shard records it. Of an object it is the key that counts: a change of
    attributes gives the row another version. Of a part the key does not, and the database does not keep it ("")."""

    bucket_id: BucketId
    key: str
    version_id: VersionId  # of the object; for a part: the upload id
    part_number: int = 0  # 0: a whole object


class Ownership(IntEnum):
    """What the database says of a blob, in one snapshot."""

    NOBODY = 0
    GARBAGE = 1  # in the outbox, its grace still running: readers may be at it
    OWNED = 2


class OwnedMark(msgspec.Struct, frozen=True):
    """Where a walk over all rows that own a blob stands: behind that row of `objects`, `versions` or `parts`, in this order."""

    table: str = "objects"
    bucket_id: BucketId = 0
    key: str = ""  # not of parts
    seq: int = 0  # of versions
    upload_id: UploadId = b""  # of parts
    number: int = 0  # of parts


class OwnedPage(msgspec.Struct, frozen=True):
    """Blobs in shards, each with its owner; how many is between none and the limit. `next_after` is None when the walk is over."""

    blobs: tuple[tuple[Owner, BlobRef], ...]
    next_after: OwnedMark | None


class Garbage(msgspec.Struct, frozen=True):
    """A blob nobody owns any more, as the outbox names it. `owner` is whose it was."""

    outbox_id: int
    owner: Owner
    blob_id: BlobId
    scheme: Scheme


class Debt(msgspec.Struct, frozen=True):
    """A blob that was acknowledged with shards missing: bit i of `missing` set = shard i must be rebuilt."""

    owner: Owner
    blob: BlobRef
    missing: int


class Usage(msgspec.Struct, frozen=True):
    bucket_id: BucketId
    objects: int
    bytes: int
    upload_parts: int = 0  # parts of uploads in progress
    upload_bytes: int = 0
