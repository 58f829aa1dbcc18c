"""Scope: one assigned partition number of the topics of one partition count.

With range assignment, topics of equal count are assigned alike, so a scope's topics come and go
together, its tables are co-partitioned with them, and its shards share one store environment.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trickle.streams import Lane
from trickle.tables import Shard, Table
from trickle.types import TopicPartition

__all__ = ["Scope", "changelogs", "whole_scopes"]

logger = logging.getLogger("trickle.scope")


class Scope:
    """One assigned partition number of the topics of one partition count.

    Attributes:
        count: the topics' partition count.
        number: the partition number.
        partitions: what is assigned of it.
        lanes: one for each agent that reads it, once it is open.
        shards: one for each table of this count.
        changelogs: the same, by the changelog topic's name.
    """

    def __init__(self, count: int, number: int, partitions: frozenset[TopicPartition]) -> None:
        self.count = count
        self.number = number
        self.partitions = partitions
        self.lanes: list[Lane] = []
        self.shards: dict[Table[Any, Any], Shard[Any, Any]] = {}
        self.changelogs: dict[str, Shard[Any, Any]] = {}


def changelogs(
    scopes: Iterable[Scope], tables: Mapping[int, Sequence[Table[Any, Any]]]
) -> set[TopicPartition]:
    """Return the changelogs' partitions of some scopes.

    Args:
        tables: by their partition count.
    """
    return {
        TopicPartition(table.changelog, scope.number)
        for scope in scopes
        for table in tables.get(scope.count, ())
    }


def whole_scopes(
    partitions: Iterable[TopicPartition],
    counts: Mapping[str, int],
    tables: Mapping[int, Sequence[Table[Any, Any]]],
) -> list[Scope]:
    """Return the scopes of what is assigned, without those that another worker has a part of.

    Range assignment deals each topic out over the members that want it. While an upgrade adds one,
    old members and new ones want different topics: both would write the shards of one number, and
    what one of them had written would be lost.

    Args:
        partitions: what is assigned.
        counts: the partition count of each topic that is consumed.
        tables: by their partition count; what has none may come apart.
    """
    groups: dict[tuple[int, int], set[TopicPartition]] = defaultdict(set)
    for partition in partitions:
        groups[counts[partition.topic], partition.partition].add(partition)
    whole: list[Scope] = []
    for (count, number), group in sorted(groups.items()):
        missing = {topic for topic, of in counts.items() if of == count} - {
            at.topic for at in group
        }
        if missing and number < count and tables.get(count):
            logger.warning(
                "partition %d of %s waits: that of %s, of the same tables, is another worker's, as "
                "while an upgrade adds a topic. It goes on when all workers read the same topics",
                number, ", ".join(sorted(at.topic for at in group)), ", ".join(sorted(missing)),
            )  # fmt: skip
        else:
            whole.append(Scope(count, number, frozenset(group)))
    return whole
