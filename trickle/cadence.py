"""Cadence: when the next commit is due, and how much it may hold; pure.

A commit costs the broker as much for one event as for thousands, and writes each changed key once
however often it has changed. So while there is work it is due at the interval. Where there is none
nobody gains by waiting, and it is due soon. Only, lanes that are faster than what feeds them run
dry for a moment many times a second, and that is no lack of work. What tells the two apart is how
long commits take, which grows with all that goes on, here and at the broker: one that is due
because lanes are dry keeps twice that distance from the last one. On an idle machine it is a few
milliseconds, on a busy one the interval.
"""

from __future__ import annotations

import math

__all__ = ["Cadence", "Size"]

PAUSE_S = 0.1  # before the generation after the second failure in a row; twice as long each time
PAUSE_S_MAX = 5.0
NARROWER = 8  # by how much the next commits shrink after one with a refused record


class Cadence:
    """When the next commit is due. All times are seconds of one clock.

    Args:
        interval: from the first settled event, or the last commit if that ended later.
        interval_min: between two commits that are due earlier.

    Attributes:
        since: when the first event settled that is in no commit yet; infinity: none has.
        hurried: the commit is due now, whatever the intervals say.
        wanted: lanes wait for it.
        idle: there is nothing else to do.
        failures: commits that failed in a row.
    """

    __slots__ = (
        "_ended", "_interval", "_interval_min", "_took", "failures", "hurried", "idle", "since",
        "wanted",
    )  # fmt: skip

    def __init__(self, interval: float, interval_min: float) -> None:
        self._interval = interval
        self._interval_min = interval_min
        self.since = math.inf
        self.hurried = False
        self.wanted = False
        self.idle = False
        self.failures = 0
        self._ended = -math.inf
        self._took = 0.0

    def due_at(self) -> float:
        """Return when the next commit is due, infinity where there is nothing to commit."""
        if self.since == math.inf or self.hurried:
            return self.since
        regular = max(self.since, self._ended) + self._interval
        if self.wanted:
            return min(regular, self._ended + self._interval_min)
        if self.idle:
            return min(regular, self._ended + max(self._interval_min, 2 * self._took))
        return regular

    @property
    def pause(self) -> float:
        """Seconds to wait after the last failure: none at first, longer at each."""
        return min(PAUSE_S * 2 ** (self.failures - 2), PAUSE_S_MAX) if self.failures > 1 else 0

    def begin(self, now: float) -> None:
        """Something may have settled, or will soon."""
        self.since = min(self.since, now)

    def taken(self, since: float) -> None:
        """A commit has taken all that had settled.

        Args:
            since: when what is in hand by now may have begun to settle.
        """
        self.since = since
        self.hurried = self.wanted = False

    def committed(self, began: float, ended: float) -> None:
        """A commit has ended."""
        self._ended = ended
        self._took = ended - began

    def since_last(self, now: float) -> float:
        """Return how long ago the last commit ended."""
        return now - self._ended


class Size:
    """How many events a commit may hold: fewer after a refused record, until it is known whose.

    Args:
        most: where nothing was refused.
        chunk_most: likewise of what a lane takes in hand at once.

    Attributes:
        limit: for the commit.
        chunk: for a lane.
    """

    def __init__(self, most: int, chunk_most: int) -> None:
        self._most = most
        self._chunk_most = chunk_most
        self._set(most)

    def _set(self, limit: int) -> None:
        self.limit = limit
        self.chunk = min(self._chunk_most, limit)

    @property
    def narrowed(self) -> bool:
        """Whether it is looked for whose record was refused."""
        return self.limit < self._most

    def narrow(self, events: int) -> None:
        """A commit of so many events had a refused record."""
        self._set(max(1, min(self.limit, max(events, 1)) // NARROWER))

    def widen(self) -> bool:
        """Events have been committed; tell whether the next commit may hold more."""
        if self.limit >= self._most:
            return False
        self._set(min(self.limit * 2, self._most))
        return True
