"""ObjectService: put, get, head, delete, list, copy. What is expected is what S3 documents for the operation of the same name."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from anvil.api.grpc.proto import object_pb2 as pb
from anvil.base import errors as e
from anvil.base.limits import PUT_BYTES_MAX, SYSTEM_METADATA_BYTES_MAX, USER_METADATA_NAMES_MAX
from anvil.model.records import Algorithm, Attributes, Checksum, ChecksumType, PartRecord
from tests.unit.api.fake_engine import NOW_US
from tests.unit.api.fakes import ACME, OTHER, app_of
from tests.unit.api.grpc.desk import Desk

DATA = b"0123456789"
ETAG = hashlib.md5(DATA).hexdigest()
CRC32 = zlib.crc32(DATA).to_bytes(4, "big")
NOW_S = NOW_US // 1_000_000
BEFORE, AFTER = Timestamp(seconds=NOW_S - 1), Timestamp(seconds=NOW_S)
UNKNOWN: Any = 99


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    kept = Attributes(content_type="text/plain", cache_control="no-cache", website_redirect="/x", user={"colour": "röd"})
    desk.engine.store(desk.bucket, "key", DATA, kept, Checksum(Algorithm.CRC32, CRC32))
    return desk


def named(**more: Any) -> dict[str, Any]:
    return {"bucket": "bucket", "key": "key"} | more


# -- put -------------------------------------------------------------------------------------------------------------------


def test_put_says_what_was_stored() -> None:
    desk = Desk()
    said = pb.Attributes(
        content_type="text/plain",
        cache_control="no-store",
        content_disposition="attachment",
        content_encoding="aws-chunked, gzip",
        content_language="de",
        expires="Thu, 01 Dec 2033 16:00:00 GMT",
        website_redirect="/elsewhere",
        user_metadata={"colour": "röd", "empty": ""},
    )
    answer = desk.put(DATA, attributes=said)
    assert (answer.etag, answer.version_id, answer.HasField("checksum")) == (ETAG, "null", False)
    assert (answer.modified_at.seconds, answer.modified_at.nanos) == (1_700_000_000, 500_000_000)
    stored = desk.engine.objects[desk.bucket.bucket_id, "key"]
    assert stored.data == DATA
    assert stored.info.attributes == Attributes(
        "text/plain", "no-store", "attachment", "gzip", "de", "Thu, 01 Dec 2033 16:00:00 GMT", "/elsewhere",
        {"colour": "röd", "empty": ""},
    )  # fmt: skip


def test_put_without_attributes_has_the_default_type() -> None:
    desk = Desk()
    desk.put(b"")
    assert desk.engine.objects[desk.bucket.bucket_id, "key"].info.attributes == Attributes()


@pytest.mark.parametrize(
    "field",
    [
        {"user_metadata": {"Colour": "red"}},
        {"user_metadata": {"a b": "red"}},
        {"user_metadata": {"": "red"}},
        {"user_metadata": {"ä": "red"}},
        {"user_metadata": {"a": "red\r\nx: y"}},
        {"user_metadata": {"a": "\0"}},
        {"user_metadata": {"a": " red"}},
        {"content_type": "text/plain\r\nx: y"},
        {"cache_control": "a\x7f"},
        {"expires": "now "},
    ],
)
def test_attributes_that_no_header_holds(field: dict[str, Any]) -> None:
    desk = Desk()
    with pytest.raises(e.InvalidArgument):
        desk.put(DATA, attributes=pb.Attributes(**field))
    assert not desk.engine.objects


def test_as_many_names_of_user_metadata_as_there_can_be_headers() -> None:
    desk = Desk()
    names = {f"n{n}": "" for n in range(USER_METADATA_NAMES_MAX)}
    desk.put(DATA, attributes=pb.Attributes(user_metadata=names))
    assert desk.engine.objects[desk.bucket.bucket_id, "key"].info.attributes.user == names
    with pytest.raises(e.MetadataTooLarge):
        desk.put(DATA, attributes=pb.Attributes(user_metadata=names | {"more": ""}))


def test_attributes_that_are_too_much() -> None:
    desk = Desk()
    desk.put(DATA, attributes=pb.Attributes(user_metadata={"a": "x" * 2047}))  # name and value: 2 KiB
    for field in (
        {"user_metadata": {"a": "x" * 2048}},
        {"user_metadata": {"a": "ä" * 1024}},
        {"content_type": "x" * SYSTEM_METADATA_BYTES_MAX},
    ):
        with pytest.raises(e.MetadataTooLarge):
            desk.put(DATA, attributes=pb.Attributes(**field))
    with pytest.raises(e.InvalidRequest):
        desk.put(DATA, attributes=pb.Attributes(website_redirect="example.com"))


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"bucket": ""}, e.InvalidBucketName),
        ({"bucket": "UPPER"}, e.InvalidBucketName),
        ({"bucket": "a/b"}, e.InvalidBucketName),
        ({"bucket": "missing"}, e.NoSuchBucket),
        ({"key": ""}, e.InvalidArgument),
        ({"key": "a\0b"}, e.InvalidArgument),
        ({"key": "k" * 1025}, e.KeyTooLong),
        ({"key": "ä" * 513}, e.KeyTooLong),
        ({"size": None}, e.MissingContentLength),
        ({"size": -1}, e.InvalidArgument),
        ({"size": PUT_BYTES_MAX + 1}, e.EntityTooLarge),
        ({"size": 9}, e.InvalidRequest),
        ({"size": 11}, e.IncompleteBody),
        ({"md5": bytes(15)}, e.InvalidDigest),
        ({"md5": bytes(16)}, e.BadDigest),
        ({"checksum_algorithm": UNKNOWN}, e.InvalidArgument),
        ({"checksum": pb.Checksum(value=CRC32)}, e.InvalidArgument),
        ({"checksum": pb.Checksum(algorithm=UNKNOWN, value=CRC32)}, e.InvalidArgument),
        ({"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=b"123")}, e.InvalidRequest),
        ({"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=bytes(4))}, e.BadDigest),
        (
            {"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32, type="CHECKSUM_TYPE_COMPOSITE")},
            e.InvalidRequest,
        ),
        ({"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32, type=UNKNOWN)}, e.InvalidArgument),
        ({"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32, parts=1)}, e.InvalidRequest),
        (
            {
                "checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32),
                "checksum_algorithm": "CHECKSUM_ALGORITHM_SHA1",
            },
            e.InvalidRequest,
        ),
        ({"conditions": pb.WriteConditions(if_match=[""])}, e.InvalidArgument),
        ({"conditions": pb.WriteConditions(if_match=["a"] * 65)}, e.InvalidArgument),
    ],
)
def test_puts_that_are_refused(header: dict[str, Any], error: type[Exception]) -> None:
    desk = Desk()
    with pytest.raises(e.AnvilError) as caught:
        desk.put(DATA, **header)
    assert type(caught.value) is error
    assert not desk.engine.objects


def test_an_upload_begins_with_its_header() -> None:
    desk = Desk()
    for first in (
        [],
        [pb.PutObjectRequest(chunk=b"x")],
        [pb.PutObjectRequest()],
        [pb.PutObjectRequest(trailer=pb.UploadTrailer())],
    ):
        with pytest.raises(e.InvalidRequest):
            desk.upload("PutObject", first)


def test_the_longest_key() -> None:
    desk = Desk()
    desk.put(DATA, key="ä" * 512)
    assert (desk.bucket.bucket_id, "ä" * 512) in desk.engine.objects


def test_checksums_that_are_stated() -> None:
    desk = Desk()
    crc = pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32, type="CHECKSUM_TYPE_FULL_OBJECT")
    answer = desk.put(DATA, md5=hashlib.md5(DATA).digest(), checksum=crc, checksum_algorithm="CHECKSUM_ALGORITHM_CRC32")
    assert answer.checksum == crc
    answer = desk.put(DATA, checksum_algorithm="CHECKSUM_ALGORITHM_SHA256")
    assert answer.checksum.value == hashlib.sha256(DATA).digest()


def test_a_checksum_behind_the_bytes() -> None:
    desk = Desk()
    answer = desk.put(DATA, checksum_algorithm="CHECKSUM_ALGORITHM_CRC32", trailer=CRC32)
    assert answer.checksum.value == CRC32
    with pytest.raises(e.BadDigest):
        desk.put(DATA, key="b", checksum_algorithm="CHECKSUM_ALGORITHM_CRC32", trailer=bytes(4))
    for header, trailer in (
        ({"checksum_algorithm": "CHECKSUM_ALGORITHM_CRC32"}, b""),
        ({"checksum_algorithm": "CHECKSUM_ALGORITHM_CRC32"}, bytes(5)),
        ({}, CRC32),
        ({"checksum": pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32", value=CRC32)}, CRC32),
    ):
        with pytest.raises(e.InvalidRequest):
            desk.put(DATA, key="b", trailer=trailer, **header)
    assert (desk.bucket.bucket_id, "b") not in desk.engine.objects


def test_conditions_of_a_put(desk: Desk) -> None:
    with pytest.raises(e.PreconditionFailed):
        desk.put(DATA, conditions=pb.WriteConditions(if_none_match=["*"]))
    with pytest.raises(e.PreconditionFailed):
        desk.put(DATA, conditions=pb.WriteConditions(if_match=["x"]))
    desk.put(b"new", conditions=pb.WriteConditions(if_match=["x", f'"{ETAG}"']))
    desk.act_as(app_of(ACME, ("object:write", "*")))
    with pytest.raises(e.AccessDenied):  # the answer would tell what is there
        desk.put(DATA, conditions=pb.WriteConditions(if_match=["*"]))


def test_rights_are_asked_before_anything_else() -> None:
    desk = Desk()
    desk.act_as(app_of(ACME, ("object:read", "*")))
    with pytest.raises(e.AccessDenied):
        desk.put(DATA, size=None, attributes=pb.Attributes(content_type="\n"))
    assert desk.incoming is not None and desk.incoming.opened is None


# -- get and head ----------------------------------------------------------------------------------------------------------


def test_get(desk: Desk) -> None:
    head, data = desk.get(pb.GetObjectRequest(**named()))
    assert (data, head.start, head.length) == (DATA, 0, 10)
    found = head.object
    assert (found.key, found.size, found.etag, found.version_id, found.part_count) == ("key", 10, ETAG, "null", 0)
    assert (found.attributes.content_type, dict(found.attributes.user_metadata)) == ("text/plain", {"colour": "röd"})
    assert (found.attributes.cache_control, found.attributes.website_redirect) == ("no-cache", "/x")
    assert head.checksum == found.checksum == pb.Checksum(algorithm=1, value=CRC32, type="CHECKSUM_TYPE_FULL_OBJECT")
    assert found == desk.ask("HeadObject", pb.HeadObjectRequest(**named())).object
    assert desk.engine.closed_readers == 1


@pytest.mark.parametrize(
    ("offset", "length", "start", "data"),
    [
        (0, None, 0, DATA),
        (3, None, 3, b"3456789"),
        (3, 4, 3, b"3456"),
        (9, 100, 9, b"9"),
        (-4, None, 6, b"6789"),
        (-4, 2, 6, b"67"),
        (-100, None, 0, DATA),
    ],
)
def test_ranges(desk: Desk, offset: int, length: int | None, start: int, data: bytes) -> None:
    head, got = desk.get(pb.GetObjectRequest(**named(range=pb.ByteRange(offset=offset, length=length))))
    assert (got, head.start, head.length, head.HasField("checksum")) == (data, start, len(data), False)


@pytest.mark.parametrize(
    ("selection", "error"),
    [
        ({"range": pb.ByteRange(offset=10)}, e.InvalidRange),
        ({"range": pb.ByteRange(offset=2**63 - 1)}, e.InvalidRange),
        ({"range": pb.ByteRange(length=0)}, e.InvalidRange),
        ({"range": pb.ByteRange(length=-1)}, e.InvalidArgument),
        ({"part_number": 0}, e.InvalidArgument),
        ({"part_number": -1}, e.InvalidArgument),
        ({"part_number": 10_001}, e.InvalidArgument),
        ({"part_number": 2}, e.InvalidPartNumber),
        ({"version_id": "abc"}, e.NoSuchVersion),
        ({"key": "none"}, e.NoSuchKey),
    ],
)
def test_gets_that_are_refused(desk: Desk, selection: dict[str, Any], error: type[Exception]) -> None:
    items: list[Any] = []
    with pytest.raises(e.AnvilError) as caught:
        desk.items(pb.GetObjectRequest(**named(**selection)), items)
    assert type(caught.value) is error and items == []


def test_one_part(desk: Desk) -> None:
    parts = (PartRecord(2, 4, "a" * 32, NOW_US, Checksum(Algorithm.CRC32, b"part")), PartRecord(7, 6, "b" * 32, NOW_US))
    whole = Checksum(Algorithm.CRC32, bytes(4), ChecksumType.COMPOSITE, 2)
    desk.engine.store(desk.bucket, "multi", DATA, parts=parts, checksum=whole)
    head, data = desk.get(pb.GetObjectRequest(bucket="bucket", key="multi", part_number=2))
    assert (data, head.start, head.length, head.checksum.value, head.object.part_count) == (b"0123", 0, 4, b"part", 2)
    assert (head.object.checksum.type, head.object.checksum.parts) == (pb.CHECKSUM_TYPE_COMPOSITE, 2)
    assert desk.get(pb.GetObjectRequest(bucket="bucket", key="multi", part_number=7))[1] == b"456789"


def test_an_empty_object_is_a_head(desk: Desk) -> None:
    desk.engine.store(desk.bucket, "empty", b"")
    head, data = desk.get(pb.GetObjectRequest(bucket="bucket", key="empty"))
    assert (data, head.length, head.object.size) == (b"", 0, 0)
    with pytest.raises(e.InvalidRange):
        desk.get(pb.GetObjectRequest(bucket="bucket", key="empty", range=pb.ByteRange(offset=-1)))


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        ({"if_match": [ETAG]}, None),
        ({"if_match": [f'"{ETAG}"']}, None),
        ({"if_match": ["*"]}, None),
        ({"if_match": ["x", "y"]}, e.PreconditionFailed),
        ({"if_match": [ETAG], "if_unmodified_since": BEFORE}, None),  # the latter is then not looked at
        ({"if_unmodified_since": BEFORE}, e.PreconditionFailed),
        ({"if_unmodified_since": AFTER}, None),
        ({"if_none_match": [ETAG]}, e.NotModified),
        ({"if_none_match": ["*"]}, e.NotModified),
        ({"if_none_match": ["x"]}, None),
        ({"if_none_match": ["x"], "if_modified_since": AFTER}, None),
        ({"if_modified_since": AFTER}, e.NotModified),
        ({"if_modified_since": BEFORE}, None),
        ({"if_match": [""]}, e.InvalidArgument),
        ({"if_modified_since": Timestamp(nanos=-1)}, e.InvalidArgument),
        ({"if_unmodified_since": Timestamp(seconds=2**40)}, e.InvalidArgument),
    ],
)
def test_conditions_of_reads(desk: Desk, conditions: dict[str, Any], error: type[Exception] | None) -> None:
    said = pb.ReadConditions(**conditions)
    for ask in (
        lambda: desk.items(pb.GetObjectRequest(**named(conditions=said))),
        lambda: desk.ask("HeadObject", pb.HeadObjectRequest(**named(conditions=said))),
    ):
        if error is None:
            ask()
            continue
        with pytest.raises(e.AnvilError) as caught:
            ask()
        assert type(caught.value) is error
        if error is e.NotModified:
            assert caught.value.fields == {"ETag": ETAG}


def test_rights_to_read(desk: Desk) -> None:
    public = desk.catalog.add("public", OTHER, public=True)
    private = desk.catalog.add("private", OTHER)
    for bucket in (public, private):
        desk.engine.store(bucket, "key", DATA)
    assert desk.get(pb.GetObjectRequest(bucket="public", key="key"))[1] == DATA
    with pytest.raises(e.NoSuchBucket):
        desk.get(pb.GetObjectRequest(bucket="private", key="key"))
    with pytest.raises(e.AccessDenied):  # who may not list does not learn that a key is missing
        desk.get(pb.GetObjectRequest(bucket="public", key="none"))
    desk.act_as(app_of(ACME, ("object:list", "*")))
    with pytest.raises(e.AccessDenied):
        desk.ask("HeadObject", pb.HeadObjectRequest(**named(conditions=pb.ReadConditions(if_match=["x"]))))
    desk.catalog.add("away", region="eu-west-1")
    desk.act_as(app_of(ACME))
    with pytest.raises(e.PermanentRedirect) as caught:
        desk.get(pb.GetObjectRequest(bucket="away", key="key"))
    where = {"Bucket": "away", "Region": "eu-west-1", "Endpoint": "https://eu.example.com:8443"}
    assert caught.value.fields == where, "a URL: gRPC clients must know whether it is TLS"


def test_damage_found_at_once_comes_before_the_head(desk: Desk) -> None:
    desk.engine.error_of_reads = e.ReadQuorumLost()
    for after, head_and_chunks in ((0, 0), (5, 2)):
        desk.engine.read_fails_after = after
        items: list[Any] = []
        with pytest.raises(e.ReadQuorumLost):
            desk.items(pb.GetObjectRequest(**named()), items)
        assert len(items) == head_and_chunks
    assert desk.engine.closed_readers == 2


# -- delete, list ----------------------------------------------------------------------------------------------------------


def test_delete(desk: Desk) -> None:
    with pytest.raises(e.PreconditionFailed):
        desk.ask("DeleteObject", pb.DeleteObjectRequest(**named(conditions=pb.WriteConditions(if_match=["x"]))))
    with pytest.raises(e.NotSupported):
        desk.ask("DeleteObject", pb.DeleteObjectRequest(**named(conditions=pb.WriteConditions(if_none_match=["x"]))))
    with pytest.raises(e.NoSuchVersion):
        desk.ask("DeleteObject", pb.DeleteObjectRequest(**named(version_id="abc")))
    desk.ask("DeleteObject", pb.DeleteObjectRequest(**named(version_id="null", conditions=pb.WriteConditions(if_match=[ETAG]))))
    assert not desk.engine.objects
    desk.ask("DeleteObject", pb.DeleteObjectRequest(**named()))  # also what is not there
    desk.act_as(app_of(ACME, ("object:write", "*")))
    with pytest.raises(e.AccessDenied):
        desk.ask("DeleteObject", pb.DeleteObjectRequest(**named()))


def test_pages(desk: Desk) -> None:
    for key in ("a/1", "a/2", "b", "c/1"):
        desk.engine.store(desk.bucket, key, DATA)
    seen: list[str] = []
    token = ""
    while True:
        page = desk.ask("ListObjects", pb.ListObjectsRequest(bucket="bucket", delimiter="/", page_size=2, page_token=token))
        seen += [*(entry.key for entry in page.objects), *page.prefixes]
        assert len(page.objects) + len(page.prefixes) <= 2
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == ["a/", "b", "c/", "key"]
    listed = desk.ask("ListObjects", pb.ListObjectsRequest(bucket="bucket", prefix="k"))
    assert [(entry.key, entry.size, entry.etag) for entry in listed.objects] == [("key", 10, ETAG)]
    assert listed.objects[0].checksum_algorithm == pb.CHECKSUM_ALGORITHM_CRC32
    assert listed.objects[0].checksum_type == pb.CHECKSUM_TYPE_FULL_OBJECT
    after = desk.ask("ListObjects", pb.ListObjectsRequest(bucket="bucket", start_after="b", page_size=2**31 - 1))
    assert [entry.key for entry in after.objects] == ["c/1", "key"]


@pytest.mark.parametrize(
    "field",
    [
        {"page_size": -1},
        {"page_token": "x"},
        {"page_token": "A" * 10_000},
        {"start_after": "a", "page_token": "x"},
        {"prefix": "\0"},
        {"delimiter": "\0"},
        {"start_after": "\0"},
        {"prefix": "p" * 1025},
        {"delimiter": "d" * 1025},
        {"start_after": "s" * 1025},
    ],
)
def test_pages_that_are_refused(desk: Desk, field: dict[str, Any]) -> None:
    with pytest.raises(e.InvalidArgument):
        desk.ask("ListObjects", pb.ListObjectsRequest(bucket="bucket", **field))


def test_rights_to_list(desk: Desk) -> None:
    desk.act_as(app_of(ACME, ("object:read", "*")))
    with pytest.raises(e.AccessDenied) as caught:
        desk.ask("ListObjects", pb.ListObjectsRequest(bucket="bucket", page_size=-1))
    assert caught.value.fields == {"RequiredAction": "object:list", "RequiredResource": "bucket"}


# -- copy ------------------------------------------------------------------------------------------------------------------


def copy(desk: Desk, key: str = "copy", source: dict[str, Any] | None = None, **more: Any) -> pb.CopyObjectResponse:
    said = pb.CopySource(**{"bucket": "bucket", "key": "key"} | (source or {}))
    answer: pb.CopyObjectResponse = desk.ask("CopyObject", pb.CopyObjectRequest(source=said, bucket="bucket", key=key, **more))
    return answer


def test_copies_keep_or_replace_attributes(desk: Desk) -> None:
    answer = copy(desk)
    assert (answer.etag, answer.version_id, answer.checksum.value) == (ETAG, "null", CRC32)
    kept = desk.engine.objects[desk.bucket.bucket_id, "copy"].info.attributes
    assert kept == Attributes(content_type="text/plain", cache_control="no-cache", user={"colour": "röd"})
    copy(desk, attributes=pb.Attributes(website_redirect="/new"))
    assert desk.engine.objects[desk.bucket.bucket_id, "copy"].info.attributes.website_redirect == "/new"
    copy(desk, replace_attributes=True, attributes=pb.Attributes(content_type="a/b"))
    assert desk.engine.objects[desk.bucket.bucket_id, "copy"].info.attributes == Attributes(content_type="a/b")
    with pytest.raises(e.InvalidArgument):  # else it would be ignored
        copy(desk, attributes=pb.Attributes(content_type="a/b"))
    answer = copy(desk, checksum_algorithm="CHECKSUM_ALGORITHM_SHA256")
    assert answer.checksum.value == hashlib.sha256(DATA).digest()
    with pytest.raises(e.InvalidArgument):
        copy(desk, checksum_algorithm=UNKNOWN)


def test_a_copy_onto_itself_must_change_something(desk: Desk) -> None:
    with pytest.raises(e.InvalidRequest):
        copy(desk, "key")
    copy(desk, "key", replace_attributes=True)
    copy(desk, "key", attributes=pb.Attributes(website_redirect="/new"))
    copy(desk, "key", checksum_algorithm="CHECKSUM_ALGORITHM_SHA1")


def test_sources_of_copies(desk: Desk) -> None:
    for source, error in (
        ({"key": "none"}, e.NoSuchKey),
        ({"key": ""}, e.InvalidArgument),
        ({"bucket": ""}, e.InvalidBucketName),
        ({"version_id": "abc"}, e.NoSuchVersion),
        ({"conditions": pb.ReadConditions(if_none_match=[ETAG])}, e.PreconditionFailed),
        ({"conditions": pb.ReadConditions(if_match=["x"])}, e.PreconditionFailed),
    ):
        with pytest.raises(e.AnvilError) as caught:
            copy(desk, source=source)
        assert type(caught.value) is error
    copy(desk, source={"version_id": "null", "conditions": pb.ReadConditions(if_match=[ETAG])})
    with pytest.raises(e.PreconditionFailed):
        copy(desk, conditions=pb.WriteConditions(if_none_match=["*"]))
    desk.act_as(app_of(ACME, ("object:write", "*")))
    with pytest.raises(e.AccessDenied):
        copy(desk)
    desk.act_as(app_of(ACME, ("object:read", "*")))
    with pytest.raises(e.AccessDenied):
        copy(desk)
