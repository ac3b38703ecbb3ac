"""The engine's face: what an API can ask for. Both APIs call this, so that each rule is written once.

Owns: the assembly of the pieces beside it. Not here: who may (`auth`), how it is said on the wire (`api`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from anvil.engine.blobs_read import ObjectReader
from anvil.engine.blobs_write import BlobWriter
from anvil.engine.context import Context
from anvil.engine.manifests import Manifests
from anvil.engine.multipart import Multipart
from anvil.engine.objects import Objects
from anvil.engine.ports import Body
from anvil.engine.types import CompletePart, ObjectInfo, PutResult, PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import (
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    ListPage,
    ListQuery,
    PartRecord,
    UploadId,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
)


class Engine:
    """Every call may raise DatabaseUnavailable, SlowDown; writes also WriterFenced, NoSuchBucket, OutcomeUnknown, StorageFull,
    WriteQuorumLost; reads DataLost, ReadQuorumLost."""

    def __init__(self, context: Context) -> None:
        self._context = context
        writer = BlobWriter(context)
        self._objects = Objects(context, writer, ObjectReader(context), Manifests(context.metadata))
        self._multipart = Multipart(context, writer)

    async def put_object(self, bucket: Bucket, key: str, body: Body, spec: PutSpec) -> PutResult:
        """Store and make visible. Raises PreconditionFailed, NoSuchKey (If-Match), what the body and `spec.verify` raise."""
        return await self._objects.put(bucket, key, body, spec)

    async def stat(self, bucket: Bucket, key: str) -> ObjectInfo:
        """Strictly fresh, without parts. Raises NoSuchKey."""
        return await self._objects.stat(bucket, key)

    async def open(self, bucket: Bucket, key: str) -> ObjectInfo:
        """Strictly fresh, ready to be read. Raises NoSuchKey."""
        return await self._objects.open(bucket, key)

    def read(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> AsyncIterator[memoryview]:
        """Bytes start .. start+length of an opened object."""
        return self._objects.read(bucket, info, start, length)

    def at_hand(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> memoryview | None:
        """Those bytes, whole, where that takes no waiting: of a small object in this node's memory. None says nothing: `read` them."""
        return self._objects.at_hand(bucket, info, start, length)

    async def delete_object(self, bucket: Bucket, key: str, condition: Condition) -> bool:
        """True if there was something. Raises PreconditionFailed."""
        return await self._objects.delete(bucket, key, condition)

    async def copy_object(self, source: Bucket, info: ObjectInfo, target: Bucket, key: str, spec: PutSpec) -> PutResult:
        """`info` comes from `open`. Onto itself without new digests only the attributes change (ConditionalRequestConflict if
        the object changed meanwhile)."""
        return await self._objects.copy(source, info, target, key, spec)

    async def list_objects(self, query: ListQuery) -> ListPage:
        return await self._context.metadata.list_objects(query)

    async def create_upload(
        self,
        bucket: Bucket,
        key: str,
        attributes: Attributes,
        owner: str,
        algorithm: Algorithm | None,
        type: ChecksumType | None,
    ) -> UploadRecord:
        return await self._multipart.create(bucket, key, attributes, owner, algorithm, type)

    async def get_upload(self, bucket: Bucket, key: str, upload_id: UploadId) -> UploadRecord:
        """Raises NoSuchUpload."""
        return await self._multipart.get(bucket, key, upload_id)

    async def put_part(self, bucket: Bucket, key: str, upload_id: UploadId, number: int, body: Body, spec: PutSpec) -> PutResult:
        """Raises NoSuchUpload, and as `put_object`."""
        return await self._multipart.put_part(bucket, key, upload_id, number, body, spec)

    async def copy_part(
        self,
        source: Bucket,
        info: ObjectInfo,
        start: int,
        length: int,
        bucket: Bucket,
        key: str,
        upload_id: UploadId,
        number: int,
        spec: PutSpec,
    ) -> PutResult:
        """A range of an opened object becomes a part."""
        body = self._objects.body(source, info, start, length)
        return await self._multipart.put_part(bucket, key, upload_id, number, body, spec)

    async def list_parts(self, bucket: Bucket, key: str, upload_id: UploadId, after: int, limit: int) -> tuple[PartRecord, ...]:
        """Of an upload in progress. Raises NoSuchUpload."""
        return await self._multipart.list_parts(bucket, key, upload_id, after, limit)

    async def complete_upload(
        self,
        bucket: Bucket,
        key: str,
        upload_id: UploadId,
        parts: Sequence[CompletePart],
        *,
        condition: Condition,
        expected_size: int | None,
        expected: Checksum | None,
    ) -> PutResult:
        """Raises NoSuchUpload, InvalidPart, EntityTooSmall, BadDigest, InvalidRequest, PreconditionFailed."""
        return await self._multipart.complete(
            bucket, key, upload_id, parts, condition=condition, expected_size=expected_size, expected=expected
        )

    async def abort_upload(self, bucket: Bucket, key: str, upload_id: UploadId) -> None:
        """Raises NoSuchUpload."""
        await self._multipart.abort(bucket, key, upload_id)

    async def list_uploads(self, query: UploadsQuery) -> UploadsPage:
        return await self._context.metadata.list_uploads(query)
