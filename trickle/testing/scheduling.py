"""Seeded order: the same seed, the same order of tasks.

Trio shuffles the tasks that are ready by a random generator of its own, so that nobody comes to
depend on their order. It leaves two private switches for a deterministic order: the generator, and
whether a batch is sorted before it is shuffled. They are used here, in one place; a test sees to
it that they are still there.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import trio
from trio._core import _run  # pyright: ignore[reportPrivateUsage]

from trickle.streams import Pace

__all__ = ["SeededPace", "seeded_order"]


@contextmanager
def seeded_order(generator: random.Random) -> Generator[None, None, None]:
    """Let the order of tasks follow from a generator, for as long as the block lasts."""
    runner: Any = _run
    before = (runner._r, runner._ALLOW_DETERMINISTIC_SCHEDULING)
    runner._r, runner._ALLOW_DETERMINISTIC_SCHEDULING = generator, True
    try:
        yield
    finally:
        runner._r, runner._ALLOW_DETERMINISTIC_SCHEDULING = before


class SeededPace(Pace):
    """Lets others run after a few events, as many as the seed says: real time plays no part."""

    __slots__ = ("_random",)

    def __init__(self, generator: random.Random) -> None:
        super().__init__()
        self._random = random.Random(generator.random())  # noqa: S311 - to be repeatable
        self.size = 1

    async def breathe(self) -> None:
        """Between two chunks: always let others run."""
        self.size = self._random.choice((1, 1, 2, 3, 5, 8, 64))
        await trio.lowlevel.checkpoint()

    def rested(self) -> None:
        """Nothing to do: no time is measured."""
