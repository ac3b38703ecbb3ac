"""Multipart uploads: create, parts, part copies, completion, abort, and both listings.

Owns: how uploads look on the wire; an upload id is shown as 32 hex digits. Rights: everything that makes or unmakes an upload
needs `object:write` on its key (also ListParts, which is how a writer resumes); ListMultipartUploads needs `object:list` on
the bucket. Invariant: parts of an upload that was created with a checksum algorithm all have that checksum, stated by the
client or computed here, so that the object's can be derived from them. Not here: deriving it, and the ETag (engine).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from anvil.api.s3 import checksums, conditions, metadata
from anvil.api.s3.access import bucket_for, check_condition, object_bucket
from anvil.api.s3.call import Call, owner_id
from anvil.api.s3.documents import complete_parts
from anvil.api.s3.handlers.copy import computed, open_source, write_copied
from anvil.api.s3.handlers.objects import written_headers
from anvil.api.s3.handlers.paging import encoder_of, limit_of
from anvil.api.s3.longanswer import answer_when_done
from anvil.api.s3.payload import open_upload, read_document
from anvil.api.s3.ranges import part_number, source_range
from anvil.api.s3.xml import Xml
from anvil.base.errors import EntityTooLarge, InvalidArgument, InvalidRequest, MalformedXML, NoSuchUpload
from anvil.base.limits import COMPLETE_BODY_BYTES_MAX, PUT_BYTES_MAX
from anvil.engine.types import PutResult, PutSpec
from anvil.model.identity import Action, Bucket
from anvil.model.records import Attributes, UploadRecord, UploadsPage, UploadsQuery

_NONE = Attributes()
_HEX = frozenset("0123456789abcdef")


def upload_id_of(query: Mapping[str, str]) -> bytes:
    """Raises NoSuchUpload for anything that is no upload id."""
    text = query["uploadId"]
    if len(text) != 32 or not _HEX.issuperset(text):
        raise NoSuchUpload(UploadId=text)
    return bytes.fromhex(text)


async def create_upload(call: Call) -> None:
    request, app = call.request, call.principal.app
    bucket = await object_bucket(call, Action.OBJECT_WRITE)
    algorithm, type_ = checksums.upload_checksum(request.headers)
    upload = await call.services.engine.create_upload(
        bucket, request.key, metadata.attributes(request), app.access_key if app else "", algorithm, type_
    )
    headers: metadata.HeaderList = [metadata.SEALED]
    if algorithm is not None and type_ is not None:
        headers.append((b"x-amz-checksum-algorithm", checksums.API_NAME[algorithm].encode("ascii")))
        headers.append((b"x-amz-checksum-type", type_.encode("ascii")))
    xml = Xml()
    xml.open("InitiateMultipartUploadResult", namespace=True)
    xml.text("Bucket", bucket.name)
    xml.text("Key", request.key)
    xml.text("UploadId", upload.upload_id.hex())
    xml.close("InitiateMultipartUploadResult")
    await call.respond_xml(200, xml.bytes(), headers)


async def _open_upload(call: Call) -> tuple[Bucket, bytes, UploadRecord]:
    """The upload of the request, for who may write its key. Raises NoSuchUpload."""
    upload_id = upload_id_of(call.request.query)
    bucket = await object_bucket(call, Action.OBJECT_WRITE)
    upload = await call.services.engine.get_upload(bucket, call.request.key, upload_id)
    return bucket, upload_id, upload


def _part_number(query: Mapping[str, str]) -> int:
    if "partNumber" not in query:
        raise InvalidArgument("This operation needs a partNumber.", ArgumentName="partNumber")
    return part_number(query["partNumber"])


def _in_progress(upload: UploadRecord) -> None:
    """A completed upload is kept for repeated completions only. Raises NoSuchUpload."""
    if upload.completed:
        raise NoSuchUpload(UploadId=upload.upload_id.hex())


async def upload_part(call: Call) -> None:
    request = call.request
    number = _part_number(request.query)
    bucket, upload_id, upload = await _open_upload(call)
    _in_progress(upload)
    body, stated = open_upload(call)
    algorithm = upload.checksum_algorithm
    if algorithm is not None and stated.algorithm not in (None, algorithm):
        raise InvalidRequest(
            f"Checksum Type mismatch occurred, expected checksum Type: {algorithm}, actual checksum Type: {stated.algorithm}"
        )
    stated.compute(algorithm)
    result = await call.services.engine.put_part(bucket, request.key, upload_id, number, body, stated.spec(body, _NONE))
    await call.respond(200, written_headers(result, with_type=False))


async def upload_part_copy(call: Call) -> None:
    request = call.request
    number = _part_number(request.query)
    bucket, upload_id, upload = await _open_upload(call)
    _in_progress(upload)
    source, info = await open_source(call)
    start, length = 0, info.size
    if b"x-amz-copy-source-range" in request.headers:
        start, length = source_range(request.headers[b"x-amz-copy-source-range"], info.size)
    if length > PUT_BYTES_MAX:
        raise EntityTooLarge(ProposedSize=length, MaxSizeAllowed=PUT_BYTES_MAX)
    verify, digests = computed(upload.checksum_algorithm)
    spec = PutSpec(attributes=_NONE, verify=verify, digests=digests)
    copying = call.services.engine.copy_part(source, info, start, length, bucket, request.key, upload_id, number, spec)
    await answer_when_done(call, copying, lambda xml, result: write_copied(xml, "CopyPartResult", result), [metadata.SEALED])


async def complete_upload(call: Call) -> None:
    request = call.request
    headers = request.headers
    bucket, upload_id, upload = await _open_upload(call)
    document, _ = await read_document(call, COMPLETE_BODY_BYTES_MAX, of_object=True)
    if not document:
        raise MalformedXML("You must specify at least one part")
    parts = complete_parts(document)
    condition = conditions.write_condition(headers)
    check_condition(call, bucket, request.key, condition)
    size = headers.get(b"x-amz-mp-object-size")
    if size is not None and not (size.isdigit() and len(size) <= 15):
        raise InvalidRequest("Value for x-amz-mp-object-size header is invalid.")
    completing = call.services.engine.complete_upload(
        bucket,
        request.key,
        upload_id,
        parts,
        condition=condition,
        expected_size=None if size is None else int(size),
        expected=checksums.expected_of_upload(headers, upload.checksum_type),
    )
    location = _location(call, bucket)
    await answer_when_done(
        call, completing, lambda xml, result: _write_completed(xml, bucket, request.key, location, result), [metadata.SEALED]
    )


def _location(call: Call, bucket: Bucket) -> str:
    base = call.services.endpoints.get(call.services.region) or "http://" + call.stream.head.authority.decode("latin-1")
    return f"{base.rstrip('/')}/{bucket.name}/{quote(call.request.key, safe='/')}"


def _write_completed(xml: Xml, bucket: Bucket, key: str, location: str, result: PutResult) -> None:
    xml.open("CompleteMultipartUploadResult", namespace=True)
    xml.text("Location", location)
    xml.text("Bucket", bucket.name)
    xml.text("Key", key)
    xml.text("ETag", f'"{result.etag}"')
    if result.checksum is not None:
        xml.text(checksums.XML_NAME[result.checksum.algorithm], checksums.encode(result.checksum))
        xml.text("ChecksumType", result.checksum.type)
    xml.close("CompleteMultipartUploadResult")


async def abort_upload(call: Call) -> None:
    upload_id = upload_id_of(call.request.query)
    bucket = await object_bucket(call, Action.OBJECT_WRITE)
    await call.services.engine.abort_upload(bucket, call.request.key, upload_id)
    await call.respond(204)


async def list_parts(call: Call) -> None:
    request = call.request
    query = request.query
    bucket, upload_id, upload = await _open_upload(call)
    _in_progress(upload)
    encode, limit = encoder_of(query), limit_of(query, "max-parts")
    after = limit_of(query, "part-number-marker", 2**31 - 1) if query.get("part-number-marker") else 0
    parts = await call.services.engine.list_parts(bucket, request.key, upload_id, after, limit + 1) if limit else ()
    page = parts[:limit]
    xml = Xml()
    xml.open("ListPartsResult", namespace=True)
    xml.text("Bucket", bucket.name)
    if encode is not str:
        xml.text("EncodingType", "url")
    xml.text("Key", encode(request.key))
    xml.text("UploadId", query["uploadId"])
    _write_people(xml, bucket, upload)
    xml.text("StorageClass", "STANDARD")
    xml.number("PartNumberMarker", after)
    xml.number("NextPartNumberMarker", page[-1].number if page else 0)
    xml.number("MaxParts", limit)
    xml.flag("IsTruncated", len(parts) > limit)
    _write_upload_checksum(xml, upload)
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
        xml.text("ChecksumAlgorithm", checksums.API_NAME[upload.checksum_algorithm])
    if upload.checksum_type is not None:
        xml.text("ChecksumType", upload.checksum_type)


async def list_uploads(call: Call) -> None:
    query = call.request.query
    bucket = await bucket_for(call, Action.OBJECT_LIST)
    encode, limit = encoder_of(query), limit_of(query, "max-uploads")
    key_marker, upload_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    page = UploadsPage((), ())
    if limit:
        page = await call.services.engine.list_uploads(
            UploadsQuery(
                bucket_id=bucket.bucket_id,
                prefix=query.get("prefix", ""),
                delimiter=query.get("delimiter", ""),
                key_marker=key_marker,
                upload_marker=_upload_marker(key_marker, upload_marker),
                limit=limit,
            )
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
    if len(text) != 32 or not _HEX.issuperset(text):
        raise InvalidArgument("Invalid uploadId marker", ArgumentName="upload-id-marker", ArgumentValue=text)
    return bytes.fromhex(text)
