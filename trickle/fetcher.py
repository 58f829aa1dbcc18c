"""Fetcher: takes batches from the consumer's client and passes them on, within bounds.

Two kinds of back-pressure. As long as all lanes keep pace with one another, the fetcher simply
does not fetch while too much waits in their inboxes; the driver holds its own backlog within
bounds, and goes on polling. Where one lane is stuck while others starve behind it, the stuck
one's partitions are paused: late, for a pause drops what the client had read ahead, and resumed
early enough, at a lower mark.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trickle.consumer import Consumer
from trickle.exceptions import OffsetOutOfRange
from trickle.inboxes import Inboxes
from trickle.service import Service

__all__ = ["Fetcher"]

PATIENCE_S = 0.2  # how long a full inbox may hold up the others before its partitions are paused


class Fetcher(Service):
    """Passes batches from the client on to the lanes.

    Args:
        consumer: the group's member.
        inboxes: where the lanes get their records from.
        out_of_range: called where the topic does not hold a position any more; it begins again by
            the policy for that, or raises where the policy is to stop.
        buffer_bytes: how much may wait in all inboxes together.
    """

    name = "Fetcher"

    def __init__(
        self,
        consumer: Consumer,
        inboxes: Inboxes,
        out_of_range: Callable[[OffsetOutOfRange], Awaitable[None]],
        buffer_bytes: int,
    ) -> None:
        super().__init__()
        self._consumer = consumer
        self._inboxes = inboxes
        self._out_of_range = out_of_range
        self._high = buffer_bytes
        self._low = buffer_bytes // 4
        self._stuck = trio.Event()

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        self.nursery.start_soon(self._resume_paused)
        task_status.started()
        inboxes = self._inboxes
        while True:
            try:
                batches = await self._consumer.client.fetch()
            except OffsetOutOfRange as error:
                await self._out_of_range(error)
                continue
            for batch in batches:
                inboxes.deliver(batch)
            if inboxes.pressing_bytes() > self._high:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        inboxes = self._inboxes
        while inboxes.pressing_bytes() > self._low:
            with trio.move_on_after(PATIENCE_S) as patience:
                await inboxes.wait_taken()
            if patience.cancelled_caught and inboxes.starving():
                stuck = inboxes.fullest() - inboxes.paused
                self._consumer.client.pause(stuck)
                inboxes.paused |= stuck
                self._stuck.set()
                return  # what still arrives is for the others

    async def _resume_paused(self) -> None:
        inboxes = self._inboxes
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            while inboxes.paused:
                await inboxes.wait_taken()
                ready = inboxes.below(self._low)
                if ready:
                    self._consumer.client.resume(ready)
                    inboxes.paused -= ready
