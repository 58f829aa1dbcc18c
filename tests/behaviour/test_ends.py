"""How a worker ends, and gives partitions back: quickly, and with all that timers have sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from tests.behaviour.test_doubts import SLOW, Scene
from trickle.exceptions import CommitFailed
from trickle.transport.memory import CommitFault, MemoryBroker


def crowded_app(seconds: float) -> tuple[trickle.App, trickle.Topic[int], list[int]]:
    """Make an app whose lanes soon wait for a commit's room, and whose first call takes so long."""
    app = trickle.App("app", commit_interval=0.1, drain_timeout=20, commit_max_events=5)
    source = app.topic("source", value=int, partitions=2)
    called: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():

            async def call(value: int = event.value) -> None:
                called.append(value)
                if len(called) == 1:
                    await trio.sleep(seconds)

            event.after_commit(call)

    return app, source, called


async def test_lanes_that_wait_for_room_keep_no_revocation_waiting(mock_clock: MockClock) -> None:
    """No commit is made while a call after one takes long."""
    app, source, called = crowded_app(60)
    async with trickle.testing.run(app) as t:
        for value in range(40):
            await t.send(source, value, partition=value % 2)
        await t.advance(1)
        before = trio.current_time()
        t.broker.rebalance("app")
        while t.runs()[0].monitor.statistics().rebalances < 2:
            await t.advance(0.01)
        assert trio.current_time() - before < 0.1
        await t.advance(100)
        await t.settled()
        assert t.runs()[0].undrained == ()
    assert sorted(called) == list(range(40))


@pytest.mark.parametrize("fails", [False, True])
async def test_lanes_that_wait_for_room_keep_no_stop_waiting(
    mock_clock: MockClock, fails: bool
) -> None:
    """The commit that they wait for is under way as the worker is told to end."""
    app, source, _ = crowded_app(0)
    before = 0.0
    failed = False
    try:
        async with trickle.testing.run(app) as t:
            await t.advance(0.5)
            for value in range(40):
                await t.send(source, value, partition=value % 2)
            t.broker.commit_delay = 1
            if fails:
                t.broker.fail_commits("aborted")
            await t.advance(0.2)
            before = trio.current_time()
    except* CommitFailed:
        failed = True
    assert failed is fails
    assert trio.current_time() - before < 4


