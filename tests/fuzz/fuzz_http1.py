"""Fuzzes the HTTP/1.1 parsers: heads, chunked bodies and their splits.

Owns: the properties that must hold for any bytes. Uses atheris where it is installed, Hypothesis otherwise.
Usage: PYTHONPATH=. python tests/fuzz/fuzz_http1.py [atheris options | hypothesis EXAMPLES]
"""

from __future__ import annotations

import importlib.util
import sys

from anvil.base.errors import InvalidRequest
from anvil.base.limits import HEADER_BYTES_MAX
from anvil.wire.http1 import Head, Refusal, head_end, parse_head, sniff
from anvil.wire.http1_chunked import TransferDecoder


def read_head(data: bytes, step: int) -> Head | int | None:
    """Feed a head in steps, as a connection does. The head, the status of the refusal, or None if it is not complete."""
    held = b""
    try:
        for at in range(0, len(data), step):
            scanned = len(held)
            held += data[at : at + step]
            end = head_end(held, scanned)
            if end:
                return parse_head(held[:end])
    except Refusal as refusal:
        return refusal.status
    return None


def read_body(data: bytes, step: int) -> bytes | None:
    """Decode a chunked body in steps; None if it was refused."""
    decoder = TransferDecoder()
    payload = b""
    try:
        for at in range(0, len(data), step):
            piece = memoryview(data[at : at + step])
            while len(piece) > 0 and not decoder.finished:
                target = memoryview(bytearray(step))
                consumed, produced = decoder.decode(piece, target)
                assert consumed > 0
                piece = piece[consumed:]
                payload += target[:produced]
    except InvalidRequest:
        return None
    assert decoder.payload_bytes == len(payload)
    return payload


def check(data: bytes) -> None:
    """One input. Raises whatever is wrong."""
    if data:
        sniff(data)
    whole, split = read_head(data, max(1, len(data))), read_head(data, 7)
    assert type(whole) is type(split) or isinstance(whole, int) or isinstance(split, int)
    if isinstance(whole, Head):
        assert whole.content_length is None or not whole.chunked
        assert sum(len(name) + len(value) for name, value in whole.headers) < HEADER_BYTES_MAX
        assert not any(byte in value for _, value in whole.headers for byte in b"\r\n\0")
        assert isinstance(split, Head)
        assert (whole.headers, whole.target) == (split.headers, split.target)
    assert read_body(data, max(1, len(data))) == read_body(data, 3)


def main() -> None:
    if importlib.util.find_spec("atheris") is None or sys.argv[1:2] == ["hypothesis"]:
        run_hypothesis(int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
        return
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


def run_hypothesis(examples: int) -> None:
    """The same properties, driven by Hypothesis."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    words = st.sampled_from(
        [
            *(b"GET / HTTP/1.1\r\n", b"Host: h\r\n", b"\r\n", b"\r\n\r\n", b"Content-Length: 3\r\n", b"\n", b"\r", b"\0"),
            *(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\n", b";x=y", b": ", b" ", b"a", b"PRI"),
        ]
    )

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(words | st.binary(max_size=5), max_size=15).map(b"".join))
    def run(data: bytes) -> None:
        check(data)

    run()


if __name__ == "__main__":
    main()
