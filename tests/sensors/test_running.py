"""What sensors are told while an app runs: figures known from what was sent."""

from __future__ import annotations

from collections import Counter

import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.sensors import BaseSensor


class Order(trickle.Model):
    customer: str
    amount: int


class Settled(BaseSensor):
    """Counts the events that settle, as a sensor of the user's own would."""

    def __init__(self) -> None:
        self.events = Counter[str]()
        self.committed_events = 0

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        self.events[agent] += count

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        self.committed_events += events


async def test_the_figures_of_a_run_are_those_of_what_was_sent(autojump_clock: MockClock) -> None:
    own = Settled()
    app = trickle.App("shop", sensors=[own])
    orders = app.topic("orders", key=str, value=Order, partitions=2)
    large = app.topic("large", key=str, value=Order, partitions=2)

    @app.agent(orders, on_error=trickle.Skip())
    async def check(stream: trickle.Stream[Order]) -> None:
        async for order in stream:
            if order.amount < 0:
                raise ValueError("a negative amount")
            if order.amount > 100:
                large.send_nowait(order, key=order.customer)

    @app.agent(large, on_error=trickle.DeadLetter())
    async def refuse(stream: trickle.Stream[Order]) -> None:
        async for _ in stream:
            raise ValueError("too large")

    async with trickle.testing.run(app) as t:
        for amount in [10, 20, 200, -1, 300]:
            await t.send(orders, Order("a", amount), key="a")
        await t.send(orders, b"{oops", raw=True, key="a")
        await t.settled()
        await t.advance(30)  # the lag is measured now and then
        (run,) = t.runs()
        picture = run.monitor.statistics()

    assert picture.running
    assert (picture.topics["orders"].records_in, picture.topics["large"].records_in) == (6, 2)
    assert picture.topics["large"].records_out == 2
    checked, refused = picture.agents["check"], picture.agents["refuse"]
    assert (checked.settled, checked.failed, checked.skipped, checked.dead_lettered) == (6, 2, 2, 0)
    assert (refused.settled, refused.failed, refused.skipped, refused.dead_lettered) == (2, 2, 0, 2)
    assert picture.events == 8
    assert picture.commits.succeeded >= 1
    assert picture.commits.failed == 0
    assert {p.lag for p in picture.partitions} == {0}
    assert len(picture.partitions) == 4
    assert own.events == {"check": 6, "refuse": 2}
    assert own.committed_events == 8


async def test_events_are_told_of_by_the_commit_that_holds_them(mock_clock: MockClock) -> None:
    """Commits come between two events of one chunk; at the end none is left to tell of more."""
    own = Settled()
    app = trickle.App("shop", sensors=[own], commit_interval=0.05)
    orders = app.topic("orders", key=str, value=int, partitions=1)

    @app.agent(orders, on_error=trickle.Retry(times=1, backoff=1, then=trickle.Skip()))
    async def slow(stream: trickle.Stream[int]) -> None:
        async for amount in stream:
            await trio.sleep(0.03)
            if amount == 7:
                raise ValueError("seven")

    async with trickle.testing.run(app, seed=4) as t:
        for amount in range(1, 41):
            await t.send(orders, amount)
            if not amount % 10:
                await t.advance(0.5)
                at = trickle.TopicPartition("orders", 0)
                assert own.committed_events <= t.broker.group("shop").offsets[at].offset
        await t.advance(10)
        await t.settled()
    assert own.events == {"slow": 40}
    assert own.committed_events == 40
