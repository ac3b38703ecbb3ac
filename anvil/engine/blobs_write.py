"""Writing one blob: bytes from a body into the row, into segments, or into shard files, and the digests of it all.

Owns: the choice of form by size, the pipeline of stripes, what becomes of drives that failed or are late. Invariant: when a `write`
returns, at least the scheme's quorum of shards is durable under their names, every digest covers exactly the bytes stored, and `verify`
has accepted them; when it raises, nothing it wrote will be referenced and what could be removed was. Nothing is visible to readers before
the caller commits. Not here: the commit (`engine/objects.py`, `engine/multipart.py`), waiting for a quorum (quorum.py), what a shard is on
disk (`shards`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any

import msgspec

from anvil._ec.digest import DigestJob, Digests
from anvil._ec.pieces import Source
from anvil._ec.stripe import BlobKey, EncodeJob, SealFrame
from anvil.base.errors import AnvilError, DriveFailed, DriveStalled, IncompleteBody, Unavailable, WriteQuorumLost
from anvil.base.limits import (
    INLINE_BYTES_MAX,
    INLINE_JOB_BYTES_MAX,
    SEGMENT_SHARD_BYTES_MAX,
    STRAGGLER_S,
    STRIPE_BYTES,
    STRIPES_IN_FLIGHT,
)
from anvil.base.owned import ended
from anvil.base.types import Buffer
from anvil.base.underway import waited
from anvil.engine.context import Context
from anvil.engine.ports import Body, Drive, LargeShard
from anvil.engine.quorum import Step
from anvil.engine.types import PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import Algorithm, BlobRef, Checksum, Content, Owner, SessionId
from anvil.model.scheme import Scheme, scheme_for
from anvil.model.shard import ShardFooter, ShardHeader


class Written(msgspec.Struct, frozen=True):
    """A blob that is durable but not yet visible."""

    size: int
    etag: str  # md5 hex
    checksum: Checksum | None
    content: Content | None
    missing: int
    session: SessionId
    undo: Callable[[], Awaitable[None]] | None = None  # removes its shards; never raises


class BlobWriter:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, bucket: Bucket, owner: Owner, body: Body, spec: PutSpec) -> Written:
        """Store `body` as a blob of `bucket`. Raises IncompleteBody and the like from the body, what `spec.verify` raises,
        StorageFull, WriteQuorumLost, SlowDown (no stripe buffer in time), WriterFenced."""
        size = body.length
        digests = Digests({Algorithm.MD5, *spec.digests})
        session = self._context.session.current
        if size <= INLINE_BYTES_MAX:
            return await self._write_inline(bucket, body, spec, digests, session)
        scheme = scheme_for(size, self._context.scheme())
        blob = BlobRef(blob_id=self._context.new_id(), size=size, scheme=scheme, stripe_bytes=STRIPE_BYTES)
        one = _OneBlob(self._context, bucket, owner, blob, session)
        if blob.geometry.stripes == 1 and blob.geometry.shard_bytes <= SEGMENT_SHARD_BYTES_MAX:
            return await one.write_small(body, spec, digests)
        return await one.write_large(body, spec, digests)

    async def discard(self, written: Written) -> None:
        """Remove the shards of a blob whose commit was certainly not made. Never raises: what stays is the sweep's."""
        await _discard(written)

    async def _write_inline(self, bucket: Bucket, body: Body, spec: PutSpec, digests: Digests, session: SessionId) -> Written:
        plain = bytearray(body.length)
        await _fill(body, memoryview(plain))
        digests.update(plain)
        results = _results(digests)
        checksum = spec.verify(results)
        content = None
        if plain:
            blob = BlobRef(blob_id=self._context.new_id(), size=len(plain), scheme=Scheme(1, 0))
            content = Content(blob=blob, inline=BlobKey(bucket.key, blob.blob_id).seal(0, True, plain))
        return Written(len(plain), results[Algorithm.MD5].hex(), checksum, content, 0, session)


