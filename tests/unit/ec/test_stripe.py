"""Stripe jobs against their reference, every loss up to m, and every kind of damage."""

from __future__ import annotations

import itertools
import mmap
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from anvil._ec import stripe_reference as reference
from anvil._ec.codec import Codec
from anvil._ec.codec import NotEnoughUnits as CodecNotEnoughUnits
from anvil._ec.pool import Pool
from anvil._ec.stripe import (
    BlobKey,
    DecodeJob,
    EncodeJob,
    NotEnoughUnits,
    RebuildJob,
    SealBroken,
    checksum_kernels,
    frame_checksum,
    seal_kernels,
    use_checksum_kernel,
    use_seal_kernel,
)
from anvil._ec.xxh3_reference import xxh3_64
from anvil.model.scheme import unit_len

BUCKET_KEY = bytes(range(32))
BLOB = bytes(range(100, 116))
SCHEMES = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (4, 2), (8, 3), (16, 8)]
LENGTHS = [0, 1, 15, 16, 47, 48, 49, 112, 113, 240, 241, 496, 1000, 4096, 5000]
KEY = BlobKey(BUCKET_KEY, BLOB)
PLACE = reference.Place(BUCKET_KEY, BLOB, 7, True)


def plaintext(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def encoded(codec: Codec, plain: bytes, stripe: int = 7, last: bool = True) -> list[bytes]:
    width = codec.k + codec.m
    out = bytearray(b"\xee" * (width * (8 + unit_len(codec.k, len(plain)))))
    job = EncodeJob(codec, KEY, stripe, last, plain, len(plain), out)
    job.run()
    assert job.frame_len * width == len(out)
    return [bytes(job.frame(i)) for i in range(width)]


def decoded(
    codec: Codec, frames: Sequence[bytes | None], length: int, stripe: int = 7, last: bool = True, key: BlobKey = KEY
) -> tuple[bytes, DecodeJob]:
    out = bytearray(b"\xee" * (length + 3))
    job = DecodeJob(codec, key, stripe, last, length, frames, out)
    job.run()
    assert out[length:] == b"\xee" * 3, "nothing is written behind the plaintext"
    return bytes(out[:length]), job


@pytest.mark.parametrize(("k", "m"), SCHEMES)
@pytest.mark.parametrize("length", LENGTHS)
def test_frames_equal_the_reference(k: int, m: int, length: int) -> None:
    plain = plaintext(length)
    frames = encoded(Codec(k, m), plain)
    assert frames == reference.encode(k, m, PLACE, plain)
    assert reference.decode(k, m, PLACE, length, frames) == plain
    assert decoded(Codec(k, m), frames, length)[0] == plain


@pytest.mark.parametrize("length", range(0, 700, 3))
def test_the_tag_may_lie_anywhere(length: int) -> None:
    """Whole in a unit, across two, or in one that holds nothing else."""
    plain = plaintext(length)
    frames = encoded(Codec(4, 2), plain)
    assert frames == reference.encode(4, 2, PLACE, plain)
    survivors = [None, *frames[1:3], None, *frames[4:]]
    assert decoded(Codec(4, 2), survivors, length)[0] == plain


@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 2), (2, 1), (2, 2), (4, 2), (8, 3)])
@pytest.mark.parametrize("length", [1, 500, 1009])
def test_every_loss_up_to_m(k: int, m: int, length: int) -> None:
    """Lost or damaged, in any combination of up to m shards, the plaintext comes back and the damage is named."""
    codec, plain = Codec(k, m), plaintext(length)
    frames = encoded(codec, plain)
    for lost in (lost for count in range(m + 1) for lost in itertools.combinations(range(k + m), count)):
        gone = [None if i in lost else frame for i, frame in enumerate(frames)]
        text, job = decoded(codec, gone, length)
        assert text == plain, f"{k}+{m} without {lost}"
        assert job.corrupt == ()
        bad = [frame[:-1] + bytes([frame[-1] ^ 1]) if i in lost else frame for i, frame in enumerate(frames)]
        text, job = decoded(codec, bad, length)
        assert text == plain
        examined = [i for i in range(k + m) if sum(j not in lost for j in range(i)) < k]  # until k were good
        assert job.corrupt == tuple(i for i in lost if i in examined)


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def test_more_losses_than_m(k: int, m: int) -> None:
    codec = Codec(k, m)
    frames = encoded(codec, plaintext(1000))
    gone = [None] * (m + 1) + frames[m + 1 :]
    with pytest.raises(NotEnoughUnits):
        decoded(codec, gone, 1000)
    bad = [bytes(len(frame)) if i < m + 1 else frame for i, frame in enumerate(frames)]
    job = DecodeJob(codec, KEY, 7, True, 1000, bad, bytearray(1000))
    with pytest.raises(NotEnoughUnits):
        job.run()
    assert job.corrupt == tuple(range(m + 1))
    assert NotEnoughUnits is CodecNotEnoughUnits


