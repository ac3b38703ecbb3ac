"""A fake server per test, and a client of it with small parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from anvil.client import AnvilClient, TransferOptions
from tests.support.fake_grpc import FakeServer

T = TypeVar("T")
KIB = 1024
SMALL = TransferOptions(
    part_bytes=64 * KIB,
    multipart_bytes=100 * KIB,
    range_bytes=64 * KIB,
    ranged_bytes=100 * KIB,
    parallel=3,
    stream_bytes=128 * KIB,
)
Run = Callable[[Callable[[AnvilClient], Awaitable[T]]], T]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(part_bytes_min=64 * KIB) as running:
        running.buckets["b"] = 0.0
        yield running


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs work with a client in a loop of its own."""

    def runner(work: Callable[[AnvilClient], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with AnvilClient(server.host, *server.keys, transfer=SMALL) as client:
                return await work(client)

        return asyncio.run(connected())

    return runner
