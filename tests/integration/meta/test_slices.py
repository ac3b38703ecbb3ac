"""What is said to be due of a slice is what is handed out of it."""

from __future__ import annotations

import asyncio

import pytest

from anvil.base.limits import LAYOUT_SLICES, WORK_SLICES
from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from tests.contract.metadata_world import world
from tests.postgres_fixture import Postgres


@pytest.mark.parametrize("slices", [1, WORK_SLICES, LAYOUT_SLICES])
def test_due_slices_are_those_that_hand_something_out(postgres: Postgres, slices: int) -> None:
    url = postgres.fresh(Database.REGIONAL)

    async def main() -> None:
        async with world(url) as w:
            store = w.store
            assert isinstance(store, RegionalStore)
            assert await store.due_slices(slices, 0.0) == ([], [])
            for number in range(12):
                await store.put_object(w.put(f"gone/{number}"))
                await store.put_object(w.put(f"short/{number}", missing=1))
            for number in range(12):
                await w.delete(f"gone/{number}")
            garbage, debts = await store.due_slices(slices, 0.0)
            assert sorted(garbage) == [n for n in range(slices) if await store.garbage(100, 0.0, n, slices)]
            assert sorted(debts) == [n for n in range(slices) if await store.debts(100, n, slices)]
            blobs = [item.blob_id for n in garbage for item in await store.garbage(100, 0.0, n, slices)]
            assert len(blobs) == len(set(blobs)) == 12
            young, still = await store.due_slices(slices, 3600.0)
            assert (young, sorted(still)) == ([], sorted(debts))

    asyncio.run(main())
