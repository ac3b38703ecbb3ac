"""The rebuild of a region whose database was lost: the newest dump, and then what the drives hold beside it.

Owns: which dump is taken, and what is *uncertain*. Invariants: a dump is loaded whole or not at all; nothing that was found becomes visible
here, and nothing is removed; every step may be repeated, also after it was interrupted anywhere, and a blob that some row names, or that a
living session may yet commit, is never a candidate. Memory: one partition. Not here: rows (`meta/dump.py`), the candidates' table and what
accepting one means (`meta/salvage.py`), who asks (`node/salvaging.py`).

What is uncertain, of the blobs that the dump names neither as owned nor as garbage:
- One that was written under a session which was over before the dump was deleted or never committed: a commit takes its session's row.
- One whose footer is older than the dump by more than SALVAGE_SLACK_S, likewise: footers are written just before the commit.
- All others may have been committed after the dump.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from anvil.base.errors import AnvilError, BadRecord, Conflict, Corrupt, Unavailable
from anvil.base.limits import FSCK_PARTITIONS_AT_ONCE, SALVAGE_ROWS, SALVAGE_SLACK_S
from anvil.engine.context import Placement
from anvil.engine.ports import Metadata
from anvil.model.dump import SYSTEM_BUCKET, Candidate, DumpName, Manifest, Rebuilt, TableDump
from anvil.model.layout import PARTITIONS
from anvil.model.records import BucketId, Ownership, SessionId
from anvil.model.shard import ShardFooter
from anvil.tasks.dump import FoundDump
from anvil.tasks.inventory import Met, held, looks, owners

log = logging.getLogger("anvil.salvage")

SLACK_US = int(SALVAGE_SLACK_S * 1_000_000)


class Base(Protocol):
    """What the region was rebuilt from: a dump's name and time ("" and 0 where there was none), and the sessions that were over by then."""

    @property
    def dump(self) -> str: ...
    @property
    def taken_us(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def ended(self) -> tuple[str, ...]: ...


class Table(Protocol):
    """`meta.salvage.SalvageTable`."""

    async def loaded(self) -> Base | None: ...
    async def note_nothing(self) -> None: ...
    async def empty(self) -> bool: ...
    async def fences(self) -> frozenset[BucketId]: ...
    async def sessions(self) -> frozenset[SessionId]:
        """All that this database ever gave out, alive or not."""
        ...

    async def add(self, found: Sequence[Candidate]) -> None: ...


class Loading(Protocol):
    """`meta.dump.Loading`. `with_global`: the global database was lost as well, and is loaded, too."""

    with_global: bool

    async def table(self, dumped: TableDump, source: AsyncIterator[bytes]) -> None: ...


class Dumps(Protocol):
    """`tasks.dump.DumpReader`."""

    async def find(self) -> list[FoundDump]: ...
    async def manifest(self, dump: FoundDump) -> Manifest: ...
    def rows(self, name: DumpName, table: TableDump) -> AsyncIterator[bytes]: ...


Load = Callable[[DumpName, Manifest], AbstractAsyncContextManager[Loading]]


def uncertain(session: SessionId, modified_us: int, taken_us: int, ended: frozenset[SessionId]) -> bool:
    """Whether a blob that the dump of `taken_us` does not name may have been committed after it."""
    return session not in ended and modified_us >= taken_us - SLACK_US


class Salvager:
    """`buckets`: the ids of the region's buckets that the global database knows; `add_bucket`: makes the fence of one, False where it was
    dropped before the dump. `schema`: the last migration that this release knows."""

    def __init__(
        self,
        region: str,
        schema: int,
        metadata: Metadata,
        placement: Placement,
        table: Table,
        dumps: Dumps,
        load: Load,
        buckets: Callable[[], Awaitable[frozenset[BucketId]]],
        add_bucket: Callable[[BucketId], Awaitable[bool]],
    ) -> None:
        self._region = region
        self._schema = schema
        self._metadata = metadata
        self._placement = placement
        self._table = table
        self._dumps = dumps
        self._load = load
        self._buckets = buckets
        self._add_bucket = add_bucket

    async def run(self, report: Rebuilt, *, older: bool = False) -> None:
        """Fill `report` as it goes. `older`: take an older dump where the newest cannot be read for now. Raises Conflict where the database
        is not an empty one, Unavailable."""
        base = await self._table.loaded()
        if base is None and not await self._table.empty():
            raise Conflict("the regional database holds objects: only an empty one is rebuilt from the drives")
        if base is None or (not base.dump and await self._table.empty()):
            report.stage = "dump"
            await self._load_newest(report, older)
            base = await self._table.loaded()
            if base is None:
                await self._table.note_nothing()
                base = await self._table.loaded()
        assert base is not None
        report.dump, report.taken_us, report.rows = base.dump, base.taken_us, base.rows
        await self._fences(report)
        report.stage = "compare"
        await self._compare(base, report)
        report.stage = ""

    # -- the dump --------------------------------------------------------------------------------------------------------------

    async def _load_newest(self, report: Rebuilt, older: bool) -> None:
        for dump in await self._dumps.find():
            try:
                manifest = await self._usable(dump)
                report.stage, report.dump, report.taken_us = "load", dump.name.prefix, manifest.taken_us
                async with self._load(dump.name, manifest) as loading:
                    for table in manifest.tables:
                        await loading.table(table, self._dumps.rows(dump.name, table))
                        report.rows += table.rows
                    report.with_global = loading.with_global
                return
            except Corrupt as error:
                reason = f"{dump.name.prefix}: {error}"
            except Unavailable as error:
                if not older:
                    raise Unavailable(
                        f"the newest dump ({dump.name.prefix}) cannot be read now: {error}. Bring the drives back that are away, or repeat "
                        "this with --older to go without it"
                    ) from error
                reason = f"{dump.name.prefix}: {error}"
            log.warning("a dump is passed over: %s", reason)
            report.passed_over.append(reason)
            report.stage, report.dump, report.taken_us, report.rows = "dump", "", 0, 0

    async def _usable(self, dump: FoundDump) -> Manifest:
        """Raises Corrupt for one of another region or of a newer release."""
        manifest = await self._dumps.manifest(dump)
        if manifest.region != self._region:
            raise Corrupt(f"it is of the region {manifest.region!r}")
        if manifest.schema > self._schema:
            raise Corrupt("it was taken by a newer release: run that one")
        return manifest

    async def _fences(self, report: Rebuilt) -> None:
        """Buckets that were created after the dump have a fence again. Of those that were deleted after it, rows and fence stay: nobody can
        name them, and nothing is destroyed on the word of one database."""
        known, here = await self._buckets(), await self._table.fences()
        report.buckets_added = sum([await self._add_bucket(bucket_id) for bucket_id in sorted(known - here)])
        report.buckets_unknown = len(here - known)

    # -- what the drives hold beside it ----------------------------------------------------------------------------------------

    async def _compare(self, base: Base, report: Rebuilt) -> None:
        ended = frozenset(bytes.fromhex(session) for session in base.ended)
        buckets = await self._table.fences()
        drives = self._placement.drives
        away = {drive.label for drive in drives.values() if not drive.readable}
        for first in range(0, PARTITIONS, FSCK_PARTITIONS_AT_ONCE):
            known = await held(drives.values())
            async for numbers, found in looks(self._placement, range(first, first + FSCK_PARTITIONS_AT_ONCE), known):
                away.update(drive.label for drive in found.failed)
                report.away = sorted(away)
                report.shards += found.shards
                report.nameless += sum(1 for _ in found.nameless)
                named = [met for met in found.named if met.header.bucket_id != SYSTEM_BUCKET]
                ours = await self._table.sessions() if named else frozenset()  # first: what they commit later is not asked about
                async for batch in owners(self._metadata, named):
                    candidates: list[Candidate] = []
                    for met, ownership in batch:
                        if ownership is not Ownership.NOBODY:
                            report.owned += ownership is Ownership.OWNED
                            report.garbage += ownership is Ownership.GARBAGE
                        elif met.header.session not in ours:
                            candidates += await self._judged(met, base.taken_us, ended, buckets, report)
                    for at in range(0, len(candidates), SALVAGE_ROWS):
                        await self._table.add(candidates[at : at + SALVAGE_ROWS])
                report.partitions += len(numbers)

    async def _judged(
        self, met: Met, taken_us: int, ended: frozenset[SessionId], buckets: frozenset[BucketId], report: Rebuilt
    ) -> list[Candidate]:
        """The candidate that a blob is, if it is one."""
        header = met.header
        footer = await _footer(met)
        if footer is None:
            report.nameless += 1
            return []
        if not uncertain(header.session, footer.modified_us, taken_us, ended):
            report.older += 1
            return []
        if header.bucket_id not in buckets:
            report.bucketless += 1
            return []
        scheme = header.blob.scheme
        missing = sum(1 << index for index in range(scheme.width) if index not in met.copies)
        readable = len(met.copies) >= scheme.k
        report.uncertain += 1
        report.unreadable += not readable
        return [
            Candidate(
                header.owner, header.blob, footer.etag, footer.modified_us, footer.attributes, footer.checksum, missing, readable
            )
        ]


async def _footer(met: Met) -> ShardFooter | None:
    """Of any shard of a blob: all say the same. None where none can be read."""
    for copies in met.copies.values():
        for drive, place in copies:
            try:
                return await drive.verify(place)
            except (AnvilError, BadRecord) as error:
                log.warning(
                    "shard %d of blob %s on %s: %s", place.header.index, place.header.blob.blob_id.hex(), drive.label, error
                )
    return None
