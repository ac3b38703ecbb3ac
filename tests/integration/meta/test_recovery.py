"""Holds, recovery mode and epochs in the regional database: what lets something be removed, and who may write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from anvil.base.errors import Conflict, WriterFenced
from anvil.meta.migrate import Database
from anvil.meta.recovery import Checked, Recovery, RegionNotes, State
from anvil.meta.regional import RegionalStore
from anvil.node.restoring import assert_may_end
from tests.postgres_fixture import Postgres

NODE = b"n" * 16


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.meta.recovery.HOLD_SETTLE_S", 0.0)


def on_store(postgres: Postgres, scenario: Callable[[RegionalStore, RegionNotes], Coroutine[Any, Any, None]]) -> str:
    url = postgres.fresh(Database.REGIONAL)

    async def main() -> None:
        store = RegionalStore(url)
        await store.start()
        try:
            await scenario(store, RegionNotes(store.query))
        finally:
            await store.close()

    asyncio.run(main())
    return url


def test_holds_of_two_do_not_end_each_other_and_end_by_themselves(postgres: Postgres) -> None:
    async def scenario(store: RegionalStore, notes: RegionNotes) -> None:
        async def allowed() -> bool:
            return await store.removal_allowed(0.0)

        assert await allowed()
        await notes.hold("a", "backup 1")
        await notes.hold("b", "backup 2")
        assert [hold.by for hold in (await notes.state()).holds] == ["backup 1", "backup 2"]
        assert await notes.release("a") and not await notes.release("a")
        assert not await allowed(), "the other one still holds"
        assert await notes.renew("b") and await notes.release("b") and not await notes.renew("b")
        assert await allowed()
        await notes.hold("dead", "backup 3", lease_s=0.0)
        assert await allowed() and not (await notes.state()).holds, "whoever died holds nothing"
        assert not await notes.renew("dead"), "and learns of it"
        await store.query("INSERT INTO settings (name, value) VALUES ('backup_hold', to_jsonb('by hand'::text))")
        assert not await allowed()
        assert [hold.until_us for hold in (await notes.state()).holds] == [None]

    on_store(postgres, scenario)


def test_recovery_mode_holds_and_its_end_begins_the_grace(postgres: Postgres) -> None:
    async def scenario(store: RegionalStore, notes: RegionNotes) -> None:
        assert await store.removal_allowed(0.0)
        await store.query("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch'")
        assert await store.removal_allowed(3600.0)
        await notes.hold("operator", "the backup that made the dump")
        assert await notes.begin_recovery() and not await notes.begin_recovery()
        assert not (await notes.state()).holds
        assert not await store.removal_allowed(0.0)
        await store.query("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch'")
        assert not await store.removal_allowed(3600.0), "however long ago the restore was"
        assert await notes.end_recovery() and not await notes.end_recovery()
        assert await store.removal_allowed(0.0) and not await store.removal_allowed(3600.0)

    on_store(postgres, scenario)


def test_who_started_before_a_restore_writes_nothing_more(postgres: Postgres) -> None:
    async def scenario(store: RegionalStore, notes: RegionNotes) -> None:
        session = await store.open_session(NODE, 0)
        assert await store.renew_session(session)
        await notes.begin_recovery()
        assert not await store.renew_session(session)
        with pytest.raises(WriterFenced):
            await store.open_session(NODE, 0)
        again = RegionalStore(store._misc._url)
        await again.start()
        fresh = await again.open_session(NODE, 0)
        assert await again.renew_session(fresh)
        await store.query("UPDATE settings SET value = '7' WHERE name = 'cluster_epoch'")
        assert not await again.renew_session(fresh), "a session that was restored with the dump is no session"
        await again.close()

    on_store(postgres, scenario)


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ("UPDATE settings SET value = jsonb_set(value, '{0}', '\"1\"') WHERE name = 'gc_epoch'", "another system identifier"),
        ("UPDATE settings SET value = jsonb_set(value, '{1}', '\"00000000\"') WHERE name = 'gc_epoch'", "another timeline"),
        ("INSERT INTO settings (name, value) VALUES ('cluster_epoch', '3')", "another epoch"),
    ],
)
def test_nothing_is_collected_for_the_grace_after_the_history_branched(postgres: Postgres, change: str, since: str) -> None:
    async def scenario(store: RegionalStore, notes: RegionNotes) -> None:
        assert await store.removal_allowed(0.0)
        await store.query("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch'")
        assert await store.removal_allowed(3600.0)
        await store.query(change)
        assert not await store.removal_allowed(3600.0), since
        assert not await store.removal_allowed(3600.0), "nor when asked again"
        await store.query("UPDATE settings SET changed_us = now_us() - 3601 * 1000000::bigint WHERE name = 'gc_epoch'")
        assert await store.removal_allowed(3600.0)

    on_store(postgres, scenario)


def test_what_is_remembered(postgres: Postgres) -> None:
    async def scenario(store: RegionalStore, notes: RegionNotes) -> None:
        assert await notes.state() == State()
        await notes.note_backup(1_700_000_000_000_000)
        await notes.note_fsck(Checked(5, False, {"orphans": 2}, ("d1",)))
        state = await notes.state()
        assert (state.last_backup_us, state.fsck) == (1_700_000_000_000_000, Checked(5, False, {"orphans": 2}, ("d1",)))
        assert (await store.query("SELECT value::text FROM settings WHERE name = 'last_backup'"))[0][0] == (
            '{"finished_us": 1700000000000000}'
        )

    on_store(postgres, scenario)


def test_what_may_end_recovery_mode() -> None:
    recovery = Recovery(100, snapshot="s")
    assert_may_end(State(), False)
    for state, why in (
        (State(recovery), "nothing was checked"),
        (State(recovery, Checked(99, True)), "nothing was checked"),
        (State(recovery, Checked(101, False, {"lost": 2, "orphans": 1})), "1 orphans, 2 lost|2 lost, 1 orphans"),
        (State(recovery, Checked(101, False, {}, ("d7",))), "d7"),
        (State(recovery, Checked(101, False, {"orphans": 3})), "3 shards belong to no row"),
    ):
        with pytest.raises(Conflict, match=why):
            assert_may_end(state, False)
        assert_may_end(state, True)
    assert_may_end(State(recovery, Checked(101, True)), False)
    for force in (False, True):
        with pytest.raises(Conflict, match="salvage end"):
            assert_may_end(State(Recovery(100), Checked(101, True)), force)
