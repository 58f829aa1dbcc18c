"""Whose turn it is to write: a lock before LMDB's own, waited for under a deadline.

LMDB's writer lock is waited for without a limit, and tells nobody who has it. So a writer first
takes a ``flock`` of ours, whose file names the holder's pid; who has it finds LMDB's lock free.
The kernel frees both when their holder dies. A holder that is *stopped* (SIGSTOP) inside a write
stops the rest; they end with an error that names it.

A ``flock`` that is polled for is not fair: one process that writes without a pause would keep the
others out. So everyone goes through a second lock, ``next``, on the way to the first: a writer that
comes back finds ``next`` in the hands of whoever waits, and stands behind. That is courtesy, not
safety, so nobody waits at ``next`` for long: one stopped there must not stop the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trickle.utils.files import FileLock

__all__ = ["Gate"]

PATIENCE = 0.05
"""Seconds at most that a writer lets another one go first."""

_PAUSE_MIN, _PAUSE_MAX = 0.0002, 0.002


class Gate:
    """The turn to write, among all processes that have the log open."""

    def __init__(self, directory: Path) -> None:
        self._writing = FileLock(directory / "writer.lock")
        self._next = FileLock(directory / "next.lock")

    def enter(self, wanted: Callable[[], bool]) -> bool:
        """Wait for the turn, on the writer's thread.

        Args:
            wanted: asked again and again; False gives up.

        Returns:
            Whether it is our turn now; :meth:`leave` ends it.
        """
        pause = _PAUSE_MIN
        patience = time.monotonic() + PATIENCE
        try:
            while wanted():
                first = self._next.acquire() or time.monotonic() > patience
                if first and self._writing.acquire():
                    return True
                # One waits at the gate and looks often; those behind have time.
                time.sleep(_PAUSE_MIN if self._next.held else pause)
                pause = min(pause * 1.5, _PAUSE_MAX)
            return False
        finally:
            self._next.release()

    def leave(self) -> None:
        """End the turn."""
        self._writing.release()

    def holder(self) -> int | None:
        """Return the pid of who has the turn, or had it last."""
        return self._writing.holder()
