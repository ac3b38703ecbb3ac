"""Raising schemes: blobs that were written when there were fewer drives or nodes are written anew by the present scheme.

Owns: which blobs, and the exchange. Invariants: the new blob is durable on all its drives, not only on the quorum, and its bytes have the
ETag that the row says, before the row names it; the exchange happens only if the row still names the old blob, so whoever overwrites or
deletes meanwhile wins, and the new one goes again; readers of the old blob have the garbage's grace. A walk may be given up and begun again
anywhere: what was raised is not met again. Needs buckets' keys and a writer session, as any writer. Not here: what the present scheme is.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial

import msgspec

from anvil.base.errors import BadDigest, BadRecord, ConditionalRequestConflict, Corrupt, DataLost, Unavailable
from anvil.base.limits import OWNED_PAGE_ROWS, RAISE_BLOBS_IN_FLIGHT, RAISE_BYTES_PER_S
from anvil.engine.blobs_read import ObjectReader
from anvil.engine.blobs_write import BlobWriter
from anvil.engine.context import Context
from anvil.engine.objects import StoredBody, commit_blob
from anvil.engine.types import Extent, PutSpec
from anvil.model.identity import Bucket
from anvil.model.records import (
    Algorithm,
    Attributes,
    BlobRef,
    BucketId,
    Checksum,
    Content,
    ContentCommit,
    OwnedMark,
    Owner,
)
from anvil.model.scheme import Scheme, scheme_for
from anvil.tasks.several import side_by_side
from anvil.tasks.throttle import Throttle

log = logging.getLogger("anvil.raise")


class Raised(msgspec.Struct):
    """Blobs: `raised` ones with their `bytes`; `waiting` for drives; `changed` meanwhile, so that there was nothing left to do;
    `unreadable`, which no walk raises: they keep their scheme, and readers, scrub and repair know of them."""

    raised: int = 0
    bytes: int = 0
    waiting: int = 0
    changed: int = 0
    unreadable: int = 0


def is_lower(scheme: Scheme, wanted: Scheme) -> bool:
    """Whether `wanted` survives more losses, or as many for less space."""
    return (scheme.m, scheme.k) < (wanted.m, wanted.k)


class SchemeRaiser:
    """`bucket`: by id, None if it is gone. `throttle`: shared by all of this process."""

    def __init__(
        self, context: Context, bucket: Callable[[BucketId], Awaitable[Bucket | None]], throttle: Throttle | None = None
    ) -> None:
        self._context = context
        self._bucket = bucket
        self._reader = ObjectReader(context)
        self._writer = BlobWriter(context)
        self.throttle = throttle or Throttle(RAISE_BYTES_PER_S)

    async def page(self, after: OwnedMark, raised: Raised) -> OwnedMark | None:
        """Raise what is lower among the next OWNED_PAGE_ROWS rows, and count it. Returns where to go on, None at the end. Raises
        DatabaseUnavailable."""
        page = await self._context.metadata.owned_blobs(after, OWNED_PAGE_ROWS)
        wanted = self._context.scheme()
        todo = iter([one for one in page.blobs if is_lower(one[1].scheme, scheme_for(one[1].size, wanted))])
        if after.table != "versions":  # whose rows nothing exchanges
            await side_by_side(RAISE_BLOBS_IN_FLIGHT, partial(self._some, todo, raised))
        return page.next_after

    async def _some(self, todo: Iterator[tuple[Owner, BlobRef]], raised: Raised) -> None:
        for owner, blob in todo:
            try:
                done = await self._raise(owner, blob)
            except ConditionalRequestConflict:
                raised.changed += 1
            except (Corrupt, BadDigest) as error:
                log.error("blob %s cannot be read, and keeps its scheme: %s", blob.blob_id.hex(), error)
                raised.unreadable += 1
            except Unavailable as error:
                log.warning("blob %s keeps its scheme for now: %s", blob.blob_id.hex(), error)
                raised.waiting += 1
            else:
                raised.raised += done
                raised.waiting += not done
                raised.bytes += blob.size * done

    async def _raise(self, owner: Owner, blob: BlobRef) -> bool:
        """False where not all drives took it. Raises ConditionalRequestConflict, and what reading and writing raise."""
        context = self._context
        bucket = await self._bucket(owner.bucket_id)
        etag, attributes, checksum = await self._known(owner, blob)
        if bucket is None:
            raise ConditionalRequestConflict

        def verify(digests: Mapping[Algorithm, bytes]) -> Checksum | None:
            if digests[Algorithm.MD5].hex() != etag:
                raise BadDigest
            return checksum

        header_owner = await self._full_owner(owner, blob)
        views = self._throttled(self._reader.read(bucket, (Extent(0, blob.size, Content(blob), owner),), 0, blob.size))
        layout = context.placement().layout.version
        with context.layouts.writing(layout):
            spec = PutSpec(attributes=attributes, verify=verify)
            written = await self._writer.write(bucket, header_owner, StoredBody(views, blob.size), spec)
            if written.missing or written.content is None:
                await self._writer.discard(written)
                return False
            commit = ContentCommit(written.session, owner, blob.blob_id, written.content)
            await commit_blob(context, self._writer, written, context.metadata.replace_content(commit), layout)
        return True

    async def _known(self, owner: Owner, blob: BlobRef) -> tuple[str, Attributes, Checksum | None]:
        """What the footer says beside the bytes. Raises ConditionalRequestConflict where the row names another blob."""
        metadata = self._context.metadata
        if owner.part_number:
            parts = await metadata.list_parts(owner.bucket_id, owner.version_id, owner.part_number - 1, 1)
            for part in parts:
                if part.content is not None and part.content.blob.blob_id == blob.blob_id:
                    return part.etag, Attributes(), part.checksum
            raise ConditionalRequestConflict
        row = await metadata.get_object(owner.bucket_id, owner.key)
        if row is None or row.content is None or row.content.blob.blob_id != blob.blob_id:
            raise ConditionalRequestConflict
        return row.etag, row.attributes, row.checksum

    async def _full_owner(self, owner: Owner, blob: BlobRef) -> Owner:
        """With the key, which rows of parts do not have, and records do. Raises DataLost where no drive has a record that can be read,
        Unavailable where one of them cannot be asked."""
        if not owner.part_number:
            return owner
        placement, away = self._context.placement(), False
        for index, nominal in enumerate(placement.belongs(blob.blob_id, blob.scheme.width)):
            for drive in [nominal, *placement.elsewhere(blob.blob_id, index)]:
                try:
                    place = await drive.open(blob.blob_id, index) if drive is not None and drive.readable else None
                except BadRecord:
                    continue
                except Unavailable:
                    away = True
                    continue
                if place is not None:
                    return place.header.owner
                away |= drive is not None and not drive.readable
        raise Unavailable if away else DataLost

    async def _throttled(self, views: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
        async for view in views:
            await self.throttle.take(len(view))
            yield view
