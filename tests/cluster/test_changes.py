"""Nodes that join, drain and are removed, under load: nobody notices, nothing is lost, and what would lose data is refused."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from anvil.cli.exits import Exit
from tests.cluster.conftest import Shared, shared
from tests.cluster.membership import admin, members
from tests.support.cluster import MOVE_S, AnvilCluster
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all
from tests.support.uploads import SlowUpload
from tests.support.workload import Workload

pytestmark = pytest.mark.slow  # joins and drains under load: some 10 minutes


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared(tmp_path_factory, nodes=6, env={"ANVIL_REPAIR_DELAY_S": "3600", "ANVIL_SCHEME": "4+2"})


@pytest.fixture
def cluster(growing: Shared, request: pytest.FixtureRequest) -> AnvilCluster:
    return growing.whole(request.session)


@pytest.fixture
def bucket(cluster: AnvilCluster, seed: int) -> str:
    name = f"changes-{seed}-{random.SystemRandom().randrange(1 << 20)}"
    cluster.s3().create_bucket(Bucket=name)
    return name


def test_a_node_joins_under_load(cluster: AnvilCluster, bucket: str, seed: int, rng: random.Random) -> None:
    before = members(cluster, 6)
    cluster.s3().create_bucket(Bucket=f"{bucket}-kept")
    objects = put_all(cluster.s3(before[0]), f"{bucket}-kept", rng)
    with Workload(cluster, bucket, seed=seed, targets=lambda: before) as load:
        load.wait_for(60)
        new = cluster.add_node()
        cluster.start(new)
        cluster.wait_active(deadline_s=MOVE_S)
        load.wait_for(60)
    assert load.failures == []
    load.check(cluster.members)
    assert_all(cluster, cluster.members, f"{bucket}-kept", objects)
    cluster.wait_clean()
    held = sum(cluster.holders(cluster.blobs_of(f"{bucket}-kept", key))[new] for key in objects)
    assert held, "it carries its part"


def test_a_node_drains_under_load(cluster: AnvilCluster, bucket: str, seed: int, rng: random.Random) -> None:
    before = members(cluster, 7)
    leaving = rng.choice(before[1:])
    cluster.s3().create_bucket(Bucket=f"{bucket}-kept")
    objects = put_all(cluster.s3(leaving), f"{bucket}-kept", rng)
    with Workload(cluster, bucket, seed=seed, targets=lambda: before) as load:
        load.wait_for(60)
        done = cluster.drain(leaving)
        assert done.returncode == 0, done.stderr
        load.wait_for(30)
        cluster.wait_drained(leaving)
        load.wait_for(30)
        before.remove(leaving)  # the balancer is told
        load.go_round()
        cluster.leave(leaving)
        load.wait_for(60)
    assert load.failures == []
    load.check(cluster.members)
    assert_all(cluster, cluster.members, f"{bucket}-kept", objects)
    cluster.wait_healthy()


def test_a_drain_that_leaves_too_few_is_refused(cluster: AnvilCluster) -> None:
    last = members(cluster, 6)[-1]
    done = cluster.drain(last)
    assert done.returncode == Exit.CONFLICT
    assert "4+2" in done.stderr and "5" in done.stderr, done.stderr
    assert cluster.state(last) == "active"


def test_two_drains_at_once_are_refused_where_one_is_all_there_is_room_for(cluster: AnvilCluster) -> None:
    two = members(cluster, 7)[-2:]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(cluster.drain, two))
    assert sorted(one.returncode for one in answers) == [0, Exit.CONFLICT], [one.stderr for one in answers]
    [refused] = [one for one in answers if one.returncode]
    assert "draining" in refused.stderr
    leaving = two[[one.returncode for one in answers].index(0)]
    cluster.leave(leaving)


def test_removing_says_why_not(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    all_of_them = members(cluster, 7)
    objects = put_all(cluster.s3(0), bucket, rng)
    up = all_of_them[-1]
    done = admin(cluster, "node", "remove", cluster.node_id(up).hex(), "--yes")
    assert (done.returncode, "drain" in done.stderr) == (Exit.CONFLICT, True), done.stderr
    away = all_of_them[-3:]
    cluster.kill(*away[:2])
    for number in away[:2]:
        cluster.wait_state(number, "down", 30)
    # The third of a stripe of 4+2: never, however it is asked for.
    done = admin(cluster, "node", "remove", cluster.node_id(away[2]).hex(), "--yes", "--force")
    assert (done.returncode, "lose" in done.stderr) == (Exit.CONFLICT, True), done.stderr
    cluster.mend()
    # Dead for good: the others take over what it held.
    dead = all_of_them[-1]
    cluster.kill(dead)
    cluster.wait_state(dead, "down", 30)
    done = admin(cluster, "node", "remove", cluster.node_id(dead).hex(), "--yes")
    assert done.returncode == 0, done.stderr
    cluster.left.add(dead)
    cluster.wait_active(deadline_s=MOVE_S)
    cluster.wait_healthy()
    assert_all(cluster, cluster.members, bucket, objects)
    assert cluster.state(dead) == "removed"


def test_a_reader_and_a_writer_amid_a_move(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    before = members(cluster, 6)
    objects = {"read": rng.randbytes(64 << 20), "written": rng.randbytes(64 << 20)}
    cluster.s3(before[1]).put_object(Bucket=bucket, Key="read", Body=objects["read"])
    body = cluster.s3(before[2]).get_object(Bucket=bucket, Key="read")["Body"]
    begun = body.read(1 << 20)
    upload = SlowUpload(cluster, before[3], bucket, "written", objects["written"], 10 << 20)
    version = cluster.layout_version()
    cluster.start(cluster.add_node())
    wait_until("the layout changed", lambda: cluster.layout_version() > version, 60)

    def waits() -> bool:
        move = cluster.anvil("admin", "layout", "show", by=before[0])["move"]
        return move["writers_behind"] == 1 and move["slices_done"] == 0

    wait_until("all but the upload go by the new layout", waits, 60)
    assert upload.finish() == 200, "what began by the old one ends by it"
    cluster.wait_active(deadline_s=MOVE_S)
    assert begun + body.read() == objects["read"], "a download that began before the move ends after it"
    assert_all(cluster, cluster.members, bucket, objects)
    cluster.wait_healthy()
    cluster.wait_clean()
    cluster.kill(*rng.sample(before, 2))
    assert_all(cluster, [number for number in cluster.members if cluster.nodes[number].runs], bucket, objects)


def test_a_writer_with_a_stale_layout_is_waited_for_or_fenced(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    """A worker stands still with an upload half done while the layout changes: nothing is moved as long as its session lives, and once it
    is fenced, what it still writes does not count."""
    before = members(cluster, 6)
    data = rng.randbytes(24 << 20)
    stale = before[1]
    version = cluster.layout_version()
    upload = SlowUpload(cluster, stale, bucket, "stale", data, 10 << 20)
    drives = cluster.drives(stale)
    wait_until("its shards are being written", lambda: any(list((drive / "tmp").iterdir()) for drive in drives))
    [worker] = cluster.nodes[stale].worker_pids
    [session] = cluster.sql(
        "SELECT session_id FROM writer_sessions WHERE node_id = $1 ORDER BY opened_us DESC LIMIT 1", cluster.node_id(stale)
    )[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        cluster.start(cluster.add_node())
        wait_until("the layout changed", lambda: cluster.layout_version() > version, 60)

        def alive() -> bool:
            sql = "SELECT 1 FROM writer_sessions WHERE session_id = $1 AND lease_until > clock_timestamp()"
            return bool(cluster.sql(sql, session))

        def retired() -> bool:
            return cluster.layouts() == ["current"]

        wait_until("its session ends, or the move", lambda: not alive() or retired(), MOVE_S)
        assert not retired() or not alive(), "nothing is retired while somebody may write by the old layout"
    finally:
        os.kill(worker, signal.SIGCONT)
    status = upload.finish()
    cluster.mend()
    assert_all(cluster, cluster.members, bucket, {"stale": data} if status == 200 else {})
    cluster.wait_clean()
