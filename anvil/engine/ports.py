"""The ports of the engine: what it needs from the world, as Protocols.

Owns: the contracts between `engine` and its surroundings (`meta`, `shards`, `net`). Each has an in-memory implementation in
`tests/contract`, and real and in-memory ones pass the same contract suite. Not here: any implementation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from anvil._ec.pieces import Sink, Source
from anvil.base.types import Buffer, Told
from anvil.model.identity import Actor, App, Bucket, BucketRights, Policy
from anvil.model.records import (
    BlobId,
    BucketId,
    Committed,
    CompleteCommit,
    Condition,
    ContentCommit,
    Debt,
    DriveId,
    Garbage,
    ListPage,
    ListQuery,
    ObjectRecord,
    OwnedMark,
    OwnedPage,
    Owner,
    Ownership,
    PartCommit,
    PartRecord,
    PutCommit,
    SessionId,
    UploadId,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
    Usage,
    VersionId,
)
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace


class Body(Protocol):
    """The payload of a request, pulled by the engine. No byte is copied in Python."""

    length: int
    """Exact number of payload bytes that will come (decoded length for aws-chunked)."""

    async def readinto(self, view: memoryview) -> int:
        """Fill `view` from the start. Returns its whole length, or less only at the end of the body (0 after it).

        Raises IncompleteBody (client went away or sent less), RequestTimeout, and for aws-chunked SignatureMismatch,
        InvalidRequest. After it returned short, or `length` bytes have come, `trailers` is final.
        """
        ...

    @property
    def trailers(self) -> dict[str, str]:
        """Verified trailing headers of an aws-chunked body, lower-case names; empty otherwise."""
        ...


class Metadata(Protocol):
    """The regional database. Every call is coalesced with its like; none may be retried blindly by the caller.

    All raise DatabaseUnavailable (nothing happened) and SlowDown (queue full). Writing calls also raise OutcomeUnknown,
    WriterFenced (session gone) and NoSuchBucket (bucket row gone); conditional ones PreconditionFailed, or NoSuchKey where
    If-Match names an etag and the key does not exist. Cancelling a caller never cancels a batch: a write that was sent happens.
    """

    async def get_object(self, bucket_id: BucketId, key: str) -> ObjectRecord | None:
        """The visible current object, strictly fresh."""
        ...

    async def put_object(self, commit: PutCommit) -> Committed: ...

    async def replace_attributes(self, commit: PutCommit, expected: VersionId) -> Committed:
        """Metadata-only copy onto itself: rewrite attributes and times of the row whose version is `expected`, keeping its
        content. Raises ConditionalRequestConflict if the row changed meanwhile."""
        ...

    async def delete_object(self, session: SessionId, bucket_id: BucketId, key: str, condition: Condition) -> bool:
        """True if something was removed. Missing keys are no error (unless If-Match: NoSuchKey)."""
        ...

    async def list_objects(self, query: ListQuery) -> ListPage: ...

    # -- multipart
    async def create_upload(self, session: SessionId, upload: UploadRecord) -> None: ...

    async def get_upload(self, bucket_id: BucketId, key: str, upload_id: UploadId) -> UploadRecord | None:
        """In progress, or completed (until its object goes): `completed` tells."""
        ...

    async def put_part(self, commit: PartCommit) -> int:
        """Returns modified_us. Raises NoSuchUpload. Replaces a part of the same number."""
        ...

    async def list_parts(self, bucket_id: BucketId, upload_id: UploadId, after: int, limit: int) -> tuple[PartRecord, ...]:
        """Parts with number > after, ascending, with content; for uploads in progress and for completed ones (the manifest)."""
        ...

    async def complete_upload(self, commit: CompleteCommit) -> Committed:
        """Idempotent by upload id: repeated with the upload already completed, returns what was committed. Raises NoSuchUpload,
        InvalidPart (a listed part is missing or has another etag). Unlisted parts go to the outbox."""
        ...

    async def abort_upload(self, session: SessionId, bucket_id: BucketId, key: str, upload_id: UploadId) -> None:
        """Raises NoSuchUpload."""
        ...

    async def list_uploads(self, query: UploadsQuery) -> UploadsPage: ...

    async def replace_content(self, commit: ContentCommit) -> None:
        """Have the owner's row, of an object or part, name another blob with the same bytes; the old one goes to the outbox. Nothing else
        of the row changes. Raises ConditionalRequestConflict where it does not name the old one any more: whoever overwrote it wins."""
        ...

    # -- writer session
    async def open_session(self, node_id: bytes, worker: int, layout_version: int = 0) -> SessionId:
        """`layout_version`: of the layout that the process goes by, 0 while it has read none. Raises WriterFenced when it is not the
        current one any more."""
        ...

    async def renew_session(self, session: SessionId, layout_version: int = 0) -> bool:
        """`layout_version`: the oldest that a write in flight was placed by; without one, the process's. What was reported never falls, so
        0 says nothing new. False when the session is gone: the caller must open another and drop all work of the old one."""
        ...

    async def close_session(self, session: SessionId) -> None: ...

    # -- collector, repair, sweep
    async def garbage(self, limit: int, grace_s: float, slice: int | None = None, slices: int = 1) -> Sequence[Garbage]:
        """Outbox rows older than grace_s, oldest first, whose blob no row owns. `slice`: only of that one of `slices` equal parts of the
        blob ids (a divisor of LAYOUT_SLICES), so that several can work side by side without meeting."""
        ...

    async def garbage_done(self, outbox_ids: Sequence[int]) -> None: ...
    async def debts(self, limit: int, slice: int | None = None, slices: int = 1) -> Sequence[Debt]:
        """Those that may be tried now, oldest first; never those of blobs that no row owns. Slices as of `garbage`."""
        ...

    async def debts_deferred(self, blob_ids: Sequence[BlobId], delay_s: float) -> None:
        """These debts cannot be paid now: not to be handed out again before `delay_s` has passed or more damage was found."""
        ...

    async def debt_paid(self, blob_id: BlobId, repaired: int) -> None:
        """Clear those bits; the row goes when none is left."""
        ...

    async def add_debt(self, debts: Sequence[tuple[Owner, BlobId, int]], *, corrupt: bool = False) -> None:
        """Damage found by a reader or scrub: missing bits to be rebuilt (merged by OR). Nothing happens where the owner's row does not
        name the blob (any more); what else a debt says comes from that row. `corrupt`: the shards were met, with wrong content."""
        ...

    async def ownership(self, blobs: Sequence[tuple[Owner, BlobId]]) -> Sequence[Ownership]:
        """For each, whether its owner's row (object, version or part) names that blob now, or else the outbox."""
        ...

    async def owned_blobs(self, after: OwnedMark, limit: int) -> OwnedPage:
        """The rows that name a blob in shards, by key range: `limit` rows are looked at. Not one snapshot: a row that is there all the time
        is met, others may be. Begin with OwnedMark()."""
        ...

    async def unhealthy(self) -> tuple[int, int]:
        """Shards in debt: missing ones, and ones met with wrong content; of the first UNHEALTHY_COUNTED blobs."""
        ...

    async def garbage_waiting(self) -> int:
        """Blobs in the outbox, their grace over or not, up to GARBAGE_COUNTED."""
        ...

    async def live_sessions(self) -> frozenset[SessionId]: ...
    async def usage(self, bucket_ids: Sequence[BucketId] | None = None) -> Sequence[Usage]: ...


