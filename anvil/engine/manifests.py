"""The parts of completed uploads: what a multipart object is made of.

Owns: a bounded cache. Invariant: only manifests of completed uploads are kept, and those never change while their object lives; a manifest
that does not add up to its object is forgotten by who notices. Not here: uploads in progress.
"""

from __future__ import annotations

from collections import OrderedDict

from anvil.base.limits import LIST_KEYS_MAX, MANIFEST_PARTS_CACHED, PART_NUMBER_MAX
from anvil.engine.ports import Metadata
from anvil.model.records import BucketId, PartRecord, UploadId


class Manifests:
    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._cache: OrderedDict[UploadId, tuple[PartRecord, ...]] = OrderedDict()
        self._cached_parts = 0

    async def get(self, bucket_id: BucketId, upload_id: UploadId) -> tuple[PartRecord, ...]:
        """All parts of a completed upload in order of their numbers."""
        if (known := self._cache.get(upload_id)) is not None:
            self._cache.move_to_end(upload_id)
            return known
        parts = await all_parts(self._metadata, bucket_id, upload_id)
        if upload_id not in self._cache:
            self._cache[upload_id] = parts
            self._cached_parts += len(parts)
        while self._cached_parts > MANIFEST_PARTS_CACHED and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_parts -= len(dropped)
        return parts

    def forget(self, upload_id: UploadId) -> None:
        if (parts := self._cache.pop(upload_id, None)) is not None:
            self._cached_parts -= len(parts)


async def all_parts(metadata: Metadata, bucket_id: BucketId, upload_id: UploadId) -> tuple[PartRecord, ...]:
    """Every part of an upload, page by page (at most PART_NUMBER_MAX)."""
    parts: list[PartRecord] = []
    while len(parts) < PART_NUMBER_MAX:
        page = await metadata.list_parts(bucket_id, upload_id, parts[-1].number if parts else 0, LIST_KEYS_MAX)
        parts.extend(page)
        if len(page) < LIST_KEYS_MAX:
            break
    return tuple(parts)
