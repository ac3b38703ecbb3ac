"""Load on a real node, and what must be true of it afterwards.

Owns: writers that remember what was acknowledged; the comparison of listing, content, usage, metadata and what the drives hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from anvil.shards.files import blobs_in, outer_folders
from anvil.shards.index import ShardIndex
from tests.support.node import AnvilNode, wait_until

ONE_TRY = Config(retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=60)


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
                time.sleep(0.05)  # it is not being hammered while it is away

    def wait_for(self, count: int) -> None:
        target = self.acknowledged + count
        wait_until(f"{count} more acknowledged writes", lambda: self.acknowledged >= target, 60)

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


def assert_exact(node: AnvilNode, bucket: str) -> None:
    """The listing, what can be read, and the usage metrics agree."""
    s3 = node.s3()
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    listed = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
    for key, size in listed.items():
        assert len(s3.get_object(Bucket=bucket, Key=key)["Body"].read()) == size

    def usage_agrees() -> bool:
        return (node.metric("anvil_bucket_objects"), node.metric("anvil_bucket_usage_bytes")) == (
            len(listed),
            sum(listed.values()),
        )

    wait_until("usage is exact", usage_agrees)


def rows(node: AnvilNode, sql: str) -> list[Any]:
    """Ask the regional database of the running node."""
    url = json.loads((node.data_dir / "run" / "node.json").read_text())["regional_url"]

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def all_paid(node: AnvilNode) -> None:
    """Wait until no shard is owed any more."""
    wait_until("every debt is paid", lambda: rows(node, "SELECT count(*) FROM degraded") == [(0,)], 60)


def blobs_named(node: AnvilNode) -> set[bytes]:
    """The blobs that some row names."""
    sql = "SELECT blob_id FROM {} WHERE blob_id IS NOT NULL AND inline IS NULL"
    return {row[0] for table in ("objects", "versions", "parts") for row in rows(node, sql.format(table))}


def blobs_held(drive: Path) -> set[bytes]:
    """The blobs of which a drive holds a shard."""
    index = ShardIndex(drive / "index")
    try:
        small = {entry.blob_id for _, entry in index.page(b"", 1_000_000)}
    finally:
        index.close()
    return small | {blob_id for outer in outer_folders(drive / "blobs") for blob_id, _ in blobs_in(outer)}


def assert_clean(node: AnvilNode, drives: list[Path]) -> None:
    """Once collector and sweep ran, drives hold what some row names and nothing else, and no temporary file."""
    assert node.anvil("admin", "scrub", "--shallow").returncode == 0
    wait_until("the outbox is empty", lambda: rows(node, "SELECT count(*) FROM outbox") == [(0,)], 30)

    def clean() -> bool:
        named = blobs_named(node)
        return all(blobs_held(drive) <= named and not list((drive / "tmp").iterdir()) for drive in drives)

    wait_until("no shard without an owner, no temporary file", clean, 30)
