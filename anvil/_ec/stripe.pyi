from collections.abc import Sequence

from anvil._ec.codec import Codec
from anvil._ec.pool import Job
from anvil.base.types import Buffer

class SealBroken(ValueError): ...
class NotEnoughUnits(ValueError): ...

class BlobKey:
    """AES-256-GCM key of one blob: HKDF-SHA256(ikm=bucket key (32 bytes), salt=blob id (16), info=b"anvil blob v1", length 32)."""

    def __init__(self, bucket_key: bytes, blob_id: bytes) -> None: ...
    def seal(self, stripe: int, last: bool, plain: Buffer) -> bytes:
        """Ciphertext + 16-byte tag. Nonce = stripe as 12-byte big-endian; AAD = blob id + stripe u32 LE + last flag u8."""
    def open(self, stripe: int, last: bool, sealed: Buffer) -> bytes:
        """Raises SealBroken."""

class EncodeJob(Job):
    """Seal a stripe, pad to k units, code k+m units, write the frames of all shards.

    `out` holds k+m frames, shard after shard: frame i at i*(8+unit), = checksum (8 bytes LE) + unit.
    Checksum of a unit = XXH3_64(unit, seed = XXH3_64(blob id + shard index u32 LE + stripe u32 LE)).
    `plain` may be longer than `length`. unit = anvil.model.scheme.unit_len(k, length).
    """

    def __init__(self, codec: Codec, key: BlobKey, stripe: int, last: bool, plain: Buffer, length: int, out: Buffer) -> None: ...
    frame_len: int
    def frame(self, index: int) -> memoryview:
        """Shard `index`'s frame inside `out`."""

class DecodeJob(Job):
    """Verify frames, reconstruct data units if some are missing or bad, open the seal into `out[:length]`.

    `frames`: k+m entries, None = not read (only k needed). After running: `corrupt` = indexes whose checksum failed.
    check() raises NotEnoughUnits (fewer than k good frames: fetch others and make a new job) or SealBroken.
    """

    def __init__(
        self, codec: Codec, key: BlobKey, stripe: int, last: bool, length: int, frames: Sequence[Buffer | None], out: Buffer
    ) -> None: ...
    corrupt: tuple[int, ...]

class RebuildJob(Job):
    """Regenerate whole frames of the shards in `missing` (repair works on ciphertext). `out` = len(missing) frames."""

    def __init__(
        self,
        codec: Codec,
        blob_id: bytes,
        stripe: int,
        unit: int,
        frames: Sequence[Buffer | None],
        missing: Sequence[int],
        out: Buffer,
    ) -> None: ...
    corrupt: tuple[int, ...]

def frame_checksum(blob_id: bytes, index: int, stripe: int, unit: Buffer) -> int: ...
