"""Which background tasks a node runs, how often, and what each tells the metrics.

Owns: the wiring of `tasks/` to this node's drives and databases, and the hold on removals. Invariants: nothing is unlinked while a
backup holds it, while the database is not known to be the one that wrote the outbox, or when that was asked too long ago; what one
task finds out wakes the one that acts on it. Not here: the work (`tasks/`), running it for ever (`node/background.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from anvil.base import instruments
from anvil.base.errors import AnvilError, Unavailable
from anvil.base.limits import (
    COLLECT_BATCH,
    COMPACT_EVERY_S,
    DRIVE_PROBE_S,
    GAUGES_EVERY_S,
    HOLD_FRESH_S,
    HOLD_REFRESH_S,
    LEAVING_LOOK_S,
    REPAIR_BATCH,
    SESSIONS_EVERY_S,
    SWEEP_EVERY_S,
    USAGE_FOLD_ROWS_MAX,
)
from anvil.engine.context import Placement
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.regional import RegionalStore
from anvil.model.records import Ownership, SessionId
from anvil.model.shard import ShardHeader
from anvil.model.task import Payload
from anvil.node.channel import Channel, Handler
from anvil.node.checking import Checking
from anvil.node.datadir import write_private
from anvil.node.gauges import Gauges
from anvil.node.observe import task_ended
from anvil.shards.drive import LocalDrive
from anvil.tasks.collect import Collector
from anvil.tasks.periodic import Periodic
from anvil.tasks.rebalance import Moved, Rebalancer
from anvil.tasks.repair import Repairer, Result
from anvil.tasks.survey import Survey
from anvil.tasks.surveyor import TURN_S, Surveyor, SurveyState
from anvil.tasks.worker import Handler as TaskHandler

log = logging.getLogger("anvil.upkeep")
PAID = frozenset({Result.REPAIRED, Result.HEALTHY, Result.GONE})


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine is suspended


class Progress(Protocol):
    """`node.membership.Membership.moved`."""

    async def __call__(self, version: int, number: int, moved: Moved) -> None: ...


class Hold:
    """Whether nothing may be unlinked now. Not held means: the database said so to a question asked less than HOLD_FRESH_S ago."""

    def __init__(self, metadata: RegionalStore, grace_s: float, now_s: Callable[[], float] = _uptime_s) -> None:
        self._metadata = metadata
        self._grace_s = grace_s
        self._now_s = now_s
        self._allowed_at: float | None = None

    def __call__(self) -> bool:
        return self._allowed_at is None or self._now_s() - self._allowed_at >= HOLD_FRESH_S

    async def refresh(self) -> None:
        """Raises DatabaseUnavailable; then nothing may be unlinked."""
        asked, allowed = self._now_s(), False
        try:
            allowed = await self._metadata.removal_allowed(self._grace_s)
        finally:
            self._allowed_at = asked if allowed else None

    async def keep(self) -> None:
        """Refresh for ever."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                log.debug("whether removals are held is not known: %s", error)  # who needs the database says that it is away
            except Exception:
                log.exception("whether removals are held is not known")  # they are, then, and that must not be for ever
            await asyncio.sleep(HOLD_REFRESH_S)


