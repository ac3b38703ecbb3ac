"""What is cached of the global database, over a change log in memory."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from anvil.meta import cache as module
from anvil.meta.cache import ChangeCache


def test_who_asks_after_a_change_does_not_go_by_a_reading_that_began_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        log: list[dict[str, Any]] = []
        gate, asked = asyncio.Event(), asyncio.Event()
        gate.set()

        async def read(*_: object, **__: object) -> list[dict[str, Any]]:
            seen = [{"xmin": 7, "kind": None, "name": None}, *log]
            asked.set()
            await gate.wait()
            return seen

        monkeypatch.setattr(module, "call", read)
        rows = {"k": "before"}
        cache = ChangeCache(cast(Any, None), wait_s=1.0)

        async def fetch() -> str:
            return rows["k"]

        assert await cache.get("app", "k", fetch) == "before"
        gate.clear()
        asked.clear()
        cache.hasten()
        under_way = asyncio.create_task(cache.get("app", "k", fetch))  # reads the log, without the change
        await asked.wait()
        rows["k"] = "after"
        log.append({"xmin": 7, "kind": "app", "name": "k"})
        cache.hasten()
        later = asyncio.create_task(cache.get("app", "k", fetch))
        await asyncio.sleep(0)
        gate.set()
        assert await later == "after"
        await under_way
        await cache.close()

    asyncio.run(main())
