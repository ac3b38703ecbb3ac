"""What a node does in the background: the wiring."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from anvil.model.records import BlobRef, Ownership
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardHeader
from anvil.node.upkeep import Hold, Upkeep


def test_no_move_takes_a_place_of_what_must_not_wait() -> None:
    bare = object.__new__(Upkeep)
    assert {"collect", "repair", "usage", "buckets", "uploads"} == bare.work.keys()
    assert {"rebalance"} == bare.moves.keys(), "by a worker of its own"


class Metadata:
    """Nobody owns anything."""

    def __init__(self) -> None:
        self.allowed = True

    async def removal_allowed(self, grace_s: float) -> bool:
        return self.allowed

    async def live_sessions(self) -> frozenset[bytes]:
        return frozenset()

    async def ownership(self, blobs: Sequence[object]) -> list[Ownership]:
        return [Ownership.NOBODY] * len(blobs)


def test_compaction_forgets_nothing_while_removals_are_held() -> None:
    async def main() -> None:
        metadata, upkeep = Metadata(), cast(Any, object.__new__(Upkeep))
        upkeep._metadata, upkeep._hold = metadata, Hold(cast(Any, metadata), 0.0)
        header = ShardHeader(
            BlobRef(bytes(16), 1, Scheme(1, 0)), 0, bucket_id=1, key="k", version_id=bytes(16), session=bytes(16)
        )
        assert await upkeep._keep([header]) == [False]
        metadata.allowed = False
        assert await upkeep._keep([header]) == [True]

    asyncio.run(main())
