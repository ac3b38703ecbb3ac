"""Readiness: the checks, run in the background process, and the snapshot that every worker serves.

Owns: `/ready`'s truth (metrics.md "Health"). Invariants: a check takes at most READY_CHECK_TIMEOUT_S and never piles up
behind a hung disk or database; a snapshot older than READY_STALE_S says no; a database that fails once after it worked is
forgiven once, and so is a worker that is late; losing the write quorum does not fail `/ready`, only `/ready/cluster`. Not here: serving it
(`node/endpoints.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from anvil.base import instruments
from anvil.base.clock import SYSTEM_CLOCK, Clock
from anvil.base.errors import AnvilError, DriveFailed
from anvil.base.limits import LOOP_LAG_S_MAX, READY_CHECK_TIMEOUT_S, READY_EVERY_S, READY_STALE_S
from anvil.base.version import VERSION

log = logging.getLogger(__name__)
PROBE_NAME = ".anvil-ready"


class CheckResult(msgspec.Struct, frozen=True):
    """One line of `checks`."""

    ok: bool
    ms: float


class Readiness(msgspec.Struct, frozen=True):
    """The body of /ready. `notices`: what an operator should know, and what makes nothing unready."""

    status: str  # ready, starting, draining, not_ready
    node: str
    version: str
    checks: dict[str, CheckResult]
    reasons: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


class Standing(msgspec.Struct, frozen=True):
    """Where the region stands, as seen from this node. `drives_needed`: of the node's own, to be of any use. `write_quorum`: whatever is
    written finds its quorum; `without_this`: also when this node stops. `nodes`: how many are up."""

    drives_needed: int
    write_quorum: bool
    without_this: bool = False
    nodes: int = 1


Standings = Callable[[int, frozenset[str]], Standing]
"""Told how many of the node's drives take a write, and which do not, by label."""


def lone(k: int, quorum: int) -> Standings:
    """Of a node that is alone: `k` and `quorum` drives are needed to read, and to write."""
    return lambda good, bad: Standing(k, good >= quorum)


class HealthSnapshot(msgspec.Struct, frozen=True):
    """What the background process pushes to the workers. `taken_at`: CLOCK_MONOTONIC."""

    taken_at: float
    readiness: Readiness
    standing: Standing


class Check(msgspec.Struct, frozen=True):
    """`run` raises when the thing is not well. `forgiving`: one failure after a success is overlooked once. `vital`: its
    failure alone makes the node not ready.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    forgiving: bool = False
    vital: bool = True


class WorkerReport(msgspec.Struct, frozen=True):
    """A worker's heartbeat. `unwritable`: by label, the drives it cannot write to, and why (full, read-only after an error)."""

    lag_s: float
    lease: bool
    unwritable: dict[str, str] = {}


