"""Getting space back from segments in which most bytes are dead.

Owns: the rewriting of one segment's living records. Invariant: a record is moved by writing it again, durably, into the
compactor's own segment, and then the index is switched in one transaction, only if it still names the old place: so a removal or
a newer copy that comes in between wins. The old segment is unlinked only when the index names nothing in it any more; a record
that cannot be read keeps it alive. Not here: when to run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from anvil.base.limits import COMPACT_BATCH_BYTES, COMPACT_DEAD_SHARE, INDEX_PAGE_ENTRIES
from anvil.model.shard import ShardHeader
from anvil.shards.recovery import Found, walk_segment
from anvil.shards.segments import SegmentWriter
from anvil.shards.store import Store

log = logging.getLogger(__name__)

OwnerCheck = Callable[[Sequence[ShardHeader]], Awaitable[Sequence[bool]]]
"""For each shard whether it must be kept: False only if its session is gone and, in a later snapshot, no row owns its blob."""
Hold = Callable[[], bool]
"""True while nothing may be unlinked (a backup is being taken)."""


class CompactionReport(msgspec.Struct):
    segments: int = 0  # looked at
    unlinked: int = 0
    moved: int = 0
    moved_bytes: int = 0
    orphans: int = 0


class _Living(NamedTuple):
    found: Found
    data: bytes  # the whole record


async def compact(store: Store, writer: SegmentWriter, owned: OwnerCheck, hold: Hold) -> CompactionReport:
    """Rewrite every sealed segment with more than COMPACT_DEAD_SHARE dead bytes. Raises OSError, SlowDown, and what `owned`
    raises; what was moved until then stays moved."""
    report = CompactionReport()
    for number, row in await store.io.call(store.index.segments):
        if hold():
            break
        if not row.sealed or not (row.empty or row.dead > row.total * COMPACT_DEAD_SHARE):
            continue
        report.segments += 1
        if not row.empty:
            await _move_living(store, writer, number, owned, report)
        if not hold() and await store.drop_if_empty(number):
            report.unlinked += 1
    return report


async def _move_living(store: Store, writer: SegmentWriter, number: int, owned: OwnerCheck, report: CompactionReport) -> None:
    try:
        fd = await store.io.open(str(store.segment_path(number)), os.O_RDONLY)
    except FileNotFoundError:
        return  # another compactor was faster
    try:
        walk = walk_segment(fd, number)
        # A generator is not entered twice: this is the only task that advances it.
        while batch := await store.io.call(_living, store, fd, walk):
            keep = await owned([living.found.record.header for living in batch])
            for living, kept in zip(batch, keep, strict=True):
                if not kept:
                    await _forget(store, living, report)
            moving = [living for living, kept in zip(batch, keep, strict=True) if kept]
            for outcome in await asyncio.gather(*(_move(writer, living) for living in moving), return_exceptions=True):
                if outcome is not None:
                    raise outcome
            report.moved += len(moving)
            report.moved_bytes += sum(len(living.data) for living in moving)
    finally:
        await store.io.close_file(fd)


def _living(store: Store, fd: int, walk: Iterable[Found]) -> list[_Living]:
    """The next records that the index names, read whole. Blocking."""
    batch: list[_Living] = []
    size = 0
    for found in walk:
        record = found.record
        if store.index.get(record.header.blob.blob_id, record.header.index) != found.place:
            continue
        if not found.whole:
            log.warning("segment %d: damaged record at %d stays until it is repaired", record.segment, record.offset)
            continue
        data = os.pread(fd, record.length, record.offset)
        if len(data) < record.length:
            continue
        batch.append(_Living(found, data))
        size += len(data)
        if size >= COMPACT_BATCH_BYTES or len(batch) >= INDEX_PAGE_ENTRIES:
            break
    return batch


async def _move(writer: SegmentWriter, living: _Living) -> None:
    record, data = living.found.record, memoryview(living.data)
    await writer.append(
        record.header,
        data[record.header_bytes : record.footer_offset],
        bytes(data[record.footer_offset :]),
        written_us=record.written_us,
        replaces=living.found.place,
    )


async def _forget(store: Store, living: _Living, report: CompactionReport) -> None:
    """Remove the index entry of an orphan, unless it was written again meanwhile."""
    header, place = living.found.record.header, living.found.place
    if await store.io.index_call(partial(store.index.remove, header.blob.blob_id, header.index, only=place)) is not None:
        report.orphans += 1
