"""Packs and lists, byte by byte as docs/FORMATS.md says; and what of them is not believed."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from pathlib import Path

import msgspec
import pytest

from anvil._ec.xxh3_reference import xxh3_64
from anvil.backup import format as fmt
from anvil.backup.format import PackedBlob
from anvil.backup.packs import Entry, Pack, PackWriter, walk
from anvil.backup.repository import Repository, pair
from anvil.base.errors import BadRecord
from anvil.model.records import Attributes, BlobRef
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter

REPOSITORY, PACK = bytes(range(16)), bytes(range(16, 32))
FOOTER = ShardFooter("d41d8cd9", 5, Attributes(content_type="text/plain", user={"a": "b"}))


def blake(*pieces: bytes) -> bytes:
    return hashlib.blake2b(b"".join(pieces), digest_size=8).digest()


def packed_of(size: int = 100, blob_id: bytes | None = None) -> PackedBlob:
    return PackedBlob(blob_id or os.urandom(16), size, Scheme(2, 1).pack(), 64, 1, 7, "ключ/k", b"v" * 16, 0, b"s" * 16, FOOTER)


def stripes_of(packed: PackedBlob) -> list[bytes]:
    lengths = [min(64, packed.size - at) + 16 for at in range(0, packed.size, 64)]
    return [random.Random(packed.blob_id).randbytes(length) for length in lengths]


def write(folder: Path, blobs: list[PackedBlob], pack_bytes: int = 1 << 20) -> list[Pack]:
    writer = PackWriter(folder, REPOSITORY, pack_bytes)
    for packed in blobs:
        writer.begin(packed)
        for sealed in stripes_of(packed):
            writer.stripe(sealed)
        writer.end()
    writer.close()
    return [Pack(folder / name, REPOSITORY) for name in writer.packs]


def test_a_pack_s_ends() -> None:
    head = b"\x93AnvPak\n" + struct.pack("<HHI", 1, 0, 0) + REPOSITORY + PACK
    assert fmt.pack_head(REPOSITORY, PACK) == head + blake(head)
    index = struct.pack("<16sQQ", b"b" * 16, 56, 1000)
    assert fmt.index_entry(b"b" * 16, 56, 1000) == index
    end = b"\x93AnvEnd\n" + struct.pack("<QQ", 1056, 1)
    assert fmt.pack_end(PACK, index, 1056, 1) == end + blake(PACK, index, end)
    assert fmt.unpack_end(fmt.pack_end(PACK, index, 1056, 1), 1056 + 32 + 32) == (1056, 1)
    with pytest.raises(BadRecord, match="not where"):
        fmt.unpack_end(fmt.pack_end(PACK, index, 1056, 1), 1056 + 32 + 33)
    newer = b"\x93AnvPak\n" + struct.pack("<HHI", 2, 0, 0) + REPOSITORY + PACK
    with pytest.raises(BadRecord, match="newer"):
        fmt.assert_pack_head(newer + blake(newer), REPOSITORY, PACK)


def test_an_entry() -> None:
    packed = packed_of(130)
    head = fmt.entry_head(packed)
    front = struct.unpack("<8sIIQ", head[:24])
    assert front == (b"\x93AnvBlb\n", len(head) - 24 - 8, 0, 130 + 3 * 24)
    assert head[-8:] == blake(head[:-8])
    said = msgspec.msgpack.decode(head[24:-8])
    assert (said["blob_id"], said["size"], said["scheme"], said["key"]) == (packed.blob_id, 130, 1 << 16 | 2 << 8 | 1, "ключ/k")
    assert said["footer"]["attributes"] == {"content_type": "text/plain", "user": {"a": "b"}}
    assert [packed.stripe_span(number) for number in range(3)] == [(0, 88), (88, 88), (176, 26)]
    seed = xxh3_64(packed.blob_id + struct.pack("<II", 0xFFFF, 2), 0)
    assert fmt.stripe_checksum(packed.blob_id, 2, b"sealed") == struct.pack("<Q", xxh3_64(b"sealed", seed))


def test_a_list() -> None:
    blob = BlobRef(b"i" * 16, 1 << 40, Scheme(4, 2), 1 << 20)
    assert fmt.listed(blob) == b"i" * 16 + struct.pack("<QiIB", 1 << 40, 1 << 16 | 4 << 8 | 2, 1 << 20, 1)
    assert fmt.unlisted(fmt.listed(blob) * 2) == [blob, blob]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    blobs = [packed_of(size) for size in (1, 63, 64, 65, 1000)]
    [pack] = write(tmp_path, blobs)
    index = list(pack.index())
    assert [blob_id for blob_id, _, _ in index] == sorted(packed.blob_id for packed in blobs)
    by_id = {packed.blob_id: packed for packed in blobs}
    for blob_id, offset, length in index:
        with Entry(pack.path, offset, blob_id) as entry:
            assert entry.packed == by_id[blob_id] and entry.length == length
            assert [bytes(entry.stripe(number)) for number in range(entry.packed.stripes)] == stripes_of(entry.packed)
    with pytest.raises(BadRecord, match="another blob"):
        Entry(pack.path, index[0][1], index[1][0])


def test_every_bit_counts(tmp_path: Path) -> None:
    [pack] = write(tmp_path, [packed_of(100, b"1" * 16), packed_of(30, b"2" * 16)])
    whole = pack.path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        pack.path.write_bytes(damaged)
        with pytest.raises(BadRecord):
            read_all(pack.path)
    for length in range(len(whole)):
        pack.path.write_bytes(whole[:length])
        with pytest.raises(BadRecord):
            read_all(pack.path)
    pack.path.write_bytes(whole)
    read_all(pack.path)


def read_all(path: Path) -> None:
    pack = Pack(path, REPOSITORY)
    for blob_id, offset, length in pack.index():
        with Entry(path, offset, blob_id) as entry:
            if entry.length != length:
                raise BadRecord
            for number in range(entry.packed.stripes):
                entry.stripe(number)


def test_packs_are_closed_when_they_are_long_and_not_there_before(tmp_path: Path) -> None:
    packs = write(tmp_path, [packed_of(1000) for _ in range(7)], pack_bytes=4000)
    assert [pack.entries for pack in packs] == [3, 3, 1]
    writer = PackWriter(tmp_path, REPOSITORY)
    packed = packed_of(100)
    writer.begin(packed)
    writer.stripe(stripes_of(packed)[0])
    assert len(list(tmp_path.glob("*.pack"))) == 3 and len(list(tmp_path.glob("*.part"))) == 1
    with pytest.raises(RuntimeError, match="1 of 2"):
        writer.end()
    with pytest.raises(ValueError, match="stripe 1"):
        writer.stripe(b"too short")
    writer.abandon()
    other = packed_of(50)
    writer.begin(other)
    writer.stripe(stripes_of(other)[0])
    writer.end()
    writer.close()
    assert [blob_id for blob_id, _, _ in Pack(tmp_path / writer.packs[0], REPOSITORY).index()] == [other.blob_id]
    writer = PackWriter(tmp_path, REPOSITORY)
    writer.begin(packed)
    writer.abandon()
    writer.close()
    assert len(list(tmp_path.glob("*.pack"))) == 4 and not list(tmp_path.glob("*.part")), "a pack without blobs is none"


def test_many_packs_are_walked_in_order(tmp_path: Path) -> None:
    groups = [[packed_of(10) for _ in range(300)] for _ in range(3)]
    packs = [write(tmp_path, group)[0] for group in groups]
    packs += write(tmp_path, groups[0][:5])  # copied twice
    everything = sorted(packed.blob_id for group in groups for packed in group)
    walked = list(walk(packs))
    assert [blob_id for blob_id, _ in walked] == everything
    assert sum(len(places) for _, places in walked) == 905
    wanted = sorted(random.sample(everything, 100) + [os.urandom(16) for _ in range(50)])
    refs = [BlobRef(blob_id, 10, Scheme(1, 0)) for blob_id in wanted]
    paired = list(pair(refs, walk(packs)))
    assert [blob.blob_id for blob, _ in paired] == wanted
    assert {blob.blob_id for blob, places in paired if places} == set(wanted) & set(everything)


def test_another_repository_s_pack_is_not_taken(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        with Repository.making(tmp_path / name, "k", 1) as repository:
            made.append(repository)
    one, other = made
    writer = PackWriter(one.packs_folder, one.id)
    packed = packed_of(10)
    writer.begin(packed)
    writer.stripe(stripes_of(packed)[0])
    writer.end()
    writer.close()
    (one.packs_folder / writer.packs[0]).rename(other.packs_folder / writer.packs[0])
    found = other.packs()
    assert not found.good and "another" in found.damaged[writer.packs[0]]
