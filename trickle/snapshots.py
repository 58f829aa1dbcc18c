"""What one commit holds: taken without an await, so that each event is in it or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from trickle.calls import Call
from trickle.context import Effect
from trickle.ledger import Ranges
from trickle.positions import Positions
from trickle.streams import ConcurrentLane, Lane
from trickle.tables import Changes, Shard
from trickle.transport.contract import Mark
from trickle.types import TopicPartition

__all__ = ["Enrolled", "Snapshot", "settled_positions"]


class Enrolled(Protocol):
    """A partition number's scope, as far as commits go.

    Attributes:
        number: the partition number.
        lanes: those that are open.
        shards: by the changelog topic's name.
    """

    @property
    def number(self) -> int: ...
    @property
    def lanes(self) -> Iterable[Lane]: ...
    @property
    def changelogs(self) -> Mapping[str, Shard[Any, Any]]: ...


class Snapshot(NamedTuple):
    """What one commit holds."""

    plan: Mapping[TopicPartition, Positions]
    dirty: list[tuple[TopicPartition, Shard[Any, Any], Changes]]
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

    def only_ticks(self) -> Snapshot:
        """Return what is kept of it to tell later whether its ticks are there."""
        return self._replace(plan={}, dirty=[], after=[], holder=None)


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
