"""Dumps of a region's metadata, as values: where they are kept, what one consists of, what of a region they give back.

A dump is a set of objects in the *system bucket*: pieces of the tables' rows, and last a manifest that names them. The bucket is in no
database but for its fence, so no request can name it; its key follows from the master key, so drives and master key are enough to read it.
Blob ids of manifests begin with zeros: they are all in one partition, where they are found without a look at everything else. The bytes are
in docs/FORMATS.md.

Not here: writing and reading (`tasks/dump.py`), the tables (`meta/dump.py`).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from anvil.model.identity import Bucket, BucketState, Tenant
from anvil.model.records import Attributes, BlobId, BlobRef, BucketId, Checksum, Owner, SessionId
from anvil.model.scheme import Scheme

SYSTEM_BUCKET: Final[BucketId] = 1
MANIFESTS_PARTITION: Final = 0
MANIFEST_ID_ZEROS: Final = 2  # leading bytes of the blob ids of manifests: 16 bits, more than any layout has for partitions
FORMAT: Final = 1

_NAME: Final = re.compile(r"dumps/(\d{16})-([0-9a-f]{16})/(manifest|\d{8})")


def system_bucket(key: bytes, region: str) -> Bucket:
    """As the engine takes it. `key`: derived from the master key."""
    return Bucket(SYSTEM_BUCKET, Tenant(0, "anvil"), "", region, 0, BucketState.ACTIVE, False, key)


class DumpName(msgspec.Struct, frozen=True, order=True):
    """When the dump was begun, and what tells it from others. Later ones are greater."""

    begun_us: int
    nonce: str

    @property
    def prefix(self) -> str:
        return f"dumps/{self.begun_us:016d}-{self.nonce}/"

    @property
    def manifest(self) -> str:
        return f"{self.prefix}manifest"

    def piece(self, number: int) -> str:
        return f"{self.prefix}{number:08d}"

    @classmethod
    def parse(cls, key: str) -> tuple[DumpName, bool] | None:
        """The dump of an object's key, and whether it is its manifest. None: no part of a dump."""
        found = _NAME.fullmatch(key)
        return (cls(int(found[1]), found[2]), found[3] == "manifest") if found else None


class Piece(msgspec.Struct, frozen=True):
    """An object with rows: `stored_bytes` of gzip, which unpack to `raw_bytes`, then zeros up to `size`. `etag`: MD5 of the object."""

    number: int
    blob_id: BlobId
    version_id: bytes
    size: int
    scheme: int
    stripe_bytes: int
    stored_bytes: int
    raw_bytes: int
    etag: str

    @property
    def blob(self) -> BlobRef:
        return BlobRef(self.blob_id, self.size, Scheme.unpack(self.scheme), self.stripe_bytes)


class TableDump(msgspec.Struct, frozen=True):
    """One table (of the global database: `global.` and its name): its rows as binary COPY of PostgreSQL, of these columns, in the pieces
    joined."""

    name: str
    columns: tuple[str, ...]
    rows: int
    pieces: tuple[Piece, ...]


class Manifest(msgspec.Struct, frozen=True):
    """All of a dump. `taken_us`: time of its snapshot by the database's clock. `schema`: the database's last migration. `ended`: writer
    sessions that were over by then."""

    format: int
    region: str
    taken_us: int
    schema: int
    tables: tuple[TableDump, ...]
    ended: tuple[SessionId, ...]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def stored_bytes(self) -> int:
        return sum(piece.size for table in self.tables for piece in table.pieces)


class Dumped(msgspec.Struct):
    """What a dump has. `bytes`: stored, without parity; `pruned`: older dumps that went."""

    dump: str = ""
    taken_us: int = 0
    rows: int = 0
    bytes: int = 0
    pruned: int = 0


class Candidate(msgspec.Struct, frozen=True):
    """A blob that no row names, though it may have been committed after the dump. `missing`: mask of the shards that no drive has;
    `readable`: the others suffice."""

    owner: Owner
    blob: BlobRef
    etag: str
    modified_us: int
    attributes: Attributes
    checksum: Checksum | None
    missing: int
    readable: bool


class Rebuilt(msgspec.Struct):
    """How far a rebuild is, and what it found; blobs, unless it says otherwise. `stage`: "dump", "load", "compare", "" once it is over.
    `passed_over`: newer dumps that could not be used, each with the reason."""

    stage: str = ""
    dump: str = ""
    taken_us: int = 0
    rows: int = 0  # loaded
    with_global: bool = False  # tenants, apps, rights and buckets, too
    passed_over: list[str] = msgspec.field(default_factory=list)
    partitions: int = 0
    shards: int = 0
    owned: int = 0
    uncertain: int = 0  # those that may have been committed later; hidden
    unreadable: int = 0  # of these, those with too few shards
    older: int = 0  # deleted before the dump, or never committed: left out
    garbage: int = 0
    bucketless: int = 0  # of buckets that are gone
    nameless: int = 0  # no header or footer can be read
    buckets_added: int = 0  # known to the global database and not to the dump
    buckets_unknown: int = 0  # the reverse
    away: list[str] = msgspec.field(default_factory=list)  # drives that could not be looked at, or not wholly
