"""What waits while no generation is open: timers' records, and a commit of unknown outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trickle.calls import Calls
from trickle.context import Effect
from trickle.outcomes import Outcomes
from trickle.patience import patiently
from trickle.snapshots import Snapshot

__all__ = ["Outstanding"]

logger = logging.getLogger("trickle.commit")


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

    @property
    def at_stake(self) -> bool:
        """Whether the commit in doubt holds more than what timers sent."""
        doubt = self.doubt
        return doubt is not None and bool(doubt.events or doubt.dirty or doubt.after)

    @property
    def owing(self) -> bool:
        """Whether something waits for a generation."""
        return self.held and (self.doubt is not None or bool(self.ticks))

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
