"""Many objects in one command: a few at a time, and what failed is told while the rest goes on.

Invariant: what comes in is never collected, so a listing of millions takes no memory. Not here: what is done with each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from anvil.base.errors import AnvilError
from anvil.base.limits import CLIENT_PARALLEL
from anvil.cli.client import local_failure
from anvil.client import BadCredentials, TokenRejected, Unreachable

T = TypeVar("T")

HOPELESS = (Unreachable, BadCredentials, TokenRejected)  # all others would fail the same way


async def side_by_side(
    items: AsyncIterator[T],
    work: Callable[[T], Awaitable[None]],
    failed: Callable[[T, AnvilError], None] | None = None,
) -> None:
    """`failed` is told of what went wrong with one item, and the others go on; without it the first failure ends all and is raised."""
    turn = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with turn:
                item = await anext(items, None)
            if item is None:
                return
            try:
                await _one(item, work)
            except HOPELESS:
                raise
            except AnvilError as error:
                if failed is None:
                    raise
                failed(item, error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENT_PARALLEL):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _one(item: T, work: Callable[[T], Awaitable[None]]) -> None:
    try:
        await work(item)
    except OSError as error:
        raise local_failure(error) from None
