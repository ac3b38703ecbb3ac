"""The aws-chunked decoder: the documentation's vectors, every split against the reference, malformed bodies."""

from __future__ import annotations

import base64
import hmac
import io
import itertools
import random
import re
from typing import Any

import pytest
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil._ec.digest import Digests
from anvil.base.errors import AnvilError, IncompleteBody, InvalidRequest, SignatureMismatch
from anvil.base.limits import CHUNK_HEADER_BYTES_MAX, OBJECT_BYTES_MAX, TRAILER_BYTES_MAX
from anvil.wire.awschunked import ChunkedDecoder
from anvil.wire.awschunked_reference import ReferenceDecoder, Signer, encode

# The example of the Amazon S3 API Reference: PUT of examplebucket/chunkObject.txt, 66560 letters "a", by AKIAIOSFODNN7EXAMPLE.
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
DATE, SCOPE = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"
SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
CHUNKS = [b"a" * 65536, b"a" * 1024]
SIGNATURES = [
    "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
    "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
    "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
]
# The same object with x-amz-checksum-crc32c as a signed trailer.
TRAILER_SEED = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
TRAILER_SIGNATURES = [
    "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
    "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
    "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
]
TRAILER_SIGNATURE = "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
CRC32C = {"x-amz-checksum-crc32c": "sOO8/Q=="}


def derived_key() -> bytes:
    key = f"AWS4{SECRET}".encode()
    for part in ("20130524", "us-east-1", "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


KEY = derived_key()


def signer(seed: str = SEED) -> Signer:
    return Signer(KEY, seed, DATE, SCOPE)


def signing(seed: str = SEED) -> dict[str, Any]:
    return {"signing_key": KEY, "seed_signature": seed, "amz_date": DATE, "scope": SCOPE}


def decode(decoder: ChunkedDecoder | ReferenceDecoder, pieces: list[bytes], room: int = 1 << 20) -> bytes:
    """The payload of a body that arrives in these pieces, through a target of `room` bytes."""
    payload = bytearray()
    for piece in pieces:
        at = 0
        while True:
            target = bytearray(room)
            consumed, produced = decoder.decode(piece[at:], target)
            assert 0 <= produced <= room
            payload += target[:produced]
            at += consumed
            if at == len(piece):
                break
            assert produced == room, "it stopped though there was input and room"
    decoder.end()
    return bytes(payload)


def outcome(decoder: ChunkedDecoder | ReferenceDecoder, pieces: list[bytes], room: int = 1 << 20) -> tuple[object, ...]:
    """Everything that two decoders must agree on."""
    try:
        payload = decode(decoder, pieces, room)
    except AnvilError as error:
        assert not decoder.finished
        with pytest.raises(type(error)):  # an error is final
            decoder.decode(b"", bytearray(1))
        return (type(error),)
    assert decoder.finished
    assert decoder.produced == len(payload)
    return payload, decoder.trailers


# -- the documentation's vectors ----------------------------------------------------------------------------------------


def test_signatures_of_the_documentation() -> None:
    body = encode(CHUNKS, signer())
    assert re.findall(rb"chunk-signature=(\w+)", body) == [signature.encode() for signature in SIGNATURES]
    assert len(body) == 66824  # the Content-Length the documentation gives
    decoder = ChunkedDecoder(66560, **signing())
    assert decode(decoder, [body]) == b"a" * 66560
    assert decoder.trailers == {}


@pytest.mark.parametrize("which", range(3))
def test_a_wrong_signature_of_the_documentation(which: int) -> None:
    body = encode(CHUNKS, signer())
    wrong = SIGNATURES[which][:-1] + ("0" if SIGNATURES[which][-1] != "0" else "1")
    with pytest.raises(SignatureMismatch):
        decode(ChunkedDecoder(66560, **signing()), [body.replace(SIGNATURES[which].encode(), wrong.encode())])


def test_signatures_of_the_documentation_with_a_trailer() -> None:
    body = encode(CHUNKS, signer(TRAILER_SEED), CRC32C)
    assert re.findall(rb"chunk-signature=(\w+)", body) == [signature.encode() for signature in TRAILER_SIGNATURES]
    assert b"x-amz-trailer-signature:" + TRAILER_SIGNATURE.encode() + b"\r\n\r\n" in body
    decoder = ChunkedDecoder(66560, **signing(TRAILER_SEED), trailer_names=("x-amz-checksum-crc32c",))
    assert decode(decoder, [body]) == b"a" * 66560
    assert decoder.trailers == CRC32C
    assert decoder.finished


def test_unsigned_with_a_trailer() -> None:
    body = b"a\r\n0123456789\r\n1\r\nx\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    decoder = ChunkedDecoder(11, trailer_names=("x-amz-checksum-crc32",))
    assert decode(decoder, [body]) == b"0123456789x"
    assert decoder.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}


