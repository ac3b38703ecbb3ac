"""Uploads of any size: one PutObject, or parts side by side.

Owns: how large parts are (10,000 of them must suffice), how much of a stream is held in memory, and that a multipart upload that was begun
here is completed or aborted. Invariant: the object's checksum is put together from those of the parts as they were read, and the
server compares it. Not here: the single calls (`multipart.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from anvil._ec.digest import crc_combine
from anvil.api.grpc.proto import object_pb2
from anvil.base import limits
from anvil.base.types import Buffer
from anvil.client.calls import Calls
from anvil.client.errors import ClientError, Invalid
from anvil.client.multipart import Multipart, put_one
from anvil.client.sources import MemorySource, Seekable, Serial
from anvil.client.types import (
    Attributes,
    ByteRange,
    Checksum,
    ChecksumAlgorithm,
    ObjectInfo,
    Progress,
    PutResult,
    TransferOptions,
    UploadedPart,
    WriteConditions,
)

ABORT_S = limits.CLIENT_CONNECT_S


class Job(msgspec.Struct, frozen=True):
    """One part to be sent. `held`: bytes of memory that it occupies until then."""

    number: int
    source: Seekable
    start: int
    length: int
    held: int


class Budget:
    """Memory for the parts of a stream: whoever wants more than is left waits, but one part is always let through."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._total = total
        self._changed = asyncio.Condition()

    async def take(self, amount: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._left >= amount or self._left == self._total)
            self._left -= amount

    async def give(self, amount: int) -> None:
        async with self._changed:
            self._left += amount
            self._changed.notify_all()


