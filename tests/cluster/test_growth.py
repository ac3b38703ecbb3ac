"""One node becomes several: what is older than a drive or a node gets the safety that they allow."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from anvil.base.limits import COPIES_BYTES_MAX, RAISE_EVERY_S
from anvil.model.scheme import Scheme
from tests.cluster.membership import members
from tests.support.cluster import MOVE_S, AnvilCluster
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all
from tests.support.shards import shards_held

BUCKET = "growing"


def schemes(cluster: AnvilCluster) -> tuple[set[Scheme], set[Scheme]]:
    """Of what is stored as copies, and of what is coded."""
    rows = cluster.sql(
        "SELECT size, scheme FROM objects WHERE blob_id IS NOT NULL AND inline IS NULL "
        "UNION ALL SELECT size, scheme FROM parts WHERE blob_id IS NOT NULL AND inline IS NULL"
    )
    found: tuple[set[Scheme], set[Scheme]] = (set(), set())
    for size, scheme in rows:
        found[size > COPIES_BYTES_MAX].add(Scheme.unpack(scheme))
    return found


def wait_raised(cluster: AnvilCluster, copied: Scheme, coded: Scheme) -> None:
    """The leader looks every RAISE_EVERY_S."""
    wait_until(f"everything is {copied} and {coded}", lambda: schemes(cluster) == ({copied}, {coded}), 2 * RAISE_EVERY_S + MOVE_S)


@pytest.mark.slow  # the leader looks for what is to be raised once a minute
def test_one_node_gets_a_drive_and_two_others(tmp_path: Path, rng: random.Random) -> None:
    with AnvilCluster(tmp_path, nodes=3, start=1) as cluster:
        cluster.s3().create_bucket(Bucket=BUCKET)
        objects = put_all(cluster.s3(), BUCKET, rng)
        assert schemes(cluster) == ({Scheme(1, 0)}, {Scheme(1, 0)}), "one drive"

        added = cluster.add_drive(0)
        cluster.wait_active(deadline_s=MOVE_S)
        wait_raised(cluster, Scheme(1, 1), Scheme(1, 1))
        assert shards_held(added)
        # Nothing is read before the end: what a worker remembers of the parts of an object outlives their blobs, where nothing has a grace.

        members(cluster, 3)
        wait_raised(cluster, Scheme(1, 1), Scheme(2, 1))
        added = cluster.add_drive(1)
        cluster.wait_active(deadline_s=MOVE_S)
        wait_until("the layout has it", lambda: len(cluster.anvil("admin", "layout", "show")["drives"]) == 5, MOVE_S)
        cluster.wait_active(deadline_s=MOVE_S)
        cluster.wait_clean(MOVE_S)
        assert shards_held(added), "it carries its part"
        cluster.kill(rng.randrange(1, 3))
        assert_all(cluster, [number for number in cluster.members if cluster.nodes[number].runs], BUCKET, objects)
