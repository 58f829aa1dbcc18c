"""The group coordinator: who is in a group, and who holds what.

The rebalance is eager, as Kafka's classic protocol has it:

1. Something changes: a member joins, leaves or is given up, or somebody asks for it.
   The group is now *preparing*. The generation stays, so commits for it still succeed.
2. Each member gives its whole assignment back (its listener's ``revoked`` is awaited), and then
   *rejoins*. A member that has not done so within ``rebalance_timeout`` is given up.
3. When all have rejoined, the next generation begins: the range assignment is computed, and each
   member is told. From here on a commit that carries an older generation is refused.

Nothing here waits or calls anybody: a change *wakes* members, whose own tasks look at the group
and do their part (see :mod:`.consumer`). Time is an argument, deadlines are what members wait for.

Stricter than Kafka in one point: what a member gave back it cannot commit for any more, although
the others may still be preparing. Kafka accepts that, so a mistake there shows only now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from trickle.exceptions import CommitFailed
from trickle.transport.contract import CommittedOffset
from trickle.types import TopicPartition
from trickle.utils.partitioning import range_assignment

__all__ = ["Group", "GroupMember", "MemoryMember"]


class MemoryMember(NamedTuple):
    """A membership at one moment, as a commit carries it."""

    group: str
    member_id: str
    generation: int


class GroupMember:
    """One member, as the coordinator knows it.

    Attributes:
        assignment: what it holds, and may commit for.
        rejoined: it has given back what it held, and waits for the next generation.
        expelled: the group has given it up.
        dies_at: when a member whose client is gone is given up; infinite while it lives.
    """

    __slots__ = (
        "assignment",
        "dies_at",
        "expelled",
        "generation",
        "member_id",
        "rebalance_timeout",
        "rejoined",
        "topics",
        "wake",
    )

    def __init__(
        self,
        member_id: str,
        topics: frozenset[str],
        rebalance_timeout: float,
        wake: Callable[[], None],
    ) -> None:
        self.member_id = member_id
        self.topics = topics
        self.rebalance_timeout = rebalance_timeout
        self.wake = wake
        self.assignment: frozenset[TopicPartition] = frozenset()
        self.generation = 0
        self.rejoined = True
        self.expelled = False
        self.dies_at = math.inf


class Group:
    """One consumer group.

    Args:
        name: the group's id.
        counts: tells the partition counts of all topics that exist.

    Attributes:
        generation: of the assignment that holds now.
        preparing: a rebalance is under way.
        offsets: what is committed.
        pending: for each partition how many commits that may change it are under way.
    """

    def __init__(self, name: str, counts: Callable[[], Mapping[str, int]]) -> None:
        self.name = name
        self.generation = 0
        self.preparing = False
        self.members: dict[str, GroupMember] = {}
        self.offsets: dict[TopicPartition, CommittedOffset] = {}
        self.pending: dict[TopicPartition, int] = {}
        self._counts = counts
        self._deadline = math.inf
        self._joined = 0

    # Membership

    def join(
        self,
        topics: Collection[str],
        rebalance_timeout: float,
        wake: Callable[[], None],
        now: float,
    ) -> GroupMember:
        """Add a member: a rebalance begins."""
        self._joined += 1
        # Members are ordered by name, and so by when they joined: it makes runs repeatable.
        member_id = f"{self.name}-{self._joined:06}"
        member = GroupMember(member_id, frozenset(topics), rebalance_timeout, wake)
        self.members[member_id] = member
        self.rebalance(now)
        member.rejoined = True
        self._complete()
        return member

    def leave(self, member: GroupMember, now: float) -> None:
        """Remove a member, if it is still one: what it held is given to the others."""
        if self.members.pop(member.member_id, None) is None:
            return
        member.expelled = True
        member.assignment = frozenset()
        member.wake()
        self.rebalance(now)
        self._complete()

    def rejoin(self, member: GroupMember) -> None:
        """A member has given back what it held."""
        member.assignment = frozenset()
        member.rejoined = True
        self._complete()

    def rebalance(self, now: float) -> None:
        """Begin a rebalance, unless one is under way."""
        if self.preparing or not self.members:
            return
        self.preparing = True
        members = self.members.values()
        self._deadline = now + max(member.rebalance_timeout for member in members)
        for member in members:
            member.rejoined = False
        self._wake_all()

    def _complete(self) -> None:
        if not self.members:
            self.preparing = False
        if not self.preparing or not all(member.rejoined for member in self.members.values()):
            return
        self.preparing = False
        self.generation += 1
        members = self.members.values()
        assigned = range_assignment({m.member_id: m.topics for m in members}, self._counts())
        for member in members:
            pairs = assigned[member.member_id]
            member.assignment = frozenset(TopicPartition(*pair) for pair in pairs)
            member.generation = self.generation
        self._wake_all()

    def _wake_all(self) -> None:
        for member in tuple(self.members.values()):
            member.wake()

    # Time

    def next_expiry(self) -> float:
        """Return when somebody has to call :meth:`expire`; infinite if nobody has to."""
        deaths = min((member.dies_at for member in self.members.values()), default=math.inf)
        return min(deaths, self._deadline) if self.preparing else deaths

    def expire(self, now: float) -> None:
        """Give up the members whose session, or whose time to rejoin, has run out."""
        late = self.preparing and now >= self._deadline
        for member in tuple(self.members.values()):
            if now >= member.dies_at or (late and not member.rejoined):
                self.leave(member, now)

    # Commits

    def check(self, member: MemoryMember | None, offsets: Collection[TopicPartition]) -> None:
        """See whether a member may commit for partitions; None may, as on Kafka.

        Offsets of topics that the group does not share out are any member's.

        Raises:
            CommitFailed: it is no member any more, or not of this generation, or the partition is
                another's.
        """
        if member is None:
            return
        known = self.members.get(member.member_id)
        if known is None or member.group != self.name or member.generation != known.generation:
            raise CommitFailed(
                f"the commit for group {self.name!r} is refused: it carries generation "
                f"{member.generation} of member {member.member_id!r}, which is past; "
                "the partitions belong to others by now, and their events run again there",
                superseded=True,
            )
        shared = {topic for one in self.members.values() for topic in one.topics}
        foreign = [at for at in offsets if at.topic in shared and at not in known.assignment]
        if foreign:
            topic, partition = min(foreign)
            raise CommitFailed(
                f"the commit for group {self.name!r} is refused: member {member.member_id!r} "
                f"does not hold partition {partition} of topic {topic!r} (any more)",
                superseded=True,
            )
