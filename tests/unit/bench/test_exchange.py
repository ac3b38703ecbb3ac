"""The native half of the client against its reference: contents, signed heads, answers at every split."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.auth.presign import EMPTY_SHA256, UNSIGNED_PAYLOAD, sign
from anvil.base.limits import BENCH_HEAD_BYTES_MAX, BENCH_PATTERN_BYTES, BENCH_PIECE_BYTES
from anvil.bench import exchange_reference as reference
from anvil.bench.content import contents, pattern
from anvil.bench.exchange import AnswerParser, BadAnswer, Request, now_ns
from anvil.bench.outgoing import Contents, HeadSigner
from anvil.bench.sign import Signer, encoded, parameter
from anvil.bench.sizes import parse_sizes

SEED = 7
PATTERN = pattern(SEED)
SIZES = (0, 1, 15, 16, 17, 31, 4096, 65_536, 65_537)


# -- contents ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_contents_are_the_reference_s(size: int) -> None:
    made = Contents(SEED, PATTERN, size).of(b"run/w000/p0/1")
    whole = reference.content(SEED, PATTERN, size, b"run/w000/p0/1")
    assert made.size == size
    assert made.whole() == b"".join(made.pieces()) == whole


def test_the_size_is_drawn_from_the_key() -> None:
    sizes = parse_sizes("1KiB..64KiB")
    made = contents(SEED, sizes)
    assert {made.of(b"%d" % n).size for n in range(50)} == {
        len(reference.content(SEED, PATTERN, sizes.of, b"%d" % n)) for n in range(50)
    }


def test_a_content_that_is_longer_than_the_pattern() -> None:
    size = BENCH_PATTERN_BYTES + 3 * BENCH_PIECE_BYTES + 5
    made = Contents(SEED, PATTERN, size).of(b"k")
    whole = made.whole()
    assert len(whole) == size
    assert whole[16 : 16 + 1000] == whole[BENCH_PATTERN_BYTES + 16 : BENCH_PATTERN_BYTES + 1016]
    for begin, end in ((0, size), (5, 10), (10, 20), (16, 17), (BENCH_PATTERN_BYTES - 9, size - 1), (size, size)):
        assert b"".join(made.pieces(begin, end)) == whole[begin:end]
        assert all(len(piece) <= BENCH_PIECE_BYTES for piece in made.pieces(begin, end))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 299))
def test_what_matches(at: int, count: int, wrong: int) -> None:
    made = Contents(SEED, PATTERN, 256).of(b"key")
    whole = made.whole()
    piece = whole[at : at + count]
    assert made.matches(at, piece) == (at <= 256)
    if wrong < len(piece):
        changed = bytearray(piece)
        changed[wrong] ^= 1
        assert not made.matches(at, memoryview(changed))
    assert not made.matches(at, whole[at:] + b"x")


def test_keys_and_seeds_tell_contents_apart() -> None:
    one, other = Contents(SEED, PATTERN, 4096).of(b"a"), Contents(SEED, PATTERN, 4096).of(b"b")
    assert (
        not one.matches(0, other.whole()) and not one.matches(0, other.whole()[:16]) and not one.matches(16, other.whole()[16:])
    )
    assert (
        contents(8, parse_sizes("4KiB")).of(b"a").whole() != one.whole() == contents(SEED, parse_sizes("4KiB")).of(b"a").whole()
    )


def test_bounds_of_contents() -> None:
    made = Contents(SEED, PATTERN, BENCH_PIECE_BYTES * 2).of(b"k")
    for at, data in ((-1, b""), (0, bytes(BENCH_PIECE_BYTES + 1))):
        with pytest.raises(ValueError, match="at a time"):
            made.matches(at, data)
    with pytest.raises(ValueError, match="pattern"):
        Contents(SEED, b"short", 1)


# -- heads ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-1, 0, 123456])
@pytest.mark.parametrize("query", [b"", b"list-type=2&prefix=a%2F"])
def test_heads_are_the_reference_s(query: bytes, length: int) -> None:
    key, prefix, tail, lines = (
        bytes(range(32)),
        b"AWS4-HMAC-SHA256\nd\ns\n",
        b"host:h\n\nhost\nUNSIGNED-PAYLOAD",
        b"host: h\r\nx: ",
    )
    made = HeadSigner(key, prefix).head(b"PUT", b"/b/k", query, tail, lines, length)
    assert made == reference.head(key, prefix, b"PUT", b"/b/k", query, tail, lines, length)


def test_a_key_of_another_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        HeadSigner(b"short", b"")


NOW = 1_800_000_000.0


def signed(request: Request, url: str, payload: str, *, payloads: bool = False, token: str = "", **headers: str) -> None:
    """The request's head has what the client of the other benchmarks and tests signs."""
    made = Signer("AKID", "secret", "eu-1", "host:9000", token=token, payloads=payloads, clock=lambda: NOW)(request).decode()
    lines = made.split("\r\n")
    names = dict(line.split(": ", 1) for line in lines[1:-2])
    expected = sign(request.method.decode(), f"http://host:9000{url}", headers, payload, "AKID", "secret", "eu-1", NOW)
    assert lines[0] == f"{request.method.decode()} {url} HTTP/1.1"
    assert {name: value for name, value in names.items() if name != "content-length"} == expected


