"""The fuzz target of SigV4 on inputs that Hypothesis makes, and on some that were thought of."""

from __future__ import annotations

import pytest
from fuzz_sigv4 import FIXED_FIELDS, NAMES, one_input
from hypothesis import given, settings
from hypothesis import strategies as st

words = st.sampled_from(
    [b"=", b"%", b"%2F", b"&", b"+", b"X-Amz-Signature=", b"X-Amz-Expires=1", b"20130524", b"us-east-1", b"us-west-2", b"/",
     b"\xff", b"host", b"AWS4-HMAC-SHA256 ", b"Credential", b"Signature", b"aws4_request", b";", b",", b"s3.example.com",
     b"10.0.0.1", b"[", b":", b"0" * 64]
)  # fmt: skip
values = st.lists(words | st.binary(max_size=6), max_size=6).map(b"".join)
changes = st.tuples(st.integers(0, len(NAMES) + FIXED_FIELDS - 1), values).map(lambda pair: bytes([pair[0] or 15]) + pair[1])
inputs = st.tuples(st.sampled_from([b"0", b"1", b"2"]), st.lists(changes, max_size=4)).map(
    lambda pair: b"\0".join([pair[0], *pair[1]])
)


@settings(max_examples=500)
@given(st.binary(max_size=300) | inputs)
def test_random_heads(data: bytes) -> None:
    one_input(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"0", b"1", b"2",
        b"1\0\x02X-Amz-Date=20130524T000000Z=X-Amz-Date=99991231T235959Z", b"1\0\x0220130524T000000Z=00010101T000000Z",
        b"0\0\x06\0\x07Mon, 01 Jan 0001 00:00:00 GMT", b"0\0\x06\0\x07Fri, 31 Dec 9999 23:59:60 GMT", b"1\0\x02us-east-1=%00%FF",
        b"0\0\x03[::1\0\x04[10.0.0.1", b"0\0\x03\0\x04:::\0\x0c,", b"1\0\x02Expires=3600=Expires=" + b"9" * 5000,
    ],
)  # fmt: skip
def test_thought_of(data: bytes) -> None:
    one_input(data)
