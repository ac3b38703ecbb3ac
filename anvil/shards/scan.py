"""Going through a drive: which shards it has, small ones by its index and large ones by its folders.

Owns: the order, and how much is looked at in one go. Invariant: no transaction of the index and no thread is held while the caller
works. Not here: whether a shard is sound (`reader.examine`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager

from anvil.base.limits import INDEX_PAGE_ENTRIES
from anvil.model.records import BlobId
from anvil.shards.files import blobs_in, outer_folders
from anvil.shards.index import partition_key
from anvil.shards.store import Store


async def names(
    reading: Callable[[], Store], reads: Callable[[], AbstractAsyncContextManager[None]], partitions: Collection[int] | None
) -> AsyncIterator[tuple[BlobId, int]]:
    """Blob and index of every shard, or of those of some partitions. `reading` gives the store as long as the drive can be read, `reads`
    classes what goes wrong; both raise DriveFailed."""
    for first, end in [(b"", b"\xff" * 3)] if partitions is None else _ranges(partitions):
        after = first
        while True:
            store = reading()
            async with reads():
                page = store.index.page(after, INDEX_PAGE_ENTRIES, end)
            if not page:
                break
            for key, entry in page:
                after = key
                yield entry.blob_id, entry.shard
    async with reads():
        store = reading()
        outer = await store.io.ask(outer_folders, store.folder.blobs, partitions)
    for folder in outer:
        async with reads():
            found = await reading().io.ask(blobs_in, folder, partitions)
        for name in found:
            yield name


def _ranges(partitions: Collection[int]) -> Iterator[tuple[bytes, bytes]]:
    """Of the index: before the first key and behind the last one of each run of neighbours."""
    waiting = sorted(set(partitions))
    while waiting:
        length = next((n for n, number in enumerate(waiting) if number != waiting[0] + n), len(waiting))
        yield partition_key(waiting[0]), partition_key(waiting[length - 1] + 1)
        waiting = waiting[length:]
