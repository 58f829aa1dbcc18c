"""Transactions whose end a broker has lost: what they have left open is aborted once more.

A broker that was killed can call a transaction complete, and never tell some of its partitions so
(see :mod:`trickle.transport.kafka.again`). Records stay open there: readers of committed records
stop before them, and the next commit of the same transactional id makes them visible, though their
events have run again since.

So whoever begins anew under an id, or goes on from where another left off, looks first whether
records stand open in the app's topics. Most often none do, or they are others', and decided soon.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import trio

from trickle.exceptions import BrokerUnavailable, TransportError
from trickle.positions import read_positions
from trickle.transport.contract import Admin, TopicInfo
from trickle.types import TopicPartition

__all__ = ["Forgotten"]

logger = logging.getLogger("trickle.consumer")

INTERVAL_S = 30.0  # between two times that all of a group are ended
OPEN_S = 1.0  # how long records may stand open before they are taken for forgotten
PAUSE_S = 0.05
TRIES = 2  # what stands open after that is others', whose commits are far apart


class Forgotten:
    """Ends once more what the broker has lost the end of.

    Args:
        admin: looks, and aborts.
        group: the app's.
        committer_id: this worker's transactional id; without one nothing is looked for.
        topics: all of the app's.
    """

    def __init__(
        self, admin: Admin, group: str, committer_id: str, topics: Mapping[str, TopicInfo]
    ) -> None:
        self._admin = admin
        self._group = group
        self._own = committer_id
        self._topics = topics
        self._ending = trio.Lock()
        self._ended_at = -math.inf
        self._suspects: set[str] = set()
        self._fenced = False  # our own producer, by ourselves
        self.suspect(committer_id)  # an earlier process may have left something

    def suspect(self, committer: str = "") -> None:
        """The last transaction of an id was not ended by a commit that was answered.

        Args:
            committer: the id; this worker's unless given.
        """
        if self._own:
            self._suspects.add(committer or self._own)

    async def end_suspects(self) -> bool:
        """Abort once more what suspects have left, where records stand open.

        To be called when their transactions are over, as far as the broker knows, and before
        anything is produced.

        Returns:
            Whether this worker's own producer is fenced by it.
        """
        before: Mapping[TopicPartition, int] | None = None
        well: set[str] = set()
        for _ in range(TRIES):  # the coordinator may not have heard of all places in time
            suspects = sorted(self._suspects)
            opened = await self._open_places(suspects)
            places = [at for at in opened if before is None or before.get(at) == opened[at]]
            before = opened
            well = set(suspects)
            if places:
                logger.info(
                    "records of no transaction that goes on stand open in %s: what %s may have "
                    "left there is aborted once more", _some(places), " and ".join(suspects),
                )  # fmt: skip
                self._fenced |= self._own in suspects  # known also where the broker goes away now
                well = {one for one in suspects if await self._abort_again(one, places)}
            if not places or well != set(suspects):
                break
        self._suspects -= well
        fenced, self._fenced = self._fenced, False
        return fenced

    async def _open_places(self, suspects: Sequence[str]) -> Mapping[TopicPartition, int]:
        """Return where records stand open that are there by now, and are not decided soon."""
        if not suspects:
            return {}
        try:
            return await self._open_among(self._places())
        except BrokerUnavailable:
            raise
        except TransportError as error:  # deleted, or not to be seen: who needs it says so
            logger.debug("looking for records that stand open: %s", error)
            there = {name for name in self._topics if await self._may_see(name)}
            return await self._open_among([at for at in self._places() if at.topic in there])

    async def _may_see(self, topic: str) -> bool:
        try:
            return topic in await self._admin.topics([topic])
        except BrokerUnavailable:
            raise
        except TransportError:
            return False

    async def _open_among(self, places: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        deadline = trio.current_time() + OPEN_S
        ends = await self._admin.watermarks(places)
        while True:
            stable = await self._admin.watermarks(places, stable=True)
            places = [at for at in places if stable[at].high < ends[at].high]
            if not places or trio.current_time() >= deadline:
                return {at: stable[at].high for at in places}
            await trio.sleep(PAUSE_S)

    async def end_all(self) -> None:
        """End the transactions whose end the broker may have lost: nothing goes on otherwise.

        That is of all who have committed for this group, in all topics of the app; they fence us
        by it, as we do them. What was open is aborted, and its events run again.

        Our own comes last: a commit of ours that fails by it may cancel who has asked for this.
        """
        if not self._own:
            return
        async with self._ending:
            if trio.current_time() < self._ended_at + INTERVAL_S:
                return
            answered = True
            places = self._places()
            latest = await self._admin.committed(self._group, places, stable=False)
            named = {read_positions(offset).committer for offset in latest.values() if offset}
            for committer in [*sorted(named - {self._own, ""}), self._own]:
                if answered and committer == self._own:
                    self._ended_at = trio.current_time()
                logger.warning(
                    "a transaction that nobody has ended blocks this group: what %s may have left "
                    "open is aborted once more, in all of the app's topics", committer,
                )  # fmt: skip
                try:
                    await self._abort_again(committer, places)
                except BrokerUnavailable as error:
                    logger.warning("%s", error)
                    answered = False

    async def _abort_again(self, committer: str, places: Sequence[TopicPartition]) -> bool:
        groups = (self._group, committer)  # the second one holds the marks of its commits
        try:
            await self._admin.fence(committer, groups=groups, places=places)
        except BrokerUnavailable:
            raise
        except TransportError as error:  # another worker may be at it
            logger.warning("%s", error)
            return False
        return True

    def _places(self) -> list[TopicPartition]:
        return [
            TopicPartition(name, number)
            for name, info in self._topics.items()
            for number in range(info.partitions)
        ]


def _some(places: Sequence[TopicPartition]) -> str:
    more = len(places) - 3
    named = ", ".join(f"{at.topic} [{at.partition}]" for at in places[:3])
    return f"{named} and {more} more" if more > 0 else named
