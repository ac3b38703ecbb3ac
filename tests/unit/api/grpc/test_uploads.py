"""ObjectService: multipart uploads. What is expected is what S3 documents for the operation of the same name."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pytest

from anvil.api.grpc.proto import object_pb2 as pb
from anvil.base import errors as e
from anvil.base.limits import MIB
from tests.unit.api.fakes import ACME, app_of
from tests.unit.api.grpc.desk import Desk

FIRST, LAST = b"a" * (5 * MIB), b"last"
UNKNOWN: Any = 99


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def initiate(desk: Desk, **more: Any) -> Any:
    return desk.ask("InitiateMultipartUpload", pb.InitiateMultipartUploadRequest(bucket="bucket", key="key", **more))


def named(upload_id: str, **more: Any) -> dict[str, Any]:
    return {"bucket": "bucket", "key": "key", "upload_id": upload_id} | more


def complete(desk: Desk, upload_id: str, *parts: tuple[int, str], **more: Any) -> Any:
    listed = [pb.CompletedPart(number=number, etag=etag) for number, etag in parts]
    return desk.ask("CompleteMultipartUpload", pb.CompleteMultipartUploadRequest(**named(upload_id, parts=listed, **more)))


@pytest.mark.parametrize(
    ("asked", "algorithm", "kind"),
    [
        ({}, 0, 0),
        ({"checksum_algorithm": 1}, 1, pb.CHECKSUM_TYPE_COMPOSITE),
        ({"checksum_algorithm": 1, "checksum_type": 1}, 1, pb.CHECKSUM_TYPE_FULL_OBJECT),
        ({"checksum_algorithm": 3}, 3, pb.CHECKSUM_TYPE_FULL_OBJECT),
        ({"checksum_algorithm": 5}, 5, pb.CHECKSUM_TYPE_COMPOSITE),
    ],
)
def test_checksums_of_uploads(desk: Desk, asked: dict[str, Any], algorithm: int, kind: int) -> None:
    answer = initiate(desk, **asked)
    assert (answer.checksum_algorithm, answer.checksum_type) == (algorithm, kind)
    assert len(answer.upload_id) == 32


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"checksum_type": 1}, e.InvalidRequest),
        ({"checksum_algorithm": 3, "checksum_type": 2}, e.InvalidRequest),
        ({"checksum_algorithm": 5, "checksum_type": 1}, e.InvalidRequest),
        ({"checksum_algorithm": UNKNOWN}, e.InvalidArgument),
        ({"checksum_algorithm": 1, "checksum_type": UNKNOWN}, e.InvalidArgument),
        ({"attributes": pb.Attributes(content_type="\n")}, e.InvalidArgument),
    ],
)
def test_uploads_that_are_refused(desk: Desk, asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        initiate(desk, **asked)
    assert not desk.engine.uploads


def test_parts_become_an_object(desk: Desk) -> None:
    upload_id = initiate(desk, checksum_algorithm=1, attributes=pb.Attributes(content_type="a/b")).upload_id
    first = desk.put_part(upload_id, 1, FIRST)  # computed, as the upload asks for it
    last = desk.put_part(upload_id, 3, LAST, checksum_algorithm="CHECKSUM_ALGORITHM_CRC32", trailer=crc(LAST))
    assert (first.etag, first.checksum.value) == (hashlib.md5(FIRST).hexdigest(), crc(FIRST))
    assert last.checksum.value == crc(LAST)
    listed = desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id)))
    assert [(part.number, part.size, part.etag, part.checksum.value) for part in listed.parts] == [
        (1, len(FIRST), first.etag, crc(FIRST)),
        (3, 4, last.etag, crc(LAST)),
    ]
    assert not listed.truncated
    whole = crc(crc(FIRST) + crc(LAST))
    said = pb.Checksum(algorithm=1, value=whole, type="CHECKSUM_TYPE_COMPOSITE", parts=2)
    answer = complete(desk, upload_id, (1, first.etag), (3, f'"{last.etag}"'), checksum=said, size=len(FIRST) + 4)
    assert answer.checksum == said and answer.etag.endswith("-2") and answer.version_id == "null"
    info = desk.ask("HeadObject", pb.HeadObjectRequest(bucket="bucket", key="key")).object
    assert (info.size, info.attributes.content_type, info.part_count) == (len(FIRST) + 4, "a/b", 2)
    # A repeated completion is answered; everything else is over.
    complete(desk, upload_id, (1, first.etag), (3, last.etag))
    for ask in (
        lambda: desk.put_part(upload_id, 2, LAST),
        lambda: desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id))),
    ):
        with pytest.raises(e.NoSuchUpload):
            ask()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"number": 0}, e.InvalidArgument),
        ({"number": -1}, e.InvalidArgument),
        ({"number": 10_001}, e.InvalidArgument),
        ({"upload_id": "x"}, e.NoSuchUpload),
        ({"upload_id": "0" * 32}, e.NoSuchUpload),
        ({"upload_id": ""}, e.NoSuchUpload),
        ({"size": None}, e.MissingContentLength),
        ({"checksum_algorithm": "CHECKSUM_ALGORITHM_SHA1"}, e.InvalidRequest),
        ({"checksum": pb.Checksum(algorithm=1, value=bytes(4))}, e.BadDigest),
        ({"md5": bytes(16)}, e.BadDigest),
        ({"key": "other"}, e.NoSuchUpload),
        ({"trailer": crc(LAST)}, e.InvalidRequest),  # whose algorithm the header does not name
    ],
)
def test_parts_that_are_refused(desk: Desk, more: dict[str, Any], error: type[Exception]) -> None:
    upload_id = initiate(desk, checksum_algorithm=1).upload_id
    fields = {"upload_id": upload_id, "number": 1} | more
    with pytest.raises(e.AnvilError) as caught:
        desk.put_part(fields.pop("upload_id"), fields.pop("number"), LAST, **fields)
    assert type(caught.value) is error
    assert desk.engine.parts[bytes.fromhex(upload_id)] == {}


def test_pages_of_parts(desk: Desk) -> None:
    upload_id = initiate(desk).upload_id
    for number in (1, 2, 3):
        desk.put_part(upload_id, number, LAST)
    page = desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id, page_size=2)))
    assert ([part.number for part in page.parts], page.truncated) == ([1, 2], True)
    page = desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id, after=2)))
    assert ([part.number for part in page.parts], page.truncated) == ([3], False)
    for field in ({"after": -1}, {"page_size": -1}):
        with pytest.raises(e.InvalidArgument):
            desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id, **field)))


@pytest.mark.parametrize(
    ("parts", "more", "error"),
    [
        ([], {}, e.InvalidRequest),
        ([(0, "a")], {}, e.InvalidArgument),
        ([(0, "a")] * 10_001, {}, e.InvalidRequest),  # counted before they are looked at: two million fit into a message
        ([(10_001, "a")], {}, e.InvalidArgument),
        ([(2, "a"), (1, "a")], {}, e.InvalidPartOrder),
        ([(1, "a"), (1, "a")], {}, e.InvalidPartOrder),
        ([(1, "")], {}, e.InvalidPart),
        ([(2, "ok")], {}, e.InvalidPart),
        ([(1, "ok")], {"size": -1}, e.InvalidArgument),
        ([(1, "ok")], {"checksum": pb.Checksum(value=b"1234")}, e.InvalidArgument),
        ([(1, "ok")], {"checksum": pb.Checksum(algorithm=1, value=b"1")}, e.InvalidRequest),
        ([(1, "ok")], {"checksum": pb.Checksum(algorithm=1, value=bytes(4))}, e.BadDigest),
        ([(1, "ok")], {"checksum": pb.Checksum(algorithm=1, value=bytes(4), type=1)}, e.InvalidRequest),
        ([(1, "ok")], {"checksum": pb.Checksum(algorithm=1, value=bytes(4), parts=2)}, e.InvalidRequest),
        ([(1, "ok")], {"checksum": pb.Checksum(algorithm=1, value=bytes(4), parts=-1)}, e.InvalidRequest),
        ([(1, "ok")], {"conditions": pb.WriteConditions(if_match=["x"])}, e.NoSuchKey),
        ([(1, "ok")], {"upload_id": "x"}, e.NoSuchUpload),
    ],
)
def test_completions_that_are_refused(desk: Desk, parts: Any, more: dict[str, Any], error: type[Exception]) -> None:
    upload_id = initiate(desk, checksum_algorithm=1).upload_id
    etag = desk.put_part(upload_id, 1, LAST).etag
    with pytest.raises(e.AnvilError) as caught:
        complete(
            desk,
            more.pop("upload_id", upload_id),
            *((number, etag if text == "ok" else text) for number, text in parts),
            **more,
        )
    assert type(caught.value) is error
    assert not desk.engine.objects


def test_checksums_of_listed_parts(desk: Desk) -> None:
    upload_id = initiate(desk, checksum_algorithm=1).upload_id
    etag = desk.put_part(upload_id, 1, LAST).etag
    for checksum, error in ((bytes(4), e.InvalidPart), (crc(LAST), None)):
        listed = [pb.CompletedPart(number=1, etag=etag, checksum=checksum)]
        request = pb.CompleteMultipartUploadRequest(**named(upload_id, parts=listed))
        if error is not None:
            with pytest.raises(error):
                desk.ask("CompleteMultipartUpload", request)
        else:
            desk.ask("CompleteMultipartUpload", request)


def copied(desk: Desk, upload_id: str, number: int = 1, **more: Any) -> Any:
    source = pb.CopySource(bucket="bucket", key="source")
    return desk.ask("UploadPartCopy", pb.UploadPartCopyRequest(**named(upload_id, part_number=number, source=source, **more)))


def test_parts_that_are_copied(desk: Desk) -> None:
    desk.engine.store(desk.bucket, "source", b"0123456789")
    upload_id = initiate(desk, checksum_algorithm=1).upload_id
    for more, data in (
        ({}, b"0123456789"),
        ({"range": pb.ByteRange(offset=2, length=3)}, b"234"),
        ({"range": pb.ByteRange(offset=-3)}, b"789"),
        ({"range": pb.ByteRange(offset=4)}, b"456789"),
    ):
        answer = copied(desk, upload_id, **more)
        assert (answer.etag, answer.checksum.value) == (hashlib.md5(data).hexdigest(), crc(data))
        assert answer.modified_at.seconds == 1_700_000_000
    for more, error in (
        ({"range": pb.ByteRange(offset=8, length=3)}, e.InvalidRange),
        ({"range": pb.ByteRange(offset=10)}, e.InvalidRange),
        ({"range": pb.ByteRange(offset=-11)}, e.InvalidRange),
        ({"range": pb.ByteRange(length=0)}, e.InvalidRange),
        ({"range": pb.ByteRange(length=-1)}, e.InvalidArgument),
        ({"number": 0}, e.InvalidArgument),
    ):
        with pytest.raises(e.AnvilError) as caught:
            copied(desk, upload_id, **more)
        assert type(caught.value) is error


def test_abort(desk: Desk) -> None:
    upload_id = initiate(desk).upload_id
    desk.ask("AbortMultipartUpload", pb.AbortMultipartUploadRequest(**named(upload_id)))
    assert not desk.engine.uploads
    for gone in (upload_id, "x"):
        with pytest.raises(e.NoSuchUpload):
            desk.ask("AbortMultipartUpload", pb.AbortMultipartUploadRequest(**named(gone)))


def test_everything_about_an_upload_needs_the_right_to_write(desk: Desk) -> None:
    desk.engine.store(desk.bucket, "source", b"0123456789")
    upload_id = initiate(desk).upload_id
    desk.act_as(app_of(ACME, ("object:read", "*"), ("object:list", "*"), ("object:delete", "*")))
    for ask in (
        lambda: initiate(desk),
        lambda: desk.put_part(upload_id, 1, LAST),
        lambda: copied(desk, upload_id),
        lambda: desk.ask("ListParts", pb.ListPartsRequest(**named(upload_id))),
        lambda: complete(desk, upload_id, (1, "a")),
        lambda: desk.ask("AbortMultipartUpload", pb.AbortMultipartUploadRequest(**named(upload_id))),
    ):
        with pytest.raises(e.AccessDenied):
            ask()
