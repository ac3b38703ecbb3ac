"""The S3 benchmarks on a real node: client and server on the same cores, fsync on, drives on disk unless said otherwise.

Each figure is printed as one JSON line: `name`, `value`, `unit`, and where there is a gate `ratio` (or the value itself) and `target`.
Every ratio is taken within this one run, its two sides in turn, medians of ROUNDS (of uploads, UPLOAD_TURNS).
Run: python -m bench.macro.s3 [small|large|list|memory|http2|tls].
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil

from anvil.auth.presign import UNSIGNED_PAYLOAD, presign, sign
from anvil.node.datadir import running_node
from bench.figures import figure
from bench.macro import load
from bench.macro.h2load import h2load, is_there
from bench.macro.memory import held
from tests.support.certificates import Pair, make_pair
from tests.support.node import AnvilNode

ROUNDS = 3
UPLOAD_TURNS = 4
MIB = 1 << 20
SMALL = 4096


@contextmanager
def node(*, workers: int = 2, drives: str | None = None, tls: Pair | None = None) -> Iterator[AnvilNode]:
    folder = Path(tempfile.mkdtemp(prefix="anvil-bench-"))
    env = {"ANVIL_WORKERS": str(workers)}
    if drives is not None:
        env["ANVIL_DRIVES"] = drives
    try:
        with AnvilNode(folder / "data", env=env, tls=tls) as running:
            running.s3().create_bucket(Bucket="bench")
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bare(size: int) -> Iterator[tuple[str, int]]:
    """The bare uvloop + httptools server answering `size` bytes from memory, in a process of its own."""
    command = [sys.executable, "-m", "bench.macro.bare_server", "--port", "0", "--size", str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        try:
            yield "127.0.0.1", port
        finally:
            process.terminate()


def address(running: AnvilNode) -> tuple[str, int]:
    parts = urlsplit(running.endpoint)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


class Signer:
    """Makes signed requests for a node, as bytes."""

    def __init__(self, running: AnvilNode) -> None:
        self._endpoint, self._region = running.endpoint, running.region
        self._access_key, self._secret = running.access_key, running.secret_key

    def __call__(self, method: str, target: str, body: bytes | None = None, length: int | None = None) -> bytes:
        """A whole request; without `body` but with `length` only its head (the payload is then unsigned)."""
        payload = UNSIGNED_PAYLOAD if body is None else hashlib.sha256(body).hexdigest()
        url = self._endpoint + target
        headers = sign(method, url, None, payload, self._access_key, self._secret, self._region, time.time())
        if body is not None or length is not None:
            headers["content-length"] = str(len(body) if body is not None else length)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


def require(outcome: load.Outcome, status: int = 200) -> load.Outcome:
    if set(outcome.statuses) != {status}:
        sys.exit(f"expected only {status}, got {outcome.statuses}")
    return outcome


def small_objects() -> None:
    """Durable PUT and GET of 4 KiB with 64 clients, beside the bare server."""
    rng = random.Random(1)
    puts, gets, bares = [], [], []
    latencies = []
    with held(), node() as running, bare(SMALL) as bare_at:
        host, port = address(running)
        request = Signer(running)
        for turn in range(ROUNDS):
            body = rng.randbytes(SMALL)
            requests = [request("PUT", f"/bench/{turn}/{n:06d}", body) for n in range(12_000)]
            outcome = require(load.run(host, port, requests, 64))
            puts.append(outcome.per_second)
            latencies.append(outcome.percentile(0.99))
            requests = [request("GET", f"/bench/{turn}/{n:06d}") for n in range(12_000)] * 2
            gets.append(require(load.run(host, port, requests, 64)).per_second)
            plain = [b"GET / HTTP/1.1\r\nhost: bare\r\n\r\n"] * 60_000
            bares.append(require(load.run(*bare_at, plain, 64)).per_second)
    base = statistics.median(bares)
    figure("bare uvloop + httptools server, 4 KiB answers, 64 clients", base, "requests/s")
    figure("durable PUT 4 KiB, 64 clients", statistics.median(puts), "requests/s")
    figure("durable PUT 4 KiB, 64 clients, 99th percentile", statistics.median(latencies) * 1000, "ms")
    figure("durable PUT 4 KiB beside the bare server", statistics.median(puts) / base, "ratio")
    figure("GET 4 KiB, 64 clients", statistics.median(gets), "requests/s")
    figure("GET 4 KiB beside the bare server", statistics.median(gets) / base, "ratio")


def md5_rate(data: bytes) -> float:
    """Scalar MD5, bytes per second."""
    begin = time.perf_counter()
    hashlib.md5(data, usedforsecurity=False).digest()
    return len(data) / (time.perf_counter() - begin)


class Ballast:
    """Pages of a tmpfs that are known to be backed by memory, handed out just before they are needed.

    On a virtual machine the host gives a page when it is first touched, which is slower (measured: 0.4 GB/s) than all that is to
    be measured here, and takes it back soon after it was freed, sooner when much is free at a time: so they are given a few at a time.
    """

    def __init__(self, folder: Path, nbytes: int) -> None:
        self._lock = threading.Lock()
        self._left = nbytes
        self._file = (folder / "ballast").open("w+b", buffering=0)
        data = os.urandom(MIB)
        for _ in range(nbytes // MIB):
            self._file.write(data)

    def give(self, nbytes: int) -> None:
        with self._lock:
            self._left -= nbytes
            self._file.truncate(self._left)


@contextmanager
def tmpfs() -> Iterator[tuple[Path, str]]:
    """A folder on a tmpfs, and what kind that is. With huge pages where we may mount one: with small ones the kernel takes 22 ms of a
    processor to find 64 MiB, with huge ones 5 to 10, and what is to be measured is the node."""
    folder = Path(tempfile.mkdtemp(prefix="anvil-bench-"))
    mount = ["mount", "-t", "tmpfs", "-o", "huge=always,mode=0755", "anvil-bench", str(folder)]
    if os.geteuid() == 0 and shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield folder, "tmpfs with huge pages"
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
            folder.rmdir()
        return
    folder.rmdir()
    folder = Path(tempfile.mkdtemp(prefix="anvil-bench-", dir="/dev/shm"))
    try:
        yield folder, "tmpfs"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def large_objects() -> None:
    """GET 10 MiB beside the bare server; PUT 64 MiB, drives on tmpfs, beside scalar MD5."""
    size = 10 * MIB
    anvil, plain = [], []
    with node() as running, bare(size) as bare_at:
        host, port = address(running)
        request = Signer(running)
        require(load.upload(host, port, [request("PUT", "/bench/ten", length=size)], memoryview(os.urandom(size)), 1))
        get = request("GET", "/bench/ten")
        for _ in range(ROUNDS * 5):  # short turns: the memory of a shared machine is faster in some seconds than in others
            outcome = require(load.download(host, port, [get] * 60, 1, size))
            anvil.append(outcome.count * size / outcome.seconds)
            outcome = require(load.download(*bare_at, [b"GET / HTTP/1.1\r\nhost: bare\r\n\r\n"] * 60, 1, size))
            plain.append(outcome.count * size / outcome.seconds)
    figure("bare uvloop server, GET 10 MiB, 1 connection", statistics.median(plain) / 1e9, "GB/s")
    figure("GET 10 MiB, 1 connection", statistics.median(anvil) / 1e9, "GB/s")
    figure("GET 10 MiB beside the bare server", statistics.median(anvil) / statistics.median(plain), "ratio")

    body = os.urandom(64 * MIB)
    one, many, one_ratios, many_ratios, scalar = [], [], [], [], []
    with tmpfs() as (folder, kind):
        ballast = Ballast(folder, UPLOAD_TURNS * (3 + 32) * len(body))
        with node(drives=str(folder / "drive")) as running:
            host, port = address(running)
            request = Signer(running)
            for turn in range(UPLOAD_TURNS):  # short, too
                for rates, ratios, streams, count in ((one, one_ratios, 1, 3), (many, many_ratios, 16, 32)):
                    scalar.append(md5_rate(body))
                    heads = [request("PUT", f"/bench/{streams}/{turn}/{n}", length=len(body)) for n in range(count)]
                    outcome = require(load.upload(host, port, heads, memoryview(body), streams, ballast.give))
                    rates.append(outcome.count * len(body) / outcome.seconds)
                    ratios.append(rates[-1] / scalar[-1])
    figure("scalar MD5", statistics.median(scalar) / 1e9, "GB/s")
    for rates, ratios, streams in ((one, one_ratios, "1 stream"), (many, many_ratios, "16 streams")):
        figure(f"PUT 64 MiB, {streams}, drives on {kind}", statistics.median(rates) / 1e9, "GB/s")
        figure(f"PUT 64 MiB, {streams}, beside scalar MD5", statistics.median(ratios), "ratio")


FILL = """
insert into objects (bucket_id, key, version_id, is_null, seq, size, etag, modified_us, attributes)
select $1, 'p' || (n % 10) || '/' || lpad(n::text, 9, '0'), decode(lpad(to_hex(n), 32, '0'), 'hex'), true, nextval('version_seq'), 0,
       'd41d8cd98f00b204e9800998ecf8427e', 1, '{}'
