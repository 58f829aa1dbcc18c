"""Calls that wait for a commit: ``event.after_commit`` and sinks that are functions.

They are made in order, once the commit that holds their event has succeeded, in a task of their
own: a slow one keeps neither a revocation nor the commit before it waiting. The committer makes no
further commit by itself until they are made, so they are never more than those of a few commits.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeAlias

import trio

__all__ = ["Call", "Calls"]

Call: TypeAlias = Callable[[], Awaitable[object] | object]


class Calls:
    """What is to be called, in order."""

    def __init__(self) -> None:
        self._due: deque[Call] = deque()
        self._over = False
        self._changed = trio.lowlevel.ParkingLot()

    def __bool__(self) -> bool:
        return bool(self._due)

    def __str__(self) -> str:
        """Name the one that goes on."""
        if not self._due:
            return "no call after a commit"
        call = self._due[0]
        function: object = call.func if isinstance(call, partial) else call
        name = getattr(function, "__qualname__", None) or repr(function)
        more = f", and {len(self._due) - 1} more wait" if len(self._due) > 1 else ""
        return f"the call of {name} after a commit (after_commit, or a sink) has not ended{more}"

    def add(self, calls: Iterable[Call]) -> None:
        """Call these as well; their commit has succeeded. After one that failed none is made."""
        if not self._over:
            self._due.extend(calls)
        self._changed.unpark_all()

    async def make(self) -> None:
        """Make them, for ever; what one raises ends it."""
        try:
            while True:
                while not self._due:
                    await self._changed.park()
                try:
                    result = self._due[0]()
                    if inspect.isawaitable(result):
                        await result
                except Exception as error:
                    error.add_note("a call after a commit (after_commit, or a sink) failed")
                    raise
                self._due.popleft()
                self._changed.unpark_all()
        finally:
            self._over = True
            self._due.clear()
            self._changed.unpark_all()

    async def wait_made(self) -> None:
        """Wait until none is left."""
        while self._due:
            await self._changed.park()
