"""Reading a shard back, frame by frame, to learn whether it is what was written."""

from __future__ import annotations

from anvil._ec.stripe import frame_checksum
from anvil.base.errors import BadRecord
from anvil.engine.context import Buffers
from anvil.engine.ports import Drive
from anvil.model.records import BlobId
from anvil.model.scheme import CHECKSUM_BYTES
from anvil.model.shard import ShardPlace


def frame_sound(blob_id: BlobId, index: int, stripe: int, frame: memoryview) -> bool:
    """Whether a frame carries the checksum of its unit at that place."""
    stored = int.from_bytes(frame[:CHECKSUM_BYTES], "little")
    return stored == frame_checksum(blob_id, index, stripe, frame[CHECKSUM_BYTES:])


async def shard_sound(buffers: Buffers, drive: Drive, place: ShardPlace) -> bool:
    """Whether every frame passes its checksum and the footer can be read. Raises DriveFailed, SlowDown (no buffer in time)."""
    blob, index = place.header.blob, place.header.index
    geometry = blob.geometry
    buffer = memoryview(await buffers.acquire(geometry.frame_len(0)))
    for stripe in range(geometry.stripes):
        frame = buffer[: geometry.frame_len(stripe)]
        if await drive.read(place, geometry.frame_offset(stripe), frame) != len(frame):
            return False
        if not frame_sound(blob.blob_id, index, stripe, frame):
            return False
    try:
        await drive.verify(place)
    except BadRecord:
        return False
    return True