from generate_series(0, $2 - 1) as n
"""


def listing() -> None:
    """ListObjectsV2 with a delimiter: 1,000,000 keys under 10 prefixes against 1,000."""
    with node(workers=1) as running:
        s3 = running.s3()
        host, port = address(running)
        request = Signer(running)

        async def fill() -> None:
            urls = running_node(running.data_dir)
            assert urls is not None
            catalog, regional = await asyncpg.connect(urls.global_url), await asyncpg.connect(urls.regional_url)
            for name, keys in (("few", 1000), ("many", 1_000_000)):
                bucket_id = await catalog.fetchval("select bucket_id from buckets where name = $1", name)
                await regional.execute(FILL, bucket_id, keys, timeout=300)
            await regional.execute("analyze objects", timeout=300)
            await regional.close()
            await catalog.close()

        for name in ("few", "many"):
            s3.create_bucket(Bucket=name)
        asyncio.run(fill())
        times: dict[str, list[float]] = {"few": [], "many": []}
        for name in ("few", "many"):
            assert len(s3.list_objects_v2(Bucket=name, Delimiter="/")["CommonPrefixes"]) == 10
        for _ in range(ROUNDS * 3):
            for name in ("few", "many"):
                requests = [request("GET", f"/{name}?delimiter=%2F&list-type=2")] * 200
                outcome = require(load.run(host, port, requests, 1))
                times[name].append(outcome.seconds / outcome.count)
        few, many = (statistics.median(times[name]) * 1000 for name in ("few", "many"))
        figure("ListObjectsV2 with delimiter, 1,000 keys under 10 prefixes", few, "ms")
        figure("ListObjectsV2 with delimiter, 1,000,000 keys under 10 prefixes", many, "ms")
        figure("listing of a million keys beside a thousand", many / few, "ratio")


def worker_rss(running: AnvilNode) -> float:
    """Of the largest request worker, MiB."""
    return float(max(psutil.Process(pid).memory_info().rss for pid in running.worker_pids)) / MIB


def memory() -> None:
    """A worker's memory at rest, and with 64 uploads of 64 MiB at once."""
    with node(workers=1) as running:
        host, port = address(running)
        request = Signer(running)
        require(load.run(host, port, [request("PUT", f"/bench/{n}", b"x" * SMALL) for n in range(2000)], 64))
        figure("worker at rest, resident", worker_rss(running), "MiB")
        body = memoryview(os.urandom(64 * MIB))
        heads = [request("PUT", f"/bench/big/{n}", length=len(body)) for n in range(64)]
        peak, done = [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], worker_rss(running))

        watcher = threading.Thread(target=watch)
        watcher.start()
        require(load.upload(host, port, heads, body, 64))
        done.set()
        watcher.join()
        figure("worker with 64 uploads of 64 MiB, resident", peak[0], "MiB")


