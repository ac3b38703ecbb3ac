from collections.abc import Sequence
from typing import Self

from anvil._ec.pieces import Sink, Source
from anvil._ec.pool import Job
from anvil.base.types import Buffer

class Guard:
    """A file that says which disk is there: `place` is its device and inode."""

    path: str
    place: tuple[int, int]
    def __new__(cls, path: str, place: tuple[int, int]) -> Self: ...

class WriteJob(Job):
    """pwritev of all `buffers` at `offset`, retried until whole. check() raises OSError(errno). `sync`: fdatasync afterwards.

    With `guard`, which is looked at before and after: ENODEV if another disk is there. The caller keeps `fd` open until the job has
    been collected (true of all that take one).
    """

    def __new__(cls, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool = False, guard: Guard | None = None) -> Self: ...

class ReadJob(Job):
    """pread into `view`; `count` = bytes read (short only at end of file). check() raises OSError(errno)."""

    def __new__(cls, fd: int, offset: int, view: Buffer) -> Self: ...
    @property
    def count(self) -> int: ...

class ReadInto(Job):
    """Feeds `sink` from `offset` on until it wants no more, a piece at a time. `count` = bytes read; the file ended early if the sink
    still wants some. check() raises OSError(errno); whether what came is sound is asked of the sink."""

    def __new__(cls, fd: int, offset: int, sink: Sink) -> Self: ...
    @property
    def count(self) -> int: ...

class WriteFrom(Job):
    """Writes `head` at `offset` and all that `source` gives behind it, piece by piece, then fdatasync if `sync`. check() raises
    OSError(errno), or what the source's check() raises."""

    def __new__(cls, fd: int, offset: int, source: Source, head: Buffer = b"", sync: bool = False) -> Self: ...

class ReserveJob(Job):
    """posix_fallocate of the first `length` bytes. check() raises OSError(errno), ENOSPC among them."""

    def __new__(cls, fd: int, length: int) -> Self: ...

class NameJob(Job): ...

class OpenJob(NameJob):
    """open(2), where `guard` holds (else ENODEV). check() raises OSError(errno)."""

    def __init__(self, path: str, flags: int, mode: int = 0, guard: Guard | None = None) -> None: ...
    def take(self) -> int:
        """The descriptor, once; it is the caller's. One that nobody takes is closed with the job."""

class SyncFolderJob(NameJob):
    """Open a folder, fsync it, look at `guard`. check() raises OSError(errno)."""

    def __init__(self, path: str, guard: Guard | None = None) -> None: ...

class GuardJob(NameJob):
    """check() raises OSError(ENODEV) if another disk is there, or none."""

    def __init__(self, guard: Guard) -> None: ...

class LinkJob(NameJob):
    """link(2)."""

    def __init__(self, path: str, to: str) -> None: ...

class UnlinkJob(NameJob):
    """unlink(2)."""

    def __init__(self, path: str) -> None: ...

class MakeFolderJob(NameJob):
    """mkdir(2), mode 0700."""

    def __init__(self, path: str) -> None: ...

class CloseJob(NameJob):
    """unlink(2) of `path` if given (a missing one is no error), then close(2), whatever came before."""

    def __init__(self, fd: int, path: str | None = None) -> None: ...

def open_cached(path: str) -> int:
    """A read-only descriptor without ever waiting for a disk, or -1 where that cannot be had. Raises OSError."""
