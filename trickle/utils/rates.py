"""Rates and samples: plain arithmetic with bounded memory. Time is an argument.

A *rate* is a count over a sliding window, kept in a ring of slots: exact to one slot's width, and
never larger than the ring, whatever happens. A *sample* is a reservoir of the values seen lately,
from which quantiles are read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

__all__ = ["Rate", "Sample"]


class Rate:
    """Events a second over a sliding window.

    Args:
        window: seconds that it looks back.
        slots: parts of the window; time within one is not told apart.
    """

    __slots__ = ("_counts", "_first", "_last", "_sum", "_width", "total", "window")

    def __init__(self, window: float = 10.0, slots: int = 20) -> None:
        if window <= 0 or slots < 1:
            raise ValueError(f"a rate needs a window and slots, not {window!r} and {slots!r}")
        self.window = window
        self.total = 0
        self._width = window / slots
        self._counts = [0] * slots
        self._sum = 0
        self._last: int | None = None  # the number of the newest slot
        self._first = 0.0  # when the counting began

    def add(self, count: int, now: float) -> None:
        """Count so many events at a time; a clock that goes back counts them as of the latest."""
        self._counts[self._turn(now) % len(self._counts)] += count
        self._sum += count
        self.total += count

    def per_second(self, now: float) -> float:
        """Return the rate; over the time since the first event where that is shorter."""
        if self._last is None:
            return 0.0
        self._turn(now)
        span = min(self.window, max(now - self._first, self._width))
        return self._sum / span

    def _turn(self, now: float) -> int:
        """Empty the slots that time has passed since the newest one; return the newest now."""
        slot = math.floor(now / self._width)
        if self._last is None:
            self._last, self._first = slot, now
            return slot
        size = len(self._counts)
        if slot - self._last >= size:
            self._counts = [0] * size
            self._sum = 0
        else:
            for number in range(self._last + 1, slot + 1):
                self._sum -= self._counts[number % size]
                self._counts[number % size] = 0
        self._last = max(self._last, slot)
        return self._last


class Sample:
    """The last values of something, for quantiles.

    Args:
        size: how many are kept.
    """

    __slots__ = ("_values", "count", "maximum", "total")

    def __init__(self, size: int = 512) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self.count = 0
        self.total = 0.0
        self.maximum = 0.0

    def add(self, value: float) -> None:
        """Take a value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._values.append(value)
        self.count += 1
        self.total += value
        self.maximum = max(self.maximum, value)

    def quantiles(self, wanted: Iterable[float]) -> list[float]:
        """Return the values below which such shares of the kept ones lie; zeros where none are.

        Args:
            wanted: each from 0 to 1; the nearest rank is taken, so each result was seen.
        """
        ordered = sorted(self._values)
        if not ordered:
            return [0.0 for _ in wanted]
        last = len(ordered)
        return [ordered[min(last - 1, max(0, math.ceil(share * last) - 1))] for share in wanted]
