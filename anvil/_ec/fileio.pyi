from collections.abc import Sequence
from typing import Self

from anvil._ec.pool import Job
from anvil.base.types import Buffer

class WriteJob(Job):
    """pwritev of all `buffers` at `offset`, retried until whole. check() raises OSError(errno). `sync`: fdatasync afterwards.

    The caller keeps `fd` open until the job has been collected (true of all four).
    """

    def __new__(cls, fd: int, offset: int, buffers: Sequence[Buffer], sync: bool = False) -> Self: ...

class ReadJob(Job):
    """pread into `view`; `count` = bytes read (short only at end of file). check() raises OSError(errno).

    `then` runs on the same thread right after a read that filled `view`, and not after any other; its own check() says how it ended.
    """

    def __new__(cls, fd: int, offset: int, view: Buffer, then: Job | None = None) -> Self: ...
    @property
    def count(self) -> int: ...

class SyncJob(Job):
    """fdatasync, or fsync if `full` (directories: fdatasync need not write a new entry). check() raises OSError(errno)."""

    def __new__(cls, fd: int, full: bool = False) -> Self: ...

class ReserveJob(Job):
    """posix_fallocate of the first `length` bytes. check() raises OSError(errno), ENOSPC among them."""

    def __new__(cls, fd: int, length: int) -> Self: ...
