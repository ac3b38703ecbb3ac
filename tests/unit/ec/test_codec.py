"""The native codec against its reference: every erasure pattern up to m, every length around the kernels' block sizes."""

from __future__ import annotations

import itertools
import random

import pytest

from anvil._ec import codec_reference as reference
from anvil._ec.codec import Codec, NotEnoughUnits, isal_version, kernels

SCHEMES = [(1, 0), (1, 1), (1, 2), (1, 8), (2, 0), (2, 1), (2, 2), (3, 2), (4, 2), (8, 3), (16, 8)]
PATTERNS_MAX = 400  # of one scheme; above that a fixed sample of the patterns


def patterns(k: int, m: int) -> list[tuple[int, ...]]:
    """Every set of up to m lost units; for wide codes a sample that is the same in every run."""
    everything = [lost for count in range(m + 1) for lost in itertools.combinations(range(k + m), count)] if k + m < 20 else []
    if everything and len(everything) <= PATTERNS_MAX:
        return everything
    rng = random.Random(k * 100 + m)
    sample = {tuple(sorted(rng.sample(range(k + m), rng.randint(1, m)))) for _ in range(PATTERNS_MAX)}
    return sorted(sample | {tuple(range(m)), tuple(range(k, k + m))})


def encoded(k: int, m: int, unit: int, seed: int = 1) -> list[bytes]:
    data = random.Random(seed).randbytes(k * unit)
    block = bytearray(data + b"\xee" * (m * unit))
    Codec(k, m).encode(block, unit)
    assert block[: k * unit] == data, "data units are left alone"
    return [bytes(block[i * unit : (i + 1) * unit]) for i in range(k + m)]


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def test_matrix_equals_the_reference(k: int, m: int) -> None:
    assert Codec(k, m).matrix == bytes(value for row in reference.coding_matrix(k, m) for value in row)


@pytest.mark.parametrize(("k", "m"), SCHEMES)
@pytest.mark.parametrize("unit", [0, 1, 7, 31, 32, 33, 63, 64, 65, 129, 1000, 4096])
def test_encode_equals_the_reference(k: int, m: int, unit: int) -> None:
    units = encoded(k, m, unit)
    assert units[k:] == reference.encode(k, m, units[:k])


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def test_every_erasure_pattern(k: int, m: int) -> None:
    """Native and reference both give back what was lost, from the survivors alone."""
    codec, unit = Codec(k, m), 67
    units = encoded(k, m, unit)
    for lost in patterns(k, m):
        survivors = [None if i in lost else data for i, data in enumerate(units)]
        out = [bytearray(unit) for _ in lost]
        codec.decode(survivors, lost, out)
        expected = [units[i] for i in lost]
        assert [bytes(data) for data in out] == expected, f"{k}+{m} without {lost}"
        assert reference.decode(k, m, survivors, lost) == expected


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def test_one_more_loss_than_m_raises(k: int, m: int) -> None:
    codec = Codec(k, m)
    units = encoded(k, m, 64)
    rng = random.Random(k + m)
    for lost in [tuple(range(m + 1)), tuple(sorted(rng.sample(range(k + m), m + 1)))]:
        survivors = [None if i in lost else data for i, data in enumerate(units)]
        with pytest.raises(NotEnoughUnits):
            codec.decode(survivors, lost[:1], [bytearray(64)])
        with pytest.raises(ValueError, match="fewer than"):
            reference.decode(k, m, survivors, lost[:1])


@pytest.mark.parametrize(("k", "m"), [(2, 1), (4, 2), (8, 3), (16, 8)])
def test_tiny_lengths(k: int, m: int) -> None:
    """ISA-L has other code below its vector width; nothing may be written past the end of a unit."""
    codec = Codec(k, m)
    for unit in range(1, 201):
        units = encoded(k, m, unit, seed=unit)
        assert units[k:] == reference.encode(k, m, units[:k]), unit
        lost = tuple(range(m))
        survivors = [None if i in lost else data for i, data in enumerate(units)]
        block = bytearray(b"\xaa" * ((unit + 64) * m))
        places = [memoryview(block)[i * (unit + 64) : i * (unit + 64) + unit] for i in range(m)]
        codec.decode(survivors, lost, places)
        assert [bytes(place) for place in places] == units[:m], unit
        guards = [block[i * (unit + 64) + unit : (i + 1) * (unit + 64)] for i in range(m)]
        assert all(guard == b"\xaa" * 64 for guard in guards), unit


