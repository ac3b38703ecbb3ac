"""A node's place in its region, over tables in memory."""

from __future__ import annotations

import asyncio

from anvil.base.config import StorageConfig
from anvil.base.limits import HOLD_FRESH_S
from anvil.model.cluster import ClusterDrive, ClusterView, NodeRow, NodeState
from anvil.model.layout import LayoutDrive, compute
from anvil.node.membership import Membership
from anvil.node.region import Region

OWN = bytes(16)


class Tables:
    async def renew_node(self, node_id: bytes, lease_s: float) -> bool:
        return True

    async def view(self) -> ClusterView:
        return view()

    async def lead(self) -> bool:
        return False


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
