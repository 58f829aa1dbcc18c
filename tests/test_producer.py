"""The producer at its end: what was sent without a wait is delivered all the same."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio
from trio.testing import wait_all_tasks_blocked

from trickle.producer import Producer
from trickle.sensors import BaseSensor
from trickle.transport.contract import ProducerOptions, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class SlowClient:
    """A client whose records are delivered by a commit that has come to its end."""

    ready = True

    def __init__(self) -> None:
        self.queued: list[Any] = []
        self.delivered: list[Any] = []

    def produce(self, *effect: Any) -> bool:
        self.queued.append(effect[3])
        return True

    async def commit(self, offsets: object, member: object) -> dict[Any, int]:
        await trio.lowlevel.checkpoint()
        self.delivered += self.queued
        self.queued.clear()
        return {}


class SlowTransport:
    def __init__(self, client: SlowClient) -> None:
        self._client = client

    @asynccontextmanager
    async def producer(self, options: ProducerOptions) -> AsyncGenerator[SlowClient]:
        yield self._client


async def test_a_send_just_before_the_end_is_delivered() -> None:
    """The flusher wakes for the record and is cancelled in the same moment."""
    client = SlowClient()
    transport = cast("Transport", SlowTransport(client))
    producer = Producer(transport, ProducerOptions(), {}, BaseSensor())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await wait_all_tasks_blocked()
        producer.send_nowait(("topic", None, None, b"1", (), None))
        nursery.cancel_scope.cancel()
    assert client.delivered == [b"1"]
