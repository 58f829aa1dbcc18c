"""Whether a commit that got no answer has happened.

What a commit moves shows in the offsets of the app's group, until others commit there. Where that
is not enough, for what timers sent and for calls that wait, a commit bears a mark: an offset in a
group that is named like its transactional id, so that nobody else writes there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from uuid import uuid4

from trickle.exceptions import BrokerUnavailable
from trickle.snapshots import Snapshot
from trickle.transport.contract import Admin, CommittedOffset, Mark
from trickle.types import TopicPartition

__all__ = ["Outcomes"]

logger = logging.getLogger("trickle.commit")

BEHIND_ALL = 1 << 62
"""A mark's offset: to what watches the lag of groups, there is none."""


class Outcomes:
    """Marks commits, and learns what became of them.

    Args:
        admin: reads committed offsets.
        group: the app's.
        transactional_id: the worker's; without one nothing is marked.
        topic: one that exists, best of those that the worker reads; without one likewise.
    """

    def __init__(self, admin: Admin, *, group: str, transactional_id: str, topic: str) -> None:
        self._admin = admin
        self._group = group
        self._id = transactional_id
        self._at = TopicPartition(topic, 0)
        self._known = not (transactional_id and topic)
        self._allowed = False

    async def learn(self, ask: Callable[[Mark], Awaitable[bool]]) -> None:
        """Learn whether the broker allows marks, unless that is known.

        Until then nothing is marked.
        """
        if self._known:
            return
        self._allowed = await ask(self._new())
        self._known = True
        if not self._allowed:
            logger.warning(
                "commits cannot be marked: what timers have sent with one that gets no answer is "
                "sent again, though it may be there; allow this user to read group %r and topic %r",
                self._id, self._at.topic,
            )  # fmt: skip

    def mark(self) -> Mark | None:
        """Return a mark for one commit, where commits can be marked."""
        return self._new() if self._allowed else None

    def _new(self) -> Mark:
        return Mark(self._id, self._at, CommittedOffset(BEHIND_ALL, uuid4().hex))

    async def happened(self, commit: Snapshot) -> bool:
        """Tell whether a commit has happened; it is over by now.

        Each plan differs from what was committed before it, and only its own commit writes it.
        Without a mark, where others have committed all of its partitions since, nobody can tell,
        and it counts as not happened.

        Raises:
            BrokerUnavailable: no answer in time; it may be asked again.
        """
        if commit.mark is not None:
            return await self._any(commit.mark.group, {commit.mark.at: commit.mark.offset})
        return await self._any(
            self._group, {at: positions.write() for at, positions in commit.plan.items()}
        )

    async def _any(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> bool:
        """Tell whether any of these is what is committed."""
        try:
            latest = await self._admin.committed(group, offsets.keys(), stable=True)
        except BrokerUnavailable as error:
            if not error.pending:
                raise
            # One that the broker forgot, or of another worker, who holds the partitions by now
            latest = await self._admin.committed(group, offsets.keys(), stable=False)
        return any(latest.get(at) == offset for at, offset in offsets.items())
