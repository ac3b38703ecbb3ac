"""Chunks of uploads out of gRPC messages: the native decoder against the readable one, at every split; and heads and statuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.base.errors import InvalidRequest, MessageTooLarge
from anvil.wire import grpc, grpc_reference
from anvil.wire.grpc_head import is_grpc, is_protobuf, parse_timeout, percent_encoded, read_metadata, status_fields
from tests.support.examples import examples

MESSAGE_MAX = 100_000
DECODERS = (grpc.ChunkDecoder, grpc_reference.ChunkDecoder)


def message(payload: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(payload).to_bytes(4, "big") + payload


def chunk(payload: bytes) -> bytes:
    return grpc_reference.chunk_head(len(payload)) + payload


def decoded(make: Callable[[int], Any], pieces: list[bytes], room: int) -> list[tuple[str, bytes]]:
    """What comes out: payload joined, other messages by themselves."""
    decoder = make(MESSAGE_MAX)
    found: list[tuple[str, bytes]] = []

    def note(kind: str, data: bytes) -> None:
        if data or kind != "payload":
            if found and kind == found[-1][0] == "payload":
                found[-1] = kind, found[-1][1] + data
            else:
                found.append((kind, data))

    for piece in pieces:
        at = 0
        while True:
            view = bytearray(room)
            used, produced = decoder.decode(piece[at:], view)
            at += used
            note("payload", bytes(view[:produced]))
            compressed = decoder.compressed
            other = decoder.take_message()
            if other is not None:
                note("compressed" if compressed else "other", other)
            elif used == 0:
                break
        assert at == len(piece)
    note("end", b"yes" if decoder.at_boundary else b"no")
    return found


PARTS = st.one_of(
    st.binary(max_size=300).map(chunk),
    st.sampled_from((127, 128, 129, 16_383, 16_384)).map(lambda size: chunk(bytes(size))),
    st.binary(max_size=300).map(message),
    st.binary(max_size=300).map(lambda data: message(data, 1)),
    st.binary(max_size=20).map(lambda data: message(b"\x12" + data)),
)


@examples(100)
@given(
    parts=st.lists(PARTS, max_size=6), cuts=st.lists(st.integers(0, 2000)), room=st.sampled_from((1, 7, 4096)), cut=st.booleans()
)
def test_both_decoders_agree(parts: list[bytes], cuts: list[int], room: int, cut: bool) -> None:
    data = b"".join(parts)
    if cut and data:
        data = data[:-1]
    points = [0, *sorted(at for at in cuts if at < len(data)), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(points)]
    assert decoded(grpc.ChunkDecoder, pieces, room) == decoded(grpc_reference.ChunkDecoder, [data], room)


@pytest.mark.parametrize("make", DECODERS)
def test_payload_comes_out_in_order_and_other_messages_by_themselves(make: Callable[[int], Any]) -> None:
    trailer = b"\x1a\x02\x0a\x00"
    data = chunk(b"abc") + chunk(b"") + message(b"") + chunk(b"def") + message(trailer) + message(b"zip", 1)
    for room in (1, 3, 100):
        assert decoded(make, [data], room) == [
            ("payload", b"abc"),
            ("other", b""),
            ("payload", b"def"),
            ("other", trailer),
            ("compressed", b"zip"),
            ("end", b"yes"),
        ]


@pytest.mark.parametrize("make", DECODERS)
def test_what_is_being_collected_is_known_from_its_beginning(make: Callable[[int], Any]) -> None:
    decoder, view = make(1000), bytearray(10)
    for data, collecting in ((b"\1\0\0\1", 0), (b"\0", 256), (bytes(255), 256), (b"\0", 0), (message(b"\x12\x05abcde"), 0)):
        decoder.take_message()
        decoder.decode(data, view)
        assert decoder.collecting == collecting


@pytest.mark.parametrize("make", DECODERS)
def test_a_chunk_that_is_not_alone_in_its_message_is_left_to_protobuf(make: Callable[[int], Any]) -> None:
    for payload in (
        b"\x12\x01a\x12\x01b",  # twice: the last counts
        b"\x12\x81\x00a",  # a length that is longer than it must be
        b"\x12\x05abc",  # cut short
        b"\x0a\x01a",
        b"\x12",
        b"\x12" + bytes(129),
    ):
        assert decoded(make, [message(payload)], 10) == [("other", payload), ("end", b"yes")]


@pytest.mark.parametrize("make", DECODERS)
def test_what_is_refused(make: Callable[[int], Any]) -> None:
    with pytest.raises(InvalidRequest):
        make(10).decode(b"\x02\0\0\0\x01x", bytearray(10))
    with pytest.raises(MessageTooLarge):
        make(10).decode(b"\0\0\0\0\x0b", bytearray(10))
    with pytest.raises(MessageTooLarge):
        make(10).decode(b"\x01\xff\xff\xff\xff", bytearray(10))


@pytest.mark.parametrize("make", DECODERS)
def test_payload_can_be_put_in_place_by_somebody_else(make: Callable[[int], Any]) -> None:
    decoder = make(MESSAGE_MAX)
    data = chunk(b"x" * 1000)
    head = len(data) - 1000
    assert decoder.decode(data[:head], bytearray()) == (head, 0)
    assert decoder.chunk_left == 1000 and not decoder.at_boundary
    decoder.skip(999)
    with pytest.raises(ValueError):
        decoder.skip(2)
    decoder.skip(1)
    assert decoder.at_boundary
    with pytest.raises(ValueError):
        decoder.skip(1)


@given(size=st.one_of(st.integers(0, 2**31 - 1), st.sampled_from((0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152))))
def test_chunk_heads(size: int) -> None:
    assert grpc.chunk_head(size) == grpc_reference.chunk_head(size)


def test_a_chunk_head_has_a_bound() -> None:
    for size in (-1, 2**31):
        with pytest.raises(ValueError):
            grpc.chunk_head(size)


def test_chunk_heads_are_what_protobuf_writes() -> None:
    from anvil.api.grpc.proto.object_pb2 import GetObjectResponse

    for size in (0, 1, 127, 128, 300, 70_000):
        payload = GetObjectResponse(chunk=bytes(size)).SerializeToString()
        assert grpc.chunk_head(size) + bytes(size) == message(payload)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"250m", 0.25), (b"5u", 5e-6), (b"7n", 7e-9), (b"99999999H", 30 * 86400)],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"-1S", b"1.5S", b"1x", b"123456789S", b" 1S"])
def test_timeouts_that_are_none(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_timeout(value)


def test_what_is_a_grpc_call() -> None:
    for kind in (b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y", b"Application/gRPC"):
        assert is_grpc("POST", kind) and is_protobuf(kind), kind
    assert is_grpc("POST", b"application/grpc+json") and not is_protobuf(b"application/grpc+json")
    for method, kind in (
        ("PUT", b"application/grpc"),
        ("POST", b"application/grpc-web"),
        ("POST", b"application/json"),
        ("POST", b""),
    ):
        assert not is_grpc(method, kind)


def test_nothing_in_a_status_can_add_a_field() -> None:
    assert percent_encoded("a\r\nb%ü ~") == b"a%0D%0Ab%25%C3%BC ~"
    assert status_fields(0) == [(b"grpc-status", b"0")]
    assert status_fields(5, "no", b"\0\1", (("k", "v"), ("k-bin", b"\xff"))) == [
        (b"grpc-status", b"5"),
        (b"grpc-message", b"no"),
        (b"grpc-status-details-bin", b"AAE"),
        (b"k", b"v"),
        (b"k-bin", b"/w"),
    ]
    for key, value in (
        ("k", "a\nb"),
        ("k", "ü"),
        ("grpc-status", "0"),
        (":path", "x"),
        ("K", "v"),
        ("", "v"),
        ("k-bin", "text"),
        ("k\n", "v"),
    ):
        with pytest.raises(ValueError):
            status_fields(0, metadata=((key, value),))


def test_metadata_of_a_call() -> None:
    headers = ((b"te", b"trailers"), (b"a", b"1"), (b"b-bin", b"AAE, /w=="), (b"grpc-timeout", b"1S"))
    assert read_metadata(headers) == (("a", "1"), ("b-bin", b"\0\1"), ("b-bin", b"\xff"))
    with pytest.raises(InvalidRequest):
        read_metadata(((b"b-bin", b"$$"),))
