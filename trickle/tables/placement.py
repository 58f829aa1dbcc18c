"""The sampled check that keys are written to the partition that they belong to.

An agent writes the shard of its own partition, whatever the key. A key whose bytes choose another
partition is the classic trap: the same key is then counted in several shards. The check looks at
the first events that write, later at the first one behind each commit, and warns once for each
table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice

from trickle.context import Turn
from trickle.types import Partitioner

__all__ = ["Placement"]

logger = logging.getLogger("trickle.tables")

_ALWAYS = 100  # so many events that write are all looked at
_KEYS_MAX = 10  # of one event


class Placement:
    """Whether what is written belongs into one shard.

    Args:
        table: its name.
        partition: the shard's.
        count: the number of partitions.
        partitioner: from a key's bytes and the count to the partition that they choose.
        warned: the tables that have been warned of; shared, and added to.
    """

    __slots__ = ("_count", "_looks", "_partition", "_partitioner", "_table", "_warned")

    def __init__(
        self, table: str, partition: int, count: int, partitioner: Partitioner, warned: set[str]
    ) -> None:
        self._table = table
        self._partition = partition
        self._count = count
        self._partitioner = partitioner
        self._warned = warned
        self._looks = 0

    def check(self, turn: Turn, keys: Iterable[bytes]) -> bool:
        """Look at the keys that an event has written; tell whether to look at the next one, too."""
        if self._table in self._warned:
            return False
        self._looks += 1
        own = turn.key_bytes()
        for key in islice(keys, _KEYS_MAX):
            if key == own:
                continue
            belongs = self._partitioner(key, self._count)
            if belongs != self._partition:
                self._warned.add(self._table)
                logger.warning(
                    "table %r: agent %r writes key %s in partition %d, but the key belongs to "
                    "partition %d, where another agent's task would look for it: regroup the "
                    "source by that key (topic.group_by(…, name=…)) so that each key has one home",
                    self._table, turn.agent, _shown(key), self._partition, belongs,
                )  # fmt: skip
                return False
        return self._looks < _ALWAYS


def _shown(key: bytes) -> str:
    try:
        text = repr(key.decode())
    except UnicodeDecodeError:
        text = repr(key)
    return text if len(text) <= 60 else text[:57] + "…"