class DriveProbe:
    """A write and fsync on one drive, on a thread of its own. Never more than one at a time: a hung disk holds one thread,
    not more.

    `look`: raises DriveFailed while the right disk is not mounted. Nothing is written, and no folder made, where it is not.
    """

    def __init__(self, path: Path, label: str, look: Callable[[], None]) -> None:
        self.path = path
        self.label = label
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"probe-{label}")
        self._running: Future[None] | None = None
        self._look = look

    async def check(self) -> None:
        """Raises DriveFailed, OSError."""
        if self._running is not None and not self._running.done():
            raise DriveFailed("does not answer")
        self._running = self._thread.submit(self._probe)
        await asyncio.shield(asyncio.wrap_future(self._running))

    def _probe(self) -> None:
        self._look()
        fd = os.open(self.path / PROBE_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, time.time_ns().to_bytes(8, "big"), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        space = os.statvfs(self.path)
        instruments.STORAGE_CAPACITY.labels(self.label).set(space.f_blocks * space.f_frsize)
        instruments.STORAGE_FREE.labels(self.label).set(space.f_bavail * space.f_frsize)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class HealthMonitor:
    """Runs the checks every READY_EVERY_S and keeps the last snapshot.

    `reports`: the heartbeats of the connected workers. `draining`: whether
    the node is about to stop.
    """

    def __init__(
        self,
        node: str,
        checks: Sequence[Check],
        drives: Sequence[DriveProbe],
        standing: Standings,
        expected_workers: int,
        reports: Callable[[], Sequence[WorkerReport]],
        draining: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM_CLOCK,
        notices: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._node = node
        self._checks = (*checks, *(Check(f"drive:{drive.label}", drive.check, vital=False) for drive in drives))
        self._drives = [f"drive:{drive.label}" for drive in drives]
        self._standing = standing
        self._expected_workers = expected_workers
        self._reports = reports
        self._draining = draining
        self._clock = clock
        self._notices = notices
        self._started = False
        self._forgiven: dict[str, bool] = {}  # by check: whether its failure was overlooked last time
        self.snapshot: HealthSnapshot | None = None

    async def run(self, publish: Callable[[HealthSnapshot], None]) -> None:
        """Check for ever; hand each snapshot to `publish`."""
        while True:
            self.snapshot = await self.take()
            publish(self.snapshot)
            # While starting, look more often: the node should be in use as soon as it can be.
            await asyncio.sleep(READY_EVERY_S if self._started else READY_EVERY_S / 10)

    async def take(self) -> HealthSnapshot:
        """Run every check once, at the same time."""
        taken_at = self._clock.monotonic()
        outcomes = await asyncio.gather(*(self._one(check) for check in self._checks))
        checks = {check.name: outcome[0] for check, outcome in zip(self._checks, outcomes, strict=True)}
        reasons = [outcome[1] for check, outcome in zip(self._checks, outcomes, strict=True) if outcome[1] and check.vital]
        bad = self._bad(checks)
        good = len(self._drives) - len(bad)
        if self._drives:
            needed = self._standing(good, bad).drives_needed
            checks["drives"] = CheckResult(good >= needed, max(checks[name].ms for name in self._drives))
            if good < needed:
                reasons.append(f"drives: {good} of {len(self._drives)} take a write, {needed} are needed to serve anything")
        reasons += self._judge_workers(checks)
        # What they can still read they still serve, so this does not make the node unready.
        for label in {label for report in self._reports() for label in report.unwritable}:
            if (name := f"drive:{label}") in checks and checks[name].ok:
                checks[name] = CheckResult(False, checks[name].ms)
        for name in self._drives:
            instruments.STORAGE_DRIVE_UP.labels(name.removeprefix("drive:")).set(float(checks[name].ok))
        bad = self._bad(checks)
        standing = self._standing(len(self._drives) - len(bad), bad)
        instruments.CLUSTER_WRITE_QUORUM.set(float(standing.write_quorum))
        self._started = self._started or (not reasons and len(self._reports()) >= self._expected_workers)
        status = "draining" if self._draining() else "starting" if not self._started else "not_ready" if reasons else "ready"
        if status == "starting" and not reasons:
            reasons.append(f"workers: {len(self._reports())} of {self._expected_workers} have reported")
        if status == "draining":
            reasons.insert(0, "the node is stopping")
        readiness = Readiness(status, self._node, VERSION, checks, tuple(reasons), self._notices())
        return HealthSnapshot(taken_at, readiness, standing)

    def _bad(self, checks: dict[str, CheckResult]) -> frozenset[str]:
        """Labels of the drives that take no write."""
        return frozenset(name.removeprefix("drive:") for name in self._drives if not checks[name].ok)

    def _judge_workers(self, checks: dict[str, CheckResult]) -> list[str]:
        reports = self._reports()
        lag_s = max((report.lag_s for report in reports), default=0.0)
        leases = bool(reports) and all(report.lease for report in reports)
        if lag_s <= LOOP_LAG_S_MAX:
            self._forgiven["loop"] = False
        late = lag_s > LOOP_LAG_S_MAX and not self._forgive("loop", f"a worker's event loop was {lag_s:.1f} s late")
        checks["loop"] = CheckResult(bool(reports) and not late, round(lag_s * 1000, 1))
        checks["lease"] = CheckResult(leases, 0.0)
        reasons = []
        if not reports:
            reasons.append("loop: no worker reports")
        elif late:
            reasons.append(f"loop: a worker's event loop was {lag_s:.1f} s late")
        if reports and not leases:
            reasons.append("lease: a worker holds no writer session")
        return reasons

    def _forgive(self, name: str, reason: str) -> bool:
        """Whether a failure is the first one after a success."""
        if self._forgiven.get(name) is not False:
            return False
        self._forgiven[name] = True
        log.info("readiness: %s failed once", name, extra={"reason": reason})
        return True

    async def _one(self, check: Check) -> tuple[CheckResult, str]:
        began = self._clock.monotonic()
        reason = ""
        try:
            async with asyncio.timeout(READY_CHECK_TIMEOUT_S):
                await check.run()
        except TimeoutError:
            reason = f"no answer within {READY_CHECK_TIMEOUT_S:g} s"
        except AnvilError as error:
            reason = error.message
        except OSError as error:
            reason = error.strerror or "input/output error"
        ms = round((self._clock.monotonic() - began) * 1000, 1)
        if not reason:
            self._forgiven[check.name] = False
            return CheckResult(True, ms), ""
        if check.forgiving and self._forgive(check.name, reason):
            return CheckResult(True, ms), ""
        return CheckResult(False, ms), f"{check.name}: {reason}"


def judged(snapshot: HealthSnapshot | None, node: str, draining: bool, now: float) -> Readiness:
    """What a worker answers on /ready: the snapshot, unless it is missing or too old, or this worker is stopping."""
    if draining:
        checks = snapshot.readiness.checks if snapshot is not None else {}
        return Readiness("draining", node, VERSION, checks, ("the node is stopping",))
    if snapshot is None:
        return Readiness("starting", node, VERSION, {}, ("no check has run yet",))
    age_s = now - snapshot.taken_at
    if age_s > READY_STALE_S:
        reasons = (f"the last check is {age_s:.0f} s old", *snapshot.readiness.reasons)
        return msgspec.structs.replace(snapshot.readiness, status="not_ready", reasons=reasons)
    return snapshot.readiness
