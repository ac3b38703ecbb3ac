"""Fuzz the aws-chunked decoder against its reference: same payload, trailers or error, whatever arrives in whatever pieces.

    PYTHONPATH=. python tests/fuzz/fuzz_awschunked.py -runs=100000

With atheris (a development extra) the inputs are guided by the coverage of the reference decoder; where atheris does not import,
they are drawn from a seeded generator, and the run says so. `tests/unit/wire/test_awschunked_fuzz.py` does a short one of these.
A failing input is printed in full: `replay(bytes.fromhex(...))` shows it again.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from typing import Any

from anvil.base.errors import AnvilError
from anvil.wire.awschunked import ChunkedDecoder

atheris: Any
try:
    atheris = importlib.import_module("atheris")
except ImportError:  # no wheel for this Python: see the docstring
    atheris = None

if atheris is not None:
    with atheris.instrument_imports():
        reference = importlib.import_module("anvil.wire.awschunked_reference")
else:
    reference = importlib.import_module("anvil.wire.awschunked_reference")

KEY, SEED, DATE, SCOPE = b"k" * 32, "5" * 64, "20261123T181000Z", "20261123/us-east-1/s3/aws4_request"
SIGNED = {"signing_key": KEY, "seed_signature": SEED, "amz_date": DATE, "scope": SCOPE}
NAMES = ("x-a", "x-b")
MODES: list[dict[str, Any]] = [SIGNED, {**SIGNED, "trailer_names": NAMES}, {"trailer_names": NAMES}]
SPLICES = (
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b"0",
    b"f",
    b":",
    b";",
    b" ",
    b"\x00",
    b"\xff",
    b"x-a:1\r\n",
    b"0\r\n",
    b";chunk-signature=",
)


class Choices:
    """Small decisions read off the front of a fuzzed input; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, below: int) -> int:
        taken, self.data = self.data[:2], self.data[2:]
        return int.from_bytes(taken, "little") % below

    def bytes(self, length: int) -> bytes:
        taken, self.data = self.data[:length], self.data[length:]
        return taken


def make_body(choices: Choices, mode: int) -> tuple[bytes, int]:
    """Raw fuzz, or a rightly signed body with a few splices, since nothing guesses a signature; and a length to announce."""
    if choices.number(4) == 0:
        length = choices.number(40)
        return choices.data, length
    chunks = [chunk for chunk in (choices.bytes(choices.number(30)) for _ in range(choices.number(4))) if chunk]
    body = reference.encode(
        chunks,
        reference.Signer(KEY, SEED, DATE, SCOPE) if mode < 2 else None,
        {name: "v" * choices.number(5) for name in NAMES[: choices.number(3)]} if mode > 0 else None,
        line_end=("\r\n", "\n")[choices.number(2)],
        empty_line=choices.number(2) == 1,
    )
    for _ in range(choices.number(4)):
        at = choices.number(len(body) + 1)
        body = body[:at] + SPLICES[choices.number(len(SPLICES))] + body[at + choices.number(3) :]
    return body, max(0, sum(map(len, chunks)) + (0, 0, 0, 1, -1)[choices.number(5)])


def outcome(decoder: Any, body: bytes, step: int, room: int) -> object:
    payload = bytearray()
    at = 0
    try:
        while at < len(body):
            target = bytearray(room + 8)
            consumed, produced = decoder.decode(body[at : at + step], memoryview(target)[:room])
            assert target[produced:] == bytes(len(target) - produced), "wrote beyond what it reported"
            assert consumed or produced or room == 0, "no progress"
            payload += target[:produced]
            at += consumed
        decoder.end()
    except AnvilError as error:
        return type(error)
    return bytes(payload), decoder.trailers, decoder.finished, decoder.produced


def replay(data: bytes) -> None:
    """One fuzzed input. Raises AssertionError where decoder and reference disagree."""
    choices = Choices(data)
    mode = choices.number(len(MODES))
    step, room = 1 + choices.number(60), 1 + choices.number(30)
    body, length = make_body(choices, mode)
    wanted = outcome(reference.ReferenceDecoder(length, **MODES[mode]), body, len(body) or 1, 1 << 12)
    for pieces, space in ((len(body) or 1, 1 << 12), (step, room), (1, 1)):
        found = outcome(ChunkedDecoder(length, **MODES[mode]), body, pieces, space)
        assert found == wanted, f"{found!r}, wanted {wanted!r}, for replay(bytes.fromhex({data.hex()!r})), body {body!r}"


def run_without_atheris(runs: int, seed: int) -> None:
    """`runs` inputs drawn from a generator with that seed."""
    generator = random.Random(seed)
    for _ in range(runs):
        replay(generator.randbytes(generator.randrange(200)))


def main() -> None:
    if atheris is not None:
        atheris.Setup(sys.argv, replay)
        atheris.Fuzz()
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-runs", type=int, default=100_000)
    parser.add_argument("-seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"atheris is not importable here: {arguments.runs} generated inputs, seed {arguments.seed}, not guided by coverage")
    run_without_atheris(arguments.runs, arguments.seed)


if __name__ == "__main__":
    main()
