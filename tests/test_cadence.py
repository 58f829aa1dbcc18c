"""When a commit is due: soon where nobody gains by waiting, at the interval where there is work."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.cadence import Cadence

seconds = st.floats(0, 100, allow_nan=False)


def make(interval: float = 0.1, interval_min: float = 0.01) -> Cadence:
    return Cadence(interval, interval_min)


def test_nothing_is_due_where_nothing_has_settled() -> None:
    cadence = make()
    cadence.idle = cadence.wanted = True
    cadence.committed(1.0, 1.1)
    assert cadence.due_at() == math.inf


def test_while_there_is_work_it_is_due_at_the_interval() -> None:
    cadence = make()
    cadence.begin(5.0)
    cadence.begin(5.05)  # the first one counts
    assert cadence.due_at() == pytest.approx(5.1)


def test_the_interval_begins_with_the_end_of_the_last_commit() -> None:
    cadence = make()
    cadence.begin(5.0)
    cadence.taken(5.1)
    cadence.committed(5.1, 5.15)
    assert cadence.due_at() == pytest.approx(5.25)


def test_where_all_is_idle_a_quick_commit_is_followed_soon() -> None:
    cadence = make()
    cadence.committed(5.0, 5.004)
    cadence.begin(5.005)
    cadence.idle = True
    assert cadence.due_at() == pytest.approx(5.014)  # interval_min


def test_where_commits_take_long_a_dry_moment_is_no_lack_of_work() -> None:
    cadence = make()
    cadence.committed(5.0, 5.04)
    cadence.begin(5.04)
    cadence.idle = True
    assert cadence.due_at() == pytest.approx(5.12)
    cadence.committed(5.0, 5.5)
    assert cadence.due_at() == pytest.approx(5.6)  # never later than the interval


def test_lanes_that_wait_do_not_wait_for_that() -> None:
    cadence = make()
    cadence.committed(5.0, 5.04)
    cadence.begin(5.04)
    cadence.idle = cadence.wanted = True
    assert cadence.due_at() == pytest.approx(5.05)


def test_the_first_commit_of_an_idle_app_is_due_at_once() -> None:
    cadence = make()
    cadence.begin(5.0)
    cadence.idle = True
    assert cadence.due_at() <= 5.0


def test_what_is_hurried_is_due_now_until_it_is_taken() -> None:
    cadence = make(interval=10, interval_min=5)
    cadence.committed(5.0, 5.5)
    cadence.begin(5.5)
    cadence.hurried = True
    assert cadence.due_at() == 5.5
    cadence.taken(5.6)
    assert cadence.due_at() == pytest.approx(15.6)


@given(since=seconds, began=seconds, took=seconds, idle=st.booleans(), wanted=st.booleans())
def test_a_reason_to_commit_never_makes_it_later(
    since: float, began: float, took: float, idle: bool, wanted: bool
) -> None:
    cadence = make()
    cadence.committed(began, began + took)
    cadence.begin(since)
    regular = cadence.due_at()
    assert regular == pytest.approx(max(since, began + took) + 0.1)
    cadence.idle, cadence.wanted = idle, wanted
    assert cadence.due_at() <= regular
    if idle or wanted:
        assert cadence.due_at() >= min(regular, began + took)
