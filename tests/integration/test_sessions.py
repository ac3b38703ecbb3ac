"""A worker that lost its session and goes on under another: nothing that it writes then may look like a dead writer's leftovers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from anvil.base.errors import WriterFenced
from tests.integration.test_engine import data_of, on_bench, shards_on
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench, Bytes, plain_spec


def names_of_writers(bench: Bench, folder: Path) -> set[bytes]:
    """The sessions that what is being written to names: segments that are not sealed, temporary files."""
    rows = [row for drive in bench.drives for _, row in drive._store.index.segments()]  # type: ignore[union-attr]
    return {row.session for row in rows if not row.sealed} | {
        bytes.fromhex(path.name[:32]) for path in folder.glob("drive*/tmp/*")
    }


def another_than(session: bytes, bench: Bench) -> bytes | None:
    try:
        return bench.session.current if bench.session.current != session else None
    except WriterFenced:
        return None


def test_a_worker_whose_session_was_ended_by_another_process(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anvil.engine.session.SESSION_RENEW_S", 0.01)

    class Slow(Bytes):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.half, self.go = asyncio.Event(), asyncio.Event()

        async def readinto(self, view: memoryview) -> int:
            if len(self._left) < self.length // 2:
                self.half.set()
                await self.go.wait()
            return await super().readinto(view)

    async def scenario(bench: Bench) -> None:
        objects = {f"{when} {size}": data_of(size) for when in ("before", "after") for size in (10_000, 300_000, 3_000_000)}
        for key, data in objects.items():
            if key.startswith("before"):
                await bench.put(key, data)
        first = bench.session.current
        keeping = asyncio.create_task(bench.session.keep())
        await bench.metadata.close_session(first)  # as `anvil server` does with those whose lease ran out
        async with asyncio.timeout(10):
            while another_than(first, bench) is None:
                await asyncio.sleep(0.001)
        for key, data in objects.items():
            if key.startswith("after"):
                await bench.put(key, data)
        body = Slow(data_of(4_000_000))
        slow = asyncio.create_task(bench.engine.put_object(bench.bucket, "slow", body, plain_spec()))
        await body.half.wait()
        live = await bench.metadata.live_sessions()
        assert first not in live
        assert names_of_writers(bench, tmp_path) == live == {bench.session.current}

        for drive in bench.drives:
            assert (await drive.recover(live)).leftovers == 0
        everything = await shards_on(bench)
        assert ((await bench.survey_all()).orphans, await shards_on(bench)) == (0, everything)
        body.go.set()
        await slow
        for key, data in objects.items():
            assert await bench.get(key) == data, key
        assert await bench.get("slow") == data_of(4_000_000)
        assert all(drive.writable for drive in bench.drives)
        keeping.cancel()

    on_bench(postgres, tmp_path, scenario)