@contextmanager
def h2load_node(tls: Pair | None = None) -> Iterator[tuple[AnvilNode, Callable[[str, str, str], str], str]]:
    """A node with objects of 10 MiB (`ten`) and 4 KiB (`small`), what presigns a method on a key at an endpoint, and a file of 10 MiB."""
    with node(tls=tls) as running, tempfile.NamedTemporaryFile() as big:
        big.write(os.urandom(10 * MIB))
        big.flush()
        running.s3().upload_file(big.name, "bench", "ten")
        running.s3().put_object(Bucket="bench", Key="small", Body=os.urandom(SMALL))

        def url(endpoint: str, method: str, key: str) -> str:
            target = f"{endpoint}/bench/{key}"
            return presign(method, target, running.access_key, running.secret_key, running.region, 3600, time.time())

        yield running, url, big.name


def http2() -> None:
    """10 MiB and 4 KiB over HTTP/2 cleartext beside HTTP/1.1, with h2load as the client of both."""
    if not is_there():
        return
    with h2load_node() as (running, url, big):
        here = running.endpoint
        loads = {
            "GET 10 MiB, 1 connection": ["-n", "60", "-c", "1", url(here, "GET", "ten")],
            "GET 10 MiB, 4 at a time": ["-n", "120", "-c", "4", url(here, "GET", "ten")],
            "PUT 10 MiB, 4 at a time": ["-n", "40", "-c", "4", "-d", big, "-H", ":method: PUT", url(here, "PUT", "put")],
            "GET 4 KiB, 64 at a time": ["-n", "8000", "-c", "64", url(here, "GET", "small")],
        }
        for name, options in loads.items():
            turns = [(h2load("--h1", *options), h2load(*options)) for _ in range(ROUNDS)]
            figure(f"{name}, HTTP/1.1", statistics.median(one for one, _ in turns), "requests/s")
            figure(f"{name}, HTTP/2", statistics.median(two for _, two in turns), "requests/s")
            ratio = statistics.median(two / one for one, two in turns)
            figure(f"{name}, HTTP/2 beside HTTP/1.1", ratio, "ratio")


