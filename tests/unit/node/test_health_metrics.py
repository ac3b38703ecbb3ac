"""Readiness rules and the merging of metrics, without processes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from anvil.base.errors import DatabaseUnavailable
from anvil.base.limits import METRICS_SERIES_MAX, READY_STALE_S
from anvil.base.metrics import Registry, merge
from anvil.node.exposition import ProcessMetrics, exposition
from anvil.node.health import Check, DriveProbe, HealthMonitor, Standing, WorkerReport, judged, lone
from anvil.node.process_use import ProcessUse
from tests.support.toy_parts import marked


class Flaky:
    def __init__(self) -> None:
        self.down = False

    async def check(self) -> None:
        if self.down:
            raise DatabaseUnavailable("away")


def monitor(tmp_path: Path, drives: int = 1, k: int = 1, quorum: int = 1) -> tuple[HealthMonitor, Flaky, list[WorkerReport]]:
    database, reports = Flaky(), [WorkerReport(0.0, True)]
    probes = []
    for number in range(drives):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "drive.json").touch()
        probes.append(DriveProbe(tmp_path / f"d{number}", f"d{number}", marked(tmp_path / f"d{number}")))
    checks = [Check("global_database", database.check, forgiving=True)]
    return HealthMonitor("n", checks, probes, lone(k, quorum), 1, lambda: reports), database, reports


def statuses(health: HealthMonitor, rounds: int = 1) -> list[str]:
    async def inside() -> list[str]:
        return [(await health.take()).readiness.status for _ in range(rounds)]

    return asyncio.run(inside())


def test_one_database_blip_is_forgiven_once(tmp_path: Path) -> None:
    health, database, _ = monitor(tmp_path)
    assert statuses(health) == ["ready"]
    database.down = True
    assert statuses(health, 3) == ["ready", "not_ready", "not_ready"]
    database.down = False
    assert statuses(health) == ["ready"]


def test_a_node_starts_only_when_everything_is_well_once(tmp_path: Path) -> None:
    health, database, reports = monitor(tmp_path)
    database.down = True
    assert statuses(health) == ["starting"], "nothing is forgiven before it ever worked"
    database.down = False
    reports.clear()
    assert statuses(health) == ["starting"]
    reports.append(WorkerReport(0.0, False))
    assert statuses(health) == ["starting"], "no lease yet"
    reports[:] = [WorkerReport(0.0, True)]
    assert statuses(health) == ["ready"]
    reports[:] = [WorkerReport(3.0, True)]
    assert statuses(health) == ["ready"], "a blip"
    assert statuses(health) == ["not_ready"], "a stalled loop"


def test_a_lost_drive_that_is_not_missed_leaves_the_node_ready(tmp_path: Path) -> None:
    health, _, _ = monitor(tmp_path, drives=3, k=2, quorum=3)
    assert statuses(health) == ["ready"]
    (tmp_path / "d0" / "drive.json").unlink()
    snapshot = asyncio.run(health.take())
    assert snapshot.readiness.status == "ready"
    assert snapshot.readiness.checks["drive:d0"].ok is False
    assert not snapshot.standing.write_quorum
    (tmp_path / "d1" / "drive.json").unlink()
    snapshot = asyncio.run(health.take())
    assert snapshot.readiness.status == "not_ready"
    assert snapshot.readiness.reasons == ("drives: 1 of 3 take a write, 2 are needed to serve anything",)
    assert not (tmp_path / "d0" / ".anvil-ready").stat().st_size > 8


def test_a_hanging_check_is_cut_and_a_stale_snapshot_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import anvil.node.health as module

    health = HealthMonitor(
        "n", [Check("global_database", lambda: asyncio.sleep(60))], [], lone(1, 1), 1, lambda: [WorkerReport(0.0, True)]
    )
    with monkeypatch.context() as patched:  # the checks below may take their time
        patched.setattr(module, "READY_CHECK_TIMEOUT_S", 0.05)
        snapshot = asyncio.run(health.take())
    assert snapshot.readiness.reasons == ("global_database: no answer within 0.05 s",)
    monkeypatch.undo()
    good = asyncio.run(monitor(tmp_path)[0].take())
    assert judged(good, "n", False, good.taken_at + READY_STALE_S - 0.1).status == "ready"
    assert judged(good, "n", False, good.taken_at + READY_STALE_S + 0.1).status == "not_ready"
    assert judged(good, "n", True, good.taken_at).status == "draining"
    assert judged(None, "n", False, 0.0).status == "starting"


def registry(requests: int, in_flight: int, seconds: tuple[float, ...]) -> Registry:
    made = Registry()
    made.counter("requests_total", "Requests.", "code").labels("200").inc(requests)
    made.gauge("in_flight", "Now.").set(in_flight)
    made.gauge("db_up", "Up.", "db", merge="max").labels("global").set(1)
    histogram = made.histogram("seconds", "Time.", buckets=(0.1, 1.0))
    for value in seconds:
        histogram.observe(value)
    return made


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_processes_are_summed_and_the_dead_keep_their_counters() -> None:
    numbers = ProcessMetrics()
    numbers.update("worker-0", registry(3, 2, (0.05, 0.1, 5.0)).snapshot())
    numbers.update("worker-1", registry(4, 1, (0.5,)).snapshot())
    found = samples(exposition(numbers.snapshots(), ProcessUse().read([os.getpid()])))
    assert found["anvil_requests_total", (("code", "200"),)] == 7
    assert found["anvil_in_flight", ()] == 3
    assert found["anvil_db_up", (("db", "global"),)] == 1
    assert found["anvil_seconds_bucket", (("le", "0.1"),)] == 2, "le means less or equal"
    assert found["anvil_seconds_bucket", (("le", "+Inf"),)] == 4
    assert found["anvil_seconds_count", ()] == 4
    assert found["anvil_seconds_sum", ()] == pytest.approx(5.65)
    numbers.gone("worker-0")
    numbers.update("worker-0", registry(1, 0, ()).snapshot())
    found = samples(exposition(numbers.snapshots(), ProcessUse().read([])))
    assert found["anvil_requests_total", (("code", "200"),)] == 8
    assert found["anvil_in_flight", ()] == 1


def test_series_are_bounded() -> None:
    made = Registry()
    counter = made.counter("x_total", "X.", "bucket")
    for number in range(METRICS_SERIES_MAX + 50):
        counter.labels(f"b{number}").inc()
    family = made.snapshot()[0]
    assert len(family.series) <= METRICS_SERIES_MAX + 1
    assert family.series["_other"] == [50.0]
    assert made.dropped_series == 50


def test_declarations_that_break_the_conventions_are_refused() -> None:
    made = Registry()
    with pytest.raises(ValueError, match="_total"):
        made.counter("requests", "Requests.")
    made.gauge("x", "X.", "a")
    with pytest.raises(ValueError, match="twice"):
        made.gauge("x", "X.")
    with pytest.raises(ValueError, match="labels"):
        made.metrics["x"].labels("1", "2")


def test_histograms_of_two_versions_do_not_mix() -> None:
    one, two = Registry(), Registry()
    one.histogram("s", "S.", buckets=(1.0,)).observe(0.5)
    two.histogram("s", "S.", buckets=(1.0, 2.0)).observe(0.5)
    assert merge([one.snapshot(), two.snapshot()])[0].series[""] == [1, 0, 0.5]


def test_process_totals_are_those_of_the_kernel() -> None:
    totals = ProcessUse().read([os.getpid(), 2**22 + 1])
    assert totals.resident_bytes > 10 << 20
    assert totals.open_fds >= 3
    assert totals.start_s > 1_700_000_000


def test_the_region_is_judged_without_what_workers_cannot_write_to(tmp_path: Path) -> None:
    told: list[tuple[int, frozenset[str]]] = []

    def standing(good: int, bad: frozenset[str]) -> Standing:
        told.append((good, bad))
        return Standing(1, not bad)

    health, _, reports = monitor(tmp_path, drives=3)
    health._standing = standing
    (tmp_path / "d2" / "drive.json").unlink()
    reports[0] = WorkerReport(0.0, True, {"d0": "full", "not here": "?"})
    snapshot = asyncio.run(health.take())
    assert told == [(2, frozenset({"d2"})), (1, frozenset({"d0", "d2"}))]
    assert snapshot.readiness.status == "ready" and not snapshot.standing.write_quorum
