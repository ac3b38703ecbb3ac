"""Reading shards: from (blob, index) to a checked header, to payload bytes, to the footer.

Owns: `ShardPlace.ref`. Invariant: nothing is returned as a shard unless its own header says that it is this one, at this place. A
small record is read whole when it is opened, with one pread, and then served from memory. Not here: the drive's state, and the
classing of errors: everything here raises OSError, BadRecord and DriveStalled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import msgspec

from anvil._ec.pieces import Sink
from anvil.base.errors import BadRecord
from anvil.base.limits import FOOTER_BYTES_MAX, OPEN_READ_BYTES, RECORD_HEADER_BYTES_MAX
from anvil.model.records import BlobId, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader, ShardPlace
from anvil.shards.files import blob_path, check_identity
from anvil.shards.format import decode_footer, decode_header, names_shard
from anvil.shards.index import Place
from anvil.shards.store import Store

_MOVES_MAX = 3  # how often a record may be moved by compaction under one read


class SegmentRef(NamedTuple):
    """`ShardPlace.ref` of a small shard. `data` is the whole record if it was read when the shard was opened."""

    place: Place
    data: memoryview | None


def without_data(place: ShardPlace) -> ShardPlace:
    """The same for somebody who keeps many."""
    ref = place.ref
    return msgspec.structs.replace(place, ref=ref._replace(data=None)) if isinstance(ref, SegmentRef) and ref.data else place


class FileRef(NamedTuple):
    """`ShardPlace.ref` of a large shard."""

    path: Path
    header_bytes: int


def unknown_header(blob_id: BlobId, index: int) -> ShardHeader:
    """Stands for a header that cannot be read: only blob id and index mean something; bucket 0 does not exist."""
    blob = BlobRef(blob_id, 0, Scheme(1, 0))
    return ShardHeader(blob, index, bucket_id=0, key="", version_id=bytes(16), session=bytes(16))


async def find(store: Store, blob_id: BlobId, index: int, patience_s: float | None = None) -> ShardPlace | None:
    """The shard, its header checked; None if the drive does not have it. Each trip to the disk may take `patience_s`."""
    if len(blob_id) != 16 or not 0 <= index <= 255:
        raise ValueError("no possible shard")
    for _ in range(_MOVES_MAX):
        place = store.index.get(blob_id, index)
        if place is None:
            return await _find_file(store, blob_id, index, patience_s)
        try:
            return await _open_record(store, blob_id, index, place, patience_s)
        except FileNotFoundError:
            continue  # the segment went while we looked: the index names another one now
    raise BadRecord("the segment of a shard is missing")


def at_hand(store: Store, blob_id: BlobId, index: int) -> memoryview | None:
    """The payload of a small shard whose file is open and in memory. None says nothing about it, errors included: `find` does."""
    try:
        place = store.index.get(blob_id, index)
        if place is None or place.length > OPEN_READ_BYTES:
            return None
        file = store.files.opened(store.segment_path(place.segment))
        if file is None:
            return None
        data = memoryview(bytearray(place.header_bytes + place.payload_bytes))
        if store.io.jobs.read_now(file.fd, place.offset, data) != len(data):
            return None
    except OSError:
        return None
    sound = names_shard(data, place.header_bytes, blob_id, index, place.segment, place.offset)
    return data[place.header_bytes :] if sound else None


async def _open_record(store: Store, blob_id: BlobId, index: int, place: Place, patience_s: float | None) -> ShardPlace:
    whole = place.length <= OPEN_READ_BYTES
    data = memoryview(bytearray(place.length if whole else place.header_bytes))
    with await store.files.open(store.segment_path(place.segment), patience_s) as file:
        count = await store.io.read(file, place.offset, data, patience_s=patience_s)
    record = decode_header(data[:count])
    check_identity(record, blob_id, index, place.segment, place.offset)
    # A record cut short is served from the file, which says where it ends.
    return ShardPlace(record.header, SegmentRef(place, data if whole and count == len(data) else None))


async def _find_file(store: Store, blob_id: BlobId, index: int, patience_s: float | None) -> ShardPlace | None:
    path = blob_path(store.folder.blobs, blob_id, index)
    data = memoryview(bytearray(RECORD_HEADER_BYTES_MAX))
    store.files.discard_if_unlinked(path)
    try:
        with await store.files.open(path, patience_s) as file:
            count = await store.io.read(file, 0, data, patience_s=patience_s)
    except FileNotFoundError:
        return None
    record = decode_header(data[:count])
    check_identity(record, blob_id, index, 0, 0)
    return ShardPlace(record.header, FileRef(path, record.header_bytes))


async def read(store: Store, place: ShardPlace, offset: int, view: memoryview) -> int:
    """Payload bytes from `offset` into `view`; returns how many. 0 for a shard that is gone."""
    blob = place.header.blob
    wanted = max(0, min(len(view), blob.geometry.shard_bytes - offset))
    if offset < 0 or not wanted:
        return 0
    ref = place.ref
    if isinstance(ref, FileRef):
        return await _read_at(store, ref.path, ref.header_bytes + offset, view[:wanted])
    if not isinstance(ref, SegmentRef):
        raise TypeError("the place is of another drive")
    if ref.data is not None:
        start = ref.place.header_bytes + offset
        view[:wanted] = ref.data[start : start + wanted]
        return wanted
    at: Place | None = ref.place
    for _ in range(_MOVES_MAX):
        if at is None:
            return 0
        path = store.segment_path(at.segment)
        count = await _read_at(store, path, at.offset + at.header_bytes + offset, view[:wanted], missing=-1)
        if count >= 0:
            return count
        at = store.index.get(blob.blob_id, place.header.index)  # compaction moved it
    return 0


async def read_into(store: Store, place: ShardPlace, offset: int, sink: Sink) -> None:
    """Payload bytes from `offset` into `sink`, until it wants no more or they end."""
    ref = place.ref
    if not isinstance(ref, FileRef):
        # A record in a segment may be moved by compaction, and is small.
        left = max(0, place.header.blob.geometry.shard_bytes - offset)
        while 0 < (wants := sink.wants) <= left:
            piece = memoryview(bytearray(wants))
            if await read(store, place, offset, piece) != wants:
                return
            sink.feed(piece)
            offset, left = offset + wants, left - wants
        return
    try:
        with await store.files.open(ref.path) as file:
            await store.io.read_into(file, ref.header_bytes + offset, sink)
    except FileNotFoundError:
        return


def begin_into(store: Store, place: ShardPlace, offset: int, sink: Sink) -> asyncio.Future[None] | None:
    """`read_into`, begun on return, where a file has to be read and is open; None elsewhere."""
    ref = place.ref
    if not isinstance(ref, FileRef) or (file := store.files.opened(ref.path)) is None:
        return None
    with file:
        return store.io.read_into(file, ref.header_bytes + offset, sink)


async def _read_at(store: Store, path: Path, offset: int, view: memoryview, missing: int = 0) -> int:
    try:
        with await store.files.open(path) as file:
            return await store.io.read(file, offset, view)
    except FileNotFoundError:
        return missing


async def verify(store: Store, place: ShardPlace) -> ShardFooter:
    """The footer of a shard, read from its place: a record with a sound header and footer is whole but for its payload's content.
    Raises BadRecord if it is cut short, damaged or gone."""
    header, ref = place.header, place.ref
    blob_id, index, payload = header.blob.blob_id, header.index, header.blob.geometry.shard_bytes
    if isinstance(ref, FileRef):
        data = memoryview(bytearray(FOOTER_BYTES_MAX + 1))
        count = await _read_at(store, ref.path, ref.header_bytes + payload, data)
        return decode_footer(blob_id, index, data[:count])
    if not isinstance(ref, SegmentRef):
        raise TypeError("the place is of another drive")
    at: Place | None = ref.place
    for _ in range(_MOVES_MAX):
        if at is None:
            break
        data = memoryview(bytearray(at.footer_bytes))
        count = await _read_at(store, store.segment_path(at.segment), at.offset + at.header_bytes + payload, data, missing=-1)
        if count >= 0:
            return decode_footer(blob_id, index, data[:count])
        at = store.index.get(blob_id, index)  # compaction moved it
    raise BadRecord("the record is gone")


async def examine(store: Store, blob_id: BlobId, index: int) -> ShardPlace | None:
    """As `find`, but a damaged shard is returned as such, and the footer is looked at."""
    try:
        place = await find(store, blob_id, index)
    except BadRecord:
        return unreadable(store, blob_id, index)
    if place is None:
        return None
    try:
        await verify(store, place)
    except BadRecord:
        # It may have been moved or removed since: only what is still there is damaged.
        again = await find(store, blob_id, index)
        if again is None or again.ref != place.ref:
            return again
        return ShardPlace(place.header, place.ref, damaged=True)
    return place


def unreadable(store: Store, blob_id: BlobId, index: int) -> ShardPlace:
    """A shard that is there, but whose header is not readable."""
    path = blob_path(store.folder.blobs, blob_id, index)
    return ShardPlace(unknown_header(blob_id, index), FileRef(path, 0), damaged=True)
