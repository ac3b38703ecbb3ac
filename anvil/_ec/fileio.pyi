from collections.abc import Sequence
from typing import Self

from anvil._ec.pieces import Sink, Source
from anvil._ec.pool import Job
from anvil.base.types import Buffer

class WriteJob(Job):
    """pwritev of all `buffers` at `offset`, retried until whole. check() raises OSError(errno). `sync`: fdatasync afterwards.

    The caller keeps `fd` open until the job has been collected (true of all here).
    """

    def __new__(cls, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool = False) -> Self: ...

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
    """Writes `head` at `offset` and all that `source` gives behind it, piece by piece. check() raises OSError(errno), or what the source's
    check() raises."""

    def __new__(cls, fd: int, offset: int, source: Source, head: Buffer = b"") -> Self: ...

class SyncJob(Job):
    """fdatasync, or fsync if `full` (directories: fdatasync need not write a new entry). check() raises OSError(errno)."""

    def __new__(cls, fd: int, full: bool = False) -> Self: ...

class ReserveJob(Job):
    """posix_fallocate of the first `length` bytes. check() raises OSError(errno), ENOSPC among them."""

    def __new__(cls, fd: int, length: int) -> Self: ...