def test_signed_like_any_other_client() -> None:
    content = Contents(SEED, PATTERN, 300).of(b"k")
    digest = hashlib.sha256(content.whole()).hexdigest()
    part = hashlib.sha256(content.whole()[100:200]).hexdigest()
    signed(Request(b"GET", b"/b/k"), "/b/k", EMPTY_SHA256)
    signed(Request(b"GET", b"/b", b"list-type=2&prefix=x%2F"), "/b?list-type=2&prefix=x%2F", EMPTY_SHA256)
    signed(Request(b"PUT", b"/b/k", content=content), "/b/k", UNSIGNED_PAYLOAD)
    signed(Request(b"PUT", b"/b/k", content=content), "/b/k", digest, payloads=True)
    signed(Request(b"PUT", b"/b/k", content=content, begin=100, end=200), "/b/k", part, payloads=True)
    signed(
        Request(b"POST", b"/b", b"delete=", body=b"x", extra=((b"content-md5", b"abc="),)),
        "/b?delete=",
        UNSIGNED_PAYLOAD,
        **{"content-md5": "abc="},
    )
    signed(Request(b"GET", b"/b/k"), "/b/k", EMPTY_SHA256, token="t0k", **{"x-amz-security-token": "t0k"})


def test_the_date_and_the_key_change() -> None:
    now = [NOW]
    signer = Signer("AKID", "secret", "eu-1", "h", clock=lambda: now[0])
    for seconds in (0, 0.5, 1, 86_400):
        now[0] = NOW + seconds
        expected = sign("GET", "http://h/b/k", None, EMPTY_SHA256, "AKID", "secret", "eu-1", now[0])
        assert f"authorization: {expected['authorization']}\r\n".encode() in signer(Request(b"GET", b"/b/k"))


def test_what_is_encoded() -> None:
    assert encoded("a/b c~é+") == b"a/b%20c~%C3%A9%2B"
    assert parameter("a/b=&") == b"a%2Fb%3D%26"


def test_lengths() -> None:
    content = Contents(SEED, PATTERN, 300).of(b"k")
    signer = Signer("AKID", "secret", "eu-1", "h")
    for request, length in (
        (Request(b"POST", b"/b", body=b""), b"0"),
        (Request(b"PUT", b"/b", content=content, begin=10), b"290"),
    ):
        assert b"\r\ncontent-length: " + length + b"\r\n\r\n" in signer(request)
    assert b"content-length" not in signer(Request(b"DELETE", b"/b/k"))


def test_the_clock() -> None:
    before, now, after = time.perf_counter_ns(), now_ns(), time.perf_counter_ns()
    assert before <= now <= after


