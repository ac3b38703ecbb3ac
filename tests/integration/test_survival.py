"""Crashes, damage and failing parts, provoked on a real node with real signals and real files.

What must hold in all of them: every acknowledged object is there and intact, no unacknowledged one is half visible, the node recovers
without being asked to.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.node import AnvilNode

ONE_TRY = Config(retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=60)


def eventually(what: str, condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not within {deadline_s} s: {what}")


def children(node: AnvilNode, mark: str) -> list[psutil.Process]:
    """Processes below the node whose command line contains `mark`."""
    found = []
    for child in psutil.Process(node.pid).children(recursive=True):
        try:
            if mark in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def metric(node: AnvilNode, name: str) -> float:
    """The sum over all label sets of one metric."""
    with urlopen(f"{node.endpoint}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Load:
    """Writers that overwrite and create keys until stopped, and remember what was acknowledged and what was in doubt.

    `seen[key]` is the set of contents the key may have: the last acknowledged one, and every later one whose answer never came.
    """

    SIZES = (100, 4096, 70_000, 1_500_000)

    def __init__(self, node: AnvilNode, bucket: str, writers: int = 4, seed: int = 1) -> None:
        self.bucket = bucket
        self.seen: dict[str, set[str]] = {}
        self.acknowledged = 0
        self.refused = 0
        self._node = node
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed * 100 + n,)) for n in range(writers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, seed: int) -> None:
        rng, s3 = random.Random(seed), self._node.s3(config=ONE_TRY)
        for number in range(100_000):
            if self._stop.is_set():
                return
            key = f"{seed}/{number % 40:03d}"
            data = rng.randbytes(rng.choice(self.SIZES))
            mine = hashlib.sha256(data).hexdigest()
            try:
                s3.put_object(Bucket=self.bucket, Key=key, Body=data)
                self.seen[key] = {mine}
                self.acknowledged += 1
            except (ClientError, BotoCoreError):
                self.seen.setdefault(key, {"absent"}).add(mine)
                self.refused += 1
                time.sleep(0.05)

    def wait_for(self, count: int) -> None:
        target = self.acknowledged + count
        eventually(f"{count} more acknowledged writes", lambda: self.acknowledged >= target)

    def check(self) -> None:
        """Read every key back and compare."""
        s3 = self._node.s3()
        wrong = []
        for key, possible in self.seen.items():
            try:
                found = hashlib.sha256(s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()).hexdigest()
            except ClientError as error:
                found = "absent" if error.response["Error"]["Code"] == "NoSuchKey" else repr(error)
            if found not in possible:
                wrong.append((key, found))
        assert not wrong, f"{len(wrong)} of {len(self.seen)} keys are not what was acknowledged: {wrong[:5]}"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AnvilNode]:
    drives = ",".join(str(tmp_path / f"drive{number}") for number in range(6))
    with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": drives, "ANVIL_WORKERS": "2", "ANVIL_GC_GRACE_S": "0"}) as running:
        yield running


@pytest.fixture
def bucket(node: AnvilNode) -> str:
    node.s3().create_bucket(Bucket="survival")
    return "survival"


def test_a_killed_worker_loses_nothing(node: AnvilNode, bucket: str) -> None:
    with Load(node, bucket) as load:
        for _ in range(3):
            load.wait_for(60)
            victim = children(node, "anvil.node.worker")[0]
            victim.send_signal(signal.SIGKILL)
            eventually("the worker is replaced", lambda: len(children(node, "anvil.node.worker")) == 2)
        load.wait_for(60)
    load.check()


def test_killing_everything_loses_nothing(node: AnvilNode, bucket: str) -> None:
    with Load(node, bucket) as load:
        load.wait_for(150)
        victims = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for victim in victims:
            try:
                victim.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(victims, timeout=30)
    node.start()
    load.check()
    assert_exact(node, bucket)


def test_postgresql_restarting_under_load(node: AnvilNode, bucket: str) -> None:
    with Load(node, bucket) as load:
        load.wait_for(60)
        postmaster = min(children(node, "postgres"), key=lambda process: process.create_time())
        workers = {process.pid for process in children(node, "anvil.node.worker")}
        postmaster.send_signal(signal.SIGKILL)
        load.wait_for(60)
        assert {process.pid for process in children(node, "anvil.node.worker")} == workers, "no worker had to restart"
    load.check()
    assert_exact(node, bucket)


def assert_exact(node: AnvilNode, bucket: str) -> None:
    """The listing, what can be read, and the usage metrics agree."""
    s3 = node.s3()
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    listed = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
    for key, size in listed.items():
        assert len(s3.get_object(Bucket=bucket, Key=key)["Body"].read()) == size

    def usage_agrees() -> bool:
        return (metric(node, "anvil_bucket_objects"), metric(node, "anvil_bucket_usage_bytes")) == (
            len(listed),
            sum(listed.values()),
        )

    eventually("usage is exact", usage_agrees)


def put_some(s3: Any, bucket: str) -> dict[str, bytes]:
    rng = random.Random(4)
    sizes = (500, 4096, 30_000, 65_536, 400_000, 1 << 20, 5_000_000)
    objects = {f"k{number}": rng.randbytes(size) for number, size in enumerate(sizes)}
    for key, data in objects.items():
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    return objects


def assert_readable(s3: Any, bucket: str, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == data, key


def shard_files(drive: Path) -> list[Path]:
    """Everything on a drive that holds shard bytes: segments and files of large shards."""
    return [path for folder in ("segments", "blobs") for path in (drive / folder).rglob("*") if path.is_file()]


def test_two_lost_drives_are_invisible_to_readers(node: AnvilNode, bucket: str, tmp_path: Path) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    shutil.rmtree(tmp_path / "drive0")
    s3.put_object(Bucket=bucket, Key="after", Body=b"a" * 2_000_000)
    assert_readable(s3, bucket, {**objects, "after": b"a" * 2_000_000})
    shutil.rmtree(tmp_path / "drive3")
    assert_readable(s3, bucket, objects)
    # 4 + 2 acknowledges a write with five durable shards, and there are four drives: refused, aloud.
    with pytest.raises(ClientError) as error:
        node.s3(config=ONE_TRY).put_object(Bucket=bucket, Key="refused", Body=b"b" * 2_000_000)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert "refused" not in [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]


def test_damage_is_read_around_counted_and_repaired(node: AnvilNode, bucket: str, tmp_path: Path) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    flip_all(tmp_path / "drive1")
    truncate_all(tmp_path / "drive4")
    assert_readable(s3, bucket, objects)
    assert metric(node, "anvil_shard_damage_total") > 0
    eventually("the damage is repaired", lambda: metric(node, "anvil_shards_unhealthy") == 0, 90)
    # Two other drives now: only what was really repaired can carry the load.
    flip_all(tmp_path / "drive0")
    truncate_all(tmp_path / "drive2")
    assert_readable(s3, bucket, objects)


def flip_all(drive: Path) -> None:
    """Flip a byte in every 512 of every shard on the drive."""
    for path in shard_files(drive):
        data = bytearray(path.read_bytes())
        for at in range(200, len(data), 512):
            if data[at]:
                data[at] ^= 0xFF
        with open(path, "r+b") as file:
            file.write(data)


def truncate_all(drive: Path) -> None:
    for path in shard_files(drive):
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)


def test_a_full_drive_refuses_and_the_node_stays_up(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(small)], check=True)
    try:
        with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": str(small / "drive"), "ANVIL_WORKERS": "1"}) as node:
            s3 = node.s3(config=ONE_TRY)
            s3.create_bucket(Bucket="full")
            s3.put_object(Bucket="full", Key="first", Body=b"1" * 3_000_000)
            (small / "ballast").write_bytes(b"\0" * max(shutil.disk_usage(small).free - 1_000_000, 0))
            for size in (100_000, 3_000_000):
                with pytest.raises(ClientError) as error:
                    s3.put_object(Bucket="full", Key="second", Body=b"2" * size)
                answer = error.value.response
                assert answer["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
                assert "room" in answer["Error"]["Message"]
            assert [item["Key"] for item in s3.list_objects_v2(Bucket="full")["Contents"]] == ["first"]
            assert s3.get_object(Bucket="full", Key="first")["Body"].read() == b"1" * 3_000_000
            (small / "ballast").unlink()

            def accepted() -> bool:
                try:
                    s3.put_object(Bucket="full", Key="second", Body=b"2" * 3_000_000)
                except ClientError:
                    return False
                return True

            eventually("writes are taken again once there is room", accepted)
    finally:
        subprocess.run(["umount", str(small)], check=True)
