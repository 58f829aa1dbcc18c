"""Settlement: where settled events go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from trickle.context import Effect

__all__ = ["OutOfPatience", "Settlement"]

L_contra = TypeVar("L_contra", contravariant=True)  # the lane, which imports this module


class OutOfPatience(Exception):
    """The time that a group of events may wait for more is over."""


class Settlement(Protocol[L_contra]):
    """Where settled events go: the committer, as a lane sees it."""

    chunk_max: int
    """How many events a lane may take at once; 1 while a refused record is looked for."""

    crowded: bool
    """Whether a lane must ask for :meth:`room` before it takes more."""

    fresh: list[Effect]
    """Takes the effects of an event that settles, for the open transaction."""

    def published(self) -> None:
        """:attr:`fresh` was empty, or holds a portion."""
        ...

    def settled(self, lane: L_contra, events: int) -> None:
        """So many events of the lane have settled, or join those in hand."""
        ...

    def handled(self, lane: L_contra, timestamp_ms: int) -> None:
        """A batch has been handled, whose last record carries this timestamp."""
        ...

    def after(self, calls: list[Callable[[], Awaitable[object] | object]]) -> None:
        """Call these once the next commit has succeeded."""
        ...

    async def room(self, lane: L_contra) -> None:
        """Wait until the next commit has room for what the lane will settle."""
        ...

    def busy(self, lane: L_contra) -> None:
        """The lane has records to work on."""
        ...

    def dry(self, lane: L_contra) -> None:
        """The lane has nothing in hand and nothing in its inbox."""
        ...
