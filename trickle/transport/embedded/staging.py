"""Records on their way into a transaction: columns that become chunks as they fill.

They are kept in memory until the commit (as LMDB keeps the pages of a transaction), so
:meth:`Staging.add` never has to wait for one, which for a single event with many effects could not
come. Beyond :data:`TRANSACTION_BYTES` a record is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import repeat

from trickle.exceptions import RecordRefused
from trickle.transport.embedded.format import CHUNK_BYTES, CHUNK_RECORDS, Columns, Topic, pack
from trickle.types import Headers, TopicPartition

__all__ = ["RECORD_OVERHEAD", "Lane", "Staging"]

TRANSACTION_BYTES = 1 << 30
"""The committer ends a transaction at a hundredth of this; a single event may go further."""

RECORD_OVERHEAD = 16
"""What a record without key and value counts for, so that empty ones are bounded too."""


class Lane:
    """The staged records of one partition.

    Attributes:
        chunks: those that are closed, each with its number of records.
        count: all of them, the closed chunks' included: the ordinal of the next one.
        watched: the position behind the last watched one, relative to the first; -1 without one.
    """

    __slots__ = (
        "chunks", "count", "headers", "keys", "partition", "place", "size", "stamps", "topic",
        "values", "watched",
    )  # fmt: skip

    def __init__(self, topic: Topic, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.place = TopicPartition(topic.name, partition)
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] = []
        self.stamps: list[int] = []
        self.headers: list[Headers] | None = None
        self.size = 0
        self.count = 0
        self.watched = -1
        self.chunks: list[tuple[bytes, int]] = []


class Staging:
    """What was produced since the last commit."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], Lane] = {}
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def lane(self, topic: Topic, partition: int) -> Lane:
        """Return a partition's lane."""
        lane = self._lanes.get((topic.number, partition))
        if lane is None:
            lane = self._lanes[topic.number, partition] = Lane(topic, partition)
        return lane

    def lanes(self) -> Iterator[Lane]:
        """Yield the lanes with records."""
        return iter(self._lanes.values())

    def add(
        self,
        lane: Lane,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int,
        size: int,
    ) -> None:
        """Stage a record of so many bytes.

        Raises:
            RecordRefused: the transaction is too large.
        """
        if self.size > TRANSACTION_BYTES:
            raise RecordRefused(
                f"topic {lane.topic.name!r}: one transaction cannot hold more than "
                f"{TRANSACTION_BYTES >> 30} GiB: commit more often, or send less for one event",
                topic=lane.topic.name,
                partition=lane.partition,
            )
        if headers:
            if lane.headers is None:
                lane.headers = list(repeat((), len(lane.values)))
            lane.headers.append(headers)
        elif lane.headers is not None:
            lane.headers.append(())
        lane.values.append(value)
        lane.keys.append(key)
        lane.stamps.append(timestamp_ms)
        lane.count += 1
        self.size += size
        lane.size += size
        if lane.size >= CHUNK_BYTES or len(lane.values) >= CHUNK_RECORDS:
            self._close_chunk(lane)

    def _close_chunk(self, lane: Lane) -> None:
        count = len(lane.values)
        columns = Columns(lane.values, lane.keys, lane.stamps, lane.headers)
        data = pack(columns, count, int(time.time() * 1000))
        lane.values, lane.keys, lane.stamps, lane.headers, lane.size = [], [], [], None, 0
        lane.chunks.append((data, count))

    def close_chunks(self) -> None:
        """Close what is open, before the staging is written."""
        for lane in self._lanes.values():
            if lane.values:
                self._close_chunk(lane)
