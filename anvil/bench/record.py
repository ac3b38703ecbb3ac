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
from anvil.bench.exchange import Answer, Tally
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


class Recorder(Tally):
    """The counts of a process, and what went wrong. Times as of `now_ns`; the window is set once the run begins."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: list[str] = []
        self._failures: dict[tuple[str, str], Failure] = {}

    def window(self, begin_ns: int, end_ns: int) -> None:
        self.begin_ns, self.end_ns = begin_ns, end_ns
        self.answered_ns = begin_ns

    def refused(self, operation: str, answer: Answer, key: bytes, damage: str) -> None:
        """A request that failed."""
        code, where = answer.code or DAMAGED, key.decode(errors="replace")
        self.note(operation, answer.begun_ns, answer.ended_ns, 0, True)
        if code == DAMAGED and len(self.damaged) < BENCH_SHOWN_MAX:
            self.damaged.append(f"{where}: {damage}")
        self._fail(operation, code, f"{where}: {damage}" if code == DAMAGED else where)

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
        series = {
            name: Series([Second(one.requests, one.bytes, one.failed, one.latency) for one in slots], self.late[name])
            for name, slots in self.seconds.items()
        }
        return Result(series, list(self._failures.values()), self.damaged, last_ns=self.last_ns)
