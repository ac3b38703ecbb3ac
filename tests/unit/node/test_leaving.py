"""A drive that no layout names any more is called empty when nothing that is owned is on it, and not before."""

from __future__ import annotations

import asyncio

from anvil.model.records import NO_CONDITION
from anvil.node.leaving import Leaving
from tests.support.memory_region import region


def test_a_drive_is_empty_when_nothing_owned_is_on_it() -> None:
    async def main() -> None:
        reports: list[tuple[bytes, bool]] = []

        async def report(drive_id: bytes, empty: bool, version: int) -> None:
            assert version == made.placement.layout.version
            reports.append((drive_id, empty))

        def said() -> list[bool]:
            answers = [empty for _, empty in reports]
            reports.clear()
            return answers

        async with region(6) as made:
            spare = made.drives[made.add_node(1)][0]
            made.retire()
            leaving = Leaving(made.metadata, made.placement, lambda: [spare, made.drives[0][0]], report)
            blob, other = await made.put("k", bytes(300_000)), await made.put("gone", bytes(300_000))
            spare.shards[blob.blob_id, 1] = made.nominal(blob, 1).shards[blob.blob_id, 1]
            spare.shards[other.blob_id, 1] = made.nominal(other, 1).shards[other.blob_id, 1]
            await made.engine.delete_object(made.bucket, "gone", NO_CONDITION)
            await leaving.look()
            assert said() == [False]
            await made.survey.partition(blob.blob_id[0] << 4 | blob.blob_id[1] >> 4, deep=False)
            assert list(spare.shards) == [(other.blob_id, 1)], "the second copy goes, what is in its grace stays"
            spare.away = True
            await leaving.look()
            assert said() == [], "what cannot be looked at is not called empty"
            spare.away = False
            spare.shards[other.blob_id, 1].header_damaged = True
            await leaving.look()
            assert said() == [False], "nobody can say whose that is"
            spare.shards[other.blob_id, 1].header_damaged = False
            await leaving.look()
            assert said() == [True]
            spare.shards.clear()
            await leaving.look()
            assert said() == [], "once is enough: nothing is written there any more"
            made.begin([0, 1, 2, 3, 4, 5, 6])
            await leaving.look()
            made.begin([0, 1, 2, 3, 4, 5])
            made.retire()
            spare.shards[blob.blob_id, 1] = made.nominal(blob, 1).shards[blob.blob_id, 1]
            await leaving.look()
            assert said() == [False], "it was in use in between"

    asyncio.run(main())
