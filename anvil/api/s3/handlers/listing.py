"""ListObjects, ListObjectsV2 and ListObjectVersions: one page of keys in byte order.

Sources: API Reference of the three operations. No bucket is versioned, so every key has the one version `null`.
Not here: what a page is (`operations/listing.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from anvil.api.operations import access, listing
from anvil.api.operations.integrity import API_NAME
from anvil.api.operations.listing import decode_token, encode_token
from anvil.api.operations.names import owner_id
from anvil.api.s3.call import Call
from anvil.api.s3.handlers.paging import encoder_of, flag_of, limit_of
from anvil.api.s3.metadata import iso_date
from anvil.api.s3.xml import Xml, escape
from anvil.base.errors import InvalidArgument
from anvil.model.identity import Bucket
from anvil.model.records import ListEntry, ListPage

Encoder = Callable[[str], str]


async def list_objects_v1(call: Call) -> None:
    query = call.request.query
    bucket = await access.listable(call, call.request.bucket, call.request.owner)
    encode, limit, marker = encoder_of(query), limit_of(query, "max-keys"), query.get("marker", "")
    page = await _page(call, bucket, marker, limit)
    xml = Xml()
    xml.open("ListBucketResult", namespace=True)
    _head(xml, call, bucket, encode)
    xml.text("Marker", encode(marker))
    # Without a delimiter the last key is the marker, and S3 says nothing more.
    if page.next_after is not None and query.get("delimiter"):
        xml.text("NextMarker", encode(page.next_after))
    _body(xml, bucket, page, limit, encode, owner=True)
    xml.close("ListBucketResult")
    await call.respond_xml(200, xml.bytes())


async def list_objects_v2(call: Call) -> None:
    query = call.request.query
    if query["list-type"] != "2":
        raise InvalidArgument("list-type must be 2.", ArgumentName="list-type", ArgumentValue=query["list-type"])
    bucket = await access.listable(call, call.request.bucket, call.request.owner)
    encode, limit = encoder_of(query), limit_of(query, "max-keys")
    owner = flag_of(query, "fetch-owner")
    token, start_after = query.get("continuation-token"), query.get("start-after", "")
    after = start_after if token is None else decode_token(token)
    page = await _page(call, bucket, after, limit)
    xml = Xml()
    xml.open("ListBucketResult", namespace=True)
    _head(xml, call, bucket, encode)
    if token is not None:
        xml.text("ContinuationToken", token)
    if page.next_after is not None:
        xml.text("NextContinuationToken", encode_token(page.next_after))
    if start_after:
        xml.text("StartAfter", encode(start_after))
    xml.number("KeyCount", len(page.entries) + len(page.prefixes))
    _body(xml, bucket, page, limit, encode, owner=owner)
    xml.close("ListBucketResult")
    await call.respond_xml(200, xml.bytes())


async def list_object_versions(call: Call) -> None:
    query = call.request.query
    bucket = await access.listable(call, call.request.bucket, call.request.owner)
    encode, limit = encoder_of(query), limit_of(query, "max-keys")
    marker, version = query.get("key-marker", ""), query.get("version-id-marker", "")
    if version and not marker:
        raise InvalidArgument(
            "A version-id marker cannot be specified without a key marker.",
            ArgumentName="version-id-marker",
            ArgumentValue=version,
        )
    page = await _page(call, bucket, marker, limit)
    xml = Xml()
    xml.open("ListVersionsResult", namespace=True)
    _head(xml, call, bucket, encode)
    xml.text("KeyMarker", encode(marker))
    xml.text("VersionIdMarker", version)
    if page.next_after is not None:
        xml.text("NextKeyMarker", encode(page.next_after))
        xml.text("NextVersionIdMarker", "null")
    _body(xml, bucket, page, limit, encode, owner=True, element="Version")
    xml.close("ListVersionsResult")
    await call.respond_xml(200, xml.bytes())


async def _page(call: Call, bucket: Bucket, after: str, limit: int) -> ListPage:
    query = call.request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    return await listing.page(call, bucket, prefix=prefix, delimiter=delimiter, after=after, limit=limit)


def _head(xml: Xml, call: Call, bucket: Bucket, encode: Encoder) -> None:
    query = call.request.query
    xml.text("Name", bucket.name)
    xml.text("Prefix", encode(query.get("prefix", "")))
    if query.get("delimiter"):
        xml.text("Delimiter", encode(query["delimiter"]))
    if encode is not str:
        xml.text("EncodingType", "url")


def _body(
    xml: Xml, bucket: Bucket, page: ListPage, limit: int, encode: Encoder, *, owner: bool, element: str = "Contents"
) -> None:
    xml.number("MaxKeys", limit)
    xml.flag("IsTruncated", page.next_after is not None)
    shown = _owner(bucket) if owner else ""
    for entry in page.entries:
        _write_entry(xml, entry, encode, shown, element)
    for prefix in page.prefixes:
        xml.open("CommonPrefixes")
        xml.text("Prefix", encode(prefix))
        xml.close("CommonPrefixes")


def _owner(bucket: Bucket) -> str:
    xml = Xml(prolog=False)
    xml.open("Owner")
    xml.text("ID", owner_id(bucket.tenant))
    xml.text("DisplayName", bucket.tenant.name)
    xml.close("Owner")
    return xml.bytes().decode("utf-8")


def _write_entry(xml: Xml, entry: ListEntry, encode: Encoder, owner: str, element: str) -> None:
    """One piece of text per entry: a page of 1,000 is written on the event loop."""
    version = "<VersionId>null</VersionId><IsLatest>true</IsLatest>" if element == "Version" else ""
    checksum = ""
    if entry.checksum is not None:
        name = API_NAME[entry.checksum.algorithm]
        checksum = f"<ChecksumAlgorithm>{name}</ChecksumAlgorithm><ChecksumType>{entry.checksum.type}</ChecksumType>"
    xml.raw(
        f"<{element}><Key>{escape(encode(entry.key))}</Key>{version}<LastModified>{iso_date(entry.modified_us)}</LastModified>"
        f"<ETag>&quot;{entry.etag}&quot;</ETag>{checksum}<Size>{entry.size}</Size>{owner}"
        f"<StorageClass>STANDARD</StorageClass></{element}>"
    )
