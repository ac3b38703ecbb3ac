"""Backups by the running node: what one backup does, step by step.

Owns: the order that makes a snapshot consistent. Invariants: removals are held, and the hold is effective, before the metadata is dumped,
and until the last shard is copied, so every blob that the dump names has its shards meanwhile; regional before global; the manifest last; a
snapshot that lacks a blob says so; a backup that does not come on holds nothing for ever. Not here: reading shards (`tasks/copying.py`),
the repository's bytes (`backup/`), who asks (`jobs.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from anvil.backup import format as fmt
from anvil.backup.packs import Pack, PackWriter, walk
from anvil.backup.repository import BLOBS, FILES, GLOBAL, REGIONAL, Manifest, Repository, Unread, describe, pair, read_list
from anvil.base.errors import AnvilError
from anvil.base.ids import random_id
from anvil.base.limits import BACKUP_EXAMPLES, BACKUP_HOLD_RENEW_S, BACKUP_STALLED_S, LISTED_READ_ENTRIES
from anvil.base.version import VERSION
from anvil.engine.context import Buffers, Codecs, Executor, Placement
from anvil.meta import dumps
from anvil.meta.migrate import Database
from anvil.meta.recovery import RegionNotes
from anvil.model.records import BlobRef
from anvil.tasks.copying import Copier

log = logging.getLogger("anvil.backup")
T = TypeVar("T")
Phase = Callable[[str, int], None]
"""Told what is being done now, and how many bytes that will be, 0 where nobody knows."""


class Thread:
    """One thread for all that may have to wait for the repository's disk, in order. `told`: whenever something was done."""

    def __init__(self, name: str, told: Callable[[], None] = lambda: None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._told = told

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        result = await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))
        self._told()
        return result

    async def at_last(self, function: Callable[..., object], *arguments: object) -> None:
        """Have that done, too, also where whoever waits for it is cancelled. Nothing comes after it."""
        await asyncio.wait({asyncio.wrap_future(self._pool.submit(function, *arguments))})

    def close(self) -> None:
        self._pool.shutdown(wait=False)


class Progress:
    """When a backup came on last: something was done in the repository, bytes were copied, or a dump in `folder` became longer."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._at = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="repository-look")
        self._looking: Future[int] | None = None
        self._size = 0

    def __call__(self) -> None:
        self._at = time.monotonic()

    def idle_s(self) -> float:
        """By what is known now; looks at the dumps for the next time."""
        looking = self._looking
        if looking is not None and looking.done() and looking.exception() is None and looking.result() != self._size:
            self._size = looking.result()
            self()
        if self.folder is not None and (looking is None or looking.done()):
            self._looking = self._pool.submit(_bytes_in, self.folder)
        return time.monotonic() - self._at

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _bytes_in(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir())


async def drawn(blocking: Thread, items: Iterator[T]) -> AsyncIterator[T]:
    """What an iterator that blocks gives, a batch at a time."""

    def batch() -> list[T]:
        return list(islice(items, LISTED_READ_ENTRIES))

    while found := await blocking(batch):
        for item in found:
            yield item


class BlobList:
    """Writes a snapshot's list of blobs, and sums it up."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._last = b""
        self.blobs = 0
        self.bytes = 0
        self.widest = 0

    def write(self, blobs: list[BlobRef]) -> None:
        """In the order of their ids."""
        for blob in blobs:
            if blob.blob_id == self._last:
                continue
            self._last = blob.blob_id
            self._file.write(fmt.listed(blob))
            self.blobs += 1
            self.bytes += blob.size
            self.widest = max(self.widest, blob.scheme.width)

    def close(self) -> None:
        self._file.close()


