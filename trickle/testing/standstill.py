"""Standstill: when no task of the workers can go on by itself, threads included.

The virtual clock stands while a thread works or another process answers, and so do all tasks: that
is no standstill. What a task waits for is told by the module of Trio's in which it waits. That is
used here, in one place; tests see to it that the names still hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import trio
from trio.testing import wait_all_tasks_blocked

__all__ = ["PATIENCE_S", "Standstill"]

PATIENCE_S = 5.0
"""Real seconds that a thread or a socket is given, once."""

POLL_S = 0.002

_TRAPS = "trio._core._traps"  # the last step of every wait
_THREADS = "trio._threads"
_SOCKETS = "trio._core._io_"


class Standstill:
    """Waits until the tasks below a nursery stand still.

    Args:
        nursery: the workers'.

    Attributes:
        patience: real seconds that are waited at most.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.patience = PATIENCE_S
        self._nursery = nursery
        self._given_up: set[trio.lowlevel.Task] = set()

    async def reached(self) -> None:
        """Wait until only time, or somebody outside, could go on; threads are waited for.

        A task whose threads have been waited for in vain is left alone after that: it may well be
        one that waits for its input as long as it lives.
        """
        await wait_all_tasks_blocked()
        end = time.monotonic() + self.patience
        while True:
            busy = set(self._waiting_for(_THREADS))
            self._given_up &= busy
            busy -= self._given_up
            if not busy:
                return
            if time.monotonic() >= end:
                self._given_up |= busy
                return
            await wait_all_tasks_blocked(POLL_S)  # its cushion is real time, whatever the clock

    async def outside(self, unchanged: Callable[[], bool]) -> float | None:
        """Wait for threads and sockets until they have changed something.

        Returns:
            None where something has changed, else the real seconds that it was waited for.
        """
        begin = time.monotonic()
        while unchanged():
            waited = time.monotonic() - begin
            if waited >= self.patience or not any(self._waiting_for(_THREADS, _SOCKETS)):
                return waited
            await wait_all_tasks_blocked(POLL_S)
        return None

    def _waiting_for(self, *modules: str) -> Iterator[trio.lowlevel.Task]:
        nurseries = [self._nursery]
        while nurseries:
            for task in nurseries.pop().child_tasks:
                nurseries += task.child_nurseries
                if _waits_in(task).startswith(modules):
                    yield task


def _waits_in(task: trio.lowlevel.Task) -> str:
    """Return the name of the module in which a task that stands still waits."""
    name = ""
    try:
        for frame, _ in task.iter_await_frames():
            module = str(frame.f_globals.get("__name__"))
            name = name if module == _TRAPS else module
    except (TypeError, RuntimeError):  # behind an awaitable that cannot be looked into
        return ""
    return name
