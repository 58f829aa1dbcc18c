"""Nowhere: where a lane settles that has been given up while its agent resists its cancellation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trickle.context import Effect

__all__ = ["Nowhere"]


class Nowhere:
    """The settlement of a lane that has been given up."""

    chunk_max = 1
    crowded = False

    def __init__(self) -> None:
        self.fresh: list[Effect] = []

    def published(self) -> None:
        """Drop them: it is told of the first already."""
        self.fresh.clear()

    def settled(self, lane: object, events: int) -> None:
        """They run again elsewhere."""

    def handled(self, lane: object, timestamp_ms: int) -> None:
        """Nobody asks."""

    def after(self, calls: list[Callable[[], Awaitable[object] | object]]) -> None:
        """There is no commit."""

    async def room(self, lane: object) -> None:
        """Return: never asked for."""

    def busy(self, lane: object) -> None:
        """Nobody asks."""

    def dry(self, lane: object) -> None:
        """Nobody asks."""
