"""Digests that clients state and ask for: of what they upload, and of what their parts become.

Owns: comparing what was stated with what came, and which checksums an upload can have. Invariant: `check` runs over digests of
the bytes that are about to become visible; whatever the client stated is compared there, also what it stated only behind the
last byte, or the write fails. Sources: S3 User Guide "Checking object integrity"; API Reference, PutObject and
CompleteMultipartUpload. Not here: how checksums are written (`api/s3/checksums.py`), computing digests.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from hmac import compare_digest

import msgspec

from anvil.base.errors import BadDigest, ContentSHA256Mismatch, InvalidDigest, InvalidRequest
from anvil.engine.types import PutSpec
from anvil.model.records import NO_CONDITION, Algorithm, Attributes, Checksum, ChecksumType, Condition

# API name, digest length in bytes
_ALGORITHMS: dict[Algorithm, tuple[str, int]] = {
    Algorithm.CRC32: ("CRC32", 4),
    Algorithm.CRC32C: ("CRC32C", 4),
    Algorithm.CRC64NVME: ("CRC64NVME", 8),
    Algorithm.SHA1: ("SHA1", 20),
    Algorithm.SHA256: ("SHA256", 32),
}
API_NAME: dict[Algorithm, str] = {algorithm: name for algorithm, (name, _) in _ALGORITHMS.items()}
DIGEST_BYTES: dict[Algorithm, int] = {algorithm: size for algorithm, (_, size) in _ALGORITHMS.items()}
_CRCS = (Algorithm.CRC32, Algorithm.CRC32C, Algorithm.CRC64NVME)

Late = Callable[[], bytes | None]
"""The checksum that came behind the last byte, raw; None if none came and none had to. Raises InvalidRequest for one that should
have come or is none. Called once, after the body's last byte."""


class Integrity(msgspec.Struct):
    """What a request states about its payload. `algorithm`: the checksum to be computed and stored; `value` what it must be, where
    that is known before the payload, and `late` where it comes after it."""

    md5: bytes | None = None
    sha256: bytes | None = None
    algorithm: Algorithm | None = None
    value: bytes | None = None
    late: Late | None = None

    @property
    def digests(self) -> frozenset[Algorithm]:
        """What `check` needs beside MD5."""
        if self.algorithm is None:
            return _SHA256 if self.sha256 is not None else _NOTHING
        return frozenset((Algorithm.SHA256, self.algorithm) if self.sha256 is not None else (self.algorithm,))

    def spec(self, attributes: Attributes, condition: Condition = NO_CONDITION) -> PutSpec:
        return PutSpec(attributes=attributes, verify=self.check, digests=self.digests, condition=condition)

    def check(self, digests: Mapping[Algorithm, bytes]) -> Checksum | None:
        """Compare everything stated with what came. Raises ContentSHA256Mismatch, BadDigest, InvalidRequest."""
        if self.sha256 is not None and not compare_digest(self.sha256, digests[Algorithm.SHA256]):
            raise ContentSHA256Mismatch(
                ClientComputedContentSHA256=self.sha256.hex(), S3ComputedContentSHA256=digests[Algorithm.SHA256].hex()
            )
        if self.md5 is not None and not compare_digest(self.md5, digests[Algorithm.MD5]):
            raise BadDigest(
                "The Content-MD5 you specified did not match what we received.",
                ExpectedDigest=self.md5.hex(),
                CalculatedDigest=b64encode(digests[Algorithm.MD5]).decode("ascii"),
            )
        late = self.late() if self.late is not None else None
        if self.algorithm is None:
            return None
        stated, computed = self.value if late is None else late, digests[self.algorithm]
        if stated is not None and not compare_digest(stated, computed):
            name = API_NAME[self.algorithm]
            raise BadDigest(f"The {name} you specified did not match the calculated checksum.")
        return Checksum(self.algorithm, computed)


_NOTHING: frozenset[Algorithm] = frozenset()
_SHA256 = frozenset((Algorithm.SHA256,))


def md5_digest(digest: bytes) -> bytes:
    """The digest itself. Raises InvalidDigest unless it has 16 bytes."""
    if len(digest) != 16:
        raise InvalidDigest("The Content-MD5 you specified is not valid.")
    return digest


# -- multipart -----------------------------------------------------------------------------------------------------------


def upload_checksum(algorithm: Algorithm | None, type: ChecksumType | None) -> tuple[Algorithm | None, ChecksumType | None]:
    """Algorithm and type of a new upload, with S3's defaults (User Guide, "Checking object integrity", table of types).

    Raises InvalidRequest for a combination that S3 does not have."""
    if algorithm is None:
        if type is not None:
            raise InvalidRequest("The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
        return None, None
    if type is None:
        return algorithm, ChecksumType.FULL_OBJECT if algorithm is Algorithm.CRC64NVME else ChecksumType.COMPOSITE
    if (type is ChecksumType.COMPOSITE and algorithm is Algorithm.CRC64NVME) or (
        type is ChecksumType.FULL_OBJECT and algorithm not in _CRCS
    ):
        raise InvalidRequest(f"The {type} checksum type cannot be used with the {algorithm} checksum algorithm.")
    return algorithm, type


def fit_part(stated: Integrity, algorithm: Algorithm | None) -> None:
    """A part has the checksum of its upload, stated by the client or computed here. Raises InvalidRequest for another one."""
    if algorithm is not None and stated.algorithm not in (None, algorithm):
        raise InvalidRequest(
            f"Checksum Type mismatch occurred, expected checksum Type: {algorithm}, actual checksum Type: {stated.algorithm}"
        )
    if stated.algorithm is None:
        stated.algorithm = algorithm


def check_type(stated: ChecksumType | None, of_upload: ChecksumType | None) -> None:
    """The type that a completion names. Raises InvalidRequest unless it is the upload's, where that has one."""
    if stated is not None and of_upload is not None and stated is not of_upload:
        raise InvalidRequest(f"The upload was created using the {of_upload} checksum mode.")


def expected_of_upload(algorithm: Algorithm, value: bytes, parts: int, of_upload: ChecksumType | None) -> Checksum:
    """What a completion states about the object. `parts`: of a COMPOSITE one; 0 where the client does not say."""
    if parts:
        return Checksum(algorithm, value, ChecksumType.COMPOSITE, parts)
    return Checksum(algorithm, value, of_upload or ChecksumType.FULL_OBJECT)
