"""Waiting for stripe buffers: first come, first served, within a bounded memory.

Owns: the queue of those who wait. Invariant: nobody overtakes who came earlier, so a large request is not starved by small
ones; a waiter that is cancelled or runs out of time leaves nothing behind. Not here: the memory and its accounting
(`anvil/_ec/buffers.pyx`).

Who needs several buffers to make progress takes them in one `acquire_all`: taking them one after another while others do the same
can leave everybody holding some and waiting for more, until the limit.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from anvil._ec.buffers import BufferPool, StripeBuffer
from anvil.base.errors import SlowDown
from anvil.base.limits import BUFFER_COLLECT_S, BUFFER_POOL_BYTES_MAX, BUFFER_WAIT_S, BUFFER_WAITERS_MAX
from anvil.base.underway import waited


class _Waiter:
    __slots__ = ("future", "sizes")

    def __init__(self, sizes: Sequence[int], future: asyncio.Future[list[StripeBuffer]]) -> None:
        self.sizes = sizes
        self.future = future


class Buffers:
    """An async face of `BufferPool`, for one event loop. A buffer comes back when it and its views are dropped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bytes_max: int = BUFFER_POOL_BYTES_MAX, wait_s: float = BUFFER_WAIT_S
    ) -> None:
        self._loop = loop
        self._pool = BufferPool(bytes_max)
        self._pool.on_free = self._freed
        self._wait_s = wait_s
        self._waiters: deque[_Waiter] = deque()
        self._wake_due = False
        self._collect_at = 0.0

    @property
    def used(self) -> int:
        """Bytes in use, counted in size classes."""
        return self._pool.used

    @property
    def idle(self) -> int:
        """Bytes kept for reuse."""
        return self._pool.idle

    @property
    def bytes_max(self) -> int:
        return self._pool.bytes_max

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def acquire(self, nbytes: int) -> StripeBuffer:
        """A buffer of `nbytes` (not zeroed). Raises SlowDown after `wait_s`, or at once when too many wait already; ValueError
        when the pool could never hold it."""
        (buffer,) = await self.acquire_all(nbytes)
        return buffer

    async def acquire_all(self, *sizes: int) -> list[StripeBuffer]:
        """A buffer of each size, all at once or none. Raises as `acquire`."""
        needed = sum(map(BufferPool.capacity, sizes))
        if needed > self._pool.bytes_max:
            raise ValueError(f"buffers of {needed} bytes will never fit into a pool of {self._pool.bytes_max}")
        if not self._waiters and (buffers := self._try(sizes)) is not None:
            return buffers
        if len(self._waiters) >= BUFFER_WAITERS_MAX:
            raise SlowDown
        if self._collect_garbage() and not self._waiters and (buffers := self._try(sizes)) is not None:
            return buffers
        waiter = _Waiter(sizes, self._loop.create_future())
        since = perf_counter()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter.future
        except TimeoutError:
            # Raised below and not here: its context would be the TimeoutError, whose frames hold this task, which holds what is raised.
            # Such a cycle keeps the buffers of everybody who was waited for until the garbage collector runs.
            pass
        finally:
            # Whoever stood behind one that gave up may now be served. (A buffer granted in the same moment is simply dropped.)
            if waiter.future.cancelled() and waiter in self._waiters:
                self._waiters.remove(waiter)
                self._serve()
            waited("buffers", since)
        raise SlowDown

    def try_acquire(self, nbytes: int) -> StripeBuffer | None:
        """A buffer without waiting; None while others wait or there is none. Raises ValueError as `acquire`."""
        return None if self._waiters else self._pool.try_acquire(nbytes)

    def trim(self) -> None:
        """Give idle memory back to the system."""
        self._pool.trim()

    def _collect_garbage(self) -> bool:
        """What an exception kept in a cycle is memory that nobody uses and the collector, which counts objects, is in no hurry to find."""
        now = self._loop.time()
        if now < self._collect_at:
            return False
        self._collect_at = now + BUFFER_COLLECT_S
        gc.collect()
        return True

    def _try(self, sizes: Sequence[int]) -> list[StripeBuffer] | None:
        if self._pool.used + sum(map(BufferPool.capacity, sizes)) > self._pool.bytes_max:
            return None
        buffers = [self._pool.try_acquire(size) for size in sizes]
        return [buffer for buffer in buffers if buffer is not None]

    def _freed(self) -> None:
        """A buffer came back; on any thread, in the middle of anything. Only schedules."""
        if self._waiters and not self._wake_due and not self._loop.is_closed():
            self._wake_due = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wake_due = False
        self._serve()

    def _serve(self) -> None:
        """Serve from the head of the queue while its head can be served."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.future.done():
                buffers = self._try(waiter.sizes)
                if buffers is None:
                    return
                waiter.future.set_result(buffers)
            self._waiters.popleft()
