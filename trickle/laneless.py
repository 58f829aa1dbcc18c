"""What the conductor does for a Run with agents, for one that has none: timers are all there is."""

from __future__ import annotations

import logging

import trio

from trickle.commit import Committer
from trickle.exceptions import CommitFailed, ProducerFenced
from trickle.patience import patiently
from trickle.producer import Producer

__all__ = ["Laneless"]

logger = logging.getLogger("trickle.timers")


class Laneless:
    """The way back from a commit that failed, and the last one.

    Args:
        producer: made ready again.
        committer: commits what timers send.
    """

    def __init__(self, producer: Producer, committer: Committer) -> None:
        self._producer = producer
        self._committer = committer
        committer.attach(self.generation_ended)

    async def generation_ended(self, error: CommitFailed) -> None:
        """A commit failed: what it held is sent again, unless it has happened."""
        if isinstance(error, ProducerFenced):
            raise error
        committer = self._committer
        logger.warning("a commit failed, what timers have sent is sent again: %s", error)
        await trio.sleep(committer.pause)
        committer.resume()
        await patiently(self._producer.ensure_ready)
        await committer.outstanding.resolve()
        committer.go_on()

    async def close(self) -> None:
        """Commit what is left.

        Raises:
            CommitFailed: it cannot be, or it waits for a broker that does not answer.
        """
        await self._committer.commit()
        if self._committer.outstanding.owing:
            raise CommitFailed(
                "what timers have sent is not committed: the broker does not answer, or has not "
                "yet told whether the commit before has happened"
            )
