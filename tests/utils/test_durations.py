"""Durations as people give them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from trickle.exceptions import ConfigurationError
from trickle.utils.durations import seconds


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5.0), (0, 0.0), (0.25, 0.25), (timedelta(minutes=1), 60.0)]
)
def test_seconds(value: object, expected: float) -> None:
    assert seconds(value, what="timer(interval)") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "it must be seconds (int or float) or a timedelta, not str: '5'"),
        (True, "it must be seconds (int or float) or a timedelta, not bool: True"),
        (None, "it must be seconds (int or float) or a timedelta, not NoneType: None"),
        (float("nan"), "it must be a finite number of seconds, not nan"),
        (float("inf"), "it must be a finite number of seconds, not inf"),
        (10**400, f"it must be a finite number of seconds, not {10**400}"),
        (-1, "it must be at least 0 seconds, not -1"),
        (timedelta(-1), "it must be at least 0 seconds, not datetime.timedelta(days=-1)"),
    ],
)
def test_what_is_no_duration(value: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        seconds(value, what="it")
    assert str(caught.value) == message


def test_another_minimum() -> None:
    assert seconds(-1, what="retention", minimum=-1) == -1.0
