"""Concurrency within a partition: what stays in order, what fails alone, what a restart finds."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import DefinitionError
from trickle.policies import Policy
from trickle.positions import METADATA_BYTES_MAX, Positions, read_positions
from trickle.testing.simulation import Simulation

SOURCE = trickle.TopicPartition("source", 0)
Happened = list[tuple[str | None, float]]


class Work:
    """An agent whose events take as many seconds as their value says; it sends what it is given.

    Attributes:
        begun: the keys and values of all attempts, in order.
        done: those that came to their end.
        most: how many were in hand at once.
        failures: how often a value fails when its time is over.
    """

    def __init__(self, **options: Any) -> None:
        self.app = app = trickle.App("app")
        self.source = source = app.topic("source", key=str, value=float, partitions=1)
        self.out = app.topic("out", key=str, value=float, partitions=1)
        self.begun: Happened = []
        self.done: Happened = []
        self.now = self.most = 0
        self.failures: dict[float, int] = {}
        self.letters: trickle.Topic[bytes | None, bytes | None] | None = None

        chosen: dict[str, Any] = {"concurrency": 3, **options}

        @app.agent(source, **chosen)
        async def work(stream: trickle.Stream[float, str]) -> None:
            async for event in stream.events():
                await self.handle(event)

        del work

    async def handle(self, event: trickle.Event[float, str]) -> None:
        value = event.value
        self.begun.append((event.key, value))
        self.now += 1
        self.most = max(self.most, self.now)
        self.out.send_nowait(value, key=event.key)
        try:
            await trio.sleep(value)
        finally:
            self.now -= 1
        if self.failures.get(value, 0):
            self.failures[value] -= 1
            raise ValueError(f"{value:g} fails")
        self.done.append((event.key, value))

    async def send(self, t: Simulation, *events: tuple[str | None, float]) -> None:
        for key, value in events:
            await t.send(self.source, value, key=key)

    def sent(self, t: Simulation) -> list[float]:
        """Return what has come out."""
        return [event.value for event in t.sent(self.out)]


def committed(t: Simulation) -> Positions:
    """Return what is committed of the source."""
    return read_positions(t.broker.group("app").offsets[SOURCE])


# Order


async def test_a_key_in_hand_holds_back_its_own_events_alone(mock_clock: MockClock) -> None:
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 10), ("a", 1), ("b", 2), ("a", 1), ("c", 3), ("d", 1.5), ("b", 4))
        await t.advance(9)
        assert work.done == [("b", 2), ("c", 3), ("d", 1.5), ("b", 4)]
        assert work.most == 3
        await t.advance(4)
        await t.settled()
        assert work.done[4:] == [("a", 10), ("a", 1), ("a", 1)]


async def test_events_without_a_key_wait_for_nobody(mock_clock: MockClock) -> None:
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, (None, 3), (None, 2), (None, 1))
        await t.advance(4)
        await t.settled()
        assert work.done == [(None, 1), (None, 2), (None, 3)]


async def test_a_function_of_the_value_orders(mock_clock: MockClock) -> None:
    """By whole seconds: 2.5 waits for 2.0, although their keys differ; 1.5 waits for none."""
    work = Work(ordering=int)
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 2.0), ("b", 2.5), ("a", 1.5))
        await t.advance(5)
        await t.settled()
        assert work.done == [("a", 1.5), ("a", 2.0), ("b", 2.5)]


async def test_none_orders_nothing(mock_clock: MockClock) -> None:
    work = Work(ordering="none")
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 3), ("a", 2), ("a", 1))
        await t.advance(4)
        await t.settled()
        assert work.done == [("a", 1), ("a", 2), ("a", 3)]


async def test_what_is_held_back_is_bounded(mock_clock: MockClock) -> None:
    """Concurrency 3: behind 30 events of the key in hand, the lane reads no further."""
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 5), *[("a", 0.0)] * 29, ("b", 1))
        await t.advance(4)
        assert work.done == [("b", 1)]
        await work.send(t, ("c", 2), *[("a", 0.0)] * 31, ("d", 1))
        await t.advance(0.5)
        assert [key for key, _ in work.begun] == ["a", "b", "c"]
        await t.advance(5)
        await t.settled()
        assert [key for key, _ in work.done].count("a") == 61


# Failures, each in its own strand


@pytest.mark.parametrize("policy", [trickle.Skip(), trickle.DeadLetter()])
async def test_a_failed_event_is_passed_over_alone(mock_clock: MockClock, policy: Policy) -> None:
    work = Work(on_error=policy)
    work.failures = {2: 1}
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 4), ("b", 2), ("b", 0.5), ("c", 3))
        await t.send(work.source, b"{oops", key="d", raw=True)
        await t.advance(9)
        await t.settled()
        assert work.sent(t) == [0.5, 3, 4]
        letters = t.broker.records("app-work-dead-letters") if policy != trickle.Skip() else []
        assert sorted(r.value or b"" for r in letters) == ([b"2.0", b"{oops"] if letters else [])
        assert bool(letters) == (policy != trickle.Skip())


async def test_a_retry_keeps_its_key_and_holds_up_nobody_else(mock_clock: MockClock) -> None:
    work = Work(on_error=trickle.Retry(times=2, backoff=10))
    work.failures = {2: 2}
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 2), ("a", 1), ("b", 3), ("c", 4), ("b", 5))
        await t.advance(20)
        assert work.sent(t) == [3, 4, 5]
        await t.advance(60)
        await t.settled()
        assert work.sent(t) == [3, 4, 5, 2, 1]
    assert work.begun.count(("a", 2)) == 3


async def test_stop_lets_the_others_finish_and_commits_them(mock_clock: MockClock) -> None:
    """The event that fails after 2 s stops the worker; the one that takes 4 s is not cut short."""
    work = Work()
    work.failures = {2: 1}
    broker = None
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(work.app) as t:
            broker = t.broker
            await work.send(t, ("a", 4), ("b", 2), ("c", 1), ("d", 100), ("b", 1))
            await t.advance(60)
    assert caught.group_contains(ValueError, match="2 fails")
    assert work.done == [("c", 1), ("a", 4)]
    assert broker is not None
    assert [r.value for r in broker.records("out")] == [b"1.0", b"4.0"]
    found = read_positions(broker.group("app").offsets[SOURCE])
    assert (found.offset, found.beyond) == (1, {"work": ((2, 3),)})


async def test_a_deadline_is_each_events_own(mock_clock: MockClock) -> None:
    work = Work(on_error=trickle.Skip(), deadline=3)
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 1), ("b", 5), ("a", 2), ("c", 2.5), ("c", 2.75))
        await t.advance(20)
        await t.settled()
        assert work.sent(t) == [1, 2.5, 2, 2.75]


async def test_an_order_that_cannot_be_found_is_a_failed_event(mock_clock: MockClock) -> None:
    def order(value: float) -> object:
        return [value] if value == 2 else 1 / value

    work = Work(ordering=order, on_error=trickle.Skip())
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 0), ("b", 1), ("c", 2), ("d", 3))
        await t.advance(20)
        await t.settled()
        assert work.sent(t) == [1, 3]


async def test_a_refused_record_is_found_and_gets_its_policy(mock_clock: MockClock) -> None:
    """One output of forty is refused; its event alone is dropped, in ever smaller commits."""
    work = Work(concurrency=8, on_error=trickle.Skip())
    async with trickle.testing.run(work.app, seed=3) as t:
        t.broker.refuses = lambda topic, _, value: topic == "out" and value == b"23.0"
        for number in range(40):
            await work.send(t, (f"k{number % 11}", number))
        await t.advance(600)
        await t.settled()
        assert sorted(work.sent(t)) == [n for n in range(40) if n != 23]


async def test_what_belongs_to_an_event_is_its_own(mock_clock: MockClock) -> None:
    """Sinks, ``after_commit``, ``event.id`` and blocks by hand, with three events in hand."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)
    told: list[str] = []

    @app.agent(source, concurrency=3, sink=out, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int, str]):  # noqa: ANN202 - as in the docs
        async for event in stream.events():
            async with event:
                name = str(event.id)
                event.after_commit(lambda name=name: told.append(name))
                yield event.value
                await trio.sleep(event.value)
                if event.value == 2:
                    raise ValueError("two")

    del work
    async with trickle.testing.run(app) as t:
        for value in (3, 2, 1):
            await t.send(source, value, key=f"k{value}")
        await t.advance(5)
        await t.settled()
        assert [(e.key, e.value) for e in t.sent(out)] == [("k1", 1), ("k3", 3)]
    assert told == ["source-0-2", "source-0-0"]


