"""Mixed load on several nodes, and a model of what must be there: who got an answer to a write has it, who got none may have it.

    with Workload(cluster, "bucket", seed=7) as load:
        load.wait_for(100)
    load.check()

Owns: the threads, the model, the contents. Invariants: every key belongs to one thread, so the model is exact; a key whose write got no
answer is written no more, since that write may still arrive; two contents that were written differ.
Not here: faults (tests/cluster/storm.py).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from tests.support.cluster import AnvilCluster
from tests.support.node import wait_until

PART_BYTES = 5 << 20
SIZES = (
    (0, 2_000),
    (2_100, 64_000),
    (66_000, 1 << 20),
    (1 << 20, 4 << 20),
)  # in the row, copies in segments, one stripe, several
PAD_BYTES = 16 << 20
KEYS_PER_THREAD = 24
FAILED_PAUSE_S = 0.1  # a node that is away is not hammered
FAILURES = (ClientError, BotoCoreError, HTTPError, OSError)


class Version(NamedTuple):
    """A content: `size` bytes from `offset` of the pad."""

    offset: int
    size: int


Possible = frozenset[Version | None]  # None: the key is not there


class Wrong(AssertionError):
    """Something acknowledged is lost, or something is there that nobody wrote."""


class Failure(NamedTuple):
    at_s: float
    operation: str
    node: int
    key: str
    error: str


class Workload:
    """`targets`: the nodes that requests go to now. `pause_s`: between two requests of a thread. `client`: makes what a thread sends its
    requests to a node with, if not straight to that."""

    def __init__(
        self,
        cluster: AnvilCluster,
        bucket: str,
        *,
        seed: int,
        threads: int = 4,
        targets: Callable[[], Sequence[int]] | None = None,
        pause_s: float = 0.0,
        multipart: bool = True,
        client: Callable[[int], Any] | None = None,
    ) -> None:
        self.cluster = cluster
        self.client = client or cluster.s3
        self.bucket = bucket
        self.seed = seed
        self.failures: list[Failure] = []
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._pad = random.Random(seed).randbytes(PAD_BYTES)
        self._targets = targets or (lambda: range(len(cluster.nodes)))
        self._pause_s = pause_s
        self._multipart = multipart
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._writers = [_Writer(self, number) for number in range(threads)]
        self._threads = [threading.Thread(target=writer.run, daemon=True) for writer in self._writers]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a request has had no end for two minutes"
            self.assert_right()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def acknowledged(self) -> int:
        return sum(self.done.values())

    @property
    def model(self) -> dict[str, Possible]:
        return {key: possible for writer in self._writers for key, possible in writer.possible.items()}

    def wait_for(self, count: int, deadline_s: float = 120.0) -> None:
        """Until that many more requests were answered well. What is wrong is told at once."""
        target = self.acknowledged + count

        def reached() -> bool:
            self.assert_right()
            return self.acknowledged >= target

        wait_until(f"{count} more answers (so far {dict(self.done)}, failed: {self.failures[-3:]})", reached, deadline_s)

    def go_round(self) -> None:
        """Until every request that was under way has ended: what begins now knows of changed `targets`."""
        before = [writer.steps for writer in self._writers]
        wait_until("each thread went on", lambda: all(w.steps > n for w, n in zip(self._writers, before, strict=True)), 120)

    def assert_right(self) -> None:
        if self.wrong:
            raise Wrong(f"seed {self.seed}: {len(self.wrong)} wrong answers: {self.wrong[:5]}")

    def content(self, version: Version) -> bytes:
        return self._pad[version.offset : version.offset + version.size]

    def pick(self, rng: random.Random) -> int:
        return rng.choice(list(self._targets()))

    def pause(self) -> None:
        self._stop.wait(self._pause_s)

    def failed(self, operation: str, node: int, key: str, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"[:200]
        self.failures.append(Failure(round(time.monotonic() - self._began, 1), operation, node, key, text))
        self._stop.wait(FAILED_PAUSE_S)

    def check(self, nodes: Sequence[int] | None = None) -> None:
        """Read every key back over some node, and compare; the listing too."""
        self.assert_right()
        over = list(range(len(self.cluster.nodes)) if nodes is None else nodes)
        clients = {number: self.cluster.s3(number) for number in over}
        for number, (key, possible) in enumerate(sorted(self.model.items())):
            found = fetch(clients[over[number % len(over)]], self.bucket, key)
            if not any(found == (None if version is None else self.content(version)) for version in possible):
                self.wrong.append(f"{key} read over node {over[number % len(over)]}: {describe(found)}, possible {set(possible)}")
        pages = clients[over[0]].get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        listed = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
        self.compare_listing(listed, self.model)
        self.assert_right()

    def compare_listing(self, listed: dict[str, int], model: dict[str, Possible]) -> None:
        for key, possible in model.items():
            sizes = {None if version is None else version.size for version in possible}
            if listed.get(key) not in sizes:
                self.wrong.append(f"{key} is listed with size {listed.get(key)}, possible {sizes}")
        self.wrong += [f"{key} is listed, and nobody wrote it" for key in set(listed) - set(model)]


class _Writer:
    """One thread with keys of its own."""

    def __init__(self, load: Workload, number: int) -> None:
        self._load = load
        self._prefix = f"w{number}/"
        self._rng = random.Random(f"{load.seed}/{number}")
        self._clients: dict[int, Any] = {}
        self._made = 0
        self.steps = 0
        self._writable: list[str] = []
        self.possible: dict[str, Possible] = {}

    def run(self) -> None:
        try:
            while not self._load.stopping:
                self._step()
                self.steps += 1
                self._load.pause()
        except Exception as error:  # a mistake of this file must not look like a quiet success
            self._load.wrong.append(f"the load ended: {type(error).__name__}: {error}")
            raise

    def _client(self, node: int) -> Any:
        if node not in self._clients:
            self._clients[node] = self._load.client(node)
        return self._clients[node]

    def _step(self) -> None:
        rng, node = self._rng, self._load.pick(self._rng)
        if len(self._writable) < KEYS_PER_THREAD // 4 or (len(self._writable) < KEYS_PER_THREAD and rng.random() < 0.3):
            key = f"{self._prefix}{self._made:05d}"
            self._made += 1
            self._writable.append(key)
            self._write("put", node, key, self._new(), self._put)
            return
        key = rng.choice(sorted(self.possible) if rng.random() < 0.3 else self._writable)
        kind = rng.choices(
            ("get", "range", "put", "delete", "list", "multipart"), (40, 15, 25, 8, 4, 4 if self._load._multipart else 0)
        )[0]
        if kind == "get":
            self._read(node, key)
        elif kind == "range":
            self._read_range(node, key)
        elif kind == "list":
            self._list(node)
        else:
            key = rng.choice(self._writable)
            if kind == "put":
                self._write("put", node, key, self._new(), self._put)
            elif kind == "delete":
                self._write("delete", node, key, None, self._delete)
            else:
                version = self._version(PART_BYTES + rng.randrange(1, 1 << 20))
                self._write("multipart", node, key, version, self._put_parts)

    def _new(self) -> Version:
        low, high = self._rng.choice(SIZES)
        return self._version(self._rng.randint(low, high))

    def _version(self, size: int) -> Version:
        return Version(self._rng.randrange(PAD_BYTES - size), size)

    # -- writes

    def _write(self, operation: str, node: int, key: str, version: Version | None, send: Callable[[Any, str, Any], None]) -> None:
        """Possible is what was, and what is being written, until the answer says that only the latter is."""
        before = self.possible.get(key, frozenset({None}))
        self.possible[key] = before | {version}
        try:
            send(self._client(node), key, version)
        except FAILURES as error:
            self._load.failed(operation, node, key, error)
            self._writable.remove(key)
            return
        self.possible[key] = frozenset({version})
        self._load.done[operation] += 1

    def _put(self, s3: Any, key: str, version: Version) -> None:
        s3.put_object(Bucket=self._load.bucket, Key=key, Body=self._load.content(version))

    def _delete(self, s3: Any, key: str, _: None) -> None:
        s3.delete_object(Bucket=self._load.bucket, Key=key)

    def _put_parts(self, s3: Any, key: str, version: Version) -> None:
        """Each request over another node, as behind a balancer."""
        where, data = {"Bucket": self._load.bucket, "Key": key}, self._load.content(version)
        where["UploadId"] = s3.create_multipart_upload(**where)["UploadId"]
        parts = []
        for number, piece in enumerate((data[:PART_BYTES], data[PART_BYTES:]), 1):
            over = self._client(self._load.pick(self._rng))
            parts.append({"PartNumber": number, "ETag": over.upload_part(**where, PartNumber=number, Body=piece)["ETag"]})
        s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    # -- reads

    def _read(self, node: int, key: str) -> None:
        try:
            found = fetch(self._client(node), self._load.bucket, key)
        except FAILURES as error:
            self._load.failed("get", node, key, error)
            return
        self._compare(node, key, found, lambda data: data)
        self._load.done["get"] += 1

    def _read_range(self, node: int, key: str) -> None:
        sizes = [version.size for version in self.possible[key] if version is not None and version.size]
        if not sizes:
            self._read(node, key)
            return
        first = self._rng.randrange(min(sizes))
        last = self._rng.randrange(first, min(sizes))
        try:
            found = fetch(self._client(node), self._load.bucket, key, f"bytes={first}-{last}")
        except FAILURES as error:
            self._load.failed("range", node, key, error)
            return
        self._compare(node, key, found, lambda data: data[first : last + 1])
        self._load.done["range"] += 1

    def _compare(self, node: int, key: str, found: bytes | None, cut: Callable[[bytes], bytes]) -> None:
        possible = self.possible[key]
        if not any(found == (None if version is None else cut(self._load.content(version))) for version in possible):
            self._load.wrong.append(f"{key} over node {node}: {describe(found)}, possible {set(possible)}")

    def _list(self, node: int) -> None:
        try:
            pages = self._client(node).get_paginator("list_objects_v2").paginate(Bucket=self._load.bucket, Prefix=self._prefix)
            listed = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
        except FAILURES as error:
            self._load.failed("list", node, self._prefix, error)
            return
        self._load.compare_listing(listed, self.possible)
        self._load.done["list"] += 1


def fetch(s3: Any, bucket: str, key: str, range_: str | None = None) -> bytes | None:
    """The content, or None where there is no such key."""
    try:
        answer = s3.get_object(Bucket=bucket, Key=key, **({"Range": range_} if range_ else {}))
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    return bytes(answer["Body"].read())


def describe(found: bytes | None) -> str:
    return "not there" if found is None else f"{len(found)} bytes beginning {found[:16].hex()}"
