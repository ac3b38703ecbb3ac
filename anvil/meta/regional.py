"""The regional database, assembled: the `Metadata` port of the engine over three connections.

Owns: the links of one worker (reads, writes, the rest) and a coalescer per kind of call. Invariant: at most
REGIONAL_CONNECTIONS_MAX connections; point reads never wait behind listings, nor behind commits. Not here: statements (the
modules beside this one).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import asyncpg

from anvil.base.errors import BucketNotEmpty, DatabaseUnavailable, WriterFenced
from anvil.base.limits import (
    DATABASE_WAIT_S,
    DROPPED_BUCKETS_KEEP_S,
    DUE_LOOKED_AT,
    GARBAGE_COUNTED,
    HOLD_SETTLE_S,
    REGIONAL_CONNECTIONS_MAX,
    UNHEALTHY_COUNTED,
    UPLOADS_EXPIRED_MAX,
    USAGE_FOLD_ROWS_MAX,
)
from anvil.meta import collect, contents, listing, objects, owned, sessions, uploads, usage
from anvil.meta.coalesce import Coalescer, Observe, Operation, call
from anvil.meta.link import Link, states
from anvil.meta.objects import DeleteCommit, ReplaceCommit
from anvil.meta.uploads import PartsQuery, UploadCommit
from anvil.model.layout import finest_slices
from anvil.model.records import (
    BlobId,
    BucketId,
    Committed,
    CompleteCommit,
    Condition,
    ContentCommit,
    Debt,
    Garbage,
    ListPage,
    ListQuery,
    ObjectRecord,
    OwnedMark,
    OwnedPage,
    Owner,
    Ownership,
    PartCommit,
    PartRecord,
    PutCommit,
    SessionId,
    UploadId,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
    Usage,
    VersionId,
)


class RegionalStore:
    """Implements `anvil.engine.ports.Metadata`. Make it in the running loop, `start` it, `close` it."""

    def __init__(
        self, url: str, *, name: str = "anvil", wait_s: float = DATABASE_WAIT_S, observe: Observe = lambda statement, rows: None
    ) -> None:
        """`wait_s`: how long a call waits for a database that is away before it raises DatabaseUnavailable. `observe`: told of
        every batch."""
        self._wait_s = wait_s
        self._observe = observe
        self._reads = Link(url, f"{name} reads")
        self._writes = Link(url, f"{name} writes")
        self._misc = Link(url, f"{name} misc")
        self._links = (self._reads, self._writes, self._misc)
        assert len(self._links) <= REGIONAL_CONNECTIONS_MAX
        self._epoch = 0
        self._coalescers: list[Coalescer[Any, Any]] = []
        self._get = self._coalescer(self._reads, objects.GET)
        self._get_upload = self._coalescer(self._reads, uploads.GET)
        self._list_parts = self._coalescer(self._reads, uploads.LIST_PARTS)
        self._put = self._coalescer(self._writes, objects.PUT)
        # Kept apart: a batch of both kinds would lock its rows in two passes, and could deadlock with another.
        self._put_if_match = self._coalescer(self._writes, objects.PUT_IF)
        self._put_if_none_match = self._coalescer(self._writes, objects.PUT_IF)
        self._replace = self._coalescer(self._writes, objects.REPLACE)
        self._delete = self._coalescer(self._writes, objects.DELETE)
        self._create = self._coalescer(self._writes, uploads.CREATE)
        self._put_part = self._coalescer(self._writes, uploads.PUT_PART)
        self._list = self._coalescer(self._misc, listing.LIST)
        self._list_uploads = self._coalescer(self._misc, uploads.LIST)
        self._complete = self._coalescer(self._misc, uploads.COMPLETE)
        self._abort = self._coalescer(self._misc, uploads.ABORT)
        self._replace_content = self._coalescer(self._misc, contents.REPLACE)

    def _coalescer(self, link: Link, operation: Operation[Any, Any]) -> Coalescer[Any, Any]:
        coalescer = Coalescer(link, operation, wait_s=self._wait_s, observe=self._observe)
        self._coalescers.append(coalescer)
        return coalescer

    async def start(self) -> None:
        """Connect. Raises DatabaseUnavailable."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        for link in self._links:
            async with link.lock:
                await link.connected(deadline)
        self._epoch = int((await self.query(sessions.EPOCH_SQL))[0][0])
        for coalescer in self._coalescers:
            coalescer.start()

    async def close(self) -> None:
        """Let batches in flight end, fail what waits, disconnect."""
        await asyncio.gather(*(coalescer.close() for coalescer in self._coalescers))
        for link in self._links:
            await link.close()

    @property
    def up(self) -> bool:
        """Whether all connections are there now."""
        return all(link.up for link in self._links)

    def connections(self) -> dict[str, int]:
        """How many are busy, idle and down."""
        return states(self._links)

    def batch_sizes(self) -> dict[str, tuple[int, int]]:
        """(batches, rows) so far, by kind of call: how well coalescing works."""
        sizes: dict[str, tuple[int, int]] = {}
        for coalescer in self._coalescers:
            batches, rows = sizes.get(coalescer.name, (0, 0))
            sizes[coalescer.name] = (batches + coalescer.batches, rows + coalescer.rows)
        return sizes

    async def query(self, sql: str, *args: object) -> Sequence[asyncpg.Record]:
        """A statement of the background's, on the third connection. It may be run twice when the connection is lost."""
        return await call(self._misc, sql, *args, wait_s=self._wait_s)

    # -- objects ------------------------------------------------------------------------------------------------------

    async def get_object(self, bucket_id: BucketId, key: str) -> ObjectRecord | None:
        record: ObjectRecord | None = await self._get.submit((bucket_id, key))
        return record

    async def put_object(self, commit: PutCommit) -> Committed:
        coalescer = self._put
        if commit.condition:
            coalescer = self._put_if_none_match if commit.condition.if_match is None else self._put_if_match
        committed: Committed = await coalescer.submit(commit)
        return committed

    async def replace_attributes(self, commit: PutCommit, expected: VersionId) -> Committed:
        committed: Committed = await self._replace.submit(ReplaceCommit(commit, expected))
        return committed

    async def delete_object(self, session: SessionId, bucket_id: BucketId, key: str, condition: Condition) -> bool:
        removed: bool = await self._delete.submit(DeleteCommit(session, bucket_id, key, condition))
        return removed

    async def list_objects(self, query: ListQuery) -> ListPage:
        page: ListPage = await self._list.submit(query)
        return page

    # -- multipart ----------------------------------------------------------------------------------------------------

    async def create_upload(self, session: SessionId, upload: UploadRecord) -> None:
        await self._create.submit(UploadCommit(session, upload.bucket_id, upload.key, upload.upload_id, upload))

    async def get_upload(self, bucket_id: BucketId, key: str, upload_id: UploadId) -> UploadRecord | None:
        record: UploadRecord | None = await self._get_upload.submit((bucket_id, key, upload_id))
        return record

    async def put_part(self, commit: PartCommit) -> int:
        modified_us: int = await self._put_part.submit(commit)
        return modified_us

    async def list_parts(self, bucket_id: BucketId, upload_id: UploadId, after: int, limit: int) -> tuple[PartRecord, ...]:
        parts: tuple[PartRecord, ...] = await self._list_parts.submit(PartsQuery(bucket_id, upload_id, after, limit))
        return parts

    async def complete_upload(self, commit: CompleteCommit) -> Committed:
        committed: Committed = await self._complete.submit(commit)
        return committed

    async def abort_upload(self, session: SessionId, bucket_id: BucketId, key: str, upload_id: UploadId) -> None:
        await self._abort.submit(UploadCommit(session, bucket_id, key, upload_id))

    async def list_uploads(self, query: UploadsQuery) -> UploadsPage:
        page: UploadsPage = await self._list_uploads.submit(query)
        return page

    async def replace_content(self, commit: ContentCommit) -> None:
        await self._replace_content.submit(commit)

    async def expire_uploads(self, idle_s: float) -> int:
        """Abort uploads in progress that were begun, and got their last part, longer ago than `idle_s`; UPLOADS_EXPIRED_MAX at most.
        Returns how many."""
        return len(await self.query(uploads.EXPIRE_SQL, int(idle_s * 1_000_000), UPLOADS_EXPIRED_MAX))

    # -- writer sessions (on the connection of the commits: if it is stuck, the lease had better run out) -----------------

    async def open_session(self, node_id: bytes, worker: int, layout_version: int = 0) -> SessionId:
        session = os.urandom(16)
        rows = await call(
            self._writes, sessions.OPEN_SQL, session, node_id, worker, layout_version, self._epoch, wait_s=self._wait_s
        )
        if not rows[0][0]:
            raise WriterFenced(
                "This server's layout is not the current one, or it was removed, or is to be restarted after a restore. Try again."
            )
        return session

    async def renew_session(self, session: SessionId, layout_version: int = 0) -> bool:
        return bool(await call(self._writes, sessions.RENEW_SQL, session, layout_version, self._epoch, wait_s=self._wait_s))

    async def close_session(self, session: SessionId) -> None:
        await call(self._writes, sessions.CLOSE_SQL, session, wait_s=self._wait_s)

    async def expire_sessions(self) -> Sequence[SessionId]:
        """End the sessions whose lease ran out or whose node was removed; their commits in flight are waited for. Returns their ids."""
        return [row[0] for row in await self.query(sessions.EXPIRE_SQL)]

    async def fence(self, node_id: bytes, worker: int | None = None) -> Sequence[SessionId]:
        """End the sessions of a worker, or of all workers of the node, that are known to have ended (a new one takes their place)."""
        return [row[0] for row in await self.query(sessions.FENCE_SQL, node_id, worker)]

    async def live_sessions(self) -> frozenset[SessionId]:
        return frozenset(row[0] for row in await self.query(sessions.LIVE_SQL))

    # -- collector, repair, sweep -----------------------------------------------------------------------------------------

    async def garbage(self, limit: int, grace_s: float, slice: int | None = None, slices: int = 1) -> Sequence[Garbage]:
        if not await self.removal_allowed(grace_s):
            return []
        grace_us = int(grace_s * 1_000_000)
        if slice is None:
            rows = await self.query(collect.GARBAGE_SQL, limit, grace_us)
        else:
            rows = await self.query(collect.GARBAGE_SLICES_SQL, limit, grace_us, *finest_slices(slice, slices))
        return [collect.garbage_from(row) for row in rows]

    async def due_slices(self, slices: int, grace_s: float) -> tuple[Sequence[int], Sequence[int]]:
        """Which of `slices` pieces have garbage older than `grace_s`, and which have debts that may be tried now; of the first
        DUE_LOOKED_AT rows of either."""
        rows = await self.query(collect.DUE_SLICES_SQL, slices, int(grace_s * 1_000_000), DUE_LOOKED_AT)
        return [row["slice"] for row in rows if row["garbage"]], [row["slice"] for row in rows if not row["garbage"]]

    async def removal_allowed(self, grace_s: float) -> bool:
        """Whether anything may be unlinked now: no backup holds it, and the database has been this one for `grace_s`."""
        return bool((await self.query(collect.ALLOWED_SQL, int(grace_s * 1_000_000)))[0][0])

    async def in_recovery(self) -> bool:
        """Whether what is stored is being recovered: nothing is to be deleted meanwhile, by whatever rule."""
        return bool((await self.query(collect.RECOVERY_SQL))[0][0])

    async def garbage_done(self, outbox_ids: Sequence[int]) -> None:
        await self.query(collect.DONE_SQL, list(outbox_ids))

    async def debts(self, limit: int, slice: int | None = None, slices: int = 1) -> Sequence[Debt]:
        if slice is None:
            rows = await self.query(collect.DEBTS_SQL, limit)
        else:
            rows = await self.query(collect.DEBTS_SLICES_SQL, limit, *finest_slices(slice, slices))
        return [collect.debt_from(row) for row in rows]

    async def debts_deferred(self, blob_ids: Sequence[BlobId], delay_s: float) -> None:
        await self.query(collect.DEFER_SQL, list(blob_ids), int(delay_s * 1_000_000))

    async def debt_paid(self, blob_id: BlobId, repaired: int) -> None:
        await self.query(collect.PAID_SQL, blob_id, repaired)

    async def add_debt(self, debts: Sequence[tuple[Owner, BlobId, int]], *, corrupt: bool = False) -> None:
        owners = collect.pack_owners([(owner, blob_id) for owner, blob_id, _ in debts])
        await self.query(collect.OWE_SQL, *owners, [missing for _, _, missing in debts], corrupt)

    async def unhealthy(self) -> tuple[int, int]:
        [row] = await self.query(collect.UNHEALTHY_SQL, UNHEALTHY_COUNTED)
        return row["missing"], row["corrupt"]

    async def owned_blobs(self, after: OwnedMark, limit: int) -> OwnedPage:
        return owned.page_from(after, await self.query(owned.SQL[after.table], *owned.args(after, limit)), limit)

    async def garbage_waiting(self) -> int:
        return int((await self.query(collect.WAITING_SQL, GARBAGE_COUNTED))[0][0])

    async def ownership(self, blobs: Sequence[tuple[Owner, BlobId]]) -> Sequence[Ownership]:
        return [Ownership(row[0]) for row in await self.query(collect.OWNERSHIP_SQL, *collect.pack_owners(blobs))]

    async def note(self, name: str, value: str) -> None:
        """Remember something about the region, under a name of its own."""
        await self.query(collect.NOTE_SQL, name, value)

    async def noted(self, name: str) -> str | None:
        rows = await self.query(collect.NOTED_SQL, name)
        return rows[0][0] if rows else None

    async def hold_garbage(self, reason: str | None) -> None:
        """Stop all unlinking while a backup runs (`reason` says whose), or end the hold (None). Setting it takes HOLD_SETTLE_S: once this
        returns, no process unlinks anything, also none that was in the middle of a batch."""
        if reason is None:
            await self.query(collect.RELEASE_SQL)
        else:
            await self.query(collect.HOLD_SQL, reason)
            await asyncio.sleep(HOLD_SETTLE_S)

    # -- usage --------------------------------------------------------------------------------------------------------

    async def usage(self, bucket_ids: Sequence[BucketId] | None = None) -> Sequence[Usage]:
        """Exact, in one snapshot. Of all buckets, or of those named (zeros where nothing is stored)."""
        ids = None if bucket_ids is None else list(bucket_ids)
        return [usage.usage_from(row) for row in await self.query(usage.USAGE_SQL, ids)]

    async def fold_usage(self) -> int:
        """Move delta rows into totals; the background calls it until it returns 0. Returns how many were moved."""
        moved = (await self.query(usage.FOLD_SQL, USAGE_FOLD_ROWS_MAX))[0][0]
        if not moved:
            await self.query(usage.FORGET_SQL)
        return int(moved)

    # -- the fence of a bucket, for the catalog ---------------------------------------------------------------------------

    async def add_bucket(self, bucket_id: BucketId) -> bool:
        """Idempotent. False if the bucket was dropped: it cannot come back."""
        return bool((await self.query("SELECT add_bucket($1)", bucket_id))[0][0])

    async def bucket_is_empty(self, bucket_id: BucketId) -> bool:
        """A first look that locks nothing; `drop_bucket` decides."""
        sql = """SELECT NOT EXISTS (SELECT FROM objects WHERE bucket_id = $1)
                    AND NOT EXISTS (SELECT FROM versions WHERE bucket_id = $1)"""
        return bool((await self.query(sql, bucket_id))[0][0])

    async def drop_bucket(self, bucket_id: BucketId) -> None:
        """Remove the fence, for ever. Idempotent. Raises BucketNotEmpty; commits in flight are waited for."""
        outcome = (await self.query("SELECT drop_bucket($1)", bucket_id))[0][0]
        if outcome == "not_empty":
            raise BucketNotEmpty
        if outcome not in ("done", "gone"):
            raise DatabaseUnavailable

    async def forget_dropped_buckets(self) -> None:
        """Those dropped so long ago that nobody can still be on the way to add their fence."""
        sql = "DELETE FROM dropped_buckets WHERE dropped_us < now_us() - $1::bigint"
        await self.query(sql, int(DROPPED_BUCKETS_KEEP_S * 1_000_000))
