"""Multipart uploads on the wire."""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode

import pytest

from anvil.base.limits import PART_BYTES_MIN
from tests.unit.api.fakes import ACME, FakeStream, World, app_of

BIG = b"x" * PART_BYTES_MIN


def crc32(data: bytes) -> str:
    return b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def create(world: World, key: str = "key", **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = world.ask("POST", f"/bucket/{key}?uploads", headers=named)
    assert (answer.status, answer.xml.tag) == (200, "InitiateMultipartUploadResult")
    assert (answer.text("Bucket"), answer.text("Key")) == ("bucket", key)
    return answer.text("UploadId") or ""


def complete(world: World, upload: str, *parts: tuple[int, str] | tuple[int, str, str], **headers: str) -> FakeStream:
    lines = ""
    for number, etag, *checksum in parts:
        more = f"<ChecksumCRC32>{checksum[0]}</ChecksumCRC32>" if checksum else ""
        lines += f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag>{more}</Part>"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    document = f"<CompleteMultipartUpload>{lines}</CompleteMultipartUpload>".encode()
    return world.ask("POST", f"/bucket/key?uploadId={upload}", document, headers=named)


def put(world: World, upload: str, number: object, data: bytes, **headers: str) -> FakeStream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return world.ask("PUT", f"/bucket/key?partNumber={number}&uploadId={upload}", data, headers=named)


def test_an_upload_from_end_to_end() -> None:
    world = World()
    upload = create(world, content_type="text/plain", x_amz_meta_a="b")
    for number, data in ((3, b"tail"), (1, BIG)):
        answer = put(world, upload, number, data)
        assert (answer.status, answer.headers["etag"]) == (200, f'"{md5(data)}"')
    answer = complete(world, upload, (1, md5(BIG)), (3, md5(b"tail")))
    etag = md5(bytes.fromhex(md5(BIG)) + bytes.fromhex(md5(b"tail"))) + "-2"
    assert (answer.status, answer.xml.tag, answer.text("ETag")) == (200, "CompleteMultipartUploadResult", f'"{etag}"')
    assert (answer.text("Bucket"), answer.text("Key")) == ("bucket", "key")
    assert answer.text("Location") == "http://localhost:50051/bucket/key"
    head = world.ask("HEAD", "/bucket/key").headers
    assert head["content-length"] == str(len(BIG) + 4)
    assert (head["content-type"], head["x-amz-meta-a"]) == ("text/plain", "b")
    assert complete(world, upload, (1, md5(BIG)), (3, md5(b"tail"))).status == 200, "repeating it is harmless"
    assert put(world, upload, 2, b"late").code == "NoSuchUpload"


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "", "1.0"])
def test_part_numbers(number: str) -> None:
    world = World()
    assert put(world, create(world), number, b"a").code == "InvalidArgument"


def test_a_part_needs_both_parameters() -> None:
    world = World()
    assert world.ask("PUT", f"/bucket/key?uploadId={create(world)}", b"a").code == "InvalidArgument"
    assert world.ask("PUT", "/bucket/key?partNumber=1", b"a").code == "InvalidArgument"
    assert world.ask("HEAD", "/bucket/key").status == 404


@pytest.mark.parametrize("upload", ["", "abc", "0" * 32, "Z" * 32, "0" * 31 + "A", "../../../../etc/passwd"])
def test_unknown_uploads(upload: str) -> None:
    world = World()
    assert put(world, upload, 1, b"a").code == "NoSuchUpload"
    assert complete(world, upload, (1, "e")).code == "NoSuchUpload"
    for method in ("GET", "DELETE"):
        assert world.ask(method, f"/bucket/key?uploadId={upload}").code == "NoSuchUpload"


def test_an_upload_belongs_to_its_key() -> None:
    world = World()
    upload = create(world)
    assert world.ask("PUT", f"/bucket/other?partNumber=1&uploadId={upload}", b"a").code == "NoSuchUpload"


