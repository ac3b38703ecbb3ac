"""The bytes of a backup repository: packs, their entries and indexes, the list of a snapshot's blobs. See docs/FORMATS.md.

Owns: packing and unpacking, and what is believed. Invariants: a blob lies in a pack as its sealed stripes, without parity and never in
plaintext; each stripe, each entry's head and each index has a checksum, bound to the blob or pack that it is of. Not here: files
(`packs.py`, `repository.py`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from anvil._ec.stripe import frame_checksum
from anvil.base.errors import BadRecord
from anvil.base.limits import PACK_HEAD_BYTES_MAX
from anvil.base.types import Buffer
from anvil.model.records import BlobId, BlobRef, KeyMode
from anvil.model.scheme import CHECKSUM_BYTES, TAG_BYTES, Scheme
from anvil.model.shard import ShardFooter, ShardHeader

FORMAT: Final = 1
PACK_MAGIC: Final = b"\x93AnvPak\n"
ENTRY_MAGIC: Final = b"\x93AnvBlb\n"
END_MAGIC: Final = b"\x93AnvEnd\n"
CHECK_BYTES: Final = 8
STRIPE_INDEX: Final = 0xFFFF  # in the place of a shard's index: a whole sealed stripe is no unit of any shard

_PACK: Final = struct.Struct("<8sHHI16s16s")
_ENTRY: Final = struct.Struct("<8sIIQ")  # magic, length of the map, reserved, length of the payload
_END: Final = struct.Struct("<8sQQ")  # magic, offset of the index, entries
_INDEX: Final = struct.Struct("<16sQQ")  # blob id, offset of the entry, its length
_LISTED: Final = struct.Struct("<16sQiIB")

PACK_HEAD_BYTES: Final = _PACK.size + CHECK_BYTES
ENTRY_FRONT_BYTES: Final = _ENTRY.size
END_BYTES: Final = _END.size + CHECK_BYTES
INDEX_ENTRY_BYTES: Final = _INDEX.size
LISTED_BYTES: Final = _LISTED.size


class PackedBlob(msgspec.Struct, frozen=True):
    """What a shard's header and footer say, but for the shard's index."""

    blob_id: BlobId
    size: int
    scheme: int  # packed
    stripe_bytes: int
    key_mode: int
    bucket_id: int
    key: str
    version_id: bytes
    part_number: int
    session: bytes
    footer: ShardFooter

    @staticmethod
    def of(header: ShardHeader, footer: ShardFooter) -> PackedBlob:
        """By any of its shards."""
        blob = header.blob
        return PackedBlob(
            blob.blob_id,
            blob.size,
            blob.scheme.pack(),
            blob.stripe_bytes,
            int(blob.key_mode),
            header.bucket_id,
            header.key,
            header.version_id,
            header.part_number,
            header.session,
            footer,
        )

    @property
    def blob(self) -> BlobRef:
        return BlobRef(self.blob_id, self.size, Scheme.unpack(self.scheme), self.stripe_bytes, KeyMode(self.key_mode))

    def header(self, index: int) -> ShardHeader:
        """Of one of its shards."""
        return ShardHeader(self.blob, index, self.bucket_id, self.key, self.version_id, self.session, self.part_number)

    @property
    def stripes(self) -> int:
        return -(-self.size // self.stripe_bytes)

    @property
    def payload_bytes(self) -> int:
        """All stripes with their checksums."""
        return self.size + self.stripes * (TAG_BYTES + CHECKSUM_BYTES)

    def stripe_span(self, stripe: int) -> tuple[int, int]:
        """Offset from the start of the payload and length of one stripe with its checksum."""
        plain = min(self.stripe_bytes, self.size - stripe * self.stripe_bytes)
        return stripe * (self.stripe_bytes + TAG_BYTES + CHECKSUM_BYTES), plain + TAG_BYTES + CHECKSUM_BYTES


def check(*pieces: Buffer) -> bytes:
    """BLAKE2b of 8 bytes, as in records of drives."""
    digest = hashlib.blake2b(digest_size=CHECK_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


# -- a pack's ends -------------------------------------------------------------------------------------------------------------


def pack_head(repository: bytes, pack: bytes) -> bytes:
    """The first bytes of a pack. Both ids have 16 bytes."""
    head = _PACK.pack(PACK_MAGIC, FORMAT, 0, 0, repository, pack)
    return head + check(head)


def assert_pack_head(data: bytes, repository: bytes, pack: bytes) -> None:
    """Raises BadRecord: damaged, or another pack's or repository's."""
    if data[:8] == PACK_MAGIC and check(data[: _PACK.size]) == data[_PACK.size :] and _PACK.unpack_from(data)[1] > FORMAT:
        raise BadRecord("its format is newer than this release knows")
    if data != pack_head(repository, pack):
        raise BadRecord("its head is damaged, or that of another pack")


def index_entry(blob_id: BlobId, offset: int, length: int) -> bytes:
    return _INDEX.pack(blob_id, offset, length)


def index_entries(data: bytes) -> Iterator[tuple[BlobId, int, int]]:
    """Blob id, offset and length of whole index entries, unpacked one by one: packed, they take a sixth."""
    return _INDEX.iter_unpack(data)


def pack_end(pack: bytes, index: Buffer, offset: int, entries: int) -> bytes:
    """The last bytes of a pack, behind its index."""
    end = _END.pack(END_MAGIC, offset, entries)
    return end + check(pack, index, end)


def unpack_end(data: bytes, size: int) -> tuple[int, int]:
    """Offset of the index and entries of a pack of `size` bytes, by its last ones. Raises BadRecord; `assert_index` is to follow."""
    if len(data) != END_BYTES or data[:8] != END_MAGIC:
        raise BadRecord("it has no end: it is cut off, or was never finished")
    _, offset, entries = _END.unpack_from(data)
    if offset + entries * INDEX_ENTRY_BYTES + END_BYTES != size:
        raise BadRecord("its index is not where its end says")
    return offset, entries


def assert_index(pack: bytes, digest: bytes, end: bytes) -> None:
    """`digest`: of the pack's id, the whole index and the end without its check. Raises BadRecord."""
    if digest != end[_END.size :]:
        raise BadRecord("its index is damaged")


