"""One call of an agent's function: its scope, and its end."""

from __future__ import annotations

import trio

__all__ = ["FunctionCall"]


class FunctionCall:
    """What a lane knows of the call that iterates it.

    Attributes:
        scope: around the call; cancelled where an event takes too long, or the call does not end.
        told: its iteration has ended once.
    """

    __slots__ = ("scope", "told")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.told = False

    async def end(self) -> None:
        """Let the iteration end. A function that begins another one, for ever, is cancelled."""
        if self.told:
            self.scope.cancel()
        self.told = True
        await trio.lowlevel.checkpoint()
