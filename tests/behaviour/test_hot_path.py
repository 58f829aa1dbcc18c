"""What may fall between the steps of a commit, and of an event: nothing is lost, or there twice."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import BrokerUnavailable
from trickle.producer import Producer
from trickle.sensors import BaseSensor
from trickle.transport.contract import ProducerOptions, Transport

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncGenerator

    from trickle.context import Effect


class FullClient:
    """A transactional client whose queue has room for one record, and whose broker is away."""

    ready = True

    def __init__(self) -> None:
        self.open: list[bytes | None] = []
        self.committed: list[bytes | None] = []
        self.room = 1

    @asynccontextmanager
    async def producer(self, options: ProducerOptions) -> AsyncGenerator[FullClient]:
        yield self

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        while effects and self.room:
            self.room -= 1
            self.open.append(effects.popleft()[3])

    async def drained(self) -> None:
        await trio.lowlevel.checkpoint()
        raise BrokerUnavailable("away")

    async def commit(self, offsets: object, member: object, mark: object) -> dict[Any, int]:
        self.committed += self.open
        self.open.clear()
        return {}

    async def abort(self) -> None:
        self.open.clear()


async def test_what_a_full_queue_cut_short_is_not_in_the_next_transaction() -> None:
    client = FullClient()
    producer = Producer(
        cast("Transport", client), ProducerOptions(transactional_id="id"), {}, BaseSensor()
    )
    effects = [("out", None, None, value, (), None) for value in (b"1", b"2")]
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        for _ in range(2):  # the events run again
            await producer.ensure_ready()
            producer.fresh.extend(effects)
            producer.catch_up()
            producer.hold()
            try:
                await producer.commit((), {}, None, None)
            except BrokerUnavailable:
                producer.reset()
                client.room = 10
        nursery.cancel_scope.cancel()
    assert client.committed == [b"1", b"2"]


async def test_ticks_behind_an_event_that_resists_go_out_once(mock_clock: MockClock) -> None:
    """The commit that gives its partition back fails."""
    app = trickle.App("app", drain_timeout=1)
    source = app.topic("source", value=int, partitions=1)
    ticks = app.topic("ticks", value=int, partitions=1)
    count = 0

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            if value == 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(30)

    @app.timer(0.1)
    async def tick() -> None:
        nonlocal count
        count += 1
        ticks.send_nowait(count)

    async with trickle.testing.run(app, commit_max_events=1) as t:
        await t.send(source, 0)
        await t.advance(1)
        await t.send(source, 1)
        await t.advance(1)
        t.broker.fail_commits("aborted")
        t.broker.rebalance("app")
        await t.advance(60)
    sent = [e.value for e in t.sent(ticks)]
    assert sorted(sent) == sorted(set(sent))
    assert set(range(1, 300)) <= set(sent)
