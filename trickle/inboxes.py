"""Inboxes: what has been fetched and waits for its lanes.

The conductor opens and closes them with its lanes, the fetcher fills them. What waits is counted
here alone, and so is which partitions are paused because one lane is stuck while others starve:
both end with the assignment. A batch that nobody waits for is dropped: it was fetched before its
lanes were closed, and will be fetched again from where they stand when they are opened.
"""

from __future__ import annotations

import trio

from trickle.sensors import Sensor
from trickle.streams import Lane
from trickle.transport.batches import Batch
from trickle.types import TopicPartition

__all__ = ["Inboxes"]


class Inboxes:
    """The lanes by what they read, and how much waits for them.

    Args:
        sensor: told of what arrives.

    Attributes:
        waiting_bytes: of all batches that no lane has taken yet; shared ones count for each.
        paused: partitions that are not fetched, until their lanes have caught up.
    """

    def __init__(self, sensor: Sensor) -> None:
        self.waiting_bytes = 0
        self.paused: frozenset[TopicPartition] = frozenset()
        self._sensor = sensor
        self._readers: dict[TopicPartition, list[Lane]] = {}
        self._takers = trio.lowlevel.ParkingLot()

    def open(self, partition: TopicPartition, lane: Lane) -> None:
        """From now on the lane gets what arrives from the partition."""
        self._readers.setdefault(partition, []).append(lane)

    def close(self) -> None:
        """All lanes end: what arrives is for nobody until others are opened."""
        self._readers.clear()
        self.paused = frozenset()
        self._takers.unpark_all()

    def deliver(self, batch: Batch) -> None:
        """Put a batch into the inboxes of the lanes that want it."""
        for lane in self._readers.get(TopicPartition(batch.topic, batch.partition), ()):
            before = lane.inbox_bytes
            lane.deliver(batch)
            self.waiting_bytes += lane.inbox_bytes - before
        self._sensor.records_in(batch.topic, batch.partition, len(batch), batch.next_offset)

    def taken(self, size: int) -> None:
        """A lane has taken so many bytes out, or put them back where it is less than 0."""
        self.waiting_bytes -= size
        self._takers.unpark_all()

    async def wait_taken(self) -> None:
        """Wait until a lane takes a batch out of its inbox."""
        await self._takers.park()

    def pressing_bytes(self) -> int:
        """Return how much waits but for what is paused: a stuck lane holds up nobody else."""
        if not self.paused:
            return self.waiting_bytes
        lanes = {lane for at in self.paused for lane in self._readers.get(at, ())}
        return self.waiting_bytes - sum(lane.inbox_bytes for lane in lanes)

    def starving(self) -> bool:
        """Tell whether a lane has nothing to do while others have."""
        return any(lane.idle for lanes in self._readers.values() for lane in lanes)

    def fullest(self) -> frozenset[TopicPartition]:
        """Return the partitions of the lanes whose inboxes hold more than their share."""
        count = sum(len(lanes) for lanes in self._readers.values())
        share = self.waiting_bytes / (2 * max(1, count))
        return frozenset(
            partition
            for partition, lanes in self._readers.items()
            if any(lane.inbox_bytes > share for lane in lanes)
        )

    def below(self, size: int) -> frozenset[TopicPartition]:
        """Return those of the paused partitions that have less than so many bytes waiting."""
        return frozenset(
            partition
            for partition in self.paused
            if all(lane.inbox_bytes < size for lane in self._readers.get(partition, ()))
        )
