"""Fuzzes the decoder of uploads over gRPC against its reference: same payload, messages or error, whatever comes in whatever pieces.

Owns: the properties that must hold for any bytes. Uses atheris where it is installed, Hypothesis otherwise.
Usage: PYTHONPATH=. python tests/fuzz/fuzz_grpc.py [atheris options | hypothesis EXAMPLES]
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from anvil.base.errors import AnvilError
from anvil.wire import grpc, grpc_reference
from anvil.wire.grpc_head import parse_timeout, percent_encoded, read_metadata, status_fields

MESSAGE_MAX = 70_000


def outcome(decoder: Any, data: bytes, step: int, room: int) -> object:
    """What comes out, in order: payload byte for byte, other messages whole; then how it ends."""
    payload, found = bytearray(), []
    at = 0
    try:
        while at < len(data):
            target = bytearray(room + 8)
            used, produced = decoder.decode(data[at : at + step], memoryview(target)[:room])
            assert target[produced:] == bytes(len(target) - produced), "wrote beyond what it reported"
            payload += target[:produced]
            at += used
            compressed, message = decoder.compressed, decoder.take_message()
            if message is not None:
                found.append((len(payload), compressed, message))
            assert used or produced or message is not None, "no progress"
    except AnvilError as error:
        return found, type(error)  # payload before it, from the same call, is not reported
    return bytes(payload), found, decoder.at_boundary, decoder.chunk_left, decoder.collecting


def check(data: bytes) -> None:
    """One input. Raises whatever is wrong."""
    wanted = outcome(grpc_reference.ChunkDecoder(MESSAGE_MAX), data, max(1, len(data)), 1 << 17)
    for step, room in ((max(1, len(data)), 1 << 17), (7, 5), (1, 1)):
        assert outcome(grpc.ChunkDecoder(MESSAGE_MAX), data, step, room) == wanted, (step, room)
    try:
        assert parse_timeout(data) >= 0
        read_metadata([(b"x-bin", data)])
    except AnvilError:
        pass
    text = data.decode("utf-8", "surrogateescape")
    assert all(0x20 <= byte <= 0x7E for byte in percent_encoded(text))
    assert all(0x20 <= byte <= 0x7E for name, value in status_fields(2, text, data) for byte in name + value)


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

    lengths = st.sampled_from([0, 1, 2, 3, 127, 128, 129, 130, 131, 132, 300, 16_384, 16_387, 16_388, 70_000, 70_001, 1 << 31])
    prefixes = st.tuples(st.sampled_from([0, 0, 0, 1, 2, 255]), lengths).map(
        lambda pair: bytes((pair[0],)) + pair[1].to_bytes(4, "big")
    )
    chunks = st.sampled_from([0, 1, 126, 128, 16_383, 16_384]).map(lambda size: grpc_reference.chunk_head(size) + bytes(size))
    tags = st.sampled_from(
        [b"\x12", b"\x12\x00", b"\x12\x7f", b"\x12\x80\x01", b"\x12\x80\x80\x01", b"\x1a\x00", b"\x0a\x02", b"\xff"]
    )

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(chunks | prefixes | tags | st.binary(max_size=200), max_size=8).map(b"".join))
    def run(data: bytes) -> None:
        check(data)

    run()


if __name__ == "__main__":
    main()
