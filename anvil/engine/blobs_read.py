"""Reading blobs: any k good shards, local first, the next stripe on its way while this one is being sent.

Owns: what happens when a shard is missing, slow or damaged, and read-ahead. Invariant: bytes handed out have passed the seal. Not here:
where shards are and which are of use (`blobs_find.py`), which blob an object has (`engine/objects.py`), rebuilding (`tasks/repair.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from itertools import chain
from time import perf_counter
from typing import Any

import msgspec

from anvil._ec.stripe import BlobKey, DecodeJob, NotEnoughUnits, OpenFrame, SealBroken
from anvil.base.errors import AnvilError, DataLost, DriveStalled, ReadQuorumLost, Unavailable
from anvil.base.limits import (
    INLINE_JOB_BYTES_MAX,
    READ_SPARE_AFTER_S,
    STRIPES_IN_FLIGHT,
)
from anvil.base.underway import waited
from anvil.engine.blobs_find import DamageOnce, Found, ShardFinder
from anvil.engine.context import Context
from anvil.engine.types import Extent
from anvil.model.identity import Bucket
from anvil.model.records import BlobRef, Owner

log = logging.getLogger("anvil.read")


class _Piece(msgspec.Struct, frozen=True):
    """Bytes lo..hi of one stripe of one extent (of the whole content where it is inline)."""

    extent: Extent
    stripe: int
    lo: int
    hi: int


def plan(extents: tuple[Extent, ...], start: int, length: int) -> Iterator[_Piece]:
    """The pieces that make up bytes start .. start+length of an object, in order."""
    end = start + length
    for extent in extents:
        lo, hi = max(start, extent.start) - extent.start, min(end, extent.start + extent.size) - extent.start
        if lo >= hi or extent.content is None:
            continue
        if extent.content.inline is not None:
            yield _Piece(extent, 0, lo, hi)
            continue
        step = extent.content.blob.stripe_bytes
        for stripe in range(lo // step, -(-hi // step)):
            yield _Piece(extent, stripe, max(lo - stripe * step, 0), min(hi - stripe * step, step))


class ObjectReader:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._damage = DamageOnce()

    def at_hand(self, bucket: Bucket, extents: tuple[Extent, ...], start: int, length: int) -> memoryview | None:
        """Plaintext of that range, whole, if no one has to wait for it: content in the row, or a small blob enough of whose shards are in
        this node's memory. None, which also stands for whatever is wrong: `read` it. Never raises."""
        content = extents[0].content if len(extents) == 1 else None
        if content is None:
            return None
        try:
            if content.inline is not None:
                plain = memoryview(BlobKey(bucket.key, content.blob.blob_id).open(0, True, content.inline))
            elif (opened := self._shards_at_hand(bucket, content.blob)) is not None:
                plain = opened
            else:
                return None
        except (NotEnoughUnits, SealBroken):
            return None
        return plain if length == len(plain) else plain[start : start + length]

    def _shards_at_hand(self, bucket: Bucket, blob: BlobRef) -> memoryview | None:
        """Raises NotEnoughUnits, SealBroken."""
        geometry, scheme, size = blob.geometry, blob.scheme, blob.size
        if size > INLINE_JOB_BYTES_MAX or geometry.stripes != 1:
            return None
        frames: list[memoryview | None] = [None] * scheme.width
        frame_len, missing = geometry.frame_len(0), scheme.k
        for index, drive in enumerate(self._context.placement().belongs(blob.blob_id, scheme.width)):
            if drive is None or not drive.local or not drive.readable:
                continue
            frame = drive.at_hand(blob.blob_id, index)
            if frame is None or len(frame) != frame_len:
                return None  # perhaps damaged, or missing: `read` finds out, and says so
            frames[index] = frame
            missing -= 1
            if not missing:
                break
        else:
            return None
        out = memoryview(bytearray(size))
        job = DecodeJob(self._context.codecs(scheme), BlobKey(bucket.key, blob.blob_id), 0, True, size, frames, out)
        job.run()
        return None if job.corrupt else out

    async def read(self, bucket: Bucket, extents: tuple[Extent, ...], start: int, length: int) -> AsyncIterator[memoryview]:
        """Plaintext of that range, piece by piece. Each view stays valid as long as somebody holds it.

        Raises DataLost, ReadQuorumLost (drives away), SlowDown (no buffer in time). Closing the iterator stops read-ahead.
        """
        blobs: dict[bytes, BlobReader] = {}
        ahead: deque[_Ahead] = deque()
        pieces = plan(extents, start, length)
        try:
            piece, second = next(pieces, None), next(pieces, None)
            if piece is not None and second is None:
                yield await self._piece(bucket, blobs, piece)  # the common case needs nothing else
                return
            rest = chain((second,), pieces)
            while piece is not None or ahead:
                while piece is not None and len(ahead) < STRIPES_IN_FLIGHT - self._eager(ahead):
                    ahead.append(await self._begin(bucket, blobs, piece, ahead))
                    piece = next(rest, None)
                view = await ahead[0]
                eager = self._eager(ahead)
                ahead.popleft()
                if eager and piece is not None:  # begun before this one is handed out: read while it is sent
                    ahead.append(await self._begin(bucket, blobs, piece, ahead))
                    piece = next(rest, None)
                yield view
                del view
        finally:
            for one in ahead:
                one.cancel()
            ahead.clear()  # one that failed holds this frame through its exception: a cycle, with the buffers of the others in it

    @staticmethod
    def _eager(ahead: deque[_Ahead]) -> bool:
        return bool(ahead) and isinstance(ahead[-1], _Begun)

    async def _begin(self, bucket: Bucket, blobs: dict[bytes, BlobReader], piece: _Piece, ahead: deque[_Ahead]) -> _Ahead:
        """Start reading a piece. Where that needs no waiting it is under way on return: a task would start it only when the loop comes
        round, which may be after the piece before has been sent. Only the first of all waits here for its shard to be found; none goes
        before one that may still wait for a buffer."""
        content = piece.extent.content
        if content is not None and content.inline is None and (not ahead or self._eager(ahead) or ahead[-1].done()):
            begun = await self._reader(bucket, blobs, piece, content.blob).begin(piece, find=not ahead)
            if begun is not None:
                return begun
        return self._context.owned.start(self._piece(bucket, blobs, piece))

    def _reader(self, bucket: Bucket, blobs: dict[bytes, BlobReader], piece: _Piece, blob: BlobRef) -> BlobReader:
        reader = blobs.get(blob.blob_id)
        if reader is None:
            reader = blobs[blob.blob_id] = BlobReader(self._context, bucket, blob, piece.extent.owner, self._damage)
        return reader

    async def _piece(self, bucket: Bucket, blobs: dict[bytes, BlobReader], piece: _Piece) -> memoryview:
        content = piece.extent.content
        assert content is not None  # `plan` leaves out extents without content
        blob = content.blob
        if content.inline is not None:
            try:
                return memoryview(BlobKey(bucket.key, blob.blob_id).open(0, True, content.inline))[piece.lo : piece.hi]
            except SealBroken as error:
                raise DataLost() from error
        return (await self._reader(bucket, blobs, piece, blob).stripe(piece.stripe))[piece.lo : piece.hi]


