"""Digests that clients state and ask for: Content-MD5, x-amz-content-sha256, x-amz-checksum-*, as headers or trailers.

Owns: reading and checking what was stated, and how a stored checksum is shown. Invariant: `verify` runs over digests of the
bytes that are about to become visible; whatever the client stated is compared there, trailers included, or the write fails.
Sources: S3 User Guide "Checking object integrity"; API Reference, PutObject and CompleteMultipartUpload. Not here: computing
digests.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hmac import compare_digest

import msgspec

from anvil.auth.types import Authenticated, Payload
from anvil.base.errors import BadDigest, ContentSHA256Mismatch, InvalidArgument, InvalidDigest, InvalidRequest
from anvil.engine.ports import Body
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
BY_API_NAME: dict[str, Algorithm] = {name: algorithm for algorithm, name in API_NAME.items()}
XML_NAME: dict[Algorithm, str] = {algorithm: "Checksum" + name for algorithm, name in API_NAME.items()}
HEADER: dict[Algorithm, bytes] = {algorithm: b"x-amz-checksum-" + algorithm.encode() for algorithm in _ALGORITHMS}
_BY_HEADER: dict[bytes, Algorithm] = {header: algorithm for algorithm, header in HEADER.items()}
_CRCS = (Algorithm.CRC32, Algorithm.CRC32C, Algorithm.CRC64NVME)


# -- showing -------------------------------------------------------------------------------------------------------------


def encode(checksum: Checksum) -> str:
    """As in headers and XML: base64, with `-N` behind a COMPOSITE checksum of N parts."""
    text = b64encode(checksum.value).decode("ascii")
    return f"{text}-{checksum.parts}" if checksum.type is ChecksumType.COMPOSITE and checksum.parts else text


def headers_of(checksum: Checksum | None, *, with_type: bool = True) -> list[tuple[bytes, bytes]]:
    if checksum is None:
        return []
    shown = [(HEADER[checksum.algorithm], encode(checksum).encode("ascii"))]
    if with_type:
        shown.append((b"x-amz-checksum-type", checksum.type.encode("ascii")))
    return shown


# -- reading -------------------------------------------------------------------------------------------------------------


def decode(algorithm: Algorithm, text: str, name: str) -> bytes:
    """Raw bytes of a stated checksum. Raises InvalidRequest, naming the header or trailer."""
    try:
        value = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != _ALGORITHMS[algorithm][1]:
        raise InvalidRequest(f"Value for {name} header is invalid.")
    return value


def algorithm_named(name: str, header: str) -> Algorithm:
    """`CRC32C` -> Algorithm.CRC32C. Raises InvalidRequest."""
    found = BY_API_NAME.get(name.upper())
    if found is None:
        raise InvalidRequest(f"Value for {header} header is invalid: {', '.join(BY_API_NAME)} are known.")
    return found


class Integrity(msgspec.Struct):
    """What a request states about its payload. At most one of `value` and `trailer` is set, and then `algorithm` is."""

    md5: bytes | None = None
    sha256: bytes | None = None
    algorithm: Algorithm | None = None
    value: bytes | None = None
    trailer: str | None = None

    @property
    def trailer_names(self) -> tuple[str, ...]:
        return (self.trailer,) if self.trailer else ()

    def compute(self, algorithm: Algorithm | None) -> None:
        """Have that checksum computed and stored although the client stated none."""
        if self.algorithm is None:
            self.algorithm = algorithm

    def spec(self, body: Body, attributes: Attributes, condition: Condition = NO_CONDITION) -> PutSpec:
        wanted = [Algorithm.SHA256] if self.sha256 is not None else []
        if self.algorithm is not None:
            wanted.append(self.algorithm)
        return PutSpec(
            attributes=attributes,
            verify=lambda digests: self.check(digests, body.trailers),
            digests=frozenset(wanted),
            condition=condition,
        )

    def check(self, digests: Mapping[Algorithm, bytes], trailers: Mapping[str, str]) -> Checksum | None:
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
        if self.algorithm is None:
            return None
        stated, computed = self.value, digests[self.algorithm]
        if self.trailer is not None:
            text = trailers.get(self.trailer)
            if text is None:
                raise InvalidRequest(f"The trailer {self.trailer} was announced by x-amz-trailer and did not come.")
            stated = decode(self.algorithm, text, self.trailer)
        if stated is not None and not compare_digest(stated, computed):
            name = API_NAME[self.algorithm]
            raise BadDigest(f"The {name} you specified did not match the calculated checksum.")
        return Checksum(self.algorithm, computed)


def integrity(headers: Mapping[bytes, bytes], auth: Authenticated, *, of_object: bool = False) -> Integrity:
    """Read what a request states. Raises InvalidDigest, InvalidRequest. (A checksum that Anvil does not know is refused by
    `features`, since its header is not one of ours.)

    `of_object`: the checksum headers speak of an object that exists, as in CompleteMultipartUpload, and not of the payload."""
    stated = Integrity(sha256=auth.payload_sha256)
    md5 = headers.get(b"content-md5")
    if md5 is not None:
        stated.md5 = content_md5(md5)
    value = None if of_object else _stated_header(headers)
    if value is not None:
        stated.algorithm, stated.value = value
    trailer = headers.get(b"x-amz-trailer")
    if trailer is not None:
        name = trailer.strip().lower()
        algorithm = _BY_HEADER.get(name)
        if algorithm is None:
            raise InvalidRequest("The value specified in the x-amz-trailer header is not supported")
        if auth.payload not in (Payload.SIGNED_CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER):
            raise InvalidRequest("x-amz-trailer needs a payload with trailers; x-amz-content-sha256 announces none.")
        if stated.algorithm is not None:
            raise InvalidRequest("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
        stated.algorithm, stated.trailer = algorithm, name.decode("ascii")
    named = headers.get(b"x-amz-sdk-checksum-algorithm")
    if named is not None and not of_object:
        _check_named(named.decode("latin-1"), stated)
    return stated


def _stated_header(headers: Mapping[bytes, bytes]) -> tuple[Algorithm, bytes] | None:
    found = None
    for algorithm, header in HEADER.items():
        if header in headers:
            if found is not None:
                raise InvalidRequest("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
            found = algorithm, decode(algorithm, headers[header].decode("latin-1"), header.decode("ascii"))
    return found


def _check_named(name: str, stated: Integrity) -> None:
    if name.upper() == "MD5" and stated.md5 is not None and stated.algorithm is None:
        return
    if algorithm_named(name, "x-amz-sdk-checksum-algorithm") is stated.algorithm:
        return
    if stated.algorithm is None:
        raise InvalidRequest(
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
        )
    raise InvalidRequest("Value for x-amz-sdk-checksum-algorithm header is invalid.")


def content_md5(value: bytes) -> bytes:
    """Raises InvalidDigest unless it is base64 of 16 bytes."""
    try:
        digest = b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 16:
        raise InvalidDigest("The Content-MD5 you specified is not valid.")
    return digest


# -- multipart -----------------------------------------------------------------------------------------------------------


def upload_checksum(headers: Mapping[bytes, bytes]) -> tuple[Algorithm | None, ChecksumType | None]:
    """Algorithm and type of a new upload, with S3's defaults (User Guide, "Checking object integrity", table of types).

    Raises InvalidRequest for a combination that S3 does not have."""
    name = headers.get(b"x-amz-checksum-algorithm")
    kind = headers.get(b"x-amz-checksum-type")
    if name is None:
        if kind is not None:
            raise InvalidRequest("The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
        return None, None
    algorithm = algorithm_named(name.decode("latin-1"), "x-amz-checksum-algorithm")
    if kind is None:
        return algorithm, ChecksumType.FULL_OBJECT if algorithm is Algorithm.CRC64NVME else ChecksumType.COMPOSITE
    type_ = checksum_type(kind)
    if (type_ is ChecksumType.COMPOSITE and algorithm is Algorithm.CRC64NVME) or (
        type_ is ChecksumType.FULL_OBJECT and algorithm not in _CRCS
    ):
        raise InvalidRequest(f"The {type_} checksum type cannot be used with the {algorithm} checksum algorithm.")
    return algorithm, type_


def checksum_type(value: bytes) -> ChecksumType:
    try:
        return ChecksumType(value.decode("latin-1").upper())
    except ValueError:
        raise InvalidRequest("Value for x-amz-checksum-type header is invalid.") from None


def expected_of_upload(headers: Mapping[bytes, bytes], type_: ChecksumType | None) -> Checksum | None:
    """What CompleteMultipartUpload states about the object: `base64`, or `base64-N` for COMPOSITE.

    `type_`: the upload's. Raises InvalidRequest."""
    kind = headers.get(b"x-amz-checksum-type")
    if kind is not None and type_ is not None and checksum_type(kind) is not type_:
        raise InvalidRequest(f"The upload was created using the {type_} checksum mode.")
    for algorithm, header in HEADER.items():
        if header not in headers:
            continue
        text, dash, parts = headers[header].decode("latin-1").partition("-")
        value = decode(algorithm, text, header.decode("ascii"))
        if not dash:
            return Checksum(algorithm, value, type_ or ChecksumType.FULL_OBJECT)
        if not parts.isascii() or not parts.isdigit() or len(parts) > 5:
            raise InvalidRequest(f"Value for {header.decode('ascii')} header is invalid.")
        return Checksum(algorithm, value, ChecksumType.COMPOSITE, int(parts))
    return None


