"""Whether a commit that got no answer has happened.

What a commit moves shows in the offsets of the app's group, until others commit there. Where that
is not enough, for what timers sent and for calls that wait, a commit bears a mark: an offset in a
group that is named like its transactional id, so that nobody else writes there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
        topic: one that the worker reads; empty where it reads none.
    """

    def __init__(self, admin: Admin, *, group: str, transactional_id: str, topic: str = "") -> None:
        self._admin = admin
        self._group = group
        self._id = transactional_id
        self._topic = topic

    def mark(self, topic: str) -> Mark | None:
        """Return a mark for one commit.

        Args:
            topic: one that exists, for a worker that reads none.
        """
        if not self._id:
            return None
        at = TopicPartition(self._topic or topic, 0)
        return Mark(self._id, at, CommittedOffset(BEHIND_ALL, uuid4().hex))

    def stop_marking(self) -> None:
        """The broker does not allow marks: go on without."""
        logger.warning(
            "what timers have sent with a commit that gets no answer is sent again from now on, "
            "though it may be there"
        )
        self._id = ""

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
            # Another worker's, who holds the partitions by now, or one that the broker forgot
            latest = await self._admin.committed(group, offsets.keys(), stable=False)
        return any(latest.get(at) == offset for at, offset in offsets.items())
