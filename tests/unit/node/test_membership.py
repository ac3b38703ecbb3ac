"""A node's place in its region, over tables in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from anvil.base.config import StorageConfig
from anvil.base.limits import HOLD_FRESH_S
from anvil.meta.cluster import DriveNow
from anvil.model.cluster import ClusterDrive, ClusterView, NodeRow, NodeState
from anvil.model.layout import LayoutDrive, compute
from anvil.node import membership as module
from anvil.node.membership import Membership
from anvil.node.region import Region

OWN = bytes(16)


class Tables:
    def __init__(self, leads: bool = False) -> None:
        self.leads = leads
        self.renewed = 0
        self.told: list[list[tuple[bool, int]]] = []

    async def __aenter__(self) -> Tables:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def renew_node(self, node_id: bytes, lease_s: float) -> bool:
        self.renewed += 1
        return True

    async def drives_are(self, node_id: bytes, drives: Sequence[DriveNow]) -> None:
        self.told.append([(one.readable, one.free_bytes) for one in drives])

    async def view(self) -> ClusterView:
        return view()

    async def lead(self) -> bool:
        return self.leads


class Folder:
    """What of a local drive is used here."""

    drive_id = bytes(16)
    local = readable = True
    free_bytes = 500


def view() -> ClusterView:
    layout = compute([LayoutDrive(bytes(16), OWN, 1000)], 1, 0)
    return ClusterView(
        (NodeRow(OWN, "n", "", "", NodeState.ACTIVE, 5.0),), (ClusterDrive(bytes(16), OWN, "/d", 1000),), (layout,)
    )


def test_layouts_are_fresh_for_a_moment_after_they_were_asked_for() -> None:
    async def lead(tables: object, seen: ClusterView) -> None:
        raise AssertionError("somebody else leads")

    async def main() -> None:
        uptime_s = 1000.0  # of the machine, whose sleep counts: others change the layout meanwhile
        region = Region(StorageConfig(), OWN, view(), {}, None)
        membership = Membership(lambda changed: Tables(), OWN, region, lead, lambda: uptime_s)  # type: ignore[arg-type,return-value]
        assert not membership.fresh
        await membership.look(Tables())  # type: ignore[arg-type]
        assert membership.fresh
        uptime_s += HOLD_FRESH_S
        assert not membership.fresh

    asyncio.run(main())


def test_a_leaders_turn_that_takes_long_does_not_cost_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODE_RENEW_S", 0.0)
    monkeypatch.setattr(module, "VIEW_EVERY_S", 0.001)

    async def main() -> None:
        tables, turns, ended = Tables(leads=True), 0, False

        async def lead(_: object, seen: ClusterView) -> None:
            nonlocal turns, ended
            turns += 1
            try:
                await asyncio.sleep(60)  # the other database is away
            finally:
                ended = True

        region = Region(StorageConfig(), OWN, view(), {}, None)
        membership = Membership(lambda changed: tables, OWN, region, lead)  # type: ignore[arg-type,return-value]
        running = asyncio.ensure_future(membership.run())
        async with asyncio.timeout(10):
            while tables.renewed < 5:
                await asyncio.sleep(0.001)
        assert (membership.lease.held, turns) == (True, 1), "one turn at a time"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert ended, "nothing is left running"

    asyncio.run(main())


def test_a_drive_that_dies_is_told_of_at_once_and_room_now_and_then() -> None:
    async def lead(tables: object, seen: ClusterView) -> None:
        raise AssertionError("somebody else leads")

    async def main() -> None:
        drive, tables = Folder(), Tables()
        region = Region(StorageConfig(), OWN, view(), {drive.drive_id: drive}, None)  # type: ignore[dict-item]
        membership = Membership(lambda changed: tables, OWN, region, lead)  # type: ignore[arg-type,return-value]
        await membership.look(tables)  # type: ignore[arg-type]
        drive.free_bytes = 400
        await membership.look(tables)  # type: ignore[arg-type]
        assert tables.told == [[(True, 500)]], "room can wait"
        drive.readable = False
        await membership.look(tables)  # type: ignore[arg-type]
        assert tables.told[1:] == [[(False, 400)]]

    asyncio.run(main())
