"""SigV4 against the examples Amazon publishes, and the Cython kernel against the readable reference."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.auth import sigv4, sigv4_reference

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = b"examplebucket.s3.amazonaws.com"
DATE = b"20130524T000000Z"
SCOPE = b"20130524/us-east-1/s3/aws4_request"
EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

both = pytest.mark.parametrize("impl", [sigv4, sigv4_reference], ids=["cython", "reference"])

# Amazon S3 API Reference, "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk" and
# "... in Multiple Chunks", "Authenticating Requests: Using Query Parameters".
EXAMPLES = {
    "get object with range": (
        "GET", b"/test.txt", b"",
        ((b"host", HOST), (b"range", b"bytes=0-9"), (b"x-amz-content-sha256", EMPTY), (b"x-amz-date", DATE)),
        b"host;range;x-amz-content-sha256;x-amz-date", EMPTY, 0,
        b"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "put object": (
        "PUT", b"/test$file.text", b"",
        (
            (b"host", HOST), (b"date", b"Fri, 24 May 2013 00:00:00 GMT"), (b"x-amz-date", DATE),
            (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
            (b"x-amz-content-sha256", b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
        ),
        b"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", 0,
        b"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "get bucket lifecycle": (
        "GET", b"/", b"lifecycle",
        ((b"host", HOST), (b"x-amz-date", DATE), (b"x-amz-content-sha256", EMPTY)),
        b"host;x-amz-content-sha256;x-amz-date", EMPTY, 0,
        b"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "list objects": (
        "GET", b"/", b"max-keys=2&prefix=J",
        ((b"host", HOST), (b"x-amz-date", DATE), (b"x-amz-content-sha256", EMPTY)),
        b"host;x-amz-content-sha256;x-amz-date", EMPTY, 0,
        b"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
    "presigned get": (
        "GET", b"/test.txt",
        b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        b"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=00",
        ((b"host", HOST),), b"host", b"UNSIGNED-PAYLOAD", sigv4.PRESIGNED,
        b"aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    ),
    "put object in chunks (seed)": (
        "PUT", b"/examplebucket/chunkObject.txt", b"",
        (
            (b"host", b"s3.amazonaws.com"), (b"x-amz-date", DATE), (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
            (b"x-amz-content-sha256", b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), (b"content-encoding", b"aws-chunked"),
            (b"x-amz-decoded-content-length", b"66560"), (b"content-length", b"66824"),
        ),
        b"content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
        b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", 0,
        b"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("example", EXAMPLES)
def test_published_examples(impl: ModuleType, example: str) -> None:
    method, path, query, headers, signed, payload, flags, expected = EXAMPLES[example]
    host = dict(headers)[b"host"]
    key = impl.derive_key(SECRET, b"20130524", b"us-east-1", b"s3")
    assert impl.signature(key, DATE, SCOPE, method, path, query, headers, signed, host, payload, flags) == expected


@both
def test_published_canonical_request_and_string_to_sign(impl: ModuleType) -> None:
    method, path, query, headers, signed, payload, flags, _ = EXAMPLES["get object with range"]
    canonical = impl.canonical_request(method, path, query, headers, signed, HOST, payload, flags)
    assert canonical.decode() == (
        "GET\n/test.txt\n\nhost:examplebucket.s3.amazonaws.com\nrange:bytes=0-9\n"
        "x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nx-amz-date:20130524T000000Z\n\n"
        "host;range;x-amz-content-sha256;x-amz-date\ne3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert impl.string_to_sign(DATE, SCOPE, canonical).decode() == (
        "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n"
        "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972"
    )


@both
@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"", b"/"),
        (b"/b/a%20b", b"/b/a%20b"),
        (b"/b/a b", b"/b/a%20b"),
        (b"/b//a/../c/./d/", b"/b//a/../c/./d/"),  # nothing is normalized away
        (b"/b/a%2Fb", b"/b/a%2Fb"),  # an encoded slash is not a separator
        (b"/b/a%2fb", b"/b/a%2Fb"),
        (b"/b/%7Ea%41", b"/b/~aA"),  # unreserved characters are never encoded
        (b"/b/(a)*!'", b"/b/%28a%29%2A%21%27"),
        (b"/b/a+b", b"/b/a%2Bb"),
        (b"/b/%E2%82%AC", b"/b/%E2%82%AC"),
        (b"/b/\xe2\x82\xac", b"/b/%E2%82%AC"),
        (b"/b/100%", b"/b/100%25"),
        (b"/b/%zz%4", b"/b/%25zz%254"),
        (b"/b/a%2525", b"/b/a%2525"),  # once, not twice
    ],
)
def test_paths(impl: ModuleType, raw: bytes, canonical: bytes) -> None:
    assert impl.canonical_path(raw) == canonical


@both
@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"acl", b"acl="),
        (b"b=2&a=1", b"a=1&b=2"),
        (b"a=2&a=10&a=1", b"a=1&a=10&a=2"),  # duplicates stay, sorted by value
        (b"a-b=1&a=1", b"a=1&a-b=1"),  # by name, not by the text with "="
        (b"prefix=a+b%20c%2Bd", b"prefix=a%20b%20c%2Bd"),
        (b"prefix=a/b~c*", b"prefix=a%2Fb~c%2A"),
        (b"a=b=c", b"a=b%3Dc"),
        (b"&&a=1&", b"a=1"),
        (b"=", b"="),
    ],
)
def test_queries(impl: ModuleType, raw: bytes, canonical: bytes) -> None:
    assert impl.canonical_query(raw) == canonical


@both
def test_verbatim_query_is_only_sorted(impl: ModuleType) -> None:
    assert impl.canonical_query(b"b=a+b/c&a&X-Amz-Signature=1", sigv4.VERBATIM | sigv4.PRESIGNED) == b"a=&b=a+b/c"


@both
def test_header_values_are_trimmed_joined_and_missing_ones_empty(impl: ModuleType) -> None:
    headers = ((b"x-amz-meta-a", b"  two   words\t "), (b"x-amz-meta-b", b"1"), (b"x-amz-meta-a", b"2"))
    text = impl.canonical_request("GET", b"/", b"", headers, b"host;x-amz-meta-a;x-amz-meta-c", b" h:1 ", b"P")
    assert text == b"GET\n/\n\nhost:h:1\nx-amz-meta-a:two words,2\nx-amz-meta-c:\n\nhost;x-amz-meta-a;x-amz-meta-c\nP"


@both
@pytest.mark.parametrize(
    ("signed", "valid"),
    [
        (b"host", True), (b"host;x-amz-date", True), (b"a;a-b;host", True),
        (b"", False), (b"host;", False), (b";host", False), (b"x-amz-date;host", False), (b"host;host", False), (b"Host", False),
        (b"host; range", False), (b"host,range", False), (b"ho\x00st", False), (b"h\xc3\xb6st", False),
    ],
)  # fmt: skip
def test_signed_headers_lists(impl: ModuleType, signed: bytes, valid: bool) -> None:
    assert impl.signed_headers_valid(signed) is valid


@both
def test_host_and_every_amz_header_must_be_signed(impl: ModuleType) -> None:
    headers = (
        (b"x-amz-date", b""),
        (b"x-amz-copy-source", b""),
        (b"content-md5", b""),
        (b"x-amz-copy-source", b""),
        (b"x-amz-", b""),
    )
    assert impl.unsigned_headers(headers, b"range;x-amz-date;x-amz-dat") == [b"host", b"x-amz-copy-source", b"x-amz-"]
    assert impl.unsigned_headers(headers, b"host;x-amz-;x-amz-copy-source;x-amz-date") == []


awkward = st.binary(max_size=60) | st.lists(
    st.sampled_from(
        [
            b"a",
            b"%",
            b"%2F",
            b"%2f",
            b"%7e",
            b"+",
            b" ",
            b"&",
            b"=",
            b"/",
            b"..",
            b"~",
            b"*",
            b"\xff",
            b"X-Amz-Signature",
            b"%4",
            b"\t",
        ]
    )
).map(b"".join)
names = st.sampled_from([b"host", b"x-amz-date", b"x-amz-meta-a", b"range", b"", b"x-amz-"])
header_lists = st.lists(st.tuples(names, awkward), max_size=8).map(tuple)
signed_lists = st.lists(names | awkward, max_size=6).map(b";".join)


@given(path=awkward, query=awkward, flags=st.integers(0, 3))
def test_equal_paths_and_queries(path: bytes, query: bytes, flags: int) -> None:
    assert sigv4.canonical_path(path) == sigv4_reference.canonical_path(path)
    assert sigv4.canonical_query(query, flags) == sigv4_reference.canonical_query(query, flags)


@given(
    awkward,
    awkward,
    header_lists,
    signed_lists,
    awkward,
    awkward,
    awkward,
    awkward,
    awkward,
    st.integers(0, 3),
    st.text(max_size=99),
)
def test_equal_signatures(
    path: bytes,
    query: bytes,
    headers: tuple,
    signed: bytes,
    host: bytes,
    payload: bytes,
    date: bytes,
    scope: bytes,
    region: bytes,
    flags: int,
    secret: str,
) -> None:
    request = ("GET", path, query, headers, signed, host, payload, flags)
    assert sigv4.canonical_request(*request) == sigv4_reference.canonical_request(*request)
    key = sigv4.derive_key(secret, date, region, b"s3")
    assert key == sigv4_reference.derive_key(secret, date, region, b"s3")
    assert sigv4.signature(key, date, scope, *request) == sigv4_reference.signature(key, date, scope, *request)
    assert sigv4.string_to_sign(date, scope, path) == sigv4_reference.string_to_sign(date, scope, path)


@given(header_lists, signed_lists)
def test_equal_header_rules(headers: tuple, signed: bytes) -> None:
    assert sigv4.signed_headers_valid(signed) == sigv4_reference.signed_headers_valid(signed)
    assert sigv4.unsigned_headers(headers, signed) == sigv4_reference.unsigned_headers(headers, signed)


@given(st.integers(0, 40), st.integers(1, 400))
def test_equal_at_the_edges_of_the_growing_buffer(extra: int, count: int) -> None:
    """Requests around and far beyond the first allocation."""
    path = b"/" + b"\xff" * (2048 // 3 - 20 + extra)
    query = b"&".join(b"%d=\xff" % (n * 7919 % count) for n in range(count))
    request = ("PUT", path, query, ((b"x-amz-meta-a", b"v" * (2000 + extra)),), b"host;x-amz-meta-a", b"h", b"P")
    assert sigv4.canonical_request(*request) == sigv4_reference.canonical_request(*request)


@pytest.mark.parametrize("headers", [((b"a",),), ((b"a", "b"),), ([b"a", b"b"],), (None,)])
def test_wrong_types_are_refused(headers: tuple) -> None:
    with pytest.raises((TypeError, ValueError)):
        sigv4.canonical_request("GET", b"/", b"", headers, b"a", b"h", b"P")
