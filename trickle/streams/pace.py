"""Pace: how long a lane works before it lets other tasks run."""

from __future__ import annotations

from time import perf_counter

import trio

__all__ = ["CHUNK_MAX", "Pace"]

CHUNK_MAX = 256
BREATH_S = 0.005  # the longest that a lane works without letting other tasks run


class Pace:
    """How many events a lane takes before it lets others run: as many as fit into 5 ms."""

    __slots__ = ("_since", "size")

    def __init__(self) -> None:
        self.size = 16
        self._since = perf_counter()

    async def breathe(self) -> None:
        """Between two chunks: let other tasks run if 5 ms are over, and fit the next chunk."""
        elapsed = perf_counter() - self._since
        if elapsed > BREATH_S:
            self.size = max(1, int(self.size * BREATH_S / elapsed))
            self._since = perf_counter()  # for those who share it: one that waits is enough
            await trio.lowlevel.checkpoint()
            self._since = perf_counter()
        elif self.size < CHUNK_MAX:
            self.size *= 2

    def rested(self) -> None:
        """The lane has waited, so others have run."""
        self._since = perf_counter()
