"""CopyObject, and what UploadPartCopy shares with it: naming, authorizing and judging the source.

Invariant: the source is authorized exactly as a GET of it by the same principal would be, before its conditions are judged.
The object named by the source may be in any bucket the principal can read, of its own tenant or public.
"""

from __future__ import annotations

from collections.abc import Mapping

from anvil.api.s3 import checksums, conditions, metadata
from anvil.api.s3.access import check_condition, find, object_bucket, source_bucket
from anvil.api.s3.call import Call
from anvil.api.s3.handlers.objects import refuse_version
from anvil.api.s3.longanswer import answer_when_done
from anvil.api.s3.request import check_key, decode
from anvil.api.s3.xml import Xml
from anvil.base.errors import InvalidArgument, InvalidRequest, InvalidURI, NotSupported
from anvil.base.limits import PUT_BYTES_MAX
from anvil.engine.types import ObjectInfo, PutResult, PutSpec, Verify
from anvil.model.identity import Action, Bucket
from anvil.model.records import Algorithm, Attributes, Checksum


async def open_source(call: Call) -> tuple[Bucket, ObjectInfo]:
    """The object named by `x-amz-copy-source`, seen, authorized, and its conditions judged.

    Raises InvalidArgument, NoSuchBucket, NoSuchKey, NoSuchVersion, AccessDenied, PreconditionFailed."""
    headers = call.request.headers
    name, key, version = parse_source(headers[b"x-amz-copy-source"])
    bucket = await source_bucket(call, name, key)
    info = await find(call, bucket, key, content=True, version=version)
    conditions.check_copy_source(headers, info)
    return bucket, info


def parse_source(value: bytes) -> tuple[str, str, str | None]:
    """(bucket, key, versionId) of `[/]bucket/key[?versionId=x]`, percent-encoded once. Raises InvalidArgument, NotSupported."""
    path, mark, query = value.partition(b"?")
    version = None
    if mark:
        if not query.startswith(b"versionId="):
            raise _bad_source(value)
        version = query[len(b"versionId=") :].decode("latin-1")
    if path.startswith(b"arn:"):
        raise NotSupported("Access points are not implemented.", Header="x-amz-copy-source")
    # Some SDKs encode the slash behind the bucket, too.
    try:
        bucket, _, key = decode(path).removeprefix("/").partition("/")
    except InvalidURI:
        raise _bad_source(value) from None
    if not bucket or not key:
        raise _bad_source(value)
    return bucket, check_key(key), version


def _bad_source(value: bytes) -> InvalidArgument:
    return InvalidArgument(
        "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        ArgumentName="x-amz-copy-source",
        ArgumentValue=value.decode("latin-1"),
    )


def computed(algorithm: Algorithm | None) -> tuple[Verify, frozenset[Algorithm]]:
    """`verify` and `digests` of a PutSpec for bytes that come from the store itself: nothing is stated, a checksum may be
    wanted."""
    if algorithm is None:
        return (lambda _digests: None), frozenset()
    return (lambda digests: Checksum(algorithm, digests[algorithm])), frozenset((algorithm,))


async def copy_object(call: Call) -> None:
    request = call.request
    headers = request.headers
    refuse_version(call)
    target = await object_bucket(call, Action.OBJECT_WRITE)
    source, info = await open_source(call)
    if info.size > PUT_BYTES_MAX:
        raise InvalidRequest(
            f"The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
        )
    replace = _replaces(headers)
    itself = source.bucket_id == target.bucket_id and info.key == request.key
    algorithm = _algorithm(headers, info)
    changed = replace or b"x-amz-website-redirect-location" in headers or b"x-amz-checksum-algorithm" in headers
    if itself and not (changed or b"x-amz-server-side-encryption" in headers or b"x-amz-storage-class" in headers):
        raise InvalidRequest(
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's "
            "metadata, storage class, website redirect location or encryption attributes."
        )
    verify, digests = computed(algorithm)
    condition = conditions.write_condition(headers)
    check_condition(call, target, request.key, condition)
    spec = PutSpec(attributes=_attributes(call, info, replace), verify=verify, digests=digests, condition=condition)
    answer: metadata.HeaderList = [metadata.SEALED]
    if info.is_null and b"?versionId=" in headers[b"x-amz-copy-source"]:
        answer.append((b"x-amz-copy-source-version-id", b"null"))
    copying = call.services.engine.copy_object(source, info, target, request.key, spec)
    await answer_when_done(call, copying, lambda xml, result: write_copied(xml, "CopyObjectResult", result), answer)


def write_copied(xml: Xml, root: str, result: PutResult) -> None:
    """CopyObjectResult and CopyPartResult."""
    xml.open(root, namespace=True)
    xml.text("LastModified", metadata.iso_date(result.modified_us))
    xml.text("ETag", f'"{result.etag}"')
    if result.checksum is not None:
        xml.text(checksums.XML_NAME[result.checksum.algorithm], checksums.encode(result.checksum))
        if root == "CopyObjectResult":
            xml.text("ChecksumType", result.checksum.type)
    xml.close(root)


def _replaces(headers: Mapping[bytes, bytes]) -> bool:
    directive = headers.get(b"x-amz-metadata-directive", b"COPY").upper()
    if directive not in (b"COPY", b"REPLACE"):
        raise InvalidArgument(
            "Unknown metadata directive.",
            ArgumentName="x-amz-metadata-directive",
            ArgumentValue=directive.decode("latin-1"),
        )
    return directive == b"REPLACE"


def _attributes(call: Call, info: ObjectInfo, replace: bool) -> Attributes:
    """The source's, or the request's. A website redirect is never copied (API Reference, CopyObject)."""
    stated = metadata.attributes(call.request)
    if replace:
        return stated
    kept = info.attributes
    return Attributes(
        content_type=kept.content_type,
        cache_control=kept.cache_control,
        content_disposition=kept.content_disposition,
        content_encoding=kept.content_encoding,
        content_language=kept.content_language,
        expires=kept.expires,
        website_redirect=stated.website_redirect,
        user=kept.user,
    )


def _algorithm(headers: Mapping[bytes, bytes], info: ObjectInfo) -> Algorithm | None:
    """The checksum of the copy: the one asked for, else the source's algorithm."""
    name = headers.get(b"x-amz-checksum-algorithm")
    if name is not None:
        return checksums.algorithm_named(name.decode("latin-1"), "x-amz-checksum-algorithm")
    return info.checksum.algorithm if info.checksum is not None else None
