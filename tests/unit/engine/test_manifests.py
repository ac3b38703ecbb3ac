"""The cache of manifests: bounded in parts and in time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from anvil.base.limits import MANIFEST_FRESH_S, MANIFEST_PARTS_CACHED
from anvil.engine.manifests import Manifests
from anvil.model.records import PartRecord


class Parts:
    """Uploads with so many parts as their id says, and a count of what was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def list_parts(self, bucket_id: int, upload_id: bytes, after: int, limit: int) -> tuple[PartRecord, ...]:
        self.asked += after == 0
        last = int.from_bytes(upload_id, "big")
        return tuple(PartRecord(number, 1, "", 1) for number in range(after + 1, min(after + limit, last) + 1))


def test_what_is_kept_is_used_for_a_while_only() -> None:
    async def main() -> None:
        clock, store = [0.0], Parts()
        manifests = Manifests(cast(Any, store), lambda: clock[0])
        upload = (3).to_bytes(16, "big")
        for _ in range(3):
            assert len(await manifests.get(1, upload)) == 3
        assert store.asked == 1
        clock[0] = MANIFEST_FRESH_S
        assert len(await manifests.get(1, upload)) == 3
        assert store.asked == 2, "its parts may be in other blobs by now"
        manifests.forget(upload)
        manifests.forget(upload)
        await manifests.get(1, upload)
        assert store.asked == 3

    asyncio.run(main())


def test_it_keeps_so_many_parts_at_most() -> None:
    async def main() -> None:
        store = Parts()
        manifests = Manifests(cast(Any, store))
        uploads = [(10_000 - number).to_bytes(16, "big") for number in range(MANIFEST_PARTS_CACHED // 10_000 + 2)]
        for upload in uploads:
            await manifests.get(1, upload)
        asked = store.asked
        await manifests.get(1, uploads[-1])
        assert store.asked == asked
        await manifests.get(1, uploads[0])
        assert store.asked == asked + 1, "the one that was not used for longest went"

    asyncio.run(main())
