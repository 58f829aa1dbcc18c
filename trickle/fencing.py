"""Whose the transactional id is: taken over, taken back, and by whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trickle.exceptions import ProducerFenced
from trickle.fences import Fences
from trickle.patience import BROKER_PAUSE_S, patiently
from trickle.producer import Producer

__all__ = ["Fencing"]

RENEWALS_MAX = 5


class Fencing:
    """What a worker knows of who has its transactional id.

    Attributes:
        stale: somebody else has it until the next assignment is opened.

    Args:
        producer: replaced where another worker fenced it.
        session_timeout: seconds within which a lost membership shows.
    """

    def __init__(self, producer: Producer, session_timeout: float) -> None:
        self._producer = producer
        self._session_timeout = session_timeout
        self._fences = Fences()
        self._moved = trio.Event()
        self.stale = False

    def assigned(self) -> None:
        """There is a new assignment."""
        self._fences.assigned()

    def moved(self) -> None:
        """The assignment that was there has ended."""
        self._moved.set()
        self._moved = trio.Event()

    async def renew(self, patient: Callable[[], bool]) -> None:
        """Take the transactional id back from whoever took over, and fenced it.

        They fence it while we do, each of them once: to lose to them is no sign of a twin.
        """
        fenced = 0
        while self.stale:
            try:
                await patiently(self._producer.renew, patient)
                self.stale = False
            except ProducerFenced:
                fenced += 1
                if fenced == RENEWALS_MAX:
                    raise
                await trio.sleep(BROKER_PAUSE_S)

    async def unless_fenced(
        self, call: Callable[[], Awaitable[None]], patient: Callable[[], bool]
    ) -> None:
        """Make a call by the producer; take the transactional id back where others have it.

        Whoever ends what an earlier worker of this id left open fences us as well, each of them
        once, also while we are starting.
        """
        for attempt in range(RENEWALS_MAX):
            try:
                await patiently(call, patient)
                return
            except ProducerFenced:
                if attempt == RENEWALS_MAX - 1:
                    raise
                self.stale = True
                await self.renew(patient)

    def excused(self) -> bool:
        """The worker was fenced: tell whether that may be no twin's doing."""
        return self._fences.excused(trio.current_time())

    async def lost_membership(self) -> bool:
        """Tell whether it was fenced because it had lost its place in the group.

        Or for another reason than that it has a twin.
        """
        if self.stale or self.excused():
            return True
        with trio.move_on_after(self._session_timeout):
            await self._moved.wait()
            return True
        return False
