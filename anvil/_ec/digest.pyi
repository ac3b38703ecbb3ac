from collections.abc import Iterable

from anvil._ec.pool import Job
from anvil.base.types import Buffer

class Digests:
    """Running digests of one stream; one call updates all. Names: md5, sha1, sha256, crc32, crc32c, crc64nvme."""

    def __init__(self, algorithms: Iterable[str]) -> None: ...
    def update(self, data: Buffer) -> None:
        """Inline, GIL released for anything above a few KiB."""
    def results(self) -> dict[str, bytes]:
        """Raw digest bytes (CRCs big-endian) of everything updated so far; does not end the stream. Raises RuntimeError while a job is in flight."""

class DigestLanes:
    """Shared multi-buffer MD5: one C thread (or more) takes what is queued, one block-aligned run of up to 16 (AVX-512) or 8 (AVX2)
    distinct streams at a time, scalar for a lone one. Other digests of the same job run on that thread too. Jobs of one stream
    finish in the order submitted, and several of one stream may be queued. Completion works like Pool: fileno/collect."""

    lanes: int
    in_flight: int
    def __init__(self, threads: int = 1) -> None: ...
    def fileno(self) -> int: ...
    def submit(self, job: DigestJob) -> None: ...
    def collect(self) -> list[Job]: ...
    def close(self) -> list[Job]: ...

class DigestJob(Job):
    """Update `digests` with data[:length] (on DigestLanes.submit; `run()` does it inline). Keeps the buffer alive."""

    def __init__(self, digests: Digests, data: Buffer, length: int) -> None: ...

def crc32(data: Buffer, value: int = 0) -> int: ...
def crc32c(data: Buffer, value: int = 0) -> int: ...
def crc64nvme(data: Buffer, value: int = 0) -> int: ...
def crc_combine(algorithm: str, first: int, second: int, second_len: int) -> int:
    """CRC of the concatenation (full-object checksums of multipart uploads)."""

def md5_kernel() -> str: ...
