"""Nodes that come and go, as an operator has them do: shared by the tests of it."""

from __future__ import annotations

import subprocess

from tests.support.cluster import MOVE_S, AnvilCluster


def admin(cluster: AnvilCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    by = cluster.members[0]
    return cluster.nodes[by].anvil("admin", *arguments, timeout_s=120)


def members(cluster: AnvilCluster, count: int) -> list[int]:
    """Exactly so many: others join or drain first."""
    while len(cluster.members) < count:
        waiting = [number for number, node in enumerate(cluster.nodes) if not node.launched]
        cluster.start(waiting[0] if waiting else cluster.add_node())
        cluster.wait_active(deadline_s=MOVE_S)
    while len(cluster.members) > count:
        last = cluster.members[-1]
        assert cluster.drain(last).returncode == 0
        cluster.leave(last)
    return cluster.members
