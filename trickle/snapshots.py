"""What one commit holds: taken without an await, so that each event is in it or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from trickle.calls import Call
from trickle.context import Effect
from trickle.exceptions import CommitFailed
from trickle.ledger import Ranges
from trickle.positions import UNTOLD, Positions, write_end
from trickle.streams import ConcurrentLane, Lane
from trickle.tables import Changes, Shard
from trickle.transport.contract import CommittedOffset, Mark
from trickle.types import TopicPartition

__all__ = ["Enrolled", "Snapshot", "changed_shards", "settled_positions"]


class Enrolled(Protocol):
    """A partition number's scope, as far as commits go.

    Attributes:
        number: the partition number.
        lanes: those that are open.
        changelogs: the shards by the changelog topic's name.
    """

    @property
    def number(self) -> int: ...
    @property
    def lanes(self) -> Iterable[Lane]: ...
    @property
    def changelogs(self) -> Mapping[str, Shard[Any, Any]]: ...


Dirty: TypeAlias = tuple[TopicPartition, Shard[Any, Any], Changes]
"""A changelog's partition, whose it is, and what the commit adds to it."""


class Snapshot(NamedTuple):
    """What one commit holds."""

    plan: Mapping[TopicPartition, Positions]
    dirty: list[Dirty]
    events: int
    size: int
    after: list[Call]
    ticks: list[Effect]
    holder: Lane | None
    mark: Mark | None

    @property
    def empty(self) -> bool:
        """Whether nothing has to be committed."""
        return not (self.plan or self.dirty or self.after or self.ticks or self.size)

    def offsets(self) -> dict[TopicPartition, CommittedOffset]:
        """Return what is committed for the partitions."""
        return {at: positions.write() for at, positions in self.plan.items()}

    def ends(
        self, ends: Mapping[TopicPartition, int], sources: Collection[str]
    ) -> dict[TopicPartition, CommittedOffset]:
        """Return what is committed for the changelogs, now that the changes are in them.

        Args:
            ends: as the broker has told them.
            sources: the offsets of these topics are agents' positions.

        Raises:
            CommitFailed: a changelog has more records than this worker has written, so that what
                keys are in it is not known before it is read again.
        """
        told: dict[TopicPartition, CommittedOffset] = {}
        for at, shard, changes in self.dirty:
            shard.end += len(changes)
            strange = ends[at] - shard.end
            if strange > 0:
                raise CommitFailed(
                    f"changelog {at.topic!r}, partition {at.partition}, has {strange} records that "
                    "this worker has not written: what a worker that stood still for longer than "
                    "its session had handed to the broker has arrived late; the events since the "
                    "last commit run again", superseded=True,
                )  # fmt: skip
            # Fewer than were written: that is no end of this changelog's, so none is told.
            told[at] = UNTOLD if strange else write_end(shard.end, shard.topic_id)
        return {at: end for at, end in told.items() if at.topic not in sources}

    def ends_taken_back(self) -> dict[TopicPartition, CommittedOffset]:
        """Return the same for a transaction, which does not know where it will end."""
        return {at: UNTOLD for at, shard, _ in self.dirty if shard.told}

    def only_ticks(self) -> Snapshot:
        """Return what is kept of it to tell later whether its ticks are there."""
        return self._replace(plan={}, dirty=[], after=[], holder=None)


def changed_shards(scopes: Iterable[Enrolled]) -> list[Dirty]:
    """Take the shards' settled changes since the last commit."""
    return [
        (TopicPartition(changelog, scope.number), shard, changes)
        for scope in scopes
        for changelog, shard in scope.changelogs.items()
        if (changes := shard.snapshot()) is not None
    ]


def settled_positions(
    scopes: Iterable[Enrolled],
) -> tuple[dict[TopicPartition, dict[str, int]], dict[TopicPartition, dict[str, Ranges]]]:
    """Return the lanes' positions, and what lanes with concurrency have settled beyond."""
    settled: dict[TopicPartition, dict[str, int]] = {}
    beyond: dict[TopicPartition, dict[str, Ranges]] = {}
    for scope in scopes:
        for lane in scope.lanes:
            lane.count_settled()
            for topic, position in lane.settled_positions().items():
                at = TopicPartition(topic, scope.number)
                settled.setdefault(at, {})[lane.agent] = position
            if isinstance(lane, ConcurrentLane):
                for topic, ranges in lane.settled_beyond().items():
                    at = TopicPartition(topic, scope.number)
                    beyond.setdefault(at, {})[lane.agent] = ranges
    return settled, beyond