# Groups


async def test_take_gathers_in_each_strand(mock_clock: MockClock) -> None:
    """Two groups are in hand at once; each of them settles as one event, one goes first."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    groups: list[tuple[float, list[int]]] = []

    @app.agent(source, concurrency=2)
    async def work(stream: trickle.Stream[int]) -> None:
        async for group in stream.take(3, within=2):
            groups.append((trio.current_time(), group))
            await trio.sleep(10)

    del work
    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value, key=f"k{value}")
        await t.advance(5)
        assert [(at, sorted(group)) for at, group in groups] == [(0, group) for _, group in groups]
        assert sorted(groups[0][1] + groups[1][1]) == list(range(6))
        assert len(groups) == 2
        assert "source" not in {at.topic for at in t.broker.group("app").offsets}
        await t.advance(6)
        assert committed(t).offset == 6
        for value in (6, 7):  # both strands wait by now: the one that has begun goes before
            await t.send(source, value, key=f"k{value}")
            await t.advance(1)
        await t.advance(20)
        await t.settled()
        assert groups[2:] == [(13, [6, 7])]


async def test_a_group_goes_on_with_the_key_that_it_holds(mock_clock: MockClock) -> None:
    """One key alone: no group waits for what another one of the lane holds back."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    groups: list[list[int]] = []

    @app.agent(source, concurrency=4)
    async def work(stream: trickle.Stream[int]) -> None:
        async for group in stream.take(5):
            groups.append(group)
            await trio.sleep(1)

    del work
    async with trickle.testing.run(app) as t:
        for value in range(20):
            await t.send(source, value, key="k")
            if value > 12:  # the group waits for each of them, with its key in hand
                await t.advance(1)
        await t.advance(10)
        await t.settled()
    assert groups == [list(range(at, at + 5)) for at in (0, 5, 10, 15)]


