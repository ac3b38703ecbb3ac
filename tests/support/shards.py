"""The shards on a drive, found from outside; and damage to them. The drive may be in use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from anvil.base.limits import RECORD_HEADER_BYTES_MAX
from anvil.shards.files import blob_path, blobs_in, inspect, outer_folders
from anvil.shards.format import decode_header
from anvil.shards.index import Entry, ShardIndex
from anvil.shards.segments import segment_name


def small_shards(drive: Path) -> list[Entry]:
    """Those in segments."""
    index = ShardIndex(drive / "index")
    try:
        return [entry for _, entry in index.page(b"", 1_000_000)]
    finally:
        index.close()


def large_shards(drive: Path) -> Iterator[tuple[bytes, int]]:
    """Those in files of their own: blob and index."""
    for outer in outer_folders(drive / "blobs"):
        yield from blobs_in(outer)


def shards_held(drive: Path) -> set[tuple[bytes, int]]:
    """Every shard of the drive; none where there is no drive."""
    if not (drive / "index").exists():
        return set()
    return {(entry.blob_id, entry.shard) for entry in small_shards(drive)} | set(large_shards(drive))


def shards_on(drive: Path, blobs: set[bytes]) -> list[tuple[Path, int, int]]:
    """Where the payloads of these blobs' shards are: file, offset, length."""
    if not (drive / "index").exists():
        return []
    found = []
    for entry in small_shards(drive):
        if entry.blob_id in blobs:
            path, place = drive / "segments" / segment_name(entry.place.segment), entry.place
            found.append((path, place.offset + place.header_bytes, place.payload_bytes))
    for blob_id, number in large_shards(drive):
        if blob_id in blobs:
            path = blob_path(drive / "blobs", blob_id, number)
            with path.open("rb") as file:
                record, _ = inspect(file.fileno(), blob_id, number)
            found.append((path, record.header_bytes, record.payload_bytes))
    return found


def session_of(drive: Path, blob_id: bytes, number: int) -> bytes:
    """The writer session that a shard names; empty when it is gone meanwhile."""
    for entry in small_shards(drive):
        if (entry.blob_id, entry.shard) == (blob_id, number):
            path, offset = drive / "segments" / segment_name(entry.place.segment), entry.place.offset
            break
    else:
        path, offset = blob_path(drive / "blobs", blob_id, number), 0
    try:
        with path.open("rb") as file:
            return decode_header(os.pread(file.fileno(), RECORD_HEADER_BYTES_MAX, offset)).header.session
    except FileNotFoundError:
        return b""


def damage(path: Path, offset: int, length: int, times: int) -> None:
    """Flip a bit at `times` places spread over the range. The file keeps its length, and whoever has it open sees it."""
    with path.open("r+b", buffering=0) as file:
        for number in range(times):
            at = offset + length * number // times
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 0x10]), at)