# -- small bodies ----------------------------------------------------------------------------------------------------------


def digest_small(algorithm: Algorithm, data: bytes | bytearray) -> bytes:
    """Digest of a request document, which is a few KiB, bounded by COMPLETE_BODY_BYTES_MAX."""
    if algorithm is Algorithm.MD5:
        return hashlib.md5(data, usedforsecurity=False).digest()
    if algorithm is Algorithm.SHA1:
        return hashlib.sha1(data, usedforsecurity=False).digest()
    if algorithm is Algorithm.SHA256:
        return hashlib.sha256(data).digest()
    if algorithm is Algorithm.CRC32:
        return zlib.crc32(data).to_bytes(4, "big")
    # Native, and needed by no other document: the API can be imported and tested without the extension.
    from anvil._ec.digest import crc32c, crc64nvme

    if algorithm is Algorithm.CRC32C:
        return crc32c(data).to_bytes(4, "big")
    return crc64nvme(data).to_bytes(8, "big")


def require_some(stated: Integrity) -> None:
    """DeleteObjects needs Content-MD5 or a checksum (API Reference, DeleteObjects). Raises InvalidRequest."""
    if stated.md5 is None and stated.algorithm is None:
        raise InvalidRequest("Missing required header for this request: Content-MD5 OR x-amz-checksum-*")


def check_mode(headers: Mapping[bytes, bytes]) -> bool:
    """Whether `x-amz-checksum-mode: ENABLED` asks for the checksum. Raises InvalidArgument for another value."""
    mode = headers.get(b"x-amz-checksum-mode")
    if mode is None:
        return False
    if mode.upper() != b"ENABLED":
        raise InvalidArgument("Checksum mode must be ENABLED.", ArgumentName="x-amz-checksum-mode")
    return True
