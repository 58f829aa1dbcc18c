"""Durations as people give them: seconds, or a timedelta."""

from __future__ import annotations

import math
from datetime import timedelta

from trickle.utils.errors import ConfigurationError

__all__ = ["seconds"]


def seconds(value: object, *, what: str, minimum: float = 0.0) -> float:
    """Return a duration in seconds.

    Args:
        value: an int or a float of seconds, or a timedelta.
        what: begins the sentence of an error: "agent(deadline=…)".
        minimum: the least that is allowed, in seconds.

    Raises:
        ConfigurationError: it is no duration, not finite, or less than the minimum.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise ConfigurationError(
            f"{what} must be seconds (int or float) or a timedelta, not "
            f"{type(value).__name__}: {value!r}"
        )
    if not math.isfinite(result):
        raise ConfigurationError(f"{what} must be a finite number of seconds, not {value!r}")
    if result < minimum:
        raise ConfigurationError(f"{what} must be at least {minimum:g} seconds, not {value!r}")
    return result
