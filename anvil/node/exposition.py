"""The node's numbers in Prometheus' text format: the merged snapshots of all processes, and `process_*` over all of them.

Owns: the text, and what dead processes left behind. Put together here because a scrape has 50 ms: prometheus_client's own families take
50 to 60 for 2,000 buckets, this 10 (`python -m bench.micro.metrics`); how a number is written is the library's. Runs in the background
process, off the request loops. Invariants: a worker that died keeps its share of every counter (its last snapshot is added to what
remains), so that sums never fall; every family is told once, whatever the labels hold. Not here: counting (`base/metrics.py`), who may
read them (`node/endpoints.py`). Source: Prometheus documentation, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

from anvil.base.metrics import Family, Snapshot, merge
from anvil.node.process_use import ProcessTotals

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_VALUE_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_EXACT = float(1 << 53)  # below it a whole number is written as one


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

    def snapshots(self) -> list[Snapshot]:
        """What the node's numbers are the sum of. Nothing in it is changed any more, so another thread may `merge` it."""
        return [self._left, *self._living.values()]


def number(value: float) -> str:
    """A sample's value as the format has it (Go's ParseFloat)."""
    if -_EXACT < value < _EXACT:
        whole = int(value)
        return str(whole) if whole == value else str(floatToGoString(value))  # type: ignore[no-untyped-call]
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text.translate(_HELP_ESCAPES)}\n# TYPE {name} {kind}\n"


def _series(family: Family) -> Iterator[tuple[str, list[float]]]:
    """`a="1",b="2"` and the numbers of each series."""
    template = ",".join(f'{label}="%s"' for label in family.labels)
    for key, values in family.series.items():  # of joined label values
        plain = "\\" not in key and '"' not in key and "\n" not in key
        text = key if plain else key.translate(_VALUE_ESCAPES)
        yield (template % tuple(text.split("\0")) if template else ""), values


def _simple(family: Family) -> Iterator[str]:
    name = family.name
    for labels, values in _series(family):
        yield f"{name}{{{labels}}} {number(values[0])}\n" if labels else f"{name} {number(values[0])}\n"


def _histogram(family: Family) -> Iterator[str]:
    name = family.name
    bounds = [f'le="{float(bound)}"}} ' for bound in family.buckets] + ['le="+Inf"} ']
    for labels, values in _series(family):
        before = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
        total = 0.0
        for bound, count in zip(bounds, values, strict=False):  # behind the counts comes the sum
            total += count
            yield f"{before}{bound}{total:.0f}\n"
        own = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{own} {number(values[-1])}\n{name}_count{own} {total:.0f}\n"


def _family(family: Family) -> Iterator[str]:
    yield _head(family.name, family.kind, family.help)
    yield from _histogram(family) if family.kind == "histogram" else _simple(family)


def _process(totals: ProcessTotals) -> Iterator[str]:
    """The names that every program has for it (Prometheus, "Writing client libraries", process metrics)."""
    yield _head("process_cpu_seconds_total", "counter", "CPU time of all processes of the node.")
    yield f"process_cpu_seconds_total {number(totals.cpu_s)}\n"
    for name, text, value in (
        ("process_virtual_memory_bytes", "Virtual memory of all processes of the node.", totals.virtual_bytes),
        ("process_resident_memory_bytes", "Resident memory of all processes of the node.", totals.resident_bytes),
        ("process_open_fds", "Open file descriptors of all processes of the node.", totals.open_fds),
        ("process_max_fds", "Least limit of open file descriptors.", totals.max_fds),
        ("process_start_time_seconds", "When the oldest process started.", totals.start_s),
    ):
        yield f"{_head(name, 'gauge', text)}{name} {number(value)}\n"


def exposition(snapshots: Sequence[Snapshot], totals: ProcessTotals) -> bytes:
    """The text of a scrape: the sum of the snapshots."""
    lines = [line for family in merge(snapshots) for line in _family(family)]
    return "".join([*lines, *_process(totals)]).encode("utf-8", "replace")
