"""`anvil admin node | layout` against PostgreSQL, with nodes that are rows only: names, decisions, what is counted before one goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from anvil.base.config import Config
from anvil.base.errors import AnvilError, Conflict, InvalidArgument, Unavailable, UnknownName
from anvil.base.limits import LAYOUT_SLICES
from anvil.meta.cluster import ClusterTables, DriveNow, DriveRow
from anvil.meta.holdings import Holdings
from anvil.meta.migrate import Database
from anvil.model.cluster import Holding, NodeState
from anvil.model.layout import LayoutDrive, compute
from anvil.model.scheme import Scheme
from anvil.node.admin_cluster import ClusterAdmin
from tests.postgres_fixture import Postgres

AUDIT: list[tuple[str, str, str]] = []


async def audit(action: str, resource: str, result: str) -> None:
    AUDIT.append((action, resource, result))


def node_id(number: int) -> bytes:
    return bytes([number + 1]) * 16


def drive_id(number: int) -> bytes:
    return bytes([number + 101]) * 16


def region(
    postgres: Postgres, nodes: int, body: Callable[[ClusterAdmin, ClusterTables, asyncpg.Connection, str], Awaitable[None]]
) -> None:
    """Active nodes with a lease and a drive each, in one layout of 4+2."""

    async def main() -> None:
        AUDIT.clear()
        url = await postgres.fresh_async(Database.REGIONAL)
        beside = await asyncpg.connect(url)
        async with ClusterTables(url) as tables:
            await join(tables, range(nodes))
            await tables.begin_layout(lambda _: compute([place(n) for n in range(nodes)], 6, 2))
            try:
                await body(ClusterAdmin(Config(), url, audit), tables, beside, url)
            finally:
                await beside.close()

    asyncio.run(main())


async def join(tables: ClusterTables, numbers: range) -> None:
    for number in numbers:
        await tables.register_node(node_id(number), f"n{number}", "", f"10.0.0.{number}:7443")
        await tables.renew_node(node_id(number), 600.0)
        await tables.set_state(node_id(number), NodeState.ACTIVE, when=[NodeState.JOINING])
        await tables.put_drives(node_id(number), [DriveRow(drive_id(number), "/mnt/a", 1 << 40)])


def place(number: int) -> LayoutDrive:
    return LayoutDrive(drive_id(number), node_id(number), 1 << 40)


async def put(beside: asyncpg.Connection, blob_id: bytes, scheme: Scheme) -> None:
    await beside.execute(
        "INSERT INTO objects (bucket_id, key, version_id, size, etag, blob_id, scheme, stripe_bytes, key_mode) "
        "VALUES (1, $1, $2, 100000, '', $2, $3, 1048576, 1)",
        blob_id.hex(),
        blob_id,
        scheme.pack(),
    )


def test_nodes_are_named_by_name_id_or_its_beginning(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        rows = await admin.node_list()
        assert [(row.name, row.state, row.up, row.drives, row.holds) for row in rows] == [
            (f"n{number}", "active", True, 1, True) for number in range(8)
        ]
        assert sum(row.share for row in rows) == pytest.approx(1)
        for name, kind in (("n9", UnknownName), ("", UnknownName), ("0", InvalidArgument)):
            with pytest.raises(kind):
                await admin.node_drain(name)
        for number, name in ((0, "n0"), (1, node_id(1).hex().upper())):
            assert (await admin.node_drain(name)).node == node_id(number).hex()
        assert not (await admin.node_drain("0101")).changed, "by the beginning, and once more"
        assert [entry[0] for entry in AUDIT] == ["node:drain", "node:drain"]

    region(postgres, 8, body)


def test_of_drives_at_once_as_many_go_as_there_is_room_for(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        answers = await asyncio.gather(*(admin.node_drain(f"n{number}") for number in range(8)), return_exceptions=True)
        refused = [one for one in answers if isinstance(one, AnvilError)]
        assert (len(refused), {type(one) for one in refused}) == (6, {Conflict}), "six nodes of 4+2 stay"
        states = [node.state for node in (await tables.view()).nodes]
        assert (states.count(NodeState.ACTIVE), states.count(NodeState.DRAINING)) == (6, 2)
        assert all("is draining" in one.message for one in refused)
        assert sum(result.startswith("refused: ") for _, _, result in AUDIT) == 6

    region(postgres, 8, body)


def test_a_drain_is_refused_where_the_others_have_no_room(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        await beside.execute("INSERT INTO usage_folded VALUES (1, 1, $1, 0, 0)", 100 << 30)
        await beside.execute("INSERT INTO usage_deltas VALUES (1, 1, 0, 1, $1)", 100 << 30)
        for number in range(8):
            await tables.drives_are(node_id(number), [DriveNow(drive_id(number), True, 1 << 30)])
        with pytest.raises(Conflict, match=r"holds about 37\.5 GiB"):
            await admin.node_drain("n0")
        assert AUDIT[-1][2].startswith("refused: n0")

    region(postgres, 8, body)


def test_a_dead_node_is_removed_unless_data_goes_with_it(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        for number in range(64):
            await put(beside, bytes([number * 4]) * 16, Scheme(4, 2))
        with pytest.raises(Conflict, match="drain"):
            await admin.node_remove("n0", False)
        for number in (0, 1, 2):
            await tables.set_state(node_id(number), NodeState.DOWN, when=[NodeState.ACTIVE])
        with pytest.raises(Conflict, match=r"lose 64 objects .* n1 .*, n2"):
            await admin.node_remove("n0", True)
        await tables.set_state(node_id(2), NodeState.ACTIVE, when=[NodeState.DOWN])
        assert (await admin.node_remove("n0", False)).changed
        assert not (await admin.node_remove("n0", False)).changed
        with pytest.raises(Conflict, match="lose"):
            await admin.node_remove("n2", True)  # with n0, which is not rebuilt yet, and n1

    region(postgres, 6, body)


def test_what_no_layout_names_is_not_counted(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        await put(beside, bytes(16), Scheme(1, 0))
        await join(tables, range(6, 7))
        assert (await admin.node_remove("n6", False)).changed
        shown = await admin.layout_show()
        assert (shown.version, shown.scheme, shown.domain, shown.domains, shown.move) == (1, "4+2", "node", 6, None)
        assert [drive.name for drive in shown.drives] == [f"n{number}" for number in range(6)]

    region(postgres, 6, body)


def test_a_move_is_shown_with_how_far_it_is(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        await join(tables, range(6, 7))
        await tables.begin_layout(lambda before: compute([place(n) for n in range(7)], 6, 2, before))
        move = (await admin.layout_show()).move
        assert move is not None
        assert (move.slices, move.slices_done, move.eta_s, move.writers_behind) == (LAYOUT_SLICES, 0, None, 0)
        for number in range(LAYOUT_SLICES // 4):
            await tables.slice_done(2, number, 10, 1000)
        move = (await admin.layout_show()).move
        assert move is not None and move.eta_s is not None
        assert (move.slices_done, move.shards, move.bytes) == (LAYOUT_SLICES // 4, 160, 16_000)
        assert 0 <= move.eta_s < 600
        assert [(row.version, row.state) for row in await admin.layout_history(10)] == [(2, "current"), (1, "old")]

    region(postgres, 6, body)


def test_what_is_stored_is_counted_by_partition(postgres: Postgres) -> None:
    async def body(admin: ClusterAdmin, tables: ClusterTables, beside: asyncpg.Connection, url: str) -> None:
        blob_id = bytes.fromhex("abc" + "0" * 29)
        await put(beside, blob_id, Scheme(4, 2))
        await beside.execute(
            "INSERT INTO degraded (blob_id, bucket_id, key, version_id, part_number, size, scheme, stripe_bytes, key_mode, missing) "
            "VALUES ($1, 1, 'k', $1, 0, 1, $2, 1, 1, 5)",
            blob_id,
            Scheme(4, 2).pack(),
        )
        async with Holdings(url) as holdings:
            found = await holdings.stored()
        assert found == [Holding(Scheme(4, 2), 0xABC, 0, 1), Holding(Scheme(4, 2), 0xABC, 5, 1)]

    region(postgres, 6, body)


def test_a_region_without_a_layout_says_so(postgres: Postgres) -> None:
    async def main() -> None:
        admin = ClusterAdmin(Config(), await postgres.fresh_async(Database.REGIONAL), audit)
        assert await admin.node_list() == []
        with pytest.raises(Unavailable, match="init-cluster"):
            await admin.layout_show()

    asyncio.run(main())
