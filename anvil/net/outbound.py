"""The bytes of one connection on their way out: from answers to the transport.

Owns: write back-pressure and the count of bytes sent. Invariant: at most the high-water mark plus one write is queued, as
`writable` makes the writer wait; nothing is copied, the transport keeps references. Not here: what is written (`http1_stream`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from anvil.base.types import Buffer
from anvil.base.underway import waited
from anvil.net.port import NetLimits, NetStats
from anvil.net.progress import Progress


class Outbound:
    """Made once the transport is known. All that send raise ConnectionResetError once the connection is closing."""

    __slots__ = ("_high", "_loop", "_lost", "_progress", "_sent", "_stats", "_transport", "_waiter", "paused")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, limits: NetLimits, stats: NetStats) -> None:
        self._transport: Final = transport
        self._loop: Final = loop
        self._stats: Final = stats
        self._high: Final = limits.write_high_water_bytes
        self._progress: Final = Progress()
        self._sent = 0
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self.paused = False  # the transport holds more than the high-water mark
        self._limit()

    def send(self, data: Buffer) -> None:
        """Hand bytes to the transport."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        size = len(data)
        self._stats.bytes_out += size
        self._sent += size
        self._transport.write(data)

    def send_lines(self, pieces: Sequence[Buffer], size: int) -> None:
        """`send` for several pieces, `size` bytes in all, in one system call."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._stats.bytes_out += size
        self._sent += size
        self._transport.writelines(pieces)

    async def writable(self) -> None:
        """Until the transport takes more."""
        if not self.paused:
            return
        since = perf_counter()
        while self.paused:
            if self._lost:
                raise ConnectionResetError("the client is gone")
            if self._waiter is None or self._waiter.done():
                self._waiter = self._loop.create_future()
            await asyncio.shield(self._waiter)  # several may wait: one that is cancelled must not take the others along
        waited("send", since)

    async def flushed(self) -> None:
        """Until the transport holds no bytes any more."""
        if self.queued_bytes == 0:
            return
        self._transport.set_write_buffer_limits(high=0)  # pauses now, resumes when empty
        try:
            await self.writable()
        finally:
            self._limit()

    @property
    def queued_bytes(self) -> int:
        """What the transport still holds."""
        return self._transport.get_write_buffer_size()

    @property
    def delivered(self) -> int:
        """Bytes that have left the transport so far."""
        return self._sent - self.queued_bytes

    def is_slow(self, elapsed_s: float, bytes_per_s: int, window_s: float) -> bool:
        """Whether the client reads too slowly; see `Progress`."""
        return self._progress.is_slow(self.delivered, elapsed_s, bytes_per_s, window_s)

    def pause(self) -> None:
        """The transport is above its high-water mark."""
        self.paused = True

    def resume(self) -> None:
        """The transport is below its low-water mark."""
        self.paused = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """The connection is gone: wake who waits."""
        self._lost = True
        # Not kept: its exception holds the frames of the writer, these hold this object and the buffers of the download.
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionResetError("the client is gone"))

    def _limit(self) -> None:
        if not self._lost:  # to a closed transport this is an error, which would take the place of the one under way
            self._transport.set_write_buffer_limits(high=self._high, low=self._high // 4)
