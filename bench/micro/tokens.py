"""What an access token costs a call: verified for the first time, and remembered, in nanoseconds. Run: python -m bench.micro.tokens"""

from __future__ import annotations

import asyncio
import time

from anvil.auth.tokens import Tokens
from anvil.model.identity import App, Tenant
from bench.figures import figure

CALLS = 5_000
ROUNDS = 5
APP = App(1, Tenant(1, "bench"), "bench", "AKBENCHBENCHBENCH123", "secret", 1, ())


class OneApp:
    """A catalog whose look-up is the dict hit that it mostly is."""

    def __init__(self) -> None:
        self._apps = {APP.access_key: APP}

    async def app(self, access_key: str) -> App | None:
        return self._apps.get(access_key)


async def nanoseconds(remembered: bool) -> float:
    tokens = Tokens("s" * 32, time.time, OneApp())  # type: ignore[arg-type]
    authorization = f"Bearer {tokens.issue(APP)[0]}"
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            if not remembered:
                tokens._verified.clear()
            await tokens.authenticate(authorization)
        best = min(best, time.perf_counter() - began)
    return best / CALLS * 1e9


def main() -> None:
    figure("access token: verified", asyncio.run(nanoseconds(False)), "ns")
    figure("access token: remembered", asyncio.run(nanoseconds(True)), "ns")


if __name__ == "__main__":
    main()