# -- answers ------------------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: list[tuple[bytes, bool, int, bytes, bool]] = [  # bytes, to a HEAD request, status, body, kept alive
    (OK + b"Content-Length: 5\r\n\r\nhello", False, 200, b"hello", True),
    (OK + b"content-length:0\r\n\r\n", False, 200, b"", True),
    (OK + b"Content-Length: 5\r\n\r\n", True, 200, b"", True),
    (b"HTTP/1.1 204 No Content\r\nETag: x\r\n\r\n", False, 204, b"", True),
    (b"HTTP/1.1 304\r\nContent-Length: 9\r\n\r\n", False, 304, b"", True),
    (OK + b"Connection: Close\r\nContent-Length: 1\r\n\r\nx", False, 200, b"x", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", False, 200, b"x", False),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", False, 200, b"x", True),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
        False,
        200,
        b"hi",
        True,
    ),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n", False, 200, b"hello!", True),
    (OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nhi", False, 200, b"hi", True),
    (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 3\r\n\r\nxml", False, 503, b"xml", True),
]
Parser = AnswerParser | reference.AnswerParser
BOTH = [AnswerParser, reference.AnswerParser]


def fed(parser: Parser, head_only: bool, pieces: list[bytes]) -> tuple[bool, bytes]:
    """Only the last piece completes it."""
    parser.begin(head_only)
    body, complete = b"", False
    for piece in pieces:
        assert not complete
        complete, more = parser.feed(piece)
        body += more
    return complete, body


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_answers_at_every_split(answer: tuple[bytes, bool, int, bytes, bool], kind: type[Parser]) -> None:
    data, head_only, status, body, alive = answer
    parser = kind()
    cuts = [[data], [data[at : at + 1] for at in range(len(data))], *([data[:at], data[at:]] for at in range(1, len(data)))]
    for pieces in cuts:
        assert fed(parser, head_only, pieces) == (True, body)
        assert (parser.status, parser.keep_alive, parser.closed()) == (status, alive, False)
        assert parser.head.startswith(b"HTTP/1.") and parser.head.endswith(b"\r\n")


@pytest.mark.parametrize("kind", BOTH)
def test_a_body_that_ends_with_the_connection(kind: type[Parser]) -> None:
    parser = kind()
    parser.begin(False)
    assert not parser.closed()
    assert parser.feed(OK + b"\r\nab") == (False, b"ab")
    assert parser.feed(b"cd") == (False, b"cd")
    assert parser.closed() and not parser.keep_alive


BAD = [
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 20x OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    OK + b"Content-Length: -1\r\n\r\n",
    OK + b"Content-Length: \r\n\r\n",
    OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    OK + b"Content-Length: 9999999999999999999\r\n\r\n",
    OK + b"Content-Length: 1\r\n\r\nxy",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
    OK + b"X: " + b"y" * BENCH_HEAD_BYTES_MAX,
]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_what_is_no_answer(data: bytes, kind: type[Parser]) -> None:
    for pieces in ([data], [data[at : at + 7] for at in range(0, len(data), 7)]):
        parser = kind()
        with pytest.raises(BadAnswer):
            for piece in pieces:
                parser.feed(piece)


@given(st.binary(max_size=120), st.lists(st.integers(1, 40), max_size=8), st.booleans())
def test_both_say_the_same_of_anything(tail: bytes, cuts: list[int], head_only: bool) -> None:
    data = OK + tail
    told: list[list[object]] = []
    for kind in BOTH:
        parser, at, heard = kind(), 0, []
        parser.begin(head_only)
        try:
            for count in [*cuts, len(data)]:
                heard.append(parser.feed(data[at : at + count]))
                at += count
                if at >= len(data) or heard[-1][0]:
                    break
        except BadAnswer:
            heard.append((False, b"bad"))
        told.append([*heard, parser.status, parser.head, parser.keep_alive, parser.closed()])
    assert told[0] == told[1]
