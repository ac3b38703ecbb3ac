"""How model values look as columns, and back.

Owns: the packed form of a checksum, attributes as JSON, the content columns that objects, versions and parts share.
Invariant: a value written by one release is read by every later one. Not here: statements.

A packed checksum: algorithm (1 byte), type (1 byte), number of parts (2 bytes, big-endian), value.
"""

from __future__ import annotations

from typing import Final

import asyncpg
import msgspec

from anvil.model.records import (
    Algorithm,
    Attributes,
    BlobRef,
    Checksum,
    ChecksumType,
    Condition,
    Content,
    KeyMode,
    ObjectRecord,
    PartRecord,
    UploadRecord,
)
from anvil.model.scheme import Scheme

_ALGORITHM_CODES: Final = {
    Algorithm.MD5: 1,
    Algorithm.SHA256: 2,
    Algorithm.SHA1: 3,
    Algorithm.CRC32: 4,
    Algorithm.CRC32C: 5,
    Algorithm.CRC64NVME: 6,
}
_ALGORITHMS: Final = {code: algorithm for algorithm, code in _ALGORITHM_CODES.items()}
_TYPE_CODES: Final = {ChecksumType.FULL_OBJECT: 1, ChecksumType.COMPOSITE: 2}
_TYPES: Final = {code: kind for kind, code in _TYPE_CODES.items()}
_NO_ATTRIBUTES: Final = Attributes()
_encode_json: Final = msgspec.json.Encoder().encode
_decode_attributes: Final = msgspec.json.Decoder(Attributes).decode
_KEY_MODES: Final = {mode.value: mode for mode in KeyMode}
_schemes: dict[int, Scheme] = {}  # at most CODE_K_MAX * CODE_M_MAX per matrix

CONTENT_COLUMNS: Final = "size, etag, modified_us, checksum, blob_id, scheme, stripe_bytes, key_mode, inline"
OBJECT_COLUMNS: Final = f"version_id, is_null, seq, {CONTENT_COLUMNS}, attributes, upload_id, part_count"


def pack_checksum(checksum: Checksum | None) -> bytes | None:
    if checksum is None:
        return None
    head = bytes((_ALGORITHM_CODES[checksum.algorithm], _TYPE_CODES[checksum.type]))
    return head + checksum.parts.to_bytes(2, "big") + checksum.value


def unpack_checksum(packed: bytes | None) -> Checksum | None:
    if packed is None:
        return None
    return Checksum(_ALGORITHMS[packed[0]], packed[4:], _TYPES[packed[1]], int.from_bytes(packed[2:4], "big"))


def pack_attributes(attributes: Attributes) -> str:
    return "{}" if attributes == _NO_ATTRIBUTES else _encode_json(attributes).decode()


def unpack_attributes(text: str) -> Attributes:
    return _NO_ATTRIBUTES if text == "{}" else _decode_attributes(text)


def pack_etags(etags: tuple[str, ...] | None) -> str | None:
    """A side of a Condition, as the jsonb array that `condition_holds` takes."""
    return None if etags is None else _encode_json(etags).decode()


def pack_condition(condition: Condition) -> tuple[str | None, str | None]:
    return pack_etags(condition.if_match), pack_etags(condition.if_none_match)


def unpack_scheme(packed: int) -> Scheme:
    scheme = _schemes.get(packed)
    if scheme is None:
        scheme = _schemes[packed] = Scheme.unpack(packed)
    return scheme


ContentColumns = tuple[bytes | None, int | None, int | None, int | None, bytes | None]
_NO_CONTENT: Final[ContentColumns] = (None, None, None, None, None)


def pack_content(content: Content | None) -> ContentColumns:
    """(blob_id, scheme, stripe_bytes, key_mode, inline)"""
    if content is None:
        return _NO_CONTENT
    blob = content.blob
    return blob.blob_id, blob.scheme.pack(), blob.stripe_bytes, blob.key_mode.value, content.inline


def unpack_content(row: asyncpg.Record, size: int) -> Content | None:
    blob_id = row["blob_id"]
    if blob_id is None:
        return None
    blob = BlobRef(blob_id, size, unpack_scheme(row["scheme"]), row["stripe_bytes"], _KEY_MODES[row["key_mode"]])
    return Content(blob, row["inline"])


def object_from(row: asyncpg.Record, bucket_id: int, key: str) -> ObjectRecord:
    size = row["size"]
    return ObjectRecord(
        bucket_id=bucket_id,
        key=key,
        version_id=row["version_id"],
        is_null=row["is_null"],
        seq=row["seq"],
        size=size,
        etag=row["etag"],
        modified_us=row["modified_us"],
        attributes=unpack_attributes(row["attributes"]),
        checksum=unpack_checksum(row["checksum"]),
        content=unpack_content(row, size),
        upload_id=row["upload_id"],
        part_count=row["part_count"],
    )


def part_from(row: asyncpg.Record) -> PartRecord:
    size = row["size"]
    return PartRecord(
        row["number"], size, row["etag"], row["modified_us"], unpack_checksum(row["checksum"]), unpack_content(row, size)
    )


def upload_from(row: asyncpg.Record) -> UploadRecord:
    algorithm, kind = row["checksum_algorithm"], row["checksum_type"]
    return UploadRecord(
        upload_id=row["upload_id"],
        bucket_id=row["bucket_id"],
        key=row["key"],
        initiated_us=row["initiated_us"],
        attributes=unpack_attributes(row["attributes"]),
        owner=row["owner"],
        checksum_algorithm=None if algorithm is None else Algorithm(algorithm),
        checksum_type=None if kind is None else ChecksumType(kind),
        completed=row["version_id"] is not None,
    )
