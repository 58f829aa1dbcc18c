"""Ticks: what timers do, as events without a position.

What a tick sends is staged, and joins the next commit when the tick ends; a tick that fails leaves
nothing, and takes the Run down. While more than ten thousand records of timers wait for a commit,
as when the broker is away for long, ticks are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trickle.commit import Committer
from trickle.context import CURRENT, Turn
from trickle.service import Service
from trickle.utils.functions import awaited

__all__ = ["WAITING_MAX", "TimerService"]

WAITING_MAX = 10_000  # records of timers; there is no position that they could be made from again

logger = logging.getLogger("trickle.timers")


class TimerService(Service):
    """Calls a function every so many seconds, by the clock and not by when the last call ended.

    Args:
        name: for messages.
        function: what the user decorated.
        interval: seconds from one tick to the next; one that is still running skips those that
            fall due meanwhile.
        committer: commits what ticks send.
        now_ms: the clock that stamps their records, POSIX milliseconds.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], Awaitable[None]],
        interval: float,
        committer: Committer,
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__(f"Timer {name}")
        self._label = f"timer {name!r}"
        self._function = function
        self._interval = interval
        self._committer = committer
        self._turn = _Tick(self.name, now_ms)
        self._full = False  # as its last tick was due

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        CURRENT.set(self._turn)
        begin = trio.current_time()
        task_status.started()
        count = 0
        while True:
            count += 1
            await trio.sleep_until(begin + count * self._interval)
            if self._committer.ticks_waiting >= WAITING_MAX:
                self._leave_out()
                continue
            self._full = False
            await self._tick()
            late = int((trio.current_time() - begin) / self._interval) - count
            if late > 0:
                logger.warning(
                    "%s took longer than its interval of %g s: %d ticks are left out",
                    self.name, self._interval, late,
                )  # fmt: skip
                count += late

    def _leave_out(self) -> None:
        if not self._full:
            logger.warning(
                "%s: %d records of timers wait for a commit, as the broker is away: "
                "its ticks are left out until one succeeds",
                self.name, self._committer.ticks_waiting,
            )  # fmt: skip
        self._full = True

    async def _tick(self) -> None:
        turn = self._turn
        turn.take_in_hand()
        try:
            await awaited(self._function, what=self._label)
        except BaseException as error:
            turn.undo()
            error.add_note(f"{self._label} failed")
            raise
        finally:
            turn.let_go()
        effects, turn.effects, turn.touched = turn.effects, [], False
        if effects:
            self._committer.tick(effects)


class _Tick(Turn):
    """One timer's ticks, one at a time."""

    __slots__ = ("_now_ms",)

    def __init__(self, name: str, now_ms: Callable[[], int]) -> None:
        super().__init__(name, None, {})
        self._now_ms = now_ms

    def timestamp_ms(self) -> int | None:
        return self._now_ms()
