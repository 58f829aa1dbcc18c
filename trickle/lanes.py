"""Lanes: which kind of lane an agent needs, and what one with concurrency starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from trickle.agents import Agent
from trickle.positions import Positions
from trickle.streams import ConcurrentLane, Lane
from trickle.tables import KeyedShard
from trickle.types import TopicPartition

__all__ = ["lanes_of"]


def lanes_of(
    agent: Agent[Any, Any],
    positions: Mapping[TopicPartition, Positions],
    readers: Mapping[TopicPartition, Sequence[Agent[Any, Any]]],
    *,
    committer: str,
    failed: Callable[[Lane, Exception], None],
) -> Callable[..., Lane]:
    """Return what makes an agent's lane.

    One that left ranges beyond its position, and has no concurrency any more, still needs the
    ledger: nothing of what has settled may run again.

    Args:
        agent: whose lane it is.
        positions: where its partitions stand.
        readers: all agents that read them.
        committer: names this worker in the offsets' metadata.
        failed: told of an error that ends a strand of the lane, and with it the lane.
    """
    if agent.concurrency == 1 and not any(p.beyond.get(agent.name) for p in positions.values()):
        return Lane
    rooms: dict[str, int] = {}
    for at, position in positions.items():
        beyond = position.beyond.keys() | {agent.name}
        rooms[at.topic] = position.room(
            [reader.name for reader in readers[at]],
            [r.name for r in readers[at] if r.concurrency > 1 or r.name in beyond],
            committer,
        )
    return partial(
        ConcurrentLane,
        concurrency=agent.concurrency,
        ordering=agent.ordering,
        ledgers={at.topic: position.ledger(agent.name) for at, position in positions.items()},
        rooms=rooms,
        # Weak, or the shards of a lane that has ended would wait for the collector.
        view=partial(KeyedShard, writable=agent.ordering.tables, holders=WeakValueDictionary()),
        failed=failed,
    )
