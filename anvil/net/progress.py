"""The minimum rate, judged by a coarse sweep.

Owns: how long a transfer has been waited for without enough bytes moving. Invariant: time in which nobody waits never counts. Not
here: the sweep itself (`port`), what happens to the slow (`connection`).
"""

from __future__ import annotations


class Progress:
    """Watches one direction of one connection."""

    __slots__ = ("_mark", "_slow_s")

    def __init__(self) -> None:
        self._mark = 0  # bytes moved when progress was last good enough
        self._slow_s = 0.0  # how long it has been waited for since

    def reset(self, moved: int = 0) -> None:
        """Judge only what is transferred from now on, `moved` bytes into it."""
        self._mark = moved
        self._slow_s = 0.0

    def is_slow(self, moved: int, elapsed_s: float, bytes_per_s: int, window_s: float) -> bool:
        """`moved` bytes so far, another `elapsed_s` of waiting. True once more than `window_s` of waiting brought fewer bytes
        than `bytes_per_s` asks for."""
        if moved - self._mark >= bytes_per_s * window_s:
            self._mark = moved
            self._slow_s = 0.0
            return False
        self._slow_s += elapsed_s
        return self._slow_s > window_s
