"""The bytes of a shard record and of a segment's first block (docs/FORMATS.md, version 1).

Owns: encoding and decoding, nothing else. Invariant: what decodes without BadRecord is what was encoded, bit by bit: header and
footer each carry a checksum (BLAKE2b, 8 bytes; RFC 7693), the footer's bound to its blob and index. Little-endian throughout. Not
here: the payload, which carries a checksum per unit of its own and passes through untouched; files and places.

    record = header | payload | footer | zeros up to RECORD_ALIGN
"""

from __future__ import annotations

import hashlib
import struct

import msgspec

from anvil.base.errors import BadRecord
from anvil.base.limits import CODE_K_MAX, CODE_M_MAX, FOOTER_BYTES_MAX, KEY_BYTES_MAX, RECORD_HEADER_BYTES_MAX
from anvil.base.types import Buffer
from anvil.model.records import BlobId, BlobRef, DriveId, KeyMode, SessionId
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader

FORMAT_VERSION = 1
RECORD_MAGIC = b"\x93AnvRec\n"
SEGMENT_MAGIC = b"\x93AnvSeg\n"
FOOTER_MAGIC = b"AnvF"
RECORD_ALIGN = 64
BLOCK_BYTES = 4096
"""Segments grow in blocks: a batch starts at a block, so that no write touches a disk sector that holds acknowledged bytes."""

CHECK_BYTES = 8
_HEAD = struct.Struct("<8sHHI16sHHiIIQQQ16s16sQQQBBH4x")
_NAMED = struct.Struct("<8sHHI16sH70xQQ")  # of those: which shard it is, and where
_FOOT = struct.Struct("<4sI")
_SEGMENT = struct.Struct("<8sHH4x16s16sQQQ")
FOOTER_FRAME_BYTES = _FOOT.size + CHECK_BYTES


class Record(msgspec.Struct, frozen=True):
    """A decoded record header: what the shard says of itself, and how the record is laid out. Lengths in bytes."""

    header: ShardHeader
    header_bytes: int
    payload_bytes: int
    footer_bytes: int  # 0 in a file of its own: up to its end
    segment: int  # 0: a file of its own
    offset: int
    written_us: int

    @property
    def length(self) -> int:
        """Header, payload and footer, without padding."""
        return self.header_bytes + self.payload_bytes + self.footer_bytes

    @property
    def footer_offset(self) -> int:
        """From the record's start."""
        return self.header_bytes + self.payload_bytes


class SegmentHeader(msgspec.Struct, frozen=True):
    """The first block of a segment."""

    segment: int
    size: int
    drive_id: DriveId
    session: SessionId
    created_us: int


