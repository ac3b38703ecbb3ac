"""Packs: append-only files of a repository that hold blobs, each with an index at its end.

Owns: writing one so that it is whole or not there, reading it, and the walk through many side by side in the order of blob ids. Invariants:
a pack has its name only once everything in it is flushed; what is not named so was never finished and is nobody's; a walk has one file open
at a time, however many packs there are, and keeps no more of all indexes in memory than INDEX_READ_BYTES_MAX, nor of one than
INDEX_READ_ENTRIES. Everything here blocks: it runs on a thread. Not here: the bytes (`format.py`), which blobs belong in
(`tasks/copying.py`).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from anvil.backup import format as fmt
from anvil.backup.format import PackedBlob
from anvil.base.errors import BadRecord
from anvil.base.limits import INDEX_READ_BYTES_MAX, INDEX_READ_ENTRIES, INDEX_READ_ENTRIES_MIN, PACK_BYTES, PACK_WRITE_BYTES
from anvil.base.types import Buffer
from anvil.model.records import BlobId
from anvil.model.scheme import CHECKSUM_BYTES

SUFFIX = ".pack"
UNFINISHED = ".part"


def sync_folder(folder: Path) -> None:
    """Make names that came or went durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class PackWriter:
    """Writes packs, one after the other, of about `pack_bytes` each. Use: `begin`, `stripe` as often as the blob has any, `end` (or
    `abandon`); at last `close`, without which the last pack is lost."""

    def __init__(self, folder: Path, repository: bytes, pack_bytes: int = PACK_BYTES) -> None:
        self._folder = folder
        self._repository = repository
        self._pack_bytes = pack_bytes
        self._file: BinaryIO | None = None
        self._pack = b""
        self._index: list[tuple[BlobId, int, int]] = []
        self._at = 0
        self._start = 0
        self._blob: PackedBlob | None = None
        self._stripe = 0
        self.packs: list[str] = []  # finished ones

    def begin(self, packed: PackedBlob) -> None:
        """Raises OSError."""
        if self._blob is not None:
            raise RuntimeError("the blob before was not ended")
        if self._file is None:
            self._create()
        self._blob, self._stripe, self._start = packed, 0, self._at
        self._write(fmt.entry_head(packed))

    def stripe(self, sealed: Buffer) -> None:
        """The next sealed stripe of the blob."""
        blob = self._begun()
        _, length = blob.stripe_span(self._stripe)
        if len(sealed) != length - CHECKSUM_BYTES:
            raise ValueError(f"stripe {self._stripe} has {len(sealed)} bytes, not {length - CHECKSUM_BYTES}")
        self._write(fmt.stripe_checksum(blob.blob_id, self._stripe, sealed))
        self._write(sealed)
        self._stripe += 1

    def end(self) -> None:
        """The blob is whole."""
        blob = self._begun()
        if self._stripe != blob.stripes:
            raise RuntimeError(f"{self._stripe} of {blob.stripes} stripes were written")
        self._index.append((blob.blob_id, self._start, self._at - self._start))
        self._blob = None
        if self._at >= self._pack_bytes:
            self.close()

    def abandon(self) -> None:
        """Take back what was written of the blob."""
        if self._blob is not None and self._file is not None:
            self._file.seek(self._start)
            self._file.truncate()
            self._at, self._blob = self._start, None

    def close(self) -> None:
        """Finish the pack that is being written: on return everything that was ended is durable. Raises OSError; then nothing of that pack
        counts."""
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            if not self._index:
                (self._folder / f"{self._pack.hex()}{UNFINISHED}").unlink()
                return
            index = b"".join(fmt.index_entry(*entry) for entry in sorted(self._index))
            file.write(index)
            file.write(fmt.pack_end(self._pack, index, self._at, len(self._index)))
            file.flush()
            os.fsync(file.fileno())
        name = f"{self._pack.hex()}{SUFFIX}"
        (self._folder / f"{self._pack.hex()}{UNFINISHED}").rename(self._folder / name)
        sync_folder(self._folder)
        self.packs.append(name)

    def discard(self) -> None:
        """Give up what was not closed."""
        file, self._file, self._blob = self._file, None, None
        if file is not None:
            with suppress(OSError):
                file.close()
                (self._folder / f"{self._pack.hex()}{UNFINISHED}").unlink()

    def _create(self) -> None:
        self._pack, self._index, self._at = os.urandom(16), [], 0
        path = self._folder / f"{self._pack.hex()}{UNFINISHED}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "wb", PACK_WRITE_BYTES)
        self._write(fmt.pack_head(self._repository, self._pack))

    def _begun(self) -> PackedBlob:
        if self._blob is None:
            raise RuntimeError("no blob was begun")
        return self._blob

    def _write(self, data: Buffer) -> None:
        assert self._file is not None
        self._file.write(data)
        self._at += len(data)


