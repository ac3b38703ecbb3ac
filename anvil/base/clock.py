"""Time, passed in where it decides something, so that tests can set it.

Owns: the two clocks of the system. Invariant: `monotonic` is CLOCK_MONOTONIC, hence comparable between processes of one machine.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code asks for the time."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch. May jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment. Never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK = SystemClock()
