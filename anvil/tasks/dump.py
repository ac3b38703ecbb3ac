"""Dumps of the region's metadata into its own drives, and reading them back without a database.

Owns: the objects a dump consists of, their order, and how many dumps are kept. Invariants: a dump has a manifest only when everything
that it names is stored, so whatever ends its writer leaves nothing that is taken for a dump; no object of a dump lies in a row of the
database it is to replace; reading needs drives and the key of the system bucket, and nothing else; what was read is what was written (MD5
of each piece, and its length), or Corrupt. Memory: two pieces. Not here: rows (`meta/dump.py`), when (`node/dumping.py`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec
from isal import igzip

from anvil.base.errors import Corrupt
from anvil.base.limits import DUMP_MANIFEST_BYTES_MAX, DUMP_PIECE_BYTES, DUMP_STORED_BYTES_MIN, LIST_KEYS_MAX, METADATA_DUMPS_KEPT
from anvil.engine.blobs_read import ObjectReader
from anvil.engine.context import Context, Placement
from anvil.engine.engine import Engine
from anvil.engine.types import Extent, PutSpec
from anvil.model.dump import FORMAT, MANIFEST_ID_ZEROS, MANIFESTS_PARTITION, SYSTEM_BUCKET, DumpName, Manifest, Piece, TableDump
from anvil.model.identity import Bucket
from anvil.model.records import (
    NO_CONDITION,
    Algorithm,
    Attributes,
    BlobId,
    BlobRef,
    Checksum,
    Content,
    ListQuery,
    Owner,
    SessionId,
)
from anvil.tasks.inventory import take

MAGIC: Final = b"AnvDump\n"
_LEVEL: Final = 1
_LENGTH_BYTES: Final = 8


class Rows(Protocol):
    """`meta.dump.Snapshot`."""

    tables: Sequence[str]
    taken_us: int
    region: str
    schema: int
    ended: tuple[SessionId, ...]

    async def copy(self, table: str, sink: Callable[[bytes], Coroutine[Any, Any, None]]) -> tuple[tuple[str, ...], int]: ...


class _Bytes:
    """A `Body` of bytes that are there."""

    def __init__(self, data: bytes) -> None:
        self.trailers: dict[str, str] = {}
        self.length = len(data)
        self._data, self._at = memoryview(data), 0

    async def readinto(self, view: memoryview) -> int:
        step = min(len(view), self.length - self._at)
        view[:step] = self._data[self._at : self._at + step]
        self._at += step
        return step


def _unchecked(digests: Mapping[Algorithm, bytes]) -> Checksum | None:
    return None


_SPEC: Final = PutSpec(Attributes(), _unchecked)


def padded(data: bytes) -> bytes:
    """Long enough not to be inline."""
    return data.ljust(DUMP_STORED_BYTES_MIN, b"\0")


def manifest_id() -> BlobId:
    return bytes(MANIFEST_ID_ZEROS) + os.urandom(16 - MANIFEST_ID_ZEROS)


def pack_manifest(manifest: Manifest) -> bytes:
    body = msgspec.msgpack.encode(manifest)
    return padded(MAGIC + len(body).to_bytes(_LENGTH_BYTES, "little") + body)


def unpack_manifest(data: bytes) -> Manifest:
    """Raises Corrupt."""
    start = len(MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(data[len(MAGIC) : start], "little")
    if not data.startswith(MAGIC) or length > len(data) - start:
        raise Corrupt("this is no manifest of a dump")
    try:
        manifest = msgspec.msgpack.decode(memoryview(data)[start : start + length], type=Manifest)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the manifest of a dump cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise Corrupt(f"the dump has format {manifest.format}, of which this release knows nothing")
    return manifest


class DumpWriter:
    """`bucket`: the system bucket with its key."""

    def __init__(self, context: Context, bucket: Bucket) -> None:
        self._metadata = context.metadata
        self._bucket = bucket
        self._engine = Engine(context)
        self._manifests = Engine(replace(context, new_id=manifest_id))

    async def write(self, rows: Rows) -> tuple[DumpName, Manifest]:
        """Store a snapshot. Raises what writing and the database raise; what was stored then is no dump, and goes with the next one."""
        name = DumpName(rows.taken_us, os.urandom(8).hex())
        numbers = iter(range(10**8))
        tables = []
        for table in rows.tables:
            pieces: list[Piece] = []
            waiting = bytearray()

            async def sink(data: bytes, pieces: list[Piece] = pieces, waiting: bytearray = waiting) -> None:
                waiting.extend(data)
                while len(waiting) >= DUMP_PIECE_BYTES:
                    piece = bytes(memoryview(waiting)[:DUMP_PIECE_BYTES])
                    del waiting[:DUMP_PIECE_BYTES]
                    pieces.append(await self._piece(name, next(numbers), piece))

            columns, count = await rows.copy(table, sink)
            if waiting:
                pieces.append(await self._piece(name, next(numbers), bytes(waiting)))
            tables.append(TableDump(table, columns, count, tuple(pieces)))
        manifest = Manifest(FORMAT, rows.region, rows.taken_us, rows.schema, tuple(tables), rows.ended)
        packed = pack_manifest(manifest)
        if len(packed) > DUMP_MANIFEST_BYTES_MAX:
            raise Corrupt(f"the dump has {sum(len(table.pieces) for table in tables)} pieces: its manifest would be too long")
        await self._manifests.put_object(self._bucket, name.manifest, _Bytes(packed), _SPEC)
        return name, manifest

    async def _piece(self, name: DumpName, number: int, raw: bytes) -> Piece:
        stored = await asyncio.to_thread(igzip.compress, raw, _LEVEL)
        data = padded(stored)
        put = await self._engine.put_object(self._bucket, name.piece(number), _Bytes(data), _SPEC)
        row = await self._metadata.get_object(SYSTEM_BUCKET, name.piece(number))
        if row is None or row.content is None or row.version_id != put.version_id:
            raise Corrupt("a piece of the dump is not what was just stored")
        blob = row.content.blob
        return Piece(
            *(
                number,
                blob.blob_id,
                put.version_id,
                len(data),
                blob.scheme.pack(),
                blob.stripe_bytes,
                len(stored),
                len(raw),
                put.etag,
            )
        )

    async def prune(self) -> int:
        """Delete, of the dumps before the newest whole one, all but the last METADATA_DUMPS_KEPT - 1 whole ones. Returns how many."""
        keys: dict[DumpName, list[str]] = {}
        whole: set[DumpName] = set()
        after: str | None = ""
        while after is not None:
            page = await self._engine.list_objects(ListQuery(SYSTEM_BUCKET, after=after, limit=LIST_KEYS_MAX))
            for entry in page.entries:
                if parsed := DumpName.parse(entry.key):
                    keys.setdefault(parsed[0], []).append(entry.key)
                    if parsed[1]:
                        whole.add(parsed[0])
            after = page.next_after
        kept = sorted(whole)[-METADATA_DUMPS_KEPT:]
        old = [name for name in keys if kept and name < kept[-1] and name not in kept]
        for name in old:
            # The manifest first: without it the rest is none.
            for key in sorted(keys[name], key=lambda key: key != name.manifest):
                await self._engine.delete_object(self._bucket, key, NO_CONDITION)
        return len(old)


class FoundDump(msgspec.Struct, frozen=True):
    """A manifest that drives hold."""

    name: DumpName
    owner: Owner
    blob: BlobRef


class DumpReader:
    def __init__(self, context: Context, bucket: Bucket) -> None:
        self._reader = ObjectReader(context)
        self._placement: Callable[[], Placement] = context.placement
        self._bucket = bucket

    async def find(self) -> list[FoundDump]:
        """The dumps whose manifest some drive has, the newest first; whether they can be read is another question."""
        found = await take(self._placement().drives.values(), (MANIFESTS_PARTITION,))
        dumps = []
        for met in found.named:
            header = met.header
            parsed = DumpName.parse(header.key) if header.bucket_id == SYSTEM_BUCKET else None
            if parsed is not None and parsed[1]:
                dumps.append(FoundDump(parsed[0], header.owner, header.blob))
        return sorted(dumps, key=lambda dump: dump.name, reverse=True)

    async def manifest(self, dump: FoundDump) -> Manifest:
        """Raises Corrupt (DataLost where it is not there any more), ReadQuorumLost and the like while drives are away."""
        if dump.blob.size > DUMP_MANIFEST_BYTES_MAX:
            raise Corrupt("the manifest of the dump is impossibly long")
        return unpack_manifest(await self._bytes(dump.owner, dump.blob))

    async def rows(self, name: DumpName, table: TableDump) -> AsyncIterator[bytes]:
        """What COPY gave for a table, piece by piece. Raises as `manifest`."""
        for piece in table.pieces:
            owner = Owner(SYSTEM_BUCKET, name.piece(piece.number), piece.version_id)
            data = await self._bytes(owner, piece.blob)
            yield await asyncio.to_thread(_unpacked, data, piece)

    async def _bytes(self, owner: Owner, blob: BlobRef) -> bytes:
        extent = Extent(0, blob.size, Content(blob), owner)
        return b"".join([bytes(view) async for view in self._reader.read(self._bucket, (extent,), 0, blob.size)])


def _unpacked(data: bytes, piece: Piece) -> bytes:
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != piece.etag:
        raise Corrupt(f"piece {piece.number} of the dump is not what was written")
    try:
        raw: bytes = gzip.decompress(data[: piece.stored_bytes])
    except (OSError, EOFError, zlib.error) as error:
        raise Corrupt(f"piece {piece.number} of the dump does not unpack: {error}") from None
    if len(raw) != piece.raw_bytes:
        raise Corrupt(f"piece {piece.number} of the dump unpacks to {len(raw)} bytes, not {piece.raw_bytes}")
    return raw
