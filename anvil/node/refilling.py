"""`anvil admin restore data` on the running node: everything that rows name and the drives lack, out of a backup's packs.

Owns: the walk. Invariants: it may be begun again at any time and then does what is left; a blob of which one pack's copy is damaged is
taken from another pack where there is one; what could not be brought back is counted and named. Not here: writing a blob
(`tasks/refill.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from anvil.backup.packs import Entry, Where, walk
from anvil.backup.repository import Repository, Unread, pair, read_list
from anvil.base.errors import BadRecord, Conflict, Unavailable
from anvil.base.limits import BACKUP_EXAMPLES, RESTORE_BLOBS_IN_FLIGHT, RESTORE_SUSPECTS_MAX
from anvil.engine.context import Buffers, Codecs, Executor, Placement
from anvil.engine.ports import Metadata
from anvil.meta import dumps
from anvil.model.records import BlobRef
from anvil.node.backups import BlobList, Phase, Thread, drawn
from anvil.tasks.refill import Refill, Refilled
from anvil.tasks.several import side_by_side

log = logging.getLogger("anvil.refill")


class RefillReport(msgspec.Struct, frozen=True):
    """`damaged`: packs that cannot be used. `examples`: blobs that are absent or waiting."""

    refilled: Refilled
    damaged: tuple[str, ...] = ()
    examples: tuple[Unread, ...] = ()

    @property
    def complete(self) -> bool:
        """Everything that rows name can be read again."""
        return not (self.refilled.absent or self.refilled.waiting)


class Refiller:
    """`folder`: of the node, for the list of what is to be there."""

    def __init__(
        self,
        regional_url: str,
        metadata: Metadata,
        placement: Placement,
        buffers: Buffers,
        native: Executor,
        codecs: Codecs,
        folder: Path,
    ) -> None:
        self._url = regional_url
        self._metadata = metadata
        self._placement = placement
        self._buffers = buffers
        self._native = native
        self._codecs = codecs
        self._list = folder / "refill.blobs"

    async def run(self, path: Path, phase: Phase, moved: Callable[[int], None], deep: bool = False) -> RefillReport:
        """`deep`: shards that are there are read, too; else only those of blobs in which damage was met. Raises UnknownName, InvalidSetting
        (no repository), Conflict (too few drives), DatabaseUnavailable, OSError."""
        blocking, reading = Thread("refill-list"), Thread("refill-packs")
        try:
            repository = await blocking(Repository, path)
            phase("listing what is to be there", 0)
            await blocking(self._list.unlink, True)
            listed = await blocking(BlobList, self._list)
            try:
                await dumps.list_blobs(self._url, listed.write)
            finally:
                await blocking(listed.close)
            if listed.widest > (width := self._placement.layout.width):
                raise Conflict(
                    f"some blobs have {listed.widest} shards, and the layout has places for {width}: add drives or nodes, then repeat this"
                )
            packs = await blocking(repository.packs)
            for name, why in packs.bad.items():
                log.error("a pack cannot be used", extra={"pack": name, "why": why})
            suspects = None if deep else await dumps.corrupt_blobs(self._url, RESTORE_SUSPECTS_MAX)
            phase("writing", listed.bytes)
            run = _Run(
                Refill(self._metadata, self._placement, self._buffers, self._native, self._codecs, reading),
                reading,
                moved,
                suspects,
            )
            await run.all(drawn(blocking, pair(read_list(self._list), walk(packs.good))))
            return RefillReport(run.refilled, tuple(sorted(packs.bad)), await self._named(run.troubled))
        finally:
            self._list.unlink(missing_ok=True)
            blocking.close()
            reading.close()

    async def _named(self, troubled: list[BlobRef]) -> tuple[Unread, ...]:
        if not troubled:
            return ()
        owners = await dumps.owners_of(self._url, [blob.blob_id for blob in troubled])
        return tuple(Unread(blob.blob_id.hex(), *owners.get(blob.blob_id, (0, "", 0))) for blob in troubled)


class _Run:
    """`suspects`: the blobs whose shards are read before they count as there; None: all."""

    def __init__(self, refill: Refill, reading: Thread, moved: Callable[[int], None], suspects: set[bytes] | None) -> None:
        self._refill = refill
        self._reading = reading
        self._moved = moved
        self._suspects = suspects
        self._lock = asyncio.Lock()
        self.refilled = Refilled()
        self.troubled: list[BlobRef] = []

    async def all(self, pairs: AsyncIterator[tuple[BlobRef, list[Where]]]) -> None:
        async def work() -> None:
            while True:
                async with self._lock:  # an asynchronous iterator is asked by one at a time
                    item = await anext(pairs, None)
                if item is None:
                    return
                await self._one(*item)

        await side_by_side(RESTORE_BLOBS_IN_FLIGHT, work)

    async def _one(self, blob: BlobRef, places: list[Where]) -> None:
        refilled = self.refilled
        refilled.blobs += 1
        try:
            waiting = refilled.waiting
            await self._bring(blob, places)
            if refilled.waiting > waiting:
                self._trouble(blob)
        except Unavailable as error:
            log.warning("blob %s waits: %s", blob.blob_id.hex(), error)
            refilled.waiting += 1
            self._trouble(blob)
        refilled.bytes += blob.size
        self._moved(blob.size)

    async def _bring(self, blob: BlobRef, places: list[Where]) -> None:
        lacking = await self._refill.lacking(blob, self._suspects is None or blob.blob_id in self._suspects)
        if not lacking:
            self.refilled.present += 1
            return
        for pack, offset in places:
            try:
                entry = await self._reading(Entry, pack.path, offset, blob.blob_id)
                try:
                    await self._refill.refill(blob, entry, lacking, self.refilled)
                finally:
                    await self._reading(entry.close)
                return
            except (BadRecord, OSError) as error:
                log.error("blob %s in pack %s: %s", blob.blob_id.hex(), pack.name, error)
        if blob.scheme.width - len(lacking) >= blob.scheme.k:
            self.refilled.present += 1  # the others are rebuilt from these
            return
        self.refilled.absent += 1
        self._trouble(blob)

    def _trouble(self, blob: BlobRef) -> None:
        if len(self.troubled) < BACKUP_EXAMPLES:
            self.troubled.append(blob)
