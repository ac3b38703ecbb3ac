"""A region of three nodes that loses its database, and a drive with it: rebuilt from the drives that are left."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.cluster import AnvilCluster
from tests.support.lost import command, lose_shared_database, start_closed
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all

pytestmark = pytest.mark.slow  # three nodes are started twice, and a drive is rebuilt: more than a minute

BUCKET = "lost-region"


def test_three_nodes_come_back_without_their_database_and_a_drive(tmp_path: Path) -> None:
    rng = random.Random(11)
    with AnvilCluster(tmp_path, nodes=3, env={"ANVIL_SCHEME": "2+1"}) as cluster:
        s3 = cluster.s3(0)
        s3.create_bucket(Bucket=BUCKET)
        objects = put_all(s3, BUCKET, rng)
        s3.put_object(Bucket=BUCKET, Key="deleted", Body=rng.randbytes(80_000))
        s3.delete_object(Bucket=BUCKET, Key="deleted")
        dumped = command(cluster.nodes[1], "salvage", "dump")
        later = {f"later {size}": rng.randbytes(size) for size in (3000, 200_000, 4_000_000)}
        for key, data in later.items():
            s3.put_object(Bucket=BUCKET, Key=key, Body=data)

        for node in cluster.nodes:
            node.stop()
        cluster.wipe_drive(2)
        lose_shared_database(cluster.postgres)
        start_closed(*cluster.nodes)
        cluster.wait_active(range(3))
        report = command(cluster.nodes[1], "fsck", "--rebuild-metadata")
        assert (report["dump"], report["away"], report["unreadable"]) == (dumped["dump"], [], 0)
        assert report["uncertain"] == len(later), report
        command(cluster.nodes[2], "salvage", "accept", "--dump")
        for node in cluster.nodes:
            wait_until("every node is ready", node.is_ready, 30)
        assert_all(cluster, range(3), BUCKET, objects)
        assert command(cluster.nodes[0], "salvage", "accept", "--all")["accepted"] == len(later)
        assert_all(cluster, range(3), BUCKET, {**objects, **later})
        command(cluster.nodes[0], "salvage", "end")
        cluster.nodes[0].anvil("admin", "fsck", "--repair", "--yes", timeout_s=300)  # what the wiped drive had becomes a debt
        cluster.wait_healthy()
        checked = json.loads(cluster.nodes[0].anvil("admin", "fsck", "--json", timeout_s=300).stdout)
        assert {kind for kind in ("missing", "corrupt", "lost", "dangling", "unseen", "misplaced") if checked[kind]} == set()
        cluster.kill(0)
        assert_all(cluster, (1, 2), BUCKET, {**objects, **later})
