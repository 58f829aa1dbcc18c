"""What waits while no generation is open: timers' records, and a commit of unknown outcome."""

from __future__ import annotations

from collections.abc import Mapping

from trickle.calls import Calls
from trickle.context import Effect
from trickle.positions import Positions
from trickle.snapshots import Snapshot
from trickle.types import TopicPartition

__all__ = ["Outstanding"]


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
        transactional: exactly-once.
    """

    def __init__(self, calls: Calls, *, transactional: bool) -> None:
        self._calls = calls
        self._transactional = transactional
        self.held = False
        self.ticks: list[Effect] = []
        self.doubt: Snapshot | None = None

    @property
    def plan(self) -> Mapping[TopicPartition, Positions] | None:
        """The positions of the commit in doubt."""
        return None if self.doubt is None else self.doubt.plan

    @property
    def at_stake(self) -> bool:
        """Whether the commit in doubt holds more than what timers sent."""
        doubt = self.doubt
        return doubt is not None and bool(doubt.events or doubt.dirty or doubt.after)

    @property
    def owing(self) -> bool:
        """Whether something waits for a generation."""
        return self.held and (self.doubt is not None or bool(self.ticks))

    def resolve(self, *, happened: bool) -> None:
        """Make the calls of the commit in doubt, or send again what its timers sent.

        Without transactions nobody is named in what is committed: whoever has the partitions by
        now may have committed the same. Calls are made then, and records sent, once too often.
        """
        doubt, self.doubt = self.doubt, None
        assert doubt is not None
        if happened:
            self._calls.add(doubt.after)
        if not (happened and self._transactional):
            self.ticks = doubt.ticks + self.ticks