class Backup:
    """Makes snapshots. `urls`: of the global and the regional database. `holder`: names this node's hold. `key`: fingerprint of the master
    key."""

    def __init__(
        self,
        urls: tuple[str, str],
        notes: RegionNotes,
        placement: Placement,
        buffers: Buffers,
        native: Executor,
        codecs: Codecs,
        holder: str,
        region: str,
        key: str,
    ) -> None:
        self._urls = {Database.REGIONAL: urls[1], Database.GLOBAL: urls[0]}
        self._notes = notes
        self._placement = placement
        self._buffers = buffers
        self._native = native
        self._codecs = codecs
        self._holder = holder
        self._region = region
        self._key = key
        self._keeping: asyncio.Task[None] | None = None

    async def create(
        self,
        path: Path,
        new_key: bool,
        phase: Phase,
        moved: Callable[[int], None],
        give_up: Callable[[str], None] = lambda why: None,
    ) -> Manifest:
        """`give_up`: told why, once nothing has come on for BACKUP_STALLED_S; removals are held no more then. Raises InvalidSetting,
        Conflict (somebody writes there), DatabaseUnavailable, OSError."""
        progress = Progress()
        blocking = Thread("repository", progress)

        def moving(size: int) -> None:
            progress()
            moved(size)

        try:
            making = Repository.making(path, self._key, _now_us())
            repository = await blocking(making.__enter__)
            try:
                if new_key:
                    await blocking(repository.rekey, self._key)
                repository.assert_key(self._key)
                return await self._create(repository, blocking, phase, moving, progress, give_up)
            finally:
                await blocking.at_last(making.__exit__, None, None, None)
        finally:
            blocking.close()
            progress.close()

    async def let_go(self) -> None:
        """Hold removals no more, whatever the backup is waiting for."""
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        if keeping is not asyncio.current_task():
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        with suppress(AnvilError):  # else its lease runs out
            await self._notes.release(self._holder)

    async def _create(
        self,
        repository: Repository,
        blocking: Thread,
        phase: Phase,
        moved: Callable[[int], None],
        progress: Progress,
        give_up: Callable[[str], None],
    ) -> Manifest:
        started_us = _now_us()
        tools = {database: await dumps.dump_tool(url, database) for database, url in self._urls.items()}
        await blocking(repository.sweep)
        snapshot = time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime(started_us / 1e6)) + random_id().hex()[:6]
        phase("waiting until nothing is being removed", 0)
        async with self._held(snapshot, progress, give_up):
            phase("dumping the databases", 0)
            progress.folder = folder = await blocking(repository.begin, snapshot)
            listed = await blocking(BlobList, folder / BLOBS)
            try:
                facts = await dumps.dump_regional(
                    self._urls[Database.REGIONAL], tools[Database.REGIONAL], folder / REGIONAL, listed.write
                )
                server, migration = await dumps.dump_global(self._urls[Database.GLOBAL], tools[Database.GLOBAL], folder / GLOBAL)
            finally:
                await blocking(listed.close)
            phase("comparing", 0)
            found = await blocking(repository.packs, progress)
            packs = found.good
            for name, why in found.bad.items():
                log.error(
                    "a pack of the backup repository is not used: what it holds is copied again", extra={"pack": name, "why": why}
                )
            phase("copying", sum([blob.size async for blob in self._new(blocking, folder, packs, progress)]))
            copier = await self._copy(repository, blocking, folder, packs, moved, progress)
        phase("finishing", 0)
        files = {name: await blocking(describe, folder / name) for name in FILES}
        unread = copier.unread
        manifest = Manifest(
            snapshot=snapshot,
            repository=repository.head.repository,
            started_us=started_us,
            finished_us=_now_us(),
            anvil=VERSION,
            region=self._region,
            cluster_epoch=facts.epoch,
            key=self._key,
            servers={Database.REGIONAL.value: facts.server, Database.GLOBAL.value: server},
            tools={database.value: tool.major for database, tool in tools.items()},
            migrations={Database.REGIONAL.value: facts.migration, Database.GLOBAL.value: migration},
            files=files,
            counts=facts.counts,
            blobs=listed.blobs,
            blob_bytes=listed.bytes,
            widest=listed.widest,
            copied=copier.copied,
            copied_bytes=copier.copied_bytes,
            unread=len(unread),
            examples=await self._named(unread[:BACKUP_EXAMPLES]),
        )
        await blocking(repository.finish, manifest)
        if manifest.complete:
            await self._notes.note_backup(manifest.finished_us)
        log.info("a backup is over", extra={"snapshot": snapshot, "copied": copier.copied, "unread": len(unread)})
        return manifest

    def _new(self, blocking: Thread, folder: Path, packs: list[Pack], progress: Progress) -> AsyncIterator[BlobRef]:
        """The listed blobs that no pack has yet."""

        def new() -> Iterator[BlobRef]:
            for number, (blob, places) in enumerate(pair(read_list(folder / BLOBS), walk(packs))):
                if number % LISTED_READ_ENTRIES == 0:
                    progress()  # where little is new, the next one may be hours away
                if not places:
                    yield blob

        return drawn(blocking, new())

    async def _copy(
        self,
        repository: Repository,
        blocking: Thread,
        folder: Path,
        packs: list[Pack],
        moved: Callable[[int], None],
        progress: Progress,
    ) -> Copier:
        writer = PackWriter(repository.packs_folder, repository.id)
        copier = Copier(self._placement, self._buffers, self._native, self._codecs, writer, blocking, moved)
        try:
            await copier.run(self._new(blocking, folder, packs, progress))
            if copier.unread:  # a drive that did not answer for a moment should not make a snapshot incomplete
                again, copier.unread = copier.unread, []
                await copier.run(drawn(blocking, iter(again)))
            await blocking(writer.close)
        except BaseException:
            await blocking(writer.discard)
            raise
        return copier

    async def _named(self, unread: list[BlobRef]) -> tuple[Unread, ...]:
        """Whose they are, as far as rows still tell."""
        if not unread:
            return ()
        owners = await dumps.owners_of(self._urls[Database.REGIONAL], [blob.blob_id for blob in unread])
        return tuple(Unread(blob.blob_id.hex(), *owners.get(blob.blob_id, (0, "", 0))) for blob in unread)

    @asynccontextmanager
    async def _held(self, snapshot: str, progress: Progress, give_up: Callable[[str], None]) -> AsyncIterator[None]:
        """Nothing is unlinked inside, until it is let go."""
        by = f"backup {snapshot}"
        keeping = self._keeping = asyncio.create_task(self._keep(by, progress, give_up))
        try:
            await self._notes.hold(self._holder, by)
            progress()
            yield
        finally:
            if self._keeping is keeping:  # else the hold may be that of another one by now
                await self.let_go()

    async def _keep(self, by: str, progress: Progress, give_up: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(BACKUP_HOLD_RENEW_S)
            if (idle_s := progress.idle_s()) > BACKUP_STALLED_S:
                await self.let_go()
                give_up(
                    f"nothing has come on for {idle_s / 60:.0f} minutes: does the repository's disk answer, and the database?"
                )
                return
            try:
                if not await self._notes.renew(self._holder):
                    log.warning("the hold on removals had run out: what was deleted long ago may be gone before it was copied")
                    await self._notes.hold(self._holder, by)
            except AnvilError as error:
                log.warning("the hold on removals was not renewed: %s", error)


def _now_us() -> int:
    return time.time_ns() // 1000
