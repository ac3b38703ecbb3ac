"""Bodies for the engine: exactly the announced bytes, nothing behind them, trailers final with the last byte."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from anvil.base.errors import IncompleteBody, InvalidRequest, SignatureMismatch
from anvil.net.bodies import AwsChunkedBody, RawBody
from anvil.net.stream import RequestHead, Stream


class FakeStream:
    """A stream whose body is at hand."""

    def __init__(self, body: bytes, *, chunked: bool = False) -> None:
        length = None if chunked else len(body)
        self.head = RequestHead("PUT", b"/", b"", (), b"h", "1.1", "::1", length, chunked)
        self._body = body

    async def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._body))
        view[:count] = self._body[:count]
        self._body = self._body[count:]
        return count


class FakeDecoder:
    """Decodes a toy coding: payload bytes are lower case, framing is upper case, `Z` ends the body, `!` is a bad signature."""

    def __init__(self, decoded_length: int) -> None:
        self.finished = False
        self.produced = 0
        self.trailers: dict[str, str] = {}
        self._length = decoded_length

    def decode(self, source: memoryview, target: memoryview) -> tuple[int, int]:
        consumed = produced = 0
        while consumed < len(source) and not self.finished:
            byte = source[consumed]
            if byte == ord("!"):
                raise SignatureMismatch()
            if byte == ord("Z"):
                self.finished = True
                self.trailers = {"x-amz-checksum-crc32": "AAAAAA=="}
            elif chr(byte).islower():
                if produced == len(target):
                    break
                target[produced] = byte
                produced += 1
            consumed += 1
        self.produced += produced
        return consumed, produced


async def drain(body: RawBody | AwsChunkedBody, step: int) -> bytes:
    """What the engine does: read until a short view or the whole length."""
    view = memoryview(bytearray(step))
    received = b""
    while len(received) < body.length:
        count = await body.readinto(view)
        received += bytes(view[:count])
        if count < step:
            break
    return received


def raw(data: bytes, length: int, *, chunked: bool = False) -> RawBody:
    return RawBody(cast(Stream, FakeStream(data, chunked=chunked)), length)


def coded(data: bytes, length: int, *, chunked: bool = False) -> AwsChunkedBody:
    decoder = cast(Any, FakeDecoder(length))
    return AwsChunkedBody(cast(Stream, FakeStream(data, chunked=chunked)), decoder, length)


@pytest.mark.parametrize("step", [1, 3, 5, 6, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_raw(step: int, chunked: bool) -> None:
    body = raw(b"hello", 5, chunked=chunked)
    assert asyncio.run(drain(body, step)) == b"hello"
    assert asyncio.run(body.readinto(memoryview(bytearray(3)))) == 0
    assert body.trailers == {}


def test_raw_of_no_bytes() -> None:
    assert asyncio.run(raw(b"", 0).readinto(memoryview(bytearray(3)))) == 0


def test_raw_and_content_length_agree() -> None:
    with pytest.raises(ValueError, match="content-length"):
        raw(b"hello", 4)


def test_raw_of_another_length_than_announced() -> None:
    with pytest.raises(IncompleteBody):
        asyncio.run(drain(raw(b"hell", 5, chunked=True), 100))
    with pytest.raises(InvalidRequest):
        asyncio.run(drain(raw(b"hello!", 5, chunked=True), 100))


@pytest.mark.parametrize("step", [1, 3, 5, 6, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_aws_chunked(step: int, chunked: bool) -> None:
    body = coded(b"AheBllCoDZ", 5, chunked=chunked)
    assert asyncio.run(drain(body, step)) == b"hello"
    assert body.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}
    assert asyncio.run(body.readinto(memoryview(bytearray(3)))) == 0


def test_aws_chunked_of_no_bytes_still_has_its_end_checked() -> None:
    body = coded(b"AZ", 0)
    assert asyncio.run(body.readinto(memoryview(bytearray(3)))) == 0
    assert body.trailers
    with pytest.raises(SignatureMismatch):
        asyncio.run(coded(b"A!", 0).readinto(memoryview(bytearray(3))))


@pytest.mark.parametrize("step", [1, 5, 100])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"AheBllCo", IncompleteBody),  # the end is missing
        (b"AheBllZ", IncompleteBody),  # ends early
        (b"AheBllCoxZ", InvalidRequest),  # more payload than announced
        (b"AheBllCoZq", InvalidRequest),  # something follows
        (b"AheBllCoDZD", InvalidRequest),
        (b"AheBllCo!", SignatureMismatch),  # after the last payload byte
        (b"", IncompleteBody),
    ],
)
def test_the_last_byte_is_only_handed_out_with_a_sound_end(step: int, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(drain(coded(data, 5), step))
