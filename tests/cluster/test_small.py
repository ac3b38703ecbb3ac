"""In small what test_changes.py and test_cuts.py look at closely: nodes join, are cut off from each other and drain under load, and nobody
notices. One cluster for all, whose nodes have two workers each, and whose garbage stays for some seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from anvil.cli.exits import Exit
from tests.cluster.conftest import Shared, shared
from tests.cluster.membership import members
from tests.support.cluster import MOVE_S, AnvilCluster
from tests.support.needs import find, missing
from tests.support.network import can_make_networks
from tests.support.samples import assert_all, put_all
from tests.support.workload import Workload


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Six nodes and a seventh that is not started, with networks of their own where that can be."""
    env = {"ANVIL_REPAIR_DELAY_S": "3600", "ANVIL_SCHEME": "4+2", "ANVIL_WORKERS": "2", "ANVIL_GC_GRACE_S": "3"}
    yield from shared(tmp_path_factory, nodes=7, start=6, network=can_make_networks(), env=env)


@pytest.fixture
def cluster(growing: Shared, request: pytest.FixtureRequest) -> AnvilCluster:
    return growing.whole(request.session)


@pytest.fixture
def bucket(cluster: AnvilCluster, seed: int) -> str:
    """For load; the objects of `kept` are in another one."""
    name = f"small-{seed}-{random.SystemRandom().randrange(1 << 20)}"
    cluster.s3().create_bucket(Bucket=name)
    return name


@pytest.fixture
def kept(cluster: AnvilCluster, bucket: str, rng: random.Random) -> dict[str, bytes]:
    """An object of each kind, from before what the test does."""
    cluster.s3().create_bucket(Bucket=f"{bucket}-kept")
    return put_all(cluster.s3(), f"{bucket}-kept", rng)


def test_a_node_joins_under_load(cluster: AnvilCluster, bucket: str, kept: dict[str, bytes], seed: int) -> None:
    before = members(cluster, 6)
    with Workload(cluster, bucket, seed=seed, targets=lambda: before) as load:
        load.wait_for(30)
        assert len(members(cluster, 7)) == 7
        load.wait_for(30)
    assert load.failures == []
    load.check(cluster.members)
    [new] = set(cluster.members) - set(before)
    assert_all(cluster, [before[0], new], f"{bucket}-kept", kept)
    held = sum(cluster.holders(cluster.blobs_of(f"{bucket}-kept", key))[new] for key in kept)
    assert held, "it carries its part"


def test_two_nodes_that_do_not_reach_each_other(
    cluster: AnvilCluster, bucket: str, kept: dict[str, bytes], seed: int, rng: random.Random
) -> None:
    if not can_make_networks():
        if find("ip") is None:
            missing("ip (iproute2) is not installed")
        pytest.skip("only root can make networks")
    one, other = rng.sample(members(cluster, 7), 2)
    with Workload(cluster, bucket, seed=seed, targets=lambda: cluster.members) as load:
        load.wait_for(20)
        cluster.cut(one, other)
        load.wait_for(60)
        assert_all(cluster, (one, other), f"{bucket}-kept", kept)
        assert {cluster.state(number) for number in cluster.members} == {"active"}, "both still have their leases"
        cluster.heal(one, other)
        load.wait_for(20)
    assert load.failures == [], "each reaches six of seven"
    cluster.mend()
    load.check(cluster.members)
    assert_all(cluster, (one, other), f"{bucket}-kept", kept)


def test_of_two_drains_at_once_one_is_refused_and_nobody_notices_the_other(
    cluster: AnvilCluster, bucket: str, kept: dict[str, bytes], seed: int
) -> None:
    """Seven nodes with 4+2: there is room for one to leave."""
    everybody = list(members(cluster, 7))
    targets = everybody[:]
    with Workload(cluster, bucket, seed=seed, targets=lambda: targets) as load:
        load.wait_for(30)
        two = everybody[-2:]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(cluster.drain, two))
        assert sorted(one.returncode for one in answers) == [0, Exit.CONFLICT], [one.stderr for one in answers]
        [refused] = [one for one in answers if one.returncode]
        assert "draining" in refused.stderr
        leaving = two[[one.returncode for one in answers].index(0)]
        cluster.wait_drained(leaving)
        load.wait_for(20)
        targets.remove(leaving)  # the balancer is told
        load.go_round()
        cluster.leave(leaving)
        load.wait_for(20)
    assert load.failures == []
    load.check(cluster.members)
    assert_all(cluster, cluster.members[:2], f"{bucket}-kept", kept)
    cluster.wait_clean(MOVE_S)
    last = cluster.members[-1]
    done = cluster.drain(last)
    assert done.returncode == Exit.CONFLICT, "six is as few as 4+2 can do with"
    assert "4+2" in done.stderr and "5" in done.stderr, done.stderr
    assert cluster.state(last) == "active"
