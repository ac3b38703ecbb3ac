"""The tables that say who is in the region, against PostgreSQL: states, leases, changes of layout, leaders, who is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from anvil.base.errors import WriterFenced
from anvil.base.limits import LAYOUT_SLICES
from anvil.meta.cluster import ClusterTables, DriveNow, DriveRow
from anvil.meta.migrate import Database, migrations
from anvil.meta.regional import RegionalStore
from anvil.model.cluster import ClusterDrive, LayoutState, NodeState
from anvil.model.layout import Layout, LayoutDrive
from tests.postgres_fixture import Postgres

A, B, C = (bytes([n]) * 16 for n in b"abc")
LIVE = (NodeState.JOINING, NodeState.ACTIVE, NodeState.DRAINING)


@asynccontextmanager
async def tables(postgres: Postgres, *, many: int = 1) -> AsyncIterator[tuple[asyncpg.Connection, list[ClusterTables], str]]:
    """A connection beside, and so many tables on one fresh database."""
    url = await postgres.fresh_async(Database.REGIONAL)
    async with AsyncExitStack() as opened:
        beside = await asyncpg.connect(url)
        opened.push_async_callback(beside.close)
        yield beside, [await opened.enter_async_context(ClusterTables(url)) for _ in range(many)], url


def layout(version: int) -> Layout:
    return Layout(version, 1, (LayoutDrive(bytes(16), A, 1),), bytes(8192))


def successor(current: Layout | None) -> Layout:
    return layout(1 if current is None else current.version + 1)


def test_a_database_is_of_the_region_that_came_first(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres, many=2) as (_, both, _):
            found = await asyncio.gather(both[0].belongs_to("us-1"), both[1].belongs_to("eu-1"))
            assert found[0] == found[1] in ("us-1", "eu-1")
            assert await both[0].belongs_to("mars-1") == found[0]

    asyncio.run(main())


def test_a_node_joins_rests_and_joins_again(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], _):
            await region.register_node(A, "one", "rack 1", "127.0.0.1:7443")
            [node] = (await region.view()).nodes
            assert (node.node_id, node.name, node.zone, node.address) == (A, "one", "rack 1", "127.0.0.1:7443")
            assert (node.state, node.lease_left_s) == (NodeState.JOINING, None)
            assert await region.mark_down() == [], "it never had a lease"

            assert await region.renew_node(A, 60.0)
            assert not await region.renew_node(B, 60.0), "nobody knows it"
            assert await region.set_state(A, NodeState.ACTIVE, when=[NodeState.JOINING])
            assert not await region.set_state(A, NodeState.ACTIVE, when=[NodeState.JOINING]), "it is active already"
            await region.register_node(A, "one", "rack 2", "127.0.0.1:7443")
            [node] = (await region.view()).nodes
            assert (node.zone, node.state) == ("rack 2", NodeState.ACTIVE), "a restart changes no state"
            assert node.lease_left_s is not None
            assert 0 < node.lease_left_s <= 60
            assert node.leased

            assert await region.mark_down() == []
            assert await region.renew_node(A, -1.0)
            assert await region.mark_down() == [A]
            [node] = (await region.view()).nodes
            assert 0 <= node.state_s < 30, "since now, however long its lease was over"
            assert await region.mark_down() == []
            assert await region.renew_node(A, 60.0), "its lease runs again"
            assert (await region.view()).nodes[0].state is NodeState.DOWN, "but only a leader takes it back"

            assert await region.renew_node(A, -1.0)
            await region.register_node(A, "one")
            [node] = (await region.view()).nodes
            assert (node.state, node.leased) == (NodeState.DOWN, False), "starting may take long: it is not back yet"
            assert node.lease_left_s is not None, "so it is still known since when"

            assert await region.set_state(A, NodeState.DRAINING, when=[NodeState.DOWN])
            assert await region.mark_down() == [], "that it leaves is not forgotten"
            await region.register_node(A, "one")
            assert (await region.view()).nodes[0].state is NodeState.DRAINING

            assert await region.set_state(A, NodeState.REMOVED, when=LIVE)
            assert not await region.renew_node(A, 60.0)
            await region.register_node(A, "one")
            [node] = (await region.view()).nodes
            assert (node.state, node.lease_left_s) == (NodeState.JOINING, None)
            assert await region.renew_node(A, 60.0)
            with pytest.raises(asyncpg.CheckViolationError):
                await beside.execute("UPDATE nodes SET state = 'elsewhere'")

    asyncio.run(main())


def test_a_state_says_since_when(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], _):
            await region.register_node(A, "one")
            await beside.execute("UPDATE nodes SET since_us = 1")
            await region.register_node(A, "one")
            await region.renew_node(A, -1.0)
            assert (await region.view()).nodes[0].since_us == 1
            assert await region.mark_down() == [A]
            assert (await region.view()).nodes[0].since_us > 1_600_000_000_000_000

    asyncio.run(main())


def test_a_renewal_stays_on_its_page(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], _):
            for n in range(64):
                await region.register_node(bytes([n]) * 16, "node", "zone", "127.0.0.1:7443")
            await beside.execute("VACUUM nodes")
            await beside.execute("SELECT pg_stat_force_next_flush()")
            before = await beside.fetchrow("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'")
            for n in range(64):
                await beside.execute("UPDATE nodes SET lease_until = clock_timestamp() WHERE node_id = $1", bytes([n]) * 16)
            await beside.execute("SELECT pg_stat_force_next_flush()")
            after = await beside.fetchrow("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'")
            assert [new - old for old, new in zip(before, after, strict=True)] == [64, 64]

    asyncio.run(main())


def test_a_view_is_whole_and_reads_layouts_once(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], _):
            assert (await region.view()).nodes == ()
            await region.register_node(B, 'two "quoted" \\ \u00fc', "", "")
            await region.register_node(A, "one", "z", "h:1")
            await region.put_drives(
                A, [DriveRow(C, "/d2", 2**62), DriveRow(B, "/d1", 10, "failed"), DriveRow(A, "/d0", 1, "gone")]
            )
            assert await region.begin_layout(successor) == layout(1)
            view = await region.view()
            assert [node.name for node in view.nodes] == ["one", 'two "quoted" \\ \u00fc']
            assert view.drives == (ClusterDrive(B, A, "/d1", 10, "failed"), ClusterDrive(C, A, "/d2", 2**62, "active"))
            assert view.layouts == (layout(1),)
            await beside.execute("UPDATE layouts SET packed = ''")
            assert (await region.view()).layout == layout(1), "it is not read again"
            assert (await region.view()).shape == view.shape
            await region.put_drives(B, [DriveRow(C, "/moved", 3)])
            assert (await region.view()).drives[1] == ClusterDrive(C, B, "/moved", 3, "active")
            assert await region.drives(B) == (DriveRow(C, "/moved", 3),)
            await region.set_empty(C, True, 0)
            assert (await region.view()).drives[1].empty is None, "it may have been in use since"
            await region.set_empty(C, True, 1)
            assert (await region.view()).drives[1].empty is True
            await region.put_drives(B, [DriveRow(C, "/moved", 3)])
            assert (await region.view()).drives[1].empty is None, "its node has started anew, and may be written to again"
            await region.put_drives(B, [])

    asyncio.run(main())


def test_a_layout_follows_only_once_the_last_was_moved(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (_, [region], _):
            assert await region.begin_layout(lambda current: None) is None
            assert await region.begin_layout(successor) == layout(1)
            assert await region.slices(1) == [], "there was nothing to move"
            assert not await region.retire(1)
            assert await region.begin_layout(successor) == layout(2)
            assert [old.version for old in (await region.view()).layouts] == [1, 2]
            assert await region.begin_layout(successor) is None, "layout 1 is not retired"

            slices = await region.slices(2)
            assert [(row.version, row.number, row.done_us) for row in slices] == [(2, n, None) for n in range(LAYOUT_SLICES)]
            await region.slice_progress(2, 0, 5, 500)
            for number in range(LAYOUT_SLICES):
                assert not await region.retire(2)
                await region.slice_done(2, number, 1, 10)
            await region.slice_done(2, 0, 1000, 1000)
            first = (await region.slices(2))[0]
            assert (first.shards, first.bytes) == (6, 510), "done is done"
            assert first.done_us is not None
            assert not await region.retire(1)
            assert not await region.retire(3)
            assert await region.retire(2)
            assert not await region.retire(2)
            assert [kept.version for kept in (await region.view()).layouts] == [2]
            assert await region.begin_layout(successor) == layout(3)
            assert [(row.version, row.state, row.slices, row.slices_done) for row in await region.history()] == [
                (3, LayoutState.CURRENT, LAYOUT_SLICES, 0),
                (2, LayoutState.OLD, LAYOUT_SLICES, LAYOUT_SLICES),
                (1, LayoutState.RETIRED, 0, 0),
            ]
            assert (await region.history())[1].bytes == 500 + 10 * LAYOUT_SLICES

    asyncio.run(main())


def test_of_several_that_begin_a_layout_one_does(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres, many=4) as (_, regions, _):
            for version in (1, 2):

                def up_to(current: Layout | None, last: int = version) -> Layout | None:
                    """Whoever comes so late that he sees what another did, has nothing to do."""
                    return successor(current) if current is None or current.version < last else None

                made = await asyncio.gather(*(region.begin_layout(up_to) for region in regions))
                assert [each for each in made if each is not None] == [layout(version)]
            assert [row.state for row in await regions[0].history()] == [LayoutState.CURRENT, LayoutState.OLD]
            assert len(await regions[0].slices(2)) == LAYOUT_SLICES

    asyncio.run(main())


def test_a_node_alone_goes_on_beside_old_layouts(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres, many=2) as (_, regions, _):
            until = 4

            def one_more(current: Layout | None) -> Layout | None:
                return None if current is not None and current.version == until else successor(current)

            for _ in range(until):
                await asyncio.gather(*(region.advance_layout(one_more) for region in regions))
            assert (await regions[0].advance_layout(one_more)).version == until
            assert [row.version for row in await regions[0].history()] == [4, 3, 2, 1]
            for number in range(LAYOUT_SLICES):
                await regions[0].slice_done(until, number, 0, 0)
            assert await regions[0].retire(until)
            assert [kept.version for kept in (await regions[1].view()).layouts] == [until]

    asyncio.run(main())


def test_a_database_that_was_set_back_gives_another_view(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], _):
            await region.begin_layout(successor)
            before = await region.view()
            await beside.execute("DELETE FROM layouts")
            await region.begin_layout(successor)
            after = await region.view()
            assert after.layout.version == before.layout.version and after.shape != before.shape

    asyncio.run(main())


def test_one_leads_until_its_connection_ends(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres, many=2) as (beside, [first, second], _):
            assert await first.lead()
            assert not await second.lead()
            assert await first.lead()
            await beside.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            async with asyncio.timeout(10):
                while not await second.lead():
                    await asyncio.sleep(0.01)
            assert not await first.lead(), "it has another connection, and lost the lock with the old one"
            assert (await first.view()).nodes == ()

    asyncio.run(main())


def test_a_leader_that_hangs_is_followed_by_another(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (_, [second], url), ClusterTables(url, idle_s=0.2) as hung:
            assert await hung.lead()
            async with asyncio.timeout(10):
                while not await second.lead():
                    await asyncio.sleep(0.01)
            assert not await hung.lead(), "when it goes on it has another connection"
            assert (await hung.view()).nodes == ()

    asyncio.run(main())


def test_who_listens_is_told_of_changes_but_not_of_leases(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres, many=1) as (beside, [region], url):
            told = asyncio.Event()
            async with ClusterTables(url, changed=told.set):
                assert told.is_set(), "whatever was before"
                marks = iter(range(1000))

                async def after(change: Callable[[], object]) -> bool:
                    """Whether `change` tells anybody. Notifications come in the order of commits: a later one of a channel beside marks
                    the end."""
                    told.clear()
                    await change()  # type: ignore[misc]
                    mark = str(next(marks))
                    ended = asyncio.Event()
                    listener = lambda *args: ended.set() if args[3] == mark else None  # noqa: E731
                    await beside.add_listener("mark", listener)
                    await beside.execute("SELECT pg_notify('mark', $1)", mark)
                    await asyncio.wait_for(ended.wait(), 10)
                    await beside.remove_listener("mark", listener)
                    try:
                        await asyncio.wait_for(told.wait(), 0.2)
                    except TimeoutError:
                        return False
                    return True

                assert await after(lambda: region.register_node(A, "one", "z", "h:1"))
                assert not await after(lambda: region.register_node(A, "one", "z", "h:1"))
                assert not await after(lambda: region.renew_node(A, -1.0))
                assert await after(region.mark_down)
                assert not await after(region.mark_down)
                assert not await after(lambda: region.register_node(A, "one", "z", "h:1"))
                assert await after(lambda: region.register_node(A, "one", "z", "h:2"))
                assert await after(lambda: region.put_drives(A, [DriveRow(C, "/d", 1)]))
                assert not await after(lambda: region.put_drives(A, [DriveRow(C, "/d", 1)]))
                assert await after(lambda: region.put_drives(A, [DriveRow(C, "/d", 1, "failed")]))
                assert await after(lambda: region.begin_layout(successor))
                assert await after(lambda: region.begin_layout(successor))
                assert not await after(lambda: region.slice_done(2, 0, 1, 1))
                await beside.execute("UPDATE layout_slices SET done_us = 1")
                assert await after(lambda: region.retire(2))
                assert not await after(lambda: region.retire(2))

    asyncio.run(main())


def test_sessions_report_the_layout_they_write_by(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (_, [region], url):
            store = RegionalStore(url)
            await store.start()
            try:
                early = await store.open_session(A, 0)
                await region.begin_layout(successor)
                assert await region.sessions_behind(1) == 1, "opened before there was any"
                reads_next = await store.open_session(A, 1)
                follows = await store.open_session(A, 2, 1)
                assert await region.sessions_behind(1) == 1
                assert await store.renew_session(early, 1)
                assert await region.sessions_behind(1) == 0

                await region.begin_layout(successor)
                assert await region.sessions_behind(2) == 3
                with pytest.raises(WriterFenced):
                    await store.open_session(A, 3, 1)
                await store.open_session(A, 3)
                await store.open_session(A, 4, 2)
                assert await region.sessions_behind(2) == 3
                assert await store.renew_session(early)
                assert await store.renew_session(reads_next, 1)
                assert await store.renew_session(follows, 2)
                assert await region.sessions_behind(2) == 2
                await store.renew_session(follows, 1)
                assert await region.sessions_behind(2) == 2, "what was reported holds"
                await store.close_session(early)
                await store.fence(A, 1)
                assert await region.sessions_behind(2) == 0
            finally:
                await store.close()

    asyncio.run(main())


def test_a_node_that_was_removed_writes_no_more(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], url):
            store = RegionalStore(url)
            await store.start()
            try:
                for node in (A, B):
                    await region.register_node(node, "one")
                mine, other = await store.open_session(A, 0), await store.open_session(B, 0)
                assert await region.set_state(A, NodeState.REMOVED, when=LIVE)
                assert not await store.renew_session(mine)
                assert await store.renew_session(other)
                with pytest.raises(WriterFenced):
                    await store.open_session(A, 0)

                await region.register_node(A, "one")
                late = await store.open_session(A, 0)
                await beside.execute("UPDATE nodes SET state = 'removed' WHERE node_id = $1", A)
                assert list(await store.expire_sessions()) == [late], "one that was being opened meanwhile"
                assert await store.live_sessions() == {other}
            finally:
                await store.close()

    asyncio.run(main())


def test_no_session_opens_unseen_while_the_layout_changes(postgres: Postgres) -> None:
    async def main() -> None:
        async with tables(postgres) as (beside, [region], url):
            await region.begin_layout(successor)
            store = RegionalStore(url)
            await store.start()
            try:
                # An opening that has not committed yet holds the change up, and is counted after it.
                async with beside.transaction():
                    opened = "SELECT open_session($1, $2, 7, 1, interval '30 s')"
                    assert await beside.fetchval(opened, os.urandom(16), A)
                    changing = asyncio.create_task(region.begin_layout(successor))
                    await waiting(postgres, url)
                    assert not changing.done()
                assert await changing == layout(2)
                assert await region.sessions_behind(2) == 1

                # An opening that waits for a change sees it: one who went by the layout before is refused, one who read none is not.
                async with beside.transaction():
                    await beside.execute("UPDATE layouts SET state = 'old' WHERE state = 'current'")
                    await beside.execute(
                        "INSERT INTO layouts (version, state, packed) VALUES (3, 'current', $1)", layout(3).pack()
                    )
                    stale = asyncio.create_task(store.open_session(A, 8, 2))
                    await waiting(postgres, url)
                with pytest.raises(WriterFenced):
                    await stale
                async with beside.transaction():
                    await beside.execute("UPDATE layouts SET state = 'old' WHERE state = 'current'")
                    await beside.execute(
                        "INSERT INTO layouts (version, state, packed) VALUES (4, 'current', $1)", layout(4).pack()
                    )
                    fresh = asyncio.create_task(store.open_session(A, 9))
                    await waiting(postgres, url)
                session = await fresh
                assert await beside.fetchval("SELECT layout_version FROM writer_sessions WHERE session_id = $1", session) == 4
            finally:
                await store.close()

    asyncio.run(main())


async def waiting(postgres: Postgres, url: str) -> None:
    """Until some statement of that database waits for a lock."""
    watch = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(10):
            while not await watch.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.01)
    finally:
        await watch.close()


def test_a_database_of_one_node_is_taken_over(postgres: Postgres) -> None:
    """Before migration 5 layouts were never retired: the newest old one is to be moved, what is older is over."""

    async def main() -> None:
        await postgres.execute("DROP DATABASE IF EXISTS regional_before")
        await postgres.execute("CREATE DATABASE regional_before TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        connection = await asyncpg.connect(postgres.cluster.url("regional_before"))
        try:
            files = migrations(Database.REGIONAL)
            for migration in files[:4]:
                await connection.execute(migration.sql)
            await connection.execute("INSERT INTO nodes (node_id, name, state) VALUES ($1, 'one', 'active')", A)
            for version, state in ((1, "old"), (2, "old"), (3, "current")):
                await connection.execute("INSERT INTO layouts (version, state, packed) VALUES ($1, $2, '')", version, state)
            await connection.execute(files[4].sql)
            rows = await connection.fetch("SELECT version, state FROM layouts ORDER BY version")
            assert [tuple(row) for row in rows] == [(1, "retired"), (2, "old"), (3, "current")]
            slices = "SELECT count(*) FROM layout_slices WHERE version = 3 AND done_us IS NULL"
            assert await connection.fetchval(slices) == LAYOUT_SLICES
        finally:
            await connection.close()

    asyncio.run(main())


def test_a_node_says_how_its_own_drives_are(postgres: Postgres) -> None:
    one, gone, others = (bytes([n]) * 16 for n in (1, 2, 3))

    async def main() -> None:
        told = 0

        def count() -> None:
            nonlocal told
            told += 1

        async with tables(postgres) as (_, [region], url):
            for node in (A, B):
                await region.register_node(node, "n", "", "h:1")
            await region.put_drives(A, [DriveRow(one, "/a", 1000), DriveRow(gone, "/b", 1000, "gone")])
            await region.put_drives(B, [DriveRow(others, "/a", 1000)])

            async def states() -> dict[bytes, tuple[str, int | None]]:
                return {drive.drive_id: (drive.state, drive.free_bytes) for drive in (await region.view()).drives}

            assert await states() == {one: ("active", None), others: ("active", None)}
            before = (await region.view()).shape
            await region.drives_are(A, [DriveNow(drive_id, True, 700) for drive_id in (one, gone, others)])
            assert await states() == {one: ("active", 700), others: ("active", None)}
            assert (await region.view()).shape == before, "nobody follows that"
            await region.drives_are(A, [DriveNow(one, False, 700)])
            assert (await states())[one] == ("failed", 700)
            async with ClusterTables(url, changed=count):
                told = 0
                await region.drives_are(A, [DriveNow(one, False, 600)])
                await region.drives_are(A, [DriveNow(one, True, 600)])
                async with asyncio.timeout(10):
                    while not told:
                        await asyncio.sleep(0.01)
                assert told == 1, "room tells nobody"
            assert (await states())[one] == ("active", 600), "it came back"
            assert await region.stored_bytes() == 0

    asyncio.run(main())
