"""Addressing, decoding and duplicates: what a request names, decided before anything else looks at it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.api.operations.names import check_new_bucket_name
from anvil.api.s3.request import parse_address, parse_query, parse_request
from anvil.auth.hosts import Hosts
from anvil.base.errors import (
    AnvilError,
    InvalidArgument,
    InvalidBucketName,
    InvalidRequest,
    InvalidURI,
    KeyTooLong,
)
from tests.unit.api.fakes import World, head_of

DOMAINS = Hosts(("s3.example.com", "localhost")).virtual_bucket


@pytest.mark.parametrize(
    ("host", "path", "bucket", "key"),
    [
        ("x", "/", "", ""),
        ("x", "/bucket", "bucket", ""),
        ("x", "/bucket/", "bucket", ""),
        ("x", "/bucket/key", "bucket", "key"),
        ("x", "/bucket//", "bucket", "/"),
        ("x", "/bucket//a", "bucket", "/a"),
        ("x", "/bucket/a/", "bucket", "a/"),
        ("x", "/bucket/a//b", "bucket", "a//b"),
        ("x", "/bucket/..", "bucket", ".."),
        ("x", "/bucket/../other/key", "bucket", "../other/key"),
        ("x", "/bucket/%2e%2e/other", "bucket", "../other"),
        ("x", "/bucket/%2Fa%2Fb", "bucket", "/a/b"),
        ("x", "/bucket/%252e", "bucket", "%2e"),
        ("x", "/bucket/a+b", "bucket", "a+b"),
        ("x", "/bucket/a%20b", "bucket", "a b"),
        ("x", "/bucket/%E2%82%AC", "bucket", "€"),
        ("x", "/bucket/%01%0A", "bucket", "\x01\n"),
        ("bucket.s3.example.com", "/key", "bucket", "key"),
        ("bucket.s3.example.com:50051", "/", "bucket", ""),
        ("my.bucket.s3.example.com", "/a/b", "my.bucket", "a/b"),
        ("BUCKET.S3.Example.com", "/a", "bucket", "a"),
        ("bucket.localhost:50051", "//a", "bucket", "/a"),
        ("s3.example.com", "/bucket/key", "bucket", "key"),
        ("evils3.example.com", "/bucket/key", "bucket", "key"),
        ("[::1]:50051", "/bucket/key", "bucket", "key"),
    ],
)
def test_addresses(host: str, path: str, bucket: str, key: str) -> None:
    address = parse_address(head_of("GET", path, host=host), DOMAINS)
    assert (address.bucket, address.key) == (bucket, key)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("bucket", InvalidURI),
        ("//key", InvalidBucketName),
        ("/../bucket/key", InvalidBucketName),
        ("/./key", InvalidBucketName),
        ("/a%2Fb/key", InvalidBucketName),
        ("/Bucket/key", InvalidBucketName),
        ("/bu_cket/key", InvalidBucketName),
        ("/%00/key", InvalidURI),
        ("/bucket/%00", InvalidURI),
        ("/bucket/a%", InvalidURI),
        ("/bucket/a%4", InvalidURI),
        ("/bucket/%zz", InvalidURI),
        ("/bucket/%ff", InvalidURI),
        ("/bucket/%C0%AF", InvalidURI),
        ("/bucket/%ED%A0%80", InvalidURI),
        ("/bucket/" + "a" * 1025, KeyTooLong),
        ("/bucket/" + "%E2%82%AC" * 342, KeyTooLong),
    ],
)
def test_bad_addresses(path: str, error: type[AnvilError]) -> None:
    with pytest.raises(error):
        parse_address(head_of("GET", path), None)


def test_longest_key_is_1024_bytes() -> None:
    assert len(parse_address(head_of("GET", "/bucket/" + "%E2%82%AC" * 341 + "a"), None).key.encode()) == 1024


def test_an_endpoint_below_another_is_no_bucket_of_it() -> None:
    nested = Hosts(("example.com", "s3.example.com")).virtual_bucket
    assert parse_address(head_of("GET", "/bucket/key", host="s3.example.com"), nested).bucket == "bucket"
    assert parse_address(head_of("GET", "/key", host="bucket.s3.example.com"), nested).bucket == "bucket"


@given(st.binary(max_size=60))
def test_no_path_crosses_buckets(raw: bytes) -> None:
    head = head_of("GET", "/bucket/")
    head = type(head)("GET", b"/bucket/" + raw, b"", (), b"", "1.1", "", None, False)
    try:
        address = parse_address(head, DOMAINS)
    except AnvilError:
        return
    assert address.bucket == "bucket" and "\0" not in address.key


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"uploads", {"uploads": ""}),
        (b"prefix=a%2Fb&max-keys=5", {"prefix": "a/b", "max-keys": "5"}),
        (b"prefix=a+b%2Bc", {"prefix": "a b+c"}),
        (b"a=b=c&&d=", {"a": "b=c", "d": ""}),
    ],
)
def test_queries(raw: bytes, expected: dict[str, str]) -> None:
    assert parse_query(raw) == expected


@pytest.mark.parametrize("raw", [b"prefix=a&prefix=b", b"a=1&%61=2", b"uploads&uploads"])
def test_repeated_parameters_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_query(raw)


@pytest.mark.parametrize(
    "name", ["x-amz-copy-source", "range", "content-md5", "x-amz-checksum-crc32", "x-amz-acl", "content-type"]
)
def test_repeated_headers_are_refused(name: str) -> None:
    head = head_of("GET", "/bucket/key", headers=[(name, "a"), (name, "a")])
    with pytest.raises(InvalidRequest):
        parse_request(head, parse_address(head, None), signed=True)


def test_repeated_user_metadata_is_joined() -> None:
    head = head_of(
        "PUT", "/bucket/key", headers=[("x-amz-meta-a", "1"), ("x-amz-meta-a", "2"), ("if-match", "x"), ("if-match", "y")]
    )
    request = parse_request(head, parse_address(head, None), signed=True)
    assert request.headers[b"x-amz-meta-a"] == b"1,2" and request.user_metadata == [b"x-amz-meta-a"]
    assert request.headers[b"if-match"] == b"x, y"


def test_headers_hoisted_into_a_presigned_query_count() -> None:
    world = World()
    assert world.ask("PUT", "/bucket/key?x-amz-acl=public-read", b"a").code == "NotImplemented"
    assert world.ask("PUT", "/bucket/key?X-Amz-Meta-Colour=red", b"a").status == 200
    assert world.ask("GET", "/bucket/key").headers["x-amz-meta-colour"] == "red"
    assert world.ask("PUT", "/bucket/key?x-amz-acl=private", b"a", headers={"x-amz-acl": "public-read"}).status == 400
    for hostile in ("x-amz-meta-a=%0d%0aset-cookie:x", "x-amz-meta-a%0d%0ab=1", "x-amz-meta-a:b=1", "x-amz-meta-%C3%A4=1"):
        assert world.ask("PUT", f"/bucket/key?{hostile}", b"a").code == "InvalidArgument"


def test_an_unsigned_query_is_no_header() -> None:
    head = head_of("GET", "/bucket/key?x-amz-copy-source=/a/b")
    assert b"x-amz-copy-source" not in parse_request(head, parse_address(head, None), signed=False).headers


@pytest.mark.parametrize("name", ["abc", "a-b.c", "my.bucket-1", "1bucket", "a" * 63, "123.456"])
def test_bucket_names(name: str) -> None:
    assert check_new_bucket_name(name) == name


BAD_NAMES = (
    "ab", "Abc", "a_b", "-abc", "abc-", ".abc", "abc.", "a..b", "a" * 64, "192.168.5.4", "ready", "metrics",
    "xn--abc", "sthree-abc", "amzn-s3-demo-bucket", "abc-s3alias", "abc--ol-s3", "abc.mrap", "abc--x-s3",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_bucket_names(name: str) -> None:
    with pytest.raises(InvalidBucketName):
        check_new_bucket_name(name)