def index_digest(pack: bytes) -> hashlib.blake2b:
    """To be fed with the index, then with the end without its check (`end_body`)."""
    return hashlib.blake2b(pack, digest_size=CHECK_BYTES)


def end_body(end: bytes) -> bytes:
    return end[: _END.size]


# -- entries --------------------------------------------------------------------------------------------------------------------


def entry_head(packed: PackedBlob) -> bytes:
    """All of an entry before its first stripe."""
    body = msgspec.msgpack.encode(packed)
    front = _ENTRY.pack(ENTRY_MAGIC, len(body), 0, packed.payload_bytes)
    return front + body + check(front, body)


def entry_body_bytes(front: bytes) -> int:
    """How much follows the front of an entry before its payload. Raises BadRecord."""
    if len(front) != ENTRY_FRONT_BYTES or front[:8] != ENTRY_MAGIC:
        raise BadRecord("there is no entry where the index says")
    length = int(_ENTRY.unpack(front)[1])
    if length > PACK_HEAD_BYTES_MAX:
        raise BadRecord("the head of an entry is damaged")
    return length + CHECK_BYTES


def unpack_entry(front: bytes, rest: bytes) -> PackedBlob:
    """Raises BadRecord."""
    body = rest[:-CHECK_BYTES]
    if check(front, body) != rest[-CHECK_BYTES:]:
        raise BadRecord("the head of an entry is damaged")
    try:
        packed = msgspec.msgpack.decode(body, type=PackedBlob)
    except msgspec.DecodeError as error:
        raise BadRecord("the head of an entry cannot be read") from error
    if packed.size <= 0 or packed.stripe_bytes <= 0 or _ENTRY.unpack(front)[3] != packed.payload_bytes:
        raise BadRecord("the head of an entry contradicts itself")
    return packed


def stripe_checksum(blob_id: BlobId, stripe: int, sealed: Buffer) -> bytes:
    """Little-endian XXH3-64, seeded with blob, STRIPE_INDEX and stripe."""
    return frame_checksum(blob_id, STRIPE_INDEX, stripe, sealed).to_bytes(CHECKSUM_BYTES, "little")


# -- the list of a snapshot's blobs ----------------------------------------------------------------------------------------------


def listed(blob: BlobRef) -> bytes:
    """One blob of a snapshot's list."""
    return _LISTED.pack(blob.blob_id, blob.size, blob.scheme.pack(), blob.stripe_bytes, int(blob.key_mode))


def unlisted(data: bytes) -> list[BlobRef]:
    """Whole entries of a list."""
    return [
        BlobRef(blob_id, size, Scheme.unpack(scheme), stripe_bytes, KeyMode(key_mode))
        for blob_id, size, scheme, stripe_bytes, key_mode in _LISTED.iter_unpack(data)
    ]
