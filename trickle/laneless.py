"""What the conductor does for a Run with agents, for one that has none: timers are all there is."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trickle.commit import ATTEMPTS_AT_LAST, Committer
from trickle.exceptions import BrokerUnavailable, CommitFailed, ProducerFenced
from trickle.patience import patiently
from trickle.producer import Producer

__all__ = ["Laneless"]

logger = logging.getLogger("trickle.timers")


class Laneless:
    """The way back from a commit that failed, and the last one.

    What changes something is serialised by one lock, which the end does not wait for.

    Args:
        producer: made ready again.
        committer: commits what timers send.
        drain_timeout: seconds that a broker which is away is waited for at the end.
    """

    def __init__(self, producer: Producer, committer: Committer, *, drain_timeout: float) -> None:
        self._drain_timeout = drain_timeout
        self._producer = producer
        self._committer = committer
        self._changes = trio.Lock()
        self._opening = trio.CancelScope()
        self._closed = False
        committer.attach(self.generation_ended)

    async def open(self) -> None:
        """Learn what has to be known before the first commit."""
        await self._committer.outcomes.learn(self._producer.may_mark)
        await self._end_forgotten(lambda: False)

    async def _end_forgotten(self, patient: Callable[[], bool]) -> None:
        """Leave nothing open before what is sent from now on."""
        if await patiently(self._committer.forgotten.end_suspects, patient):
            await patiently(self._producer.renew, patient)

    async def generation_ended(self, error: CommitFailed) -> None:
        """A commit failed: what it held is sent again, unless it has happened."""
        if isinstance(error, ProducerFenced):
            raise error
        async with self._changes:
            if self._closed:
                return
            logger.warning("a commit failed, what timers have sent is sent again: %s", error)
            with trio.CancelScope() as self._opening:
                await trio.sleep(self._committer.pause)
                await self._go_on(lambda: True)

    async def _go_on(self, patient: Callable[[], bool]) -> None:
        committer = self._committer
        committer.resume()
        await patiently(self._producer.ensure_ready, patient)
        await self._end_forgotten(patient)
        await committer.outstanding.resolve(patient)
        committer.go_on()

    async def close(self) -> None:
        """Commit what is left.

        Raises:
            CommitFailed: the broker does not answer, or refuses.
        """
        self._closed = True
        self._opening.cancel()
        committer, until = self._committer, trio.current_time() + self._drain_timeout
        failure: CommitFailed | None = None
        async with self._changes:
            for _ in range(ATTEMPTS_AT_LAST):
                try:
                    if committer.broken is not None or committer.outstanding.owing:
                        await self._go_on(lambda: trio.current_time() < until)
                    await committer.commit()
                except BrokerUnavailable as error:
                    raise failure or CommitFailed(
                        f"what timers have sent is not committed: {error}"
                    ) from error
                except ProducerFenced:
                    raise
                except CommitFailed as error:
                    failure = failure or error
                else:
                    return
        assert failure is not None
        raise failure
