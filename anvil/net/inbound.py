"""The body of one HTTP/1.1 request on its way in: from the socket into the handler's view.

Owns: how many body bytes are still to come and where the next ones go. Invariant: never takes a byte beyond the body's end, so a
pipelined request is never eaten; one wake-up of the handler per filled view. Not here: sockets and pausing (`connection`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

from anvil.base.errors import AnvilError, EntityTooLarge
from anvil.base.limits import KIB
from anvil.base.underway import waited
from anvil.wire.http1_chunked import TransferDecoder


async def read_bounded(readinto: Callable[[memoryview], Awaitable[int]], limit: int) -> bytes:
    """A body whose length is not known, whole. Raises EntityTooLarge beyond `limit`, and what `readinto` raises."""
    parts: list[bytes] = []
    total = 0
    while True:
        piece = bytearray(min(64 * KIB, limit + 1 - total))
        count = await readinto(memoryview(piece))
        total += count
        if total > limit:
            raise EntityTooLarge()
        parts.append(bytes(memoryview(piece)[:count]))
        if count < len(piece):
            return b"".join(parts)


_DIRECT_BYTES_MIN: Final = 16 * KIB  # less of a chunk left than this: one read of everything beats two


class Inbound:
    """A request body with content-length, or (`length` None) with chunked transfer coding.

    While `target` is set, the socket may write into `target[filled:goal]` and says so with `direct`. Otherwise bytes come through
    `take`, or `drop` once nobody wants them.
    """

    __slots__ = ("_decoder", "_loop", "_view", "complete", "error", "filled", "goal", "left", "received", "target", "waiter")

    def __init__(self, length: int | None, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._decoder = TransferDecoder() if length is None else None
        self._view: memoryview | None = None
        self.left = length or 0  # with content-length: body bytes not yet taken
        self.complete = length == 0
        self.error: AnvilError | None = None
        self.received = 0  # payload bytes taken so far
        self.target: memoryview | None = None
        self.filled = 0
        self.goal = 0
        self.waiter: asyncio.Future[None] | None = None

    @property
    def bounded(self) -> bool:
        """True if `left` is known."""
        return self._decoder is None

    def begin(self, view: memoryview, held: memoryview) -> int:
        """Start filling `view`, with `held` first; returns how much of `held` was used. Then `done` tells whether to `wait`."""
        self._view = view
        self.filled = 0
        return self.take(held)

    @property
    def done(self) -> bool:
        """The view is full or the body complete."""
        return self.complete or (self._view is not None and self.filled == len(self._view))

    async def wait(self) -> int:
        """Until the view begun is full or the body complete. Raises what `fail` was given. Returns bytes in the view."""
        self.check()
        self.waiter = self._loop.create_future()
        self._aim()
        try:
            since = perf_counter()
            await self.waiter
            waited("receive", since)
        finally:
            self.end()
        return self.filled

    def end(self) -> None:
        """Let go of the view."""
        self.waiter = self._view = self.target = None

    def direct(self, count: int) -> None:
        """`count` bytes were written into target[filled:]."""
        self.filled += count
        self.received += count
        if self._decoder is None:
            self.left -= count
            self.complete = self.left == 0
        else:
            self._decoder.skip(count)
        if self.filled == self.goal:
            self._aim()

    def take(self, data: memoryview) -> int:
        """Move payload from `data` into the view; returns how many bytes of `data` were used up. Raises InvalidRequest."""
        assert self._view is not None
        if self._decoder is None:
            count = used = min(len(data), self.left, len(self._view) - self.filled)
            if count:
                self._view[self.filled : self.filled + count] = data[:count]
                self.left -= count
                self.complete = self.left == 0
        else:
            used, count = self._decoder.decode(data, self._view[self.filled :])
            self.complete = self._decoder.finished
        self.filled += count
        self.received += count
        if self.waiter is not None:
            self._aim()
        return used

    def drop(self, data: memoryview) -> int:
        """Throw body bytes away; returns how many of `data` belonged to the body. Raises InvalidRequest."""
        if self._decoder is None:
            used = min(len(data), self.left)
            self.left -= used
            self.complete = self.left == 0
            return used
        used, _ = self._decoder.decode(data, None)
        self.complete = self._decoder.finished
        return used

    def fail(self, error: AnvilError) -> None:
        """No more bytes will come: whoever reads, now or later, gets `error`."""
        if self.error is None:
            self.error = error.again()
        self.target = None
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error.again())

    def check(self) -> None:
        """Raises what `fail` was given, if it was."""
        if self.error is not None:
            raise self.error.again()

    def _aim(self) -> None:
        """Decide where the next bytes go, or wake the reader."""
        view = self._view
        if view is None or self.waiter is None:
            self.target = None
        elif self.done:
            self.target = None
            if not self.waiter.done():
                self.waiter.set_result(None)
        elif self._decoder is None:
            self.target, self.goal = view, min(len(view), self.filled + self.left)
        elif self._decoder.data_left >= _DIRECT_BYTES_MIN:
            self.target, self.goal = view, min(len(view), self.filled + self._decoder.data_left)
        else:
            self.target = None
