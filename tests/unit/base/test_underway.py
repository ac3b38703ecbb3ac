"""What a request waited for is accounted to it, whoever waits on its behalf."""

from __future__ import annotations

import asyncio
from time import perf_counter

from anvil.base.underway import begin, waited


def test_tasks_of_a_request_account_to_it_and_not_to_others() -> None:
    async def serve(name: str, seconds: float) -> dict[str, float]:
        request = begin(name)
        since = perf_counter() - seconds
        waited("metadata", since)
        await asyncio.gather(*(asyncio.create_task(on_a_drive(seconds)) for _ in range(2)))
        return request.waits

    async def on_a_drive(seconds: float) -> None:
        waited("drives", perf_counter() - seconds)

    async def main() -> None:
        waited("metadata", 0.0)  # nobody's
        one, two = await asyncio.gather(asyncio.create_task(serve("one", 1.0)), asyncio.create_task(serve("two", 10.0)))
        assert set(one) == set(two) == {"metadata", "drives"}
        assert 1.0 <= one["metadata"] < 2.0
        assert 2.0 <= one["drives"] < 3.0, "side by side adds up"
        assert 20.0 <= two["drives"] < 21.0

    asyncio.run(main())
