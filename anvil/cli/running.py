"""Runs what a command awaits, and hears Ctrl-C.

`asyncio.run` alone may miss it: a signal that comes just before the loop goes to sleep is seen when something else wakes it, and a transfer
that waits for its server may have nothing else. Not here: what an interrupted command leaves behind.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`. The first Ctrl-C cancels `work`, and KeyboardInterrupt is raised when that has ended; a second one raises it at
    once."""

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return asyncio.run(work)  # in the background of a script, say, where it is ignored
    pressed = False

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            nonlocal pressed
            pressed = True
            loop.remove_signal_handler(signal.SIGINT)  # back to Python's own, which raises wherever it is
            task.cancel()

        loop.add_signal_handler(signal.SIGINT, interrupted)
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if not pressed:
            raise
        raise KeyboardInterrupt from None
