"""Nodes that are away for longer than ANVIL_REPAIR_DELAY_S: what they held is rebuilt on the others, as far as there are enough."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.conftest import Shared, shared
from tests.support.cluster import AnvilCluster
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all

pytestmark = pytest.mark.slow  # a node given up and rebuilt: some 5 minutes

DELAY_S = 3


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared(tmp_path_factory, nodes=8, env={"ANVIL_REPAIR_DELAY_S": str(DELAY_S), "ANVIL_SCHEME": "4+2"})


@pytest.fixture
def cluster(eight: Shared, request: pytest.FixtureRequest) -> AnvilCluster:
    return eight.whole(request.session)


@pytest.fixture
def bucket(cluster: AnvilCluster, seed: int) -> str:
    name = f"rebuild-{seed}-{random.SystemRandom().randrange(1 << 20)}"
    cluster.s3().create_bucket(Bucket=name)
    return name


def test_a_dead_node_is_rebuilt_on_the_others_and_may_come_back(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    version = cluster.layout_version()
    victim = rng.randrange(8)
    over = [number for number in range(8) if number != victim]
    cluster.kill(victim)
    cluster.wait_state(victim, "down", 30)
    assert_all(cluster, over, bucket, objects)
    wait_until("a layout without it", lambda: cluster.layout_version() > version, 60)
    cluster.wait_active(over)
    cluster.wait_healthy()
    # Whole again without it: two more may go.
    gone = rng.sample(over, 2)
    cluster.kill(*gone)
    left = [number for number in over if number not in gone]
    assert_all(cluster, left, bucket, objects)
    # And everybody comes back, with shards that others have as well now.
    cluster.mend()
    assert_all(cluster, range(8), bucket, objects)
    cluster.wait_clean()


def test_writes_go_on_with_two_dead_where_there_are_spares(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    """Of eight nodes a blob of 4+2 has six and two more in reserve, who take the places of the dead."""
    objects = put_all(cluster.s3(0), bucket, rng)
    victims = rng.sample(range(1, 8), 2)
    over = [number for number in range(8) if number not in victims]
    cluster.kill(*victims)
    data = rng.randbytes(3_000_000)

    def written() -> bool:
        try:
            cluster.s3(0).put_object(Bucket=bucket, Key="resumed", Body=data)
        except (ClientError, BotoCoreError):
            return False
        return True

    wait_until("writes are taken", written, 60)
    objects |= {"resumed": data, **put_all(cluster.s3(over[-1]), bucket, rng, "after-")}
    assert_all(cluster, over, bucket, objects)
    cluster.mend()
    cluster.wait_clean()
    again = rng.sample(over, 2)
    cluster.kill(*again)
    assert_all(cluster, [number for number in range(8) if number not in again], bucket, objects)