def part_bytes_of(size: int, smallest: int) -> int:
    """For an object of known size: whole MiB, so that 10,000 parts suffice."""
    least = -(-size // limits.PART_NUMBER_MAX)
    return max(smallest, -(-least // limits.MIB) * limits.MIB) if least > smallest else smallest


def stream_part_bytes(number: int, first: int) -> int:
    """Of part `number` of a stream whose length nobody knows: doubled every CLIENT_STREAM_PARTS parts."""
    return min(first << ((number - 1) // limits.CLIENT_STREAM_PARTS), max(first, limits.CLIENT_STREAM_PART_BYTES_MAX))


class Uploader:
    """One object on its way up."""

    def __init__(
        self,
        calls: Calls,
        bucket: str,
        key: str,
        attributes: Attributes | None,
        conditions: WriteConditions | None,
        options: TransferOptions,
        progress: Progress | None,
    ) -> None:
        self._calls = calls
        self._multipart = Multipart(calls)
        self._bucket = bucket
        self._key = key
        self._attributes = attributes
        self._conditions = conditions
        self._options = options
        self._progress = progress

    async def put(self, source: Seekable) -> PutResult:
        """With one PutObject."""
        return await put_one(self._calls, self._bucket, self._key, source, self._attributes, self._conditions, self._progress)

    async def seekable(self, source: Seekable) -> PutResult:
        """In parts from `multipart_bytes` on."""
        if source.size < self._options.multipart_bytes:
            return await self.put(source)
        part_bytes = part_bytes_of(source.size, self._options.part_bytes)

        async def jobs() -> AsyncIterator[Job]:
            for number, start in enumerate(range(0, source.size, part_bytes), 1):
                yield Job(number, source, start, min(part_bytes, source.size - start), 0)

        return await self._in_parts(jobs())

    async def serial(self, source: Serial) -> PutResult:
        """Read part by part into memory, so that a part that broke can be sent again."""
        size = source.size
        if size is not None and size < self._options.multipart_bytes:
            data = await source.block(size)
            await source.finish()
            return await self.put(MemorySource(data))

        def part_bytes(number: int) -> int:
            if size is not None:
                return part_bytes_of(size, self._options.part_bytes)
            return stream_part_bytes(number, self._options.part_bytes)

        first = await source.block(self._options.multipart_bytes)
        if len(first) < self._options.multipart_bytes:
            return await self.put(MemorySource(first))
        budget = Budget(self._options.stream_bytes)

        async def jobs() -> AsyncIterator[Job]:
            rest = memoryview(first)
            for number in range(1, limits.PART_NUMBER_MAX + 2):
                length = part_bytes(number)
                await budget.take(length)
                data: Buffer = rest[:length]
                if len(data) < length:
                    data = b"".join((data, await source.block(length - len(data))))
                rest = rest[length:]
                if not data:
                    return
                if number > limits.PART_NUMBER_MAX:
                    raise Invalid("the stream is longer than an object may be (5 TiB)")
                yield Job(number, MemorySource(data), 0, len(data), length)

        return await self._in_parts(jobs(), budget)

    async def _in_parts(self, jobs: AsyncIterator[Job], budget: Budget | None = None) -> PutResult:
        upload_id = await self._multipart.initiate(self._bucket, self._key, self._attributes)

        async def send(job: Job) -> UploadedPart:
            part = await self._multipart.upload_part(
                self._bucket, self._key, upload_id, job.number, job.source, job.start, job.length, self._progress
            )
            if budget is not None:
                await budget.give(job.held)
            return part

        async with aborting(self._multipart, self._bucket, self._key, upload_id):
            parts = await _side_by_side(jobs, send, self._options.parallel)
            return await self._multipart.complete(
                self._bucket, self._key, upload_id, parts, checksum=combined(parts), conditions=self._conditions
            )

    async def copied(self, source: object_pb2.CopySource, info: ObjectInfo) -> PutResult:
        """Of an object too large for one CopyObject: its parts are copied by the server. An overwritten source is noticed."""
        guarded = object_pb2.CopySource()
        guarded.CopyFrom(source)
        guarded.conditions.if_match.append(info.etag)
        part_bytes = part_bytes_of(info.size, min(limits.GIB, limits.PUT_BYTES_MAX))

        async def jobs() -> AsyncIterator[Job]:
            for number, start in enumerate(range(0, info.size, part_bytes), 1):
                yield Job(number, MemorySource(b""), start, min(part_bytes, info.size - start), 0)

        upload_id = await self._multipart.initiate(self._bucket, self._key, self._attributes or info.attributes)

        async def copy(job: Job) -> UploadedPart:
            part = await self._multipart.copy_part(
                self._bucket, self._key, upload_id, job.number, guarded, ByteRange(job.start, job.length)
            )
            if self._progress is not None:
                self._progress(job.length)
            return part

        async with aborting(self._multipart, self._bucket, self._key, upload_id):
            parts = await _side_by_side(jobs(), copy, self._options.parallel)
            return await self._multipart.complete(self._bucket, self._key, upload_id, parts, conditions=self._conditions)


class aborting:
    """Aborts the upload where the block fails or is cancelled. What it could not abort the server's own rules clean up."""

    def __init__(self, multipart: Multipart, bucket: str, key: str, upload_id: str) -> None:
        self._multipart = multipart
        self._where = (bucket, key, upload_id)

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            return
        try:
            async with asyncio.timeout(ABORT_S):
                await self._multipart.abort(*self._where)
        except (ClientError, TimeoutError):
            if error is not None:
                error.add_note(f"the multipart upload {self._where[2]} of {self._where[0]}/{self._where[1]} could not be aborted")


def combined(parts: list[UploadedPart]) -> Checksum:
    """The CRC-64/NVME of the whole from those of its parts."""
    total = 0
    for part in parts:
        total = crc_combine("crc64nvme", total, int.from_bytes(part.checksum, "big"), part.size)
    return Checksum(ChecksumAlgorithm.CRC64NVME, total.to_bytes(8, "big"))


async def _side_by_side(
    jobs: AsyncIterator[Job], work: Callable[[Job], Awaitable[UploadedPart]], parallel: int
) -> list[UploadedPart]:
    """All parts by number. The first failure ends the others and is raised as it is."""
    done: dict[int, UploadedPart] = {}
    turn = asyncio.Lock()  # one at a time reads on

    async def worker() -> None:
        while True:
            async with turn:
                job = await anext(jobs, None)
            if job is None:
                return
            done[job.number] = await work(job)

    await together([worker() for _ in range(parallel)])
    return [done[number] for number in sorted(done)]


async def together(work: list[Awaitable[None]]) -> None:
    """Runs them all. The first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(_task(one))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _task(work: Awaitable[None]) -> None:
    await work
