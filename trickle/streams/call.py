"""One call of an agent's function: its scope, and its end."""

from __future__ import annotations

import trio

from trickle.context import CURRENT, Child, Turn
from trickle.exceptions import UsageError

__all__ = ["FunctionCall"]


class FunctionCall:
    """What a lane knows of the call that iterates it.

    Attributes:
        scope: around the call; cancelled where an event takes too long, or the call does not end.
        told: its iteration has ended once.
        taker: the child task that iterates in its place, if one does.
    """

    __slots__ = ("scope", "taker", "told")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.told = False
        self.taker: trio.lowlevel.Task | None = None

    def take(self, turn: Turn) -> None:
        """The running task takes an event: what it does from now on is part of that.

        A child task may iterate in the call's place, as beside one that beats time, or several, one
        after the other. Two at once would settle each other's events; it is seen once a chunk.

        Raises:
            UsageError: it is the second task that iterates.
        """
        found = CURRENT.get()
        if not isinstance(found, Child) or found.turn is not turn:
            return
        if self.taker is not None and not _has_ended(self.taker):
            raise UsageError(
                f"agent {turn.agent!r}: a second task iterates the stream, and would settle what "
                "the first one has in hand: iterate it in one task, and raise concurrency= to "
                "handle several events at a time"
            )
        self.taker = trio.lowlevel.current_task()
        CURRENT.set(turn)

    async def end(self) -> None:
        """Let the iteration end. A function that begins another one, for ever, is cancelled."""
        if self.told:
            self.scope.cancel()
        self.told = True
        await trio.lowlevel.checkpoint()


def _has_ended(task: trio.lowlevel.Task) -> bool:
    return getattr(task.coro, "cr_frame", None) is None
