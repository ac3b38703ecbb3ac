"""The drill: a cluster is backed up under load, everything is destroyed, and a cluster of another size is made from the backup."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.backups import KEY, assert_same, fill, said
from tests.support.cluster import AnvilCluster
from tests.support.load import assert_readable
from tests.support.node import AnvilNode, wait_until

pytestmark = pytest.mark.slow  # two clusters after one another: some three minutes. `make drill` runs it.

ENV = {
    "ANVIL_SECRET_ENCRYPTION_KEY": KEY,
    "ANVIL_JWT_SECRET": "11" * 32,
    "ANVIL_CLUSTER_SECRET": "22" * 32,
    "ANVIL_SCHEME": "2+1",
}
SIZES = (100, 5_000, 70_000, 1_500_000)


class Busy:
    """Writers that overwrite and delete until they are stopped. `contents`: by key, the digests of everything that was ever sent."""

    def __init__(self, cluster: AnvilCluster, bucket: str, seed: int) -> None:
        self.contents: dict[str, set[str]] = {}
        self.done = 0
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._cluster = cluster
        self._bucket = bucket
        self._threads = [threading.Thread(target=self._run, args=(seed + number,)) for number in range(2)]

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        rng, s3 = random.Random(seed), self._cluster.s3(seed % 2)
        while not self._stop.is_set():
            key, data = f"{seed}/{rng.randrange(30)}", rng.randbytes(rng.choice(SIZES))
            self.contents.setdefault(key, set()).add(hashlib.sha256(data).hexdigest())
            try:
                s3.put_object(Bucket=self._bucket, Key=key, Body=data)
                if rng.random() < 0.2:
                    s3.delete_object(Bucket=self._bucket, Key=f"{seed}/{rng.randrange(30)}")
            except (ClientError, BotoCoreError) as error:
                self.failed.append(str(error))
            self.done += 1

    def wait_for(self, count: int) -> None:
        target = self.done + count
        wait_until(f"{count} more writes", lambda: self.done >= target, 120)


def rights(cluster: AnvilCluster) -> dict[str, list[dict[str, str]]]:
    return {
        app["app"]: cluster.anvil("admin", "policy", "list", "--app", app["app"]) for app in cluster.anvil("admin", "app", "list")
    }


def make_rights(node: AnvilNode) -> tuple[str, str]:
    keys = said(node, "app", "create", "--tenant", "default", "--name", "reader")
    said(node, "policy", "grant", "--app", "reader", "--action", "object:read", "--resource", "kept/*")
    said(node, "bucket", "set-public", "busy", "--allow", "true")
    return keys["access_key"], keys["secret"]


def keep_a_version(cluster: AnvilCluster, s3: Any) -> bytes:
    """An object that is noncurrent: put into the table, since no request makes one yet. Returns its blob."""
    s3.put_object(Bucket="kept", Key="versioned", Body=b"o" * 300_000)
    [blob] = cluster.blobs_of("kept", "versioned")
    cluster.sql("INSERT INTO versions SELECT o.*, false FROM objects o WHERE blob_id = $1 RETURNING 1", blob)
    s3.put_object(Bucket="kept", Key="versioned", Body=b"n" * 300_000, ContentType="text/x-odd", Metadata={"of": "mine"})
    return blob


def test_destroyed_and_made_anew_with_another_size(tmp_path: Path, seed: int, rng: random.Random) -> None:
    repository = str(tmp_path / "repository")
    with AnvilCluster(tmp_path / "old", nodes=3, env=ENV) as cluster:
        s3, first = cluster.s3(0), cluster.nodes[0]
        objects = fill(s3, "kept", rng)
        s3.create_bucket(Bucket="busy")
        reader = make_rights(first)
        old_version = keep_a_version(cluster, s3)
        objects["versioned"] = b"n" * 300_000
        granted = rights(cluster)
        with Busy(cluster, "busy", seed % 1000) as busy:
            busy.wait_for(30)
            one = said(first, "backup", "create", repository)
            busy.wait_for(30)
            s3.put_object(Bucket="kept", Key="between", Body=b"b" * 400_000, ContentType="text/x-odd", Metadata={"of": "mine"})
            objects["between"] = b"b" * 400_000
            # By another node, while one is dead: any k shards are enough.
            cluster.kill(2)
            two = said(cluster.nodes[1], "backup", "create", repository)
        assert one["complete"] and two["complete"] and 0 < two["copied"] < one["copied"]
        assert said(first, "backup", "verify", repository, "--deep")["good"]
    shutil.rmtree(tmp_path / "old")

    with AnvilCluster(tmp_path / "new", nodes=4, env={**ENV, "ANVIL_GC_GRACE_S": "2"}, start=0) as cluster:
        node = cluster.nodes[0]
        restored = said(node, "restore", "metadata", repository)
        assert restored["manifest"]["snapshot"] == two["snapshot"] and restored["changes"]["strangers"] == 0
        cluster.start(*range(4))
        cluster.wait_active(range(4))
        report = said(node, "restore", "data", repository)
        assert report["complete"] and report["refilled"]["written"] == two["blobs"] and not report["refilled"]["owing"]
        check(cluster, objects, busy, reader)
        assert rights(cluster) == granted
        assert cluster.sql("SELECT blob_id FROM versions") == [(old_version,)]
        assert cluster.holdings().missing == set() == cluster.holdings().doubled
        cluster.wait_healthy()  # what was owed when the dump was made is there by now
        assert said(node, "fsck", "--deep")["clean"]
        cluster.sql("UPDATE settings SET changed_us = 0 WHERE name = 'gc_epoch' RETURNING 1")  # the grace is long over
        [blob] = cluster.blobs_of("kept", "between")
        cluster.s3(1).delete_object(Bucket="kept", Key="between")
        cluster.look()
        assert sum(cluster.holders({blob}).values()) == 3, "recovery mode removes nothing"
        said(node, "recovery", "end")
        wait_until("it goes once its grace is over", lambda: not sum(cluster.holders({blob}).values()), 60)
        objects.pop("between")
        check(cluster, objects, busy, reader)
        cluster.wait_clean()


def check(cluster: AnvilCluster, objects: dict[str, bytes], busy: Busy, reader: tuple[str, str]) -> None:
    """By two nodes. What was acknowledged before is what it was; what was written meanwhile is something that was sent, whole."""
    assert_same(cluster.s3(3), "kept", objects)
    assert_readable(cluster.nodes[1].s3(access_key=reader[0], secret_key=reader[1]), "kept", objects)
    s3 = cluster.s3(2)
    listed = [
        item["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="busy") for item in page.get("Contents", [])
    ]
    assert len(listed) > 10
    for key in listed:
        data = s3.get_object(Bucket="busy", Key=key)["Body"].read()
        assert hashlib.sha256(data).hexdigest() in busy.contents[key], key
    status, _, data = cluster.nodes[2].get(f"/busy/{listed[0]}")
    assert status == 200 and hashlib.sha256(data).hexdigest() in busy.contents[listed[0]], "a public bucket is public again"
