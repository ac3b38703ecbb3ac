"""Objects: put, look up, delete, copy.

Owns: the order of things in a write: bytes durable on the quorum, digests verified, then one commit that makes it visible. Invariant:
a commit, once sent, is never followed by removing its shards, unless the database has definitely refused it. Not here: bytes
(`blobs_write`, `blobs_read`), multipart uploads (`multipart`), rights and headers (`api`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from anvil.base.errors import AnvilError, DataLost, NoSuchKey, OutcomeUnknown
from anvil.engine.blobs_read import ObjectReader
from anvil.engine.blobs_write import BlobWriter, Written
from anvil.engine.context import Context
from anvil.engine.manifests import Manifests
from anvil.engine.ports import Body
from anvil.engine.types import Extent, ObjectInfo, PutResult, PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import Condition, ObjectRecord, Owner, PartRecord, PutCommit

T = TypeVar("T")


class Objects:
    def __init__(self, context: Context, writer: BlobWriter, reader: ObjectReader, manifests: Manifests) -> None:
        self._context = context
        self._writer = writer
        self._reader = reader
        self._manifests = manifests

    async def put(self, bucket: Bucket, key: str, body: Body, spec: PutSpec) -> PutResult:
        version_id = self._context.new_id()
        layout = self._context.placement().layout.version
        with self._context.layouts.writing(layout):
            written = await self._writer.write(bucket, Owner(bucket.bucket_id, key, version_id), body, spec)
            commit = PutCommit(
                session=written.session,
                bucket_id=bucket.bucket_id,
                key=key,
                version_id=version_id,
                size=written.size,
                etag=written.etag,
                attributes=spec.attributes,
                checksum=written.checksum,
                content=written.content,
                missing=written.missing,
                condition=spec.condition,
            )
            put = self._context.metadata.put_object(commit)
            committed = await commit_blob(self._context, self._writer, written, put, layout)
        return PutResult(
            etag=written.etag,
            version_id=committed.version_id,
            modified_us=committed.modified_us,
            size=written.size,
            checksum=written.checksum,
        )

    async def stat(self, bucket: Bucket, key: str) -> ObjectInfo:
        return _info(await self._record(bucket, key))

    async def open(self, bucket: Bucket, key: str) -> ObjectInfo:
        record = await self._record(bucket, key)
        if record.upload_id is None:
            return _info(record)
        info = await self._open_multipart(record)
        if info is None:
            # The object was replaced between its row and its manifest: look once more, strictly fresh, before calling it a loss.
            record = await self._record(bucket, key)
            info = _info(record) if record.upload_id is None else await self._open_multipart(record)
            if info is None:
                raise DataLost()
        return info

    async def _record(self, bucket: Bucket, key: str) -> ObjectRecord:
        record = await self._context.metadata.get_object(bucket.bucket_id, key)
        if record is None:
            raise NoSuchKey()
        return record

    async def _open_multipart(self, record: ObjectRecord) -> ObjectInfo | None:
        assert record.upload_id is not None
        parts = await self._manifests.get(record.bucket_id, record.upload_id)
        extents: list[Extent] = []
        start = 0
        for part in parts:
            owner = Owner(record.bucket_id, record.key, record.upload_id, part.number)
            extents.append(Extent(start=start, size=part.size, content=part.content, owner=owner))
            start += part.size
        if start != record.size or len(parts) != record.part_count:
            self._manifests.forget(record.upload_id)
            return None
        return _info(record, tuple(extents), parts=parts)

    def read(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> AsyncIterator[memoryview]:
        return self._reader.read(bucket, info.extents, start, length)

    def at_hand(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> memoryview | None:
        return self._reader.at_hand(bucket, info.extents, start, length)

    async def delete(self, bucket: Bucket, key: str, condition: Condition) -> bool:
        session = self._context.session.current
        return await self._context.metadata.delete_object(session, bucket.bucket_id, key, condition)

    async def copy(self, source: Bucket, info: ObjectInfo, target: Bucket, key: str, spec: PutSpec) -> PutResult:
        """Rewrites the bytes under a key of the target's own. Onto itself with nothing new to compute, only the row changes."""
        if source.bucket_id == target.bucket_id and info.key == key and not spec.digests:
            return await self._replace_attributes(target, info, spec)
        return await self.put(target, key, self.body(source, info, 0, info.size), spec)

    async def _replace_attributes(self, bucket: Bucket, info: ObjectInfo, spec: PutSpec) -> PutResult:
        commit = PutCommit(
            session=self._context.session.current,
            bucket_id=bucket.bucket_id,
            key=info.key,
            version_id=self._context.new_id(),
            size=info.size,
            etag=info.etag,
            attributes=spec.attributes,
            checksum=info.checksum,
            condition=spec.condition,
        )
        committed = await self._context.metadata.replace_attributes(commit, info.version_id)
        return PutResult(info.etag, committed.version_id, committed.modified_us, info.size, info.checksum)

    def body(self, source: Bucket, info: ObjectInfo, start: int, length: int) -> Body:
        """A range of a stored object as the body of another write."""
        return StoredBody(self.read(source, info, start, length), length)


async def commit_blob(context: Context, writer: BlobWriter, written: Written, commit: Awaitable[T], layout: int) -> T:
    """Send the commit and see it through, whatever becomes of the request. Until it is answered, `layout` counts as in use.

    Shards are removed only when the database has definitely refused (any domain error but OutcomeUnknown). On any other end of the call
    they stay: if the row is there they are its data, if not the sweep finds their session gone and nobody naming them.
    """

    async def settle() -> T:
        try:
            return await commit
        except OutcomeUnknown:
            raise
        except AnvilError:
            await writer.discard(written)
            raise
        finally:
            context.layouts.end(layout)

    context.layouts.begin(layout)  # here, not in the task: the caller's own count may end before that runs
    return await context.owned.finish(settle())


def _info(record: ObjectRecord, extents: tuple[Extent, ...] | None = None, parts: tuple[PartRecord, ...] = ()) -> ObjectInfo:
    if extents is None:
        owner = Owner(record.bucket_id, record.key, record.version_id)
        extents = (Extent(0, record.size, record.content, owner),) if record.content is not None else ()
    return ObjectInfo(
        key=record.key,
        size=record.size,
        etag=record.etag,
        modified_us=record.modified_us,
        version_id=record.version_id,
        is_null=record.is_null,
        attributes=record.attributes,
        checksum=record.checksum,
        part_count=record.part_count,
        extents=extents,
        parts=parts,
    )


class StoredBody:
    """A `Body` that reads an object: for copies. One memcpy per byte, in C."""

    def __init__(self, views: AsyncIterator[memoryview], length: int) -> None:
        self.length = length
        self._views = views
        self._rest = memoryview(b"")

    @property
    def trailers(self) -> dict[str, str]:
        return {}

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if not self._rest:
                piece = await anext(self._views, None)
                if piece is None:
                    break
                self._rest = piece
            step = min(len(self._rest), len(view) - filled)
            view[filled : filled + step] = self._rest[:step]
            self._rest = self._rest[step:]
            filled += step
        return filled
