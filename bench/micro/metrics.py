"""What counting and telling cost: counters and histograms beside prometheus_client's, a scrape, and what requests notice of it.

The last two figures are of a node of toy parts: real processes, channel and scrape, and requests that cost next to nothing, so that
whatever a scrape does to a request loop is seen. Run: python -m bench.micro.metrics
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from anvil.base import instruments
from anvil.base.limits import METRICS_SERIES_MAX
from anvil.base.metrics import REGISTRY, Registry, Snapshot
from anvil.node.exposition import exposition
from anvil.node.gauges import publish_usage
from anvil.node.process_use import ProcessUse
from bench.figures import figure
from tests.support.node import AnvilNode, wait_until
from tests.support.toy_parts import many_buckets

CALLS = 200_000
ROUNDS = 5
WORKERS = 4
SCRAPES = 30
REQUESTS = 3_000


def nanoseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9


def counting() -> None:
    registry = Registry()
    counter = registry.counter("calls_total", "Calls.", "kind").labels("x")
    histogram = registry.histogram("seconds", "Time.", "kind").labels("x")
    theirs = prometheus_client.CollectorRegistry()
    their_counter = prometheus_client.Counter("calls", "Calls.", ["kind"], registry=theirs).labels("x")
    their_histogram = prometheus_client.Histogram("seconds", "Time.", ["kind"], registry=theirs).labels("x")
    for name, call in (
        ("counter", counter.inc),
        ("histogram", lambda: histogram.observe(0.003)),
        ("counter, prometheus_client", their_counter.inc),
        ("histogram, prometheus_client", lambda: their_histogram.observe(0.003)),
    ):
        figure(f"metrics: {name}", nanoseconds(call), "ns")
    mine, least = nanoseconds(counter.inc), nanoseconds(Least().inc)
    figure(
        "metrics: counter, beside its limit", least / mine, "ratio", note=f"limit {least:.0f} ns: a method that adds to a slot"
    )


class Least:
    """What counting cannot cost less than in Python."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


def best_ms(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=1, repeat=SCRAPES)) * 1000


def worker() -> Snapshot:
    """The numbers of a worker that has met 60 operations."""
    for metric in REGISTRY.metrics.values():
        metric.clear()
    for number in range(60):
        instruments.API_REQUESTS.labels("s3", f"operation-{number}", "200").inc()
        instruments.API_DURATION.labels("s3", f"operation-{number}").observe(0.1)
        instruments.API_TTFB.labels("s3", f"operation-{number}").observe(0.1)
    return REGISTRY.snapshot()


class _Theirs(Collector):
    """The same buckets for prometheus_client."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name in ("anvil_bucket_usage_bytes", "anvil_bucket_objects"):
            family = GaugeMetricFamily(name, "Usage.", labels=["tenant", "bucket"])
            for row in many_buckets(METRICS_SERIES_MAX):
                family.add_metric((row.tenant, row.bucket), float(row.usage.bytes))
            yield family


def telling() -> None:
    one = worker()
    figure(
        "metrics: a worker's part of a scrape",
        best_ms(lambda: msgspec.msgpack.encode(REGISTRY.snapshot())),
        "ms",
        note="on its request loop",
    )
    for metric in REGISTRY.metrics.values():
        metric.clear()
    publish_usage(many_buckets(METRICS_SERIES_MAX))
    snapshots, use = [REGISTRY.snapshot(), *[one] * WORKERS], ProcessUse()
    took = best_ms(lambda: exposition(snapshots, use.read([os.getpid()] * (WORKERS + 2))))
    note = f"{METRICS_SERIES_MAX:,} buckets, {WORKERS} workers; in a thread of the background process"
    figure("metrics: text of a scrape", took, "ms", note=note)
    theirs = prometheus_client.CollectorRegistry(auto_describe=False)
    theirs.register(_Theirs())
    took = best_ms(lambda: prometheus_client.generate_latest(theirs))
    figure("metrics: text of these buckets alone, prometheus_client", took, "ms")


def latencies(node: AnvilNode, path: str, count: int) -> list[float]:
    """Milliseconds of so many requests, one after the other."""
    took = []
    while len(took) < count:
        connection = HTTPConnection(node.host, node.port, timeout=10)
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        connection.close()
        assert answer.status == 200, answer.status
    return sorted(took)


def at(took: Sequence[float], part: float) -> float:
    return took[min(len(took) - 1, int(len(took) * part))]


def scrape_on(node: AnvilNode, over: threading.Event) -> None:
    """150 times as often as Prometheus."""
    while not over.wait(0.1):
        latencies(node, "/metrics", 1)


def scraping() -> None:
    """Scrapes over HTTP, and requests beside them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        AnvilNode(Path(folder) / "data", {"ANVIL_WORKERS": "2"}, command=("tests.support.toy_server",)) as node,
    ):
        (node.data_dir / "many-buckets").write_text(str(METRICS_SERIES_MAX))
        wanted = sum(range(METRICS_SERIES_MAX))
        wait_until("the buckets are told", lambda: node.metric("anvil_bucket_objects") == wanted)
        scrapes = latencies(node, "/metrics", SCRAPES)
        figure("metrics: scrape over HTTP, median", at(scrapes, 0.5), "ms")
        alone = latencies(node, "/x", REQUESTS)
        over = threading.Event()
        scraper = threading.Thread(target=scrape_on, args=(node, over))
        scraper.start()
        beside = latencies(node, "/x", REQUESTS)
        over.set()
        scraper.join()
    note = f"{at(alone, 0.99):.1f} ms alone, {at(beside, 0.99):.1f} ms beside ten scrapes a second"
    grown = at(beside, 0.99) - at(alone, 0.99)
    figure("metrics: what scrapes add to a request's p99", grown, "ms", note=note)


def main() -> None:
    counting()
    telling()
    scraping()


if __name__ == "__main__":
    main()