class _Begun:
    """A stripe of a blob of one shard, on its way from the drive: to be awaited or cancelled, as a task."""

    __slots__ = ("_ended", "_frame", "_out", "_piece", "_reader")

    def __init__(self, reader: BlobReader, piece: _Piece, frame: OpenFrame, out: memoryview, ended: asyncio.Future[None]) -> None:
        self._reader = reader
        self._piece = piece
        self._frame = frame
        self._out = out
        self._ended: asyncio.Future[None] | None = ended

    def __await__(self) -> Generator[Any, Any, memoryview]:
        return self._take().__await__()

    def done(self) -> bool:
        return self._ended is None or self._ended.done()

    def cancel(self) -> None:
        if self._ended is not None:
            self._ended.cancel()

    async def _take(self) -> memoryview:
        piece = self._piece
        assert self._ended is not None
        since = perf_counter()
        with suppress(OSError, AnvilError, SealBroken):
            await self._ended
            waited("drives", since)
            if not self._frame.wants:
                self._frame.check()
                return self._out[piece.lo : piece.hi]
        # Who asks for another buffer must not sit on this one; and the future holds its exception, which holds this frame.
        self._ended = None
        del self._frame, self._out
        return (await self._reader.stripe(piece.stripe))[piece.lo : piece.hi]  # the long way, which says what is wrong


