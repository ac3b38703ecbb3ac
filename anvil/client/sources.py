"""Where uploaded bytes come from: memory, files, streams.

Owns: whether a source can be read anywhere (`at`), so that its parts go up side by side and broken ones again, or only once from its
beginning (`take`). Invariant: a source of known size gives exactly so many bytes or raises SourceChanged. Not here: sending them.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from anvil.base import limits
from anvil.base.types import Buffer
from anvil.client.errors import SourceChanged

__all__ = ["Upload"]


@runtime_checkable
class Readable(Protocol):
    """A binary file object."""

    def read(self, size: int = ..., /) -> bytes: ...


Upload = Buffer | str | os.PathLike[str] | BinaryIO | Readable | AsyncIterable[bytes]
"""What may be uploaded: bytes; a path; a binary file object, from where it stands; an async iterable of bytes."""


class AnySource:
    """`size` None: not known until its end."""

    size: int | None

    def close(self) -> None:
        """Gives back what was opened here."""


class Seekable(AnySource):
    """Can be read anywhere, by several at a time."""

    size: int

    def at(self, start: int, length: int) -> AsyncIterator[Buffer]:
        """Exactly these bytes, in chunks."""
        raise AssertionError("abstract")


class MemorySource(Seekable):
    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.size = len(self._view)

    async def at(self, start: int, length: int) -> AsyncIterator[Buffer]:
        for offset in range(start, start + length, limits.CLIENT_CHUNK_BYTES):
            yield self._view[offset : min(offset + limits.CLIENT_CHUNK_BYTES, start + length)]


class FileSource(Seekable):
    """A regular file, from `base` on. `owned`: close it."""

    def __init__(self, fd: int, base: int, size: int, name: str, owned: bool) -> None:
        self._fd = fd
        self._base = base
        self._name = name
        self._owned = owned
        self.size = size

    async def at(self, start: int, length: int) -> AsyncIterator[Buffer]:
        left, offset = length, self._base + start
        while left:
            chunk = await asyncio.to_thread(os.pread, self._fd, min(left, limits.CLIENT_CHUNK_BYTES), offset)
            if not chunk:
                raise SourceChanged(f"{self._name} became shorter while it was read")
            left -= len(chunk)
            offset += len(chunk)
            yield chunk

    def close(self) -> None:
        if self._owned:
            os.close(self._fd)
            self._owned = False


class Serial(AnySource):
    """Read once, in order. `blocks`: pieces of any size."""

    def __init__(self, blocks: AsyncIterator[Buffer], size: int | None) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._left = size
        self.size = size

    async def take(self, length: int) -> AsyncIterator[Buffer]:
        """Up to so many bytes, in chunks; fewer only at the end. Raises SourceChanged where that is not at `size`."""
        left = length
        while left:
            if not self._rest:
                block = await anext(self._blocks, None)
                if block is None:
                    if self._left:
                        raise SourceChanged(f"the source ended {self._left} bytes before the size that was named")
                    return
                self._rest = memoryview(block).cast("B")
                continue
            chunk = self._rest[: min(left, limits.CLIENT_CHUNK_BYTES)]
            self._rest = self._rest[len(chunk) :]
            left -= len(chunk)
            if self._left is not None:
                self._left -= len(chunk)
                if self._left < 0:
                    raise SourceChanged("the source is longer than the size that was named")
            yield chunk

    async def finish(self) -> None:
        """Raises SourceChanged where something is left."""
        async for _ in self.take(1):
            raise SourceChanged("the source is longer than the size that was named")

    async def block(self, length: int) -> bytes:
        """So many bytes at once; fewer only at the end."""
        return b"".join([chunk async for chunk in self.take(length)])


def open_source(source: Upload, size: int | None) -> Seekable | Serial:
    """`size`: of a stream, where it is known; of anything else it is found out, and another one refused. Raises OSError, SourceChanged."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _sized(MemorySource(source), size)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), size)
    if isinstance(source, AsyncIterable):
        return Serial(aiter(source), size)
    fd = _regular_file(source)
    if fd is not None:
        base = source.tell()  # type: ignore[attr-defined]  # it has a descriptor, so it is a file
        return _sized(FileSource(fd, base, max(0, os.fstat(fd).st_size - base), _name(source), owned=False), size)
    return Serial(_blocks(source), size)


def _sized(found: Seekable, size: int | None) -> Seekable:
    if size is not None and size != found.size:
        found.close()
        raise SourceChanged(f"the source has {found.size} bytes, not {size}")
    return found


def _open_path(path: Path, size: int | None) -> Seekable | Serial:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return _sized(FileSource(fd, 0, status.st_size, str(path), owned=True), size)
    if stat.S_ISDIR(status.st_mode):
        os.close(fd)
        raise IsADirectoryError(21, "Is a directory", str(path))
    return Serial(_blocks(os.fdopen(fd, "rb", buffering=0), close=True), size)  # a pipe or a device


def _regular_file(source: object) -> int | None:
    """The descriptor of a file object whose `tell` says where its bytes are."""
    try:
        fd: int = source.fileno()  # type: ignore[attr-defined]
        source.tell()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _name(source: object) -> str:
    return str(getattr(source, "name", "the file"))


async def _blocks(source: Readable, close: bool = False) -> AsyncIterator[Buffer]:
    """Read ahead by a thread of its own: a pipe may be silent for ever, and whoever gives up waiting must not be held by it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Buffer | BaseException] = asyncio.Queue()
    room, over = threading.Semaphore(limits.CLIENT_BLOCKS_AHEAD), threading.Event()

    def pump() -> None:
        item: Buffer | BaseException = b""
        try:
            while True:
                room.acquire()
                if over.is_set():
                    return
                try:
                    item = source.read(limits.CLIENT_CHUNK_BYTES)
                except Exception as error:
                    item = error
                loop.call_soon_threadsafe(queue.put_nowait, item)
                if isinstance(item, BaseException) or not item:
                    return
        except RuntimeError:
            return  # the loop is closed: nobody waits any more
        finally:
            if close:
                source.close()  # type: ignore[attr-defined]  # it was opened here

    threading.Thread(target=pump, daemon=True, name="anvil-source").start()
    try:
        while True:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if not item:
                return
            yield item
            room.release()
    finally:
        over.set()
        room.release()
