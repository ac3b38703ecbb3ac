"""What is set and counted of one local drive, and what every shard header given to it must be. Not here: what it does (drive.py)."""

from __future__ import annotations

import msgspec

from anvil.base.limits import DRIVE_FLOOR_BYTES, DRIVE_PROBE_S, DRIVE_STALLED_S, SEGMENT_BYTES, SEGMENT_FIRST_BYTES
from anvil.model.shard import ShardHeader
from anvil.shards.files import Step


class DriveStats(msgspec.Struct):
    """Counters since this process opened the drive."""

    puts: int = 0
    large: int = 0
    removed: int = 0
    write_errors: int = 0
    read_errors: int = 0
    damaged: int = 0  # records whose header or footer was found damaged
    vanished: int = 0  # times the folder went away


class DriveSettings(msgspec.Struct, frozen=True):
    """What tests and small disks set differently."""

    floor_bytes: int = DRIVE_FLOOR_BYTES
    segment_bytes: int = SEGMENT_BYTES
    segment_first_bytes: int = SEGMENT_FIRST_BYTES
    probe_s: float = DRIVE_PROBE_S
    stalled_s: float = DRIVE_STALLED_S
    step: Step = lambda name: None  # told before each step of publishing a large shard


def check_header(header: ShardHeader) -> None:
    if len(header.blob.blob_id) != 16 or not 0 <= header.index < header.blob.scheme.width:
        raise ValueError("shard header names no possible shard")
    if len(header.version_id) != 16 or len(header.session) != 16:
        raise ValueError("version and session ids are 16 bytes")
