from collections.abc import Sequence
from typing import Self

from anvil._ec.codec import Codec
from anvil._ec.codec import NotEnoughUnits as NotEnoughUnits
from anvil._ec.pieces import Sink, Source
from anvil._ec.pool import Job
from anvil.base.types import Buffer

class SealBroken(ValueError): ...

class BlobKey:
    """AES-256-GCM key of one blob: HKDF-SHA256(ikm=bucket key (32 bytes), salt=blob id (16), info=b"anvil blob v1")."""

    def __new__(cls, bucket_key: bytes, blob_id: bytes) -> Self: ...
    @property
    def blob_id(self) -> bytes: ...
    def seal(self, stripe: int, last: bool, plain: Buffer) -> bytes:
        """Ciphertext + 16-byte tag. Nonce = stripe as 12-byte big-endian; AAD = blob id + stripe u32 LE + last flag u8."""
    def open(self, stripe: int, last: bool, sealed: Buffer) -> bytes:
        """Raises SealBroken."""

class EncodeJob(Job):
    """Seal a stripe, pad to k units, code k+m units, write the frames of all shards.

    `out` holds k+m frames, shard after shard: frame i at i*(8+unit), = checksum (8 bytes LE) + unit.
    Checksum of a unit = XXH3_64(unit, seed = XXH3_64(blob id + shard index u32 LE + stripe u32 LE)).
    `plain` may be longer than `length`, `out` longer than the frames; they must not overlap.
    unit = anvil.model.scheme.unit_len(k, length).
    """

    def __new__(cls, codec: Codec, key: BlobKey, stripe: int, last: bool, plain: Buffer, length: int, out: Buffer) -> Self: ...
    @property
    def frame_len(self) -> int: ...
    def frame(self, index: int) -> memoryview:
        """Shard `index`'s frame inside `out`."""

class DecodeJob(Job):
    """Verify frames, reconstruct data units if some are missing or bad, open the seal into `out[:length]`.

    `frames`: k+m entries of the exact frame length, None = not read (only k needed). They are verified in order of index until k
    are good. After running: `corrupt` = indexes whose checksum failed. check() raises NotEnoughUnits (fewer than k good frames:
    fetch others and make a new job) or SealBroken; `out` then holds nothing of the stripe.
    """

    def __new__(
        cls,
        codec: Codec,
        key: BlobKey,
        stripe: int,
        last: bool,
        length: int,
        frames: Sequence[Buffer | None],
        out: Buffer,
    ) -> Self: ...
    @property
    def corrupt(self) -> tuple[int, ...]: ...

class RebuildJob(Job):
    """Regenerate whole frames of the shards in `missing` (repair works on ciphertext). `out` = len(missing) frames in order.

    Frames of shards in `missing` are not looked at. More than m missing: NotEnoughUnits at once.
    """

    def __new__(
        cls,
        codec: Codec,
        blob_id: bytes,
        stripe: int,
        unit: int,
        frames: Sequence[Buffer | None],
        missing: Sequence[int],
        out: Buffer,
    ) -> Self: ...
    @property
    def corrupt(self) -> tuple[int, ...]: ...

class OpenFrame(Sink):
    """Opens the frame of a stripe of a 1+0 blob as it comes, into `out[:length]`; wants `length` + 24 bytes in all.

    check() raises SealBroken, whether the frame is damaged or another's, and `out` then holds nothing; RuntimeError while not all has
    come. The frame's checksum is not looked at; a DecodeJob on the whole frame does, and tells the two apart.
    """

    def __new__(cls, key: BlobKey, stripe: int, last: bool, length: int, out: Buffer) -> Self: ...

class SealFrame(Source):
    """Seals a stripe of a 1+0 blob, `plain[:length]`, as it is drawn: the frame that EncodeJob would write. Of a (blob, stripe) there may
    be one: two sealings of other bytes under one nonce would give both away."""

    def __new__(cls, key: BlobKey, stripe: int, last: bool, plain: Buffer, length: int) -> Self: ...

def frame_checksum(blob_id: bytes, index: int, stripe: int, unit: Buffer) -> int: ...
def checksum_kernels() -> list[str]:
    """The XXH3 kernels this processor can run, slowest first; the last one is in use unless another was forced."""

def use_checksum_kernel(name: str) -> None:
    """Force a kernel, for tests and measurements. Raises ValueError if it cannot run here. Not while jobs run."""

def seal_kernels() -> list[str]:
    """What can seal here: "openssl", and "vaes" where the processor has it. The last is in use unless another was forced."""

def use_seal_kernel(name: str) -> None:
    """Force one, for tests and measurements. Raises ValueError if it cannot run here. Not while jobs run."""
