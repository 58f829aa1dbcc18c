"""A limit on the time that one event may take."""

from __future__ import annotations

import math
from typing import Any

import trio
from typing_extensions import TypeVar

from trickle.streams.settlement import OutOfPatience
from trickle.streams.stream import Operator, Stream

__all__ = ["bounded"]

V = TypeVar("V")
K = TypeVar("K", default=Any)


class _Bounded(Operator[V, V, K]):
    """Moves the deadline of the scope around the agent's function: on with each event.

    A scope opened in ``__anext__`` would stay open across the user's code, which may close scopes
    of its own in another order: that corrupts Trio's stack. One scope around the whole function
    has no such trouble. Waiting for an event does not count.
    """

    __slots__ = ("_scope", "_seconds")

    def __init__(self, parent: Stream[V, K], scope: trio.CancelScope, limit: float) -> None:
        super().__init__(parent)
        self._scope = scope
        self._seconds = limit

    async def pull(self, *, keep: bool) -> V:
        if self._scope.cancel_called:  # a shield kept it from the event in hand, which is to blame
            await trio.lowlevel.checkpoint()
        self._scope.deadline = math.inf
        try:
            value = await self._parent.pull(keep=keep)
        except OutOfPatience:  # a group is handled with fewer: its time begins now
            self._scope.deadline = trio.current_time() + self._seconds
            raise
        self._scope.deadline = trio.current_time() + self._seconds
        return value


def bounded(stream: Stream[V, K], scope: trio.CancelScope, limit: float) -> Stream[V, K]:
    """Return a stream whose events each may take ``limit`` seconds until the scope is cancelled."""
    return _Bounded(stream, scope, limit)
