"""Writes the golden files of the shard formats. Run only when a new format version is added: files of old versions never change.

PYTHONPATH=. python tests/golden/make_shards.py
"""

from __future__ import annotations

from pathlib import Path

from anvil.model.records import Algorithm, Attributes, BlobRef, Checksum, ChecksumType, KeyMode
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.shards.format import SegmentHeader, encode_footer, encode_header, encode_segment

FOLDER = Path(__file__).parent

BLOB = BlobRef(bytes(range(16)), 100_000, Scheme(4, 2), 65_536, KeyMode.BUCKET)
HEADER = ShardHeader(
    blob=BLOB,
    index=5,
    bucket_id=0x0123456789ABCDEF,
    key="a/b c/ключ",
    version_id=bytes(range(16, 32)),
    session=bytes(range(32, 48)),
    part_number=10_000,
)
FOOTER = ShardFooter(
    etag="9e107d9d372bb6826bd81d3542a419d6",
    modified_us=1_234_567_890_123_456,
    attributes=Attributes(
        content_type="text/plain",
        cache_control="no-cache",
        content_disposition="inline",
        content_encoding="gzip",
        content_language="de",
        expires="Thu, 01 Dec 1994 16:00:00 GMT",
        website_redirect="/elsewhere",
        user={"colour": "blue"},
    ),
    checksum=Checksum(Algorithm.CRC64NVME, bytes(range(8)), ChecksumType.COMPOSITE, 3),
)
WRITTEN_US = 1_234_567_890_000_000
SEGMENT = SegmentHeader(7, 4 << 20, bytes(range(48, 64)), bytes(range(32, 48)), 1_234_567_000_000_000)


def record(segment: int, offset: int) -> bytes:
    """A whole record with a payload of the right length (a byte pattern, not frames)."""
    foot = encode_footer(BLOB.blob_id, HEADER.index, FOOTER)
    head = encode_header(HEADER, footer_bytes=len(foot) if segment else 0, segment=segment, offset=offset, written_us=WRITTEN_US)
    payload = bytes(i * 7 % 256 for i in range(BLOB.geometry.shard_bytes))
    return head + payload + foot


FILES = {
    "shard-v1-segment-record.bin": lambda: record(7, 8192),
    "shard-v1-file.bin": lambda: record(0, 0),
    "shard-v1-segment-header.bin": lambda: encode_segment(SEGMENT),
}

if __name__ == "__main__":
    for name, content in FILES.items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(content())
