"""What came of a run: a value that is written as JSON and read again, a table for people, and a row per second as CSV.

Owns: how counts of several processes become figures. Invariants: a report holds no secret; what it says of an operation follows from its
seconds and its histogram, which are in it. Not here: what is counted (`record.py`), comparing (`compare.py`), drawing (`plot.py`).
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import TextIO

import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import BENCH_REPORT_BYTES_MAX, BENCH_SATURATED, BENCH_SHOWN_MAX
from anvil.base.version import COMMIT, VERSION
from anvil.bench.histogram import Histogram
from anvil.bench.plan import Plan, Target
from anvil.bench.record import SECOND_NS, Failure, Result, Second
from anvil.bench.run import Outcome
from anvil.bench.sizes import shown

PERCENTILES = ("50", "90", "99", "99.9")
FORMAT = 1


class Bucket(msgspec.Struct, frozen=True):
    """A second of one operation. Latencies in microseconds, of requests that succeeded; 0 where there was none."""

    second: int
    requests: int
    bytes: int
    failed: int
    p50_us: float
    p99_us: float
    max_us: float


class Figures(msgspec.Struct, frozen=True):
    """Of one operation in `seconds`. `latency_us`: `min`, `mean`, `p50` ... `max`; `histogram`: HdrHistogram's V2 compressed log format,
    of nanoseconds."""

    requests: int
    bytes: int
    failed: int
    seconds: float
    per_second: float
    bytes_per_second: float
    latency_us: dict[str, float]
    histogram: str
    buckets: list[Bucket]

    @property
    def whole(self) -> list[Bucket]:
        """The seconds that were full; all where none was."""
        return self.buckets[: int(self.seconds + 1e-6)] or self.buckets


class Process(msgspec.Struct, frozen=True):
    """What a client process took of a core, user and system."""

    cpu_s: float
    wall_s: float

    @property
    def share(self) -> float:
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


class Report(msgspec.Struct, frozen=True):
    """`failures` are counted from the first request on; `damaged`: some of the objects that were not what was stored; `cores`: of the
    client's machine; `left`: what was not removed, and why; `notes`: what somebody must know who reads the figures."""

    format: int
    anvil: str
    started: str
    endpoint: str
    bucket: str
    plan: Plan
    machine: str
    cores: int
    interrupted: bool
    operations: dict[str, Figures]
    failures: list[Failure]
    damaged: list[str]
    processes: list[Process]
    notes: list[str]
    left: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything was not as it should be."""
        return bool(self.failures)


def build(target: Target, plan: Plan, outcome: Outcome, started_s: float) -> Report:
    """`started_s`: Unix seconds."""
    results = outcome.results
    seconds = _seconds(plan, outcome)
    names = sorted({name for result in results for name in result.series}, key=lambda name: (name == "multipart", name))
    operations = {name: _figures([result for result in results if name in result.series], name, seconds) for name in names}
    processes = [Process(round(result.cpu_s, 3), round(result.wall_s, 3)) for result in results]
    return Report(
        FORMAT,
        f"{VERSION} {COMMIT}".strip(),
        datetime.datetime.fromtimestamp(started_s, datetime.UTC).isoformat(timespec="seconds"),
        target.url,
        target.bucket,
        plan,
        f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        os.cpu_count() or 1,
        outcome.interrupted,
        operations,
        _failures(results),
        [line for result in results for line in result.damaged][:BENCH_SHOWN_MAX],
        processes,
        _notes(plan, results, processes),
        outcome.left,
    )


def _seconds(plan: Plan, outcome: Outcome) -> float:
    """How long the window was: as planned, or until the last answer where it ended before."""
    last = max((result.last_ns for result in outcome.results), default=0) / SECOND_NS
    early = outcome.interrupted or any(result.note for result in outcome.results)
    return last if plan.count or early else plan.duration_s


def _figures(results: list[Result], name: str, seconds: float) -> Figures:
    series = [result.series[name] for result in results]
    length = max(len(one.seconds) for one in series)
    whole, buckets = Histogram(one.late for one in series), []
    for at in range(max(length, int(seconds))):
        parts = [one.seconds[at] if at < len(one.seconds) else Second() for one in series]
        latency = Histogram(part.latency for part in parts)
        whole.add(latency.counts)
        buckets.append(
            Bucket(
                at,
                sum(part.requests for part in parts),
                sum(part.bytes for part in parts),
                sum(part.failed for part in parts),
                _us(latency.percentile(50)),
                _us(latency.percentile(99)),
                _us(latency.largest),
            )
        )
    requests, nbytes = sum(one.requests for one in buckets), sum(one.bytes for one in buckets)
    figures = {"min": _us(whole.smallest), "mean": _us(whole.mean)}
    figures |= {f"p{percent}": _us(whole.percentile(float(percent))) for percent in PERCENTILES}
    figures["max"] = _us(whole.largest)
    per_second, bytes_per_second = (round(total / seconds, 3) if seconds else 0.0 for total in (requests, nbytes))
    failed = sum(one.failed for one in buckets)
    return Figures(requests, nbytes, failed, round(seconds, 6), per_second, bytes_per_second, figures, whole.encode(), buckets)


def _us(value_ns: float) -> float:
    return round(value_ns / 1000, 1)


def _failures(results: list[Result]) -> list[Failure]:
    """By operation and code, the most frequent first."""
    found: dict[tuple[str, str], Failure] = {}
    for one in (failure for result in results for failure in result.failures):
        known = found.get((one.operation, one.code))
        found[one.operation, one.code] = msgspec.structs.replace(one, count=one.count + (known.count if known else 0))
    return sorted(found.values(), key=lambda one: -one.count)


def _notes(plan: Plan, results: list[Result], processes: list[Process]) -> list[str]:
    notes = [f"process {number}: {result.note}" for number, result in enumerate(results) if result.note]
    if plan.rate:
        behind = sum(result.not_begun for result in results)
        notes.append(f"open loop, {plan.rate:g} requests/s: a latency counts from when its request was due")
        if behind:
            notes.append(f"{behind} requests that were due were not begun: no connection was free for them")
    else:
        notes.append(
            f"closed loop, {plan.concurrency} connections: a slow answer also delays the next request, so that stalls weigh less "
            "than with --rate (coordinated omission)"
        )
    busy = max((one.share for one in processes), default=0.0)
    if busy > BENCH_SATURATED:
        notes.append(
            f"a client process took {busy:.0%} of a core: the figures may be the client's; give it more --processes or another machine"
        )
    return notes


def load(path: str) -> Report:
    """Raises InvalidSetting for a file that is none of `--json`."""
    try:
        data = Path(path).read_bytes() if Path(path).stat().st_size <= BENCH_REPORT_BYTES_MAX else b""
        report = msgspec.json.decode(data, type=Report)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{path} is no report of `anvil bench --json`: {error}") from None
    if report.format != FORMAT:
        raise InvalidSetting(f"{path} has format {report.format}; this version reads {FORMAT}")
    return report


def write_json(report: Report, path: str) -> None:
    """Raises OSError."""
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def write_csv(report: Report, file: TextIO) -> None:
    """A row for each second of each operation."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("second", "operation", "requests", "bytes", "failed", "p50_us", "p99_us", "max_us"))
    for name, figures in report.operations.items():
        for one in figures.buckets:
            rows.writerow((one.second, name, *msgspec.structs.astuple(one)[1:]))


