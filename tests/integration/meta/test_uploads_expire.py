"""Uploads that nobody goes on with."""

from __future__ import annotations

import asyncio
import time

from anvil.meta.migrate import Database
from anvil.meta.regional import RegionalStore
from tests.contract.metadata_world import world
from tests.postgres_fixture import Postgres

DAY_S = 86_400.0


def test_only_uploads_without_any_life_are_aborted_and_their_parts_become_garbage(postgres: Postgres) -> None:
    url = postgres.fresh(Database.REGIONAL)

    async def main() -> None:
        async with world(url) as w:
            store, now_us = w.store, time.time_ns() // 1000
            assert isinstance(store, RegionalStore)
            old_us = now_us - int(3 * DAY_S * 1_000_000)
            left, busy, completed = [await w.upload(key, old_us) for key in ("left", "busy", "completed")]
            young = await w.upload("young", now_us)
            parts = {upload: w.part(key, upload, 1) for key, upload in (("left", left), ("busy", busy), ("completed", completed))}
            for part in parts.values():
                await store.put_part(part)
            await store.complete_upload(w.complete("completed", completed, [parts[completed]]))
            await store.query("UPDATE parts SET modified_us = $1 WHERE upload_id = ANY ($2::bytea[])", old_us, [left, completed])

            assert await store.expire_uploads(2 * DAY_S) == 1
            assert await store.expire_uploads(2 * DAY_S) == 0
            assert await store.get_upload(w.bucket_id, "left", left) is None
            assert await store.get_upload(w.bucket_id, "busy", busy) is not None, "it got a part just now"
            assert await store.get_upload(w.bucket_id, "young", young) is not None
            assert await store.get_object(w.bucket_id, "completed") is not None
            content = parts[left].content
            assert content is not None
            assert [item.blob_id for item in await store.garbage(10, 0.0)] == [content.blob.blob_id]

    asyncio.run(main())
