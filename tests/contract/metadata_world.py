"""What tests of the metadata store share: a store with one bucket and one writer session, and makers of commits."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anvil.meta.regional import RegionalStore
from anvil.model.records import (
    NO_CONDITION,
    Attributes,
    BlobRef,
    BucketId,
    CompleteCommit,
    Condition,
    Content,
    PartCommit,
    PutCommit,
    SessionId,
    UploadId,
    UploadRecord,
)
from anvil.model.scheme import Scheme
from tests.contract.memory_metadata import MemoryMetadata

Store = RegionalStore | MemoryMetadata
NODE = bytes(16)


def content(size: int, *, inline: bool = False) -> Content:
    blob = BlobRef(os.urandom(16), size, Scheme(1, 2))
    return Content(blob, os.urandom(size + 16) if inline else None)


def etag_of(text: str) -> str:
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


class World:
    """`store` with `bucket_id` and `session` in it."""

    def __init__(self, store: Any, bucket_id: BucketId, session: SessionId) -> None:
        self.store = store
        self.bucket_id = bucket_id
        self.session = session

    def put(
        self,
        key: str,
        size: int = 4096,
        *,
        etag: str = "",
        condition: Condition = NO_CONDITION,
        inline: bool = False,
        missing: int = 0,
        attributes: Attributes | None = None,
    ) -> PutCommit:
        return PutCommit(
            session=self.session,
            bucket_id=self.bucket_id,
            key=key,
            version_id=os.urandom(16),
            size=size,
            etag=etag or etag_of(f"{key}{size}"),
            attributes=attributes or Attributes(),
            content=content(size, inline=inline) if size else None,
            missing=missing,
            condition=condition,
        )

    async def upload(self, key: str, initiated_us: int = 1, attributes: Attributes | None = None) -> UploadId:
        upload_id = os.urandom(16)
        record = UploadRecord(upload_id, self.bucket_id, key, initiated_us, attributes or Attributes(), "AKTEST")
        await self.store.create_upload(self.session, record)
        return upload_id

    def part(self, key: str, upload_id: UploadId, number: int, size: int = 100, etag: str = "", missing: int = 0) -> PartCommit:
        return PartCommit(
            session=self.session,
            bucket_id=self.bucket_id,
            key=key,
            upload_id=upload_id,
            number=number,
            size=size,
            etag=etag or etag_of(f"part {number}"),
            content=content(size) if size else None,
            missing=missing,
        )

    def complete(
        self, key: str, upload_id: UploadId, parts: list[PartCommit], condition: Condition = NO_CONDITION
    ) -> CompleteCommit:
        return CompleteCommit(
            session=self.session,
            bucket_id=self.bucket_id,
            key=key,
            upload_id=upload_id,
            version_id=os.urandom(16),
            parts=tuple((part.number, part.etag) for part in parts),
            size=sum(part.size for part in parts),
            etag=f"{etag_of(key)}-{len(parts)}",
            condition=condition,
        )

    async def delete(self, key: str, condition: Condition = NO_CONDITION) -> bool:
        removed: bool = await self.store.delete_object(self.session, self.bucket_id, key, condition)
        return removed


def new_bucket_id() -> BucketId:
    return 1 + secrets.randbelow(2**63 - 1)  # not `random`: Hypothesis seeds it


@asynccontextmanager
async def world(url: str | None) -> AsyncIterator[World]:
    """A fresh world: PostgreSQL at `url`, or in memory."""
    store: Store = MemoryMetadata() if url is None else RegionalStore(url)
    if isinstance(store, RegionalStore):
        await store.start()
    try:
        bucket_id = new_bucket_id()
        await store.add_bucket(bucket_id)
        yield World(store, bucket_id, await store.open_session(NODE, 0))
    finally:
        if isinstance(store, RegionalStore):
            await store.close()