class Pack:
    """A finished pack. Opening it checks its ends and its whole index. Raises BadRecord, OSError."""

    def __init__(self, path: Path, repository: bytes) -> None:
        self.path = path
        self.name = path.name
        pack = bytes.fromhex(path.name.removesuffix(SUFFIX))
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            fmt.assert_pack_head(file.read(fmt.PACK_HEAD_BYTES), repository, pack)
            file.seek(max(0, self.size - fmt.END_BYTES))
            end = file.read()
            self.index_offset, self.entries = fmt.unpack_end(end, self.size)
            digest = fmt.index_digest(pack)
            file.seek(self.index_offset)
            left = self.entries * fmt.INDEX_ENTRY_BYTES
            while left and (piece := file.read(min(left, PACK_WRITE_BYTES))):
                digest.update(piece)
                left -= len(piece)
            digest.update(fmt.end_body(end))
            fmt.assert_index(pack, digest.digest(), end)

    def index(self, read_entries: int = INDEX_READ_ENTRIES) -> Iterator[tuple[BlobId, int, int]]:
        """Blob id, offset and length of every entry, in the order of blob ids. `read_entries`: so many are in memory, packed. Between two
        entries the file is closed."""
        size = read_entries * fmt.INDEX_ENTRY_BYTES
        end = self.index_offset + self.entries * fmt.INDEX_ENTRY_BYTES
        for at in range(self.index_offset, end, size):
            with self.path.open("rb", 0) as file:
                data = os.pread(file.fileno(), min(size, end - at), at)
            if len(data) != min(size, end - at):
                raise BadRecord(f"pack {self.name} became shorter while it was being read")
            yield from fmt.index_entries(data)


class Entry:
    """One blob of a pack, open for reading. Use as a context manager. Raises BadRecord, OSError."""

    def __init__(self, path: Path, offset: int, blob_id: BlobId) -> None:
        self._file = path.open("rb", 0)
        try:
            front = self._read(offset, fmt.ENTRY_FRONT_BYTES)
            rest = self._read(offset + len(front), fmt.entry_body_bytes(front))
            self.packed = fmt.unpack_entry(front, rest)
            if self.packed.blob_id != blob_id:
                raise BadRecord(f"the index of {path.name} names another blob than its entry")
        except BaseException:
            self._file.close()
            raise
        self._payload = offset + len(front) + len(rest)
        self.length = len(front) + len(rest) + self.packed.payload_bytes

    def stripe(self, number: int) -> memoryview:
        """One sealed stripe. Raises BadRecord where it is not what was written."""
        at, length = self.packed.stripe_span(number)
        data = memoryview(self._read(self._payload + at, length))
        sealed = data[CHECKSUM_BYTES:]
        if data[:CHECKSUM_BYTES] != fmt.stripe_checksum(self.packed.blob_id, number, sealed):
            raise BadRecord(f"stripe {number} of blob {self.packed.blob_id.hex()} is damaged")
        return sealed

    def _read(self, at: int, length: int) -> bytes:
        pieces = []
        while length:
            piece = os.pread(self._file.fileno(), length, at)
            if not piece:
                raise BadRecord("the pack ends in the middle of a blob")
            pieces.append(piece)
            at, length = at + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


Where = tuple[Pack, int]
"""A pack and the offset of an entry in it."""


def walk(packs: Iterable[Pack]) -> Iterator[tuple[BlobId, list[Where]]]:
    """Every blob of all packs once, in the order of blob ids, with the places where it is."""
    packs = list(packs)
    fair = INDEX_READ_BYTES_MAX // fmt.INDEX_ENTRY_BYTES // max(1, len(packs))
    read_entries = max(INDEX_READ_ENTRIES_MIN, min(INDEX_READ_ENTRIES, fair))
    entries = heapq.merge(*(_placed(pack, read_entries) for pack in packs), key=itemgetter(0))
    for blob_id, found in groupby(entries, key=itemgetter(0)):
        yield blob_id, [where for _, where in found]


def _placed(pack: Pack, read_entries: int) -> Iterator[tuple[BlobId, Where]]:
    for blob_id, offset, _ in pack.index(read_entries):
        yield blob_id, (pack, offset)