class Catalog(Protocol):
    """The global database as a request sees it: who is who, and which buckets there are. Reads may be cached while the change log
    was read within the last second; without that they raise DatabaseUnavailable."""

    async def app(self, access_key: str) -> App | None: ...
    async def bucket(self, name: str) -> Bucket | None:
        """By name, whatever its tenant: the caller compares tenants and answers as if it did not exist (404) or as forbidden
        (403, anonymous). Only ACTIVE buckets are returned."""
        ...

    async def buckets(self, tenant_id: int) -> Sequence[Bucket]:
        """The tenant's active buckets, by name. Strictly fresh."""
        ...

    async def regions(self) -> Mapping[str, str]:
        """Of every region of the deployment the URL that clients reach it under; "" where none was told."""
        ...

    async def create_bucket(self, tenant_id: int, name: str, region: str) -> Bucket:
        """Both databases, resumable. Raises BucketAlreadyExists, BucketAlreadyOwnedByYou, TooManyBuckets."""
        ...

    async def delete_bucket(self, bucket: Bucket) -> None:
        """Raises BucketNotEmpty, NoSuchBucket."""
        ...


class Rights(Protocol):
    """Changes of rights by a tenant's own apps. All see that tenant alone, and are recorded in the audit in the same transaction. Once one
    returned, every worker of this node goes by it, and every other node within a second. All raise DatabaseUnavailable."""

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> Sequence[str]:
        """The access keys of apps named by access key or, where there is no such one, by name. Raises UnknownName."""
        ...

    async def grant(self, by: Actor, app: str, right: Policy) -> bool:
        """`app`: access key or name. False if it had the right before. Raises UnknownName, LimitExceeded."""
        ...

    async def revoke(self, by: Actor, app: str, right: Policy) -> bool:
        """False if it had no such right. Raises UnknownName."""
        ...

    async def set_public(self, by: Actor, bucket: str, allow: bool) -> bool:
        """Whether everybody may read the bucket's objects. False if it was so before. Raises NoSuchBucket."""
        ...

    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights:
        """Strictly fresh. Raises NoSuchBucket, LimitExceeded (too many to be shown)."""
        ...

    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> str:
        """Replace exactly what `bucket_rights` showed under `wanted.etag`, at once or not at all. Returns the new etag. Grants name access
        keys. Raises NoSuchBucket, UnknownName, LimitExceeded, and PreconditionFailed when the rights changed since, unless into what is
        wanted."""
        ...

    async def refused(self, by: Actor, action: str, resource: str) -> None:
        """Record an attempt that was refused; of one app at most REFUSALS_AUDITED_MAX a minute."""
        ...