_Ahead = _Begun | asyncio.Task[memoryview]


class BlobReader:
    """One blob being read."""

    def __init__(self, context: Context, bucket: Bucket, blob: BlobRef, owner: Owner, damage: DamageOnce) -> None:
        self._context = context
        self._blob = blob
        self._geometry = blob.geometry
        self._key = BlobKey(bucket.key, blob.blob_id)
        self._codec = context.codecs(blob.scheme)
        self._shards = ShardFinder(context, blob, owner, damage)

    async def stripe(self, number: int) -> memoryview:
        """The plaintext of that stripe. Raises DataLost, ReadQuorumLost, SlowDown."""
        geometry, width = self._geometry, self._blob.scheme.width
        if width == 1 and geometry.stripe_len(number) > INLINE_JOB_BYTES_MAX:
            plain = await self._only_shard(number)
            if plain is not None:
                return plain
        frame_len, length = geometry.frame_len(number), geometry.stripe_len(number)
        # One region more than k, for the spare that is read when a shard is slow or bad.
        slots = min(self._blob.scheme.k + 1, width)
        room = await self._room(length + slots * frame_len)
        out = room[:length]
        frames: list[memoryview | None] = [None] * width
        free = [room[length + slot * frame_len : length + (slot + 1) * frame_len] for slot in range(slots)]
        again = True
        while True:
            since = perf_counter()
            try:
                await self._fetch(number, frames, free)
                waited("drives", since)
            except (DataLost, ReadQuorumLost) as error:
                if not again or not await self._shards.look_again(error):
                    raise
                again = False
                continue
            job = DecodeJob(self._codec, self._key, number, number == geometry.stripes - 1, length, frames, out)
            try:
                if length <= INLINE_JOB_BYTES_MAX:
                    job.run()
                else:
                    since = perf_counter()
                    await self._context.native.run(job)
                    waited("code", since)
            except NotEnoughUnits:
                self._found_bad(job.corrupt, frames, free)
                continue
            except SealBroken as error:
                # Every unit has the checksum it was written with, yet the seal does not open: not bit rot, but a wrong key or worse.
                raise DataLost() from error
            if job.corrupt:
                self._found_bad(job.corrupt, frames, free)
            return out

    async def begin(self, piece: _Piece, *, find: bool) -> _Begun | None:
        """Read a stripe without a task: None where that cannot be. `find`: wait until the shard is found."""
        number = piece.stripe
        length = self._geometry.stripe_len(number)
        if self._blob.scheme.width > 1 or length <= INLINE_JOB_BYTES_MAX:
            return None
        if find and self._shards.place(0) is None:
            await self._shards.usable(1, set())
        found = self._shards.place(0)
        if found is None:
            return None
        drive, place = found
        room = self._context.buffers.try_acquire(length)
        if room is None:
            return None
        out = memoryview(room)
        frame = OpenFrame(self._key, number, number == self._geometry.stripes - 1, length, out)
        try:
            ended = drive.begin_into(place, self._geometry.frame_offset(number), frame)
        except AnvilError:
            return None
        return None if ended is None else _Begun(self, piece, frame, out, ended)

    async def _only_shard(self, number: int) -> memoryview | None:
        """A blob of one shard has no spare to turn to: its frame is opened while it is read. None if that failed: then what is wrong with
        the shard is known, or is found by reading the frame as a whole. Raises SlowDown."""
        length = self._geometry.stripe_len(number)
        found = await self._shards.usable(1, set())
        if not found:
            return None
        _, drive, place = found[0]
        out = await self._room(length)
        frame = OpenFrame(self._key, number, number == self._geometry.stripes - 1, length, out)
        since = perf_counter()
        try:
            await drive.read_into(place, self._geometry.frame_offset(number), frame)
            waited("drives", since)
        except DriveStalled:
            self._shards.out_of_reach(0)
            return None
        except Unavailable as error:
            self._shards.failed(drive, 0, error)
            return None
        if frame.wants:
            self._shards.unreadable(0)
            return None
        try:
            frame.check()
        except SealBroken:
            return None
        return out

    async def _room(self, nbytes: int) -> memoryview:
        if nbytes <= 2 * INLINE_JOB_BYTES_MAX:
            return memoryview(bytearray(nbytes))
        return memoryview(await self._context.buffers.acquire(nbytes))

    async def _fetch(self, number: int, frames: list[memoryview | None], free: list[memoryview]) -> None:
        """Read frames until k are there. A shard slower than READ_SPARE_AFTER_S is doubled by a spare.

        Until then all are waited for at once: as a rule they come together, and each wake-up costs as much as a frame."""
        k = self._blob.scheme.k
        until = asyncio.ALL_COMPLETED
        reading: dict[asyncio.Task[bool], int] = {}
        try:
            while sum(frame is not None for frame in frames) < k:
                have = {index for index, frame in enumerate(frames) if frame is not None} | set(reading.values())
                wanted = k - len(have)
                usable = await self._shards.usable(wanted, have) if wanted > 0 else []
                for found in usable:
                    await self._start(number, found, frames, free, reading)
                if not reading:
                    if sum(frame is not None for frame in frames) >= k:
                        return
                    if usable:
                        continue  # a lone copy, read without a task, was no good: there may be another
                    raise ReadQuorumLost() if self._shards.away else DataLost()
                done, slow = await asyncio.wait(reading, timeout=READ_SPARE_AFTER_S, return_when=until)
                for task in done:
                    index = reading.pop(task)
                    if not task.result():
                        self._shards.unreadable(index)
                if slow and (until == asyncio.ALL_COMPLETED or not done) and free:
                    until = asyncio.FIRST_COMPLETED
                    have |= set(reading.values())
                    self._shards.slow(reading.values())
                    for found in await self._shards.usable(1, have, patient=False):
                        await self._start(number, found, frames, free, reading)
        finally:
            for task in reading:
                task.cancel()

    async def _start(
        self,
        number: int,
        found: Found,
        frames: list[memoryview | None],
        free: list[memoryview],
        reading: dict[asyncio.Task[bool], int],
    ) -> None:
        """Begin to read one shard's frame; a lone one without a task."""
        index = found[0]
        if not free:
            free.append(await self._room(self._geometry.frame_len(number)))
        view = free.pop()
        if self._blob.scheme.k == 1 and not reading and len(view) <= INLINE_JOB_BYTES_MAX + 64:
            if not await self._read_one(number, found, view, frames):
                if not self._shards.is_bad(index):  # else the drive stalled, and may still write into the view
                    free.append(view)
                self._shards.unreadable(index)
            return
        reading[self._context.owned.start(self._read_one(number, found, view, frames))] = index

    async def _read_one(self, number: int, found: Found, view: memoryview, frames: list[memoryview | None]) -> bool:
        index, drive, place = found
        try:
            count = await drive.read(place, self._geometry.frame_offset(number), view)
        except DriveStalled:
            self._shards.out_of_reach(index)
            return False
        except Unavailable as error:
            self._shards.failed(drive, index, error)
            return False
        if count != len(view):
            await self._shards.look_after(drive, index)
            return False
        frames[index] = view
        return True

    def _found_bad(self, corrupt: tuple[int, ...], frames: list[memoryview | None], free: list[memoryview]) -> None:
        for index in corrupt:
            view = frames[index]
            frames[index] = None
            if view is not None:
                free.append(view)
            self._shards.report("corrupt", index)