# Positions


async def test_what_settled_beyond_a_gap_is_not_handled_again(mock_clock: MockClock) -> None:
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 50), *[(f"k{n}", 1) for n in range(6)], ("a", 2), ("b", 30))
        await t.advance(10)
        assert (committed(t).offset, committed(t).beyond) == (0, {"work": ((1, 7),)})
        await t.crash()
        assert (committed(t).offset, committed(t).beyond) == (0, {"work": ((1, 7),)})
        await t.advance(100)
        await t.settled()
        assert (committed(t).offset, committed(t).beyond) == (9, {})
        assert sorted(work.sent(t)) == [1] * 6 + [2, 30, 50]
    assert len(work.done) == 9
    assert work.begun.count(("a", 50)) == 2


async def test_ranges_stay_until_their_gap_is_closed(mock_clock: MockClock) -> None:
    """Two restarts, the second before anything new has settled: it must not forget the ranges."""
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 50), ("b", 1), ("c", 60), ("d", 1))
        await t.advance(10)
        for _ in range(2):
            await t.crash()
            await t.advance(1)
            assert committed(t).beyond == {"work": ((1, 2), (3, 4))}
        await work.send(t, ("e", 1))
        await t.advance(5)
        await t.crash()
        assert committed(t).beyond == {"work": ((1, 2), (3, 5))}
        await t.advance(100)
        await t.settled()
    assert sorted(work.done) == [("a", 50), ("b", 1), ("c", 60), ("d", 1), ("e", 1)]