class LargeShard(Protocol):
    """A shard being written to a file of its own. Nothing of it is visible before `publish`."""

    async def write(self, frames: Buffer) -> None:
        """Append frames (checksum + unit). The buffer must not change until this returns. Raises StorageFull, DriveFailed."""
        ...

    def begin(self, frames: Buffer | Source, told: Told) -> bool:
        """`write` or `write_from`, begun on return, without a task: `told` is called once, later, with None or what they raise; but a
        call out of turn raises RuntimeError or ValueError here. The frames stay in use until they are written. False where it takes a task:
        use those."""
        ...

    async def write_from(self, source: Source) -> None:
        """Append the frames that `source` gives, as `write` does. On return, and when it raises, nothing is drawn from it any more."""
        ...

    async def publish(self, footer: ShardFooter) -> None:
        """Write the footer; on return the shard is durable and can be read under its name. Raises as `write`."""
        ...

    async def abort(self) -> None:
        """Remove what was written. Never raises."""
        ...


class Drive(Protocol):
    """One place for shards: a folder on a local disk, or a drive of another node.

    Every call answers in bounded time: where the drive does not, it raises DriveStalled, and what was begun has no effect later, as far
    as that can be. The buffers given to that call are then not to be used for anything else: whoever still works on them keeps them."""

    drive_id: DriveId
    label: str

    @property
    def local(self) -> bool:
        """Whether it is on this node: what is read or written there crosses no network."""
        ...

    @property
    def writable(self) -> bool:
        """False once the drive is missing, failed or read-only, and while it does not answer."""
        ...

    @property
    def readable(self) -> bool: ...

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        """A small shard, whole: on return it is durable (group commit) and indexed. Raises StorageFull, DriveFailed."""
        ...

    async def create(self, header: ShardHeader) -> LargeShard: ...

    async def open(self, blob_id: BlobId, index: int, patience_s: float | None = None) -> ShardPlace | None:
        """Find a shard and check its record's own header against (blob, index). None if the drive does not have it. Raises BadRecord
        when it has it and its header is damaged, DriveFailed when the drive cannot be read, DriveStalled also when that takes longer
        than `patience_s`."""
        ...

    def at_hand(self, blob_id: BlobId, index: int) -> memoryview | None:
        """The whole payload of a small shard that can be had here and now: its record is in this machine's memory, and its header says
        that it is this shard. None says nothing about it: `open` does. Never raises."""
        ...

    async def read(self, place: ShardPlace, offset: int, view: memoryview) -> int:
        """Payload bytes from `offset` (0 = first frame) into `view`; returns bytes read (short = truncated). Raises DriveFailed."""
        ...

    async def read_into(self, place: ShardPlace, offset: int, sink: Sink) -> None:
        """Feed `sink` with the payload from `offset` on, until it wants no more or the payload ends. On return, and when it raises, the
        sink is not fed any more. Raises DriveFailed; what came is judged by the sink's `check`."""
        ...

    def begin_into(self, place: ShardPlace, offset: int, sink: Sink) -> asyncio.Future[None] | None:
        """`read_into` without waiting: begun on return, or None where it cannot be begun at once. Who awaits the result and gets any
        error (OSError among them) asks `read_into`, which says what is wrong. Raises DriveFailed, DriveStalled."""
        ...

    async def verify(self, place: ShardPlace) -> ShardFooter:
        """Check that the record is whole (header, length, footer), but for the payload's checksums. Raises BadRecord, DriveFailed."""
        ...

    async def remove(self, blob_id: BlobId, index: int, *, superseded: bool = False) -> bool:
        """Forget a shard (all copies of that index on this drive); space comes back by unlink or compaction. True if it had it.
        `superseded`: it is damaged and a sound one is ready to take its place, which no backup's hold needs to stop."""
        ...

    async def partitions(self) -> frozenset[int]:
        """The partitions of which this drive holds anything (perhaps a few more). Cheap. Raises DriveFailed."""
        ...

    def scan(self, partitions: Collection[int] | None = None) -> AsyncIterator[ShardPlace]:
        """Every published shard, or those of the blobs of some partitions (`model/layout.py`), in no order. Of one that is `damaged` only
        blob id and index are certain. Raises DriveFailed."""
        ...
