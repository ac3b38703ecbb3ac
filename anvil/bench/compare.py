"""Two reports side by side: per operation the ratio of throughput and of latencies, and whether it is more than the noise within the
runs.

    throughput      medians of the full seconds; noise is their median absolute deviation (MAD), times 1.4826, which is one standard
    deviation
                    where they are normally distributed
    p50, p99        of the whole run; noise is that of the seconds' own percentiles
    p90, p99.9      of the whole run, without a noise: a second does not have enough requests to say

A difference is called noise where it is no more than both deviations together. Owns: this rule. Not here: differences between runs,
which only several of each can show (`docs/BENCH.md`). Source: Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", 1993.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from anvil.base.limits import BENCH_BUCKETS_MIN
from anvil.bench.report import Bucket, Figures, Report

NORMAL: Final = 1.4826


class Side(msgspec.Struct, frozen=True):
    """`value`: of the whole run or the median of its seconds; `noise`: one deviation of the seconds, None where nothing says."""

    value: float
    noise: float | None


class Row(msgspec.Struct, frozen=True):
    """`ratio`: the second report by the first one, None where that has 0; `verdict`: `better`, `worse`, `within noise`, or `unknown`
    where there are too few seconds."""

    operation: str
    figure: str
    unit: str
    first: Side
    second: Side
    ratio: float | None
    verdict: str


def deviation(values: Sequence[float]) -> float | None:
    """Median absolute deviation, as a standard deviation. None for fewer than BENCH_BUCKETS_MIN values."""
    if len(values) < BENCH_BUCKETS_MIN:
        return None
    middle = statistics.median(values)
    return NORMAL * statistics.median(abs(value - middle) for value in values)


def compare(first: Report, second: Report) -> list[Row]:
    """Of every operation that both have."""
    rows: list[Row] = []
    for name, one in first.operations.items():
        other = second.operations.get(name)
        if other is None:
            continue
        rows.append(_row(name, "throughput", "requests/s", _rate(one), _rate(other), more_is_better=True))
        if one.bytes and other.bytes:
            sides = (_rate(one, lambda bucket: bucket.bytes / 1e6), _rate(other, lambda bucket: bucket.bytes / 1e6))
            rows.append(_row(name, "throughput", "MB/s", *sides, more_is_better=True))
        for figure in ("p50", "p90", "p99", "p99.9"):
            rows.append(_row(name, figure, "us", _latency(one, figure), _latency(other, figure), more_is_better=False))
    return rows


def differences(first: Report, second: Report) -> list[str]:
    """What else differs between the two, so that a ratio may not be what it seems."""
    plans = (msgspec.to_builtins(first.plan), msgspec.to_builtins(second.plan))
    names = [name for name in plans[0] if name not in ("prefix", "keep", "create_bucket") and plans[0][name] != plans[1][name]]
    found = [f"{name}: {plans[0][name]} and {plans[1][name]}" for name in names]
    found += [
        f"{name}: {getattr(first, name)} and {getattr(second, name)}"
        for name in ("endpoint", "machine", "cores")
        if getattr(first, name) != getattr(second, name)
    ]
    only = set(first.operations) ^ set(second.operations)
    return found + [f"only one of them has {name}" for name in sorted(only)]


def _rate(figures: Figures, of: Callable[[Bucket], float] = lambda bucket: float(bucket.requests)) -> Side:
    """By second; where no second was full, of the whole run."""
    if figures.seconds < 1:
        whole = sum(of(bucket) for bucket in figures.buckets)
        return Side(round(whole / figures.seconds, 3) if figures.seconds else 0.0, None)
    values = [of(bucket) for bucket in figures.whole]
    return Side(statistics.median(values), deviation(values))


def _latency(figures: Figures, figure: str) -> Side:
    field = {"p50": "p50_us", "p99": "p99_us"}.get(figure)
    noise = None
    if field is not None:
        noise = deviation([getattr(bucket, field) for bucket in figures.whole if bucket.requests])
    return Side(figures.latency_us[figure], noise)


def _row(operation: str, figure: str, unit: str, first: Side, second: Side, *, more_is_better: bool) -> Row:
    ratio = second.value / first.value if first.value else None
    verdict = "unknown"
    if first.noise is not None and second.noise is not None:
        difference = second.value - first.value
        if abs(difference) <= first.noise + second.noise:
            verdict = "within noise"
        else:
            verdict = "better" if (difference > 0) == more_is_better else "worse"
    return Row(operation, figure, unit, first, second, ratio, verdict)


def text(rows: list[Row]) -> str:
    """For people; `+-` is one deviation of the seconds."""
    lines = [f"{'operation':<10} {'figure':<22} {'A':>22} {'B':>22} {'B / A':>8}  verdict"]
    for row in rows:
        sides = [
            f"{side.value:,.1f}" + (f" +-{side.noise:,.1f}" if side.noise is not None else "") for side in (row.first, row.second)
        ]
        ratio = f"{row.ratio:.3f}" if row.ratio is not None else "-"
        lines.append(
            f"{row.operation:<10} {f'{row.figure}, {row.unit}':<22} {sides[0]:>22} {sides[1]:>22} {ratio:>8}  {row.verdict}"
        )
    return "\n".join(lines)
