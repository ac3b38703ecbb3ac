"""The histogram against HdrHistogram's own implementation for Python, and against sorted values."""

from __future__ import annotations

import random

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil.base.errors import InvalidSetting
from anvil.base.limits import BENCH_LATENCY_NS_MAX
from anvil.bench.exchange import Tally
from anvil.bench.histogram import Histogram, decode, highest_of, index_of, lowest_of

HOUR = BENCH_LATENCY_NS_MAX


def percents(values: list[int]) -> list[float]:
    """Those that are exactly a rank: the implementations differ in what they make of others (theirs the nearest, here the next rank)."""
    return [100 * rank / len(values) for rank in range(1, len(values) + 1)]


def of(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add({index_of(value): 1})
    return made


def theirs(values: list[int]) -> HdrHistogram:
    made = HdrHistogram(1000, HOUR, 3)
    for value in values:
        assert made.record_value(value)
    return made


@given(st.integers(0, HOUR))
def test_a_value_lies_in_its_bucket(value: int) -> None:
    index = index_of(value)
    assert lowest_of(index) <= value <= highest_of(index)
    assert highest_of(index) - lowest_of(index) < max(1000, value / 1000)  # three digits, from a microsecond on


def test_the_native_one_at_the_ends() -> None:
    for value in (HOUR - 1, HOUR, HOUR + 1, HOUR * 2):
        tally = Tally()
        tally.begin_ns, tally.end_ns = HOUR * 3, HOUR * 4
        tally.note("get", tally.begin_ns, tally.begin_ns + value, 0, False)
        found = tally.late["get"] if value >= HOUR else tally.seconds["get"][-1].latency
        assert found == {index_of(value): 1}


def test_buckets_follow_one_another() -> None:
    for index in range(30_000):
        assert index_of(lowest_of(index)) == index_of(min(HOUR, highest_of(index))) == min(index, index_of(HOUR))


@given(st.integers(-5, 3 * 10**9))
def test_the_native_one_counts_in_the_same_bucket(value: int) -> None:
    tally = Tally()
    tally.begin_ns = 0
    tally.note("get", 5, 5 + value, 0, False)
    assert tally.seconds["get"][-1].latency == {index_of(value): 1}


def test_what_is_out_of_range() -> None:
    assert index_of(-5) == 0
    assert index_of(HOUR * 9) == index_of(HOUR)


@settings(deadline=None)
@given(st.lists(st.integers(1, HOUR), min_size=1, max_size=60))
def test_percentiles_are_theirs(values: list[int]) -> None:
    ours, other = of(values), theirs(values)
    assert [ours.percentile(one) for one in percents(values)] == [other.get_value_at_percentile(one) for one in percents(values)]


def test_percentiles_are_those_of_the_values() -> None:
    rng = random.Random(5)
    values = sorted(int(10 ** rng.uniform(6, 10)) for _ in range(10_000))
    made = of(values)
    for percent in (10, 50, 90, 99, 99.9):
        exact = values[-(-int(percent * len(values)) // 100) - 1]
        assert made.percentile(percent) == pytest.approx(exact, rel=1e-3)
    assert made.total == len(values)
    assert made.mean == pytest.approx(sum(values) / len(values), rel=1e-3)


@given(st.dictionaries(st.integers(0, 24_000), st.integers(1, 1 << 40), max_size=50))
def test_what_is_encoded_is_decoded(counts: dict[int, int]) -> None:
    made = Histogram([counts])
    assert decode(made.encode()).counts == counts


@settings(deadline=None)
@given(st.lists(st.integers(1, HOUR), min_size=1, max_size=60))
def test_both_read_what_the_other_writes(values: list[int]) -> None:
    read = HdrHistogram.decode(of(values).encode())
    assert read.get_total_count() == len(values)
    assert [read.get_value_at_percentile(one) for one in percents(values)] == [
        of(values).percentile(one) for one in percents(values)
    ]
    assert decode(theirs(values).encode().decode()).counts == of(values).counts


def test_an_empty_one() -> None:
    made = Histogram()
    assert (made.total, made.percentile(50), made.mean, made.largest, made.smallest) == (0, 0, 0.0, 0, 0)
    assert decode(made.encode()).counts == {}


@pytest.mark.parametrize("text", ["", "x", "AAAA", "HISTFAAAAAA=", Histogram([{5: 1}]).encode()[:-8]])
def test_what_is_no_histogram(text: str) -> None:
    with pytest.raises(InvalidSetting):
        decode(text)


def test_the_sum_of_processes() -> None:
    assert Histogram([{1: 2, 5: 1}, {5: 3}]).counts == {1: 2, 5: 4}
