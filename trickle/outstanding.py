"""What waits while no generation is open: timers' records, and commits of unknown outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trickle.calls import Calls
from trickle.context import Effect
from trickle.outcomes import Outcomes
from trickle.patience import patiently
from trickle.snapshots import Snapshot

__all__ = ["Outstanding"]

logger = logging.getLogger("trickle.commit")

MARKS_KEPT_S = 86_400.0
"""A broker forgets the offsets of a group without members, seven days after by default."""


class Outstanding:
    """What no position brings back.

    Events run from what is committed, and so are right whatever became of a commit; calls that
    waited for it, and what timers sent with it, hang on whether it has happened.

    Attributes:
        held: no generation is open; what timers send waits.
        ticks: what they have sent meanwhile, in order.
        doubt: a commit that failed, and may have happened all the same.

    Args:
        calls: what waits for commits to be called.
        outcomes: tells what became of a commit.
        transactional: exactly-once.
    """

    def __init__(self, calls: Calls, outcomes: Outcomes, *, transactional: bool) -> None:
        self._calls = calls
        self._outcomes = outcomes
        self._transactional = transactional
        self.held = False
        self.ticks: list[Effect] = []
        self.doubt: Snapshot | None = None
        self._answered: Snapshot | None = None
        self._answered_at = 0.0

    @property
    def at_stake(self) -> bool:
        """Whether the commit in doubt holds more than what timers sent."""
        doubt = self.doubt
        return doubt is not None and bool(doubt.events or doubt.dirty or doubt.after)

    @property
    def waits(self) -> bool:
        """Whether no commit is to begin by itself."""
        return self.held or self.doubt is not None

    @property
    def owing(self) -> bool:
        """Whether something waits for a generation."""
        return self.held and (self.doubt is not None or bool(self.ticks))

    def answered(self, commit: Snapshot) -> None:
        """A commit was acknowledged, which a broker that is killed right then can forget."""
        if commit.mark is not None:  # a later mark says as much of the commits before it
            self._answered = commit.only_ticks() if commit.ticks else None
            self._answered_at = trio.current_time()

    async def resolve(self, patient: Callable[[], bool] = lambda: True) -> bool:
        """Make the calls of the commit in doubt, or send again what its timers sent.

        The producer is ready, so the commit is over. Without transactions nobody is named in what
        is committed: whoever has the partitions by now may have committed the same. Calls are made
        then, and records sent, once too often.

        Args:
            patient: whether a broker that is away is waited for.

        Returns:
            Whether there was one, and it has happened.
        """
        happened = await self._resolve_doubt(patient)
        answered = self._answered
        if answered is not None and not happened:
            late = trio.current_time() > self._answered_at + MARKS_KEPT_S
            if not late and not await patiently(lambda: self._outcomes.happened(answered), patient):
                logger.warning(
                    "the broker has forgotten a commit that it had acknowledged: what timers sent "
                    "with it is sent again"
                )
                self.ticks = answered.ticks + self.ticks
        self._answered = None
        return happened

    async def _resolve_doubt(self, patient: Callable[[], bool]) -> bool:
        doubt = self.doubt
        if doubt is None:
            return False
        happened = await patiently(lambda: self._outcomes.happened(doubt), patient)
        self.doubt = None
        if happened:
            logger.info("the commit that got no answer has happened all the same")
            self._calls.add(doubt.after)
        if not (happened and self._transactional):
            self.ticks = doubt.ticks + self.ticks
        return happened