@pytest.mark.parametrize("k", [1, 2])
def test_every_flipped_byte_is_caught(k: int) -> None:
    codec = Codec(k, 0)
    frames = encoded(codec, plaintext(150))
    for index, frame in enumerate(frames):
        for at in range(len(frame)):
            damaged = bytearray(frame)
            damaged[at] ^= 1 << at % 8
            given = [bytes(damaged) if i == index else other for i, other in enumerate(frames)]
            job = DecodeJob(codec, KEY, 7, True, 150, given, bytearray(150))
            with pytest.raises(NotEnoughUnits):
                job.run()
            assert job.corrupt == (index,)


def test_misplaced_frames_are_caught() -> None:
    """The checksum knows blob, index and stripe."""
    codec, plain = Codec(1, 2), plaintext(300)
    frames = encoded(codec, plain)
    assert frames[0][8:] == frames[1][8:] == frames[2][8:], "copies"
    text, job = decoded(codec, [frames[1], frames[0], frames[2]], 300)
    assert (text, job.corrupt) == (plain, (0, 1))
    other_blob = BlobKey(BUCKET_KEY, bytes(16))
    for stripe, key in [(8, KEY), (7, other_blob)]:
        job = DecodeJob(codec, key, stripe, True, 300, frames, bytearray(300))
        with pytest.raises(NotEnoughUnits):
            job.run()
        assert job.corrupt == (0, 1, 2)


def test_the_last_flag_is_bound() -> None:
    """A blob cut off at a stripe boundary does not open as if it were whole, and one stripe more is noticed too."""
    codec, out = Codec(4, 2), bytearray(b"\xee" * 1000)
    for sealed_as in (True, False):
        frames = encoded(codec, plaintext(1000), last=sealed_as)
        with pytest.raises(SealBroken):
            DecodeJob(codec, KEY, 7, not sealed_as, 1000, frames, out).run()
        assert out == bytes(1000), "what was not authenticated is wiped"


def test_forged_units_with_good_checksums_do_not_open() -> None:
    """The checksum is no secret; the seal is what protects against a hostile drive."""
    codec = Codec(2, 1)
    frames = encoded(codec, plaintext(500))
    unit = bytearray(frames[0][8:])
    unit[3] ^= 1
    frames[0] = reference.frame(BLOB, 0, 7, bytes(unit))
    with pytest.raises(SealBroken):
        decoded(codec, frames, 500)
    other_key = BlobKey(bytes(32), BLOB)
    with pytest.raises(SealBroken):
        decoded(codec, encoded(codec, plaintext(500)), 500, key=other_key)


@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 1), (4, 2), (8, 3)])
def test_rebuild_every_pattern(k: int, m: int) -> None:
    codec, length = Codec(k, m), 777
    frames = encoded(codec, plaintext(length))
    unit = unit_len(k, length)
    for lost in (lost for count in range(m + 1) for lost in itertools.permutations(range(k + m), count)):
        out = bytearray(len(lost) * (8 + unit))
        given = [bytes(8 + unit) if i in lost else frame for i, frame in enumerate(frames)]
        job = RebuildJob(codec, BLOB, 7, unit, given, lost, out)
        job.run()
        assert out == b"".join(frames[i] for i in lost), f"{k}+{m}: {lost}"
        assert job.corrupt == ()


def test_rebuild_uses_only_good_frames() -> None:
    codec, unit = Codec(4, 2), unit_len(4, 777)
    frames = encoded(codec, plaintext(777))
    given = [None, frames[1][:-1] + b"?", *frames[2:]]
    out = bytearray(8 + unit)
    job = RebuildJob(codec, BLOB, 7, unit, given, [0], out)
    job.run()
    assert out == frames[0]
    assert job.corrupt == (1,)
    job = RebuildJob(codec, BLOB, 8, unit, given, [0], out)
    with pytest.raises(NotEnoughUnits):
        job.run()
    assert job.corrupt == (1, 2, 3, 4, 5)
    with pytest.raises(NotEnoughUnits, match="survives 2"):
        RebuildJob(codec, BLOB, 7, unit, frames, [0, 1, 2], bytearray(3 * (8 + unit)))


