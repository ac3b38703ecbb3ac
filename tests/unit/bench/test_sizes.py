"""Sizes of objects: how they are written, and what is drawn from them."""

from __future__ import annotations

import statistics

import pytest

from anvil.base.errors import InvalidSetting
from anvil.bench.sizes import parse_size, parse_sizes, shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("0B", 0),
        ("4096", 4096),
        ("4KiB", 4096),
        ("4kib", 4096),
        ("1.5 MiB", 1572864),
        ("10MB", 10_000_000),
        ("5TiB", 5 << 40),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "4KB4", "4 K", "1.3B", "6TiB", "0x10", "1e6", "4KiB:"])
def test_no_size(text: str) -> None:
    with pytest.raises(InvalidSetting):
        parse_size(text)


def test_one_size_is_every_object_s() -> None:
    sizes = parse_sizes("4KiB")
    assert (sizes.smallest, sizes.largest) == (4096, 4096)
    assert {sizes.of(number) for number in (0.0, 0.5, 0.999999)} == {4096}


def test_a_range_is_log_uniform() -> None:
    sizes = parse_sizes("1KiB..1MiB")
    assert sizes.of(0.0) == 1024
    assert sizes.of(0.5) == pytest.approx(32 * 1024, rel=1e-3)  # the geometric middle
    assert 1024 <= min(sizes.of(n / 1000) for n in range(1000)) <= max(sizes.of(n / 1000) for n in range(1000)) <= 1 << 20
    below = statistics.fmean(sizes.of(n / 10_000) < 32 * 1024 for n in range(10_000))
    assert below == pytest.approx(0.5, abs=0.01)


def test_a_range_from_nothing() -> None:
    sizes = parse_sizes("0..100")
    assert sizes.of(0.0) == 1
    assert sizes.largest == 100


def test_weights() -> None:
    sizes = parse_sizes("4KiB:70, 1MiB:30")
    assert (sizes.smallest, sizes.largest) == (4096, 1 << 20)
    drawn = [sizes.of(n / 1000) for n in range(1000)]
    assert (drawn.count(4096), drawn.count(1 << 20)) == (700, 300)
    assert parse_sizes("1KiB..2KiB:1,1MiB:1").of(0.25) == pytest.approx(1448, abs=1)  # 1024 * sqrt(2)


@pytest.mark.parametrize(
    "text", ["", "4KiB,1MiB", "4KiB:0,1MiB:1", "4KiB:1,1MiB:", "2KiB..1KiB", "1KiB..", "4KiB:-1,1MiB:1", "4KiB:70"]
)
def test_no_distribution(text: str) -> None:
    with pytest.raises(InvalidSetting):
        parse_sizes(text)


def test_shown() -> None:
    assert [shown(n) for n in (0, 1023, 1024, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]
