"""Fetcher: takes batches from the consumer's client and passes them on, within bounds.

Two kinds of back-pressure. As long as all lanes keep pace with one another, the fetcher simply
does not fetch while too much waits in their inboxes; the driver holds its own backlog within
bounds, and goes on polling. Where one lane is stuck while others starve behind it, the stuck
one's partitions are paused: late, for a pause drops what the client had read ahead, and resumed
early enough, at a lower mark.
"""

from __future__ import annotations

from typing import Any, Protocol

import trio

from trickle.consumer import Consumer
from trickle.exceptions import OffsetOutOfRange
from trickle.service import Service
from trickle.transport.contract import Batch
from trickle.types import TopicPartition

__all__ = ["Fetcher", "Inboxes"]

PATIENCE_S = 0.2  # how long a full inbox may hold up the others before its partitions are paused


class Inboxes(Protocol):
    """Where batches go: the conductor, as the fetcher sees it."""

    def deliver(self, batch: Batch) -> None:
        """Put a batch into the inboxes of the lanes that want it."""
        ...

    async def out_of_range(self, error: OffsetOutOfRange) -> None:
        """The topic does not hold a position any more: begin again, by the policy for that.

        Raises:
            OffsetOutOfRange: the policy is to stop.
        """
        ...

    def buffered_bytes(self) -> int:
        """Return how much waits in all inboxes."""
        ...

    async def wait_taken(self) -> None:
        """Wait until a lane takes a batch out of its inbox."""
        ...

    def starving(self) -> bool:
        """Tell whether a lane has nothing to do while others have."""
        ...

    def fullest(self) -> frozenset[TopicPartition]:
        """Return the partitions of the lanes whose inboxes hold more than their share."""
        ...

    def below(self, partitions: frozenset[TopicPartition], size: int) -> frozenset[TopicPartition]:
        """Return those of the partitions that have less than so many bytes waiting."""
        ...


class Fetcher(Service):
    """Passes batches from the client on to the lanes.

    Args:
        consumer: the group's member.
        inboxes: the lanes.
        buffer_bytes: how much may wait in all inboxes together.
    """

    name = "Fetcher"

    def __init__(self, consumer: Consumer, inboxes: Inboxes, buffer_bytes: int) -> None:
        super().__init__()
        self._consumer = consumer
        self._inboxes = inboxes
        self._high = buffer_bytes
        self._low = buffer_bytes // 4
        self._paused: frozenset[TopicPartition] = frozenset()
        self._stuck = trio.Event()

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        self.nursery.start_soon(self._resume_paused)
        task_status.started()
        inboxes = self._inboxes
        while True:
            try:
                batches = await self._consumer.client.fetch()
            except OffsetOutOfRange as error:
                await inboxes.out_of_range(error)
                continue
            for batch in batches:
                inboxes.deliver(batch)
            if inboxes.buffered_bytes() > self._high:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        inboxes = self._inboxes
        while inboxes.buffered_bytes() > self._low:
            with trio.move_on_after(PATIENCE_S) as patience:
                await inboxes.wait_taken()
            if patience.cancelled_caught and inboxes.starving():
                stuck = inboxes.fullest() - self._paused
                self._consumer.client.pause(stuck)
                self._paused |= stuck
                self._stuck.set()
                return  # what still arrives is for the others

    async def _resume_paused(self) -> None:
        while True:
            await self._stuck.wait()
            await self._inboxes.wait_taken()
            ready = self._inboxes.below(self._paused, self._low)
            if ready:
                self._consumer.client.resume(ready)
                self._paused -= ready
            if not self._paused:
                self._stuck = trio.Event()

    def forget(self) -> None:
        """The assignment has changed: nothing is paused any more."""
        self._paused = frozenset()
        self._stuck = trio.Event()
