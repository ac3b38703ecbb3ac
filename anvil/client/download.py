"""Downloads: a stream that verifies itself, and whole objects into a file, in ranges side by side where they are large.

Owns: what is compared with which checksum, and the temporary file. Invariant: a file appears under its name only once all of its bytes
are there and, where the server has a checksum of the whole object, equal to it; all ranges are of one version of the object.
Not here: where the CLI lets files be written (`cli/paths.py`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from anvil._ec.digest import Digests, crc32, crc32c, crc64nvme, crc_combine
from anvil.api.grpc.proto import object_pb2
from anvil.base.types import Buffer
from anvil.client.calls import Calls, Reading, backoff_s
from anvil.client.convert import checksum_of, object_of, range_message, read_conditions
from anvil.client.errors import ClientError, PreconditionFailed, TransferDamaged, Unavailable
from anvil.client.types import (
    Ask,
    ByteRange,
    Checksum,
    Download,
    ObjectInfo,
    Progress,
    ReadConditions,
    TransferOptions,
)
from anvil.client.upload import together

__all__ = ["ObjectStream"]

CRCS = {"crc32": crc32, "crc32c": crc32c, "crc64nvme": crc64nvme}


class ObjectStream:
    """The bytes of an object, or of a range of it, as they arrive: `async for chunk in stream`.

    `info`: the object. `start`, `length`: which bytes of it. `verified`: they were compared with a checksum, which is so once the last
    of them was read and the server has a checksum of exactly these; TransferDamaged is raised where they differ. Chunks are views
    of memory that stays as it is. Use it in `async with`, or close it, where it is not read to its end."""

    def __init__(self, reading: Reading, what: str) -> None:
        self._reading = reading
        self._what = what
        self.info = object_of(reading.head.object)
        self.start = reading.head.start
        self.length = reading.head.length
        self.verified = False
        self._checksum = comparable(checksum_of(reading.head.checksum))
        self._digests = Digests([self._checksum.algorithm.value]) if self._checksum is not None else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._reading.close()

    def __aiter__(self) -> AsyncIterator[memoryview]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[memoryview]:
        while (chunk := await self._reading.read()) is not None:
            if self._digests is not None:
                self._digests.update(chunk)
            yield chunk
        if self._digests is not None and self._checksum is not None:
            compare(self._what, self._checksum, self._digests.results()[self._checksum.algorithm.value])
            self.verified = True

    async def read(self) -> bytes:
        """All of it at once, verified."""
        return b"".join([chunk async for chunk in self])


def comparable(checksum: Checksum | None) -> Checksum | None:
    """One of the bytes themselves; a checksum of checksums is none."""
    return checksum if checksum is not None and checksum.type == "FULL_OBJECT" else None


def compare(what: str, stored: Checksum, computed: bytes) -> None:
    if stored.value != computed:
        raise TransferDamaged(
            f"{what}: stored with {stored.algorithm.value} {stored.value.hex()}, but what arrived has {computed.hex()}"
        )


class Downloader:
    """One object on its way down."""

    def __init__(
        self,
        calls: Calls,
        bucket: str,
        key: str,
        version_id: str,
        conditions: ReadConditions | None,
        options: TransferOptions,
        progress: Progress | None,
        begun: Callable[[ObjectInfo], None] | None = None,
    ) -> None:
        self._calls = calls
        self._bucket = bucket
        self._key = key
        self._version_id = version_id
        self._conditions = conditions
        self._options = options
        self._progress = progress
        self._begun = begun
        self._what = f"{bucket}/{key}"
        self._ask = Ask("object:read", self._what)

    async def open(self, range: ByteRange | None = None, part_number: int | None = None, etag: str | None = None) -> Reading:
        """Of exactly the object with `etag`, where one is given."""
        conditions = self._conditions if etag is None else ReadConditions(if_match=(etag,))
        request = object_pb2.GetObjectRequest(
            bucket=self._bucket,
            key=self._key,
            version_id=self._version_id,
            range=range_message(range),
            part_number=part_number,
            conditions=read_conditions(conditions),
        )
        try:
            return await self._calls.download(request, self._ask)
        except PreconditionFailed as error:
            if etag is None:
                raise
            said = f"{self._what} was overwritten while it was downloaded"
            raise PreconditionFailed(said, code=error.code, status=error.status, request_id=error.request_id) from error

    async def _first(self) -> tuple[Reading, ObjectInfo, Checksum | None]:
        """The whole object, begun to be read; what it is; and its checksum where it is one of the bytes themselves."""
        reading = await self.open()
        info = object_of(reading.head.object)
        if self._begun is not None:
            self._begun(info)
        return reading, info, comparable(checksum_of(reading.head.checksum))

    async def into_path(self, path: Path) -> Download:
        """Into a temporary file beside it first. What is no regular file (a device, a pipe) is written as it comes."""
        made = _prepare(path)
        if made is None:
            with await asyncio.to_thread(path.open, "wb", buffering=0) as sink:
                return await self.into_file(cast(BinaryIO, sink))
        fd, temporary, final = made
        try:
            try:
                done = await self._into_fd(fd)
            finally:
                os.close(fd)
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return done

    async def into_file(self, sink: BinaryIO) -> Download:
        """In order. What was written before a failure is the caller's matter."""
        reading, info, whole = await self._first()
        digests = Digests([whole.algorithm.value]) if whole is not None else None
        async for chunk in self._resumed(info, reading.head.start, reading.head.length, reading):
            if digests is not None:
                digests.update(chunk)
            await asyncio.to_thread(_write_all, sink, chunk)
        if whole is not None and digests is not None:
            compare(self._what, whole, digests.results()[whole.algorithm.value])
        return Download(info, reading.head.length, whole is not None)

    async def _into_fd(self, fd: int) -> Download:
        reading, info, whole = await self._first()
        by_ranges = info.size >= self._options.ranged_bytes and (whole is None or whole.algorithm.value in CRCS)
        if by_ranges:
            reading.close()
            computed = await self._by_ranges(fd, info, whole)
        else:
            computed = await self._in_order(fd, info, whole, reading)
        if whole is not None:
            compare(self._what, whole, computed)
        return Download(info, info.size, whole is not None)

    async def _in_order(self, fd: int, info: ObjectInfo, whole: Checksum | None, reading: Reading) -> bytes:
        digests = Digests([whole.algorithm.value] if whole is not None else [])
        offset = 0
        async for chunk in self._resumed(info, 0, info.size, reading):
            digests.update(chunk)
            await asyncio.to_thread(_write_at, fd, chunk, offset)
            offset += len(chunk)
        return digests.results()[whole.algorithm.value] if whole is not None else b""

    async def _by_ranges(self, fd: int, info: ObjectInfo, whole: Checksum | None) -> bytes:
        """The checksum of the whole is put together from those of the ranges."""
        crc = CRCS[whole.algorithm.value] if whole is not None else None
        starts = iter(range(0, info.size, self._options.range_bytes))
        sums: dict[int, tuple[int, int]] = {}

        async def worker() -> None:
            for start in starts:
                length = min(self._options.range_bytes, info.size - start)
                value, offset = 0, start
                async for chunk in self._resumed(info, start, length, None):
                    if crc is not None:
                        value = crc(chunk, value)
                    await asyncio.to_thread(_write_at, fd, chunk, offset)
                    offset += len(chunk)
                sums[start] = (value, length)

        await together([worker() for _ in range(self._options.parallel)])
        if whole is None:
            return b""
        total = 0
        for start in sorted(sums):
            total = crc_combine(whole.algorithm.value, total, *sums[start])
        return total.to_bytes(len(whole.value), "big")

    async def _resumed(self, info: ObjectInfo, start: int, length: int, reading: Reading | None) -> AsyncIterator[memoryview]:
        """These bytes of exactly this object. A stream that broke is begun again where it broke, unless it does so without any progress
        for several times."""
        offset, end, failures = start, start + length, 0
        try:
            while True:
                try:
                    if reading is None:
                        reading = await self.open(ByteRange(offset, end - offset), etag=info.etag)
                        self._check(reading, info, offset, end)
                    while (chunk := await reading.read()) is not None:
                        offset += len(chunk)
                        failures = 0 if chunk else failures
                        yield chunk
                        if self._progress is not None:
                            self._progress(len(chunk))
                    return
                except Unavailable:
                    if offset == end:
                        return  # all that was announced is there: only the end of the stream was lost
                    failures += 1
                    if failures >= self._options.attempts:
                        raise
                    await asyncio.sleep(backoff_s(failures))
                    reading = None
        finally:
            if reading is not None:
                reading.close()

    def _check(self, reading: Reading, info: ObjectInfo, offset: int, end: int) -> None:
        head = reading.head
        if head.start != offset or head.length != end - offset or head.object.etag != info.etag:
            reading.close()
            raise ClientError(f"{self._what}: the server sent other bytes than those asked for", code="MalformedAnswer")


def _prepare(path: Path) -> tuple[int, Path, Path] | None:
    """A temporary file, its name, and the name it gets in the end. None: there is something that is no regular file."""
    final = Path(os.path.realpath(path))  # a link stays one
    mode = final.stat().st_mode if final.exists() else None
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "Is a directory", str(path))
    if mode is not None and not stat.S_ISREG(mode):
        return None
    temporary = final.with_name(f".{secrets.token_hex(8)}.anvil-part")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if mode is not None:
        os.fchmod(fd, stat.S_IMODE(mode) & 0o777)
    return fd, temporary, final


def _write_at(fd: int, chunk: Buffer, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _write_all(sink: BinaryIO, chunk: Buffer) -> None:
    view = memoryview(chunk)
    while view:
        written = sink.write(view)
        if written is None:
            raise BlockingIOError(11, "the sink does not block and takes nothing now")
        view = view[written:]
