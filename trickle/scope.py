"""Scope: one assigned partition number of the topics of one partition count.

With range assignment, topics of equal count are assigned alike, so a scope's topics come and go
together, its tables are co-partitioned with them, and its shards share one store environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trickle.streams import Lane
from trickle.tables import Shard, Table
from trickle.types import TopicPartition

__all__ = ["Scope", "changelogs"]


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
