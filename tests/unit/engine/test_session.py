"""The writer session's renewal: what ends it, and what must not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from anvil.base.errors import DatabaseUnavailable, WriterFenced
from anvil.engine.session import WriterSession


class Sessions:
    """The two calls it needs; `faults` are raised one after the other by renewals."""

    def __init__(self, faults: list[Exception]) -> None:
        self.faults = faults
        self.opened = 0
        self.renewed = asyncio.Event()

    async def open_session(self, node_id: bytes, worker: int, layout_version: int) -> bytes:
        self.opened += 1
        return self.opened.to_bytes(16, "big")

    async def renew_session(self, session: bytes, layout_version: int) -> bool:
        if self.faults:
            raise self.faults.pop(0)
        self.renewed.set()
        return True


def test_renewal_survives_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.engine.session.SESSION_RENEW_S", 0.001)

    async def main() -> None:
        sessions = Sessions([DatabaseUnavailable(), RuntimeError("what nobody foresaw"), OSError("nor this")])
        session = WriterSession(cast(Any, sessions), bytes(16), 0)
        with pytest.raises(WriterFenced):
            _ = session.current
        first = await session.open()
        keeping = asyncio.create_task(session.keep())
        await asyncio.wait_for(sessions.renewed.wait(), 10)
        assert not keeping.done()
        assert session.current == first
        keeping.cancel()

    asyncio.run(main())


def test_whoever_keeps_the_id_has_the_new_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.engine.session.SESSION_RENEW_S", 0.001)

    class Lost(Sessions):
        async def renew_session(self, session: bytes, layout_version: int) -> bool:
            await super().renew_session(session, layout_version)
            return self.opened > 1

    async def main() -> None:
        sessions = Lost([])
        session = WriterSession(cast(Any, sessions), bytes(16), 0)
        first = await session.open()
        told: list[bytes] = []
        go, waits = asyncio.Event(), asyncio.Event()

        async def opened(new: bytes) -> None:
            told.append(new)
            waits.set()
            await go.wait()

        session.opened = opened
        keeping = asyncio.create_task(session.keep())
        await asyncio.wait_for(waits.wait(), 10)
        with pytest.raises(WriterFenced):
            _ = session.current
        go.set()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert session.current == told[0] != first
                    break
                except WriterFenced:
                    await asyncio.sleep(0)
        assert len(told) == 1
        keeping.cancel()

    asyncio.run(main())


def test_the_layout_of_writes_in_flight_is_reported() -> None:
    """A session begins with the process's layout; renewals, at once when they are hastened, report the oldest in use."""

    class Reports(Sessions):
        def __init__(self) -> None:
            super().__init__([])
            self.reports: list[tuple[str, int]] = []

        async def open_session(self, node_id: bytes, worker: int, layout_version: int) -> bytes:
            self.reports.append(("open", layout_version))
            return await super().open_session(node_id, worker, layout_version)

        async def renew_session(self, session: bytes, layout_version: int) -> bool:
            self.reports.append(("renew", layout_version))
            return await super().renew_session(session, layout_version)

    async def main() -> None:
        sessions, oldest = Reports(), [3]
        session = WriterSession(cast(Any, sessions), bytes(16), 0, lambda: oldest[0], lambda: 4)
        await session.open()
        keeping = asyncio.create_task(session.keep())
        for version in (3, 4):
            oldest[0] = version
            sessions.renewed.clear()
            session.hasten()
            await asyncio.wait_for(sessions.renewed.wait(), 5)
        assert sessions.reports == [("open", 4), ("renew", 3), ("renew", 4)]
        keeping.cancel()

    asyncio.run(main())


def test_a_session_is_replaced_and_kept_for_the_writes_begun_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.engine.session.SESSION_RENEW_S", 0.001)
    monkeypatch.setattr("anvil.engine.session.SESSION_ROTATE_S", 0.05)
    monkeypatch.setattr("anvil.engine.session.SESSION_RETIRE_S", 0.5)

    class Rotating(Sessions):
        def __init__(self) -> None:
            super().__init__([])
            self.seen: dict[bytes, int] = {}
            self.closed: list[bytes] = []

        async def renew_session(self, session: bytes, layout_version: int) -> bool:
            assert session not in self.closed
            self.seen[session] = self.seen.get(session, 0) + 1
            return True

        async def close_session(self, session: bytes) -> None:
            self.closed.append(session)

    async def main() -> None:
        sessions = Rotating()
        session = WriterSession(cast(Any, sessions), bytes(16), 0)
        first = await session.open()
        keeping = asyncio.create_task(session.keep())
        async with asyncio.timeout(10):
            while session.current == first:
                await asyncio.sleep(0)
            renewed = sessions.seen[first]
            while sessions.seen[first] < renewed + 3:  # still renewed, for whoever writes under it
                await asyncio.sleep(0)
            while first not in sessions.closed:
                await asyncio.sleep(0)
        keeping.cancel()
        await session.close()
        assert sorted(sessions.closed) == [number.to_bytes(16, "big") for number in range(1, sessions.opened + 1)]

    asyncio.run(main())
