"""The global database as the workers see it: a catalog served by the background process and cached by each worker.

Owns: the cache and its rule of freshness (DESIGN.md "Metadata"): a cached row may be used only while the change log is
known to have been read within the last CATALOG_FRESH_S. The background process reads the change log every CATALOG_PUSH_S, and
at once where a change is notified, and pushes what changed together with the moment of reading (CLOCK_MONOTONIC, which all
processes of a machine share).
Invariants: a row read before a change is never cached after that change was pushed (generations); a missing row is never
cached, so what was just created is found at once; what this node creates or deletes is forgotten by all its workers
before the caller gets its answer. Not here: SQL (`meta/catalog.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from anvil.base.clock import SYSTEM_CLOCK, Clock
from anvil.base.errors import AnvilError, DatabaseUnavailable, Unavailable
from anvil.base.limits import (
    CATALOG_FRESH_S,
    CATALOG_PAUSE_S,
    CATALOG_PUSH_S,
    CATALOG_ROWS_MAX,
    CATALOG_WAIT_S,
    INVALIDATE_ACK_S,
)
from anvil.engine.ports import Catalog
from anvil.model.identity import App, Bucket
from anvil.node.channel import Channel, Handler, Listener

log = logging.getLogger(__name__)
T = TypeVar("T")
EVERYTHING = "*"
REGIONS = "regions"  # read together: there are few


def app_row(access_key: str) -> str:
    """The name of an app's row among changes."""
    return f"app:{access_key}"


def bucket_row(name: str) -> str:
    """The name of a bucket's row among changes."""
    return f"bucket:{name}"


class CatalogSource(Catalog, Protocol):
    """What the background process needs of `meta/catalog.py` beside the port."""

    async def hastened(self, timeout_s: float) -> None:
        """Until something is known to have changed since `changes` was asked, or for `timeout_s`."""
        ...

    async def changes(self) -> Sequence[str]:
        """Rows changed since the last call: `app:ACCESS_KEY`, `bucket:NAME`, `region:NAME`, or `*` when that is not known. Raises
        DatabaseUnavailable, after which the next call reports what this one could not.
        """
        ...


class Changes(msgspec.Struct, array_like=True, frozen=True):
    """Pushed to workers. `read_at`: CLOCK_MONOTONIC just before the change log was read, 0.0 when it was not."""

    generation: int
    read_at: float
    rows: tuple[str, ...] = ()


class Row(msgspec.Struct, array_like=True, frozen=True):
    """An answer, with the generation that the background process was at before it read the row."""

    generation: int
    app: App | None = None
    bucket: Bucket | None = None
    regions: dict[str, str] | None = None


class CreateBucket(msgspec.Struct, array_like=True, frozen=True):
    tenant_id: int
    name: str
    region: str


