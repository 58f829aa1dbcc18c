"""What sensors are told while an app runs: figures known from what was sent."""

from __future__ import annotations

from collections import Counter

import pytest
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


async def test_a_group_is_told_of_once_and_when_it_has_settled(autojump_clock: MockClock) -> None:
    """Its events come in chunks of their own, it fails twice, and one is still open at the end."""
    own = Settled()
    app = trickle.App("shop", sensors=[own])
    source = app.topic("source", value=int, partitions=1)
    failures = iter([True, False, True])

    @app.agent(source, on_error=trickle.Retry(times=2, then=trickle.Skip()))
    async def gather(stream: trickle.Stream[int]) -> None:
        async for _ in stream.take(3):
            if next(failures, False):
                raise ValueError

    del gather
    async with trickle.testing.run(app) as t:
        for number in range(8):
            await t.send(source, number)
            await t.advance(2)
        assert own.events == {"gather": 6}
        assert own.committed_events == 6


class Broken(BaseSensor):
    """Fails as soon as events have settled, once."""

    def __init__(self) -> None:
        self.failed = False

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        if not self.failed:
            self.failed = True
            raise LookupError("a sensor of the user's own")


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("take", [False, True])
async def test_a_sensor_that_fails_is_no_events_failure(
    autojump_clock: MockClock, take: bool, concurrency: int
) -> None:
    """It ends the worker, whatever the agent's policy."""
    app = trickle.App("shop", sensors=[Broken()])
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source, on_error=trickle.Skip(), concurrency=concurrency)
    async def read(stream: trickle.Stream[int]) -> None:
        async for _ in stream.take(3) if take else stream:
            pass

    del read
    with pytest.RaisesGroup(
        pytest.RaisesExc(LookupError, match="a sensor of the user's own"), flatten_subgroups=True
    ):
        async with trickle.testing.run(app) as t:
            for number in range(9):
                await t.send(source, number)
                await t.advance(1)


async def test_a_failed_commit_is_no_rebalance_and_no_latency_is_negative(
    autojump_clock: MockClock,
) -> None:
    app = trickle.App("shop")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def read(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    del read
    async with trickle.testing.run(app) as t:
        (run,) = t.runs()
        await t.send(source, 1, timestamp=1e9)
        await t.settled()
        t.broker.fail_commits("lost")
        await t.send(source, 2)
        await t.advance(5)
        picture = run.monitor.statistics()
    assert (picture.commits.failed, picture.rebalances) == (1, 1)
    assert picture.agents["read"].latency.p50 == 0


def test_what_is_no_sensor_is_refused() -> None:
    for wrong in (BaseSensor, object()):
        with pytest.raises(trickle.ConfigurationError, match="which is no sensor"):
            trickle.App("shop", sensors=[wrong])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