# -- what real clients send ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize("empty_line", [False, True])
def test_signed_trailers_end_with_crlf_or_lf(line_end: str, empty_line: bool) -> None:
    body = encode([b"hello"], signer(), CRC32C, line_end=line_end, empty_line=empty_line)
    decoder = ChunkedDecoder(5, **signing(), trailer_names=tuple(CRC32C))
    assert decode(decoder, [body]) == b"hello"
    assert decoder.trailers == CRC32C


def test_minio_go_unsigned() -> None:
    decoder = ChunkedDecoder(5, trailer_names=tuple(CRC32C))
    assert decode(decoder, [b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32c:sOO8/Q==\n\r\n\r\n"]) == b"hello"
    assert decoder.trailers == CRC32C


def test_the_body_that_boto3_sends() -> None:
    data = random.Random(3).randbytes(100_000)
    wrapper = AwsChunkedWrapper(
        io.BytesIO(data), checksum_cls=Crc32Checksum, checksum_name="x-amz-checksum-crc32", chunk_size=30_000
    )
    digests = Digests(["crc32"])
    digests.update(data)
    decoder = ChunkedDecoder(len(data), trailer_names=("x-amz-checksum-crc32",))
    assert decode(decoder, [wrapper.read()]) == data
    assert decoder.trailers == {"x-amz-checksum-crc32": base64.b64encode(digests.results()["crc32"]).decode()}


def test_names_of_trailers_ignore_case_and_values_lose_outer_space() -> None:
    decoder = ChunkedDecoder(0, trailer_names=("x-amz-checksum-crc32c", "x-other"))
    decode(decoder, [b"0\r\nX-Amz-Checksum-CRC32C: sOO8/Q== \r\nx-other:\t a b\t\r\n\r\n"])
    assert decoder.trailers == {"x-amz-checksum-crc32c": "sOO8/Q==", "x-other": "a b"}


def test_an_announced_trailer_may_be_missing() -> None:
    """Whether it was needed is for the API to say, which knows the other headers."""
    decoder = ChunkedDecoder(0, trailer_names=("x-amz-checksum-crc32c",))
    assert decode(decoder, [b"0\r\n\r\n"]) == b""
    assert decoder.trailers == {}


@pytest.mark.parametrize("size", ["5", "0005", "00000000000000000000000000000005"])
def test_sizes_in_hex_with_leading_zeros(size: str) -> None:
    assert decode(ChunkedDecoder(5, trailer_names=()), [f"{size}\r\nhello\r\n0\r\n\r\n".encode()]) == b"hello"


def test_sizes_in_hex_of_either_case() -> None:
    data = bytes(0xAB)
    for size in (b"ab", b"AB", b"aB"):
        assert decode(ChunkedDecoder(0xAB, trailer_names=()), [size + b"\r\n" + data + b"\r\n0\r\n\r\n"]) == data


def test_small_chunks_that_are_not_the_last_are_tolerated() -> None:
    body = encode([b"a", b"bc", b"d" * 9000, b"e"], signer())
    assert decode(ChunkedDecoder(9004, **signing()), [body]) == b"abc" + b"d" * 9000 + b"e"


def test_big_chunks_across_small_pieces() -> None:
    data = random.Random(1).randbytes(300_000)
    body = encode([data[:200_000], data[200_000:]], signer(), CRC32C)
    for step in (1000, 5000, 70_001):
        decoder = ChunkedDecoder(len(data), **signing(), trailer_names=tuple(CRC32C))
        assert decode(decoder, [body[at : at + step] for at in range(0, len(body), step)], room=30_011) == data


# -- the target ---------------------------------------------------------------------------------------------------------


def test_framing_is_consumed_without_room() -> None:
    decoder = ChunkedDecoder(2, trailer_names=())
    target = bytearray(2)
    assert decoder.decode(b"2\r\nhi", target) == (5, 2)
    assert decoder.decode(b"\r\n0\r\n\r\n", bytearray()) == (7, 0)
    assert decoder.finished
    assert target == b"hi"


def test_it_stops_where_payload_has_no_room() -> None:
    decoder = ChunkedDecoder(5, trailer_names=())
    target = bytearray(3)
    assert decoder.decode(b"5\r\nhello\r\n0\r\n\r\n", target) == (6, 3)
    assert target == b"hel"
    assert decoder.decode(b"lo\r\n0\r\n\r\n", target) == (9, 2)
    assert target[:2] == b"lo"


def test_nothing_is_written_beyond_what_is_reported() -> None:
    target = bytearray(b"." * 10)
    assert ChunkedDecoder(2, trailer_names=()).decode(b"2\r\nhi\r\n", target) == (7, 2)
    assert target == b"hi........"


def test_decoding_in_place() -> None:
    data = random.Random(2).randbytes(100_000)
    buffer = bytearray(encode([data[:40_000], data[40_000:]], signer()))
    view = memoryview(buffer)
    decoder = ChunkedDecoder(len(data), **signing())
    assert decoder.decode(view, view) == (len(buffer), len(data))
    assert decoder.finished
    assert buffer[: len(data)] == data


def test_targets_must_be_writable_and_arguments_must_name_a_mode() -> None:
    with pytest.raises(BufferError):
        ChunkedDecoder(2, trailer_names=()).decode(b"", b"xx")
    for arguments in [{}, {"signing_key": KEY}, {"signing_key": KEY, "seed_signature": "abc"}]:
        with pytest.raises(ValueError):
            ChunkedDecoder(2, **arguments)  # type: ignore[arg-type]
    for length in (-1, OBJECT_BYTES_MAX + 1):
        with pytest.raises(ValueError):
            ChunkedDecoder(length, trailer_names=())


# -- malformed bodies ---------------------------------------------------------------------------------------------------

LONG = b"0" * CHUNK_HEADER_BYTES_MAX
S1, S2 = (signature.encode() for signature in SIGNATURES[:2])
UNSIGNED_BAD: list[tuple[bytes, type[AnvilError]]] = [
    (b"", IncompleteBody),
    (b"5", IncompleteBody),
    (b"5\r\nhell", IncompleteBody),
    (b"5\r\nhello\r\n", IncompleteBody),
    (b"5\r\nhello\r\n0\r\n", IncompleteBody),
    (b"5\r\nhello\r\n0\r\nx-a:1\r\n", IncompleteBody),
    (b"4\r\nhell\r\n0\r\n\r\n", IncompleteBody),  # fewer than announced
    (b"6\r\nhello!\r\n0\r\n\r\n", IncompleteBody),  # more than announced
    (b"4\r\nhell\r\n2\r\nlo\r\n0\r\n\r\n", IncompleteBody),
    (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", IncompleteBody),
    (b"0\r\n\r\n", IncompleteBody),
    (b"fffffffffffffffffffffffffffffffff\r\n", IncompleteBody),
    (b"10000000000000005\r\nhello\r\n0\r\n\r\n", IncompleteBody),  # 2^64 + 5
    (b"\r\n", InvalidRequest),
    (b"\n", InvalidRequest),
    (b"g\r\nhello\r\n", InvalidRequest),
    (b"0x5\r\nhello\r\n", InvalidRequest),
    (b"-5\r\nhello\r\n", InvalidRequest),
    (b"+5\r\nhello\r\n", InvalidRequest),
    (b" 5\r\nhello\r\n", InvalidRequest),
    (b"5 \r\nhello\r\n", InvalidRequest),
    (b"5\nhello\r\n", InvalidRequest),
    (b"5\r\r\nhello\r\n", InvalidRequest),
    (b"5;\r\nhello\r\n", InvalidRequest),
    (b"5;x=y\r\nhello\r\n", InvalidRequest),
    (b"5;chunk-signature=" + S1 + b"\r\nhello\r\n", InvalidRequest),  # signed chunk in unsigned mode
    (b"5\r\nhello0\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\n0\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r0\r\n\r\n", InvalidRequest),
    (b"5\r\nhello!\r\n0\r\n\r\n", InvalidRequest),
    (LONG + b"5\r\nhello\r\n0\r\n\r\n", InvalidRequest),
    (LONG, IncompleteBody),
    (LONG + b"0", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-b:1\r\n\r\n", InvalidRequest),  # not announced
    (b"5\r\nhello\r\n0\r\nx-a:1\r\nx-a:1\r\n\r\n", InvalidRequest),  # twice
    (b"5\r\nhello\r\n0\r\nx-a:1\r\nX-A:2\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\n:1\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a :1\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a:1\r\n folded\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a:\x00\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a:1\r2\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-a:\xff\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-\xe9:1\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\nx-amz-trailer-signature:" + S1 + b"\r\n\r\n", InvalidRequest),  # of the signed mode
    (b"5\r\nhello\r\n0\r\nx-a:" + b"v" * TRAILER_BYTES_MAX + b"\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\n\r\n5\r\nhello\r\n", InvalidRequest),  # after the end
    (b"5\r\nhello\r\n0\r\n\r\n\r\n\r\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\n\r\n\n", InvalidRequest),
    (b"5\r\nhello\r\n0\r\n\r\n\r\r", InvalidRequest),
]


@pytest.mark.parametrize(("body", "error"), UNSIGNED_BAD, ids=[repr(body[:40]) for body, _ in UNSIGNED_BAD])
def test_malformed_unsigned_bodies(body: bytes, error: type[AnvilError]) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        assert outcome(ChunkedDecoder(5, trailer_names=("x-a",)), pieces) == (error,)
        assert outcome(ReferenceDecoder(5, trailer_names=("x-a",)), pieces) == (error,)


GOOD = encode([b"hello"], signer())
SIGNATURE_OF_HELLO = GOOD[GOOD.index(b"=") + 1 :][:64]
SIGNED_BAD: list[tuple[bytes, type[AnvilError]]] = [
    (b"5\r\nhello\r\n0\r\n\r\n", InvalidRequest),  # unsigned chunk in signed mode
    (b"5;chunk-signature=\r\nhello\r\n", InvalidRequest),
    (b"5;chunk-signature=" + S1[:63] + b"\r\nhello\r\n", InvalidRequest),
    (b"5;chunk-signature=" + S1 + b"0\r\nhello\r\n", InvalidRequest),
    (b"5;Chunk-Signature=" + S1 + b"\r\nhello\r\n", InvalidRequest),
    (b"5;x=1;chunk-signature=" + S1 + b"\r\nhello\r\n", InvalidRequest),
    (b"5 ;chunk-signature=" + S1 + b"\r\nhello\r\n", InvalidRequest),
    (b"5;chunk-signature=" + S1 + b"\nhello\r\n", InvalidRequest),
    (b"5;chunk-signature=" + S1 + b"\r\nhello\r\n", SignatureMismatch),
    (GOOD.replace(b"hello", b"hellO"), SignatureMismatch),
    (GOOD.replace(SIGNATURE_OF_HELLO, SIGNATURE_OF_HELLO.upper()), SignatureMismatch),
    (GOOD[:-70] + b"0" * 66 + b"\r\n\r\n", InvalidRequest),
    (GOOD[:-68] + b"0" * 64 + b"\r\n\r\n", SignatureMismatch),  # of the last, empty chunk
    (GOOD[: GOOD.index(b"0;chunk")], IncompleteBody),  # cut between chunks: every signature so far is right
    (GOOD[:-2], IncompleteBody),
    (GOOD[:-1] + b"x", InvalidRequest),
    (GOOD[:-2] + b"x-a:1\r\n\r\n", InvalidRequest),  # trailers in a mode without
    (GOOD + b"\r\n", InvalidRequest),
    (GOOD[: GOOD.index(b"0;chunk")] * 2 + GOOD[GOOD.index(b"0;chunk") :], IncompleteBody),  # a chunk replayed
]


@pytest.mark.parametrize(("body", "error"), SIGNED_BAD, ids=[repr(body[:40]) for body, _ in SIGNED_BAD])
def test_malformed_signed_bodies(body: bytes, error: type[AnvilError]) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        assert outcome(ChunkedDecoder(5, **signing()), pieces) == (error,)
        assert outcome(ReferenceDecoder(5, **signing()), pieces) == (error,)


def test_chunks_of_one_body_do_not_change_places() -> None:
    body = encode([b"hello", b"world"], signer())
    second, last = body.index(b"5;", 1), body.index(b"0;chunk")
    swapped = body[second:last] + body[:second] + body[last:]
    assert outcome(ChunkedDecoder(10, **signing()), [swapped]) == (SignatureMismatch,)


TRAILED = encode([b"hello"], signer(), CRC32C)
SIGNED_TRAILER_BAD: list[tuple[bytes, type[AnvilError]]] = [
    (TRAILED.replace(b"sOO8/Q==", b"sOO8/Q=A"), SignatureMismatch),
    (TRAILED.replace(b"x-amz-checksum-crc32c:sOO8/Q==\r\n", b""), SignatureMismatch),
    (TRAILED[:-68] + b"0" * 64 + b"\r\n\r\n", SignatureMismatch),
    (TRAILED[:-68] + b"\r\n\r\n", SignatureMismatch),
    (TRAILED[: TRAILED.index(b"x-amz-trailer")] + b"\r\n", IncompleteBody),  # one empty line, and no signature
    (TRAILED[: TRAILED.index(b"x-amz-trailer")] + b"\r\n\r\n", InvalidRequest),
    (TRAILED[:-2] + b"x-amz-checksum-crc32c:sOO8/Q==\r\n\r\n", InvalidRequest),  # after the signature
    (TRAILED[:-2] + TRAILED[TRAILED.index(b"x-amz-trailer") :], InvalidRequest),
    (TRAILED[:-2], IncompleteBody),
    (TRAILED + b"\r\n\r", InvalidRequest),
    (TRAILED.replace(b"hello\r\n0;", b"hello\r\n\r\n0;"), InvalidRequest),
]


@pytest.mark.parametrize(("body", "error"), SIGNED_TRAILER_BAD)
def test_malformed_signed_trailers(body: bytes, error: type[AnvilError]) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        for decoder in (ChunkedDecoder, ReferenceDecoder):
            assert outcome(decoder(5, **signing(), trailer_names=tuple(CRC32C)), pieces) == (error,)


def test_the_trailer_section_is_bounded_as_a_whole() -> None:
    names = tuple(f"x-{i}" for i in range(1000))
    body = b"0\r\n" + b"".join(f"x-{i}:1\r\n".encode() for i in range(1000)) + b"\r\n"
    assert outcome(ChunkedDecoder(0, trailer_names=names), [body]) == (InvalidRequest,)
    assert outcome(ReferenceDecoder(0, trailer_names=names), [body]) == (InvalidRequest,)


def test_end_is_final_too() -> None:
    decoder = ChunkedDecoder(5, trailer_names=())
    with pytest.raises(IncompleteBody):
        decoder.end()
    with pytest.raises(IncompleteBody):
        decoder.decode(b"5\r\nhello\r\n0\r\n\r\n", bytearray(10))


# -- any body, any split ------------------------------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "signed": signing(),
    "signed-trailer": {**signing(), "trailer_names": ("x-a", "x-b")},
    "unsigned-trailer": {"trailer_names": ("x-a", "x-b")},
}


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    return [body[start:stop] for start, stop in itertools.pairwise(at)]


def body_of(mode: str, chunks: list[bytes], line_end: str = "\r\n", empty_line: bool = False) -> bytes:
    return encode(
        [chunk for chunk in chunks if chunk],
        signer() if mode != "unsigned-trailer" else None,
        {"x-a": "1", "x-b": "AAAA=="} if mode != "signed" else None,
        line_end=line_end,
        empty_line=empty_line,
    )


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(st.binary(max_size=80), max_size=5),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
    room=st.integers(1, 50),
    line_end=st.sampled_from(["\r\n", "\n"]),
    empty_line=st.booleans(),
)
def test_good_bodies_at_any_split(
    mode: str, chunks: list[bytes], cuts: list[int], room: int, line_end: str, empty_line: bool
) -> None:
    payload = b"".join(chunks)
    pieces = split(body_of(mode, chunks, line_end, empty_line), cuts)
    wanted = (payload, {} if mode == "signed" else {"x-a": "1", "x-b": "AAAA=="})
    assert outcome(ChunkedDecoder(len(payload), **MODES[mode]), pieces, room) == wanted
    assert outcome(ReferenceDecoder(len(payload), **MODES[mode]), pieces, room) == wanted


@pytest.mark.parametrize("mode", MODES)
def test_every_split_in_two(mode: str) -> None:
    body = body_of(mode, [b"hello", b"w" * 20])
    for cut in range(len(body) + 1):
        assert outcome(ChunkedDecoder(25, **MODES[mode]), [body[:cut], body[cut:]])[0] == b"hello" + b"w" * 20


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=200, deadline=None)
@given(
    chunks=st.lists(st.binary(max_size=30), max_size=3),
    edits=st.lists(
        st.tuples(
            st.integers(0, 1000),
            st.sampled_from([0, 1, 2]),
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"0", b"5", b":", b"x", b";", b" ", b"\x00", b"\xff", b"x-a:2\r\n"]),
        ),
        min_size=1,
        max_size=3,
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
    off=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_damaged_bodies_end_as_in_the_reference(
    mode: str, chunks: list[bytes], edits: list[tuple[int, int, bytes]], cuts: list[int], off: int
) -> None:
    body = body_of(mode, chunks)
    for where, removed, inserted in edits:
        at = where % (len(body) + 1)
        body = body[:at] + inserted + body[at + removed :]
    length = max(0, sum(map(len, chunks)) + off)
    wanted = outcome(ReferenceDecoder(length, **MODES[mode]), [body])
    assert outcome(ChunkedDecoder(length, **MODES[mode]), [body]) == wanted
    assert outcome(ChunkedDecoder(length, **MODES[mode]), split(body, cuts)) == wanted
