"""What an operator does to make a cluster larger and smaller, and waits for."""

from __future__ import annotations

import subprocess

from tests.support.cluster import AnvilCluster
from tests.support.node import wait_until

MOVE_S = 240.0


def admin(cluster: AnvilCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    by = cluster.members[0]
    return cluster.nodes[by].anvil("admin", *arguments, timeout_s=120)


def drain(cluster: AnvilCluster, number: int) -> subprocess.CompletedProcess[str]:
    return admin(cluster, "node", "drain", cluster.node_id(number).hex())


def wait_drained(cluster: AnvilCluster, number: int) -> None:
    """Until no layout names it any more."""
    wanted = cluster.node_id(number).hex()
    by = next(one for one in cluster.members if one != number)

    def through() -> bool:
        [row] = [row for row in cluster.anvil("admin", "node", "list", by=by) if row["node"] == wanted]
        return not row["holds"]

    wait_until(f"node {number} holds nothing any more", through, MOVE_S)


def leave(cluster: AnvilCluster, number: int) -> None:
    """Stop and remove a node that is being drained, once it holds nothing."""
    wait_drained(cluster, number)
    cluster.left.add(number)
    cluster.stop(number)
    done = admin(cluster, "node", "remove", cluster.node_id(number).hex(), "--yes")
    assert done.returncode == 0, done.stderr
    assert cluster.state(number) == "removed"
    cluster.wait_active()


def members(cluster: AnvilCluster, count: int) -> list[int]:
    """Exactly so many: others join or drain first."""
    while len(cluster.members) < count:
        waiting = [number for number, node in enumerate(cluster.nodes) if not node.launched]
        cluster.start(waiting[0] if waiting else cluster.add_node())
        cluster.wait_active(deadline_s=MOVE_S)
    while len(cluster.members) > count:
        last = cluster.members[-1]
        assert drain(cluster, last).returncode == 0
        leave(cluster, last)
    return cluster.members
