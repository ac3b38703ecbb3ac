"""The stripe format of `stripe.pyx`, said slowly: the definition that the native jobs are tested against.

Owns: key derivation, sealing, padding, coding and frames of one stripe. Invariant: uses the reference codec and checksum, and
another binding of AES-GCM and HKDF, so nothing is shared with the native code. Not here: speed, threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anvil._ec import codec_reference
from anvil._ec.xxh3_reference import xxh3_64

TAG_BYTES = 16
CHECKSUM_BYTES = 8
UNIT_ALIGN = 64
INFO = b"anvil blob v1"


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def derive(bucket_key: bytes, blob_id: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=blob_id, info=INFO).derive(bucket_key)


class Place(NamedTuple):
    """What a stripe is bound to."""

    bucket_key: bytes
    blob_id: bytes
    stripe: int
    last: bool

    @property
    def cipher(self) -> AESGCM:
        return AESGCM(derive(self.bucket_key, self.blob_id))

    @property
    def nonce(self) -> bytes:
        return self.stripe.to_bytes(12, "big")

    @property
    def associated(self) -> bytes:
        return self.blob_id + u32(self.stripe) + bytes([self.last])


def seal(place: Place, plain: bytes) -> bytes:
    return place.cipher.encrypt(place.nonce, plain, place.associated)


def unseal(place: Place, sealed: bytes) -> bytes:
    """Raises ValueError if the tag does not fit."""
    try:
        return place.cipher.decrypt(place.nonce, sealed, place.associated)
    except InvalidTag:
        raise ValueError("the stripe's authentication tag does not fit") from None


def unit_len(k: int, length: int) -> int:
    sealed = length + TAG_BYTES
    return sealed if k == 1 else -(-sealed // (k * UNIT_ALIGN)) * UNIT_ALIGN


def frame_checksum(blob_id: bytes, index: int, stripe: int, unit: bytes) -> int:
    return xxh3_64(unit, seed=xxh3_64(blob_id + u32(index) + u32(stripe)))


def frame(blob_id: bytes, index: int, stripe: int, unit: bytes) -> bytes:
    return frame_checksum(blob_id, index, stripe, unit).to_bytes(CHECKSUM_BYTES, "little") + unit


def encode(k: int, m: int, place: Place, plain: bytes) -> list[bytes]:
    """The k+m frames of a stripe."""
    unit = unit_len(k, len(plain))
    padded = seal(place, plain).ljust(k * unit, b"\0")
    data = [padded[i * unit : (i + 1) * unit] for i in range(k)]
    units = data + codec_reference.encode(k, m, data)
    return [frame(place.blob_id, index, place.stripe, unit) for index, unit in enumerate(units)]


def decode(k: int, m: int, place: Place, length: int, frames: Sequence[bytes | None]) -> bytes:
    """The plaintext from any k good frames. Raises ValueError if there are fewer, or the seal is broken."""
    units = [
        content[CHECKSUM_BYTES:]
        if content and content == frame(place.blob_id, index, place.stripe, content[CHECKSUM_BYTES:])
        else None
        for index, content in enumerate(frames)
    ]
    missing = [index for index in range(k) if units[index] is None]
    rebuilt = dict(zip(missing, codec_reference.decode(k, m, units, missing), strict=True))
    data = b"".join(unit if (unit := units[index]) is not None else rebuilt[index] for index in range(k))
    return unseal(place, data[: length + TAG_BYTES])
