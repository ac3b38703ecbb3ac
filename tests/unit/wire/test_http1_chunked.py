"""The chunked transfer coding: any split gives the same payload or the same refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.base.errors import InvalidRequest
from anvil.base.limits import CHUNK_HEADER_BYTES_MAX, TRAILER_BYTES_MAX
from anvil.wire.http1_chunked import TransferDecoder

GOOD = b"5\r\nhello\r\n00A;x=y\r\n0123456789\r\n1\r\n!\r\n0\r\nX-Trailer: v\r\n\r\n"
PAYLOAD = b"hello0123456789!"


def decode(pieces: list[bytes], room: int = 1 << 20, *, direct: bool = False) -> tuple[bytes, bytes, bool]:
    """Feed the pieces; returns (payload, bytes left over, finished). `direct`: payload skips the decoder wherever it may."""
    decoder = TransferDecoder()
    payload = bytearray()
    for index, piece in enumerate(pieces):
        view = memoryview(piece)
        while len(view) > 0:
            if decoder.finished:
                return bytes(payload), b"".join([bytes(view), *pieces[index + 1 :]]), True
            count = min(decoder.data_left, len(view))
            if direct and count:
                payload += view[:count]
                decoder.skip(count)
                view = view[count:]
                continue
            target = bytearray(room)
            consumed, produced = decoder.decode(view, memoryview(target))
            assert consumed > 0
            payload += target[:produced]
            view = view[consumed:]
    return bytes(payload), b"", decoder.finished


@pytest.mark.parametrize("cut", range(len(GOOD) + 1))
@pytest.mark.parametrize("direct", [False, True])
def test_every_split_in_two(cut: int, direct: bool) -> None:
    assert decode([GOOD[:cut], GOOD[cut:]], direct=direct) == (PAYLOAD, b"", True)


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_byte_by_byte_into_small_targets(room: int) -> None:
    assert decode([GOOD[i : i + 1] for i in range(len(GOOD))], room) == (PAYLOAD, b"", True)
    assert decode([GOOD], room) == (PAYLOAD, b"", True)


def test_a_pipelined_request_is_not_eaten() -> None:
    assert decode([GOOD + b"GET / HTTP/1.1\r\n"]) == (PAYLOAD, b"GET / HTTP/1.1\r\n", True)


def test_dropping() -> None:
    decoder = TransferDecoder()
    assert decoder.decode(memoryview(GOOD + b"next"), None) == (len(GOOD), len(PAYLOAD))
    assert decoder.finished


def test_the_end_is_seen_behind_a_full_target() -> None:
    decoder = TransferDecoder()
    target = bytearray(5)
    assert decoder.decode(memoryview(b"5\r\nhello\r\n0\r\n\r\n"), memoryview(target)) == (15, 5)
    assert decoder.finished


MALFORMED: dict[str, bytes] = {
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR in the size line": b"5\r;x\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefixed size": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore in the size": b"1_0\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "space after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "no hex": b"g\r\n",
    "size beyond 60 bits": b"1000000000000000\r\n",
    "chunk too long": b"5\r\nhello!\r\n0\r\n\r\n",
    "chunk too short": b"6\r\nhello\r\n0\r\n\r\n",
    "size line too long": b"5;" + b"x" * CHUNK_HEADER_BYTES_MAX + b"\r\n",
    "size line that never ends": b"5;" + b"x" * 2 * CHUNK_HEADER_BYTES_MAX,
    "control byte in an extension": b"5;\x00\r\n",
    "malformed trailer": b"0\r\nno colon\r\n\r\n",
    "folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailer with bare LF": b"0\r\nA: b\nC: d\r\n\r\n",
    "trailers too large": b"0\r\n" + (b"A: " + b"x" * 500 + b"\r\n") * (TRAILER_BYTES_MAX // 500 + 1),
    "extensions outweigh the payload": (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 20,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(name: str) -> None:
    data = MALFORMED[name]
    with pytest.raises(InvalidRequest):
        decode([data])
    with pytest.raises(InvalidRequest):
        decode([data[i : i + 1] for i in range(len(data))])
    with pytest.raises(InvalidRequest):
        decode([data[i : i + 3] for i in range(0, len(data), 3)], direct=True)


@given(
    st.lists(st.binary(min_size=1, max_size=70), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 50),
    st.booleans(),
)
def test_round_trip(chunks: list[bytes], steps: list[int], room: int, direct: bool) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    pieces = []
    at = 0
    while at < len(coded):
        step = steps[len(pieces) % len(steps)]
        pieces.append(coded[at : at + step])
        at += step
    assert decode(pieces, room, direct=direct) == (b"".join(chunks), b"", True)


def outcome(pieces: list[bytes]) -> object:
    try:
        return decode(pieces)
    except InvalidRequest:
        return InvalidRequest


parts = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"0", b"1", b"5", b"a", b";", b"0\r\n\r\n", b"3\r\nabc\r\n", b" ", b"A: b\r\n", b"\0"]
)


@given(st.lists(parts, max_size=12).map(b"".join), st.integers(1, 5))
def test_a_split_never_changes_the_verdict_on_garbage(data: bytes, step: int) -> None:
    whole = outcome([data])
    split = outcome([data[i : i + step] for i in range(0, len(data), step)])
    if whole is InvalidRequest or split is InvalidRequest:
        assert whole is split
    else:
        assert whole == split
