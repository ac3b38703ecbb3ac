"""Record bytes: golden files, every damaged byte noticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.base.errors import BadRecord
from anvil.base.limits import KEY_BYTES_MAX, RECORD_HEADER_BYTES_MAX
from anvil.model.records import BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardHeader
from anvil.shards import format as fmt
from tests.contract.shard_samples import make_footer, make_header
from tests.golden import make_shards as golden


@pytest.mark.parametrize("name", golden.FILES)
def test_golden_files_are_written_byte_for_byte(name: str) -> None:
    assert golden.FILES[name]() == (golden.FOLDER / name).read_bytes()


@pytest.mark.parametrize(("name", "segment", "offset"), [("segment-record", 7, 8192), ("file", 0, 0)])
def test_golden_records_are_understood(name: str, segment: int, offset: int) -> None:
    data = (golden.FOLDER / f"shard-v1-{name}.bin").read_bytes()
    record = fmt.decode_header(data[:RECORD_HEADER_BYTES_MAX])
    assert record.header == golden.HEADER
    assert (record.segment, record.offset, record.written_us) == (segment, offset, golden.WRITTEN_US)
    foot = data[record.footer_offset :]
    assert record.footer_bytes == (len(foot) if segment else 0)
    assert fmt.decode_footer(golden.BLOB.blob_id, 5, foot) == golden.FOOTER


def test_golden_record_has_its_fields_where_the_document_says() -> None:
    data = (golden.FOLDER / "shard-v1-segment-record.bin").read_bytes()
    assert data[0:8] == b"\x93AnvRec\n"
    assert struct.unpack_from("<HHI", data, 8) == (1, 0, 192)
    assert data[16:32] == bytes(range(16))
    assert struct.unpack_from("<HHi", data, 32) == (5, 10_000, 1 << 16 | 4 << 8 | 2)
    assert struct.unpack_from("<I", data, 40) == (65_536,)
    assert struct.unpack_from("<QQQ", data, 48) == (100_000, golden.BLOB.geometry.shard_bytes, 0x0123456789ABCDEF)
    assert data[72:88] == bytes(range(16, 32))
    assert data[88:104] == bytes(range(32, 48))
    assert struct.unpack_from("<QQQBBH", data, 104) == (7, 8192, golden.WRITTEN_US, 1, 0, len("a/b c/ключ".encode()))
    assert data[136:150] == "a/b c/ключ".encode()
    assert data[192 + golden.BLOB.geometry.shard_bytes :][:4] == b"AnvF"


def test_golden_segment_header_is_understood() -> None:
    data = (golden.FOLDER / "shard-v1-segment-header.bin").read_bytes()
    assert len(data) == 4096
    assert fmt.decode_segment(data) == golden.SEGMENT


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=256),
    size=st.integers(1, 1 << 44),
    k=st.integers(1, 16),
    m=st.integers(0, 8),
    part=st.integers(0, 10_000),
    data=st.data(),
)
def test_headers_survive_the_round_trip(key: str, size: int, k: int, m: int, part: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, k + m - 1))
    header = ShardHeader(BlobRef(b"b" * 16, size, Scheme(k, m)), index, 1, key, b"v" * 16, b"s" * 16, part)
    coded = fmt.encode_header(header, footer_bytes=99, segment=3, offset=4096, written_us=12)
    assert len(coded) == fmt.header_length(key)
    assert len(coded) % 64 == 0
    assert fmt.decode_header(coded + b"payload").header == header


def test_the_longest_key_fits() -> None:
    coded = fmt.encode_header(make_header(key="k" * KEY_BYTES_MAX), footer_bytes=99, segment=1, offset=0, written_us=0)
    assert len(coded) == RECORD_HEADER_BYTES_MAX
    with pytest.raises(ValueError):
        fmt.encode_header(make_header(key="k" * (KEY_BYTES_MAX + 1)), footer_bytes=99, segment=1, offset=0, written_us=0)


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    coded = fmt.encode_header(make_header(), footer_bytes=99, segment=1, offset=4096, written_us=1)
    for i in range(len(coded)):
        for bit in (0x01, 0x80):
            damaged = bytearray(coded)
            damaged[i] ^= bit
            with pytest.raises(BadRecord):
                fmt.decode_header(damaged)


def test_every_cut_of_a_header_is_noticed() -> None:
    coded = fmt.encode_header(make_header(), footer_bytes=99, segment=1, offset=4096, written_us=1)
    for length in range(len(coded)):
        with pytest.raises(BadRecord):
            fmt.decode_header(coded[:length])


def test_a_header_names_its_shard_and_place_and_no_other() -> None:
    header = make_header(index=1)
    coded = fmt.encode_header(header, footer_bytes=99, segment=7, offset=4096, written_us=1)
    blob_id, length = header.blob.blob_id, len(coded)
    assert fmt.names_shard(memoryview(coded + b"payload"), length, blob_id, 1, 7, 4096)
    for other in [(bytes(16), 1, 7, 4096), (blob_id, 0, 7, 4096), (blob_id, 1, 8, 4096), (blob_id, 1, 7, 4160)]:
        assert not fmt.names_shard(memoryview(coded), length, *other)
    for wrong in (0, length - 64, length - 1, length + 64):
        assert not fmt.names_shard(memoryview(coded + bytes(64)), wrong, blob_id, 1, 7, 4096)
    for i in range(length):
        damaged = bytearray(coded)
        damaged[i] ^= 0x10
        assert not fmt.names_shard(memoryview(damaged), length, blob_id, 1, 7, 4096)
        assert not fmt.names_shard(memoryview(coded[:i]), length, blob_id, 1, 7, 4096)


def test_every_flipped_bit_and_cut_of_a_footer_is_noticed() -> None:
    coded = fmt.encode_footer(b"b" * 16, 1, make_footer())
    for i in range(len(coded)):
        damaged = bytearray(coded)
        damaged[i] ^= 0x10
        with pytest.raises(BadRecord):
            fmt.decode_footer(b"b" * 16, 1, damaged)
        with pytest.raises(BadRecord):
            fmt.decode_footer(b"b" * 16, 1, coded[:i])
    with pytest.raises(BadRecord):
        fmt.decode_footer(b"b" * 16, 1, coded + b"\0")


def test_a_footer_belongs_to_its_shard() -> None:
    coded = fmt.encode_footer(b"b" * 16, 1, make_footer())
    for blob_id, index in ((b"c" * 16, 1), (b"b" * 16, 2)):
        with pytest.raises(BadRecord):
            fmt.decode_footer(blob_id, index, coded)


def test_every_flipped_byte_of_a_segment_header_is_noticed() -> None:
    coded = fmt.encode_segment(golden.SEGMENT)
    for i in range(80):
        damaged = bytearray(coded)
        damaged[i] ^= 0xFF
        with pytest.raises(BadRecord):
            fmt.decode_segment(damaged)


def test_a_header_that_contradicts_itself_is_refused() -> None:
    """A checksum is no excuse: what is encoded with impossible values is not a shard."""
    header = make_header(scheme=Scheme(2, 1), index=3)  # indexes are 0 to 2
    with pytest.raises(BadRecord):
        fmt.decode_header(fmt.encode_header(header, footer_bytes=99, segment=1, offset=0, written_us=0))