def test_completions_that_fail() -> None:
    world = World()
    upload = create(world)
    put(world, upload, 1, b"small")
    put(world, upload, 2, b"tail")
    small, tail = md5(b"small"), md5(b"tail")
    for parts, code in (
        (((2, tail), (1, small)), "InvalidPartOrder"),
        (((1, small), (1, small)), "InvalidPartOrder"),
        (((1, tail),), "InvalidPart"),
        (((9, tail),), "InvalidPart"),
        (((1, small), (2, tail)), "EntityTooSmall"),
        ((), "MalformedXML"),
    ):
        answer = complete(world, upload, *parts)
        assert (answer.status, answer.code) == (400, code)
    assert world.ask("POST", f"/bucket/key?uploadId={upload}", b"").code == "MalformedXML"
    assert world.ask("POST", f"/bucket/key?uploadId={upload}").code == "MalformedXML"
    assert world.ask("POST", f"/bucket/key?uploadId={upload}", b"x", content_length=2**22 + 1).code == "EntityTooLarge"
    assert complete(world, upload, (1, small), x_amz_mp_object_size="x").code == "InvalidRequest"
    assert world.ask("HEAD", "/bucket/key").status == 404


def test_write_conditions() -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"old")
    upload = create(world)
    put(world, upload, 1, b"a")
    assert complete(world, upload, (1, md5(b"a")), if_none_match="*").status == 412
    assert complete(world, upload, (1, md5(b"a")), if_match=md5(b"old")).status == 200


def test_composite_checksums() -> None:
    world = World()
    answer = world.ask("POST", "/bucket/key?uploads", headers={"x-amz-checksum-algorithm": "CRC32"})
    upload = answer.text("UploadId") or ""
    assert answer.headers["x-amz-checksum-algorithm"] == "CRC32" and answer.headers["x-amz-checksum-type"] == "COMPOSITE"
    assert put(world, upload, 1, BIG, x_amz_checksum_crc32=crc32(BIG)).headers["x-amz-checksum-crc32"] == crc32(BIG)
    assert put(world, upload, 2, b"tail").headers["x-amz-checksum-crc32"] == crc32(b"tail"), "computed where not stated"
    assert put(world, upload, 2, b"tail", x_amz_checksum_crc32="AAAAAA==").code == "BadDigest"
    sha1 = b64encode(hashlib.sha1(b"tail").digest()).decode()
    assert put(world, upload, 2, b"tail", x_amz_checksum_sha1=sha1).code == "InvalidRequest"
    parts = (1, md5(BIG), crc32(BIG)), (2, md5(b"tail"), crc32(b"tail"))
    assert complete(world, upload, (1, md5(BIG), "AAAAAA=="), parts[1]).code == "InvalidPart"
    whole = crc32(zlib.crc32(BIG).to_bytes(4, "big") + zlib.crc32(b"tail").to_bytes(4, "big")) + "-2"
    assert complete(world, upload, *parts, x_amz_checksum_crc32="AAAAAA==-2").code == "BadDigest"
    assert complete(world, upload, *parts, x_amz_checksum_type="FULL_OBJECT").code == "InvalidRequest"
    answer = complete(world, upload, *parts, x_amz_checksum_crc32=whole)
    assert (answer.text("ChecksumCRC32"), answer.text("ChecksumType")) == (whole, "COMPOSITE")
    shown = world.ask("HEAD", "/bucket/key", headers={"x-amz-checksum-mode": "ENABLED"}).headers
    assert (shown["x-amz-checksum-crc32"], shown["x-amz-checksum-type"]) == (whole, "COMPOSITE")
    part = world.ask("GET", "/bucket/key?partNumber=2", headers={"x-amz-checksum-mode": "ENABLED"})
    assert (part.headers["x-amz-checksum-crc32"], bytes(part.sent)) == (crc32(b"tail"), b"tail")


def test_full_object_checksums() -> None:
    world = World()
    upload = create(world, x_amz_checksum_algorithm="CRC32", x_amz_checksum_type="FULL_OBJECT")
    put(world, upload, 1, BIG)
    put(world, upload, 2, b"tail")
    answer = complete(world, upload, (1, md5(BIG)), (2, md5(b"tail")), x_amz_checksum_crc32=crc32(BIG + b"tail"))
    assert (answer.text("ChecksumCRC32"), answer.text("ChecksumType")) == (crc32(BIG + b"tail"), "FULL_OBJECT")


def test_abort() -> None:
    world = World()
    upload = create(world)
    assert world.ask("DELETE", f"/bucket/key?uploadId={upload}").status == 204
    assert world.ask("DELETE", f"/bucket/key?uploadId={upload}").code == "NoSuchUpload"


