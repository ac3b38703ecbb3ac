"""What is counted of a run, second by second, in one process.

    throughput      requests whose last byte came within the window: also of those that began in the warm-up, so that a long request is
    not
                    missing at one end alone
    latency         of requests that began within the window, also when their answer came after it
    errors          of all requests, from the first one of the warm-up

Owns: these rules. Invariant: a request is in exactly one second, or in none; one that failed is in no latency. Not here: what the
numbers say (`report.py`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from anvil.base.limits import BENCH_ERROR_KINDS_MAX, BENCH_SHOWN_MAX
from anvil.bench.exchange import Answer
from anvil.bench.histogram import index_of
from anvil.bench.http import TRANSPORT

SECOND_NS: Final = 1_000_000_000
FOREVER_NS: Final = 1 << 62
DAMAGED: Final = "damaged"


class Second(msgspec.Struct):
    """`latency`: bucket (`histogram.index_of`) -> how many."""

    requests: int = 0
    bytes: int = 0
    failed: int = 0
    latency: dict[int, int] = {}


class Series(msgspec.Struct):
    """Of one operation. `late`: latencies of requests that were answered after the window."""

    seconds: list[Second] = []
    late: dict[int, int] = {}


class Failure(msgspec.Struct):
    """`kind`: `s3` (an answer said so), `transport` (none came) or `content` (it was not what was stored); `example`: the first one."""

    operation: str
    kind: str
    code: str
    count: int
    example: str


class Result(msgspec.Struct):
    """Of one process. `not_begun`: requests that a rate asked for and no connection was free for; `cpu_s` of user and system in `wall_s`;
    `last_ns`: of the last answer in the window, from its begin; `note`: why it ended early, or ""."""

    series: dict[str, Series]
    failures: list[Failure]
    damaged: list[str]
    not_begun: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    last_ns: int = 0
    note: str = ""


class Recorder:
    """Times as of `now_ns`; the window is set once the run begins."""

    def __init__(self) -> None:
        self.begin_ns = FOREVER_NS
        self.end_ns = FOREVER_NS
        self.requests = self.bytes = self.failed = 0  # of all, for who looks on
        self.last_ns = 0
        self.answered_ns = 0  # the last answer that came, whatever it said
        self.broken = 0  # requests in a row that got none
        self.damaged: list[str] = []
        self._series: dict[str, Series] = {}
        self._failures: dict[tuple[str, str], Failure] = {}

    def window(self, begin_ns: int, end_ns: int) -> None:
        self.begin_ns, self.end_ns = begin_ns, end_ns
        self.answered_ns = begin_ns

    def add(self, operation: str, answer: Answer, nbytes: int, key: bytes = b"", damage: str = "") -> bool:
        """One request, `nbytes` of payload. `damage`: what is wrong with the answer beside what it says itself. Returns whether all was
        well."""
        damage = damage or answer.damage
        code = answer.code or (DAMAGED if damage else "")
        self.note(operation, answer.begun_ns, answer.ended_ns, nbytes, code)
        if answer.status:
            self.answered_ns = answer.ended_ns
            self.broken = 0
        else:
            self.broken += 1
        if not code:
            return True
        where = key.decode(errors="replace")
        if damage and not answer.code and len(self.damaged) < BENCH_SHOWN_MAX:
            self.damaged.append(f"{where}: {damage}")
        self._fail(operation, code, f"{where}: {damage}" if code == DAMAGED else where)
        return False

    def note(self, operation: str, begun_ns: int, ended_ns: int, nbytes: int, code: str) -> None:
        """In the second in which it ended."""
        if ended_ns < self.begin_ns:
            return
        series = self._series.get(operation)
        if series is None:
            series = self._series[operation] = Series()
        if ended_ns >= self.end_ns:
            latency = series.late
            if code:
                return
        else:
            at, seconds = (ended_ns - self.begin_ns) // SECOND_NS, series.seconds
            while at >= len(seconds):
                seconds.append(Second())
            second = seconds[at]
            self.last_ns = ended_ns - self.begin_ns
            if code:
                second.failed += 1
                self.failed += 1
                return
            second.requests += 1
            second.bytes += nbytes
            self.requests += 1
            self.bytes += nbytes
            latency = second.latency
        if self.begin_ns <= begun_ns < self.end_ns:
            index = index_of(ended_ns - begun_ns)
            latency[index] = latency.get(index, 0) + 1

    def _fail(self, operation: str, code: str, example: str) -> None:
        known = self._failures.get((operation, code))
        if known is None:
            if len(self._failures) >= BENCH_ERROR_KINDS_MAX:
                code = "other"
            kind = "content" if code == DAMAGED else "transport" if code in TRANSPORT else "s3"
            known = self._failures.setdefault((operation, code), Failure(operation, kind, code, 0, example))
        known.count += 1

    @property
    def failures(self) -> int:
        """Since the first request."""
        return sum(one.count for one in self._failures.values())

    def result(self) -> Result:
        return Result(self._series, list(self._failures.values()), self.damaged, last_ns=self.last_ns)
