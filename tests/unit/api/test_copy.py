"""CopyObject: naming, rights and conditions of the source, metadata of the copy, and answers that take long."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from xml.etree import ElementTree

import pytest

from anvil.api.s3.call import Call
from anvil.api.s3.handlers.copy import parse_source
from anvil.api.s3.longanswer import answer_when_done
from anvil.api.s3.xml import Xml
from anvil.base.errors import AnvilError, InvalidArgument, KeyTooLong, NotSupported, WriteQuorumLost
from anvil.model.records import Algorithm, Attributes, Checksum, ChecksumType
from tests.unit.api.fakes import ACME, OTHER, FakeStream, World, app_of, head_of

ETAG = hashlib.md5(b"data").hexdigest()
AFTER, BEFORE = "Wed, 15 Nov 2023 00:00:00 GMT", "Mon, 13 Nov 2023 00:00:00 GMT"


@pytest.fixture
def world() -> World:
    world = World()
    kept = Attributes(content_type="text/plain", cache_control="no-cache", website_redirect="/x", user={"colour": "red"})
    world.engine.store(world.bucket, "source key", b"data", kept)
    return world


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bucket/key", ("bucket", "key", None)),
        ("/bucket/key", ("bucket", "key", None)),
        ("/bucket/a/b%20c", ("bucket", "a/b c", None)),
        ("bucket%2Fa%2Fb", ("bucket", "a/b", None)),
        ("%2Fbucket/a", ("bucket", "a", None)),
        ("/bucket/a+b", ("bucket", "a+b", None)),
        ("/bucket/a%3FversionId=1", ("bucket", "a?versionId=1", None)),
        ("/bucket/a?versionId=null", ("bucket", "a", "null")),
        ("/bucket/../b", ("bucket", "../b", None)),
        ("/bucket//a", ("bucket", "/a", None)),
    ],
)
def test_sources(value: str, expected: object) -> None:
    assert parse_source(value.encode()) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", InvalidArgument),
        ("bucket", InvalidArgument),
        ("/bucket/", InvalidArgument),
        ("//key", InvalidArgument),
        ("/bucket/%zz", InvalidArgument),
        ("/bucket/%ff", InvalidArgument),
        ("/bucket/%00", InvalidArgument),
        ("/bucket/a?other=1", InvalidArgument),
        ("arn:aws:s3:us-east-1:1:accesspoint/a/object/b", NotSupported),
        ("/bucket/" + "a" * 1025, KeyTooLong),
    ],
)
def test_bad_sources(value: str, error: type[AnvilError]) -> None:
    with pytest.raises(error):
        parse_source(value.encode())


def copy(world: World, target: str = "/bucket/copy", source: str = "/bucket/source%20key", **headers: str) -> FakeStream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return world.ask("PUT", target, headers={"x-amz-copy-source": source} | named)


def test_copy(world: World) -> None:
    answer = copy(world)
    assert (answer.status, answer.xml.tag) == (200, "CopyObjectResult")
    assert (answer.text("ETag"), answer.text("LastModified")) == (f'"{ETAG}"', "2023-11-14T22:13:20.000Z")
    got = world.ask("GET", "/bucket/copy")
    assert got.sent == b"data"
    assert (got.headers["content-type"], got.headers["x-amz-meta-colour"]) == ("text/plain", "red")
    assert "x-amz-website-redirect-location" not in got.headers


def test_replace(world: World) -> None:
    copy(world, x_amz_metadata_directive="REPLACE", x_amz_meta_size="big", content_type="image/png")
    headers = world.ask("HEAD", "/bucket/copy").headers
    assert (headers["content-type"], headers["x-amz-meta-size"]) == ("image/png", "big")
    assert "x-amz-meta-colour" not in headers and "cache-control" not in headers
    assert copy(world, x_amz_metadata_directive="MERGE").code == "InvalidArgument"


def test_onto_itself(world: World) -> None:
    itself = "/bucket/source%20key"
    assert copy(world, itself).code == "InvalidRequest"
    assert copy(world, itself, x_amz_metadata_directive="REPLACE", x_amz_meta_a="b").status == 200
    assert world.ask("HEAD", itself).headers["x-amz-meta-a"] == "b"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-match": f'"{ETAG}"'}, 200),
        ({"if-match": '"x"'}, 412),
        ({"if-none-match": f'"{ETAG}"'}, 412),
        ({"if-none-match": '"x"'}, 200),
        ({"if-modified-since": AFTER}, 412),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-match": f'"{ETAG}"', "if-unmodified-since": BEFORE}, 200),
        ({"if-none-match": f'"{ETAG}"', "if-modified-since": BEFORE}, 412),
    ],
)
def test_source_conditions(world: World, headers: dict[str, str], status: int) -> None:
    named = {f"x-amz-copy-source-{name}": value for name, value in headers.items()}
    assert copy(world, **named).status == status


def test_conditions_on_the_target(world: World) -> None:
    assert copy(world, if_none_match="*").status == 200
    assert copy(world, if_none_match="*").status == 412


def test_the_source_is_authorized(world: World) -> None:
    foreign = world.catalog.add("foreign", OTHER)
    world.engine.store(foreign, "key", b"secret")
    assert copy(world, source="/foreign/key").code == "NoSuchBucket"
    world.act_as(app_of(ACME, ("object:write", "*"), ("object:list", "*")))
    assert copy(world).code == "AccessDenied"
    assert copy(world, x_amz_copy_source_if_match='"x"').code == "AccessDenied"
    world.act_as(app_of(ACME, ("object:read", "*"), ("object:write", "bucket/copy")))
    assert copy(world).status == 200
    assert copy(world, "/bucket/elsewhere").code == "AccessDenied"
    assert copy(world, source="/bucket/missing").code == "AccessDenied"
    world.act_as(None)
    assert copy(world).code == "AccessDenied"


def test_missing_sources(world: World) -> None:
    answer = copy(world, source="/bucket/missing")
    assert (answer.code, answer.text("Key")) == ("NoSuchKey", "missing")
    assert copy(world, source="/nobucket/key").code == "NoSuchBucket"
    assert copy(world, source="/bucket/source%20key?versionId=abc").code == "NoSuchVersion"
    answer = copy(world, source="/bucket/source%20key?versionId=null")
    assert answer.headers["x-amz-copy-source-version-id"] == "null"


def test_source_owner(world: World) -> None:
    assert copy(world, x_amz_source_expected_bucket_owner="000000000007").status == 200
    assert copy(world, x_amz_source_expected_bucket_owner="000000000001").code == "AccessDenied"


def test_checksums_of_a_copy(world: World) -> None:
    crc32 = Checksum(Algorithm.CRC32, bytes(4), ChecksumType.COMPOSITE, 2)
    world.engine.store(world.bucket, "summed", b"data", checksum=crc32)
    answer = copy(world, source="/bucket/summed")
    assert (answer.text("ChecksumCRC32"), answer.text("ChecksumType")) == ("rfPzYw==", "FULL_OBJECT")
    answer = copy(world, x_amz_checksum_algorithm="SHA256")
    assert answer.text("ChecksumSHA256") == _sha256(b"data")
    assert copy(world, x_amz_checksum_algorithm="MD4").code == "InvalidRequest"


def _sha256(data: bytes) -> str:
    return b64encode(hashlib.sha256(data).digest()).decode()


# -- long answers ------------------------------------------------------------------------------------------------------------


def long_answer(outcome: object) -> tuple[FakeStream, Call]:
    """Work that ends only after white space was seen."""

    async def scenario() -> tuple[FakeStream, Call]:
        world = World()
        stream = FakeStream(head_of("PUT", "/bucket/key"))
        call = Call(world.api._services, world.api._open_body, stream, "ID", "HOST")

        async def work() -> object:
            while stream.sent.count(b"\n") < 4:
                await asyncio.sleep(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def write(xml: Xml, result: object) -> None:
            xml.text("Result", str(result))

        await answer_when_done(call, work(), write, after_s=0, every_s=0)
        return stream, call

    return asyncio.run(scenario())


def test_white_space_until_the_result_is_known() -> None:
    stream, _ = long_answer("done")
    assert stream.status == 200 and stream.finished and "content-length" not in stream.headers
    assert stream.sent.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n\n\n')
    assert ElementTree.fromstring(bytes(stream.sent)).text == "done"


def test_a_late_error_is_a_document_behind_200(caplog: pytest.LogCaptureFixture) -> None:
    stream, call = long_answer(WriteQuorumLost())
    assert (stream.status, stream.text("Code"), call.error_code) == (200, "SlowDown", "SlowDown")
    stream, call = long_answer(RuntimeError("secret"))
    assert stream.text("Code") == "InternalError" and b"secret" not in stream.sent and "secret" in caplog.text


def test_an_early_error_keeps_its_status(world: World) -> None:
    world.engine.gate = asyncio.Event()
    world.engine.gate.set()

    async def fail(*_: object) -> None:
        raise WriteQuorumLost()

    world.engine.copy_object = fail  # type: ignore[assignment, method-assign]
    assert copy(world).status == 503
