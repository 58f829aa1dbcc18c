"""What one commit holds: taken without an await, so that each event is in it or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from msgspec import structs

from trickle.calls import Call
from trickle.context import Effect
from trickle.exceptions import CommitFailed
from trickle.ledger import Ranges
from trickle.positions import Positions
from trickle.streams import ConcurrentLane, Lane
from trickle.tables import Changes, Shard
from trickle.transport.contract import CommittedOffset, Mark
from trickle.types import TopicPartition

__all__ = ["Enrolled", "Snapshot", "changed_shards", "settled_positions"]


class Enrolled(Protocol):
    """A partition number's scope, as far as commits go.

    Attributes:
        number: the partition number.
        partitions: what is assigned of it.
        lanes: those that are open.
        changelogs: the shards by the changelog topic's name.
    """

    @property
    def number(self) -> int: ...
    @property
    def partitions(self) -> Iterable[TopicPartition]: ...
    @property
    def lanes(self) -> Iterable[Lane]: ...
    @property
    def changelogs(self) -> Mapping[str, Shard[Any, Any]]: ...


Dirty: TypeAlias = tuple[TopicPartition, Shard[Any, Any], Changes]
"""A changelog's partition, whose it is, and what the commit adds to it."""


class Snapshot(NamedTuple):
    """What one commit holds."""

    plan: dict[TopicPartition, Positions]
    dirty: list[Dirty]
    events: int
    size: int
    after: list[Call]
    ticks: list[Effect]
    holder: Lane | None
    mark: Mark | None
    scopes: Sequence[Enrolled] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing has to be committed."""
        return not (self.plan or self.dirty or self.after or self.ticks or self.size)

    def offsets(self) -> dict[TopicPartition, CommittedOffset]:
        """Return what is committed for the partitions."""
        return {at: positions.write() for at, positions in self.plan.items()}

    def note_ends(self, ends: Mapping[TopicPartition, int]) -> None:
        """Add to the plan where the changelogs end, now that the changes are in them.

        Raises:
            CommitFailed: a changelog has more records than this worker has written, so that what
                keys are in it is not known before it is read again.
        """
        odd = False
        for at, shard, changes in self.dirty:
            before, shard.end = shard.end, ends[at]
            strange = ends[at] - before - len(changes)
            odd |= strange < 0  # no end of this changelog's: nobody is told of any
            if strange > 0:
                raise CommitFailed(
                    f"changelog {at.topic!r}, partition {at.partition}, has {strange} records that "
                    "this worker has not written: what a worker that stood still for longer than "
                    "its session had handed to the broker has arrived late; the events since the "
                    "last commit run again", superseded=True,
                )  # fmt: skip
        for scope in self.scopes if not odd else ():
            known: dict[str, int] = {}
            for topic, shard in scope.changelogs.items():
                stored = shard.position.offset if shard.position is not None else 0
                known[shard.table] = ends.get(TopicPartition(topic, scope.number), stored)
            for at in self.plan.keys() & frozenset(scope.partitions if known else ()):
                self.plan[at] = structs.replace(self.plan[at], ends=known)

    def only_ticks(self) -> Snapshot:
        """Return what is kept of it to tell later whether its ticks are there."""
        return self._replace(plan={}, dirty=[], after=[], holder=None, scopes=())


def changed_shards(
    scopes: Iterable[Enrolled],
) -> tuple[list[Dirty], dict[frozenset[TopicPartition], bool]]:
    """Take the shards' settled changes since the last commit.

    Returns:
        The changes; and the partitions beside tables, scope by scope, and whether there are any.
    """
    dirty: list[Dirty] = []
    beside: dict[frozenset[TopicPartition], bool] = {}
    for scope in scopes:
        before = len(dirty)
        for changelog, shard in scope.changelogs.items():
            if (changes := shard.snapshot()) is not None:
                dirty.append((TopicPartition(changelog, scope.number), shard, changes))
        if scope.changelogs:
            beside[frozenset(scope.partitions)] = len(dirty) > before
    return dirty, beside


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