@pytest.mark.parametrize("length", [0, 1, 100, 2047, 70_000])
def test_seal_and_open(length: int) -> None:
    plain = plaintext(length)
    sealed = KEY.seal(3, False, plain)
    assert sealed == reference.seal(reference.Place(BUCKET_KEY, BLOB, 3, False), plain)
    assert KEY.open(3, False, bytearray(sealed)) == plain
    for stripe, last, data in [
        (4, False, sealed),
        (3, True, sealed),
        (3, False, sealed[:-1]),
        (3, False, b""),
        (3, False, sealed + b"x"),
    ]:
        with pytest.raises(SealBroken):
            KEY.open(stripe, last, data)
    with pytest.raises(SealBroken):
        BlobKey(BUCKET_KEY, bytes(16)).open(3, False, sealed)


def test_every_flipped_byte_of_a_sealed_piece_is_caught() -> None:
    sealed = bytearray(KEY.seal(0, True, b"forty two"))
    for at in range(len(sealed)):
        sealed[at] ^= 0x10
        with pytest.raises(SealBroken):
            KEY.open(0, True, sealed)
        sealed[at] ^= 0x10


@pytest.fixture(params=sorted(seal_kernels()))
def seal_kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    use_seal_kernel(request.param)
    yield request.param
    use_seal_kernel(seal_kernels()[-1])


def test_seal_kernels_equal_the_reference(seal_kernel: str) -> None:
    """Every length around one block, four, sixteen and several rounds of sixteen, against another AES-GCM."""
    for length in [*range(600), *range(1000, 1100), 2048, 4095, 4096, 4097, 65_536, 100_003]:
        plain = plaintext(length)
        sealed = KEY.seal(length, length % 2 == 0, plain)
        assert sealed == reference.seal(reference.Place(BUCKET_KEY, BLOB, length, length % 2 == 0), plain), (seal_kernel, length)
        assert KEY.open(length, length % 2 == 0, sealed) == plain, (seal_kernel, length)
        broken = bytearray(sealed)
        broken[length // 2] ^= 4
        with pytest.raises(SealBroken):
            KEY.open(length, length % 2 == 0, broken)


def test_seal_kernels_with_other_keys(seal_kernel: str) -> None:
    rng = random.Random(5)
    for _ in range(200):
        bucket_key, blob, plain = rng.randbytes(32), rng.randbytes(16), rng.randbytes(rng.randrange(700))
        place = reference.Place(bucket_key, blob, rng.randrange(2**32), rng.random() < 0.5)
        key = BlobKey(bucket_key, blob)
        assert key.seal(place.stripe, place.last, plain) == reference.seal(place, plain), seal_kernel


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (4, 2), (16, 8)])
def test_pieces_of_a_stripe_with_each_seal_kernel(seal_kernel: str, k: int, m: int) -> None:
    """A stripe is sealed unit by unit, and opened in place where units were rebuilt."""
    codec = Codec(k, m)
    for length in (1, 63, 64, 255, 256, 257, 1023, 5000, 20_011):
        plain = plaintext(length)
        frames = encoded(codec, plain)
        assert frames == reference.encode(k, m, PLACE, plain), (seal_kernel, length)
        survivors = [None] * m + frames[m:]
        assert decoded(codec, survivors, length)[0] == plain
        with pytest.raises(SealBroken):
            decoded(codec, survivors, length, last=False)


def test_unknown_seal_kernel() -> None:
    with pytest.raises(ValueError, match="cannot run here"):
        use_seal_kernel("abacus")


@pytest.mark.parametrize("kernel", checksum_kernels())
def test_checksum_kernels_equal_the_reference(kernel: str) -> None:
    use_checksum_kernel(kernel)
    try:
        for length in [*range(300), 511, 512, 513, 1023, 1024, 1025, 1088, 5000]:
            unit = plaintext(length)
            assert frame_checksum(BLOB, 5, 9, unit) == reference.frame_checksum(BLOB, 5, 9, unit), length
    finally:
        use_checksum_kernel(checksum_kernels()[-1])


def test_xxh3_reference_known_values() -> None:
    """Published test values of XXH3 (64 bits, no seed)."""
    assert xxh3_64(b"") == 0x2D06800538D394C2
    with pytest.raises(ValueError, match="cannot run"):
        use_checksum_kernel("abacus")


