"""Looks at several partitions: who holds what is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from anvil.base.errors import DriveFailed
from anvil.model.layout import partition
from anvil.model.shard import ShardPlace
from anvil.tasks.inventory import held, take
from tests.contract.memory_drive import MemoryDrive
from tests.contract.shard_samples import make_footer, make_frames, make_header


class Counted(MemoryDrive):
    def __init__(self, drive_id: bytes) -> None:
        super().__init__(drive_id)
        self.scans: list[int] = []
        self.deaf = False

    async def partitions(self) -> frozenset[int]:
        if self.deaf:
            raise DriveFailed
        return await super().partitions()

    async def scan(self, partitions: Collection[int] | None = None) -> AsyncIterator[ShardPlace]:
        self.scans += partitions or ()
        async for place in super().scan(partitions):
            yield place


def test_only_drives_that_hold_something_are_looked_at_and_the_others_count_as_asked() -> None:
    async def main() -> None:
        full, empty, deaf = (Counted(bytes([number]) * 16) for number in range(3))
        header = make_header(4096)
        await full.put(header, make_frames(header), make_footer())
        number = partition(header.blob.blob_id)
        deaf.deaf = True
        known = await held([full, empty, deaf])
        found = await take([full, empty, deaf], (number,), known)
        assert (full.scans, empty.scans) == ([number], [])
        assert deaf.scans == [number], "what it holds is not known: it has to be looked at"
        assert set(found.asked) == {full, empty, deaf}
        assert list(found.blobs) == [header.blob.blob_id]
        assert not (await take([full, empty], ((number + 1) % 4096,), known)).blobs
        assert full.scans == [number]

    asyncio.run(main())