def test_list_parts() -> None:
    world = World()
    upload = create(world, x_amz_checksum_algorithm="CRC32")
    for number in (1, 2, 5):
        put(world, upload, number, b"12345"[:number])
    answer = world.ask("GET", f"/bucket/key?uploadId={upload}&max-parts=2")
    assert answer.texts("Part/PartNumber") == ["1", "2"] and answer.texts("Part/Size") == ["1", "2"]
    assert (answer.text("IsTruncated"), answer.text("NextPartNumberMarker")) == ("true", "2")
    assert (answer.text("Initiator/ID"), answer.text("Owner/DisplayName")) == ("AKIDACME", "acme")
    assert (answer.text("ChecksumAlgorithm"), answer.text("ChecksumType")) == ("CRC32", "COMPOSITE")
    assert answer.text("Part/ChecksumCRC32") == crc32(b"1")
    answer = world.ask("GET", f"/bucket/key?uploadId={upload}&max-parts=2&part-number-marker=2")
    assert answer.texts("Part/PartNumber") == ["5"] and answer.text("IsTruncated") == "false"
    assert world.ask("GET", f"/bucket/key?uploadId={upload}&max-parts=0").texts("Part") == []
    assert world.ask("GET", f"/bucket/key?uploadId={upload}&max-parts=x").code == "InvalidArgument"


def test_list_uploads() -> None:
    world = World()
    uploads = [create(world, key) for key in ("a", "b", "b", "c")]
    answer = world.ask("GET", "/bucket?uploads&max-uploads=2")
    assert answer.texts("Upload/Key") == ["a", "b"] and answer.texts("Upload/UploadId") == uploads[:2]
    assert (answer.text("NextKeyMarker"), answer.text("NextUploadIdMarker")) == ("b", uploads[1])
    answer = world.ask("GET", f"/bucket?uploads&key-marker=b&upload-id-marker={uploads[1]}")
    assert answer.texts("Upload/UploadId") == uploads[2:] and answer.text("IsTruncated") == "false"
    assert world.ask("GET", "/bucket?uploads&key-marker=b").texts("Upload/Key") == ["c"]
    assert world.ask("GET", "/bucket?uploads&prefix=b").texts("Upload/Key") == ["b", "b"]
    assert world.ask("GET", "/bucket?uploads&key-marker=b&upload-id-marker=x").code == "InvalidArgument"


def test_rights() -> None:
    world = World()
    upload = create(world)
    world.act_as(app_of(ACME, ("object:read", "*"), ("object:list", "bucket")))
    assert world.ask("POST", "/bucket/key?uploads").code == "AccessDenied"
    assert put(world, upload, 1, b"a").code == "AccessDenied"
    assert complete(world, upload, (1, "e")).code == "AccessDenied"
    for method in ("GET", "DELETE"):
        assert world.ask(method, f"/bucket/key?uploadId={upload}").code == "AccessDenied"
    assert world.ask("GET", "/bucket?uploads").status == 200


@pytest.mark.parametrize(
    ("value", "status", "body"),
    [
        (None, 200, b"0123456789"),
        ("bytes=2-5", 200, b"2345"),
        ("bytes=0-9", 200, b"0123456789"),
        ("bytes=0-10", 416, None),
        ("bytes=5-", 400, None),
        ("bytes=-5", 400, None),
        ("bytes=5-2", 400, None),
        ("0-5", 400, None),
    ],
)
def test_upload_part_copy(value: str | None, status: int, body: bytes | None) -> None:
    world = World()
    world.engine.store(world.bucket, "source", b"0123456789")
    upload = create(world)
    headers = {"x-amz-copy-source": "/bucket/source"} | ({} if value is None else {"x-amz-copy-source-range": value})
    answer = world.ask("PUT", f"/bucket/key?partNumber=1&uploadId={upload}", headers=headers)
    assert answer.status == status
    if body is not None:
        assert (answer.xml.tag, answer.text("ETag")) == ("CopyPartResult", f'"{md5(body)}"')
        assert world.engine.parts[bytes.fromhex(upload)][1][1] == body


def test_the_source_of_a_part_is_authorized() -> None:
    world = World()
    world.engine.store(world.bucket, "source", b"secret")
    upload = create(world)
    world.act_as(app_of(ACME, ("object:write", "*")))
    headers = {"x-amz-copy-source": "/bucket/source"}
    answer = world.ask("PUT", f"/bucket/key?partNumber=1&uploadId={upload}", headers=headers)
    assert answer.code == "AccessDenied" and world.engine.parts[bytes.fromhex(upload)] == {}
