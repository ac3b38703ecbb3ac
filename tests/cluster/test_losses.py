"""Six nodes, 4 data and 2 parity shards on a node each: what may be lost without anybody noticing, and that it comes back.

Nodes here stay members however long they are down (ANVIL_REPAIR_DELAY_S of an hour): what they missed they get when they return. What
happens when they do not return is in test_rebuild.py.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from anvil.base.limits import PEER_STALLED_S, STRAGGLER_S
from tests.cluster.conftest import Shared, shared
from tests.support.cluster import AnvilCluster
from tests.support.node import wait_until
from tests.support.samples import assert_all, put_all
from tests.support.uploads import put_begun
from tests.support.workload import Workload

M = 2


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared(tmp_path_factory, nodes=6, env={"ANVIL_REPAIR_DELAY_S": "3600"})


@pytest.fixture
def cluster(six: Shared, request: pytest.FixtureRequest) -> AnvilCluster:
    return six.whole(request.session)


@pytest.fixture
def bucket(cluster: AnvilCluster, seed: int) -> str:
    name = f"losses-{seed}-{random.SystemRandom().randrange(1 << 20)}"
    cluster.s3().create_bucket(Bucket=name)
    return name


def the_others(*away: int) -> list[int]:
    return [number for number in range(6) if number not in away]


def test_every_node_is_one_and_the_same_store(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    pairs = {(node.access_key, node.secret_key) for node in cluster.nodes}
    assert len(pairs) == 1, "the key pair is the deployment's: whoever starts later makes no other one"
    objects = put_all(cluster.s3(2), bucket, rng)
    assert_all(cluster, range(6), bucket, objects)
    for key, data in objects.items():
        held = cluster.holders(cluster.blobs_of(bucket, key))
        assert max(held.values()) <= max(len(cluster.blobs_of(bucket, key)), 0), "one shard of a blob on a node"
        if len(data) >= 65_536:
            assert all(held.values()), f"{key}: {held}"
    assert cluster.debts() == 0
    cluster.s3(4).delete_object(Bucket=bucket, Key="1")
    for number in range(6):
        with pytest.raises(ClientError, match="NoSuchKey"):
            cluster.s3(number).get_object(Bucket=bucket, Key="1")
    cluster.wait_clean()


def test_two_killed_nodes_are_invisible_to_readers(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    victims = rng.sample(range(6), M)
    print("victims", victims)
    cluster.kill(victims[0])
    over = the_others(victims[0])
    objects |= put_all(cluster.s3(over[0]), bucket, rng, "one-away-")
    assert_all(cluster, over, bucket, objects)
    assert cluster.debts() > 0, "what the dead node should hold is owed"
    cluster.kill(victims[1])
    over = the_others(*victims)
    assert_all(cluster, over, bucket, objects)
    refused = time.monotonic()
    with pytest.raises(ClientError) as error:
        cluster.s3(over[0]).put_object(Bucket=bucket, Key="refused", Body=b"r" * 2_000_000)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503, "four shards of 4+2 are no quorum: refused, aloud"
    assert time.monotonic() - refused < 30
    cluster.mend()
    assert_all(cluster, range(6), bucket, objects)
    cluster.wait_clean()
    # What they missed they have now: two others may go.
    again = rng.sample(over, M)
    cluster.kill(*again)
    assert_all(cluster, the_others(*again), bucket, objects)


@pytest.mark.slow  # fifteen pairs, each killed and started again
def test_any_two_nodes_may_be_killed(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    for victims in itertools.combinations(range(6), M):
        cluster.kill(*victims)
        assert_all(cluster, the_others(*victims), bucket, objects)
        cluster.mend()


def test_a_node_killed_amid_uploads(cluster: AnvilCluster, bucket: str, seed: int, rng: random.Random) -> None:
    victim, witness = rng.sample(range(6), 2)
    alive = list(range(6))
    with Workload(cluster, bucket, seed=seed, targets=lambda: alive) as load:
        load.wait_for(60)
        # One upload through the victim, one through another node that sends a shard of it to the victim.
        lost = put_begun(cluster, victim, bucket, "w9/lost", bytes(20 << 20), 32 << 20)
        kept = put_begun(cluster, witness, bucket, "w9/kept", b"k" * (20 << 20), 32 << 20)
        alive.remove(victim)
        cluster.kill(victim)
        kept.send(b"k" * (12 << 20))
        assert kept.getresponse().status == 200, "five of six are a quorum"
        load.wait_for(60)
        told = [failure for failure in load.failures if failure.node != victim and failure.operation in ("get", "range", "list")]
        assert not told, "readers of the other nodes notice nothing"
    kept.close()
    lost.close()
    s3 = cluster.s3(witness)
    assert s3.get_object(Bucket=bucket, Key="w9/kept")["Body"].read() == b"k" * (32 << 20)
    s3.delete_object(Bucket=bucket, Key="w9/kept")
    load.check(alive)  # "w9/lost" would be listed there
    cluster.mend()
    load.check()
    cluster.wait_clean()


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_a_hung_node_costs_bounded_time(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    victim = rng.randrange(6)
    over = the_others(victim)
    s3 = cluster.s3(over[0])
    cluster.hang(victim)
    slowest = max(took(lambda key=key: s3.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in objects)
    assert slowest < PEER_STALLED_S + 3, "a reader turns to the others"
    wrote = took(lambda: s3.put_object(Bucket=bucket, Key="during", Body=b"d" * 3_000_000))
    assert wrote < PEER_STALLED_S + STRAGGLER_S + 5, "a writer has its quorum"
    objects["during"] = b"d" * 3_000_000

    def unnoticed() -> bool:
        return took(lambda: assert_all(cluster, over[:1], bucket, objects)) < 3

    wait_until("the hung node is left alone", unnoticed, 30)
    objects["later"] = b"l" * 3_000_000
    wait_until("by writers, too", lambda: took(lambda: s3.put_object(Bucket=bucket, Key="later", Body=objects["later"])) < 3, 30)
    assert_all(cluster, over, bucket, objects)
    cluster.resume(victim)
    cluster.mend()
    assert_all(cluster, range(6), bucket, objects)
    cluster.wait_clean()


def test_a_wiped_drive_is_rebuilt(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    victim = rng.randrange(6)
    cluster.wipe_drive(victim)
    assert_all(cluster, range(6), bucket, objects)
    objects |= put_all(cluster.s3(victim), bucket, rng, "after-")
    cluster.new_drive(victim)
    assert_all(cluster, [victim], bucket, objects)
    cluster.wait_clean()
    cluster.wait_healthy()
    others = rng.sample(the_others(victim), M)
    cluster.kill(*others)
    assert_all(cluster, the_others(*others), bucket, objects)


def test_flipped_bits_in_m_shards_are_read_around_and_repaired(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    objects = put_all(cluster.s3(0), bucket, rng)
    victims = rng.sample(range(6), M)
    damaged = sum(cluster.flip_bits(bucket, key, victims) for key in objects)
    assert damaged >= M * sum(len(data) >= 65_536 for data in objects.values())
    assert_all(cluster, range(6), bucket, objects)
    for victim in victims:
        done = cluster.nodes[victim].anvil("admin", "scrub", timeout_s=120)
        assert done.returncode == 0, done.stderr
    cluster.wait_healthy()
    # Two others now: only what was really repaired can carry the load.
    others = rng.sample(the_others(*victims), M)
    cluster.kill(*others)
    assert_all(cluster, the_others(*others), bucket, objects)


def test_postgresql_restarting_under_load(cluster: AnvilCluster, bucket: str, seed: int) -> None:
    workers = {pid for node in cluster.nodes for pid in node.worker_pids}
    with Workload(cluster, bucket, seed=seed) as load:
        load.wait_for(60)
        cluster.crash_postgres()
        load.wait_for(60)
        cluster.restart_postgres(away_s=4)
        load.wait_for(60)
    assert {pid for node in cluster.nodes for pid in node.worker_pids} == workers, "no worker had to restart"
    cluster.mend()
    load.check()


def test_what_was_deleted_meanwhile_does_not_come_back(cluster: AnvilCluster, bucket: str, rng: random.Random) -> None:
    victim = rng.randrange(6)
    over = the_others(victim)
    s3 = cluster.s3(over[0])
    objects = put_all(cluster.s3(victim), bucket, rng)  # by a writer whose session ends with the node
    gone = {key: cluster.blobs_of(bucket, key) for key in list(objects)[::2]}
    cluster.kill(victim)
    for key in gone:
        s3.delete_object(Bucket=bucket, Key=key)
        del objects[key]
    replaced = next(iter(objects))
    objects[replaced] = rng.randbytes(100_000)
    s3.put_object(Bucket=bucket, Key=replaced, Body=objects[replaced])
    blobs = set().union(*gone.values())
    assert blobs

    def collected() -> bool:
        return not any(cluster.holders(blobs)[number] for number in over)

    wait_until("the others have removed it", collected, 60)
    assert cluster.holders(blobs)[victim], "the dead node still has its shards: that is what this is about"
    cluster.start(victim)
    assert_all(cluster, range(6), bucket, objects)
    cluster.mend()
    cluster.wait_clean()
    assert not any(cluster.holders(blobs).values())
    assert_all(cluster, range(6), bucket, objects)


def status_of(request: Callable[[], Any]) -> int:
    try:
        return int(request()["ResponseMetadata"]["HTTPStatusCode"])
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def test_a_revoked_key_stops_working_everywhere(cluster: AnvilCluster, bucket: str) -> None:
    """How soon is measured in test_regions.py, where nothing else runs."""
    made = cluster.anvil("admin", "app", "create", "--tenant", "default", "--name", f"app-{bucket[-12:]}")
    right = ("--app", made["access_key"], "--action", "object:read", "--resource", f"{bucket}/*")
    cluster.anvil("admin", "policy", "grant", *right)
    cluster.s3().put_object(Bucket=bucket, Key="k", Body=b"v")
    clients = [node.s3(access_key=made["access_key"], secret_key=made["secret"]) for node in cluster.nodes]

    def answers() -> set[int]:
        return {status_of(lambda s3=s3: s3.get_object(Bucket=bucket, Key="k")) for s3 in clients}

    wait_until("the right is known everywhere", lambda: answers() == {200}, 10)
    cluster.anvil("admin", "policy", "revoke", *right, by=3)
    wait_until("the right is gone everywhere", lambda: answers() == {403}, 5)
