"""Multipart uploads: create, parts, part copies, completion, abort, and both listings.

Owns: how uploads look on the wire. Not here: rights and rules (`operations/uploads.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from anvil.api.operations import access, uploads
from anvil.api.operations.integrity import API_NAME
from anvil.api.operations.names import owner_id
from anvil.api.operations.uploads import Upload
from anvil.api.s3 import checksums, conditions, metadata
from anvil.api.s3.call import Call
from anvil.api.s3.documents import complete_parts
from anvil.api.s3.handlers.copy import open_source, write_copied
from anvil.api.s3.handlers.objects import written_headers
from anvil.api.s3.handlers.paging import encoder_of, limit_of
from anvil.api.s3.longanswer import answer_when_done
from anvil.api.s3.payload import open_upload, read_document
from anvil.api.s3.ranges import part_number, source_range
from anvil.api.s3.xml import Xml
from anvil.base.errors import InvalidArgument, InvalidRequest, MalformedXML
from anvil.base.limits import COMPLETE_BODY_BYTES_MAX
from anvil.engine.types import PutResult
from anvil.model.identity import Bucket
from anvil.model.records import UploadRecord, UploadsQuery


async def create_upload(call: Call) -> None:
    request = call.request
    bucket = await access.writable(call, request.bucket, request.key, request.owner)
    algorithm, type_ = checksums.upload_checksum(request.headers)
    upload = await uploads.initiate(call, bucket, request.key, metadata.attributes(request), algorithm, type_)
    headers: metadata.HeaderList = [metadata.SEALED]
    if algorithm is not None and type_ is not None:
        headers.append((b"x-amz-checksum-algorithm", API_NAME[algorithm].encode("ascii")))
        headers.append((b"x-amz-checksum-type", type_.encode("ascii")))
    xml = Xml()
    xml.open("InitiateMultipartUploadResult", namespace=True)
    xml.text("Bucket", bucket.name)
    xml.text("Key", request.key)
    xml.text("UploadId", upload.upload_id.hex())
    xml.close("InitiateMultipartUploadResult")
    await call.respond_xml(200, xml.bytes(), headers)


async def _upload(call: Call, *, completed: bool = False) -> Upload:
    request = call.request
    return await uploads.open_upload(
        call, request.bucket, request.key, request.query["uploadId"], owner=request.owner, completed=completed
    )


def _part_number(query: Mapping[str, str]) -> int:
    if "partNumber" not in query:
        raise InvalidArgument("This operation needs a partNumber.", ArgumentName="partNumber")
    return part_number(query["partNumber"])


async def upload_part(call: Call) -> None:
    number = _part_number(call.request.query)
    upload = await _upload(call)
    body, stated = open_upload(call)
    result = await uploads.put_part(call, upload, number, body, stated)
    await call.respond(200, written_headers(result, with_type=False))


async def upload_part_copy(call: Call) -> None:
    headers = call.request.headers
    number = _part_number(call.request.query)
    upload = await _upload(call)
    source = await open_source(call)
    start, length = 0, source.info.size
    if b"x-amz-copy-source-range" in headers:
        start, length = source_range(headers[b"x-amz-copy-source-range"], length)
    copying = uploads.copy_part(call, upload, number, source, start, length)
    await answer_when_done(call, copying, lambda xml, result: write_copied(xml, "CopyPartResult", result), [metadata.SEALED])


async def complete_upload(call: Call) -> None:
    headers = call.request.headers
    upload = await _upload(call, completed=True)
    document, _ = await read_document(call, COMPLETE_BODY_BYTES_MAX, of_object=True)
    if not document:
        raise MalformedXML("You must specify at least one part")
    parts = complete_parts(document)
    condition = conditions.write_condition(headers)
    access.check_condition(call, upload.bucket, upload.key, condition)
    size = headers.get(b"x-amz-mp-object-size")
    if size is not None and not (size.isdigit() and len(size) <= 15):
        raise InvalidRequest("Value for x-amz-mp-object-size header is invalid.")
    completing = uploads.complete(
        call,
        upload,
        parts,
        condition=condition,
        size=None if size is None else int(size),
        expected=checksums.expected_of_upload(headers, upload.record.checksum_type),
    )
    location = _location(call, upload.bucket)
    await answer_when_done(
        call, completing, lambda xml, result: _write_completed(xml, upload, location, result), [metadata.SEALED]
    )


def _location(call: Call, bucket: Bucket) -> str:
    base = call.services.endpoint or "http://" + call.stream.head.authority.decode("latin-1")
    return f"{base.rstrip('/')}/{bucket.name}/{quote(call.request.key, safe='/')}"


def _write_completed(xml: Xml, upload: Upload, location: str, result: PutResult) -> None:
    xml.open("CompleteMultipartUploadResult", namespace=True)
    xml.text("Location", location)
    xml.text("Bucket", upload.bucket.name)
    xml.text("Key", upload.key)
    xml.text("ETag", f'"{result.etag}"')
    if result.checksum is not None:
        xml.text(checksums.XML_NAME[result.checksum.algorithm], checksums.encode(result.checksum))
        xml.text("ChecksumType", result.checksum.type)
    xml.close("CompleteMultipartUploadResult")


async def abort_upload(call: Call) -> None:
    request = call.request
    await uploads.abort(call, request.bucket, request.key, request.query["uploadId"], request.owner)
    await call.respond(204)


async def list_parts(call: Call) -> None:
    request = call.request
    query = request.query
    upload = await _upload(call)
    encode, limit = encoder_of(query), limit_of(query, "max-parts")
    after = limit_of(query, "part-number-marker", 2**31 - 1) if query.get("part-number-marker") else 0
    page, more = await uploads.list_parts(call, upload, after, limit)
    xml = Xml()
    xml.open("ListPartsResult", namespace=True)
    xml.text("Bucket", upload.bucket.name)
    if encode is not str:
        xml.text("EncodingType", "url")
    xml.text("Key", encode(request.key))
    xml.text("UploadId", query["uploadId"])
    _write_people(xml, upload.bucket, upload.record)
    xml.text("StorageClass", "STANDARD")
    xml.number("PartNumberMarker", after)
    xml.number("NextPartNumberMarker", page[-1].number if page else 0)
    xml.number("MaxParts", limit)
    xml.flag("IsTruncated", more)
    _write_upload_checksum(xml, upload.record)
    for part in page:
        xml.open("Part")
        xml.number("PartNumber", part.number)
        xml.text("LastModified", metadata.iso_date(part.modified_us))
        xml.text("ETag", f'"{part.etag}"')
        xml.number("Size", part.size)
        if part.checksum is not None:
            xml.text(checksums.XML_NAME[part.checksum.algorithm], checksums.encode(part.checksum))
        xml.close("Part")
    xml.close("ListPartsResult")
    await call.respond_xml(200, xml.bytes())


def _write_people(xml: Xml, bucket: Bucket, upload: UploadRecord) -> None:
    for element, identity, name in (
        ("Initiator", upload.owner, upload.owner),
        ("Owner", owner_id(bucket.tenant), bucket.tenant.name),
    ):
        xml.open(element)
        xml.text("ID", identity)
        xml.text("DisplayName", name)
        xml.close(element)


def _write_upload_checksum(xml: Xml, upload: UploadRecord) -> None:
    if upload.checksum_algorithm is not None:
        xml.text("ChecksumAlgorithm", API_NAME[upload.checksum_algorithm])
    if upload.checksum_type is not None:
        xml.text("ChecksumType", upload.checksum_type)


async def list_uploads(call: Call) -> None:
    query = call.request.query
    bucket = await access.listable(call, call.request.bucket, call.request.owner)
    encode, limit = encoder_of(query), limit_of(query, "max-uploads")
    key_marker, upload_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    page = await uploads.list_uploads(
        call,
        UploadsQuery(
            bucket_id=bucket.bucket_id,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            key_marker=key_marker,
            upload_marker=_upload_marker(key_marker, upload_marker),
            limit=limit,
        ),
    )
    xml = Xml()
    xml.open("ListMultipartUploadsResult", namespace=True)
    xml.text("Bucket", bucket.name)
    xml.text("KeyMarker", encode(key_marker))
    xml.text("UploadIdMarker", upload_marker)
    if page.next_key_marker is not None:
        xml.text("NextKeyMarker", encode(page.next_key_marker))
        xml.text("NextUploadIdMarker", page.next_upload_marker.hex() if page.next_upload_marker else "")
    xml.text("Prefix", encode(query.get("prefix", "")))
    if query.get("delimiter"):
        xml.text("Delimiter", encode(query["delimiter"]))
    if encode is not str:
        xml.text("EncodingType", "url")
    xml.number("MaxUploads", limit)
    xml.flag("IsTruncated", page.next_key_marker is not None)
    for upload in page.uploads:
        xml.open("Upload")
        xml.text("Key", encode(upload.key))
        xml.text("UploadId", upload.upload_id.hex())
        _write_people(xml, bucket, upload)
        xml.text("StorageClass", "STANDARD")
        xml.text("Initiated", metadata.iso_date(upload.initiated_us))
        _write_upload_checksum(xml, upload)
        xml.close("Upload")
    for prefix in page.prefixes:
        xml.open("CommonPrefixes")
        xml.text("Prefix", encode(prefix))
        xml.close("CommonPrefixes")
    xml.close("ListMultipartUploadsResult")
    await call.respond_xml(200, xml.bytes())


def _upload_marker(key_marker: str, text: str) -> bytes | None:
    """Ignored without a key marker (API Reference, ListMultipartUploads). Raises InvalidArgument."""
    if not key_marker or not text:
        return None
    found = uploads.upload_id(text)
    if found is None:
        raise InvalidArgument("Invalid uploadId marker", ArgumentName="upload-id-marker", ArgumentValue=text)
    return found