class Upkeep:
    """`moved`: writes down how far a slice of a new layout is. `leaving`: looks at drives that no layout names. `surveyed`: a file
    that says with which layout and drives the last survey was complete."""

    def __init__(
        self,
        catalog: GlobalCatalog,
        metadata: RegionalStore,
        placement: Placement,
        hold: Hold,
        collector: Collector,
        repairer: Repairer,
        survey: Survey,
        rebalancer: Rebalancer,
        moved: Progress,
        leaving: Callable[[], Awaitable[bool]],
        checking: Checking,
        surveyed: Path,
        uploads_expire_s: float,
    ) -> None:
        self._catalog = catalog
        self._metadata = metadata
        self._gauges = Gauges(catalog, metadata)
        self._placement = placement
        self._hold = hold
        self._collector = collector
        self._repairer = repairer
        self._rebalancer = rebalancer
        self._moved = moved
        self._leaving = leaving
        self._checking = checking
        self._surveyed = surveyed
        self._uploads_expire_s = uploads_expire_s
        self._live: frozenset[SessionId] | None = None
        self._unfinished = False  # recovery has left something that may be a leftover when it is older
        self._freed = asyncio.Event()
        self.surveyor = Surveyor(survey, placement, hold.refresh, self._note_survey, move=rebalancer.partition)
        if placement.remote:
            self.surveyor.ask("what was deleted elsewhere meanwhile, this node still has")
        elif self._picture() != self._pictured():
            self.surveyor.ask("the drives or the layout changed")

    @property
    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """By name, functions that run for ever."""
        surveyor = self.surveyor
        work: dict[str, tuple[float, Callable[[], Awaitable[bool]], asyncio.Event | None]] = {
            "compact": (COMPACT_EVERY_S, self.compact, self._freed),
            "sessions": (SESSIONS_EVERY_S, self.sessions, None),
            "drives": (DRIVE_PROBE_S, self.drives, None),
            "sweep": (SWEEP_EVERY_S, surveyor.sweep, surveyor.wake),
            "scrub": (TURN_S, surveyor.scrub, None),
            "leaving": (LEAVING_LOOK_S, self._leaving, None),
            "gauges": (GAUGES_EVERY_S, self._gauges.refresh, None),
        }
        periodic = {name: Periodic(name, every_s, run, task_ended, wake).run for name, (every_s, run, wake) in work.items()}
        return {"hold": self._hold.keep, "fsck": self._checking.run, **periodic}

    @property
    def work(self) -> dict[str, TaskHandler]:
        """By type, what this node does of the queue; `moves` and `survey`, which take their time, excepted."""
        return {
            "collect": self.collect,
            "repair": self.repair,
            "usage": self.usage,
            "buckets": self.buckets,
            "uploads": self.uploads,
        }

    @property
    def moves(self) -> dict[str, TaskHandler]:
        """A change of layout is throttled and may take days: nothing is to wait for it."""
        return {"rebalance": self.rebalance}

    @property
    def handlers(self) -> dict[str, Handler]:
        """What `anvil admin scrub` and `anvil admin fsck` ask."""
        return {"survey.ask": self._ask, "survey.state": self._state, **self._checking.handlers}

    async def _ask(self, channel: Channel, body: msgspec.Raw) -> int:
        return self.surveyor.ask("an operator asked", deep=msgspec.msgpack.decode(body, type=bool))

    async def _state(self, channel: Channel, body: msgspec.Raw) -> SurveyState:
        return self.surveyor.state

    # -- tasks -------------------------------------------------------------------------------------------------------------

    async def collect(self, payload: Payload) -> None:
        """Remove what is garbage in one slice, until there is none or it is held."""
        while True:
            await self._hold.refresh()
            if self._hold():
                return
            removed = await self._collector.run(payload["slice"], payload["slices"])
            if removed:
                self._freed.set()
            if removed < COLLECT_BATCH:
                return

    async def compact(self) -> bool:
        for drive in self._local():
            await self._hold.refresh()
            if self._hold() or not drive.writable:
                continue
            try:
                report = await drive.compact(self._keep)
            except AnvilError as error:
                log.warning("compaction of %s: %s", drive.label, error)
                continue
            if report.segments:
                log.info("segments rewritten", extra={"drive": drive.label, **msgspec.structs.asdict(report)})
        return False

    async def _keep(self, headers: Sequence[ShardHeader]) -> list[bool]:
        """Of these shards, those whose index entries stay: all while removals are held."""
        await self._hold.refresh()
        living = await self._metadata.live_sessions()  # first: whoever is gone now cannot have committed later
        answers = await self._metadata.ownership([(header.owner, header.blob.blob_id) for header in headers])
        if self._hold():
            return [True] * len(headers)
        return [
            ownership is not Ownership.NOBODY or header.session in living
            for header, ownership in zip(headers, answers, strict=True)
        ]

    async def repair(self, payload: Payload) -> None:
        """Pay the debts of one slice, until there are none or none can be paid now."""
        while True:
            await self._hold.refresh()
            results = await self._repairer.run(payload["slice"], payload["slices"])
            for result in results:
                instruments.SHARD_REPAIRS.labels(str(result)).inc()
            if len(results) < REPAIR_BATCH or PAID.isdisjoint(results):
                return

    async def rebalance(self, payload: Payload) -> None:
        """Bring the shards of one slice to their drives of the newest layout."""
        version, number = payload["version"], payload["slice"]
        await self._hold.refresh()
        if self._placement.layout.version != version:
            return  # not known here yet, or not any more: whoever leads asks again
        moved = await self._rebalancer.slice(number)
        await self._moved(version, number, moved)
        if moved.waiting:
            log.info("a slice is not where it belongs yet", extra={"slice": number, "waiting": moved.waiting})

    async def survey(self, payload: Payload) -> None:
        """Look at the headers of one slice."""
        asked = bool(payload.get("hurry"))
        findings = await self.surveyor.slice(payload["slice"], hurry=lambda: asked or self._placement.leaving)
        remarkable = findings.orphans or findings.missing or findings.corrupt or findings.superseded or findings.misplaced
        log.log(
            logging.INFO if remarkable else logging.DEBUG,
            "a slice was surveyed",
            extra={"slice": payload["slice"], **msgspec.structs.asdict(findings)},
        )

    async def sessions(self) -> bool:
        """End leases that ran out, and tidy up after writers that are gone: their segments are sealed, their temporary files go."""
        await self._metadata.expire_sessions()
        live = await self._metadata.live_sessions()
        if live != self._live or self._unfinished:
            await self._recover(self._local(), live)
            if self._live is not None and self._live - live:
                self.surveyor.ask("a writer is gone")  # what it left uncommitted is nobody's
        self._live = live
        return False

    async def drives(self) -> bool:
        came = self.surveyor.watch()
        if came and self._live is not None:
            await self._recover([drive for drive in self._local() if drive.drive_id in came], self._live)
        return False

    def _local(self) -> list[LocalDrive]:
        return [drive for drive in self._placement.drives.values() if isinstance(drive, LocalDrive)]

    async def _recover(self, drives: Sequence[LocalDrive], live: frozenset[SessionId]) -> None:
        self._unfinished = False
        for drive in drives:
            if not drive.readable:
                continue
            try:
                report = await drive.recover(live)
            except AnvilError as error:
                log.warning("recovery of %s: %s", drive.label, error)
                continue
            self._unfinished |= bool(report.young)
            if report.segments or report.leftovers:
                log.info("leftovers of a writer", extra={"drive": drive.label, **msgspec.structs.asdict(report)})

    async def usage(self, payload: Payload) -> None:
        """Move the changes of usage into the totals."""
        while await self._metadata.fold_usage() >= USAGE_FOLD_ROWS_MAX:
            pass

    async def buckets(self, payload: Payload) -> None:
        """Finish creations and deletions of buckets that lost their worker."""
        if not await self._metadata.in_recovery():
            await self._catalog.resume_bucket_changes()

    async def uploads(self, payload: Payload) -> None:
        """Abort the uploads that nobody goes on with."""
        if not self._uploads_expire_s or await self._metadata.in_recovery():
            return
        while aborted := await self._metadata.expire_uploads(self._uploads_expire_s):
            log.info("uploads were given up by their clients, and are aborted", extra={"uploads": aborted})

    # -- what was surveyed ---------------------------------------------------------------------------------------------------

    def _picture(self) -> str:
        readable = sorted(drive.drive_id.hex() for drive in self._local() if drive.readable)
        return " ".join([str(self._placement.layout.version), *readable])

    def _pictured(self) -> str:
        try:
            return self._surveyed.read_text().strip()
        except OSError:
            return ""  # never, or not known: one survey too many

    def _note_survey(self) -> None:
        if self._picture() != self._pictured():
            write_private(self._surveyed, self._picture() + "\n")
