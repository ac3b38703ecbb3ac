"""Multipart uploads: parts are blobs of their own, completing moves no byte.

Owns: what a completed upload's ETag, size and checksum are, and which lists of parts are acceptable. Invariant: the rows of the listed
parts become the manifest as they are; whether they still are what the client listed is decided inside the commit. Source of the rules:
S3 API reference, CompleteMultipartUpload, and the S3 user guide, "Checking object integrity". Not here: headers and XML (`api`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from anvil._ec.digest import Digests, crc_combine
from anvil.base.errors import BadDigest, EntityTooLarge, EntityTooSmall, InvalidPart, InvalidRequest, NoSuchUpload
from anvil.base.limits import OBJECT_BYTES_MAX, PART_BYTES_MIN
from anvil.engine.blobs_write import BlobWriter
from anvil.engine.context import Context
from anvil.engine.manifests import all_parts
from anvil.engine.objects import commit_blob
from anvil.engine.ports import Body
from anvil.engine.types import CompletePart, PutResult, PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import (
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Committed,
    CompleteCommit,
    Condition,
    Owner,
    PartCommit,
    PartRecord,
    UploadId,
    UploadRecord,
)


class Multipart:
    def __init__(self, context: Context, writer: BlobWriter) -> None:
        self._context = context
        self._writer = writer

    async def create(
        self,
        bucket: Bucket,
        key: str,
        attributes: Attributes,
        owner: str,
        algorithm: Algorithm | None,
        type: ChecksumType | None,
    ) -> UploadRecord:
        upload = UploadRecord(
            upload_id=self._context.new_id(),
            bucket_id=bucket.bucket_id,
            key=key,
            initiated_us=self._context.now_us(),
            attributes=attributes,
            owner=owner,
            checksum_algorithm=algorithm,
            checksum_type=type,
        )
        await self._context.metadata.create_upload(self._context.session.current, upload)
        return upload

    async def get(self, bucket: Bucket, key: str, upload_id: UploadId) -> UploadRecord:
        upload = await self._context.metadata.get_upload(bucket.bucket_id, key, upload_id)
        if upload is None:
            raise NoSuchUpload()
        return upload

    async def put_part(self, bucket: Bucket, key: str, upload_id: UploadId, number: int, body: Body, spec: PutSpec) -> PutResult:
        if (await self.get(bucket, key, upload_id)).completed:
            raise NoSuchUpload()
        owner = Owner(bucket.bucket_id, key, upload_id, number)
        layout = self._context.placement().layout.version
        with self._context.layouts.writing(layout):
            written = await self._writer.write(bucket, owner, body, spec)
            commit = PartCommit(
                session=written.session,
                bucket_id=bucket.bucket_id,
                key=key,
                upload_id=upload_id,
                number=number,
                size=written.size,
                etag=written.etag,
                checksum=written.checksum,
                content=written.content,
                missing=written.missing,
            )
            committed = await commit_blob(self._context, self._writer, written, self._commit_part(commit), layout)
        return PutResult(written.etag, upload_id, committed.modified_us, written.size, written.checksum)

    async def _commit_part(self, commit: PartCommit) -> Committed:
        modified_us = await self._context.metadata.put_part(commit)
        return Committed(version_id=commit.upload_id, seq=0, modified_us=modified_us)

    async def complete(
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
        """Make the listed parts, in that order, the object. `parts` is not empty and ascending (the API has checked)."""
        upload = await self.get(bucket, key, upload_id)
        stored = {part.number: part for part in await all_parts(self._context.metadata, bucket.bucket_id, upload_id)}
        chosen = [_match(stored, part) for part in parts]
        if any(part.size < PART_BYTES_MIN for part in chosen[:-1]):
            small = next(part for part in chosen[:-1] if part.size < PART_BYTES_MIN)
            raise EntityTooSmall(ProposedSize=small.size, MinSizeAllowed=PART_BYTES_MIN, PartNumber=small.number, ETag=small.etag)
        size = sum(part.size for part in chosen)
        if size > OBJECT_BYTES_MAX:
            raise EntityTooLarge(ProposedSize=size, MaxSizeAllowed=OBJECT_BYTES_MAX)
        if expected_size is not None and expected_size != size:
            raise InvalidRequest("The provided 'x-amz-mp-object-size' header does not match the size of the listed parts.")
        checksum = combined_checksum(chosen, upload.checksum_algorithm, upload.checksum_type)
        if expected is not None and (checksum is None or expected.value != checksum.value):
            raise BadDigest("The checksum you specified did not match the calculated checksum of the object.")
        commit = CompleteCommit(
            session=self._context.session.current,
            bucket_id=bucket.bucket_id,
            key=key,
            upload_id=upload_id,
            version_id=self._context.new_id(),
            parts=tuple((part.number, part.etag) for part in chosen),
            size=size,
            etag=multipart_etag(chosen),
            checksum=checksum,
            condition=condition,
        )
        committed = await self._context.owned.finish(self._context.metadata.complete_upload(commit))
        if committed.version_id != commit.version_id:
            return await self._completed_before(commit)
        return PutResult(commit.etag, committed.version_id, committed.modified_us, size, checksum)

    async def _completed_before(self, commit: CompleteCommit) -> PutResult:
        """A repeated completion gets what the first one made, which may have listed other parts."""
        record = await self._context.metadata.get_object(commit.bucket_id, commit.key)
        if record is None or record.upload_id != commit.upload_id:
            raise NoSuchUpload()  # replaced or deleted since
        return PutResult(record.etag, record.version_id, record.modified_us, record.size, record.checksum)

    async def abort(self, bucket: Bucket, key: str, upload_id: UploadId) -> None:
        await self._context.metadata.abort_upload(self._context.session.current, bucket.bucket_id, key, upload_id)

    async def list_parts(self, bucket: Bucket, key: str, upload_id: UploadId, after: int, limit: int) -> tuple[PartRecord, ...]:
        if (await self.get(bucket, key, upload_id)).completed:
            raise NoSuchUpload()
        return await self._context.metadata.list_parts(bucket.bucket_id, upload_id, after, limit)


def _match(stored: dict[int, PartRecord], listed: CompletePart) -> PartRecord:
    part = stored.get(listed.number)
    if part is None or part.etag != listed.etag:
        raise InvalidPart(PartNumber=listed.number, ETag=listed.etag)
    if listed.checksum is not None and (part.checksum is None or part.checksum.value != listed.checksum):
        raise InvalidPart(PartNumber=listed.number, ETag=listed.etag)
    return part


def multipart_etag(parts: Sequence[PartRecord]) -> str:
    """The MD5 of the parts' MD5s, a dash, and how many they are."""
    joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def combined_checksum(parts: Sequence[PartRecord], algorithm: Algorithm | None, type: ChecksumType | None) -> Checksum | None:
    """The object's checksum from those of its parts: FULL_OBJECT by combining CRCs, COMPOSITE as checksum of checksums. None where the
    upload asked for none, or a part came without one."""
    if algorithm is None or any(part.checksum is None or part.checksum.algorithm != algorithm for part in parts):
        return None
    values = [part.checksum.value for part in parts if part.checksum is not None]
    if type is ChecksumType.FULL_OBJECT:
        total = int.from_bytes(values[0], "big")
        for part, value in zip(parts[1:], values[1:], strict=True):
            total = crc_combine(algorithm.value, total, int.from_bytes(value, "big"), part.size)
        return Checksum(algorithm, total.to_bytes(len(values[0]), "big"), ChecksumType.FULL_OBJECT)
    digests = Digests([algorithm.value])
    digests.update(b"".join(values))
    return Checksum(algorithm, digests.results()[algorithm.value], ChecksumType.COMPOSITE, parts=len(parts))