class CatalogServer:
    """The background process's side. `workers`: the channels to tell."""

    def __init__(self, source: CatalogSource, workers: Callable[[], Iterable[Channel]], clock: Clock = SYSTEM_CLOCK) -> None:
        self._source = source
        self._workers = workers
        self._clock = clock
        self._generation = 1
        self._read_at = 0.0
        self._changes: set[asyncio.Task[Any]] = set()

    @property
    def handlers(self) -> dict[str, Handler]:
        return {
            "catalog.app": self._app,
            "catalog.bucket": self._bucket,
            "catalog.buckets": self._buckets,
            "catalog.regions": self._regions,
            "catalog.create_bucket": self._create_bucket,
            "catalog.delete_bucket": self._delete_bucket,
        }

    def greeting(self) -> Changes:
        """What a worker learns when it connects."""
        return Changes(self._generation, self._read_at)

    async def run(self) -> None:
        """Read the change log for ever, at once where a change was notified, and tell the workers each time."""
        failing = False
        while True:
            read_at = self._clock.monotonic()
            try:
                async with asyncio.timeout(CATALOG_FRESH_S):
                    rows = tuple(await self._source.changes())
            except (AnvilError, TimeoutError) as error:
                if not failing:
                    log.warning("the change log cannot be read", extra={"reason": str(error) or "time-out"})
                failing = True
            else:
                failing = False
                self._read_at = read_at
                self._announce(rows)
            # A storm of changes, or a database that is away, must not have the log read without a pause.
            await asyncio.sleep(CATALOG_PUSH_S if failing else CATALOG_PAUSE_S)
            await self._source.hastened(CATALOG_PUSH_S - CATALOG_PAUSE_S)

    def _announce(self, rows: tuple[str, ...]) -> None:
        self._generation += bool(rows)
        changes = Changes(self._generation, self._read_at, rows)
        for worker in self._workers():
            worker.push("catalog.changes", changes)

    async def _app(self, channel: Channel, body: msgspec.Raw) -> Row:
        generation = self._generation
        return Row(generation, app=await self._source.app(msgspec.msgpack.decode(body, type=str)))

    async def _bucket(self, channel: Channel, body: msgspec.Raw) -> Row:
        generation = self._generation
        return Row(generation, bucket=await self._source.bucket(msgspec.msgpack.decode(body, type=str)))

    async def _buckets(self, channel: Channel, body: msgspec.Raw) -> Sequence[Bucket]:
        return await self._source.buckets(msgspec.msgpack.decode(body, type=int))

    async def _regions(self, channel: Channel, body: msgspec.Raw) -> Row:
        generation = self._generation
        return Row(generation, regions=dict(await self._source.regions()))

    async def _create_bucket(self, channel: Channel, body: msgspec.Raw) -> Bucket:
        wanted = msgspec.msgpack.decode(body, type=CreateBucket)
        return await self._changing(wanted.name, self._source.create_bucket(wanted.tenant_id, wanted.name, wanted.region))

    async def _delete_bucket(self, channel: Channel, body: msgspec.Raw) -> None:
        bucket = msgspec.msgpack.decode(body, type=Bucket)
        await self._changing(bucket.name, self._source.delete_bucket(bucket))

    async def _changing(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        """Finish `change` even if the worker that asked goes away: it must not stop between its two databases."""
        task = asyncio.get_running_loop().create_task(self._changed(name, change))
        self._changes.add(task)
        task.add_done_callback(self._change_done)
        return await asyncio.shield(task)

    async def _changed(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        try:
            return await change
        finally:
            await self.forget(bucket_row(name))

    def _change_done(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # told to the worker that asked, if it is still there

    async def forget(self, *rows: str) -> None:
        """Make every worker forget the rows. One that does not answer in INVALIDATE_ACK_S is stalled, and forgets it before
        it goes on.
        """
        self._generation += 1
        changes = Changes(self._generation, self._read_at, rows)
        told = [worker.call("catalog.forget", changes, bool, INVALIDATE_ACK_S) for worker in self._workers()]
        for outcome in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, Unavailable):
                raise outcome


class RemoteCatalog:
    """The worker's side: the Catalog port over the channel, with the cache."""

    def __init__(self, channel: Callable[[], Channel | None], clock: Clock = SYSTEM_CLOCK) -> None:
        self._channel = channel
        self._clock = clock
        self._apps: dict[str, App] = {}
        self._bucket_rows: dict[str, Bucket] = {}
        self._region_rows: Mapping[str, str] | None = None
        self._reading: dict[str, asyncio.Future[Row]] = {}
        self._generation = 0
        self._read_at = 0.0
        self._moved = asyncio.Event()

    # -- what the channel tells --------------------------------------------------------------------------------------------

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"catalog.forget": self._forget}

    @property
    def listeners(self) -> dict[str, Listener]:
        return {"catalog.changes": lambda channel, body: self._apply(msgspec.msgpack.decode(body, type=Changes))}

    def connected(self, greeting: Changes) -> None:
        """A (new) background process: nothing read from the one before may be used, since changes may have been missed."""
        self._apps.clear()
        self._bucket_rows.clear()
        self._region_rows = None
        self._generation = 0
        self._apply(greeting)

    async def _forget(self, channel: Channel, body: msgspec.Raw) -> bool:
        self._apply(msgspec.msgpack.decode(body, type=Changes))
        return True

    def _apply(self, changes: Changes) -> None:
        for row in changes.rows:
            kind, _, name = row.partition(":")
            if kind in ("app", EVERYTHING):
                self._apps.pop(name, None) if name else self._apps.clear()
            if kind in ("bucket", EVERYTHING):
                self._bucket_rows.pop(name, None) if name else self._bucket_rows.clear()
            if kind in ("region", EVERYTHING):
                self._region_rows = None
        self._generation = max(self._generation, changes.generation)
        self._read_at = max(self._read_at, changes.read_at)
        self._moved.set()
        self._moved.clear()  # wakes those who wait now

    # -- the port ----------------------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Whether cached rows may be used now."""
        return self._clock.monotonic() - self._read_at < CATALOG_FRESH_S

    async def app(self, access_key: str) -> App | None:
        """Raises DatabaseUnavailable."""
        if self.fresh and (known := self._apps.get(access_key)) is not None:
            return known
        row = await self._read("catalog.app", access_key, app_row(access_key))
        if row.app is not None and row.generation >= self._generation:
            _keep(self._apps, access_key, row.app)
        return row.app

    async def bucket(self, name: str) -> Bucket | None:
        """Raises DatabaseUnavailable."""
        if self.fresh and (known := self._bucket_rows.get(name)) is not None:
            return known
        row = await self._read("catalog.bucket", name, bucket_row(name))
        if row.bucket is not None and row.generation >= self._generation:
            _keep(self._bucket_rows, name, row.bucket)
        return row.bucket

    async def buckets(self, tenant_id: int) -> Sequence[Bucket]:
        return await self.ask("catalog.buckets", tenant_id, tuple[Bucket, ...])

    async def regions(self) -> Mapping[str, str]:
        """Raises DatabaseUnavailable."""
        if self.fresh and self._region_rows is not None:
            return self._region_rows
        row = await self._read("catalog.regions", "", REGIONS)
        found = row.regions or {}
        if row.generation >= self._generation:
            self._region_rows = found
        return found

    async def create_bucket(self, tenant_id: int, name: str, region: str) -> Bucket:
        return await self.call("catalog.create_bucket", CreateBucket(tenant_id, name, region), Bucket)

    async def delete_bucket(self, bucket: Bucket) -> None:
        await self.call("catalog.delete_bucket", bucket, type(None))

    # -- reading -----------------------------------------------------------------------------------------------------------

    async def _read(self, method: str, argument: str, row: str) -> Row:
        """Concurrent readers of one row share one call. A caller that gives up does not cancel it for the others."""
        reading = self._reading.get(row)
        if reading is None:
            reading = asyncio.ensure_future(self.ask(method, argument, Row))
            self._reading[row] = reading
            reading.add_done_callback(lambda done: self._read_done(row, done))
        return await asyncio.shield(reading)

    def _read_done(self, row: str, done: asyncio.Future[Row]) -> None:
        self._reading.pop(row, None)
        if not done.cancelled():
            done.exception()  # every reader may have given up: it is then nobody's

    async def call(self, method: str, argument: Any, result: type[T]) -> T:
        """Ask once. Raises DatabaseUnavailable where the channel failed: to the caller the catalog is away."""
        channel = await self._connection()
        try:
            return await channel.call(method, argument, result)
        except Unavailable as error:
            if type(error) is Unavailable:  # the channel's own
                raise DatabaseUnavailable(error.message) from error
            raise

    async def ask(self, method: str, argument: Any, result: type[T]) -> T:
        """As `call` for what only reads: asked once more when the background process went away under the question."""
        channel = self._channel()
        try:
            return await self.call(method, argument, result)
        except DatabaseUnavailable:
            if channel is None or channel.open:
                raise
            return await self.call(method, argument, result)

    async def _connection(self) -> Channel:
        """The channel, waiting up to CATALOG_WAIT_S for a background process that restarts or a database that is away."""
        channel = self._channel()
        if channel is not None and self.fresh:
            return channel
        try:
            async with asyncio.timeout(CATALOG_WAIT_S):
                while channel is None or not self.fresh:
                    await self._moved.wait()
                    channel = self._channel()
        except TimeoutError:
            raise DatabaseUnavailable from None
        return channel


def _keep(cache: dict[str, T], name: str, row: T) -> None:
    if len(cache) >= CATALOG_ROWS_MAX:
        cache.pop(next(iter(cache)))  # the one read longest ago
    cache[name] = row
