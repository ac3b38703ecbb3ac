"""An engine in memory for tests of the S3 API: S3's rules as far as the API relies on them. The real engine has its own tests."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import zlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from anvil.base.errors import (
    AnvilError,
    BadDigest,
    EntityTooSmall,
    IncompleteBody,
    InvalidPart,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
)
from anvil.base.limits import PART_BYTES_MIN
from anvil.engine.ports import Body
from anvil.engine.types import CompletePart, Extent, ObjectInfo, PutResult, PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import (
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    ListEntry,
    ListPage,
    ListQuery,
    Owner,
    PartRecord,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
)

NOW_US = 1_700_000_000_500_000  # Tue, 14 Nov 2023 22:13:20.5 GMT


class Stored(msgspec.Struct):
    info: ObjectInfo
    data: bytes


_HASHES = {Algorithm.MD5: hashlib.md5, Algorithm.SHA1: hashlib.sha1, Algorithm.SHA256: hashlib.sha256}


def digest(algorithm: Algorithm, data: bytes) -> bytes:
    if algorithm in _HASHES:
        return _HASHES[algorithm](data).digest()
    assert algorithm is Algorithm.CRC32, "the fakes know no other CRC"
    return zlib.crc32(data).to_bytes(4, "big")


class FakeEngine:
    """Objects by (bucket id, key). `fail`: raised by the next call of that name. `read_fails_after`: bytes until reads break."""

    def __init__(self) -> None:
        self.objects: dict[tuple[int, str], Stored] = {}
        self.uploads: dict[bytes, UploadRecord] = {}
        self.parts: dict[bytes, dict[int, tuple[PartRecord, bytes]]] = {}
        self.read_fails_after: int | None = None
        self.error: Exception | None = None
        self.closed_readers = 0
        self.piece = 5
        self.at_hand_bytes = 0  # what is no longer than this need not be waited for
        self.copies: list[str] = []
        self.gate: asyncio.Event | None = None
        self.at_the_gate = False
        self._ids = itertools.count(1)

    # -- objects
    async def _receive(self, body: Body, spec: PutSpec) -> tuple[bytes, Checksum | None]:
        buffer = bytearray(body.length)
        if await body.readinto(memoryview(buffer)) != body.length:
            raise IncompleteBody()
        return bytes(buffer), self._verify(bytes(buffer), spec)

    def _verify(self, data: bytes, spec: PutSpec) -> Checksum | None:
        return spec.verify({algorithm: digest(algorithm, data) for algorithm in {*spec.digests, Algorithm.MD5}})

    def _judge(self, bucket: Bucket, key: str, condition: Condition) -> None:
        found = self.objects.get((bucket.bucket_id, key))
        if condition.if_match is not None:
            if found is None:
                raise NoSuchKey()
            if "*" not in condition.if_match and found.info.etag not in condition.if_match:
                raise PreconditionFailed(Condition="If-Match")
        if condition.if_none_match is not None and found is not None:
            raise PreconditionFailed(Condition="If-None-Match")

    def store(
        self,
        bucket: Bucket,
        key: str,
        data: bytes,
        attributes: Attributes | None = None,
        checksum: Checksum | None = None,
        parts: tuple[PartRecord, ...] = (),
        etag: str | None = None,
    ) -> PutResult:
        etag = etag or hashlib.md5(data).hexdigest()
        version = next(self._ids).to_bytes(16, "big")
        info = ObjectInfo(
            key=key,
            size=len(data),
            etag=etag,
            modified_us=NOW_US,
            version_id=version,
            is_null=True,
            attributes=attributes or Attributes(),
            checksum=checksum,
            part_count=len(parts),
            extents=(Extent(0, len(data), None, Owner(bucket.bucket_id, key, version)),),
            parts=parts,
        )
        self.objects[bucket.bucket_id, key] = Stored(info, data)
        return PutResult(etag, version, NOW_US, len(data), checksum)

    def at_hand(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> memoryview | None:
        if info.size > self.at_hand_bytes:
            return None
        return memoryview(self.objects[bucket.bucket_id, info.key].data)[start : start + length]

    async def put_object(self, bucket: Bucket, key: str, body: Body, spec: PutSpec) -> PutResult:
        if self.error is not None:
            raise self.error
        data, checksum = await self._receive(body, spec)
        self._judge(bucket, key, spec.condition)
        return self.store(bucket, key, data, spec.attributes, checksum)

    async def stat(self, bucket: Bucket, key: str) -> ObjectInfo:
        info = await self.open(bucket, key)
        return msgspec.structs.replace(info, extents=(), parts=())

    async def open(self, bucket: Bucket, key: str) -> ObjectInfo:
        if self.error is not None:
            raise self.error
        found = self.objects.get((bucket.bucket_id, key))
        if found is None:
            raise NoSuchKey()
        return found.info

    async def read(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> AsyncIterator[memoryview]:
        data = memoryview(self.objects[bucket.bucket_id, info.key].data)[start : start + length]
        sent = 0
        try:
            while sent < length:
                if self.read_fails_after is not None and sent >= self.read_fails_after:
                    raise self.error_of_reads
                yield data[sent : sent + self.piece]
                sent += self.piece
        finally:
            self.closed_readers += 1

    error_of_reads: Exception = AnvilError()

    async def delete_object(self, bucket: Bucket, key: str, condition: Condition) -> bool:
        if self.error is not None:
            raise self.error
        self._judge(bucket, key, condition)
        return self.objects.pop((bucket.bucket_id, key), None) is not None

    async def copy_object(self, source: Bucket, info: ObjectInfo, target: Bucket, key: str, spec: PutSpec) -> PutResult:
        if self.gate is not None:
            self.at_the_gate = True
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.copies.append(f"{source.name}/{info.key} -> {target.name}/{key}")
        data = self.objects[source.bucket_id, info.key].data
        self._judge(target, key, spec.condition)
        return self.store(target, key, data, spec.attributes, self._verify(data, spec))

    # -- listing, straight from the definition
    async def list_objects(self, query: ListQuery) -> ListPage:
        entries: list[ListEntry] = []
        prefixes: list[str] = []
        last = None
        keys = sorted((key for owner, key in self.objects if owner == query.bucket_id), key=lambda key: key.encode())
        for key in keys:
            if not key.startswith(query.prefix):
                continue
            shown = key
            if query.delimiter and (at := key.find(query.delimiter, len(query.prefix))) >= 0:
                shown = key[: at + len(query.delimiter)]
            if shown.encode() <= query.after.encode() or (prefixes and prefixes[-1] == shown):
                continue
            if len(entries) + len(prefixes) == query.limit:
                return ListPage(tuple(entries), tuple(prefixes), last)
            last = shown
            if shown != key:
                prefixes.append(shown)
            else:
                info = self.objects[query.bucket_id, key].info
                entries.append(ListEntry(key, info.size, info.etag, info.modified_us, info.checksum))
        return ListPage(tuple(entries), tuple(prefixes))

    # -- multipart
    async def create_upload(
        self,
        bucket: Bucket,
        key: str,
        attributes: Attributes,
        owner: str,
        algorithm: Algorithm | None,
        type: ChecksumType | None,
    ) -> UploadRecord:
        upload = UploadRecord(
            next(self._ids).to_bytes(16, "big"), bucket.bucket_id, key, NOW_US, attributes, owner, algorithm, type
        )
        self.uploads[upload.upload_id] = upload
        self.parts[upload.upload_id] = {}
        return upload

    async def get_upload(self, bucket: Bucket, key: str, upload_id: bytes) -> UploadRecord:
        upload = self.uploads.get(upload_id)
        if upload is None or (upload.bucket_id, upload.key) != (bucket.bucket_id, key):
            raise NoSuchUpload()
        return upload

    def _add_part(self, upload_id: bytes, number: int, data: bytes, checksum: Checksum | None) -> PutResult:
        etag = hashlib.md5(data).hexdigest()
        self.parts[upload_id][number] = (PartRecord(number, len(data), etag, NOW_US, checksum), data)
        return PutResult(etag, b"", NOW_US, len(data), checksum)

    async def put_part(self, bucket: Bucket, key: str, upload_id: bytes, number: int, body: Body, spec: PutSpec) -> PutResult:
        data, checksum = await self._receive(body, spec)
        return self._add_part(upload_id, number, data, checksum)

    async def copy_part(
        self,
        source: Bucket,
        info: ObjectInfo,
        start: int,
        length: int,
        bucket: Bucket,
        key: str,
        upload_id: bytes,
        number: int,
        spec: PutSpec,
    ) -> PutResult:
        data = self.objects[source.bucket_id, info.key].data[start : start + length]
        return self._add_part(upload_id, number, data, self._verify(data, spec))

    async def list_parts(self, bucket: Bucket, key: str, upload_id: bytes, after: int, limit: int) -> tuple[PartRecord, ...]:
        parts = self.parts[upload_id]
        return tuple(parts[number][0] for number in sorted(parts) if number > after)[:limit]

    async def complete_upload(
        self,
        bucket: Bucket,
        key: str,
        upload_id: bytes,
        parts: Sequence[CompletePart],
        *,
        condition: Condition,
        expected_size: int | None,
        expected: Checksum | None,
    ) -> PutResult:
        upload = await self.get_upload(bucket, key, upload_id)
        stored = self.parts[upload_id]
        chosen = []
        for part in parts:
            if part.number not in stored or stored[part.number][0].etag != part.etag:
                raise InvalidPart(PartNumber=part.number)
            record = stored[part.number][0]
            if part.checksum is not None and (record.checksum is None or record.checksum.value != part.checksum):
                raise InvalidPart(PartNumber=part.number)
            chosen.append(stored[part.number])
        if any(record.size < PART_BYTES_MIN for record, _ in chosen[:-1]):
            raise EntityTooSmall()
        data = b"".join(data for _, data in chosen)
        etag = hashlib.md5(b"".join(bytes.fromhex(record.etag) for record, _ in chosen)).hexdigest() + f"-{len(chosen)}"
        checksum = None
        algorithm = upload.checksum_algorithm
        if algorithm is not None and upload.checksum_type is ChecksumType.COMPOSITE:
            joined = b"".join(record.checksum.value for record, _ in chosen if record.checksum)
            checksum = Checksum(algorithm, digest(algorithm, joined), ChecksumType.COMPOSITE, len(chosen))
        elif algorithm is not None:
            checksum = Checksum(algorithm, digest(algorithm, data))
        if expected is not None and (checksum is None or expected.value != checksum.value):
            raise BadDigest()
        self._judge(bucket, key, condition)
        self.uploads[upload_id] = msgspec.structs.replace(upload, completed=True)
        return self.store(bucket, key, data, upload.attributes, checksum, tuple(record for record, _ in chosen), etag)

    async def abort_upload(self, bucket: Bucket, key: str, upload_id: bytes) -> None:
        await self.get_upload(bucket, key, upload_id)
        del self.uploads[upload_id]

    async def list_uploads(self, query: UploadsQuery) -> UploadsPage:
        rows = sorted((upload.key, upload.upload_id) for upload in self.uploads.values() if upload.bucket_id == query.bucket_id)
        after = (query.key_marker, query.upload_marker or b"\xff" * 17) if query.key_marker else ("", b"")
        rows = [row for row in rows if row > after and row[0].startswith(query.prefix)]
        page, more = rows[: query.limit], len(rows) > query.limit
        return UploadsPage(
            tuple(self.uploads[upload_id] for _, upload_id in page),
            (),
            page[-1][0] if more else None,
            page[-1][1] if more else None,
        )
