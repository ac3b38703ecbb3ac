"""What clients state about a payload is compared with it, whichever way they state it."""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode

import pytest

from anvil.api.s3.checksums import decode, encode, expected_of_upload, upload_checksum
from anvil.auth.types import Payload
from anvil.base.errors import InvalidRequest
from anvil.model.records import Algorithm, Checksum, ChecksumType
from tests.unit.api.fakes import World

DATA = b"hello world"
CRC32 = b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()  # DUoRhQ==
SHA1 = b64encode(hashlib.sha1(DATA).digest()).decode()
SHA256 = b64encode(hashlib.sha256(DATA).digest()).decode()
MD5 = b64encode(hashlib.md5(DATA).digest()).decode()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-md5": MD5}, None),
        ({"content-md5": b64encode(bytes(16)).decode()}, "BadDigest"),
        ({"content-md5": "abc"}, "InvalidDigest"),
        ({"content-md5": b64encode(bytes(15)).decode()}, "InvalidDigest"),
        ({"x-amz-checksum-crc32": "DUoRhQ=="}, None),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
        ({"x-amz-checksum-crc32": "AAAA"}, "InvalidRequest"),
        ({"x-amz-checksum-crc32": "!"}, "InvalidRequest"),
        ({"x-amz-checksum-sha1": SHA1}, None),
        ({"x-amz-checksum-sha256": SHA256}, None),
        ({"x-amz-checksum-sha256": SHA1}, "InvalidRequest"),
        ({"x-amz-checksum-sha256": SHA256, "x-amz-checksum-sha1": SHA1}, "InvalidRequest"),
        ({"x-amz-checksum-sha256": SHA256, "content-md5": MD5}, None),
        ({"x-amz-sdk-checksum-algorithm": "SHA256", "x-amz-checksum-sha256": SHA256}, None),
        ({"x-amz-sdk-checksum-algorithm": "CRC32", "x-amz-checksum-sha256": SHA256}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "XYZ", "x-amz-checksum-sha256": SHA256}, "InvalidRequest"),
        ({"x-amz-trailer": "x-amz-checksum-crc32"}, "InvalidRequest"),
    ],
)
def test_headers(headers: dict[str, str], code: str | None) -> None:
    world = World()
    answer = world.ask("PUT", "/bucket/key", DATA, headers=headers)
    assert (answer.code, answer.status) == (code, 200 if code is None else 400)
    assert world.ask("HEAD", "/bucket/key").status == (200 if code is None else 404)


def test_the_signed_payload_hash_counts() -> None:
    world = World()
    world.payload(Payload.SHA256, payload_sha256=hashlib.sha256(DATA).digest())
    assert world.ask("PUT", "/bucket/key", DATA).status == 200
    answer = world.ask("PUT", "/bucket/other", DATA + b"!")
    assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
    assert answer.text("ClientComputedContentSHA256") == hashlib.sha256(DATA).hexdigest()
    assert world.ask("HEAD", "/bucket/other").status == 404


