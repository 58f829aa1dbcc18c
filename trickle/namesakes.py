"""Namesakes: other programs that run with this app's id.

Two programs that share an id share a group, so each of them gets a part of the partitions and its
agents see a part of the records, in silence. What a program is, is a short digest of its agents and
the topics that they read: each commit leaves it in the offsets' metadata. So a look at what others
commit tells whether they are the same program. An upgrade that changes the agents looks the same
while it is under way; so this says what it sees, once, and ends nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping

from trickle.positions import Positions, read_positions
from trickle.transport.contract import Admin
from trickle.types import TopicPartition

__all__ = ["Namesakes", "program_of"]

logger = logging.getLogger("trickle.consumer")


def program_of(agents: Mapping[str, Iterable[str]]) -> str:
    """Return the digest of a program: of its agents' names, and the topics that each reads."""
    lines = [f"{name} < {' '.join(sorted(topics))}" for name, topics in agents.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8]


class Namesakes:
    """Looks for them, again and again.

    A sign counts when two looks in a row see it: one that ended a while ago leaves signs too.

    Args:
        admin: of the broker.
        app_id: the group.
        program: ours.
        topics: what we read, with their partition counts.
    """

    def __init__(self, admin: Admin, app_id: str, program: str, topics: Mapping[str, int]) -> None:
        self._admin = admin
        self._app_id = app_id
        self._program = program
        self._partitions = frozenset(
            TopicPartition(name, number)
            for name, count in topics.items()
            for number in range(count)
        )
        self._topics = topics
        self._before: dict[TopicPartition, Positions] | None = None
        self._foreign: frozenset[str] = frozenset()
        self._told = False

    async def look(
        self,
        held: Collection[TopicPartition],
        members: Mapping[str, Collection[TopicPartition]],
    ) -> None:
        """Look once, and say so where another program is at work.

        Args:
            held: the partitions that are ours now.
            members: who is in the group, and what each of them is assigned.
        """
        if self._told:
            return
        foreign = frozenset(
            place.topic
            for assigned in members.values()
            for place in assigned
            if place.topic not in self._topics
        )
        for topic in sorted(foreign & self._foreign):
            self._tell(f"reads topic {topic!r}, which this one does not")
        self._foreign = foreign
        found = await self._admin.committed(
            self._app_id, self._partitions - set(held), stable=False
        )
        now = {place: read_positions(offset) for place, offset in found.items() if offset}
        if self._before is not None:
            for place, positions in now.items():
                if positions.program in {"", self._program}:
                    continue
                if positions != self._before.get(place, positions):
                    self._tell(
                        f"handles topic {place.topic!r}, partition {place.partition}, with other "
                        "agents than this one's"
                    )
        self._before = now

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            logger.error(
                "another program runs with the app id %r as well: it %s. They share the "
                "partitions, so each handles only a part of the records; give one of them an id of "
                "its own, App('…'), unless this is an upgrade under way", self._app_id, what,
            )  # fmt: skip
