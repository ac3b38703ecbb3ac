"""Hostile XML, keys, list parameters and metadata: refused with S3's code, or taken literally and given back as they came."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from urllib.parse import quote

import pytest

from tests.integration.bad_input.conftest import World
from tests.support.rawclient import Answer, exchange, raw_head

XML, ARGUMENT, URI = (400, "MalformedXML"), (400, "InvalidArgument"), (400, "InvalidURI")
TOO_LARGE = (400, "EntityTooLarge")


def deletion(*keys: bytes) -> bytes:
    return b"<Delete>" + b"".join(b"<Object><Key>%b</Key></Object>" % key for key in keys) + b"</Delete>"


def delete(world: World, document: bytes) -> Answer:
    stated = {"content-md5": base64.b64encode(hashlib.md5(document).digest()).decode()}
    return world.own("POST", "/attacked?delete", document, stated)


LAUGHS = b"".join(b'<!ENTITY l%d "%b">' % (i, b"&l%d;" % (i - 1) * 10 if i else b"lol" * 10) for i in range(10))
DOCUMENTS = {
    "a DTD": b"<!DOCTYPE Delete>" + deletion(b"kept"),
    "a billion laughs": b"<!DOCTYPE Delete [" + LAUGHS + b"]>" + deletion(b"&l9;"),
    "an external entity": b'<!DOCTYPE Delete [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + deletion(b"&x;"),
    "an external DTD": b'<!DOCTYPE Delete SYSTEM "http://127.0.0.1:1/x.dtd">' + deletion(b"kept"),
    "a parameter entity": b'<!DOCTYPE Delete [<!ENTITY % x "y"> %x;]>' + deletion(b"kept"),
    "an unknown entity": deletion(b"&x;"),
    "a processing instruction": b"<?php x?>" + deletion(b"kept"),
    "UTF-16": deletion(b"kept").decode().encode("utf-16"),
    "UTF-16 that says so": ('<?xml version="1.0" encoding="UTF-16"?>' + deletion(b"kept").decode()).encode("utf-16"),
    "UTF-16 without a mark": deletion(b"kept").decode().encode("utf-16-le"),
    "UTF-32": deletion(b"kept").decode().encode("utf-32"),
    "Latin-1 that says so": '<?xml version="1.0" encoding="ISO-8859-1"?><Delete><Object><Key>é</Key></Object></Delete>'.encode("latin-1"),
    "NUL": deletion(b"a\0b"),
    "a reference to NUL": deletion(b"a&#0;b"),
    "a surrogate": deletion(b"\xed\xa0\x80"),
    "deep nesting": b"<Delete>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</Delete>",
    "100,001 elements": b"<Delete>" + b"<a/>" * 100_001 + b"</Delete>",
    "1,001 keys": deletion(*(b"k%d" % i for i in range(1001))),
    "no keys": deletion(),
    "an empty key": deletion(b""),
    "two keys in one object": b"<Delete><Object><Key>a</Key><Key>kept</Key></Object></Delete>",
    "another root": b"<Remove/>",
    "two roots": deletion(b"a") * 2,
    "another namespace": b'<Delete xmlns="urn:x"><Object><Key>kept</Key></Object></Delete>',
    "cut off": deletion(b"kept")[:-3],
    "not XML": b"kept",
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_documents(world: World, name: str) -> None:
    answer = delete(world, DOCUMENTS[name])
    assert answer.face == XML
    assert b"root:" not in answer.body and len(answer.body) < 2000
    assert world.own("GET", "/attacked/kept").body == b"old"


def test_a_document_of_a_mebibyte_and_one_of_a_byte_more(world: World) -> None:
    def padded(size: int) -> bytes:
        return deletion(b"padded") + b" " * (size - len(deletion(b"padded")))

    assert delete(world, padded(1 << 20)).status == 200
    assert delete(world, padded((1 << 20) + 1)).face == TOO_LARGE
    head = world.own.head(
        "POST", "/attacked?delete", {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, unsigned=[("transfer-encoding", "chunked")]
    )
    endless = b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(64))
    assert exchange(world.node.port, head + endless).face == TOO_LARGE, "nor in chunks"
    assert world.own("PUT", "/new-bucket", b" " * ((1 << 20) + 1)).face == TOO_LARGE


def test_deletions_need_a_digest_that_is_right(world: World) -> None:
    document = deletion(b"kept")
    assert world.own("POST", "/attacked?delete", document).face == (400, "InvalidRequest")
    wrong = {"content-md5": base64.b64encode(bytes(16)).decode()}
    assert world.own("POST", "/attacked?delete", document, wrong).face == (400, "BadDigest")
    assert world.own("POST", "/attacked?delete", b"", wrong).face[0] == 400
    assert world.own("GET", "/attacked/kept").body == b"old"


def test_an_error_in_one_line_is_that_lines_own(world: World) -> None:
    answer = delete(world, deletion(b"k" * 1025, b"nothing"))
    assert answer.status == 200
    assert b"<Code>KeyTooLongError</Code>" in answer.body and b"<Deleted><Key>nothing</Key></Deleted>" in answer.body


def parts(*listed: tuple[int, bytes]) -> bytes:
    lines = b"".join(b"<Part><PartNumber>%d</PartNumber><ETag>%b</ETag></Part>" % part for part in listed)
    return b"<CompleteMultipartUpload>" + lines + b"</CompleteMultipartUpload>"


def test_completions(world: World) -> None:
    target = "/attacked/uploaded"
    upload = re.search(rb"<UploadId>(\w+)<", world.own("POST", f"{target}?uploads").body)
    assert upload
    target += f"?uploadId={upload[1].decode()}"
    etag = world.own("PUT", f"{target}&partNumber=1", b"part").headers["etag"].encode()
    order, invalid = (400, "InvalidPartOrder"), (400, "InvalidPart")
    for document, face in (
        (parts(*((number, b"x") for number in range(1, 10_002))), XML),
        (parts(*((number, b"x") for number in range(1, 10_001))), invalid),
        (parts((1, etag), (1, etag)), order),
        (parts((2, etag), (1, etag)), order),
        (parts((0, etag)), ARGUMENT),
        (parts((10_001, etag)), ARGUMENT),
        (parts((-1, etag)), XML),
        (parts((10**30, etag)), XML),
        (parts(), XML),
        (b"", XML),
        (parts((1, b"0" * 32)), invalid),
        (parts((1, etag), (2, etag)), invalid),
        (parts((1, "é".encode())), invalid),
        (b" " * ((4 << 20) + 1), TOO_LARGE),
        (DOCUMENTS["a billion laughs"].replace(b"Delete", b"CompleteMultipartUpload"), XML),
    ):
        assert world.own("POST", target, document).face == face, document[:200]
        assert world.own("GET", "/attacked/uploaded").face == (404, "NoSuchKey")
    for number in ("0", "10001", "-1", "x", "1e3", "%D9%A1", ""):
        assert world.own("PUT", f"{target}&partNumber={number}", b"x").face == ARGUMENT, number
    assert world.own("PUT", target, b"x").face == ARGUMENT
    elsewhere = target.replace("uploaded", "elsewhere")
    assert world.own("PUT", f"{elsewhere}&partNumber=1", b"x").face == (404, "NoSuchUpload")
    assert world.own("POST", target, parts((1, etag))).status == 200
    assert world.own("GET", "/attacked/uploaded").body == b"part"


# -- keys ----------------------------------------------------------------------------------------------------------------------

KEYS = {
    "k" * 1024: (200, ""), "k" * 1025: (400, "KeyTooLongError"),
    "%41" * 1024: (200, ""), "%41" * 1025: (400, "KeyTooLongError"),
    "%C3%A9" * 512: (200, ""), "%C3%A9" * 513: (400, "KeyTooLongError"), "%25" * 1024: (200, ""),
    "%00": URI, "a%00b": URI, "%ff": URI, "%C0%AF": URI, "%ED%A0%80": URI, "%F4%90%80%80": URI, "%": URI, "%4": URI, "%zz": URI,
    "%u0041": URI,
    "%F4%8F%BF%BF": (200, ""), "%EF%BF%BF": (200, ""), "%01%02%1F%7F%C2%80": (200, ""), "%0D%0Aset-cookie:%20x=1": (200, ""),
    ".": (200, ""), "..": (200, ""), "/": (200, ""), "//": (200, ""), "/a": (200, ""), "a//b": (200, ""), "a/./b": (200, ""),
    "a%2Fb": (200, ""), "a%2fb%2f": (200, ""), "a+b": (200, ""), "a%20b": (200, ""), "%3Fuploads": (200, ""), "%23": (200, ""),
    "%3C%2FKey%3E%3CKey%3E": (200, ""), "%26amp%3B": (200, ""), "%27%22%3B--": (200, ""), "%25s%25n": (200, ""), "%E2%80%AE": (200, ""),
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:20])
def test_hostile_keys(world: World, key: str) -> None:
    target, expected = f"/attacked/{key}", KEYS[key]
    assert world.own("PUT", target, key[:9].encode()).face == expected
    answer = world.own("GET", target)
    assert answer.face == expected and "set-cookie" not in answer.headers
    assert world.own("PUT", "/attacked/copied-key", b"", {"x-amz-copy-source": target}).face in (expected, ARGUMENT)
    if expected[0] != 200:
        return
    assert answer.body == key[:9].encode()
    plain = bytes.fromhex("".join(c[1:] if c.startswith("%") else c.encode().hex() for c in re.findall("%..|.", key)))
    listed = world.own("GET", f"/attacked?encoding-type=url&prefix={quote(plain)}")
    assert f"<Key>{quote(plain)}</Key>".encode() in listed.body
    assert world.own("DELETE", target).status == 204


# -- parameters of listings ----------------------------------------------------------------------------------------------------


def token(raw: bytes) -> str:
    return base64.urlsafe_b64encode(b"\x01" + zlib.crc32(raw).to_bytes(4, "big") + raw).decode().rstrip("=")


LISTS = {
    **{f"max-keys={value}": ARGUMENT for value in ("-1", "2147483648", "9" * 5000, "x", "1e3", "%D9%A1", "0x10", "1.0", "+1x")},
    "max-keys=2147483647": (200, ""), "max-keys=0": (200, ""), "uploads&max-uploads=-1": ARGUMENT,
    "prefix=%00": URI, "prefix=%ff": URI, "delimiter=%00": URI, "marker=%00": URI, "marker=%ff": URI, "list-type=2&start-after=%00": URI,
    f"prefix={'p' * 1025}": ARGUMENT, f"delimiter={'d' * 1025}": ARGUMENT, f"marker={'m' * 5000}": (200, ""),
    "list-type=2&continuation-token=x": ARGUMENT, "list-type=2&continuation-token=": ARGUMENT,
    f"list-type=2&continuation-token={token(bytes(1))}": ARGUMENT, f"list-type=2&continuation-token={token(bytes([255]))}": ARGUMENT,
    f"list-type=2&continuation-token={token(b'z' * 5000)}": (200, ""),
    "list-type=1": ARGUMENT, "list-type=": ARGUMENT, "encoding-type=base64": ARGUMENT, "list-type=2&fetch-owner=maybe": ARGUMENT,
    "prefix=a&prefix=b": ARGUMENT, "versions&version-id-marker=x": ARGUMENT, "uploads&key-marker=a&upload-id-marker=x": ARGUMENT,
    "uploads&versions": ARGUMENT, "prefix=%F4%8F%BF%BF&delimiter=%F4%8F%BF%BF": (200, ""),
    "delimiter=%25&prefix=%5F": (200, ""), "delimiter=/&prefix=/&marker=/": (200, ""), "prefix=%27%3B--": (200, ""),
}  # fmt: skip


@pytest.mark.parametrize("query", LISTS, ids=lambda query: query[:40])
def test_hostile_list_parameters(world: World, query: str) -> None:
    assert world.own("GET", f"/attacked?{query}").face == LISTS[query]


# -- metadata ------------------------------------------------------------------------------------------------------------------


def test_metadata_has_a_limit(world: World) -> None:
    assert world.own("PUT", "/attacked/meta", b"x", {"x-amz-meta-a": "v" * 2047}).status == 200
    assert world.own("PUT", "/attacked/meta", b"x", {"x-amz-meta-a": "v" * 2048}).face == (400, "MetadataTooLarge")
    assert world.own("PUT", "/attacked/meta", b"x", {"x-amz-meta-": "v"}).face == ARGUMENT
    assert world.own("HEAD", "/attacked/meta").headers["x-amz-meta-a"] == "v" * 2047


def test_metadata_twice_and_in_other_alphabets(world: World) -> None:
    """Repeated ones are joined, as SigV4 joins them; what is not ASCII comes back as an RFC 2047 word."""
    signed = world.own.headers("PUT", "/attacked/meta", {"x-amz-meta-a": "1,2"})
    lines = [(name, value) for name, value in signed.items() if name != "x-amz-meta-a"]
    twice = [*lines, ("x-amz-meta-a", "1"), ("x-amz-meta-a", "2"), ("content-length", "1")]
    assert exchange(world.node.port, raw_head("PUT", "/attacked/meta", twice) + b"x").status == 200
    assert world.own("HEAD", "/attacked/meta").headers["x-amz-meta-a"] == "1,2"
    url = world.own.presigned("PUT", "/attacked/meta?x-amz-meta-b=%E2%82%AC")
    assert world.nobody("PUT", url, b"x").status == 200
    assert world.own("HEAD", "/attacked/meta").headers["x-amz-meta-b"] == "=?UTF-8?B?4oKs?="


@pytest.mark.parametrize("value", ["a%0d%0aset-cookie:%20x=1", "a%0aset-cookie:%20x=1", "a%0d", "%01", "%7f"])
def test_nothing_injects_a_header(world: World, value: str) -> None:
    for name in ("content-type", "content-disposition", "content-language", "expires", "cache-control", "content-encoding"):
        answer = world.own("GET", f"/attacked/kept?response-{name}={value}")
        assert answer.face == ARGUMENT and "set-cookie" not in answer.headers
    for name in ("x-amz-meta-a", "x-amz-website-redirect-location", "x-amz-copy-source"):
        answer = world.nobody("PUT", world.own.presigned("PUT", f"/attacked/meta?{name}={value}"), b"x")
        assert answer.face == ARGUMENT and "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["if-modified-since", "if-unmodified-since"])
@pytest.mark.parametrize(
    "value", ["Tue, 14 Nov 99999999999999 22:13:20 GMT", "Tue, 14 Nov 2023 22:13:20 +9999999999999999", "yesterday", "9" * 5000, "("]
)  # fmt: skip
def test_dates_that_are_none_are_ignored(world: World, name: str, value: str) -> None:
    assert world.own("GET", "/attacked/kept", headers={name: value}).body == b"old"


@pytest.mark.parametrize(
    ("value", "status", "body"),
    [
        ("bytes=0-0", 206, b"o"), ("bytes=-1", 206, b"d"), (f"bytes=-{'9' * 20}", 206, b"old"), ("bytes=3-", 416, None),
        ("bytes=-0", 416, None), ("bytes=2-1", 200, b"old"), (f"bytes={'9' * 5000}-", 200, b"old"), ("bytes=0-0,1-1", 200, b"old"),
        ("bytes=" + "0-," * 2000, 200, b"old"), ("lines=1-2", 200, b"old"),
    ],
)  # fmt: skip
def test_hostile_ranges(world: World, value: str, status: int, body: bytes | None) -> None:
    answer = world.own("GET", "/attacked/kept", unsigned=[("range", value)])
    assert answer.status == status and (body is None or answer.body == body)


@pytest.mark.parametrize(
    ("source", "face"),
    [
        ("", ARGUMENT), ("/", ARGUMENT), ("attacked", ARGUMENT), ("/attacked/", ARGUMENT), ("//attacked/kept", ARGUMENT),
        ("/attacked/%00", ARGUMENT), ("/attacked/%ff", ARGUMENT), ("/attacked/kept?uploads", ARGUMENT),
        ("/attacked/kept?versionId=x", (404, "NoSuchVersion")), ("/attacked/../second/kept", (404, "NoSuchKey")),
        ("attacked%2F..%2Fsecond%2Fkept", (404, "NoSuchKey")), ("/../attacked/kept", (404, "NoSuchBucket")),
        ("http://127.0.0.1/attacked/kept", (404, "NoSuchBucket")), ("B" * 5000 + "/kept", (404, "NoSuchBucket")),
        ("arn:aws:s3:::attacked/kept", (501, "NotImplemented")), ("/attacked/" + "k" * 1025, (400, "KeyTooLongError")),
    ],
)  # fmt: skip
def test_hostile_copy_sources(world: World, source: str, face: tuple[int, str]) -> None:
    assert world.own("PUT", "/attacked/copied", headers={"x-amz-copy-source": source}).face == face
    assert world.own("GET", "/attacked/copied").face == (404, "NoSuchKey")
