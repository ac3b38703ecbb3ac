"""The `Metadata` port in memory: what the engine's tests run on. It passes the same contract suite as PostgreSQL.

No batching, no failures of its own: a test that wants a failure sets `fail_next` to the error the next write shall raise, and
`commit_before_failing` to have it take effect all the same (an unknown outcome).
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec
from msgspec.structs import astuple

from anvil.base.errors import (
    AnvilError,
    BucketNotEmpty,
    ConditionalRequestConflict,
    InvalidPart,
    InvalidRequest,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
    WriterFenced,
)
from anvil.model.layout import finest_slices, slice_of
from anvil.model.records import (
    BlobId,
    BlobRef,
    BucketId,
    Committed,
    CompleteCommit,
    Condition,
    Content,
    ContentCommit,
    Debt,
    Garbage,
    ListEntry,
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


def _within(blob_id: BlobId, slice: int | None, slices: int) -> bool:
    if slice is None:
        return True
    first, last = finest_slices(slice, slices)
    return first <= slice_of(blob_id) <= last


@dataclass
class _Upload:
    record: UploadRecord
    parts: dict[int, PartRecord] = field(default_factory=dict)
    committed: Committed | None = None


class MemoryMetadata:
    """`now_us` is the clock: microseconds since 1970."""

    def __init__(self, now_us: Callable[[], int] | None = None) -> None:
        ticks = count(1_700_000_000_000_000, 1000)
        self._now_us = now_us or (lambda: next(ticks))
        self._seq = count(1)
        self._outbox_ids = count(1)
        self._buckets: set[BucketId] = set()
        self._dropped: set[BucketId] = set()
        self._sessions: dict[SessionId, int] = {}
        self.layout_version = 0  # of the current layout
        self._keys: dict[BucketId, list[str]] = {}
        self._objects: dict[tuple[BucketId, str], ObjectRecord] = {}
        self._uploads: dict[tuple[BucketId, UploadId], _Upload] = {}
        self._outbox: dict[int, tuple[Garbage, int]] = {}
        self._debts: dict[BlobId, Debt] = {}
        self._deferred: dict[BlobId, int] = {}
        self.fail_next: AnvilError | None = None
        self.commit_before_failing = False

    # -- fences -------------------------------------------------------------------------------------------------------

    async def add_bucket(self, bucket_id: BucketId) -> bool:
        if bucket_id in self._dropped:
            return False
        self._buckets.add(bucket_id)
        return True

    async def bucket_is_empty(self, bucket_id: BucketId) -> bool:
        return not self._keys.get(bucket_id)

    async def drop_bucket(self, bucket_id: BucketId) -> None:
        if self._keys.get(bucket_id):
            raise BucketNotEmpty
        for owner, upload_id in [name for name in self._uploads if name[0] == bucket_id]:
            self._drop_upload(owner, upload_id)
        self._buckets.discard(bucket_id)
        self._dropped.add(bucket_id)

    def _fence(self, session: SessionId, bucket_id: BucketId, key: str = "k") -> None:
        if self.fail_next is not None and not self.commit_before_failing:
            error, self.fail_next = self.fail_next, None
            raise error
        if "\0" in key or any("\ud800" <= char <= "\udfff" for char in key) or not 0 < len(key.encode()) <= 1024:
            raise InvalidRequest
        if session not in self._sessions:
            raise WriterFenced
        if bucket_id not in self._buckets:
            raise NoSuchBucket

    def _committed(self) -> None:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            self.commit_before_failing = False
            raise error

    # -- objects ------------------------------------------------------------------------------------------------------

    async def get_object(self, bucket_id: BucketId, key: str) -> ObjectRecord | None:
        return self._objects.get((bucket_id, key))

    async def put_object(self, commit: PutCommit) -> Committed:
        self._fence(commit.session, commit.bucket_id, commit.key)
        self._check(commit.condition, self._objects.get((commit.bucket_id, commit.key)))
        record = ObjectRecord(
            bucket_id=commit.bucket_id,
            key=commit.key,
            version_id=commit.version_id,
            is_null=True,
            seq=next(self._seq),
            size=commit.size,
            etag=commit.etag,
            modified_us=self._now_us(),
            attributes=commit.attributes,
            checksum=commit.checksum,
            content=commit.content,
        )
        self._store(record)
        self._owe(Owner(commit.bucket_id, commit.key, commit.version_id), commit.content, commit.missing)
        self._committed()
        return Committed(record.version_id, record.seq, record.modified_us)

    async def replace_attributes(self, commit: PutCommit, expected: VersionId) -> Committed:
        self._fence(commit.session, commit.bucket_id, commit.key)
        old = self._objects.get((commit.bucket_id, commit.key))
        if old is None or old.version_id != expected:
            raise ConditionalRequestConflict
        self._check(commit.condition, old)
        record = msgspec.structs.replace(
            old,
            version_id=commit.version_id,
            seq=next(self._seq),
            modified_us=self._now_us(),
            attributes=commit.attributes,
            checksum=commit.checksum or old.checksum,
        )
        self._objects[commit.bucket_id, commit.key] = record
        self._committed()
        return Committed(record.version_id, record.seq, record.modified_us)

    async def delete_object(self, session: SessionId, bucket_id: BucketId, key: str, condition: Condition) -> bool:
        self._fence(session, bucket_id, key)
        old = self._objects.get((bucket_id, key))
        if old is not None or condition.if_match is not None:
            self._check(condition, old)
        if old is None:
            return False
        del self._objects[bucket_id, key]
        keys = self._keys[bucket_id]
        del keys[bisect_left(keys, key)]
        self._retire(old)
        self._committed()
        return True

    @staticmethod
    def _check(condition: Condition, old: ObjectRecord | None) -> None:
        if condition.if_match is not None:
            if old is None:
                raise PreconditionFailed(condition="If-Match") if "*" in condition.if_match else NoSuchKey()
            if "*" not in condition.if_match and old.etag not in condition.if_match:
                raise PreconditionFailed(condition="If-Match")
        if old is not None and condition.if_none_match is not None and {"*", old.etag} & set(condition.if_none_match):
            raise PreconditionFailed(condition="If-None-Match")

    def _store(self, record: ObjectRecord) -> None:
        name = (record.bucket_id, record.key)
        old = self._objects.get(name)
        self._objects[name] = record
        if old is None:
            insort(self._keys.setdefault(record.bucket_id, []), record.key)
        else:
            self._retire(old)

    def _retire(self, old: ObjectRecord) -> None:
        self._discard(Owner(old.bucket_id, old.key, old.version_id), old.content)
        if old.upload_id is not None:
            self._drop_upload(old.bucket_id, old.upload_id)

    def _discard(self, owner: Owner, content: Content | None) -> None:
        if content is not None and content.inline is None:
            garbage = Garbage(next(self._outbox_ids), owner, content.blob.blob_id, content.blob.scheme)
            self._outbox[garbage.outbox_id] = (garbage, self._now_us())

    def _owe(self, owner: Owner, content: Content | None, missing: int) -> None:
        if missing and content is not None:
            debt = self._debts.get(content.blob.blob_id)
            self._debts[content.blob.blob_id] = Debt(owner, content.blob, missing | (debt.missing if debt else 0))

    async def list_objects(self, query: ListQuery) -> ListPage:
        entries: list[ListEntry] = []
        prefixes: list[str] = []
        last = ""
        for key in self._keys.get(query.bucket_id, ()):
            if not key.startswith(query.prefix):
                continue
            at = key.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
            name = key if at < 0 else key[: at + len(query.delimiter)]
            if name <= query.after or (at >= 0 and prefixes and prefixes[-1] == name):
                continue
            if len(entries) + len(prefixes) >= query.limit:
                return ListPage(tuple(entries), tuple(prefixes), last or None)
            last = name
            if at >= 0:
                prefixes.append(name)
            else:
                record = self._objects[query.bucket_id, key]
                entries.append(ListEntry(key, record.size, record.etag, record.modified_us, record.checksum))
        return ListPage(tuple(entries), tuple(prefixes))

    # -- multipart ----------------------------------------------------------------------------------------------------

    async def create_upload(self, session: SessionId, upload: UploadRecord) -> None:
        self._fence(session, upload.bucket_id, upload.key)
        self._uploads[upload.bucket_id, upload.upload_id] = _Upload(upload)
        self._committed()

    def _upload(self, bucket_id: BucketId, key: str, upload_id: UploadId) -> _Upload | None:
        upload = self._uploads.get((bucket_id, upload_id))
        return upload if upload is not None and upload.record.key == key else None

    async def get_upload(self, bucket_id: BucketId, key: str, upload_id: UploadId) -> UploadRecord | None:
        upload = self._upload(bucket_id, key, upload_id)
        return None if upload is None else msgspec.structs.replace(upload.record, completed=upload.committed is not None)

    async def put_part(self, commit: PartCommit) -> int:
        self._fence(commit.session, commit.bucket_id, commit.key)
        upload = self._upload(commit.bucket_id, commit.key, commit.upload_id)
        if upload is None or upload.committed is not None:
            raise NoSuchUpload
        old = upload.parts.get(commit.number)
        owner = Owner(commit.bucket_id, "", commit.upload_id, commit.number)
        if old is not None:
            self._discard(owner, old.content)
        modified_us = self._now_us()
        upload.parts[commit.number] = PartRecord(
            commit.number, commit.size, commit.etag, modified_us, commit.checksum, commit.content
        )
        self._owe(owner, commit.content, commit.missing)
        self._committed()
        return modified_us

    async def list_parts(self, bucket_id: BucketId, upload_id: UploadId, after: int, limit: int) -> tuple[PartRecord, ...]:
        upload = self._uploads.get((bucket_id, upload_id))
        parts = upload.parts if upload is not None else {}
        return tuple(parts[number] for number in sorted(parts) if number > after)[:limit]

    async def complete_upload(self, commit: CompleteCommit) -> Committed:
        self._fence(commit.session, commit.bucket_id, commit.key)
        upload = self._upload(commit.bucket_id, commit.key, commit.upload_id)
        if upload is None:
            raise NoSuchUpload
        if upload.committed is not None:
            return upload.committed
        listed = dict(commit.parts)
        if not listed or any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in listed.items()):
            raise InvalidPart
        if sum(upload.parts[number].size for number in listed) != commit.size:
            raise InvalidPart
        self._check(commit.condition, self._objects.get((commit.bucket_id, commit.key)))
        record = ObjectRecord(
            bucket_id=commit.bucket_id,
            key=commit.key,
            version_id=commit.version_id,
            is_null=True,
            seq=next(self._seq),
            size=commit.size,
            etag=commit.etag,
            modified_us=self._now_us(),
            attributes=upload.record.attributes,
            checksum=commit.checksum,
            upload_id=commit.upload_id,
            part_count=len(listed),
        )
        self._store(record)
        for number in [number for number in upload.parts if number not in listed]:
            self._discard(Owner(commit.bucket_id, "", commit.upload_id, number), upload.parts.pop(number).content)
        upload.committed = Committed(record.version_id, record.seq, record.modified_us)
        self._committed()
        return upload.committed

    async def abort_upload(self, session: SessionId, bucket_id: BucketId, key: str, upload_id: UploadId) -> None:
        self._fence(session, bucket_id, key)
        upload = self._upload(bucket_id, key, upload_id)
        if upload is None or upload.committed is not None:
            raise NoSuchUpload
        self._drop_upload(bucket_id, upload_id)
        self._committed()

    def _drop_upload(self, bucket_id: BucketId, upload_id: UploadId) -> None:
        upload = self._uploads.pop((bucket_id, upload_id))
        for part in upload.parts.values():
            self._discard(Owner(bucket_id, "", upload_id, part.number), part.content)

    async def list_uploads(self, query: UploadsQuery) -> UploadsPage:
        open_ = [u.record for (bucket, _), u in self._uploads.items() if bucket == query.bucket_id and u.committed is None]
        open_.sort(key=lambda record: (record.key, record.initiated_us, record.upload_id))
        marker_us = -1
        if query.upload_marker is not None:
            marked = self._upload(query.bucket_id, query.key_marker, query.upload_marker)
            marker_us = marked.record.initiated_us if marked is not None else -1
        uploads: list[UploadRecord] = []
        prefixes: list[str] = []
        last: tuple[str, UploadId | None] = ("", None)
        for record in open_:
            if not record.key.startswith(query.prefix):
                continue
            at = record.key.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
            name = record.key if at < 0 else record.key[: at + len(query.delimiter)]
            if at >= 0 and (name <= query.key_marker or (prefixes and prefixes[-1] == name)):
                continue
            if at < 0 and name <= query.key_marker:
                resumed = name == query.key_marker and query.upload_marker is not None
                if not resumed or (record.initiated_us, record.upload_id) <= (marker_us, query.upload_marker):
                    continue
            if len(uploads) + len(prefixes) >= query.limit:
                return UploadsPage(tuple(uploads), tuple(prefixes), last[0] or None, last[1])
            if at >= 0:
                prefixes.append(name)
                last = (name, None)
            else:
                uploads.append(record)
                last = (name, record.upload_id)
        return UploadsPage(tuple(uploads), tuple(prefixes))

    async def replace_content(self, commit: ContentCommit) -> None:
        owner, new = commit.owner, commit.content
        self._fence(commit.session, owner.bucket_id)
        if self._blob(owner, commit.old) is None:
            raise ConditionalRequestConflict
        if owner.part_number:
            parts = self._uploads[owner.bucket_id, owner.version_id].parts
            old = parts[owner.part_number].content
            parts[owner.part_number] = msgspec.structs.replace(parts[owner.part_number], content=new)
            owner = Owner(owner.bucket_id, "", owner.version_id, owner.part_number)
        else:
            row = self._objects[owner.bucket_id, owner.key]
            old = row.content
            self._objects[owner.bucket_id, owner.key] = msgspec.structs.replace(row, content=new)
        self._discard(owner, old)
        self._committed()

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def open_session(self, node_id: bytes, worker: int, layout_version: int = 0) -> SessionId:
        if 0 < layout_version < self.layout_version:
            raise WriterFenced
        session = os.urandom(16)
        self._sessions[session] = max(layout_version, self.layout_version)
        return session

    async def renew_session(self, session: SessionId, layout_version: int = 0) -> bool:
        if session not in self._sessions:
            return False
        self._sessions[session] = max(layout_version, self._sessions[session])
        return True

    async def close_session(self, session: SessionId) -> None:
        self._sessions.pop(session, None)

    def sessions_behind(self, version: int) -> int:
        return sum(reported < version for reported in self._sessions.values())

    async def live_sessions(self) -> frozenset[SessionId]:
        return frozenset(self._sessions)

    # -- collector, repair, sweep -----------------------------------------------------------------------------------------

    def _blob(self, owner: Owner, blob_id: BlobId) -> BlobRef | None:
        """That blob, if its owner's row names it."""
        row: ObjectRecord | PartRecord | None = self._objects.get((owner.bucket_id, owner.key))
        if owner.part_number:
            upload = self._uploads.get((owner.bucket_id, owner.version_id))
            row = upload.parts.get(owner.part_number) if upload is not None else None
        content = row.content if row is not None else None
        return content.blob if content is not None and content.inline is None and content.blob.blob_id == blob_id else None

    async def garbage(self, limit: int, grace_s: float, slice: int | None = None, slices: int = 1) -> Sequence[Garbage]:
        before = self._now_us() - int(grace_s * 1_000_000)
        old = [item for item, since_us in self._outbox.values() if since_us <= before and _within(item.blob_id, slice, slices)]
        return [garbage for garbage in old if self._blob(garbage.owner, garbage.blob_id) is None][:limit]

    async def garbage_done(self, outbox_ids: Sequence[int]) -> None:
        for outbox_id in outbox_ids:
            self._outbox.pop(outbox_id, None)

    async def debts(self, limit: int, slice: int | None = None, slices: int = 1) -> Sequence[Debt]:
        self._debts = {blob_id: debt for blob_id, debt in self._debts.items() if self._blob(debt.owner, blob_id)}
        now_us = self._now_us()
        due = [debt for debt in self._debts.values() if self._deferred.get(debt.blob.blob_id, 0) <= now_us]
        return [debt for debt in due if _within(debt.blob.blob_id, slice, slices)][:limit]

    async def debts_deferred(self, blob_ids: Sequence[BlobId], delay_s: float) -> None:
        for blob_id in blob_ids:
            self._deferred[blob_id] = self._now_us() + int(delay_s * 1_000_000)

    async def debt_paid(self, blob_id: BlobId, repaired: int) -> None:
        debt = self._debts.pop(blob_id, None)
        if debt is not None and debt.missing & ~repaired:
            self._debts[blob_id] = Debt(debt.owner, debt.blob, debt.missing & ~repaired)

    async def add_debt(self, debts: Sequence[tuple[Owner, BlobId, int]], *, corrupt: bool = False) -> None:
        for owner, blob_id, missing in debts:
            self._deferred.pop(blob_id, None)
            if (blob := self._blob(owner, blob_id)) is not None:
                self._owe(owner, Content(blob), missing)

    async def owned_blobs(self, after: OwnedMark, limit: int) -> OwnedPage:
        objects = [
            (OwnedMark("objects", bucket, key), Owner(bucket, key, row.version_id), row.content)
            for (bucket, key), row in sorted(self._objects.items())
        ]
        parts = [
            (OwnedMark("parts", bucket, "", 0, upload_id, number), Owner(bucket, "", upload_id, number), part.content)
            for (bucket, upload_id), upload in sorted(self._uploads.items())
            for number, part in sorted(upload.parts.items())
        ]
        behind = [row for row in objects + parts if astuple(row[0]) > astuple(after)]
        blobs = tuple((owner, content.blob) for _, owner, content in behind[:limit] if content and content.inline is None)
        return OwnedPage(blobs, behind[limit - 1][0] if len(behind) > limit else None)

    async def unhealthy(self) -> tuple[int, int]:
        return sum(debt.missing.bit_count() for debt in self._debts.values()), 0

    async def garbage_waiting(self) -> int:
        return len(self._outbox)

    async def ownership(self, blobs: Sequence[tuple[Owner, BlobId]]) -> Sequence[Ownership]:
        garbage = {item.blob_id for item, _ in self._outbox.values()}
        rest = {True: Ownership.GARBAGE, False: Ownership.NOBODY}
        return [Ownership.OWNED if self._blob(owner, blob) else rest[blob in garbage] for owner, blob in blobs]

    async def usage(self, bucket_ids: Sequence[BucketId] | None = None) -> Sequence[Usage]:
        usages = []
        for bucket_id in sorted(set(self._buckets if bucket_ids is None else bucket_ids)):
            sizes = [record.size for (bucket, _), record in self._objects.items() if bucket == bucket_id]
            parts = [
                part.size
                for (bucket, _), upload in self._uploads.items()
                if bucket == bucket_id and upload.committed is None
                for part in upload.parts.values()
            ]
            usages.append(Usage(bucket_id, len(sizes), sum(sizes), len(parts), sum(parts)))
        return usages
