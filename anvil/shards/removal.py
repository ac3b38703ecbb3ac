"""Forgetting one shard: its index entry, the segment that nothing lives in any more, its file.

Invariant: whether it may be done is asked on the drive's thread, right before anything is undone: the drive may have been long in
answering, and a backup may have begun to hold removals meanwhile. Not here: who may ask, and the drive's state (`drive.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anvil.base.errors import Unavailable
from anvil.model.records import BlobId
from anvil.shards.files import blob_path, unlink_if_there
from anvil.shards.index import Place
from anvil.shards.store import Store

Held = Callable[[], bool]
"""Whether nothing may be removed now. Called on any thread."""


def assert_free(held: Held) -> None:
    """Raises Unavailable."""
    if held():
        raise Unavailable("removal is on hold while a backup is taken")


async def remove(store: Store, blob_id: BlobId, index: int, held: Held) -> bool:
    """Whether the drive had it. Raises Unavailable where removals are held, OSError."""
    path = blob_path(store.folder.blobs, blob_id, index)
    place = await store.io.index_call(_forget, store, blob_id, index, held)
    if place is not None and not held():  # else compaction drops it
        await store.drop_if_empty(place.segment)
    had_file = await store.io.call(_unlink, path, held)
    if had_file:
        store.files.discard(path)
    return place is not None or had_file


def _forget(store: Store, blob_id: BlobId, index: int, held: Held) -> Place | None:
    assert_free(held)
    return store.index.remove(blob_id, index)


def _unlink(path: Path, held: Held) -> bool:
    if path.exists():
        assert_free(held)
    return unlink_if_there(path)
