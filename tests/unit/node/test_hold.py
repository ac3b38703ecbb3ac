"""The hold on removals: what is known, for how long it counts, and what is assumed otherwise."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from anvil.base.errors import DatabaseUnavailable
from anvil.base.limits import HOLD_FRESH_S, HOLD_SETTLE_S
from anvil.node.upkeep import Hold


class Database:
    def __init__(self) -> None:
        self.allowed = True
        self.fails = False
        self.answer: asyncio.Event | None = None

    async def removal_allowed(self, grace_s: float) -> bool:
        if self.fails:
            raise DatabaseUnavailable
        allowed = self.allowed
        if self.answer is not None:
            await self.answer.wait()
        return allowed


def test_an_answer_counts_from_the_question_on_and_not_for_long() -> None:
    async def main() -> None:
        now = [1000.0]
        database = Database()
        hold = Hold(cast(Any, database), 0.0, lambda: now[0])
        assert hold(), "nobody asked yet"
        await hold.refresh()
        assert not hold()
        now[0] += HOLD_FRESH_S - 0.1
        assert not hold()
        now[0] += 0.1
        assert hold()

        database.answer = asyncio.Event()
        asking = asyncio.create_task(hold.refresh())
        await asyncio.sleep(0)
        now[0] += HOLD_FRESH_S
        database.allowed = False  # a backup began while the answer was on its way
        database.answer.set()
        await asking
        assert hold(), "the answer is as old as the question"

        database.allowed, database.answer = True, None
        await hold.refresh()
        database.fails = True
        with pytest.raises(DatabaseUnavailable):
            await hold.refresh()
        assert hold()

    asyncio.run(main())


def test_whoever_sets_it_waits_longer_than_any_answer_counts() -> None:
    assert HOLD_SETTLE_S > HOLD_FRESH_S


def test_it_is_kept_fresh_whatever_the_database_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.node.upkeep.HOLD_REFRESH_S", 0.001)

    async def main() -> None:
        database = Database()
        database.fails = True
        hold = Hold(cast(Any, database), 0.0)
        keeping = asyncio.create_task(hold.keep())
        await asyncio.sleep(0)
        assert hold()
        database.fails = False
        async with asyncio.timeout(10):
            while hold():
                await asyncio.sleep(0)
            database.allowed = False
            while not hold():
                await asyncio.sleep(0)
        keeping.cancel()

    asyncio.run(main())
