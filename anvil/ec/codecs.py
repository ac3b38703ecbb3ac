"""The codec of each scheme, and the proof at start that the native kernels on this machine compute what they must.

Owns: one `Codec` per scheme for the life of the process, and `self_test`. Invariant: a node whose kernels disagree with the known
answers does not start, since what it would write could not be read elsewhere. Not here: the references
(`anvil/_ec/*_reference.py`) that the known answers were made with, the exhaustive comparison with them (`tests/unit/ec`).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from anvil._ec.codec import Codec, kernels
from anvil._ec.stripe import BlobKey, DecodeJob, EncodeJob, RebuildJob, checksum_kernels, seal_kernels
from anvil.base.errors import KernelFault
from anvil.base.limits import CODE_K_MAX, CODE_M_MAX
from anvil.model.scheme import CHECKSUM_BYTES, Scheme, unit_len

VECTOR_KEY = bytes(range(32))
VECTOR_BLOB = bytes(range(16))
VECTOR_STRIPE = 5
VECTOR_PLAIN = hashlib.shake_128(b"anvil self-test").digest(9001)  # odd, several blocks of every kernel long
VECTORS = {  # scheme -> SHA-256 of all frames of VECTOR_PLAIN, computed with anvil/_ec/stripe_reference.py
    Scheme(1, 0): "a05a4fa5b86331ed1256f403cac8c13a72483b91eb65c9dec9353bb6442a1910",
    Scheme(1, 2): "04842a30b6ec0858a2cf8b05f2c59c9cfb56cb5f6472b0c3d2978560f07c2064",
    Scheme(2, 1): "4d318e2b8819518ed20ed9ab9917b1e26c2a910dc694949a32a67169e4ede399",
    Scheme(4, 2): "9caf19e269501dc75d21a07adc132d0500e16b006452ff0e0e638d63cb304fa7",
    Scheme(8, 3): "46373aab449f4aa24c6dd273b76addfcef6fe601fdffa166d99e7962d39430d2",
    Scheme(16, 8): "08a367674389a00e103437d6df02b330bb58e5ca8ab0a75f09b5491e5bf08fb9",
}


@lru_cache(maxsize=CODE_K_MAX * (CODE_M_MAX + 1))
def codec_for(scheme: Scheme) -> Codec:
    """The codec of a scheme: made once, shared with its cached tables by all jobs. Raises ValueError for an unknown one."""
    return Codec(scheme.k, scheme.m, scheme.matrix)


def chosen_kernels() -> dict[str, str]:
    """Which implementation does what on this machine, for `anvil doctor` and the log at start."""
    *_, checksum = checksum_kernels()
    *_, seal = seal_kernels()
    return {**kernels(), "xxh3": checksum, "aes_gcm": seal}


def self_test() -> None:
    """Known answers and round trips with the kernels in use (some milliseconds). Raises KernelFault with what went wrong."""
    for scheme, expected in VECTORS.items():
        _test(scheme, expected)


def _test(scheme: Scheme, expected: str) -> None:
    codec, key = Codec(scheme.k, scheme.m, scheme.matrix), BlobKey(VECTOR_KEY, VECTOR_BLOB)
    length = len(VECTOR_PLAIN)
    unit = unit_len(scheme.k, length)
    frame = CHECKSUM_BYTES + unit
    out = bytearray(scheme.width * frame)
    encode = EncodeJob(codec, key, VECTOR_STRIPE, True, VECTOR_PLAIN, length, out)
    encode.run()
    if hashlib.sha256(out).hexdigest() != expected:
        raise KernelFault(f"self-test: encoding {scheme} gives wrong frames here ({_description()})")
    frames = [bytes(encode.frame(index)) for index in range(scheme.width)]
    lost = range(scheme.m)
    survivors = [None if index in lost else frames[index] for index in range(scheme.width)]
    back, rebuilt = bytearray(length), bytearray(scheme.m * frame)
    try:
        DecodeJob(codec, key, VECTOR_STRIPE, True, length, survivors, back).run()
        RebuildJob(codec, VECTOR_BLOB, VECTOR_STRIPE, unit, survivors, lost, rebuilt).run()
    except ValueError as error:
        raise KernelFault(f"self-test: {scheme} cannot read back what it wrote: {error} ({_description()})") from error
    if back != VECTOR_PLAIN or rebuilt != b"".join(frames[index] for index in lost):
        raise KernelFault(f"self-test: {scheme} reads back something else than it wrote ({_description()})")


def _description() -> str:
    return ", ".join(f"{name}: {value}" for name, value in chosen_kernels().items())
