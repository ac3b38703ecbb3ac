"""Put, Get, Head, Delete of one object, and GetObjectAttributes.

Invariant: the status of a GET is sent only after its first bytes were read and verified, so that damage found there is an XML
error; damage found later cuts the connection, never pads or shortens quietly.
"""

from __future__ import annotations

from contextlib import aclosing

from anvil.api.operations import access, objects
from anvil.api.operations.ranges import Selection, by_part, whole
from anvil.api.s3 import checksums, conditions, metadata, ranges
from anvil.api.s3.call import Call
from anvil.api.s3.handlers.paging import limit_of
from anvil.api.s3.payload import open_upload
from anvil.api.s3.xml import Xml
from anvil.base.errors import InvalidArgument, InvalidRequest
from anvil.base.limits import LIST_KEYS_MAX
from anvil.engine.types import ObjectInfo, PutResult
from anvil.model.identity import Bucket
from anvil.model.records import PartRecord

_ATTRIBUTES = frozenset(("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"))


async def put_object(call: Call) -> None:
    request = call.request
    if "partNumber" in request.query:
        raise InvalidArgument("A part needs an uploadId.", ArgumentName="uploadId")
    access.refuse_version(request.key, request.version)
    bucket = await access.writable(call, request.bucket, request.key, request.owner)
    attributes = metadata.attributes(request)
    condition = conditions.write_condition(request.headers)
    access.check_condition(call, bucket, request.key, condition)  # before the payload is judged by its head
    body, stated = open_upload(call)
    result = await objects.put(call, bucket, request.key, body, stated, attributes, condition)
    await call.respond(200, written_headers(result))


def written_headers(result: PutResult, *, with_type: bool = True) -> metadata.HeaderList:
    return [
        (b"etag", b'"%s"' % result.etag.encode("ascii")),
        metadata.SEALED,
        *checksums.headers_of(result.checksum, with_type=with_type),
    ]


async def head_object(call: Call) -> None:
    await _read(call, head=True)


async def get_object(call: Call) -> None:
    await _read(call, head=False)


async def _read(call: Call, *, head: bool) -> None:
    request = call.request
    query, headers = request.query, request.headers
    bucket = await access.readable(call, request.bucket, request.key, request.owner)
    version = request.version
    part = ranges.part_number(query["partNumber"]) if "partNumber" in query else None
    if part is not None and b"range" in headers:
        raise InvalidRequest("Cannot specify both Range header and partNumber query parameter")
    info = await access.find(call, bucket, request.key, content=not head or part is not None, version=version)
    if conditions.not_modified(headers, info):
        await call.respond(304, metadata.not_modified_headers(info))
        return
    if part is not None:
        chosen = by_part(part, info)
    elif b"range" in headers and conditions.range_applies(headers, info):
        chosen = ranges.by_range(headers[b"range"], info)
    else:
        chosen = whole(info)
    answer = metadata.object_headers(info)
    if version is not None:
        answer.append((b"x-amz-version-id", b"null"))
    if chosen.partial:
        answer.append((b"content-range", ranges.content_range(chosen, info.size)))
    if part is not None and info.part_count:
        answer.append((b"x-amz-mp-parts-count", b"%d" % info.part_count))
    if chosen.checksum is not None and checksums.check_mode(headers):
        answer += checksums.headers_of(chosen.checksum)
    if query:
        answer = metadata.override(answer, query, anonymous=call.principal.anonymous)
    status = 206 if chosen.partial else 200
    if head:
        answer.append((b"content-length", b"%d" % chosen.length))
        await call.respond(status, answer)
    elif chosen.length == 0:
        await call.respond(status, answer)
    elif (body := objects.at_hand(call, bucket, info, chosen)) is not None:
        await call.respond(status, answer, body)
    else:
        await _send(call, bucket, info, chosen, answer)


async def _send(call: Call, bucket: Bucket, info: ObjectInfo, chosen: Selection, headers: metadata.HeaderList) -> None:
    stream, begun = call.stream, False
    async with aclosing(objects.read(call, bucket, info, chosen)) as views:
        async for view in views:
            if not begun:
                call.start(206 if chosen.partial else 200, headers, chosen.length)
                begun = True
            await stream.write(view)
    await stream.finish()


async def delete_object(call: Call) -> None:
    request = call.request
    access.refuse_version(request.key, request.version)
    bucket = await access.deletable(call, request.bucket, request.key, request.owner)
    await objects.delete(call, bucket, request.key, conditions.write_condition(request.headers, delete=True))
    await call.respond(204)


async def get_object_attributes(call: Call) -> None:
    """API Reference, GetObjectAttributes. Parts are listed one by one only where they have checksums, as S3 does."""
    request = call.request
    bucket = await access.readable(call, request.bucket, request.key, request.owner)
    wanted = {name.strip() for name in (request.text(b"x-amz-object-attributes") or "").split(",") if name.strip()}
    if not wanted or not wanted <= _ATTRIBUTES:
        raise InvalidArgument("Invalid attribute name specified.", ArgumentName="x-amz-object-attributes")
    paging = {name: request.text(name.encode()) or "" for name in ("x-amz-max-parts", "x-amz-part-number-marker")}
    limit = limit_of(paging, "x-amz-max-parts", LIST_KEYS_MAX)
    after = limit_of(paging, "x-amz-part-number-marker", 2**31 - 1) if paging["x-amz-part-number-marker"] else 0
    version = request.version
    info = await access.find(call, bucket, request.key, content=True, version=version)
    if conditions.not_modified(request.headers, info):
        await call.respond(304, metadata.not_modified_headers(info))
        return
    xml = Xml()
    xml.open("GetObjectAttributesResponse", namespace=True)
    if "ETag" in wanted:
        xml.text("ETag", info.etag)
    if "Checksum" in wanted and info.checksum is not None:
        xml.open("Checksum")
        xml.text(checksums.XML_NAME[info.checksum.algorithm], checksums.encode(info.checksum))
        xml.text("ChecksumType", info.checksum.type)
        xml.close("Checksum")
    if "ObjectParts" in wanted and info.part_count:
        _write_parts(xml, info, after, limit)
    if "StorageClass" in wanted:
        xml.text("StorageClass", "STANDARD")
    if "ObjectSize" in wanted:
        xml.number("ObjectSize", info.size)
    xml.close("GetObjectAttributesResponse")
    headers = [(b"last-modified", metadata.http_date(info.modified_us // 1_000_000))]
    if version is not None:
        headers.append((b"x-amz-version-id", b"null"))
    await call.respond_xml(200, xml.bytes(), headers)


def _write_parts(xml: Xml, info: ObjectInfo, after: int, limit: int) -> None:
    xml.open("ObjectParts")
    if info.checksum is not None:
        rest = [part for part in info.parts if part.number > after]
        page = rest[:limit]
        xml.number("PartNumberMarker", after)
        xml.number("NextPartNumberMarker", page[-1].number if page else 0)
        xml.number("MaxParts", limit)
        xml.flag("IsTruncated", len(rest) > limit > 0)
        for part in page:
            _write_part(xml, part)
    xml.number("PartsCount", info.part_count)
    xml.close("ObjectParts")


def _write_part(xml: Xml, part: PartRecord) -> None:
    xml.open("Part")
    xml.number("PartNumber", part.number)
    xml.number("Size", part.size)
    if part.checksum is not None:
        xml.text(checksums.XML_NAME[part.checksum.algorithm], checksums.encode(part.checksum))
    xml.close("Part")