class _OneBlob:
    """The state of one write: where each index goes, what has failed."""

    def __init__(self, context: Context, bucket: Bucket, owner: Owner, blob: BlobRef, session: SessionId) -> None:
        self._context = context
        self._blob = blob
        self._owner = owner
        self._session = session
        self._key = BlobKey(bucket.key, blob.blob_id)
        self._codec = context.codecs(blob.scheme)
        order = context.placement().order(blob.blob_id)
        width = blob.scheme.width
        self._drives: list[Drive | None] = [*order[:width], *([None] * (width - len(order)))]
        self._spares = [drive for drive in order[width:] if drive is not None]
        self._errors: list[AnvilError] = []
        self._flying: deque[asyncio.Task[None]] = deque()
        self._given_up: set[int] = set()  # indexes whose drive was too slow with a large shard
        self._last = Step(0)  # what was begun last, and who is late with it

    def _header(self, index: int) -> ShardHeader:
        return ShardHeader(
            blob=self._blob,
            index=index,
            bucket_id=self._owner.bucket_id,
            key=self._owner.key,
            version_id=self._owner.version_id,
            session=self._session,
            part_number=self._owner.part_number,
        )

    def _footer(self, etag: str, checksum: Checksum | None, spec: PutSpec) -> ShardFooter:
        return ShardFooter(etag=etag, modified_us=self._context.now_us(), attributes=spec.attributes, checksum=checksum)

    def _next_drive(self, index: int) -> Drive | None:
        """The drive to try for that index: its own, then the next spare on the list, then none."""
        if self._drives[index] is None and self._spares:
            self._drives[index] = self._spares.pop(0)
        return self._drives[index]

    def _failed(self, index: int, error: AnvilError) -> None:
        self._errors.append(error.again())
        self._drives[index] = None

    def _require_quorum(self, durable: Sequence[bool]) -> int:
        """The mask of missing shards. Raises when fewer than the quorum are durable."""
        if sum(durable) < self._blob.scheme.quorum:
            # Full, busy, shutting down: where all of them say the same, the client hears it too.
            alike = self._errors and len({type(error) for error in self._errors}) == 1
            raise self._errors[0].again() if alike and not isinstance(self._errors[0], DriveFailed) else WriteQuorumLost()
        return sum(1 << index for index, good in enumerate(durable) if not good)

    def _written(self, results: dict[Algorithm, bytes], checksum: Checksum | None, missing: int) -> Written:
        if missing:
            self._context.events.write_short(self._blob.blob_id, missing)
        return Written(
            size=self._blob.size,
            etag=results[Algorithm.MD5].hex(),
            checksum=checksum,
            content=Content(blob=self._blob),
            missing=missing,
            session=self._session,
            undo=self._undo,
        )

    async def _undo(self) -> None:
        """Remove the shards, stragglers' as soon as they have landed. Best effort: what cannot be removed is the sweep's, and nobody
        waits for a drive that takes its time."""
        self._last.landed = self._start_removal
        removing = [self._start_removal(index) for index in range(len(self._drives)) if index not in self._last.left]
        if removing:
            await asyncio.wait(removing, timeout=STRAGGLER_S)

    def _start_removal(self, index: int) -> asyncio.Task[None]:
        return self._context.owned.start(self._remove(index))

    async def _remove(self, index: int) -> None:
        drive = self._drives[index]
        if drive is not None:
            try:
                await drive.remove(self._blob.blob_id, index)
            except AnvilError:
                return

    async def _settle(self, works: Mapping[int, Coroutine[Any, Any, bool]]) -> list[bool]:
        """Do the work of each index, all at once, and wait as `Step` does. A straggler counts as failed."""
        step = self._last = Step(self._blob.scheme.quorum)
        for index, work in works.items():
            step.watch(index, self._context.owned.start(work))
        await step.settled()
        return [index in step.good for index in range(self._blob.scheme.width)]

    # -- one stripe, whole shards into segments ------------------------------------------------------------------------

    async def write_small(self, body: Body, spec: PutSpec, digests: Digests) -> Written:
        context, size, width = self._context, self._blob.size, self._blob.scheme.width
        frames_bytes = self._blob.geometry.shard_bytes * width
        if size <= INLINE_JOB_BYTES_MAX:
            # One copy lies in a buffer of at most 64 KiB: not worth the accounting of stripe buffers.
            plain = memoryview(bytearray(size))
            await _fill(body, plain)
            digests.update(plain)
            encode = EncodeJob(self._codec, self._key, 0, True, plain, size, bytearray(frames_bytes))
            encode.run()
        else:
            buffer = memoryview(await context.buffers.acquire(size + frames_bytes))
            plain = buffer[:size]
            await _fill(body, plain)
            digesting = context.lanes.begin(DigestJob(digests, plain, size))
            encode = EncodeJob(self._codec, self._key, 0, True, plain, size, buffer[size:])
            since = perf_counter()
            try:
                await context.native.run(encode)
            finally:
                await digesting
                waited("code", since)
        results = _results(digests)
        checksum = spec.verify(results)
        footer = self._footer(results[Algorithm.MD5].hex(), checksum, spec)
        # From here on nobody waits for the client: what is begun is finished, or undone, whatever becomes of the request.
        return await context.owned.finish(self._store_small(encode, footer, results, checksum), _discard)

    async def _store_small(
        self, encode: EncodeJob, footer: ShardFooter, results: dict[Algorithm, bytes], checksum: Checksum | None
    ) -> Written:
        width = self._blob.scheme.width
        try:
            if width == 1:
                since = perf_counter()
                durable = [await self._put_one(0, encode, footer)]
                waited("drives", since)
            else:
                durable = await self._settle({index: self._put_one(index, encode, footer) for index in range(width)})
            missing = self._require_quorum(durable)
        except Exception:
            await self._undo()
            raise
        return self._written(results, checksum, missing)

    async def _put_one(self, index: int, encode: EncodeJob, footer: ShardFooter) -> bool:
        while (drive := self._next_drive(index)) is not None:
            try:
                await drive.put(self._header(index), encode.frame(index), footer)
                return True
            except Unavailable as error:
                self._failed(index, error)
        return False

    # -- many stripes, shards in files of their own --------------------------------------------------------------------

    async def write_large(self, body: Body, spec: PutSpec, digests: Digests) -> Written:
        shards: list[LargeShard | None] = [None] * self._blob.scheme.width
        try:
            await self._stream(body, digests, shards)
            results = _results(digests)
            checksum = spec.verify(results)
            footer = self._footer(results[Algorithm.MD5].hex(), checksum, spec)
        except BaseException:
            # Also on cancellation: the client went away, and its half-written shards go with it.
            self._context.owned.start(self._abandon(shards))
            raise
        return await self._context.owned.finish(self._publish(shards, footer, results, checksum), _discard)

    async def _create_shards(self, shards: list[LargeShard | None]) -> None:
        """Fill `shards`, all drives at once. Each that was made is in the list whatever happens to the others."""
        await self._settle({index: self._create_one(index, shards) for index in range(len(shards))})
        self._give_up(shards)
        self._require_quorum([shard is not None for shard in shards])

    async def _create_one(self, index: int, shards: list[LargeShard | None]) -> bool:
        while index not in self._given_up and (drive := self._next_drive(index)) is not None:
            try:
                shard = await drive.create(self._header(index))
            except Unavailable as error:
                if index not in self._given_up:
                    self._failed(index, error)
                continue
            if index not in self._given_up:
                shards[index] = shard
                return True
            await shard.abort()
        return False

    async def _stream(self, body: Body, digests: Digests, shards: list[LargeShard | None]) -> None:
        """Stripe by stripe: receive, then digest and seal+code side by side, then append to the shards in order, with at most
        STRIPES_IN_FLIGHT stripes between socket and drives. The shards are made on all drives at once, while the first stripe arrives."""
        context, geometry = self._context, self._blob.geometry
        before = context.owned.start(self._create_shards(shards))
        self._flying.append(before)
        for stripe in range(geometry.stripes):
            length = geometry.stripe_len(stripe)
            if len(self._flying) == STRIPES_IN_FLIGHT:
                await self._landed()
            last = stripe == geometry.stripes - 1
            if len(shards) == 1:
                plain = memoryview(await context.buffers.acquire(length))
                await _fill(body, plain)
                coding: EncodeJob | SealFrame = SealFrame(self._key, stripe, last, plain, length)
            else:
                plain_bytes = -(-length // 64) * 64  # so that the frames behind it are aligned too
                frames_bytes = geometry.frame_len(stripe) * self._blob.scheme.width
                buffer = memoryview(await context.buffers.acquire(plain_bytes + frames_bytes))
                plain = buffer[:length]
                await _fill(body, plain)
                coding = EncodeJob(self._codec, self._key, stripe, last, plain, length, buffer[plain_bytes:])
                del buffer
            flush = self._flush(DigestJob(digests, plain, length), coding, shards, before)
            before = context.owned.start(flush)
            self._flying.append(before)
            del plain, coding, flush  # the task alone keeps the memory now
        while self._flying:
            await self._landed()

    async def _landed(self) -> None:
        """Wait for the oldest stripe in flight. It leaves the queue only when it has ended, so that `_abandon` sees it."""
        await ended(self._flying[0])
        _raise_again(self._flying.popleft())

    async def _abandon(self, shards: list[LargeShard | None]) -> None:
        """Remove half-written shards, once no native job touches them any more."""
        if self._flying:
            await asyncio.wait(self._flying)
        self._flying.clear()  # they hold their exceptions, whose frames hold this object
        await _abort(shards)

    async def _flush(
        self, digest: DigestJob, coding: EncodeJob | SealFrame, shards: list[LargeShard | None], before: asyncio.Task[None]
    ) -> None:
        """One stripe. A single shard needs no coding: it is sealed while it is written."""
        digesting = self._context.lanes.begin(digest)
        try:
            if isinstance(coding, EncodeJob):
                since = perf_counter()
                await self._context.native.run(coding)
                waited("code", since)
            await ended(before)
            _raise_again(before)
            await self._append(coding, shards)
        finally:
            await digesting

    async def _append(self, coding: EncodeJob | SealFrame, shards: list[LargeShard | None]) -> None:
        """Each shard's frame, on all drives at once."""
        step = self._last = Step(self._blob.scheme.quorum)
        for index, shard in enumerate(shards):
            if shard is not None:
                frame = coding.frame(index) if isinstance(coding, EncodeJob) else coding
                if not shard.begin(frame, step.begin(index)):
                    step.watch(index, self._context.owned.start(_write(shard, frame)))
        await step.settled()
        self._give_up(shards)
        errors, step.errors = step.errors, {}  # a straggler may fail while others are taken back
        for index, error in errors.items():
            if (shard := shards[index]) is not None and isinstance(error, Unavailable):
                await self._lost(index, shard, shards, error)
        if sum(shard is not None for shard in shards) < self._blob.scheme.quorum:
            self._require_quorum([shard is not None for shard in shards])

    async def _lost(self, index: int, shard: LargeShard, shards: list[LargeShard | None], error: Unavailable) -> None:
        self._failed(index, error)
        shards[index] = None
        await shard.abort()

    def _give_up(self, shards: list[LargeShard | None]) -> None:
        """Do without the stragglers of this step from now on, as if their drives had failed. A frame that a native job still writes
        stays in memory until it ends, since the straggler holds it; the shard goes when that is over."""
        for index in self._last.left:
            self._given_up.add(index)
            drive, shard = self._drives[index], shards[index]
            shards[index] = None
            self._failed(index, DriveStalled(drive=drive.label if drive is not None else "none"))
            if shard is not None:
                self._context.owned.start(shard.abort())

    async def _publish(
        self,
        shards: list[LargeShard | None],
        footer: ShardFooter,
        results: dict[Algorithm, bytes],
        checksum: Checksum | None,
    ) -> Written:
        try:
            here = {index: shard for index, shard in enumerate(shards) if shard is not None}
            durable = await self._settle({index: self._publish_one(index, shard, footer) for index, shard in here.items()})
            missing = self._require_quorum(durable)
        except Exception:
            await self._undo()
            raise
        return self._written(results, checksum, missing)

    async def _publish_one(self, index: int, shard: LargeShard, footer: ShardFooter) -> bool:
        try:
            await shard.publish(footer)
            return True
        except Unavailable as error:
            self._failed(index, error)
            return False


def _raise_again(work: asyncio.Future[Any]) -> None:
    """What it raised, without the frames that went through: some of those hold it, and the buffers of the upload (`AnvilError.again`)."""
    error = work.exception()
    if isinstance(error, AnvilError):
        raise error.again()
    work.result()


async def _write(shard: LargeShard, frame: Buffer | Source) -> bool:
    await (shard.write_from(frame) if isinstance(frame, Source) else shard.write(frame))
    return True


async def _fill(body: Body, view: memoryview) -> None:
    if await body.readinto(view) != len(view):
        raise IncompleteBody()


def _results(digests: Digests) -> dict[Algorithm, bytes]:
    return {Algorithm(name): value for name, value in digests.results().items()}


async def _abort(shards: Sequence[LargeShard | None]) -> None:
    await asyncio.gather(*(shard.abort() for shard in shards if shard is not None))


async def _discard(written: Written) -> None:
    if written.undo is not None:
        await written.undo()
