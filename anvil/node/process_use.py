"""What the processes of the node use together, from /proc: `process_*`, as one program would tell it.

Owns: the sum over processes. Invariant: the processor time never falls: what a process that ended was last seen with is kept. Source:
proc(5). Not here: which processes there are (the supervisor tells), the text (`node/exposition.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE_KEPT = 64
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessTotals(msgspec.Struct):
    """Sums over processes; `max_fds` is the smallest limit, `start_s` the earliest start (Unix time)."""

    cpu_s: float = 0.0
    virtual_bytes: float = 0.0
    resident_bytes: float = 0.0
    open_fds: float = 0.0
    max_fds: float = 0.0
    start_s: float = 0.0


class ProcessUse:
    """Call `read` from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: dict[tuple[int, int], float] = {}  # by process id and start: processor seconds
        self._gone: dict[
            tuple[int, int], float
        ] = {}  # those not seen at the last reading; some come back, when /proc was too busy
        self._ended_s = 0.0

    def read(self, pids: Sequence[int]) -> ProcessTotals:
        """What these use now; who has ended meanwhile counts with its processor time alone."""
        totals, seen = ProcessTotals(), {}
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for pid in pids:
            proc = Path("/proc", str(pid))
            try:
                fields = (proc / "stat").read_text().rpartition(")")[2].split()
                limits = (proc / "limits").read_text()
                fds = sum(1 for _ in (proc / "fd").iterdir())
            except OSError:
                continue  # it ended meanwhile
            seen[pid, int(fields[19])] = (int(fields[11]) + int(fields[12])) / _TICKS
            totals.virtual_bytes += int(fields[20])
            totals.resident_bytes += int(fields[21]) * _PAGE
            totals.open_fds += fds
            limit = next((line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")), "0")
            if limit.isdigit():
                totals.max_fds = min(totals.max_fds or float(limit), float(limit))
            start = boot + int(fields[19]) / _TICKS
            totals.start_s = min(totals.start_s or start, start)
        totals.cpu_s = self._cpu(seen)
        return totals

    def _cpu(self, seen: dict[tuple[int, int], float]) -> float:
        with self._lock:
            known = self._gone | self._living
            self._living = {process: max(used, known.get(process, 0.0)) for process, used in seen.items()}
            self._gone = {process: used for process, used in known.items() if process not in seen}
            while len(self._gone) > _GONE_KEPT:
                self._ended_s += self._gone.pop(next(iter(self._gone)))
            return self._ended_s + sum(self._gone.values()) + sum(self._living.values())
