"""Commits that fail, that are overtaken, and what is called after them: in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trickle
import trickle.testing
from tests.behaviour.test_faults import counting_app
from trickle.transport.memory import CommitFault


async def test_commits_that_fail_on_and_on_are_tried_at_a_rate(mock_clock: MockClock) -> None:
    app, source, out, _ = counting_app()
    async with trickle.testing.run(app) as t:
        await t.settled()
        faults: list[CommitFault] = ["aborted"] * 10_000
        t.broker.fail_commits(*faults)
        await t.send(source, 1, key="a")
        await t.advance(60)
        tried = 0
        while t.broker.take_fault() is not None:
            tried += 1
        tried = 10_000 - tried
        assert 10 < tried < 25
        await t.advance(6)
        await t.settled()
        assert len(t.sent(out)) == 1


async def test_a_slow_call_after_a_commit_keeps_no_revocation_waiting(
    mock_clock: MockClock,
) -> None:
    """The call takes 100 s; meanwhile another worker joins, and gets its partitions at once."""
    app = trickle.App("app", drain_timeout=5)
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", key=str, value=int, partitions=2)
    called: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            out.send_nowait(event.value, key=event.key)
            if event.value == 0:
                event.after_commit(partial(trio.sleep, 100))
            event.after_commit(lambda value=event.value: called.append(value))

    async with trickle.testing.run(app) as t:
        await t.send(source, 0, key="a")
        await t.advance(1)
        await t.send(source, 1, key="a", partition=0)
        await t.send(source, 2, key="a", partition=1)
        began = trio.current_time()
        await t.rebalance(workers=2)
        await t.advance(1)
        assert trio.current_time() - began < 3
        assert sorted(e.value for e in t.sent(out)) == [0, 1, 2]
        await t.advance(100)
        assert called[0] == 0
        assert sorted(called) == [0, 1, 2]


async def test_calls_after_the_last_commit_have_the_drain_s_time(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = trickle.App("app", drain_timeout=5)
    source = app.topic("source", value=float, partitions=1)
    called: list[float] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[float]) -> None:
        async for event in stream.events():

            async def call(seconds: float = event.value) -> None:
                await trio.sleep(seconds)
                called.append(seconds)

            event.after_commit(call)

    for seconds, done in ((4, [4.0]), (60, [4.0])):
        async with trickle.testing.run(app) as t:
            await t.send(source, seconds)
            await t.advance(1)
        assert called == done
    assert "did not end within drain_timeout=5 s" in caplog.text


async def test_a_last_commit_that_others_have_overtaken_is_no_failure(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The group gives a worker up while it waits for its agent, as it was told to end."""
    app = trickle.App("app", drain_timeout=5)
    source = app.topic("source", value=int, partitions=2)
    out = app.topic("out", value=int, partitions=2)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await out.send(value)
            await trio.sleep(1)

    async with trickle.testing.run(app, workers=2) as t:
        for number in range(4):
            await t.send(source, number, partition=number % 2)
        await t.advance(0.5)
        worker = t.workers[1]
        assert worker.run is not None
        worker.run.stop()
        await trio.testing.wait_all_tasks_blocked()
        t.broker.kill(t.broker.members("app")[1])
        await t.advance(30)
        assert worker.run is None
        t.workers.remove(worker)
        await t.settled()
        assert sorted(e.value for e in t.sent(out)) == [0, 1, 2, 3]
    assert "the last commit before partitions were given back failed" in caplog.text


async def test_a_refused_record_is_found_where_each_event_has_a_commit(
    mock_clock: MockClock,
) -> None:
    """By the setting, and in a generation that is not the first."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", key=str, value=int, partitions=2)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            out.send_nowait(value, key="k")
            await trio.sleep(0.05)

    async with trickle.testing.run(app, commit_max_events=1) as t:
        t.broker.refuses = lambda topic, _, value: topic == "out" and value == b"3"
        t.broker.fail_commits("aborted")
        for value in range(8):
            await t.send(source, value, key="k")
        await t.advance(30)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [0, 1, 2, 4, 5, 6, 7]


async def test_a_slow_event_with_a_refused_record_is_found(mock_clock: MockClock) -> None:
    """Commits fall due, and find nothing, while the event that has the next one is in hand."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for value in stream:
            out.send_nowait(value, key="k")
            await trio.sleep(2)

    async with trickle.testing.run(app) as t:
        t.broker.refuses = lambda topic, _, value: topic == "out" and value == b"0"
        await t.send(source, 0, key="k0")
        await t.advance(20)
        await t.settled()
        await t.send(source, 1, key="k")
        await t.advance(20)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [1]


@pytest.mark.parametrize(("interval", "takes"), [(0.05, 0.1), (0.2, 0.3), (1.0, 0.1)])
async def test_a_timer_keeps_nobody_from_finding_a_refused_record(
    mock_clock: MockClock, interval: float, takes: float
) -> None:
    """Its commits prove nothing of the events behind them, and do not take the place of theirs."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", value=int, partitions=1)
    ticks = app.topic("ticks", value=int, partitions=1)

    @app.agent(source, sink=[out], on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int, str]) -> AsyncIterator[int]:
        async for value in stream:
            yield value

    @app.timer(interval)
    async def beat() -> None:
        ticks.send_nowait(1)

    async with trickle.testing.run(app) as t:
        await t.advance(1)
        t.broker.refuses = lambda topic, _, value: topic == "out" and value == b"0"
        for value in range(6):
            await t.send(source, value, key="k", partition=value % 2)
        t.broker.commit_delay = takes
        await t.advance(20)
        assert sorted(e.value for e in t.sent(out)) == [1, 2, 3, 4, 5]
        assert len(t.sent(ticks)) > 10


async def test_a_backlog_in_commits_of_one_event_keeps_no_timer(mock_clock: MockClock) -> None:
    """By the setting: it is not looked for anything."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    ticks = app.topic("ticks", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(0.1)

    @app.timer(1.0)
    async def beat() -> None:
        ticks.send_nowait(1)

    async with trickle.testing.run(app, commit_max_events=1) as t:
        for value in range(200):
            await t.send(source, value)
        await t.advance(10)
        assert len(t.sent(ticks)) >= 5


async def test_tables_that_press_have_a_commit_made(mock_clock: MockClock) -> None:
    """Long before the commit interval is over: what waits for a commit is bounded."""
    app = trickle.App("app")
    source = app.topic("source", key=int, value=int, partitions=1)
    table = app.table("table", key=int, value=int)
    sent = trio.Event()

    @app.agent(source)
    async def work(stream: trickle.Stream[int, int]) -> None:
        async for event in stream.events():
            await sent.wait()
            table[event.key] = event.value
            await trio.sleep(0.0001)

    async with trickle.testing.run(app, commit_interval=9, cache_bytes=1 << 20) as t:
        for number in range(10_000):
            await t.send(source, number, key=number)
        sent.set()
        await t.advance(0.5)
        (shard,) = t.shards_of(table)
        assert 3_000 < shard.size_committed < 5_100


async def test_more_agents_than_a_commit_can_name_are_refused_at_the_start(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    for number in range(120):
        app.agent(source, name=f"agent-{number:03}-of-a-large-program")(work)
    with pytest.raises(trickle.DefinitionError, match=r"^120 agents read one topic"):
        async with trickle.testing.run(app):
            pass
