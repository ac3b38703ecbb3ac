"""A repository whose disk hangs: removals go on, the job is over, and the next one is done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from anvil.backup.repository import Repository
from anvil.meta.migrate import Database
from anvil.meta.recovery import RegionNotes
from anvil.node import backups, jobs
from anvil.node.jobs import BackupWanted, Jobs, JobState
from tests.integration.backup.test_parts import at_once, backup_of, url_of
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench

__all__ = ["at_once"]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set once somebody hangs in a call of the first repository; every call there hangs until the test is over."""
    met, over, real = threading.Event(), threading.Event(), Repository.packs

    def packs(self: Repository, told: Callable[[], None]) -> Any:
        if self.path.name == "hung":
            met.set()
            over.wait()
        return real(self, told)

    monkeypatch.setattr(Repository, "packs", packs)
    monkeypatch.setattr(jobs, "JOB_CANCEL_S", 0.1)
    yield met
    over.set()


async def call(made: Jobs, name: str, wanted: object = None) -> Any:
    return await made.handlers[name](cast(Any, None), msgspec.Raw(msgspec.msgpack.encode(wanted)))


async def until_over(made: Jobs) -> JobState:
    deadline = time.monotonic() + 30
    while not (state := await call(made, "job.state")).over:
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.02)
    return cast(JobState, state)


@pytest.mark.parametrize("how", ["cancelled", "stalled"])
def test_a_hung_backup_is_given_up(
    postgres: Postgres, tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    global_url = postgres.fresh(Database.GLOBAL)
    if how == "stalled":
        monkeypatch.setattr(backups, "BACKUP_HOLD_RENEW_S", 0.05)
        monkeypatch.setattr(backups, "BACKUP_STALLED_S", 2.0)

    async def scenario(bench: Bench) -> None:
        await bench.put("k", data_of(100_000))
        notes = RegionNotes(bench.metadata.query)
        made = Jobs(backup_of(bench, url_of(bench), global_url), cast(Any, None))
        running = asyncio.create_task(made.run())
        try:
            assert await call(made, "job.cancel") is False
            await call(made, "backup.ask", BackupWanted(str(tmp_path / "hung")))
            assert await asyncio.to_thread(hung.wait, 30)
            [hold] = (await notes.state()).holds
            assert hold.by.startswith("backup ") and await notes.held_s() > 0
            if how == "cancelled":
                assert await call(made, "job.cancel") is True
            state = await until_over(made)
            assert ("cancelled" if how == "cancelled" else "nothing has come on") in state.failed and state.manifest is None
            assert (await notes.state()).holds == () and await notes.held_s() == 0

            number = await call(made, "backup.ask", BackupWanted(str(tmp_path / "other")))
            state = await until_over(made)
            assert state.number == number and state.failed == "" and state.manifest is not None and state.manifest.complete
            assert (await notes.state()).holds == ()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_what_nobody_expects_is_a_failure(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("oops")

    async def scenario(bench: Bench) -> None:
        made = Jobs(backup_of(bench, url_of(bench), ""), cast(Any, None))
        running = asyncio.create_task(made.run())
        monkeypatch.setattr(Repository, "making", fail)
        await call(made, "backup.ask", BackupWanted(str(tmp_path / "r")))
        state = await until_over(made)
        assert "oops" in state.failed and state.error == "Exception"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    on_bench(postgres, tmp_path, scenario, drives=1)