def align(length: int, to: int = RECORD_ALIGN) -> int:
    return -(-length // to) * to


def checksum(*pieces: Buffer) -> bytes:
    digest = hashlib.blake2b(digest_size=CHECK_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def header_length(key: str) -> int:
    """Bytes of the header of a record of `key`."""
    return align(_HEAD.size + len(key.encode()) + CHECK_BYTES)


def encode_header(header: ShardHeader, *, footer_bytes: int, segment: int, offset: int, written_us: int) -> bytes:
    """`segment` and `offset` are where the record will be; they and `footer_bytes` are 0 in a file of its own, where the footer
    is all that follows the payload. Raises ValueError for what does not fit."""
    key = header.key.encode()
    if len(key) > KEY_BYTES_MAX:
        raise ValueError("key longer than a record can hold")
    length = align(_HEAD.size + len(key) + CHECK_BYTES)
    try:
        fixed = _pack(header, length, len(key), footer_bytes, segment, offset, written_us)
    except struct.error as error:
        raise ValueError(f"record header: {error}") from error
    body = (fixed + key).ljust(length - CHECK_BYTES, b"\0")
    return body + checksum(body)


def _pack(
    header: ShardHeader, length: int, key_bytes: int, footer_bytes: int, segment: int, offset: int, written_us: int
) -> bytes:
    blob = header.blob
    return _HEAD.pack(
        RECORD_MAGIC,
        FORMAT_VERSION,
        0,  # flags
        length,
        blob.blob_id,
        header.index,
        header.part_number,
        blob.scheme.pack(),
        blob.stripe_bytes,
        footer_bytes,
        blob.size,
        blob.geometry.shard_bytes,
        header.bucket_id,
        header.version_id,
        header.session,
        segment,
        offset,
        written_us,
        blob.key_mode,
        0,  # reserved
        key_bytes,
    )


def decode_header(data: Buffer) -> Record:
    """The header at the start of `data` (RECORD_HEADER_BYTES_MAX bytes are always enough). Raises BadRecord."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise BadRecord("record header is cut short")
    (
        magic,
        version,
        _flags,
        length,
        blob_id,
        index,
        part_number,
        packed,
        stripe_bytes,
        footer_bytes,
        size,
        payload_bytes,
        bucket_id,
        version_id,
        session,
        segment,
        offset,
        written_us,
        key_mode,
        _reserved,
        key_bytes,
    ) = _HEAD.unpack_from(view)
    if magic != RECORD_MAGIC:
        raise BadRecord("no record here")
    if version != FORMAT_VERSION:
        raise BadRecord("record of an unknown format version", version=version)
    if not _HEAD.size + key_bytes + CHECK_BYTES <= length <= min(len(view), RECORD_HEADER_BYTES_MAX):
        raise BadRecord("record header has an impossible length")
    if view[length - CHECK_BYTES : length] != checksum(view[: length - CHECK_BYTES]):
        raise BadRecord("record header fails its checksum")
    try:
        key = str(view[_HEAD.size : _HEAD.size + key_bytes], "utf-8")
        blob = BlobRef(blob_id, size, Scheme.unpack(packed), stripe_bytes, KeyMode(key_mode))
    except ValueError as error:
        raise BadRecord("record header holds an unknown value") from error
    header = ShardHeader(blob, index, bucket_id, key, version_id, session, part_number)
    record = Record(header, length, payload_bytes, footer_bytes, segment, offset, written_us)
    if not _sane(record):
        raise BadRecord("record header contradicts itself")
    return record


def names_shard(view: memoryview, header_bytes: int, blob_id: BlobId, index: int, segment: int, offset: int) -> bool:
    """Whether `view` begins with a sound header of that length, which says that it is this shard at this place. What `decode_header`
    and `check_identity` (files.py) look at as well, without making anything of the rest: for the reader of a small object."""
    if not _NAMED.size + CHECK_BYTES <= header_bytes <= len(view):
        return False
    named = _NAMED.unpack_from(view)
    body = header_bytes - CHECK_BYTES
    return named == (RECORD_MAGIC, FORMAT_VERSION, named[2], header_bytes, blob_id, index, segment, offset) and (
        view[body:header_bytes] == checksum(view[:body])
    )


def _sane(record: Record) -> bool:
    blob = record.header.blob
    return (
        1 <= blob.scheme.k <= CODE_K_MAX
        and blob.scheme.m <= CODE_M_MAX
        and record.header.index < blob.scheme.width
        and blob.stripe_bytes > 0
        and record.payload_bytes == blob.geometry.shard_bytes
        and (FOOTER_FRAME_BYTES < record.footer_bytes <= FOOTER_BYTES_MAX if record.segment else record.footer_bytes == 0)
    )


_footer_encoder = msgspec.msgpack.Encoder()
_footer_decoder = msgspec.msgpack.Decoder(ShardFooter)


def encode_footer(blob_id: BlobId, index: int, footer: ShardFooter) -> bytes:
    body = _footer_encoder.encode(footer)
    head = _FOOT.pack(FOOTER_MAGIC, len(body))
    data = head + body
    if len(data) + CHECK_BYTES > FOOTER_BYTES_MAX:
        raise ValueError("footer longer than a record can hold")
    return data + checksum(blob_id, index.to_bytes(2, "little"), data)


def decode_footer(blob_id: BlobId, index: int, data: Buffer) -> ShardFooter:
    """`data` is exactly the footer. Raises BadRecord."""
    view = memoryview(data)
    if len(view) < FOOTER_FRAME_BYTES:
        raise BadRecord("record footer is missing")
    magic, length = _FOOT.unpack_from(view)
    if magic != FOOTER_MAGIC or length + FOOTER_FRAME_BYTES != len(view):
        raise BadRecord("record footer is missing")
    if view[-CHECK_BYTES:] != checksum(blob_id, index.to_bytes(2, "little"), view[:-CHECK_BYTES]):
        raise BadRecord("record footer fails its checksum")
    try:
        return _footer_decoder.decode(view[_FOOT.size : -CHECK_BYTES])
    except msgspec.MsgspecError as error:
        raise BadRecord("record footer holds an unknown value") from error


def encode_segment(header: SegmentHeader) -> bytes:
    """The first block of a segment, BLOCK_BYTES long."""
    fixed = _SEGMENT.pack(
        SEGMENT_MAGIC, FORMAT_VERSION, 0, header.drive_id, header.session, header.segment, header.size, header.created_us
    )
    return (fixed + checksum(fixed)).ljust(BLOCK_BYTES, b"\0")


def decode_segment(data: Buffer) -> SegmentHeader:
    """Raises BadRecord."""
    view = memoryview(data)
    if len(view) < _SEGMENT.size + CHECK_BYTES:
        raise BadRecord("segment header is cut short")
    magic, version, _flags, drive_id, session, segment, size, created_us = _SEGMENT.unpack_from(view)
    if magic != SEGMENT_MAGIC:
        raise BadRecord("no segment here")
    if version != FORMAT_VERSION:
        raise BadRecord("segment of an unknown format version", version=version)
    if view[_SEGMENT.size : _SEGMENT.size + CHECK_BYTES] != checksum(view[: _SEGMENT.size]):
        raise BadRecord("segment header fails its checksum")
    return SegmentHeader(segment, size, drive_id, session, created_us)
