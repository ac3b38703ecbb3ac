"""Nodes that are well and cannot reach one another: each in a network namespace, links cut silently. PostgreSQL is reached by all."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from tests.cluster.conftest import Shared, shared
from tests.support.cluster import AnvilCluster
from tests.support.network import can_make_networks
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all
from tests.support.workload import Workload

pytestmark = [
    pytest.mark.skipif(not can_make_networks(), reason="only root can make networks, with iproute2"),
    pytest.mark.slow,  # six nodes with networks of their own, cut and healed
]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared(tmp_path_factory, nodes=6, network=True, env={"ANVIL_REPAIR_DELAY_S": "3600"})


@pytest.fixture
def cluster(six: Shared, request: pytest.FixtureRequest) -> AnvilCluster:
    return six.whole(request.session)


@pytest.fixture
def bucket(cluster: AnvilCluster, seed: int) -> str:
    name = f"cuts-{seed}-{random.SystemRandom().randrange(1 << 20)}"
    cluster.s3().create_bucket(Bucket=name)
    return name


def test_two_nodes_that_do_not_reach_each_other(cluster: AnvilCluster, bucket: str, seed: int, rng: random.Random) -> None:
    one, other = rng.sample(range(6), 2)
    objects = put_all(cluster.s3(one), bucket, rng, "before-")
    cluster.cut(one, other)
    assert_all(cluster, range(6), bucket, objects)
    for number in (one, other):
        objects |= put_all(cluster.s3(number), bucket, rng, f"from-{number}-")
    assert_all(cluster, range(6), bucket, objects)
    assert {cluster.state(number) for number in range(6)} == {"active"}, "both still have their leases"
    cluster.s3().create_bucket(Bucket=f"{bucket}-load")
    with Workload(cluster, f"{bucket}-load", seed=seed) as load:
        load.wait_for(100)
    assert load.failures == [], "each reaches five of six"
    cluster.heal(one, other)
    cluster.mend()
    load.check()
    assert_all(cluster, range(6), bucket, objects)
    cluster.wait_clean()


def test_a_node_that_reaches_nobody_refuses_writes_aloud(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    alone = rng.randrange(6)
    others = [number for number in range(6) if number != alone]
    objects = put_all(cluster.s3(alone), bucket, rng)
    for number in others:
        cluster.cut(alone, number)
    with pytest.raises(ClientError) as error:
        cluster.s3(alone).put_object(Bucket=bucket, Key="refused", Body=b"r" * 2_000_000)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    with pytest.raises(ClientError) as error:
        cluster.s3(alone).get_object(Bucket=bucket, Key="9000000")["Body"].read()
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503, "unreachable is not lost"
    wait_until("/ready sends clients elsewhere", lambda: not cluster.nodes[alone].is_ready())
    assert "none of the 5 other nodes that are up answers this one" in " ".join(cluster.nodes[alone].readiness()["reasons"])
    assert all(cluster.nodes[number].is_ready() for number in others)
    assert_all(cluster, others, bucket, objects)
    objects |= put_all(cluster.s3(others[0]), bucket, rng, "without-")
    assert_all(cluster, others, bucket, objects)
    for number in others:
        cluster.heal(alone, number)

    def together() -> bool:
        try:
            cluster.s3(alone).put_object(Bucket=bucket, Key="together", Body=b"t" * 2_000_000)
        except ClientError:
            return False
        return True

    wait_until("it takes writes again", together, 30)
    wait_until("and says so", cluster.nodes[alone].is_ready)
    objects["together"] = b"t" * 2_000_000
    cluster.mend()
    assert_all(cluster, range(6), bucket, objects)
    cluster.wait_clean()
