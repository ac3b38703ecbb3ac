"""PutObject, GetObject, HeadObject, DeleteObject, GetObjectAttributes against the answers S3 documents."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from anvil.auth.types import Payload
from anvil.model.records import Algorithm, Attributes, Checksum, ChecksumType, PartRecord
from tests.unit.api.fake_engine import NOW_US
from tests.unit.api.fakes import ACME, LAST_MODIFIED, OTHER, World, app_of

DATA = b"0123456789"
ETAG = hashlib.md5(DATA).hexdigest()
AFTER, BEFORE = "Wed, 15 Nov 2023 00:00:00 GMT", "Mon, 13 Nov 2023 00:00:00 GMT"


@pytest.fixture(params=[0, len(DATA)], ids=["waited for", "at hand"])
def world(request: pytest.FixtureRequest) -> World:
    world = World()
    world.engine.at_hand_bytes = request.param
    world.engine.store(world.bucket, "key", DATA)
    return world


# -- reading ---------------------------------------------------------------------------------------------------------


def test_get(world: World) -> None:
    answer = world.ask("GET", "/bucket/key")
    assert (answer.status, bytes(answer.sent)) == (200, DATA)
    expected = {
        "content-type": "binary/octet-stream",
        "content-length": "10",
        "etag": f'"{ETAG}"',
        "last-modified": LAST_MODIFIED,
        "accept-ranges": "bytes",
        "x-amz-server-side-encryption": "AES256",
    }
    assert expected.items() <= answer.headers.items()
    if world.engine.at_hand_bytes:
        assert (answer.pieces, world.engine.closed_readers) == ([], 0)
    else:
        assert (answer.pieces, world.engine.closed_readers) == ([b"01234", b"56789"], 1)


def test_head(world: World) -> None:
    get, head = world.ask("GET", "/bucket/key"), world.ask("HEAD", "/bucket/key")
    assert bytes(head.sent) == b""
    varying = {"x-amz-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }


def test_an_empty_object(world: World) -> None:
    world.engine.store(world.bucket, "empty", b"")
    for method in ("GET", "HEAD"):
        answer = world.ask(method, "/bucket/empty")
        assert (answer.status, answer.headers["content-length"], bytes(answer.sent)) == (200, "0", b"")
    answer = world.ask("GET", "/bucket/empty", headers={"range": "bytes=0-"})
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    ("header", "status", "body", "content_range"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=2-5", 206, b"2345", "bytes 2-5/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, DATA, "bytes 0-9/10"),
        ("bytes=0-99", 206, DATA, "bytes 0-9/10"),
        ("bytes=9-99999999999999999999", 206, b"9", "bytes 9-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=10-20", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=0-1,4-5", 200, DATA, None),
        ("bytes=5-2", 200, DATA, None),
        ("bytes=", 200, DATA, None),
        ("bytes=-", 200, DATA, None),
        ("bytes=a-b", 200, DATA, None),
        ("items=0-1", 200, DATA, None),
        ("bytes=" + "9" * 200 + "-", 200, DATA, None),
    ],
)
def test_ranges(world: World, header: str, status: int, body: bytes | None, content_range: str | None) -> None:
    for method in ("GET", "HEAD"):
        answer = world.ask(method, "/bucket/key", headers={"range": header})
        assert (answer.status, answer.headers.get("content-range")) == (status, content_range)
        if body is not None:
            assert answer.headers["content-length"] == str(len(body))
            assert bytes(answer.sent) == (body if method == "GET" else b"")
        elif method == "GET":
            assert (answer.code, answer.text("ActualObjectSize"), answer.text("RangeRequested")) == ("InvalidRange", "10", header)


QUOTED = f'"{ETAG}"'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-match": QUOTED}, 200),
        ({"if-match": ETAG}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": f'"x", {QUOTED}'}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-none-match": '"x"'}, 200),
        ({"if-none-match": QUOTED}, 304),
        ({"if-none-match": f"W/{QUOTED}"}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-modified-since": LAST_MODIFIED}, 304),
        ({"if-modified-since": AFTER}, 304),
        ({"if-modified-since": "yesterday"}, 200),
        ({"if-modified-since": "Tue, 14 Nov 99999999999 22:13:20 GMT"}, 200),
        ({"if-modified-since": "Tue, 14 Nov 2023 22:13:20 +9999999999999"}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": LAST_MODIFIED}, 200),
        ({"if-unmodified-since": "Tuesday, 14-Nov-23 22:13:20 GMT"}, 200),
        ({"if-match": QUOTED, "if-unmodified-since": BEFORE}, 200),
        ({"if-none-match": QUOTED, "if-modified-since": BEFORE}, 304),
        ({"if-none-match": '"x"', "if-modified-since": AFTER}, 200),
        ({"if-match": '"x"', "if-none-match": QUOTED}, 412),
        ({"if-match": QUOTED, "if-none-match": QUOTED}, 304),
        ({"range": "bytes=0-1", "if-range": QUOTED}, 206),
        ({"range": "bytes=0-1", "if-range": '"x"'}, 200),
        ({"range": "bytes=0-1", "if-range": f"W/{QUOTED}"}, 200),
        ({"range": "bytes=0-1", "if-range": LAST_MODIFIED}, 206),
        ({"range": "bytes=0-1", "if-range": AFTER}, 200),
        ({"range": "bytes=99-", "if-none-match": QUOTED}, 304),
        ({"range": "bytes=99-", "if-match": '"x"'}, 412),
    ],
)
def test_read_conditions(world: World, headers: dict[str, str], status: int) -> None:
    for method in ("GET", "HEAD"):
        answer = world.ask(method, "/bucket/key", headers=headers)
        assert answer.status == status
        if status == 304:
            assert bytes(answer.sent) == b"" and answer.headers["etag"] == QUOTED and "last-modified" in answer.headers
            assert "content-type" not in answer.headers


def test_precondition_failed_names_the_condition(world: World) -> None:
    answer = world.ask("GET", "/bucket/key", headers={"if-match": '"x"'})
    assert (answer.code, answer.text("Condition")) == ("PreconditionFailed", "If-Match")


def test_rights_come_before_conditions(world: World) -> None:
    world.act_as(app_of(ACME, ("object:write", "bucket/*")))
    for target in ("/bucket/key", "/bucket/missing"):
        answer = world.ask("GET", target, headers={"if-none-match": QUOTED})
        assert (answer.status, answer.code) == (403, "AccessDenied")


def test_a_missing_key_is_denied_to_who_may_not_list(world: World) -> None:
    world.act_as(app_of(ACME, ("object:read", "bucket/*")))
    assert world.ask("GET", "/bucket/missing").status == 403
    assert world.ask("GET", "/bucket/key").status == 200
    world.act_as(app_of(ACME, ("object:read", "bucket/*"), ("object:list", "bucket")))
    assert world.ask("GET", "/bucket/missing").code == "NoSuchKey"


def test_other_tenants_and_the_anonymous(world: World) -> None:
    world.act_as(app_of(OTHER))
    assert world.ask("GET", "/bucket/key").code == "NoSuchBucket"
    world.act_as(None)
    assert world.ask("GET", "/bucket/key").status == 403
    public = world.catalog.add("public", public=True)
    world.engine.store(public, "key", DATA)
    assert world.ask("GET", "/public/key").sent == DATA
    assert world.ask("PUT", "/public/key", b"x").status == 403
    assert world.ask("GET", "/public/key?response-content-type=text/html").code == "InvalidRequest"
    assert world.ask("GET", "/public/missing").status == 403


def test_response_overrides(world: World) -> None:
    query = "response-content-type=text/html&response-expires=never"
    query += "&response-content-disposition=attachment%3B%20filename%3D%22a.txt%22"
    answer = world.ask("GET", "/bucket/key?" + query)
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["content-disposition"] == 'attachment; filename="a.txt"'
    assert answer.headers["expires"] == "never"
    assert world.ask("GET", "/bucket/key?response-content-type=a%0d%0ab").code == "InvalidArgument"


@pytest.mark.parametrize(
    ("method", "version", "status"),
    [
        ("GET", "null", 200),
        ("HEAD", "null", 200),
        ("DELETE", "null", 204),
        ("GET", "abc", 404),
        ("DELETE", "abc", 404),
        ("PUT", "x", 404),
    ],
)
def test_versions(world: World, method: str, version: str, status: int) -> None:
    answer = world.ask(method, f"/bucket/key?versionId={version}", b"" if method == "PUT" else None)
    assert answer.status == status
    if method in ("GET", "HEAD") and status == 200:
        assert answer.headers["x-amz-version-id"] == "null"
    if status == 404 and method == "GET":
        assert (answer.code, answer.text("VersionId")) == ("NoSuchVersion", "abc")


# -- parts of a multipart object ---------------------------------------------------------------------------------------


@pytest.fixture
def multipart() -> World:
    world = World()
    parts = tuple(
        PartRecord(number, len(data), hashlib.md5(data).hexdigest(), NOW_US, Checksum(Algorithm.CRC32, bytes([0, 0, 0, number])))
        for number, data in ((2, b"01234"), (5, b"567"), (7, b"89"))
    )
    whole = Checksum(Algorithm.CRC32, b"\0\0\0\xff", ChecksumType.COMPOSITE, 3)
    world.engine.store(world.bucket, "key", DATA, checksum=whole, parts=parts, etag="f" * 32 + "-3")
    return world


@pytest.mark.parametrize(("number", "body", "content_range"), [(2, b"01234", "0-4"), (5, b"567", "5-7"), (7, b"89", "8-9")])
def test_part_numbers(multipart: World, number: int, body: bytes, content_range: str) -> None:
    for method in ("GET", "HEAD"):
        answer = multipart.ask(method, f"/bucket/key?partNumber={number}", headers={"x-amz-checksum-mode": "ENABLED"})
        assert answer.status == 206 and bytes(answer.sent) == (body if method == "GET" else b"")
        assert answer.headers["content-range"] == f"bytes {content_range}/10"
        assert answer.headers["content-length"] == str(len(body))
        assert answer.headers["x-amz-mp-parts-count"] == "3"
        assert answer.headers["etag"] == '"' + "f" * 32 + '-3"'


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("partNumber=3", {}, 416, "InvalidPartNumber"),
        ("partNumber=0", {}, 400, "InvalidArgument"),
        ("partNumber=10001", {}, 400, "InvalidArgument"),
        ("partNumber=x", {}, 400, "InvalidArgument"),
        ("partNumber=2", {"range": "bytes=0-1"}, 400, "InvalidRequest"),
    ],
)
def test_bad_part_numbers(multipart: World, query: str, headers: dict[str, str], status: int, code: str) -> None:
    answer = multipart.ask("GET", f"/bucket/key?{query}", headers=headers)
    assert (answer.status, answer.code) == (status, code)


def test_part_1_of_a_plain_object(world: World) -> None:
    answer = world.ask("GET", "/bucket/key?partNumber=1")
    assert (answer.status, answer.headers["content-range"]) == (206, "bytes 0-9/10")
    assert "x-amz-mp-parts-count" not in answer.headers
    assert world.ask("GET", "/bucket/key?partNumber=2").status == 416


def test_attributes(multipart: World) -> None:
    wanted = {"x-amz-object-attributes": "ETag, Checksum,ObjectParts,StorageClass,ObjectSize", "x-amz-max-parts": "2"}
    answer = multipart.ask("GET", "/bucket/key?attributes", headers=wanted)
    assert answer.status == 200 and answer.headers["last-modified"] == LAST_MODIFIED
    assert answer.text("ETag") == "f" * 32 + "-3"
    assert (answer.text("Checksum/ChecksumCRC32"), answer.text("Checksum/ChecksumType")) == ("AAAA/w==-3", "COMPOSITE")
    assert (answer.text("StorageClass"), answer.text("ObjectSize")) == ("STANDARD", "10")
    assert answer.text("ObjectParts/PartsCount") == "3"
    assert answer.texts("ObjectParts/Part/PartNumber") == ["2", "5"]
    assert answer.text("ObjectParts/IsTruncated") == "true"
    assert answer.text("ObjectParts/NextPartNumberMarker") == "5"
    wanted |= {"x-amz-part-number-marker": "5"}
    answer = multipart.ask("GET", "/bucket/key?attributes", headers=wanted)
    assert answer.texts("ObjectParts/Part/Size") == ["2"] and answer.text("ObjectParts/IsTruncated") == "false"


@pytest.mark.parametrize("value", ["", "Etag", "ETag,Nothing"])
def test_bad_attributes(multipart: World, value: str) -> None:
    assert multipart.ask("GET", "/bucket/key?attributes", headers={"x-amz-object-attributes": value}).code == "InvalidArgument"


# -- writing -------------------------------------------------------------------------------------------------------------


def test_put_keeps_what_the_client_said(world: World) -> None:
    headers = {
        "content-type": "text/plain; charset=utf-8",
        "cache-control": "max-age=60, private",
        "content-disposition": 'attachment; filename="ü.txt"',
        "content-encoding": "aws-chunked,gzip",
        "content-language": "de",
        "expires": "Thu, 01 Dec 1994 16:00:00 GMT",
        "x-amz-website-redirect-location": "/other",
        "x-amz-meta-colour": "red",
        "x-amz-meta-empty": "",
        "x-amz-meta-word": "=?UTF-8?Q?gr=C3=BCn?=",
    }
    answer = world.ask("PUT", "/bucket/new", b"abc", headers=headers)
    assert (answer.status, answer.headers["etag"]) == (200, f'"{hashlib.md5(b"abc").hexdigest()}"')
    assert (headers | {"content-encoding": "gzip"}).items() <= world.ask("GET", "/bucket/new").headers.items()


@pytest.mark.parametrize(
    ("value", "stored"), [("aws-chunked", None), ("gzip, aws-chunked", "gzip"), ("br", "br"), ("AWS-Chunked,", None)]
)
def test_content_encoding(world: World, value: str, stored: str | None) -> None:
    world.ask("PUT", "/bucket/new", b"abc", headers={"content-encoding": value})
    assert world.ask("GET", "/bucket/new").headers.get("content-encoding") == stored


def test_user_metadata_limit(world: World) -> None:
    assert world.ask("PUT", "/bucket/k", b"", headers={"x-amz-meta-ab": "x" * 2046}).status == 200
    answer = world.ask("PUT", "/bucket/k", b"", headers={"x-amz-meta-ab": "x" * 2047})
    assert (answer.status, answer.code, answer.text("MaxSizeAllowed")) == (400, "MetadataTooLarge", "2048")


def test_metadata_beyond_ascii_comes_back_as_an_encoded_word(world: World) -> None:
    world.engine.store(world.bucket, "k", b"", Attributes(user={"name": "grün"}))
    assert world.ask("HEAD", "/bucket/k").headers["x-amz-meta-name"] == "=?UTF-8?B?Z3LDvG4=?="


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-none-match": "*"}, 412),
        ({"if-match": QUOTED}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-modified-since": BEFORE}, 501),
        ({"if-unmodified-since": BEFORE, "if-match": QUOTED}, 501),
    ],
)
def test_write_conditions(world: World, headers: dict[str, str], status: int) -> None:
    assert world.ask("PUT", "/bucket/key", b"new", headers=headers).status == status
    assert world.ask("GET", "/bucket/key").sent == (b"new" if status == 200 else DATA)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"if-match": QUOTED}, 204), ({"if-match": "*"}, 204), ({"if-match": '"x"'}, 412), ({"if-none-match": "*"}, 501)],
)
def test_delete_conditions(world: World, headers: dict[str, str], status: int) -> None:
    assert world.ask("DELETE", "/bucket/key", headers=headers).status == status
    assert world.ask("HEAD", "/bucket/key").status == (404 if status == 204 else 200)


def test_if_match_on_a_write_needs_the_right_to_read(world: World) -> None:
    world.act_as(app_of(ACME, ("object:write", "bucket/*"), ("object:delete", "bucket/*")))
    for key in ("key", "missing"):
        for method, body in (("PUT", b"new"), ("DELETE", None)):
            assert world.ask(method, f"/bucket/{key}", body, headers={"if-match": QUOTED}).code == "AccessDenied"
    assert world.ask("PUT", "/bucket/key", b"new", headers={"if-none-match": "*"}).code == "PreconditionFailed"


def test_deleting_nothing_is_fine(world: World) -> None:
    assert world.ask("DELETE", "/bucket/missing").status == 204
    assert world.ask("DELETE", "/bucket/missing", headers={"if-match": '"x"'}).code == "NoSuchKey"


# -- lengths -------------------------------------------------------------------------------------------------------------

FIVE_GIB = 5 * 2**30


@pytest.mark.parametrize(
    ("payload", "content_length", "chunked", "decoded", "status", "code"),
    [
        (Payload.UNSIGNED, None, False, None, 411, "MissingContentLength"),
        (Payload.UNSIGNED, None, True, None, 411, "MissingContentLength"),
        (Payload.UNSIGNED, None, True, "3", 200, None),
        (Payload.UNSIGNED, 3, False, "4", 400, "InvalidRequest"),
        (Payload.UNSIGNED, FIVE_GIB + 1, False, None, 400, "EntityTooLarge"),
        (Payload.SIGNED_CHUNKS, 90, False, None, 411, "MissingContentLength"),
        (Payload.SIGNED_CHUNKS, 90, False, "3", 200, None),
        (Payload.SIGNED_CHUNKS, None, True, "3", 200, None),
        (Payload.SIGNED_CHUNKS, None, False, "3", 411, "MissingContentLength"),
        (Payload.UNSIGNED_CHUNKS_TRAILER, 2, False, "3", 400, "InvalidRequest"),
        (Payload.UNSIGNED_CHUNKS_TRAILER, 90, False, "-1", 400, "InvalidArgument"),
        (Payload.UNSIGNED_CHUNKS_TRAILER, 90, False, "3.0", 400, "InvalidArgument"),
        (Payload.UNSIGNED_CHUNKS_TRAILER, FIVE_GIB + 99, False, str(FIVE_GIB + 1), 400, "EntityTooLarge"),
    ],
)
def test_lengths(
    world: World, payload: Payload, content_length: int | None, chunked: bool, decoded: str | None, status: int, code: str | None
) -> None:
    world.payload(payload)
    headers = {} if decoded is None else {"x-amz-decoded-content-length": decoded}
    body = None if content_length is None and not chunked else b"abc"
    answer = world.ask("PUT", "/bucket/new", body, headers=headers, content_length=content_length, chunked=chunked)
    assert (answer.status, answer.code) == (status, code)
    if status != 200:
        assert answer.received_bytes == 0


def test_a_short_body_stores_nothing(world: World) -> None:
    assert world.ask("PUT", "/bucket/new", b"abc", content_length=10).code == "IncompleteBody"
    assert world.ask("HEAD", "/bucket/new").status == 404


# -- features ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-amz-acl": "private"}, None),
        ({"x-amz-acl": "bucket-owner-full-control"}, None),
        ({"x-amz-acl": "public-read"}, "NotImplemented"),
        ({"x-amz-acl": "everyone"}, "InvalidArgument"),
        ({"x-amz-grant-read": "id=1"}, "NotImplemented"),
        ({"x-amz-server-side-encryption": "AES256"}, None),
        ({"x-amz-server-side-encryption": "aws:kms"}, "NotImplemented"),
        ({"x-amz-server-side-encryption": "rot13"}, "InvalidArgument"),
        ({"x-amz-server-side-encryption-aws-kms-key-id": "k"}, "NotImplemented"),
        ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, "NotImplemented"),
        ({"x-amz-storage-class": "STANDARD"}, None),
        ({"x-amz-storage-class": "GLACIER"}, "InvalidStorageClass"),
        ({"x-amz-tagging": "a=b"}, "NotImplemented"),
        ({"x-amz-object-lock-mode": "COMPLIANCE"}, "NotImplemented"),
        ({"x-amz-object-lock-legal-hold": "ON"}, "NotImplemented"),
        ({"x-amz-checksum-sha512": "x"}, "NotImplemented"),
        ({"x-amz-write-offset-bytes": "3"}, "NotImplemented"),
        ({"x-amz-website-redirect-location": "ftp://x"}, "InvalidRequest"),
        ({"x-amz-request-payer": "requester"}, None),
        ({"x-amz-expected-bucket-owner": "000000000007"}, None),
        ({"x-amz-expected-bucket-owner": "000000000008"}, "AccessDenied"),
        ({"x-amz-something-new": "1"}, None),
        ({"x-anvil-internal": "1"}, None),
    ],
)
def test_headers_that_ask_for_features(world: World, headers: dict[str, str], code: str | None) -> None:
    answer = world.ask("PUT", "/bucket/new", b"abc", headers=headers)
    assert answer.code == code and answer.status == (200 if code is None else answer.status)
    assert world.ask("HEAD", "/bucket/new").status == (200 if code is None else 404)
    if "public-read" in headers.values():
        assert "anvil admin bucket set-public" in (answer.text("Message") or "")


def test_two_requests_at_once_do_not_mix(world: World) -> None:
    async def both() -> None:
        first, second = await asyncio.gather(world.send("GET", "/bucket/key"), world.send("PUT", "/bucket/other", b"zz"))
        assert first.sent == DATA and second.status == 200
        assert first.headers["x-amz-request-id"] != second.headers["x-amz-request-id"]

    asyncio.run(both())