def test_large_units_release_the_gil_and_agree() -> None:
    units = encoded(4, 2, 100_001)
    assert units[4:] == reference.encode(4, 2, units[:4])
    out = [bytearray(100_001), bytearray(100_001)]
    Codec(4, 2).decode([None, units[1], units[2], None, units[4], units[5]], (3, 0), out)
    assert out == [units[3], units[0]], "outputs come in the order of `missing`"


def test_a_missing_unit_is_not_read() -> None:
    """What is to be rebuilt may be present and damaged: it is no source."""
    units = encoded(2, 1, 64)
    out = bytearray(64)
    Codec(2, 1).decode([bytes(64), units[1], units[2]], [0], [out])
    assert out == units[0]


def test_decode_tables_are_cached_and_bounded() -> None:
    codec = Codec(16, 8)
    units = encoded(16, 8, 64)
    some = patterns(16, 8)[:200]
    for lost in some:
        codec.decode([None if i in lost else u for i, u in enumerate(units)], lost, [bytearray(64) for _ in lost])
    assert codec.cache == (0, len(some))
    lost = some[-1]
    out = [bytearray(64) for _ in lost]
    codec.decode([None if i in lost else u for i, u in enumerate(units)], lost, out)
    assert codec.cache == (1, len(some))
    assert [bytes(data) for data in out] == [units[i] for i in lost]


@pytest.mark.parametrize(("k", "m", "matrix"), [(0, 1, 1), (17, 1, 1), (1, 9, 1), (1, -1, 1), (4, 2, 2), (4, 2, 0)])
def test_codes_that_do_not_exist(k: int, m: int, matrix: int) -> None:
    with pytest.raises(ValueError, match=r"needs k|matrix"):
        Codec(k, m, matrix)


def test_bad_arguments() -> None:
    codec = Codec(2, 1)
    unit = bytes(64)
    with pytest.raises(ValueError, match="do not hold"):
        codec.encode(bytearray(191), 64)
    with pytest.raises(ValueError, match="out of range"):
        codec.encode(bytearray(192), -1)
    with pytest.raises(BufferError):
        codec.encode(bytes(192), 64)  # read-only
    with pytest.raises(BufferError):
        codec.encode(memoryview(bytearray(400))[::2], 64)  # not contiguous
    with pytest.raises(ValueError, match="units given"):
        codec.decode([unit, unit], [], [])
    with pytest.raises(ValueError, match="differ"):
        codec.decode([unit, bytes(63), None], [2], [bytearray(64)])
    with pytest.raises(ValueError, match="differs"):
        codec.decode([unit, unit, None], [2], [bytearray(63)])
    with pytest.raises(ValueError, match="named twice"):
        codec.decode([unit, unit, unit], [2, 2], [bytearray(64), bytearray(64)])
    for index in (3, -1):
        with pytest.raises(ValueError, match="out of range"):
            codec.decode([unit, unit, None], [index], [bytearray(64)])
    with pytest.raises(BufferError):
        codec.decode([unit, unit, None], [2], [bytes(64)])
    with pytest.raises(NotEnoughUnits):
        codec.decode([None, None, None], [2], [bytearray(64)])


def test_buffers_are_released() -> None:
    codec, block = Codec(2, 1), bytearray(192)
    codec.encode(block, 64)
    with pytest.raises(ValueError, match="do not hold"):
        codec.encode(block, 65)
    block.append(0)  # would raise BufferError while pinned


def test_field_axioms_of_the_reference() -> None:
    assert reference.multiply(2, 0x80) == 0x1D, "x * x^7 = x^8 = the polynomial's tail"
    assert all(reference.multiply(a, reference.INVERSE[a]) == 1 for a in range(1, 256))
    with pytest.raises(ValueError, match="singular"):
        reference.invert([[1, 1], [1, 1]])


def test_what_doctor_shows() -> None:
    assert tuple(int(part) for part in isal_version().split(".")) >= (2, 30, 0)
    assert set(kernels()) == {"isal", "processor", "reed_solomon"}
