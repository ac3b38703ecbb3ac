"""A clock for an open loop: wakes those who wait at their time, to some 50 us, where the loop's own timers are exact to a millisecond.

Owns: one timerfd of the process (Linux, timerfd_create(2)). Times are those of `time.perf_counter_ns`, which is CLOCK_MONOTONIC. Not
here: what is to be done then.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import time
from collections.abc import Callable
from itertools import count
from typing import Final

_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK, TFD_CLOEXEC
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("ns", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Of the running loop. Raises OSError where there is no timerfd."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._fired)

    def at(self, due_ns: int, wake: Callable[[], None]) -> None:
        """Call `wake` then; in the next turn of the loop if that is over."""
        heapq.heappush(self._waiting, (due_ns, next(self._order), wake))
        if self._waiting[0][0] == due_ns:
            self._set(due_ns)

    def wake_all(self) -> None:
        """Now, whatever their time."""
        waiting, self._waiting = self._waiting, []
        for _, _, wake in waiting:
            self._loop.call_soon(wake)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _set(self, due_ns: int) -> None:
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(*divmod(max(1, due_ns), 1_000_000_000)))
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew since
        now = time.perf_counter_ns()
        while self._waiting and self._waiting[0][0] <= now:
            heapq.heappop(self._waiting)[2]()
        if self._waiting:
            self._set(self._waiting[0][0])
