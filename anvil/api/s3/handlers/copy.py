"""CopyObject, and what UploadPartCopy shows and is told in the same way: the source, the result.

Not here: which sources may be copied, and what becomes of them (`operations/objects.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from anvil.api.operations import access, objects
from anvil.api.operations.names import check_key
from anvil.api.operations.objects import Source
from anvil.api.s3 import checksums, conditions, metadata
from anvil.api.s3.call import Call
from anvil.api.s3.longanswer import answer_when_done
from anvil.api.s3.request import decode
from anvil.api.s3.xml import Xml
from anvil.base.errors import InvalidArgument, InvalidURI, NotSupported
from anvil.engine.types import PutResult
from anvil.model.records import Algorithm


async def open_source(call: Call) -> Source:
    """The object named by `x-amz-copy-source`, seen, authorized, and its conditions judged.

    Raises InvalidArgument, NoSuchBucket, NoSuchKey, NoSuchVersion, AccessDenied, PreconditionFailed."""
    headers = call.request.headers
    name, key, version = parse_source(headers[b"x-amz-copy-source"])
    source = await objects.open_source(call, name, key, version, call.request.source_owner)
    conditions.check_copy_source(headers, source.info)
    return source


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


async def copy_object(call: Call) -> None:
    request = call.request
    headers = request.headers
    access.refuse_version(request.key, request.version)
    target = await access.writable(call, request.bucket, request.key, request.owner)
    source = await open_source(call)
    objects.check_copied(source)
    replace, algorithm = _replaces(headers), _algorithm(headers)
    # New encryption or another storage class is nothing new here, but S3 takes an object onto itself for it.
    changed = b"x-amz-server-side-encryption" in headers or b"x-amz-storage-class" in headers
    condition = conditions.write_condition(headers)
    stated = metadata.attributes(request)
    answer: metadata.HeaderList = [metadata.SEALED]
    if source.info.is_null and b"?versionId=" in headers[b"x-amz-copy-source"]:
        answer.append((b"x-amz-copy-source-version-id", b"null"))
    copying = objects.copy(
        call,
        source,
        target,
        request.key,
        stated,
        replace=replace,
        algorithm=algorithm,
        changed=changed,
        condition=condition,
    )
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


def _algorithm(headers: Mapping[bytes, bytes]) -> Algorithm | None:
    """The checksum asked for."""
    name = headers.get(b"x-amz-checksum-algorithm")
    return None if name is None else checksums.algorithm_named(name.decode("latin-1"), "x-amz-checksum-algorithm")