def text(report: Report) -> str:
    """For people."""
    plan = report.plan
    seconds = max((one.seconds for one in report.operations.values()), default=0.0)
    lines = [
        f"{plan.operation} on {report.endpoint}, bucket {report.bucket}: {plan.concurrency} connections of {plan.processes} processes, "
        f"objects of {plan.size}, {seconds:.1f} s{' (interrupted)' if report.interrupted else ''}",
        "",
        f"{'':<10} {'requests/s':>12} {'per second':>14}"
        + "".join(f" {name:>10}" for name in ("p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"))
        + f" {'failed':>8}",
    ]
    for name, one in report.operations.items():
        latency = "".join(f" {one.latency_us[at] / 1000:>10,.3f}" for at in ("p50", "p90", "p99", "p99.9", "max"))
        volume = shown(one.bytes_per_second) if one.bytes else ""
        lines.append(f"{name:<10} {one.per_second:>12,.1f} {volume:>14}{latency} {one.failed:>8,}")
    lines.append("")
    for name, one in report.operations.items():
        rates = [bucket.requests for bucket in one.whole]
        lines.append(
            f"{name}: {one.requests:,} requests; in one second {min(rates):,} to {max(rates):,}, median {statistics.median(rates):,.0f}"
        )
    lines += [f"failed: {one.operation} {one.code}, {one.count:,} times, first {one.example}" for one in report.failures]
    lines += [f"damaged: {line}" for line in report.damaged]
    lines.append(_client(report))
    lines += [f"note: {line}" for line in report.notes]
    if report.left:
        lines.append(f"note: {report.left}")
    return "\n".join(lines)


def _client(report: Report) -> str:
    """What the client itself took."""
    each = ", ".join(f"{one.share:.0%}" for one in report.processes)
    wall = max((one.wall_s for one in report.processes), default=0.0)
    whole = sum(one.cpu_s for one in report.processes) / wall / report.cores if wall else 0.0
    return f"client: {whole:.0%} of {report.cores} cores (of one core, each process: {each})"
