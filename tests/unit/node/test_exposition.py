"""The text of a scrape: what the format asks for, what promtool and Prometheus' own parser make of it, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from anvil.api.finished import Finished
from anvil.base import instruments
from anvil.base.limits import METRICS_SERIES_MAX
from anvil.base.metrics import REGISTRY, Registry, Snapshot
from anvil.net.port import NetStats
from anvil.node import gauges, observe
from anvil.node.exposition import exposition, number
from anvil.node.process_use import ProcessTotals, ProcessUse
from tests.support.node import wait_until
from tests.support.prometheus import promtool
from tests.support.toy_parts import many_buckets

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
SCRAPE_MS = 50.0
WORKERS = 8


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """The registry is that of the process: every test begins and ends with empty metrics."""
    for metric in REGISTRY.metrics.values():
        metric.clear()
    yield
    for metric in REGISTRY.metrics.values():
        metric.clear()


def read(text: bytes) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


def own() -> Samples:
    return read(exposition([REGISTRY.snapshot()], ProcessTotals()))


def worker() -> Snapshot:
    """The numbers of a worker that has met every operation of both APIs."""
    made = Registry()
    requests = made.counter("api_requests_total", "Requests.", "api", "operation", "code")
    duration = made.histogram("api_request_duration_seconds", "Time.", "api", "operation")
    ttfb = made.histogram("api_ttfb_seconds", "Time.", "api", "operation")
    for operation in range(60):
        requests.labels("s3", f"operation-{operation}", "200").inc()
        duration.labels("s3", f"operation-{operation}").observe(0.1)
        ttfb.labels("s3", f"operation-{operation}").observe(0.1)
    return made.snapshot()


def buckets(count: int) -> Snapshot:
    gauges.publish_usage(many_buckets(count))
    return REGISTRY.snapshot()


# -- the format ------------------------------------------------------------------------------------------------------------------


def test_label_values_of_any_kind_arrive_as_they_are() -> None:
    made = Registry()
    metric = made.gauge("x", 'Help with a \\ and a "quote"\nand a second line.', "tenant", "bucket")
    values = [("plain", "b"), ('with "quotes"', "b"), ("back\\slash", "b\\"), ("two\nlines", "b"), ("größer ☃", "b"), ("", "")]
    for place, value in enumerate(values):
        metric.labels(*value).set(place)
    found = read(exposition([made.snapshot()], ProcessTotals()))
    for place, (tenant, bucket) in enumerate(values):
        assert found["anvil_x", (("bucket", bucket), ("tenant", tenant))] == place


def test_numbers_are_written_as_go_reads_them() -> None:
    assert [number(value) for value in (0.0, -1.0, 3.0, 0.25, 1e-9, 2.0**52, 1e22)] == [
        "0", "-1", "3", "0.25", "1e-09", "4503599627370496", "1e+22",
    ]  # fmt: skip
    assert [number(value) for value in (float("inf"), float("-inf"), float("nan"))] == ["+Inf", "-Inf", "NaN"]


def test_promtool_finds_nothing_wrong_with_any_metric() -> None:
    """Every declared metric, with a series, as a node would tell it."""
    for metric in REGISTRY.metrics.values():
        child = metric.labels(*(f"a-{label}" for label in metric.family.labels))
        child.observe(0.01) if metric.family.kind == "histogram" else child.inc()  # type: ignore[union-attr]
    text = exposition([REGISTRY.snapshot()] * 2, ProcessUse().read([os.getpid()]))
    checked = promtool("check", "metrics", text=text)
    assert checked.returncode == 0, checked.stdout.decode()
    assert not checked.stdout, checked.stdout.decode()
    told = {family.name for family in text_string_to_metric_families(text.decode())}
    assert {metric.family.name.removesuffix("_total") for metric in REGISTRY.metrics.values()} <= told


def test_promtool_finds_what_is_wrong() -> None:
    """The check above can fail."""
    assert promtool("check", "metrics", text=b"# TYPE anvil_x counter\nanvil_x 1\n").returncode != 0


# -- more label sets than series ---------------------------------------------------------------------------------------------------


def test_of_too_many_buckets_the_largest_have_a_series_and_the_others_share_one() -> None:
    extra = 30
    for _ in range(3):  # as often as the background reads it: nothing adds up
        gauges.publish_usage(many_buckets(METRICS_SERIES_MAX + extra))
    instruments.METRICS_DROPPED_SERIES.set(REGISTRY.dropped_series)
    found = own()
    other = (("bucket", "_other"), ("tenant", "_other"))
    assert found["anvil_bucket_usage_bytes", other] == sum(range(extra)) * 1000
    assert found["anvil_bucket_objects", other] == sum(range(extra))
    assert ("anvil_bucket_usage_bytes", (("bucket", f"bucket-{extra:05}"), ("tenant", "tenant"))) in found
    assert ("anvil_bucket_usage_bytes", (("bucket", f"bucket-{extra - 1:05}"), ("tenant", "tenant"))) not in found
    total = sum(range(METRICS_SERIES_MAX + extra))
    assert found["anvil_tenant_usage_bytes", (("tenant", "tenant"),)] == total * 1000
    assert found["anvil_metrics_dropped_series", ()] == 2 * extra, "label sets of two metrics, not how often they were met"
    gauges.publish_usage(many_buckets(5))
    assert REGISTRY.dropped_series == 0


# -- what is counted ---------------------------------------------------------------------------------------------------------------


def test_the_last_backup_is_told_and_absent_before_there_is_one() -> None:
    gauges.publish_backup(None)
    assert not any(name.startswith("anvil_backup") for name, _ in own())
    gauges.publish_backup('{"finished_us": 1700000000250000, "objects": 7}')
    assert own()["anvil_backup_last_success_timestamp_seconds", ()] == 1700000000.25
    gauges.publish_backup('"what is this"')
    assert not any(name.startswith("anvil_backup") for name, _ in own())


def finished(status: int, error: str) -> Finished:
    return Finished("s3", "other", "GET", "/", "127.0.0.1", "R", "", status, error, 0.01, 0.005, 3, 4, status >= 500)


def test_who_could_not_say_who_he_is_was_refused_before_anything_ran() -> None:
    for status, error in (
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (403, "RequestTimeTooSkewed"),
        (404, "NoSuchKey"),
        (200, ""),
    ):
        observe.request_counted(finished(status, error))
    found = own()
    rejected = {labels: value for (name, labels), value in found.items() if name == "anvil_api_rejected_total"}
    assert rejected == {(("reason", "signature"),): 1, (("reason", "clock_skew"),): 2}
    assert found["anvil_api_errors_total", (("api", "s3"), ("error", "NoSuchKey"), ("operation", "other"))] == 1
    assert found["anvil_api_requests_total", (("api", "s3"), ("code", "403"), ("operation", "other"))] == 3
    assert found["anvil_api_received_bytes_total", (("api", "s3"),)] == 15


def test_what_the_port_refuses_is_told_by_reason() -> None:
    stats = NetStats()
    stats.rejected["address"] = 4
    stats.refusals.update({"SlowDown": 3, "BadRequest": 2, "RequestHeaderSectionTooLarge": 1, "Http2": 5, "Tls": 6})
    assert observe.rejected_before(stats) == {"address": 4, "busy": 3, "header": 3, "protocol": 11}


def test_processor_time_never_falls_when_a_process_ends() -> None:
    use, busy = ProcessUse(), subprocess.Popen([sys.executable, "-c", "while True: pass"])
    both = [os.getpid(), busy.pid]
    try:
        wait_until("it has used some time", lambda: ProcessUse().read([busy.pid]).cpu_s >= 0.2)
        before = use.read(both)
    finally:
        busy.kill()
        busy.wait()
    after = use.read(both)
    assert before.cpu_s <= after.cpu_s < before.cpu_s + 0.2 + ProcessUse().read([os.getpid()]).cpu_s
    assert after.cpu_s >= ProcessUse().read([os.getpid()]).cpu_s + 0.15
    assert after.resident_bytes < before.resident_bytes


def test_a_process_that_was_overlooked_once_is_not_counted_twice() -> None:
    use, busy = ProcessUse(), subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        wait_until("it has used some time", lambda: use.read([busy.pid]).cpu_s >= 0.2)
        use.read([])
        again, alone = use.read([busy.pid]).cpu_s, ProcessUse().read([busy.pid]).cpu_s
    finally:
        busy.kill()
        busy.wait()
    assert again <= alone


# -- what it costs -----------------------------------------------------------------------------------------------------------------


def test_a_scrape_of_2000_buckets_and_many_workers_takes_less_than_50_ms() -> None:
    snapshots = [buckets(METRICS_SERIES_MAX), *(worker() for _ in range(WORKERS))]
    use, best_ms = ProcessUse(), float("inf")
    for _ in range(7):  # processor time, the best of some: others use the machine as well
        began = time.process_time()
        text = exposition(snapshots, use.read([os.getpid()] * (WORKERS + 2)))
        best_ms = min(best_ms, (time.process_time() - began) * 1000)
    assert sum(line.startswith(b"anvil_bucket_") for line in text.splitlines()) == 2 * METRICS_SERIES_MAX
    assert best_ms < SCRAPE_MS


def test_a_worker_gives_its_numbers_within_a_few_milliseconds() -> None:
    """That is all of a scrape that happens on a request loop, beside the sending of the text."""
    for operation in range(120):
        instruments.API_DURATION.labels("s3", f"operation-{operation}").observe(0.1)
        instruments.API_TTFB.labels("s3", f"operation-{operation}").observe(0.1)
        instruments.API_REQUESTS.labels("s3", f"operation-{operation}", "200").inc()
    best_ms = float("inf")
    for _ in range(7):
        began = time.process_time()
        msgspec.msgpack.encode(REGISTRY.snapshot())
        best_ms = min(best_ms, (time.process_time() - began) * 1000)
    assert best_ms < 5.0
