"""Rates and samples against plain lists of what was counted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.utils.rates import Rate, Sample


def test_a_steady_stream_has_its_rate() -> None:
    rate = Rate(10.0)
    for tick in range(300):
        rate.add(7, tick / 10)
    assert rate.per_second(30.0) == pytest.approx(70, rel=0.05)
    assert rate.total == 2100


def test_a_short_time_counts_as_what_it_is() -> None:
    rate = Rate(10.0)
    rate.add(100, 5.0)
    assert rate.per_second(7.0) == 50.0


def test_silence_lasting_the_window_is_zero() -> None:
    rate = Rate(10.0)
    rate.add(100, 0.0)
    assert rate.per_second(10.5) == 0.0
    assert rate.per_second(1e9) == 0.0
    assert rate.total == 100


def test_nothing_counted_is_zero() -> None:
    assert Rate().per_second(5.0) == 0.0


def test_a_clock_that_goes_back_loses_nothing() -> None:
    rate = Rate(10.0)
    rate.add(1, 100.0)
    rate.add(1, 50.0)
    assert rate.total == 2
    assert rate.per_second(101.0) == 2.0


@pytest.mark.parametrize(("window", "slots"), [(0, 10), (10, 0), (-1, 1)])
def test_senseless_windows(window: float, slots: int) -> None:
    with pytest.raises(ValueError, match="a rate needs a window and slots"):
        Rate(window, slots)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 5)), min_size=1, max_size=60),
    st.floats(0, 20),
)
def test_a_rate_lies_between_the_exact_ones_of_its_slots_edges(
    steps: list[tuple[int, float]], wait: float
) -> None:
    window, slots = 10.0, 20
    rate = Rate(window, slots)
    now, seen = 0.0, list[tuple[float, int]]()
    for count, pause in steps:
        now += pause
        rate.add(count, now)
        seen.append((now, count))
    now += wait
    span = min(window, max(now - seen[0][0], window / slots))
    width = window / slots
    least = sum(count for at, count in seen if at > now - window + width)
    most = sum(count for at, count in seen if at >= now - window - width)
    assert least / span <= rate.per_second(now) + 1e-9
    assert rate.per_second(now) <= most / span + 1e-9


def test_quantiles_are_values_that_were_seen() -> None:
    sample = Sample()
    for value in range(1, 101):
        sample.add(value)
    assert sample.quantiles((0, 0.5, 0.99, 1)) == [1, 50, 99, 100]
    assert (sample.count, sample.total, sample.maximum) == (100, 5050, 100)


def test_a_sample_is_bounded_and_keeps_the_last() -> None:
    sample = Sample(10)
    for value in range(1000):
        sample.add(value)
    assert sample.quantiles((0.0, 1.0)) == [990, 999]
    assert sample.count == 1000


def test_an_empty_sample_and_values_that_are_none() -> None:
    sample = Sample()
    sample.add(math.nan)
    sample.add(math.inf)
    assert sample.quantiles((0.5,)) == [0.0]
    assert sample.count == 0