async def test_a_revocation_drains_what_is_in_hand(mock_clock: MockClock) -> None:
    """Two seconds to drain: what takes one settles and is not begun again; what takes 50 is."""
    work = Work()
    async with trickle.testing.run(work.app, drain_timeout=2) as t:
        await work.send(t, ("a", 50), ("b", 1), ("c", 1.5), ("d", 1))
        await t.advance(0.2)
        assert work.now == 3
        await t.rebalance(workers=2)
        await t.advance(0.1)
        assert work.done == [("b", 1), ("c", 1.5)]
        await t.advance(100)
        await t.settled()
        assert work.sent(t) == [1, 1.5, 1, 50]
    assert work.begun.count(("a", 50)) == 2
    assert len(work.begun) == 5


async def test_less_concurrency_later_forgets_nothing(mock_clock: MockClock) -> None:
    """The ranges are there, the agent has no concurrency any more: in order, none of them again."""
    work = Work()
    async with trickle.testing.run(work.app) as t:
        await work.send(t, ("a", 50), ("b", 1), ("c", 60), ("d", 1))
        await t.advance(10)
        work.app.agents["work"].concurrency = 1
        await t.crash()
        await work.send(t, ("e", 1))
        await t.advance(200)
        await t.settled()
    assert work.done == [("b", 1), ("d", 1), ("a", 50), ("c", 60), ("e", 1)]


async def test_the_lane_waits_where_the_metadata_would_not_fit(mock_clock: MockClock) -> None:
    """Every fourth event is stuck, and names of other agents leave little room for ranges."""
    work = Work(concurrency=500, ordering="none")
    for number in range(15):

        @work.app.agent(work.source, name=f"reader-{number}-{'x' * 220}")
        async def read(stream: trickle.Stream[float]) -> None:
            async for _ in stream:
                pass

        del read
    async with trickle.testing.run(work.app) as t:
        for number in range(3_000):
            await work.send(t, (None, 0.0 if number % 4 else 100.0))
        await t.advance(50)
        stuck = work.now
        assert 50 < stuck < 450  # of 500
        assert len(work.begun) < 2_000
        metadata = t.broker.group("app").offsets[SOURCE].metadata
        assert 3_000 < len(metadata) <= METADATA_BYTES_MAX
        await t.crash()
        await t.advance(5)
        assert work.now == stuck  # what settled is done; as much is in hand as before
        await t.advance(1_000)
        await t.settled()
        assert len(work.sent(t)) == 3_000
    assert len(work.begun) == 3_000 + stuck


# Definitions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"concurrency": 0},
            (
                "agent 'work': concurrency=0: it must be a whole number, 1 or more: how many "
                "events of a partition may be in hand at once"
            ),
        ),
        (
            {"concurrency": True},
            (
                "agent 'work': concurrency=True: it must be a whole number, 1 or more: how many "
                "events of a partition may be in hand at once"
            ),
        ),
        (
            {"concurrency": 2, "ordering": "foo"},
            (
                "agent 'work': ordering= is 'foo': use 'key', 'none', or a plain function of the "
                "value, as in ordering=lambda flight: flight.origin"
            ),
        ),
    ],
)
def test_wrong_values_are_refused_where_they_are_defined(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DefinitionError, match=f"^{re.escape(message)}$"):
        Work(**options)


def test_a_function_does_not_see_what_steps_make_of_a_value() -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=float, partitions=1).map(str)
    with pytest.raises(DefinitionError, match="the order is found before"):

        @app.agent(source, concurrency=2, ordering=len)
        async def work(stream: trickle.Stream[str]) -> None:
            del stream

        del work
