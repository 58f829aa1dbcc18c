"""Fences: whether whoever takes a worker's transactional id away is its twin; pure.

A *twin* is another program with the same id: one of the two has to end, or they would fence each
other for ever. Others fence a worker as well, and mean no harm: those who were given partitions
when it was may find its name on them, or that of a process that had its id before; and somebody may
end what a broker has forgotten, which fences all of the group once.
"""

from __future__ import annotations

import math

__all__ = ["Fences"]

FENCES_MAX = 5
OTHERS_OPEN_S = 30.0
ONCE_S = 60.0


class Fences:
    """Counts how often this worker is fenced. All times are seconds of one clock.

    Args:
        session_timeout: seconds after which the group misses a member.
    """

    __slots__ = ("_assigned_at", "_count", "_last", "_session_timeout")

    def __init__(self, session_timeout: float) -> None:
        self._session_timeout = session_timeout
        self._assigned_at = -math.inf
        self._count = 0  # since then
        self._last = -math.inf

    def assigned(self, now: float) -> None:
        """There is a new assignment."""
        self._assigned_at = now
        self._count = 0

    def delayed(self, now: float) -> None:
        """Something has gone wrong that may delay others in opening what they were assigned."""
        self._assigned_at = now

    def excused(self, now: float) -> bool:
        """This worker was fenced: tell whether that may be no twin's doing."""
        last, self._last = self._last, now
        if now - last > ONCE_S:
            return True
        lately = now - self._assigned_at < self._session_timeout + OTHERS_OPEN_S
        if not lately or self._count >= FENCES_MAX:
            return False
        self._count += 1
        return True
