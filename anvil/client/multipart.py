"""`client.objects.multipart`: the calls of a multipart upload, one by one, and one body sent with its checksum.

Owns: that whatever is sent goes with the CRC-64/NVME of what was read, which the server verifies before it stores anything, and whose
answer is compared with it again. Invariant: a body can be sent again from its beginning. Not here: what is uploaded in parts and how
large they are (`upload.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from anvil._ec.digest import crc64nvme
from anvil.api.grpc.proto import object_pb2
from anvil.base import limits
from anvil.base.types import Buffer
from anvil.client.calls import Calls
from anvil.client.convert import (
    attributes_message,
    checksum_message,
    checksum_of,
    part_of,
    range_message,
    time_of,
    write_conditions,
)
from anvil.client.errors import TransferDamaged
from anvil.client.sources import Seekable
from anvil.client.types import (
    Ask,
    Attributes,
    ByteRange,
    Checksum,
    ChecksumAlgorithm,
    Part,
    Progress,
    PutResult,
    UploadedPart,
    WriteConditions,
)

__all__ = ["Multipart"]

CRC64 = object_pb2.CHECKSUM_ALGORITHM_CRC64NVME


class Body:
    """A stretch of a source on its way: computes its checksum, and tells how far it is."""

    def __init__(self, source: Seekable, start: int, length: int, progress: Progress | None) -> None:
        self._source = source
        self._start = start
        self._length = length
        self._progress = progress
        self._sent = 0
        self._crc = 0

    async def chunks(self) -> AsyncIterator[Buffer]:
        """From the beginning, each time it is called."""
        if self._progress is not None and self._sent:
            self._progress(-self._sent)
        self._sent = self._crc = 0
        async for chunk in self._source.at(self._start, self._length):
            self._crc = crc64nvme(chunk, self._crc)
            yield chunk
            self._sent += len(chunk)
            if self._progress is not None:
                self._progress(len(chunk))

    @property
    def checksum(self) -> bytes:
        return self._crc.to_bytes(8, "big")

    def compare(self, stored: Checksum | None, what: str) -> None:
        """Raises TransferDamaged where the server says another checksum than was sent."""
        if stored is not None and stored.algorithm is ChecksumAlgorithm.CRC64NVME and stored.value != self.checksum:
            raise TransferDamaged(
                f"{what}: sent with CRC-64/NVME {self.checksum.hex()}, the server answered {stored.value.hex()}"
            )


async def put_one(
    calls: Calls,
    bucket: str,
    key: str,
    source: Seekable,
    attributes: Attributes | None,
    conditions: WriteConditions | None,
    progress: Progress | None,
) -> PutResult:
    """One PutObject with all of a source."""
    body = Body(source, 0, source.size, progress)
    header = object_pb2.PutObjectHeader(
        bucket=bucket,
        key=key,
        size=source.size,
        attributes=attributes_message(attributes),
        conditions=write_conditions(conditions),
        checksum_algorithm=CRC64,
    )
    answer = await calls.upload(
        "ObjectService/PutObject",
        object_pb2.PutObjectRequest(header=header),
        body.chunks,
        lambda: object_pb2.PutObjectRequest(trailer=object_pb2.UploadTrailer(checksum=body.checksum)),
        object_pb2.PutObjectResponse,
        Ask("object:write", f"{bucket}/{key}", repeatable=conditions is None),
    )
    checksum = checksum_of(answer.checksum)
    body.compare(checksum, f"{bucket}/{key}")
    return PutResult(answer.etag, answer.version_id, source.size, checksum, time_of(answer.modified_at))


class Multipart:
    """Parts of 5 MiB to 5 GiB (the last may be smaller), numbered 1 to 10,000. `upload` of an object does all of this by itself."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def initiate(self, bucket: str, key: str, attributes: Attributes | None = None) -> str:
        """Returns the upload id. The object gets a CRC-64/NVME of the whole."""
        request = object_pb2.InitiateMultipartUploadRequest(
            bucket=bucket,
            key=key,
            attributes=attributes_message(attributes),
            checksum_algorithm=CRC64,
            checksum_type=object_pb2.CHECKSUM_TYPE_FULL_OBJECT,
        )
        ask = Ask("object:write", f"{bucket}/{key}", repeatable=False)
        answer = await self._calls.unary(
            "ObjectService/InitiateMultipartUpload", request, object_pb2.InitiateMultipartUploadResponse, ask
        )
        return answer.upload_id

    async def upload_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        source: Seekable,
        start: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
    ) -> UploadedPart:
        """Sends `length` bytes of a source from `start` on; `open_source(data)` makes one. A part that broke is sent again."""
        size = source.size - start if length is None else length
        body = Body(source, start, size, progress)
        header = object_pb2.UploadPartHeader(
            bucket=bucket, key=key, upload_id=upload_id, part_number=number, size=size, checksum_algorithm=CRC64
        )
        answer = await self._calls.upload(
            "ObjectService/UploadPart",
            object_pb2.UploadPartRequest(header=header),
            body.chunks,
            lambda: object_pb2.UploadPartRequest(trailer=object_pb2.UploadTrailer(checksum=body.checksum)),
            object_pb2.UploadPartResponse,
            Ask("object:write", f"{bucket}/{key}"),
        )
        body.compare(checksum_of(answer.checksum), f"part {number} of {bucket}/{key}")
        return UploadedPart(number, size, answer.etag, body.checksum)

    async def copy_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        source: object_pb2.CopySource,
        range: ByteRange,
    ) -> UploadedPart:
        """A part from another object of the server. `range` needs a length, and must lie inside the source."""
        request = object_pb2.UploadPartCopyRequest(
            source=source, range=range_message(range), bucket=bucket, key=key, upload_id=upload_id, part_number=number
        )
        ask = Ask("object:write", f"{bucket}/{key}", timeout_s=limits.CLIENT_LONG_CALL_S)
        answer = await self._calls.unary("ObjectService/UploadPartCopy", request, object_pb2.UploadPartCopyResponse, ask)
        return UploadedPart(number, range.length or 0, answer.etag, answer.checksum.value)

    async def list_parts(self, bucket: str, key: str, upload_id: str, page_size: int = 0) -> AsyncIterator[Part]:
        """All parts by number, page by page. Raises NoSuchUpload."""
        after = 0
        while True:
            request = object_pb2.ListPartsRequest(bucket=bucket, key=key, upload_id=upload_id, after=after, page_size=page_size)
            ask = Ask("object:write", f"{bucket}/{key}")
            page = await self._calls.unary("ObjectService/ListParts", request, object_pb2.ListPartsResponse, ask)
            for one in page.parts:
                yield part_of(one)
            if not page.truncated or not page.parts:
                return
            after = page.parts[-1].number

    async def complete(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        checksum: Checksum | None = None,
        conditions: WriteConditions | None = None,
    ) -> PutResult:
        """Makes the object of its parts, in ascending order. `checksum`: of the object, where the caller knows it; verified."""
        size = sum(part.size for part in parts)
        request = object_pb2.CompleteMultipartUploadRequest(
            bucket=bucket,
            key=key,
            upload_id=upload_id,
            parts=[object_pb2.CompletedPart(number=one.number, etag=one.etag, checksum=one.checksum) for one in parts],
            conditions=write_conditions(conditions),
            checksum=checksum_message(checksum) if checksum is not None else None,
            size=size,
        )
        # Completing is idempotent by upload id, so it is repeated also where conditions were given.
        ask = Ask("object:write", f"{bucket}/{key}", timeout_s=limits.CLIENT_LONG_CALL_S)
        answer = await self._calls.unary(
            "ObjectService/CompleteMultipartUpload", request, object_pb2.CompleteMultipartUploadResponse, ask
        )
        stored = checksum_of(answer.checksum)
        if (
            checksum is not None
            and stored is not None
            and stored.algorithm is checksum.algorithm
            and stored.value != checksum.value
        ):
            raise TransferDamaged(
                f"{bucket}/{key}: sent with {checksum.algorithm} {checksum.value.hex()}, the server answered {stored.value.hex()}"
            )
        return PutResult(answer.etag, answer.version_id, size, stored, time_of(answer.modified_at))

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Gives the upload and its parts up. Raises NoSuchUpload where it was completed or aborted before."""
        request = object_pb2.AbortMultipartUploadRequest(bucket=bucket, key=key, upload_id=upload_id)
        ask = Ask("object:write", f"{bucket}/{key}")
        await self._calls.unary("ObjectService/AbortMultipartUpload", request, object_pb2.AbortMultipartUploadResponse, ask)
