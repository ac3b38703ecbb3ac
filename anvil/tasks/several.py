"""Several workers over one list of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def side_by_side(count: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` so many times at once, and wait for all. What the first one that fails raises is raised once the others were cancelled."""

    async def one() -> None:
        await work()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