def tls() -> None:
    """TLS beside plaintext, over HTTP/1.1 and HTTP/2: what encryption costs, and what handshakes do (where each request has a connection
    of its own)."""
    if not is_there():
        return
    with tempfile.TemporaryDirectory() as folder, h2load_node(make_pair(Path(folder))) as (running, url, big):
        loads: dict[str, Callable[[str], list[str]]] = {
            "GET 10 MiB, 4 at a time": lambda at: ["-n", "80", "-c", "4", url(at, "GET", "ten")],
            "PUT 10 MiB, 4 at a time": lambda at: ["-n", "40", "-c", "4", "-d", big, "-H", ":method: PUT", url(at, "PUT", "put")],
            "GET 4 KiB, 64 at a time": lambda at: ["-n", "8000", "-c", "64", url(at, "GET", "small")],
            "GET 4 KiB, 200 new connections": lambda at: ["-n", "200", "-c", "200", url(at, "GET", "small")],
        }
        secure = f"https://127.0.0.1:{running.tls_port}"
        for name, options in loads.items():
            for title, flags in (("HTTP/1.1", ["--h1"]), ("HTTP/2", [])):
                turns = [(h2load(*flags, *options(running.endpoint)), h2load(*flags, *options(secure))) for _ in range(ROUNDS)]
                figure(f"{name}, {title} over TLS", statistics.median(sealed for _, sealed in turns), "requests/s")
                ratio = statistics.median(sealed / plain for plain, sealed in turns)
                figure(f"{name}, {title} over TLS beside plaintext", ratio, "ratio")


PARTS: dict[str, Callable[[], None]] = {
    "small": small_objects,
    "large": large_objects,
    "list": listing,
    "memory": memory,
    "http2": http2,
    "tls": tls,
}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
