"""A worker's place in its group: lost for good it ends, and in no other case."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

import trickle
from trickle import testing
from trickle.consumer import Consumer
from trickle.exceptions import BrokerUnavailable, TransportError
from trickle.run import Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.testing.simulation import Simulation
from trickle.transport.memory import MemoryTransport
from trickle.transport.memory.consumer import MemoryConsumer
from trickle.transport.memory.transport import MemoryAdmin
from trickle.types import TopicPartition


def make_app() -> tuple[trickle.App, trickle.Topic[int, str]]:
    app = trickle.App("shared")
    source = app.topic("numbers", key=str, value=int, partitions=3)

    @app.agent(source, name="one")
    async def handle(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    del handle
    return app, source


async def send(t: Simulation, source: trickle.Topic[int, str], seconds: int) -> None:
    """Send an event to each partition, each second."""
    for number in range(seconds):
        for partition in range(3):
            await t.send(source, number, key="k", partition=partition)
        await t.advance(1)


class Moment:
    """What the broker says of the group now.

    Attributes:
        away: it says nothing.
        empty: it sees nobody in the group.
        takes: seconds until it says so.
    """

    def __init__(self) -> None:
        self.away = False
        self.empty = False
        self.takes = 0.0
        self.error: type[TransportError] = BrokerUnavailable


@asynccontextmanager
async def a_fourth_worker(t: Simulation, moment: Moment) -> AsyncGenerator[None]:
    """Run one that gets no partition, and sees of its group what the moment says."""

    class Admin(MemoryAdmin):
        async def members(self, group: str) -> Mapping[str, frozenset[TopicPartition]]:
            await trio.sleep(moment.takes)
            found = await super().members(group)
            if moment.away:
                raise moment.error("away")
            return {} if moment.empty else found

    class Transport(MemoryTransport):
        @property
        def admin(self) -> MemoryAdmin:
            return Admin(self.broker)

    @asynccontextmanager
    async def transport() -> AsyncGenerator[MemoryTransport]:
        await trio.lowlevel.checkpoint()
        yield Transport(t.broker)

    app, _ = make_app()
    resolved = app.resolve(broker="memory://testing", store="memory://", web=False)
    around = Surroundings(
        transport=transport, store=lambda: MemoryStore(MemoryDisk()), name="fourth"
    )
    async with open_run(app.definitions(), resolved, surroundings=around):
        yield


async def see_it_end(moment: Moment) -> None:
    """Run a worker that has lost its place, until it ends for that."""
    app, _ = make_app()
    async with testing.run(app, workers=3) as t:
        with pytest.raises(ExceptionGroup) as caught:
            async with a_fourth_worker(t, moment):
                await t.advance(300)
                raise AssertionError("it runs on")
    assert caught.value.subgroup(lambda error: "not come back" in str(error)) is not None


async def test_a_worker_that_does_not_come_back_into_its_group_ends(mock_clock: MockClock) -> None:
    """Its client waits for ever for something, as was seen after restarts of a broker."""
    app, _ = make_app()
    moment = Moment()
    moment.empty = True
    lived: list[int] = []
    async with testing.run(app, workers=3) as t:
        with pytest.raises(ExceptionGroup) as caught:
            async with a_fourth_worker(t, moment):
                await t.advance(60)
                lived.append(60)
                await t.advance(60)
    assert lived == [60]
    matching = caught.value.subgroup(lambda error: "not come back for 70 s" in str(error))
    assert matching is not None


async def test_a_client_that_does_not_come_back_is_replaced(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker goes on, and others need not work for it."""
    attend, renew = MemoryConsumer.attend, MemoryConsumer.renew
    stuck: list[trio.Event] = []

    async def attend_when_well(client: MemoryConsumer) -> None:
        while True:
            with trio.CancelScope() as scope:
                attending[client] = scope
                await attend(client)
                return
            await stuck[0].wait()

    def renew_and_go_on(client: MemoryConsumer) -> None:
        renew(client)
        stuck[0].set()

    attending: dict[MemoryConsumer, trio.CancelScope] = {}
    monkeypatch.setattr(MemoryConsumer, "attend", attend_when_well)
    monkeypatch.setattr(MemoryConsumer, "renew", renew_and_go_on)
    app, source = make_app()
    async with testing.run(app) as t:
        await send(t, source, 20)
        stuck.append(trio.Event())
        for client, scope in attending.items():
            scope.cancel()
            group = t.broker.group("shared")
            group.leave(group.members[client.member_id], trio.current_time())
        [run] = t.runs()
        assert run.consumer is not None
        await t.advance(0)
        await run.consumer.lost(frozenset(run.consumer.positions()))
        await t.advance(60)
        await send(t, source, 10)
        await t.settled()
        assert t.runs() == [run]
        assert {at.offset for at in run.consumer.positions().values()} == {30}
    assert "it joins with a new client" in caplog.text


@pytest.mark.parametrize("error", [BrokerUnavailable, TransportError])
async def test_after_a_broker_was_away_a_worker_has_its_time_to_come_back(
    mock_clock: MockClock, error: type[TransportError]
) -> None:
    """Its session has ended meanwhile, and the first look finds it on its way into the group."""
    app, _ = make_app()
    moment = Moment()
    moment.error = error
    async with testing.run(app, workers=3) as t, a_fourth_worker(t, moment):
        await t.advance(35)
        moment.away = True
        await t.advance(120)
        moment.away, moment.empty = False, True
        await t.advance(45)
        moment.empty = False
        await t.advance(100)
        assert len(t.runs()) == 3


async def test_a_broker_that_is_slow_hides_no_lost_place(mock_clock: MockClock) -> None:
    moment = Moment()
    moment.empty, moment.takes = True, 11.0
    await see_it_end(moment)


async def test_what_else_fails_hides_no_lost_place(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Consumer) -> None:
        raise BrokerUnavailable("a leader is away")

    monkeypatch.setattr(Consumer, "_measure_lag", fail)
    moment = Moment()
    moment.empty = True
    await see_it_end(moment)


@pytest.mark.parametrize("gap", [2, 20])
async def test_two_who_end_what_a_broker_forgot_end_nobody(mock_clock: MockClock, gap: int) -> None:
    app, source = make_app()
    async with testing.run(app, workers=3) as t:
        await send(t, source, 120)
        for run in t.runs()[:2]:
            assert run.committer is not None
            await run.committer.forgotten.end_all()
            await send(t, source, gap)
        await send(t, source, 60)
        await t.settled()
        assert len(t.runs()) == 3


@pytest.mark.parametrize("age", [10, 120])
async def test_healthy_workers_go_on_when_what_a_broker_forgot_is_ended(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture, age: int
) -> None:
    """Whoever does it fences all of the group, itself too."""
    app, source = make_app()
    async with testing.run(app, workers=2) as t:
        await send(t, source, age)
        one, other = t.runs()
        assert one.consumer is not None
        assert one.consumer.positions()
        assert one.committer is not None
        await one.committer.forgotten.end_all()
        await send(t, source, 20)
        await t.settled()
        assert t.runs() == [one, other]
        for run in (one, other):
            assert run.consumer is not None
            assert {at.offset for at in run.consumer.positions().values()} == {age + 20}
    told = [text for text in caplog.messages if "is aborted once more" in text]
    assert len(told) == 2  # one for each worker
