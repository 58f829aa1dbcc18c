"""Fences: whether whoever takes a worker's transactional id away is its twin; pure.

A *twin* is another program with the same id: one of the two has to end, or they would fence each
other for ever. Others fence a worker as well, and mean no harm: those who were given partitions
when it was may find its name on them, or that of a process that had its id before; and each worker
that finds what a broker has forgotten ends it, and fences all of the group by that. They do so a
few times. A twin never stops.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Fences"]

FENCES_MAX = 8
WINDOW_S = 150.0


class Fences:
    """Counts how often this worker is fenced. All times are seconds of one clock."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=FENCES_MAX)

    def assigned(self) -> None:
        """There is a new assignment: whoever gets its part of it may fence us again."""
        self._times.clear()

    def excused(self, now: float) -> bool:
        """This worker was fenced: tell whether that may be no twin's doing."""
        often = len(self._times) == FENCES_MAX and now - self._times[0] < WINDOW_S
        self._times.append(now)
        return not often
