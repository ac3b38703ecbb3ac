"""The node's numbers in Prometheus' text format: the merged snapshots of all processes, and `process_*` over all of them.

Owns: the translation to prometheus_client's families, and compression. Runs in the background process, off the request
loops. Invariant: a worker that died keeps its share of every counter (its last snapshot is added to what remains), so
that sums never fall. Not here: counting (`base/metrics.py`), who may read them (`node/endpoints.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as PrometheusMetric
from prometheus_client.registry import Collector

from anvil.base.metrics import PREFIX, Family, Snapshot, merge

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ProcessMetrics:
    """The last snapshot of each living process, and what dead ones left behind."""

    def __init__(self) -> None:
        self._living: dict[str, Snapshot] = {}
        self._left: Snapshot = []

    def update(self, process: str, snapshot: Snapshot) -> None:
        self._living[process] = snapshot

    def gone(self, process: str) -> None:
        """A process ended: keep its counters and histograms, drop its gauges."""
        last = self._living.pop(process, [])
        self._left = merge([self._left, [family for family in last if family.kind != "gauge"]])

    def merged(self) -> Snapshot:
        return merge([self._left, *self._living.values()])


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[PrometheusMetric]:
        for family in self._snapshot:
            yield _family(family)


def _family(family: Family) -> PrometheusMetric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, numbers in family.items():
            total, buckets = 0.0, []
            for bound, count in zip((*family.buckets, float("inf")), numbers[:-1], strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
            histogram.add_metric(labels, buckets, sum_value=numbers[-1])
        return histogram
    simple: CounterMetricFamily | GaugeMetricFamily
    if family.kind == "counter":
        simple = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        simple = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, numbers in family.items():
        simple.add_metric(labels, numbers[0])
    return simple


class ProcessTotals(msgspec.Struct):
    """Sums over processes, from /proc."""

    cpu_s: float = 0.0
    virtual_bytes: float = 0.0
    resident_bytes: float = 0.0
    open_fds: float = 0.0
    max_fds: float = 0.0
    start_s: float = 0.0


def process_totals(pids: Sequence[int]) -> ProcessTotals:
    """What the processes use together; `max_fds` is the smallest limit, `start_s` the earliest start (Unix time)."""
    totals = ProcessTotals()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for pid in pids:
        proc = Path("/proc", str(pid))
        try:
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            limits = (proc / "limits").read_text()
            fds = len(list((proc / "fd").iterdir()))
        except OSError:
            continue  # it ended meanwhile
        totals.cpu_s += (int(fields[11]) + int(fields[12])) / ticks
        totals.virtual_bytes += int(fields[20])
        totals.resident_bytes += int(fields[21]) * page
        totals.open_fds += fds
        limit = next((line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")), "0")
        if limit.isdigit():
            totals.max_fds = min(totals.max_fds or float(limit), float(limit))
        start = boot + int(fields[19]) / ticks
        totals.start_s = min(totals.start_s or start, start)
    return totals


class _ProcessCollector(Collector):
    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[PrometheusMetric]:
        totals = process_totals(self._pids)
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of all processes of the node.", value=totals.cpu_s)
        for name, text, value in (
            ("process_virtual_memory_bytes", "Virtual memory of all processes of the node.", totals.virtual_bytes),
            ("process_resident_memory_bytes", "Resident memory of all processes of the node.", totals.resident_bytes),
            ("process_open_fds", "Open file descriptors of all processes of the node.", totals.open_fds),
            ("process_max_fds", "Least limit of open file descriptors.", totals.max_fds),
            ("process_start_time_seconds", "When the oldest process started.", totals.start_s),
            (PREFIX + "processes", "Processes of the node.", float(len(self._pids))),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def exposition(snapshot: Snapshot, pids: Sequence[int]) -> bytes:
    """The text of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    registry.register(_ProcessCollector(pids))
    return generate_latest(registry)