def test_buffers_of_every_kind() -> None:
    codec, plain = Codec(2, 1), plaintext(10_000)
    size = 3 * (8 + unit_len(2, 10_000))
    expected = b"".join(reference.encode(2, 1, PLACE, plain))
    mapped: Any
    with mmap.mmap(-1, 16384) as mapped:
        mapped[:10_000] = plain
        kinds: list[Any] = [plain, bytearray(plain), memoryview(plain), memoryview(bytearray(plain + b"more")), mapped]
        for source in kinds:
            out = bytearray(size)
            EncodeJob(codec, KEY, 7, True, source, 10_000, memoryview(out)).run()
            assert out == expected
        job = EncodeJob(codec, KEY, 7, True, plain, 10_000, mapped)
        job.run()
        assert mapped[:size] == expected
        del job


def test_a_job_pins_its_buffers() -> None:
    codec, source, out = Codec(1, 0), bytearray(100), bytearray(200)
    job = EncodeJob(codec, KEY, 0, True, source, 100, out)
    for pinned in (source, out):
        with pytest.raises(BufferError):
            pinned.append(0)
    frame = job.frame(0)
    del job
    source.append(0)
    with pytest.raises(BufferError):
        out.append(0)  # the frame still shows it
    del frame
    out.append(0)


def test_many_jobs_at_once_on_threads() -> None:
    """Jobs share a codec and a key, never an OpenSSL context."""
    codec, pool = Codec(4, 2), Pool(4)
    plains = [plaintext(20_000 + i) for i in range(40)]
    outs = [bytearray(6 * (8 + unit_len(4, len(plain)))) for plain in plains]
    for i, plain in enumerate(plains):
        pool.submit(EncodeJob(codec, KEY, i, False, plain, len(plain), outs[i]))
    jobs = pool.close()
    assert len(jobs) == 40
    for job in jobs:
        job.check()
    pool = Pool(4)
    backs = [bytearray(len(plain)) for plain in plains]
    for i, out in enumerate(outs):
        step = len(out) // 6
        frames = [None if j in (i % 6, (i + 1) % 6) else memoryview(out)[j * step : (j + 1) * step] for j in range(6)]
        pool.submit(DecodeJob(codec, KEY, i, False, len(plains[i]), frames, backs[i]))
    for job in pool.close():
        job.check()
    assert backs == plains


def test_bad_arguments() -> None:
    codec, plain = Codec(2, 1), bytes(1000)
    frame_len = 8 + unit_len(2, 1000)
    room = bytearray(3 * frame_len)
    frames: list[bytes | None] = [bytes(frame_len)] * 3
    with pytest.raises(ValueError, match="length says"):
        EncodeJob(codec, KEY, 0, True, plain, 1001, bytearray(9000))
    with pytest.raises(ValueError, match="need"):
        EncodeJob(codec, KEY, 0, True, plain, 1000, room[:-1])
    with pytest.raises(ValueError, match="out of range"):
        EncodeJob(codec, KEY, 0, True, plain, -1, room)
    for stripe in (-1, 2**32):
        with pytest.raises(ValueError, match="stripe number"):
            EncodeJob(codec, KEY, stripe, True, plain, 1000, room)
    with pytest.raises(BufferError):
        EncodeJob(codec, KEY, 0, True, plain, 1000, bytes(room))
    with pytest.raises(ValueError, match="overlap"):
        EncodeJob(codec, KEY, 0, True, memoryview(room)[:1000], 1000, room)
    with pytest.raises(ValueError, match="overlap"):
        DecodeJob(codec, KEY, 0, True, 1000, [memoryview(room)[:frame_len], None, None], room)
    with pytest.raises(ValueError, match="frames given"):
        DecodeJob(codec, KEY, 0, True, 1000, frames[:2], bytearray(1000))
    with pytest.raises(ValueError, match="frame 0 has"):
        DecodeJob(codec, KEY, 0, True, 800, frames, bytearray(1000))
    with pytest.raises(ValueError, match="out has"):
        DecodeJob(codec, KEY, 0, True, 1000, frames, bytearray(999))
    with pytest.raises(ValueError, match="named twice"):
        RebuildJob(Codec(2, 2), BLOB, 0, frame_len - 8, [*frames, None], [1, 1], room)
    with pytest.raises(ValueError, match="out of range"):
        RebuildJob(codec, BLOB, 0, frame_len - 8, frames, [3], room)
    with pytest.raises(ValueError, match="do not hold"):
        RebuildJob(codec, BLOB, 0, frame_len - 8, frames, [1], room[:100])
    with pytest.raises(ValueError, match="32 bytes"):
        BlobKey(bytes(31), BLOB)
    with pytest.raises(IndexError):
        EncodeJob(codec, KEY, 0, True, plain, 1000, room).frame(3)
    with pytest.raises(RuntimeError, match="not run"):
        EncodeJob(codec, KEY, 0, True, plain, 1000, room).check()
