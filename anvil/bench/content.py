"""What objects hold: a function of key and seed, so that whoever knows both can verify what was read, and nothing need be remembered.

    the first 16 bytes      a digest of seed and key
    the rest                a pattern of random bytes made from the seed, repeated, from a place on that the same digest gives

Owns: the pattern, one per process. Invariants: bodies are sent as slices of it, without a copy; two keys differ in their first bytes
and, nearly always, everywhere; the pattern's length is a prime, so aligned pieces of one object differ, too. Not here: comparing
(`exchange.pyx`).
"""

from __future__ import annotations

import random

from anvil.base.limits import BENCH_PATTERN_BYTES, BENCH_PIECE_BYTES
from anvil.bench.outgoing import Contents
from anvil.bench.sizes import Sizes


def contents(seed: int, sizes: Sizes) -> Contents:
    """`seed`: any 64-bit number; the same one gives the same bytes everywhere."""
    return Contents(seed, pattern(seed), sizes.largest if sizes.largest == sizes.smallest else sizes.of)


def pattern(seed: int) -> bytes:
    """BENCH_PATTERN_BYTES of them, and the first BENCH_PIECE_BYTES again, so that no piece has to be put together."""
    made = random.Random(seed).randbytes(BENCH_PATTERN_BYTES)
    return made + made[:BENCH_PIECE_BYTES]