async def test_ticks_beside_an_agent_that_fails_are_committed(mock_clock: MockClock) -> None:
    """Timers go on until its failure has reached the Run."""
    app = trickle.App("app", commit_interval=5, drain_timeout=5)
    source = app.topic("source", value=int, partitions=1)
    ticks = app.topic("ticks", value=int, partitions=1)
    ticked = 0

    @app.agent(source)
    async def fail(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            assert 1 / value  # its position is committed, and so has to be released

    @app.timer(0.1)
    async def beat() -> None:
        nonlocal ticked
        ticked += 1
        ticks.send_nowait(ticked)

    seen: list[trickle.testing.Simulation] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            seen.append(t)
            await t.send(source, 1)
            await t.advance(1.05)
            await t.send(source, 0)
            t.broker.commit_delay = 0.45
            await t.advance(20)
    assert caught.group_contains(ZeroDivisionError)
    assert [event.value for event in seen[0].sent(ticks)] == list(range(1, ticked + 1))
    assert ticked > 12


async def test_no_time_to_drain_is_no_failure(mock_clock: MockClock) -> None:
    app = trickle.App("app", drain_timeout=0)
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()


def reading_agent(app: trickle.App) -> None:
    @app.agent(app.topic("source", value=int, partitions=1))
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    del work


@pytest.mark.parametrize("fault", ["away", "aborted", "lost"])
async def test_an_app_of_timers_alone_goes_on_after_failed_commits(
    mock_clock: MockClock, fault: str
) -> None:
    app = trickle.App("app")
    ticks = app.topic("ticks", value=int, partitions=1)
    ticked = 0

    @app.timer(1.0)
    async def beat() -> None:
        nonlocal ticked
        ticked += 1
        ticks.send_nowait(ticked)

    faults: list[CommitFault] = [] if fault == "away" else [cast("CommitFault", fault)]
    async with trickle.testing.run(app) as t:
        for _ in range(3):
            await t.advance(1.9)
            t.broker.fail_commits(*faults)
            t.broker.unavailable = fault == "away"
            await t.advance(3)
            t.broker.unavailable = False
        await t.advance(10)
    assert ticked > 20
    assert [event.value for event in t.sent(ticks)] == list(range(1, ticked + 1))


async def test_a_last_commit_of_ticks_alone_is_made_again(mock_clock: MockClock) -> None:
    """Nothing of the agents' was in it: the exit is clean."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(0.5)
        await t.send(scene.source, 1, partition=0)
        await t.settled()
        t.broker.commit_delay = 0.2
        await t.advance(0.55)
        t.broker.fail_commits("aborted")  # for the tick's commit, which is under way
    assert scene.sent(t) == [1]
    assert scene.called == [1]


@pytest.mark.parametrize("agents", [True, False])
async def test_at_the_end_a_broker_has_a_moment_to_come_back(
    mock_clock: MockClock, agents: bool
) -> None:
    """As long as events have to end: right after a restart its first answers are refusals."""
    app = trickle.App("app")
    ticks = app.topic("ticks", value=int, partitions=1)
    if agents:
        reading_agent(app)

    @app.timer(1.0)
    async def beat() -> None:
        ticks.send_nowait(1)

    async with trio.open_nursery() as nursery:

        async def come_back(broker: MemoryBroker) -> None:
            await trio.sleep(3)
            broker.unavailable = False

        async with trickle.testing.run(app) as t:
            await t.advance(0.5)
            t.broker.commit_delay = 0.2
            await t.advance(0.55)
            t.broker.fail_commits("aborted")  # for the tick's commit, which is under way
            t.broker.unavailable = True
            nursery.start_soon(come_back, t.broker)
    assert [event.value for event in t.sent(ticks)] == [1]


async def test_ticks_of_the_last_moment_take_no_release_back(mock_clock: MockClock) -> None:
    """They are committed behind the partitions' release, and say so again."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.send(scene.source, 1, partition=0)
        await t.settled()
        await t.advance(1.5)
        run = t.runs()[0]
        committer, conductor = run.committer, run.conductor
        assert committer is not None
        assert conductor is not None
        await conductor.close()
        committer.tick([(scene.ticks.name, 0, None, b"2", (), None)])
    assert scene.sent(t) == [1, 2]
    marks = [found.metadata for found in t.broker.group("app").offsets.values()]
    assert marks
    assert all('"r":1' in mark for mark in marks)


async def test_a_call_that_fails_is_waited_for_no_longer(mock_clock: MockClock) -> None:
    app = trickle.App("app", drain_timeout=30)
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            event.after_commit(lambda value=event.value: 1 // value)
            await trio.sleep(0.5)

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.send(source, 0)
            await t.send(source, 1)
            await t.advance(20)
    assert caught.group_contains(ZeroDivisionError)
    assert trio.current_time() < 21


@pytest.mark.parametrize("again", ["applied", "lost", "aborted"])
async def test_two_commits_that_fail_at_the_end_double_no_tick(
    mock_clock: MockClock, again: CommitFault
) -> None:
    """What the last one held is sent again by another one, whose answer is lost as well."""
    scene = Scene(partitions=1)
    seen: list[trickle.testing.Simulation] = []
    failed = False
    try:
        async with trickle.testing.run(scene.app) as t:
            seen.append(t)
            await t.send(scene.source, 1, partition=0)
            await t.settled()
            await t.advance(0.5)
            await t.send(scene.source, SLOW, partition=0)
            await t.advance(0.6)
            t.broker.fail_commits("aborted", again)
    except* CommitFailed:
        failed = True
    assert failed
    assert scene.called == [1]
    assert scene.sent(seen[0]) == list(range(1, scene.ticked + 1))


async def test_the_cause_is_told_where_another_service_fails_by_it(mock_clock: MockClock) -> None:
    """One fails while another starts, which waits for it, and fails to start."""
    app = trickle.App("app", broker="memory://", web=False)
    gone = trio.Event()

    @app.service
    class First(trickle.Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            try:
                await trio.sleep(1)
                raise ValueError("the password is wrong")
            finally:
                gone.set()

    @app.service
    class Second(trickle.Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            await gone.wait()
            raise RuntimeError("the first one is gone")

    del First, Second
    mock_clock.autojump_threshold = 0.01
    with pytest.raises(ExceptionGroup) as caught:
        async with app.run():
            await trio.sleep(10)
    assert _leaves(caught.value) == ["the password is wrong", "the first one is gone"]


def _leaves(error: BaseException) -> list[str]:
    if not isinstance(error, BaseExceptionGroup):
        return [str(error)]
    return [
        told
        for inner in cast("BaseExceptionGroup[Any]", error).exceptions
        for told in _leaves(inner)
    ]


async def test_a_start_that_failed_leaves_its_transactional_id_to_the_next(tmp_path: Path) -> None:
    app = trickle.App(
        "app", broker=f"lmdb://{tmp_path}/log", data_dir=str(tmp_path / "data"), web=False
    )
    source = app.topic("source", key=str, value=int)
    out = app.topic("out", value=int)
    failing = True

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            out.send_nowait(value)

    @app.service
    class Weak(trickle.Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            if failing:
                raise RuntimeError("not yet")
            task_status.started()
            await trio.sleep_forever()

    del work, Weak
    slots = tmp_path / "data" / "app" / "slots"
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not yet"):
            async with app.run():
                raise AssertionError("it cannot start")
    assert len(list(slots.iterdir())) == 1
    failing = False
    async with app.run():
        assert len(list(slots.iterdir())) == 1


@pytest.mark.parametrize("yields", [False, True])
async def test_an_agent_that_asks_for_the_next_value_ends_with_its_stream(
    mock_clock: MockClock, yields: bool
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    target = app.topic("target", value=int, partitions=1)

    async def work(stream: trickle.Stream[int]) -> None:
        while True:
            target.send_nowait(await anext(stream))

    async def give(stream: trickle.Stream[int]) -> AsyncIterator[int]:
        while True:
            yield await anext(stream)

    if yields:
        app.agent(source, sink=target)(give)
    else:
        app.agent(source)(work)
    async with trickle.testing.run(app) as t:
        await t.send(source, 7)
        await t.settled()
        await t.rebalance()
        await t.send(source, 8)
        await t.settled()
        assert [event.value for event in t.sent(target)] == [7, 8]


async def test_who_asks_too_far_between_two_events_has_failed(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            async with event:
                pass
            raise StopAsyncIteration

    del work
    with pytest.RaisesGroup(StopAsyncIteration, flatten_subgroups=True):
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await trio.sleep(1)


async def test_settled_names_the_call_that_it_would_wait_for(mock_clock: MockClock) -> None:
    app, source, _ = crowded_app(60)
    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        with pytest.raises(trickle.UsageError) as raised:
            await t.settled()
        assert (
            "the call of crowded_app.<locals>.work.<locals>.call after a commit (after_commit, "
            "or a sink) has not ended." in str(raised.value)
        )
        await t.advance(60)
        await t.settled()
