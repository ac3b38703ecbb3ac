"""Uploads that fail give back what they held."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from anvil.base.errors import SlowDown, Unavailable
from anvil.meta.migrate import Database
from tests.postgres_fixture import Postgres
from tests.support.engine import SMALL_DRIVE, Bench, engine_bench

SIZE = 8 << 20


class FailingJobs:
    """Of a drive's jobs those that write behind the first stripe: `refused` by the executor, or `failed` by a disk that is full."""

    def __init__(self, jobs: Any, how: str, full: int) -> None:
        self._jobs = jobs
        self._how = how
        self._full = full

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._jobs, name)
        return self._failing(made) if name in ("write", "write_from") else made

    def _failing(self, made: Callable[..., object]) -> Callable[..., object]:
        def make(fd: int, offset: int, *rest: Any) -> object:
            if offset < 100_000:
                return made(fd, offset, *rest)
            if self._how == "refused":
                raise SlowDown
            return made(self._full, offset, *rest)

        return make


@pytest.mark.parametrize("drives", [1, 6])
@pytest.mark.parametrize("how", ["full", "refused", "failed"])
def test_uploads_that_fail_give_their_buffers_back(
    postgres: Postgres, tmp_path: Path, drives: int, how: str, no_collector: None
) -> None:
    url = postgres.fresh(Database.REGIONAL)
    data = random.Random(1).randbytes(SIZE)
    full = os.open("/dev/full", os.O_WRONLY)

    def prepare(bench: Bench) -> None:
        for drive in bench.drives:
            if how != "full":
                drive._io.jobs = FailingJobs(drive._io.jobs, how, full)  # type: ignore[assignment]

    async def main() -> None:
        settings = msgspec.structs.replace(SMALL_DRIVE, floor_bytes=1 << 60) if how == "full" else SMALL_DRIVE
        async with engine_bench(url, tmp_path, drives=drives, settings=settings) as bench:
            buffers: Any = bench.context.buffers
            prepare(bench)
            for round_ in range(3):
                with pytest.raises(Unavailable):
                    await bench.put("k", data)
                while len(bench.context.owned):
                    await asyncio.sleep(0.01)
                for drive in bench.drives:
                    await drive._io.idle()
                    await drive.probe()  # a write that failed made it full
                await asyncio.sleep(0.05)  # tasks that ended are let go of when the loop comes round
                assert buffers.used == 0, f"round {round_}"

    try:
        uvloop.run(main())
    finally:
        os.close(full)
