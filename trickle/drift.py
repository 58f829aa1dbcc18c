"""Topics that change under an app that runs: seen, and named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from trickle.exceptions import BrokerUnavailable, TopicError, TransportError
from trickle.transport.contract import Admin, TopicInfo
from trickle.transport.looks import find_topics

__all__ = ["Drift"]

logger = logging.getLogger("trickle.consumer")


class Drift:
    """Compares topics with what they were when the lanes' layout was made.

    A changelog that has grown does no harm before the next start, which names it. A topic that is
    sent to alone ends nothing here: where something is sent, the commit fails.

    Args:
        admin: asks the broker.
        before: the topics as they were.
        consumed: those of them that are read.
        changelogs: those of tables.
        missing: gets those others that are gone.
    """

    def __init__(
        self,
        admin: Admin,
        before: Mapping[str, TopicInfo],
        consumed: Collection[str],
        changelogs: Collection[str],
        missing: set[str],
    ) -> None:
        self._admin = admin
        self._before = before
        self._consumed = consumed
        self._changelogs = changelogs
        self._missing = missing
        self._others: set[str] = set(before.keys() - {*consumed, *changelogs})

    async def look(self) -> None:
        """Look once.

        Raises:
            TopicError: one that is consumed, or a changelog, is gone, was made anew, or has grown.
            BrokerUnavailable: no answer in time.
        """
        found = await find_topics(self._admin, {*self._consumed, *self._changelogs})
        for name in sorted(self._consumed):
            _check_consumed(self._before[name], found.get(name))
        for name in sorted(self._changelogs):
            _check_changelog(self._before[name], found.get(name))
        await self._look_at_others()

    async def _look_at_others(self) -> None:
        wanted = self._others - self._missing
        try:
            found = await find_topics(self._admin, wanted)
            if self._missing:
                back = await self._admin.topics(sorted(self._missing))
                self._missing.difference_update(back)
        except BrokerUnavailable:
            raise
        except TransportError as error:  # not allowed, most likely
            logger.info("topics that are sent to are not looked at any more: %s", error)
            self._others = set()
            self._missing.clear()  # what is back by then would be blamed for ever
            return
        for name in sorted(wanted - found.keys()):
            self._missing.add(name)
            logger.warning(
                "topic %r was deleted while the app runs: what is sent there fails", name
            )


def _check_consumed(before: TopicInfo, now: TopicInfo | None) -> None:
    name = before.name
    if now is None:
        raise TopicError(
            f"topic {name!r} was deleted while it was read: nothing of the app's state "
            "was; create the topic again, or take it out of the app"
        )
    if now.topic_id != before.topic_id:
        raise TopicError(
            f"topic {name!r} was deleted and created again while it was read: its offsets "
            "mean other records now; out_of_range= says where to begin in the new one"
        )
    if now.partitions != before.partitions:
        raise TopicError(
            f"topic {name!r} has grown from {before.partitions} to {now.partitions} "
            "partitions: start the workers again, so that none of them is left out"
        )


def _check_changelog(before: TopicInfo, now: TopicInfo | None) -> None:
    if now is not None and now.topic_id == before.topic_id:
        return
    what = "deleted" if now is None else "deleted and created again"
    raise TopicError(
        f"changelog {before.name!r} was {what} while the app ran: what its table holds is now "
        "in the data directories of the workers alone; keep a copy of them before the next "
        "start, which begins the table with what the changelog holds by then"
    )
