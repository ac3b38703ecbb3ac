"""What a shard says of itself on disk, as values. The bytes are in `shards/format.py` and `docs/FORMATS.md`."""

from __future__ import annotations

import msgspec

from anvil.model.records import Attributes, BlobRef, BucketId, Checksum, Owner, SessionId, VersionId


class ShardHeader(msgspec.Struct, frozen=True):
    """Self-description at the front of every shard record: enough to salvage the object without a database."""

    blob: BlobRef
    index: int
    bucket_id: BucketId
    key: str
    version_id: VersionId  # of the object; for a part: the upload id
    session: SessionId
    part_number: int = 0  # 0: a whole object; else a part of the upload named by version_id

    @property
    def owner(self) -> Owner:
        return Owner(self.bucket_id, self.key, self.version_id, self.part_number)


class ShardFooter(msgspec.Struct, frozen=True):
    """What is known only when all bytes have come."""

    etag: str
    modified_us: int
    attributes: Attributes
    checksum: Checksum | None = None


class ShardPlace(msgspec.Struct, frozen=True):
    """Where a drive keeps one shard. `ref` is the drive's own business (path, or segment and offset)."""

    header: ShardHeader
    ref: object
    damaged: bool = False
