"""Request heads: what is accepted, how it is framed, and the exact status of everything that is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.base.limits import HEADER_BYTES_MAX, HEADER_FIELDS_MAX
from anvil.wire.http1 import HTTP2_PREFACE, Preface, Refusal, head_end, parse_head, sniff

GOOD = (
    b"PUT /bucket/a%2Fb//../%E2%82%AC?partNumber=1&uploadId=x+y%20z HTTP/1.1\r\n"
    b"Host: s3.example.com:9000\r\n"
    b"X-Amz-Meta-Under_score: \t two  words \t\r\n"
    b"x-amz-meta-latin: \xe9\r\n"
    b"Content-Length: 12\r\n"
    b"X-Dup: 1\r\n"
    b"x-dup: 2\r\n"
    b"X-Empty:\r\n"
    b"\r\n"
)


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"".join(line + b"\r\n" for line in (start, *((host,) if host else ()), *lines)) + b"\r\n"


def refused(data: bytes) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        assert head_end(data) == len(data)
        parse_head(data)
    return caught.value.status, caught.value.code


def test_a_head_is_kept_verbatim() -> None:
    parsed = parse_head(GOOD)
    assert (parsed.method, parsed.version, parsed.authority) == ("PUT", "1.1", b"s3.example.com:9000")
    assert parsed.path == b"/bucket/a%2Fb//../%E2%82%AC"
    assert parsed.query == b"partNumber=1&uploadId=x+y%20z"
    assert parsed.headers == [
        (b"host", b"s3.example.com:9000"),
        (b"x-amz-meta-under_score", b"two  words"),
        (b"x-amz-meta-latin", b"\xe9"),
        (b"content-length", b"12"),
        (b"x-dup", b"1"),
        (b"x-dup", b"2"),
        (b"x-empty", b""),
    ]
    assert (parsed.content_length, parsed.chunked, parsed.keep_alive, parsed.expects_continue) == (12, False, True, False)


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_no_prefix_of_a_head_is_a_head(cut: int) -> None:
    assert head_end(GOOD[:cut]) == 0
    assert head_end(GOOD + b"body", cut) == len(GOOD)


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [
        ((), True),
        ((b"Connection: close",), False),
        ((b"Connection: Keep-Alive, CLOSE",), False),
        ((b"Connection: x", b"Connection: close"), False),
        ((b"Connection: upgrade",), True),
    ],
)
def test_keep_alive_of_1_1(lines: tuple[bytes, ...], keep_alive: bool) -> None:
    assert parse_head(head(*lines)).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [((), False), ((b"Connection: keep-alive",), True), ((b"Connection: keep-alive, close",), False)],
)
def test_keep_alive_of_1_0(lines: tuple[bytes, ...], keep_alive: bool) -> None:
    parsed = parse_head(head(*lines, start=b"GET / HTTP/1.0", host=b""))
    assert (parsed.keep_alive, parsed.version, parsed.authority) == (keep_alive, "1.0", b"")


def test_expect_is_ignored_from_1_0() -> None:
    assert parse_head(head(b"Expect: 100-Continue")).expects_continue
    assert not parse_head(head(b"Expect: 100-continue", start=b"PUT / HTTP/1.0")).expects_continue


def test_upgrade_is_tolerated_and_ignored() -> None:
    parsed = parse_head(head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"X-Last: 1"))
    assert parsed.keep_alive
    assert parsed.headers[-1] == (b"x-last", b"1")


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"),
    [
        (b"http://H/a/b?c", b"/a/b", b"c", b"h"),
        (b"HTTPS://h", b"/", b"", b"h"),
        (b"http://h?x=1/2", b"/", b"x=1/2", b"h"),
        (b"/a?", b"/a", b"", b"h"),
        (b"//a", b"//a", b"", b"h"),
    ],
)
def test_targets(target: bytes, path: bytes, query: bytes, authority: bytes) -> None:
    parsed = parse_head(head(start=b"GET " + target + b" HTTP/1.1"))
    assert (parsed.path, parsed.query, parsed.authority) == (path, query, authority)


def test_options_asterisk() -> None:
    assert parse_head(head(start=b"OPTIONS * HTTP/1.1")).path == b"*"


def test_chunked_is_recognised_in_any_case() -> None:
    parsed = parse_head(head(b"Transfer-Encoding: Chunked", start=b"PUT /a HTTP/1.1"))
    assert parsed.chunked
    assert parsed.content_length is None


BAD = (400, "BadRequest")
LARGE = (400, "RequestHeaderSectionTooLarge")
NO = (501, "NotImplemented")
VERSION = (505, "HttpVersionNotSupported")
PUT = b"PUT /a HTTP/1.1"

MALFORMED: list[tuple[str, bytes, tuple[int, str]]] = [
    ("both lengths", head(b"Content-Length: 3", b"Transfer-Encoding: chunked", start=PUT), BAD),
    ("both lengths, other order", head(b"Transfer-Encoding: chunked", b"Content-Length: 3", start=PUT), BAD),
    ("two equal content-lengths", head(b"Content-Length: 3", b"Content-Length: 3", start=PUT), BAD),
    ("two unequal content-lengths", head(b"Content-Length: 3", b"Content-Length: 4", start=PUT), BAD),
    ("list of content-lengths", head(b"Content-Length: 3, 3", start=PUT), BAD),
    ("signed content-length", head(b"Content-Length: +3", start=PUT), BAD),
    ("negative content-length", head(b"Content-Length: -3", start=PUT), BAD),
    ("hex content-length", head(b"Content-Length: 0x3", start=PUT), BAD),
    ("empty content-length", head(b"Content-Length:", start=PUT), BAD),
    ("content-length beyond 63 bits", head(b"Content-Length: 9223372036854775808", start=PUT), BAD),
    ("content-length beyond 64 bits", head(b"Content-Length: 18446744073709551619", start=PUT), BAD),
    ("content-length with a space inside", head(b"Content-Length: 1 2", start=PUT), BAD),
    ("unknown coding", head(b"Transfer-Encoding: gzip", start=PUT), NO),
    ("identity", head(b"Transfer-Encoding: identity", start=PUT), NO),
    ("two codings", head(b"Transfer-Encoding: gzip, chunked", start=PUT), NO),
    ("chunked not last", head(b"Transfer-Encoding: chunked, gzip", start=PUT), BAD),
    ("chunked twice", head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", start=PUT), BAD),
    ("nearly chunked", head(b"Transfer-Encoding: xchunked", start=PUT), NO),
    ("quoted chunked", head(b'Transfer-Encoding: "chunked"', start=PUT), NO),
    ("chunked with a control byte", head(b"Transfer-Encoding: \x0bchunked", start=PUT), BAD),
    ("empty coding", head(b"Transfer-Encoding:", start=PUT), BAD),
    ("coding in 1.0", head(b"Transfer-Encoding: chunked", start=b"PUT /a HTTP/1.0"), BAD),
    ("folded line", head(b"X-A: 1", b" folded"), BAD),
    ("folded line with tab", head(b"X-A: 1", b"\tfolded"), BAD),
    ("folded first line", head(b" X-A: 1", host=b""), BAD),
    ("bare LF", b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", BAD),
    ("bare LF after the request line", b"GET / HTTP/1.1\nHost: h\r\n\r\n", BAD),
    ("only bare LF", b"GET / HTTP/1.1\nHost: h\n\n", BAD),
    ("LF before the blank line", b"GET / HTTP/1.1\r\nHost: h\n\r\n\r\n", BAD),
    ("bare CR in a value", head(b"X-A: 1\r2"), BAD),
    ("CR CR LF", head(b"X-A: 1\r"), BAD),
    ("NUL in a value", head(b"X-A: 1\x002"), BAD),
    ("DEL in a value", head(b"X-A: 1\x7f2"), BAD),
    ("control byte in a value", head(b"X-A: 1\x012"), BAD),
    ("space before the colon", head(b"X-A : 1"), BAD),
    ("tab before the colon", head(b"X-A\t: 1"), BAD),
    ("space in a name", head(b"X A: 1"), BAD),
    ("empty name", head(b": 1"), BAD),
    ("no colon", head(b"X-A"), BAD),
    ("non-ASCII name", head(b"X-\xe9: 1"), BAD),
    ("NUL in a name", head(b"X\x00A: 1"), BAD),
    ("no Host", head(host=b""), BAD),
    ("two Hosts", head(b"Host: h"), BAD),
    ("two Hosts in 1.0", head(b"Host: h", start=b"GET / HTTP/1.0"), BAD),
    ("empty Host", head(host=b"Host:"), BAD),
    ("Host with a path", head(host=b"Host: h/x"), BAD),
    ("Host with user", head(host=b"Host: u@h"), BAD),
    ("list of Hosts", head(host=b"Host: a b"), BAD),
    ("other host in the target", head(start=b"GET http://other/ HTTP/1.1"), BAD),
    ("user in the target", head(start=b"GET http://u@h/ HTTP/1.1"), BAD),
    ("empty authority", head(start=b"GET http:///a HTTP/1.1"), BAD),
    ("other scheme", head(start=b"GET ftp://h/ HTTP/1.1"), BAD),
    ("fragment", head(start=b"GET /a#b HTTP/1.1"), BAD),
    ("relative target", head(start=b"GET a HTTP/1.1"), BAD),
    ("asterisk for GET", head(start=b"GET * HTTP/1.1"), BAD),
    ("CONNECT", head(start=b"CONNECT h:80 HTTP/1.1"), NO),
    ("no target", head(start=b"GET  HTTP/1.1"), BAD),
    ("no version, which is HTTP/0.9", head(start=b"GET /"), VERSION),
    ("space in the target", head(start=b"GET /a b HTTP/1.1"), BAD),
    ("raw bytes in the target", head(start=b"GET /\xe2\x82\xac HTTP/1.1"), BAD),
    ("NUL in the target", head(start=b"GET /a\x00 HTTP/1.1"), BAD),
    ("unknown method", head(start=b"FROBNICATE / HTTP/1.1"), NO),
    ("lower-case method", head(start=b"get / HTTP/1.1"), NO),
    ("HTTP/1.2", head(start=b"GET / HTTP/1.2"), VERSION),
    ("HTTP/2.0", head(start=b"GET / HTTP/2.0"), VERSION),
    ("HTTP/0.9", head(start=b"GET / HTTP/0.9"), VERSION),
    ("long version", head(start=b"GET / HTTP/1.10"), BAD),
    ("lower-case version", head(start=b"GET / http/1.1"), BAD),
    ("PRI in 1.1", head(start=b"PRI * HTTP/1.1"), BAD),
    ("PRI in 2.0, not the preface", head(start=b"PRI * HTTP/2.0"), BAD),
    ("the first half of the preface", b"PRI * HTTP/2.0\r\n\r\n", BAD),
    ("unknown expectation", head(b"Expect: 200-maybe"), (417, "ExpectationFailed")),
    ("too many fields", head(*(b"X-%d: 1" % i for i in range(HEADER_FIELDS_MAX))), LARGE),
    ("too large", head(b"X-A: " + b"a" * HEADER_BYTES_MAX), LARGE),
    ("target too large", head(start=b"GET /" + b"a" * HEADER_BYTES_MAX + b" HTTP/1.1"), LARGE),
    ("nothing but line ends", b"\r\n\r\n", BAD),
]


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_malformed_heads(data: bytes, expected: tuple[int, str]) -> None:
    assert refused(data) == expected


def test_the_largest_head_passes() -> None:
    room = HEADER_BYTES_MAX - len(head(b"X-A: "))
    assert len(parse_head(head(b"X-A: " + b"a" * room)).headers) == 2
    assert len(parse_head(head(*(b"X-%d: 1" % i for i in range(HEADER_FIELDS_MAX - 1)))).headers) == HEADER_FIELDS_MAX


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nX: " + b"a" * HEADER_BYTES_MAX, b"GET / HTTP/1.1\nHost: h"])
def test_hopeless_heads_are_refused_before_their_end(data: bytes) -> None:
    with pytest.raises(Refusal):
        head_end(data)


@given(st.integers(0, len(HTTP2_PREFACE)), st.binary(max_size=8))
def test_sniffing_the_preface(cut: int, rest: bytes) -> None:
    first = HTTP2_PREFACE[:cut] + rest
    expected = Preface.HTTP2 if first.startswith(HTTP2_PREFACE) else None
    if HTTP2_PREFACE.startswith(first) and len(first) < len(HTTP2_PREFACE):
        expected = Preface.UNDECIDED
    if expected is None:
        expected = Preface.HTTP1 if re.match(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z\r]", first) else Preface.OTHER
    assert sniff(first) is expected


def test_a_tls_hello_is_recognised_as_foreign() -> None:
    assert sniff(b"\x16\x03\x01\x02\x00\x01") is Preface.OTHER


# -- against a slow, readable reference --------------------------------------------------------------------------------

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REFERENCE = re.compile(
    rb"(?:\r\n)*(?P<method>[A-Z-]+) (?P<target>[\x21-\x7e]+) HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?P<fields>(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)

pieces = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b": ", b"\0", b"\xff", b",", b"a", b"0", b"5", b"/", b"*", b"?", b"#", b"h"),
        *(b"GET", b"PUT", b"HTTP/1.1", b"HTTP/1.0", b"Host: h\r\n", b"Content-Length: 5\r\n", b"Content-Length:", b"chunked"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
        *(b"GET / HTTP/1.1\r\n", b"Upgrade: h2c\r\n", b"\r\n\r\n", b"http://h", b"x-amz-meta-a: b\r\n"),
    ]
)


@given(st.lists(pieces | st.binary(max_size=4), max_size=12).map(b"".join))
def test_nothing_is_accepted_that_the_grammar_does_not_allow(data: bytes) -> None:
    data = b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n" if data[:1] not in (b"G", b"P") else data + b"\r\n\r\n"
    try:
        data = data[: head_end(data)]
        parsed = parse_head(data)
    except Refusal as refusal:
        assert refusal.status in (400, 417, 501, 505)
        return
    match = REFERENCE.fullmatch(data)
    assert match is not None, data
    lines = match["fields"].split(b"\r\n")[:-1]
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    assert parsed.headers == fields
    names = [name for name, _ in fields]
    for name in (b"host", b"content-length", b"transfer-encoding"):
        assert names.count(name) <= 1
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert parsed.chunked == (b"transfer-encoding" in names)
    assert (parsed.content_length is not None) == (b"content-length" in names)
    assert parsed.version == "1." + match["minor"].decode()