@pytest.mark.parametrize(
    ("announced", "trailers", "code"),
    [
        ("x-amz-checksum-crc32", {"x-amz-checksum-crc32": CRC32}, None),
        ("X-Amz-Checksum-CRC32", {"x-amz-checksum-crc32": CRC32}, None),
        ("x-amz-checksum-crc32", {"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
        ("x-amz-checksum-crc32", {}, "InvalidRequest"),
        ("x-amz-checksum-crc32", {"x-amz-checksum-crc32": "?"}, "InvalidRequest"),
        ("x-amz-meta-a", {}, "InvalidRequest"),
        (None, {}, None),
    ],
)
def test_trailers(announced: str | None, trailers: dict[str, str], code: str | None) -> None:
    world = World()
    world.payload(Payload.UNSIGNED_CHUNKS_TRAILER)
    world.trailers = trailers
    headers = {"x-amz-decoded-content-length": str(len(DATA))} | ({} if announced is None else {"x-amz-trailer": announced})
    answer = world.ask("PUT", "/bucket/key", DATA, headers=headers, content_length=len(DATA) + 60)
    assert answer.code == code
    assert world.ask("HEAD", "/bucket/key").status == (200 if code is None else 404)


def test_a_header_and_a_trailer_are_one_too_many() -> None:
    world = World()
    world.payload(Payload.UNSIGNED_CHUNKS_TRAILER)
    headers = {"x-amz-decoded-content-length": "11", "x-amz-trailer": "x-amz-checksum-crc32", "x-amz-checksum-crc32": CRC32}
    assert world.ask("PUT", "/bucket/key", DATA, headers=headers, content_length=90).code == "InvalidRequest"


def test_checksums_are_shown_on_demand_and_never_for_a_range() -> None:
    world = World()
    answer = world.ask("PUT", "/bucket/key", DATA, headers={"x-amz-checksum-crc32": CRC32})
    assert (answer.headers["x-amz-checksum-crc32"], answer.headers["x-amz-checksum-type"]) == (CRC32, "FULL_OBJECT")
    assert "x-amz-checksum-crc32" not in world.ask("GET", "/bucket/key").headers
    mode = {"x-amz-checksum-mode": "ENABLED"}
    for method in ("GET", "HEAD"):
        assert world.ask(method, "/bucket/key", headers=mode).headers["x-amz-checksum-crc32"] == CRC32
        assert "x-amz-checksum-crc32" not in world.ask(method, "/bucket/key", headers=mode | {"range": "bytes=0-3"}).headers
    assert world.ask("GET", "/bucket/key", headers={"x-amz-checksum-mode": "on"}).status == 400


def test_encoding() -> None:
    assert encode(Checksum(Algorithm.CRC32, b"\0\0\0\1")) == "AAAAAQ=="
    assert encode(Checksum(Algorithm.CRC32, b"\0\0\0\1", ChecksumType.COMPOSITE, 3)) == "AAAAAQ==-3"
    assert decode(Algorithm.CRC64NVME, "AAAAAAAAAAE=", "x") == b"\0" * 7 + b"\1"


FULL, COMPOSITE = ChecksumType.FULL_OBJECT, ChecksumType.COMPOSITE


@pytest.mark.parametrize(
    ("algorithm", "kind", "expected"),
    [
        (None, None, (None, None)),
        ("CRC32", None, (Algorithm.CRC32, COMPOSITE)),
        ("crc32c", "full_object", (Algorithm.CRC32C, FULL)),
        ("CRC32C", "COMPOSITE", (Algorithm.CRC32C, COMPOSITE)),
        ("CRC64NVME", None, (Algorithm.CRC64NVME, FULL)),
        ("CRC64NVME", "COMPOSITE", None),
        ("SHA1", None, (Algorithm.SHA1, COMPOSITE)),
        ("SHA256", "FULL_OBJECT", None),
        ("MD4", None, None),
        (None, "COMPOSITE", None),
        ("CRC32", "HALF", None),
    ],
)
def test_upload_checksums(algorithm: str | None, kind: str | None, expected: object) -> None:
    headers = {}
    if algorithm is not None:
        headers[b"x-amz-checksum-algorithm"] = algorithm.encode()
    if kind is not None:
        headers[b"x-amz-checksum-type"] = kind.encode()
    if expected is None:
        with pytest.raises(InvalidRequest):
            upload_checksum(headers)
    else:
        assert upload_checksum(headers) == expected


def test_expected_of_upload() -> None:
    name = b"x-amz-checksum-crc32"
    assert expected_of_upload({}, FULL) is None
    assert expected_of_upload({name: b"AAAAAQ=="}, FULL) == Checksum(Algorithm.CRC32, b"\0\0\0\1", FULL)
    assert expected_of_upload({name: b"AAAAAQ==-12"}, COMPOSITE) == Checksum(Algorithm.CRC32, b"\0\0\0\1", COMPOSITE, 12)
    for bad in (b"AAAAAQ==-", b"AAAAAQ==-x", b"AAA-3"):
        with pytest.raises(InvalidRequest):
            expected_of_upload({name: bad}, COMPOSITE)
    with pytest.raises(InvalidRequest):
        expected_of_upload({b"x-amz-checksum-type": b"FULL_OBJECT"}, COMPOSITE)
