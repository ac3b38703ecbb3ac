from collections.abc import Callable
from typing import Self, final

@final
class StripeBuffer:
    """Writable memory of len(buffer) bytes, 64-byte aligned (page-aligned above 64 KiB); use it through memoryview(buffer).

    Only a pool makes these. Memory goes back when the last reference and the last view are gone. It is not zeroed.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError."""
    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class BufferPool:
    """Buffers of at most `bytes_max` bytes in total (whole size classes, in use and idle together)."""

    def __new__(cls, bytes_max: int, idle_bytes_max: int | None = None) -> Self: ...
    @property
    def bytes_max(self) -> int: ...
    @property
    def idle_bytes_max(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def idle(self) -> int: ...
    on_free: Callable[[], object] | None
    """Called after a buffer came back, on whichever thread dropped it, perhaps during garbage collection: only schedule."""
    @staticmethod
    def capacity(nbytes: int) -> int:
        """What a buffer of `nbytes` counts for."""
    def try_acquire(self, nbytes: int) -> StripeBuffer | None:
        """None when it would exceed bytes_max. Raises ValueError above 256 MiB, MemoryError."""
    def trim(self) -> None:
        """Give all idle memory back to the system."""

def keep_freed(piece_bytes: int, spare_bytes: int) -> bool:
    """Have malloc serve pieces of up to `piece_bytes` from its heap, and keep `spare_bytes` of that when they are freed. Left to itself it
    gives large pieces back and maps them anew, a page fault for every 4 KiB. For the whole process; False where it cannot be had."""
