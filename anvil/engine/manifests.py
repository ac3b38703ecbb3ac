"""The parts of completed uploads: what a multipart object is made of.

Owns: a bounded cache. Invariant: only manifests of completed uploads are kept, and those change, while their object lives, only in which
blobs the parts are in (a raised scheme); the old ones stay for the garbage's grace, so what is kept is not used for longer than
MANIFEST_FRESH_S. A manifest that does not add up to its object is forgotten by who notices. Not here: uploads in progress.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from anvil.base.limits import LIST_KEYS_MAX, MANIFEST_FRESH_S, MANIFEST_PARTS_CACHED, PART_NUMBER_MAX
from anvil.engine.ports import Metadata
from anvil.model.records import BucketId, PartRecord, UploadId


class Manifests:
    def __init__(self, metadata: Metadata, now_s: Callable[[], float] = time.monotonic) -> None:
        self._metadata = metadata
        self._now_s = now_s
        self._cache: OrderedDict[UploadId, tuple[PartRecord, ...]] = OrderedDict()
        self._read_at: dict[UploadId, float] = {}
        self._cached_parts = 0

    async def get(self, bucket_id: BucketId, upload_id: UploadId) -> tuple[PartRecord, ...]:
        """All parts of a completed upload in order of their numbers."""
        asked = self._now_s()
        if (known := self._cache.get(upload_id)) is not None:
            if asked - self._read_at[upload_id] < MANIFEST_FRESH_S:
                self._cache.move_to_end(upload_id)
                return known
            self.forget(upload_id)
        parts = await all_parts(self._metadata, bucket_id, upload_id)
        if upload_id not in self._cache:
            self._cache[upload_id], self._read_at[upload_id] = parts, asked
            self._cached_parts += len(parts)
        while self._cached_parts > MANIFEST_PARTS_CACHED and len(self._cache) > 1:
            self.forget(next(iter(self._cache)))
        return parts

    def forget(self, upload_id: UploadId) -> None:
        if (parts := self._cache.pop(upload_id, None)) is not None:
            self._cached_parts -= len(parts)
            del self._read_at[upload_id]


async def all_parts(metadata: Metadata, bucket_id: BucketId, upload_id: UploadId) -> tuple[PartRecord, ...]:
    """Every part of an upload, page by page (at most PART_NUMBER_MAX)."""
    parts: list[PartRecord] = []
    while len(parts) < PART_NUMBER_MAX:
        page = await metadata.list_parts(bucket_id, upload_id, parts[-1].number if parts else 0, LIST_KEYS_MAX)
        parts.extend(page)
        if len(page) < LIST_KEYS_MAX:
            break
    return tuple(parts)
