"""Shards to store in tests: headers, frames, footers."""

from __future__ import annotations

import asyncio
import os

from anvil._ec.pieces import Source
from anvil.base.types import Buffer
from anvil.engine.ports import LargeShard
from anvil.model.records import Algorithm, Attributes, BlobRef, Checksum
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader

SESSION = bytes(range(16))


def make_header(
    size: int = 4096, *, scheme: Scheme | None = None, index: int = 0, key: str = "folder/object", blob_id: bytes | None = None
) -> ShardHeader:
    """The header of a shard of a new blob of `size` plaintext bytes."""
    blob = BlobRef(blob_id or os.urandom(16), size, scheme or Scheme(1, 1))
    return ShardHeader(blob, index, bucket_id=77, key=key, version_id=b"v" * 16, session=SESSION)


def make_frames(header: ShardHeader) -> bytes:
    """Bytes as long as the shard's frames. Their content means nothing to a drive."""
    return os.urandom(header.blob.geometry.shard_bytes)


def make_footer(etag: str = "0123456789abcdef0123456789abcdef") -> ShardFooter:
    return ShardFooter(
        etag=etag,
        modified_us=1_700_000_000_000_000,
        attributes=Attributes(content_type="text/plain", user={"colour": "blue"}),
        checksum=Checksum(Algorithm.CRC32C, b"\x01\x02\x03\x04"),
    )


def begun(shard: LargeShard, frames: Buffer | Source) -> asyncio.Future[None] | None:
    """`LargeShard.begin`, with what it tells as a future; None where it takes a task. A second answer raises where it is given."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def told(error: BaseException | None) -> None:
        assert returned, "told before `begin` had returned"
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    returned = False
    taken = shard.begin(frames, told)
    returned = True
    return answer if taken else None


async def begun_and_over(shard: LargeShard, frames: Buffer | Source) -> None:
    """Where a drive can: begin it, and wait."""
    answer = begun(shard, frames)
    assert answer is not None
    await answer
