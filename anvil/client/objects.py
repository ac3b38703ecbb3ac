"""`client.objects`: objects, their listings, and their transfer. Not here: how transfers work (`upload.py`, `download.py`)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from anvil.api.grpc.proto import object_pb2
from anvil.base import limits
from anvil.client.calls import Calls
from anvil.client.convert import (
    ALGORITHMS,
    attributes_message,
    checksum_of,
    object_of,
    page_of,
    read_conditions,
    time_of,
    write_conditions,
)
from anvil.client.download import Downloader, ObjectStream
from anvil.client.multipart import Multipart
from anvil.client.sources import Seekable, Upload, open_source
from anvil.client.types import (
    Ask,
    Attributes,
    ByteRange,
    ChecksumAlgorithm,
    CopyResult,
    Download,
    ListPage,
    ObjectInfo,
    ObjectSummary,
    Prefix,
    Progress,
    PutResult,
    ReadConditions,
    TransferOptions,
    WriteConditions,
)
from anvil.client.upload import Uploader

__all__ = ["Objects"]


class Objects:
    """All raise ClientError: NoSuchKey, PermissionMissing, PreconditionFailed, TransferDamaged, Unreachable and so on."""

    def __init__(self, calls: Calls, options: TransferOptions) -> None:
        self._calls = calls
        self._options = options
        self.multipart = Multipart(calls)

    # -- up ------------------------------------------------------------------------------------------------------------------

    async def put(
        self,
        bucket: str,
        key: str,
        source: Upload,
        *,
        size: int | None = None,
        attributes: Attributes | None = None,
        conditions: WriteConditions | None = None,
        progress: Progress | None = None,
    ) -> PutResult:
        """Stores bytes or a file of up to 5 GiB with one PutObject, so that the ETag is the MD5. A stream of unknown length, or a long
        one, goes up in parts like `upload`, since a call must say its size first. `size`: of a stream, where it is known."""
        opened = open_source(source, size)
        try:
            uploader = Uploader(self._calls, bucket, key, attributes, conditions, self._options, progress)
            return await (uploader.put(opened) if isinstance(opened, Seekable) else uploader.serial(opened))
        finally:
            opened.close()

    async def upload(
        self,
        bucket: str,
        key: str,
        source: Upload,
        *,
        size: int | None = None,
        attributes: Attributes | None = None,
        conditions: WriteConditions | None = None,
        progress: Progress | None = None,
    ) -> PutResult:
        """The same for any size: from `TransferOptions.multipart_bytes` on in parts, several at a time, each sent again where it broke. An
        upload that fails or is cancelled is aborted."""
        opened = open_source(source, size)
        try:
            uploader = Uploader(self._calls, bucket, key, attributes, conditions, self._options, progress)
            return await (uploader.seekable(opened) if isinstance(opened, Seekable) else uploader.serial(opened))
        finally:
            opened.close()

    # -- down ----------------------------------------------------------------------------------------------------------------

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        range: ByteRange | None = None,
        part_number: int | None = None,
        version_id: str = "",
        conditions: ReadConditions | None = None,
    ) -> ObjectStream:
        """Begins to read an object, a range of it, or one of its parts. Raises NoSuchKey, InvalidRange, NotModified."""
        if range is not None and part_number is not None:
            raise ValueError("either a range or a part")
        down = Downloader(self._calls, bucket, key, version_id, conditions, self._options, None)
        return ObjectStream(await down.open(range, part_number), f"{bucket}/{key}")

    async def download(
        self,
        bucket: str,
        key: str,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        version_id: str = "",
        conditions: ReadConditions | None = None,
        progress: Progress | None = None,
        begun: Callable[[ObjectInfo], None] | None = None,
    ) -> Download:
        """A whole object into a file. A path: from `TransferOptions.ranged_bytes` on in ranges, several at a time, and nothing is seen
        under the name before all of it is there and verified. A binary file object: in order. `begun` is told what the object is
        before its bytes come."""
        down = Downloader(self._calls, bucket, key, version_id, conditions, self._options, progress, begun)
        if isinstance(target, (str, os.PathLike)):
            return await down.into_path(Path(target))
        return await down.into_file(target)

    # -- the rest ------------------------------------------------------------------------------------------------------------

    async def head(self, bucket: str, key: str, *, version_id: str = "", conditions: ReadConditions | None = None) -> ObjectInfo:
        request = object_pb2.HeadObjectRequest(
            bucket=bucket, key=key, version_id=version_id, conditions=read_conditions(conditions)
        )
        ask = Ask("object:read", f"{bucket}/{key}")
        return object_of(
            (await self._calls.unary("ObjectService/HeadObject", request, object_pb2.HeadObjectResponse, ask)).object
        )

    async def delete(self, bucket: str, key: str, *, version_id: str = "", if_match: tuple[str, ...] = ()) -> None:
        """Also where there was none."""
        conditions = write_conditions(WriteConditions(if_match=if_match)) if if_match else None
        request = object_pb2.DeleteObjectRequest(bucket=bucket, key=key, version_id=version_id, conditions=conditions)
        ask = Ask("object:delete", f"{bucket}/{key}", repeatable=not if_match)
        await self._calls.unary("ObjectService/DeleteObject", request, object_pb2.DeleteObjectResponse, ask)

    async def list_page(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> ListPage:
        """One page, of at most 1,000 objects and prefixes together."""
        request = object_pb2.ListObjectsRequest(
            bucket=bucket,
            prefix=prefix,
            delimiter=delimiter,
            start_after="" if page_token else start_after,
            page_size=page_size,
            page_token=page_token,
        )
        ask = Ask("object:list", bucket)
        return page_of(await self._calls.unary("ObjectService/ListObjects", request, object_pb2.ListObjectsResponse, ask))

    async def list(
        self, bucket: str, prefix: str = "", *, delimiter: str = "", start_after: str = "", page_size: int = 0
    ) -> AsyncIterator[ObjectSummary | Prefix]:
        """All objects under a prefix in byte order of their keys, with what is common up to the delimiter in its place."""
        token = ""
        while True:
            page = await self.list_page(
                bucket, prefix, delimiter=delimiter, start_after=start_after, page_size=page_size, page_token=token
            )
            items: list[ObjectSummary | Prefix] = [*page.objects, *page.prefixes]
            for one in sorted(items, key=_name):
                yield one
            token = page.next_page_token
            if not token:
                return

    async def list_keys(self, bucket: str, prefix: str = "") -> AsyncIterator[ObjectSummary]:
        """All objects under a prefix, however deep."""
        async for one in self.list(bucket, prefix):
            if isinstance(one, ObjectSummary):
                yield one

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        source_version_id: str = "",
        source_conditions: ReadConditions | None = None,
        attributes: Attributes | None = None,
        checksum_algorithm: ChecksumAlgorithm | None = None,
        conditions: WriteConditions | None = None,
    ) -> CopyResult:
        """Lets the server copy an object of up to 5 GiB. `attributes` None: the source's."""
        request = object_pb2.CopyObjectRequest(
            source=_copy_source(source_bucket, source_key, source_version_id, source_conditions),
            bucket=bucket,
            key=key,
            replace_attributes=attributes is not None,
            attributes=attributes_message(attributes),
            checksum_algorithm=ALGORITHMS[checksum_algorithm] if checksum_algorithm is not None else None,
            conditions=write_conditions(conditions),
        )
        ask = Ask(
            "object:read and object:write",
            f"{source_bucket}/{source_key} and {bucket}/{key}",
            repeatable=conditions is None,
            timeout_s=limits.CLIENT_LONG_CALL_S,
        )
        answer = await self._calls.unary("ObjectService/CopyObject", request, object_pb2.CopyObjectResponse, ask)
        return CopyResult(answer.etag, answer.version_id, checksum_of(answer.checksum), time_of(answer.modified_at))

    async def copy_large(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        attributes: Attributes | None = None,
        progress: Progress | None = None,
    ) -> CopyResult:
        """The same for any size: above 5 GiB part by part."""
        info = await self.head(source_bucket, source_key)
        if info.size <= limits.PUT_BYTES_MAX:
            done = await self.copy(source_bucket, source_key, bucket, key, attributes=attributes)
            if progress is not None:
                progress(info.size)
            return done
        uploader = Uploader(self._calls, bucket, key, attributes, None, self._options, progress)
        made = await uploader.copied(_copy_source(source_bucket, source_key, "", None), info)
        return CopyResult(made.etag, made.version_id, made.checksum, made.modified_at)


def _name(item: ObjectSummary | Prefix) -> bytes:
    return (item.key if isinstance(item, ObjectSummary) else item.prefix).encode()


def _copy_source(bucket: str, key: str, version_id: str, conditions: ReadConditions | None) -> object_pb2.CopySource:
    return object_pb2.CopySource(bucket=bucket, key=key, version_id=version_id, conditions=read_conditions(conditions))
