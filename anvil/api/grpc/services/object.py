"""`anvil.v1.ObjectService`: objects and multipart uploads over gRPC, by the operations that S3 uses.

Invariants: the right to a key is established before anything is said about it or done to it; the head of a GetObject is sent
only after its first bytes were read and verified, and every chunk behind it is sent as it lies in the stripe. Not here: rules
(`operations`), what fields mean (`values.py`), the way of a payload (`chunks.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError

from anvil.api.grpc import values
from anvil.api.grpc.chunks import Incoming, takes_chunks
from anvil.api.grpc.proto import object_pb2, object_pb2_grpc
from anvil.api.operations import access, conditions, listing, objects, ranges, uploads
from anvil.api.operations.caller import Caller
from anvil.api.operations.integrity import upload_checksum
from anvil.api.operations.listing import decode_token, encode_token
from anvil.api.operations.names import NULL_VERSION
from anvil.api.operations.objects import Source
from anvil.base.errors import InvalidArgument, InvalidRequest
from anvil.base.limits import LIST_KEYS_MAX
from anvil.engine.types import ObjectInfo, PutResult
from anvil.rpc.context import Context


class ObjectService(object_pb2_grpc.ObjectServiceServicer):
    # -- objects

    @takes_chunks
    async def PutObject(self, incoming: Incoming, context: Context) -> object_pb2.PutObjectResponse:
        caller: Caller = context.caller
        header: object_pb2.PutObjectHeader = await _header(incoming, object_pb2.PutObjectRequest)
        name, key = values.bucket_name(header.bucket), values.object_key(header.key)
        bucket = await access.writable(caller, name, key)
        attributes, condition = values.attributes(header.attributes), values.write_conditions(header.conditions)
        stated = values.integrity(header)
        body = incoming.body(values.upload_size(header))
        values.expect_trailer(stated, body, object_pb2.PutObjectRequest)
        result = await objects.put(caller, bucket, key, body, stated, attributes, condition)
        return object_pb2.PutObjectResponse(**_written(result))

    async def GetObject(
        self, request: object_pb2.GetObjectRequest, context: Context
    ) -> AsyncGenerator[object_pb2.GetObjectResponse | memoryview, None]:
        """The host sends a memoryview as a message that has it as its chunk."""
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        bucket = await access.readable(caller, name, key)
        info = await access.find(caller, bucket, key, content=True, version=values.version(request.version_id))
        conditions.require_modified(values.read_conditions(request.conditions), info)
        chosen = _selection(request, info)
        head = object_pb2.GetObjectHead(
            object=values.object_message(info),
            start=chosen.start,
            length=chosen.length,
            checksum=values.checksum_message(chosen.checksum),
        )
        if chosen.length == 0:
            yield object_pb2.GetObjectResponse(head=head)
            return
        begun = False
        async with aclosing(objects.read(caller, bucket, info, chosen)) as views:
            async for view in views:
                if not begun:
                    yield object_pb2.GetObjectResponse(head=head)
                    begun = True
                yield view

    async def HeadObject(self, request: object_pb2.HeadObjectRequest, context: Context) -> object_pb2.HeadObjectResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        bucket = await access.readable(caller, name, key)
        info = await access.find(caller, bucket, key, content=False, version=values.version(request.version_id))
        conditions.require_modified(values.read_conditions(request.conditions), info)
        return object_pb2.HeadObjectResponse(object=values.object_message(info))

    async def DeleteObject(self, request: object_pb2.DeleteObjectRequest, context: Context) -> object_pb2.DeleteObjectResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        access.refuse_version(key, values.version(request.version_id))
        bucket = await access.deletable(caller, name, key)
        await objects.delete(caller, bucket, key, values.write_conditions(request.conditions))
        return object_pb2.DeleteObjectResponse()

    async def ListObjects(self, request: object_pb2.ListObjectsRequest, context: Context) -> object_pb2.ListObjectsResponse:
        caller: Caller = context.caller
        bucket = await access.listable(caller, values.bucket_name(request.bucket))
        if request.start_after and request.page_token:
            raise InvalidArgument("start_after is for the first page, which has no token.", ArgumentName="start_after")
        token = request.page_token
        page = await listing.page(
            caller,
            bucket,
            prefix=values.text(request.prefix, "prefix"),
            delimiter=values.text(request.delimiter, "delimiter"),
            after=values.marker(decode_token(token), "page_token")
            if token
            else values.marker(request.start_after, "start_after"),
            limit=values.page_size(request.page_size, LIST_KEYS_MAX),
        )
        return object_pb2.ListObjectsResponse(
            objects=[values.summary_message(entry) for entry in page.entries],
            prefixes=page.prefixes,
            next_page_token="" if page.next_after is None else encode_token(page.next_after),
        )

    async def CopyObject(self, request: object_pb2.CopyObjectRequest, context: Context) -> object_pb2.CopyObjectResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        target = await access.writable(caller, name, key)
        source = await _source(caller, request.source)
        stated = values.attributes(request.attributes)
        if not request.replace_attributes and _says_more(request.attributes):
            raise InvalidArgument("Attributes but the website redirect need replace_attributes.", ArgumentName="attributes")
        result = await objects.copy(
            caller,
            source,
            target,
            key,
            stated,
            replace=request.replace_attributes,
            algorithm=values.algorithm(request.checksum_algorithm),
            condition=values.write_conditions(request.conditions),
        )
        return object_pb2.CopyObjectResponse(**_written(result))

    # -- multipart uploads

    async def InitiateMultipartUpload(
        self, request: object_pb2.InitiateMultipartUploadRequest, context: Context
    ) -> object_pb2.InitiateMultipartUploadResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        bucket = await access.writable(caller, name, key)
        algorithm, type_ = upload_checksum(
            values.algorithm(request.checksum_algorithm), values.checksum_type(request.checksum_type)
        )
        upload = await uploads.initiate(caller, bucket, key, values.attributes(request.attributes), algorithm, type_)
        return object_pb2.InitiateMultipartUploadResponse(
            upload_id=upload.upload_id.hex(),
            checksum_algorithm=values.algorithm_number(algorithm),
            checksum_type=values.type_number(type_),
        )

    @takes_chunks
    async def UploadPart(self, incoming: Incoming, context: Context) -> object_pb2.UploadPartResponse:
        caller: Caller = context.caller
        header: object_pb2.UploadPartHeader = await _header(incoming, object_pb2.UploadPartRequest)
        name, key = values.bucket_name(header.bucket), values.object_key(header.key)
        number = ranges.part_number(header.part_number)
        upload = await uploads.open_upload(caller, name, key, header.upload_id)
        stated = values.integrity(header)
        body = incoming.body(values.upload_size(header))
        values.expect_trailer(stated, body, object_pb2.UploadPartRequest)
        result = await uploads.put_part(caller, upload, number, body, stated)
        return object_pb2.UploadPartResponse(etag=result.etag, checksum=values.checksum_message(result.checksum))

    async def UploadPartCopy(
        self, request: object_pb2.UploadPartCopyRequest, context: Context
    ) -> object_pb2.UploadPartCopyResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        number = ranges.part_number(request.part_number)
        upload = await uploads.open_upload(caller, name, key, request.upload_id)
        source = await _source(caller, request.source)
        start, length = 0, source.info.size
        if request.HasField("range"):
            start, length = ranges.of_source(length, *values.byte_range(request.range))
        result = await uploads.copy_part(caller, upload, number, source, start, length)
        return object_pb2.UploadPartCopyResponse(
            etag=result.etag,
            checksum=values.checksum_message(result.checksum),
            modified_at=values.timestamp(result.modified_us),
        )

    async def ListParts(self, request: object_pb2.ListPartsRequest, context: Context) -> object_pb2.ListPartsResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        upload = await uploads.open_upload(caller, name, key, request.upload_id)
        after, limit = values.at_least_zero(request.after, "after"), values.page_size(request.page_size, LIST_KEYS_MAX)
        parts, more = await uploads.list_parts(caller, upload, after, limit)
        return object_pb2.ListPartsResponse(parts=[values.part_message(part) for part in parts], truncated=more)

    async def CompleteMultipartUpload(
        self, request: object_pb2.CompleteMultipartUploadRequest, context: Context
    ) -> object_pb2.CompleteMultipartUploadResponse:
        caller: Caller = context.caller
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        upload = await uploads.open_upload(caller, name, key, request.upload_id, completed=True)
        uploads.check_count(len(request.parts))  # before two million empty ones are looked at
        parts = [uploads.listed_part(part.number, part.etag, part.checksum or None) for part in request.parts]
        uploads.check_list(parts)
        result = await uploads.complete(
            caller,
            upload,
            parts,
            condition=values.write_conditions(request.conditions),
            size=values.at_least_zero(request.size, "size") if request.HasField("size") else None,
            expected=values.completed_checksum(request, upload.record),
        )
        return object_pb2.CompleteMultipartUploadResponse(**_written(result))

    async def AbortMultipartUpload(
        self, request: object_pb2.AbortMultipartUploadRequest, context: Context
    ) -> object_pb2.AbortMultipartUploadResponse:
        name, key = values.bucket_name(request.bucket), values.object_key(request.key)
        await uploads.abort(context.caller, name, key, request.upload_id)
        return object_pb2.AbortMultipartUploadResponse()


async def _header(incoming: Incoming, request: type[Any]) -> Any:
    """The header that an upload begins with. Raises InvalidRequest."""
    first = await incoming.first()
    try:
        message = request.FromString(first)
    except DecodeError:
        raise InvalidRequest("A message of the call is not what the method takes.") from None
    if message.WhichOneof("part") != "header":
        raise InvalidRequest("The first message of an upload is its header.")
    return message.header


def _selection(request: object_pb2.GetObjectRequest, info: ObjectInfo) -> ranges.Selection:
    """Raises InvalidRange, InvalidPartNumber, InvalidArgument."""
    kind = request.WhichOneof("selection")
    if kind == "range":
        return ranges.by_range(info, *values.byte_range(request.range))
    if kind == "part_number":
        return ranges.by_part(ranges.part_number(request.part_number), info)
    return ranges.whole(info)


async def _source(caller: Caller, message: object_pb2.CopySource) -> Source:
    """What a copy reads, its conditions judged."""
    name, key = values.bucket_name(message.bucket), values.object_key(message.key)
    source = await objects.open_source(caller, name, key, values.version(message.version_id))
    conditions.check_source(values.read_conditions(message.conditions), source.info)
    return source


def _says_more(message: object_pb2.Attributes) -> bool:
    """Whether more is stated than a website redirect."""
    return any(field.name != "website_redirect" for field, _ in message.ListFields())


def _written(result: PutResult) -> dict[str, Any]:
    """The fields that every answer to a written object has."""
    return {
        "etag": result.etag,
        "version_id": NULL_VERSION,
        "checksum": values.checksum_message(result.checksum),
        "modified_at": values.timestamp(result.modified_us),
    }
