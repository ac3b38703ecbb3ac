"""Reading blobs: any k good shards, local first, the next stripe on its way while this one is being sent.

Owns: which shards of a blob are used, what happens when one is missing, slow or damaged, and read-ahead. Invariant: bytes handed out
have passed the seal; damage is reported once per blob and index, and becomes repair debt. Not here: which
blob an object has (`engine/objects.py`), rebuilding (`tasks/repair.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import msgspec

from anvil._ec.stripe import BlobKey, DecodeJob, NotEnoughUnits, OpenFrame, SealBroken
from anvil.base.errors import AnvilError, BadRecord, DataLost, DriveFailed, DriveStalled, ReadQuorumLost
from anvil.base.limits import (
    DAMAGE_REMEMBERED,
    INLINE_JOB_BYTES_MAX,
    OPEN_PATIENCE_S,
    READ_SPARE_AFTER_S,
    STRIPES_IN_FLIGHT,
)
from anvil.engine.context import Context
from anvil.engine.ports import Drive
from anvil.engine.types import Extent
from anvil.model.identity import Bucket
from anvil.model.records import BlobRef, Owner
from anvil.model.shard import ShardPlace

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


class DamageOnce:
    """So that a damaged blob that is read a thousand times is one event and one debt. Bounded: forgets the oldest."""

    def __init__(self, remembered: int = DAMAGE_REMEMBERED) -> None:
        self._seen: dict[tuple[bytes, int], None] = {}
        self._remembered = remembered

    def first(self, blob_id: bytes, index: int) -> bool:
        """True the first time that shard is reported."""
        if (blob_id, index) in self._seen:
            return False
        self._seen[blob_id, index] = None
        if len(self._seen) > self._remembered:
            del self._seen[next(iter(self._seen))]
        return True

    def forget(self, blob_id: bytes, index: int) -> None:
        """Its report came to nothing: the next one is the first again."""
        self._seen.pop((blob_id, index), None)


class ObjectReader:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._damage = DamageOnce()

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


_Found = tuple[int, Drive, ShardPlace]


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
        with suppress(OSError, AnvilError, SealBroken):
            await self._ended
            if not self._frame.wants:
                self._frame.check()
                return self._out[piece.lo : piece.hi]
        # Who asks for another buffer must not sit on this one; and the future holds its exception, which holds this frame.
        self._ended = None
        del self._frame, self._out
        return (await self._reader.stripe(piece.stripe))[piece.lo : piece.hi]  # the long way, which says what is wrong


_Ahead = _Begun | asyncio.Task[memoryview]


class BlobReader:
    """One blob being read. Remembers where its shards are and which of them are no good."""

    def __init__(self, context: Context, bucket: Bucket, blob: BlobRef, owner: Owner, damage: DamageOnce) -> None:
        self._context = context
        self._damage = damage
        self._owner = owner
        self._blob = blob
        self._geometry = blob.geometry
        self._key = BlobKey(bucket.key, blob.blob_id)
        self._codec = context.codecs(blob.scheme)
        self._order = context.placement().order(blob.blob_id)
        self._places: dict[int, tuple[Drive, ShardPlace]] = {}
        self._bad: set[int] = set()
        self._slow: set[int] = set()  # their drives kept somebody waiting: turned to when there are no others
        self._away = False  # some drive could not be asked: what is missing may come back
        self._finding = asyncio.Lock()

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
        while True:
            await self._fetch(number, frames, free)
            job = DecodeJob(self._codec, self._key, number, number == geometry.stripes - 1, length, frames, out)
            try:
                if length <= INLINE_JOB_BYTES_MAX:
                    job.run()
                else:
                    await self._context.native.run(job)
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
        if 0 not in self._places and not (find and await self._usable(1, set())):
            return None
        drive, place = self._places[0]
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
        found = await self._usable(1, set())
        if not found:
            return None
        _, drive, place = found[0]
        out = await self._room(length)
        frame = OpenFrame(self._key, number, number == self._geometry.stripes - 1, length, out)
        try:
            await drive.read_into(place, self._geometry.frame_offset(number), frame)
        except DriveStalled:
            self._out_of_reach(0)
            return None
        except DriveFailed:
            self._unreadable(0)
            return None
        if frame.wants:
            self._unreadable(0)
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
                usable = await self._usable(wanted, have) if wanted > 0 else []
                for found in usable:
                    await self._start(number, found, frames, free, reading)
                if not reading:
                    if sum(frame is not None for frame in frames) >= k:
                        return
                    if usable:
                        continue  # a lone copy, read without a task, was no good: there may be another
                    raise ReadQuorumLost() if self._away else DataLost()
                done, slow = await asyncio.wait(reading, timeout=READ_SPARE_AFTER_S, return_when=until)
                for task in done:
                    index = reading.pop(task)
                    if not task.result():
                        self._unreadable(index)
                if slow and (until == asyncio.ALL_COMPLETED or not done) and free:
                    until = asyncio.FIRST_COMPLETED
                    have |= set(reading.values())
                    self._slow |= set(reading.values())
                    for found in await self._usable(1, have, patient=False):
                        await self._start(number, found, frames, free, reading)
        finally:
            for task in reading:
                task.cancel()

    async def _start(
        self,
        number: int,
        found: _Found,
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
                if index not in self._bad:  # else the drive stalled, and may still write into the view
                    free.append(view)
                self._unreadable(index)
            return
        reading[self._context.owned.start(self._read_one(number, found, view, frames))] = index

    async def _read_one(self, number: int, found: _Found, view: memoryview, frames: list[memoryview | None]) -> bool:
        index, drive, place = found
        try:
            count = await drive.read(place, self._geometry.frame_offset(number), view)
        except DriveStalled:
            self._out_of_reach(index)
            return False
        except DriveFailed:
            return False
        if count != len(view):
            return False
        frames[index] = view
        return True

    def _unreadable(self, index: int) -> None:
        """A shard that was there could not be read whole."""
        if index in self._bad or index not in self._places:
            return  # the reader of another stripe was faster
        if self._places[index][0].readable:
            self._report("corrupt", index)
        else:
            self._away = True
            self._places.pop(index)
            self._bad.add(index)

    def _out_of_reach(self, index: int) -> None:
        """Its drive does not answer: that says nothing about the shard."""
        self._away = True
        self._places.pop(index, None)
        self._bad.add(index)

    async def _usable(self, count: int, exclude: set[int], *, patient: bool = True) -> list[_Found]:
        """Up to `count` shards that can be read, data shards first, finding them where necessary. With their places, which the reader
        of another stripe may forget at any time. Slow drives are turned to when the others do not suffice, and only if `patient`."""
        found: list[_Found] = []
        hurried = [index for index in range(self._blob.scheme.width) if index not in self._slow]
        for index in hurried:
            if len(found) == count:
                return found
            if index in exclude or index in self._bad:
                continue
            if index in self._places or await self._find(index, OPEN_PATIENCE_S):
                found.append((index, *self._places[index]))
        for index in sorted(self._slow) if patient else ():
            if len(found) == count:
                break
            if index in exclude or index in self._bad or any(index == other for other, _, _ in found):
                continue
            if index in self._places or await self._find(index, None):
                found.append((index, *self._places[index]))
        return found

    async def _find(self, index: int, patience_s: float | None) -> bool:
        """Look for a shard: first where it belongs, then on every other drive (spares, older layouts, repairs). A drive that takes
        longer than `patience_s` makes it a slow one, to be asked again, with None, only if it is needed: then the drive's own limit
        holds, which ends in its being away."""
        async with self._finding:
            if index in self._places:
                return True
            if index in self._bad or (patience_s is not None and index in self._slow):
                return False
            nominal = self._order[index] if index < len(self._order) else None
            if nominal is None and index < self._blob.scheme.width:
                self._away = True
            damaged = False
            away = nominal is None or not nominal.readable
            for drive in [nominal, *self._context.placement().others([nominal])]:
                if drive is None or not drive.readable:
                    continue
                try:
                    place = await drive.open(self._blob.blob_id, index, patience_s)
                except DriveStalled:
                    if patience_s is not None and drive.readable:
                        self._slow.add(index)
                        return False
                    away = True
                    continue
                except DriveFailed:
                    # The drive itself is well: then it is this shard that cannot be read.
                    damaged, away = (True, away) if drive is nominal and drive.readable else (damaged, True)
                    continue
                except BadRecord:
                    damaged = True
                    continue
                if place is not None:
                    self._places[index] = (drive, place)
                    return True
        if away and not damaged:
            # Nothing is known to be lost: a drive that comes back brings its shards, one that is replaced is surveyed as a whole.
            self._away = True
            self._bad.add(index)
        else:
            self._report("corrupt" if damaged else "missing", index)
        return False

    def _found_bad(self, corrupt: tuple[int, ...], frames: list[memoryview | None], free: list[memoryview]) -> None:
        for index in corrupt:
            view = frames[index]
            frames[index] = None
            if view is not None:
                free.append(view)
            self._report("corrupt", index)

    def _report(self, kind: str, index: int) -> None:
        """Remember that a shard is of no use, count it, and make it a debt for the repair."""
        if index in self._bad:
            return
        self._bad.add(index)
        place = self._places.pop(index, None)
        nominal = self._order[index] if index < len(self._order) else None
        drive = place[0] if place else nominal
        if self._damage.first(self._blob.blob_id, index):
            self._context.events.damage(kind, drive.label if drive else "absent", self._blob.blob_id, index)
            self._context.owned.start(self._owe(index, corrupt=kind == "corrupt"))

    async def _owe(self, index: int, *, corrupt: bool) -> None:
        """Make it a debt for the repair. If that cannot be written now, the next reader tries again."""
        try:
            await self._context.metadata.add_debt([(self._owner, self._blob.blob_id, 1 << index)], corrupt=corrupt)
        except AnvilError as error:
            self._damage.forget(self._blob.blob_id, index)
            log.warning("damage of blob %s is not written down yet: %s", self._blob.blob_id.hex(), error)
