"""Digests that clients state and ask for: Content-MD5, x-amz-content-sha256, x-amz-checksum-*, as headers or trailers.

Owns: reading what was stated, and how a stored checksum is shown. Source: API Reference, PutObject and CompleteMultipartUpload.
Not here: comparing it with what came (`operations/integrity.py`), computing digests.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from functools import partial

from anvil.api.operations import integrity as rules
from anvil.api.operations.integrity import API_NAME, DIGEST_BYTES, Integrity
from anvil.auth.types import Authenticated, Payload
from anvil.base.errors import InvalidArgument, InvalidRequest
from anvil.engine.ports import Body
from anvil.model.records import Algorithm, Checksum, ChecksumType

BY_API_NAME: dict[str, Algorithm] = {name: algorithm for algorithm, name in API_NAME.items()}
XML_NAME: dict[Algorithm, str] = {algorithm: "Checksum" + name for algorithm, name in API_NAME.items()}
HEADER: dict[Algorithm, bytes] = {algorithm: b"x-amz-checksum-" + algorithm.encode() for algorithm in API_NAME}
_BY_HEADER: dict[bytes, Algorithm] = {header: algorithm for algorithm, header in HEADER.items()}


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
    if len(value) != DIGEST_BYTES[algorithm]:
        raise InvalidRequest(f"Value for {name} header is invalid.")
    return value


def algorithm_named(name: str, header: str) -> Algorithm:
    """`CRC32C` -> Algorithm.CRC32C. Raises InvalidRequest."""
    found = BY_API_NAME.get(name.upper())
    if found is None:
        raise InvalidRequest(f"Value for {header} header is invalid: {', '.join(BY_API_NAME)} are known.")
    return found


class Stated(Integrity):
    """What headers state. `trailer`: where the checksum of `algorithm` comes; then `value` is not set."""

    trailer: str | None = None

    @property
    def trailer_names(self) -> tuple[str, ...]:
        return (self.trailer,) if self.trailer else ()

    def expect_trailer(self, body: Body) -> None:
        """Have the trailer of this body compared, where one was announced."""
        if self.trailer is not None and self.algorithm is not None:
            self.late = partial(_trailing, self.algorithm, self.trailer, body)


def _trailing(algorithm: Algorithm, name: str, body: Body) -> bytes:
    text = body.trailers.get(name)
    if text is None:
        raise InvalidRequest(f"The trailer {name} was announced by x-amz-trailer and did not come.")
    return decode(algorithm, text, name)


def integrity(headers: Mapping[bytes, bytes], auth: Authenticated, *, of_object: bool = False) -> Stated:
    """Read what a request states. Raises InvalidDigest, InvalidRequest. (A checksum that Anvil does not know is refused by
    `features`, since its header is not one of ours.)

    `of_object`: the checksum headers speak of an object that exists, as in CompleteMultipartUpload, and not of the payload."""
    stated = Stated(sha256=auth.payload_sha256)
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


def _check_named(name: str, stated: Stated) -> None:
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
    return rules.md5_digest(digest)


# -- multipart -----------------------------------------------------------------------------------------------------------


def upload_checksum(headers: Mapping[bytes, bytes]) -> tuple[Algorithm | None, ChecksumType | None]:
    """Algorithm and type of a new upload. Raises InvalidRequest for a combination that S3 does not have."""
    name = headers.get(b"x-amz-checksum-algorithm")
    kind = headers.get(b"x-amz-checksum-type")
    algorithm = None if name is None else algorithm_named(name.decode("latin-1"), "x-amz-checksum-algorithm")
    return rules.upload_checksum(algorithm, None if kind is None else checksum_type(kind))


def checksum_type(value: bytes) -> ChecksumType:
    try:
        return ChecksumType(value.decode("latin-1").upper())
    except ValueError:
        raise InvalidRequest("Value for x-amz-checksum-type header is invalid.") from None


def expected_of_upload(headers: Mapping[bytes, bytes], type_: ChecksumType | None) -> Checksum | None:
    """What CompleteMultipartUpload states about the object: `base64`, or `base64-N` for COMPOSITE.

    `type_`: the upload's. Raises InvalidRequest."""
    kind = headers.get(b"x-amz-checksum-type")
    if kind is not None and type_ is not None:
        rules.check_type(checksum_type(kind), type_)
    for algorithm, header in HEADER.items():
        if header not in headers:
            continue
        text, dash, parts = headers[header].decode("latin-1").partition("-")
        value = decode(algorithm, text, header.decode("ascii"))
        if dash and (not parts.isascii() or not parts.isdigit() or len(parts) > 5):
            raise InvalidRequest(f"Value for {header.decode('ascii')} header is invalid.")
        return rules.expected_of_upload(algorithm, value, int(parts) if dash else 0, type_)
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
