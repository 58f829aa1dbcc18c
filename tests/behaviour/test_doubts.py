"""Commits of which nobody knows at first whether they have happened."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import CommitFailed
from trickle.transport.memory import CommitFault

SLOW = 1000
FAULTS = cast("list[CommitFault]", ["aborted", "applied", "lost"])


class Scene:
    """An app that reports events in ways that hang on their commit, and a timer that sends."""

    def __init__(self) -> None:
        self.app = app = trickle.App("app", commit_interval=5, drain_timeout=5)
        self.source = app.topic("source", key=str, value=int, partitions=2)
        self.ticks = app.topic("ticks", value=int, partitions=1)
        self.called: list[int] = []
        self.sunk: list[int] = []
        self.ticked = 0

        @app.agent(self.source, sink=[self.sunk.append])
        async def work(stream: trickle.Stream[int, str]) -> AsyncIterator[int]:
            async for event in stream.events():
                if event.value == SLOW:
                    await trio.sleep(1)
                event.after_commit(lambda value=event.value: self.called.append(value))
                yield event.value

        @app.timer(1.0)
        async def beat() -> None:
            self.ticked += 1
            self.ticks.send_nowait(self.ticked)

    def sent(self, t: trickle.testing.Simulation) -> list[int]:
        return [event.value for event in t.sent(self.ticks)]


@pytest.mark.parametrize("seed", range(12))
async def test_timers_and_calls_know_which_commits_have_happened(
    mock_clock: MockClock, seed: int
) -> None:
    """Commits fail at random; some of them have happened all the same."""
    draw = random.Random(seed)
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(0.5)
        for number in range(1, 40):
            if draw.random() < 0.5:
                t.broker.fail_commits(draw.choice(FAULTS))
            if draw.random() < 0.6:
                await t.send(scene.source, number, key="a")
            await t.advance(draw.choice([0.05, 0.3, 1.1]))
        while t.broker.take_fault() is not None:
            pass  # no commit has met it
        await t.advance(20)
        await t.settled()
        values = [event.value for event in t.sent(scene.source)]
        assert values
        assert scene.called == scene.sunk == values
        assert scene.sent(t) == list(range(1, scene.ticked + 1))


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_commit_of_ticks_alone_shows_in_what_is_committed(
    mock_clock: MockClock, fault: CommitFault
) -> None:
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(1.9)
        for _ in range(3):
            t.broker.fail_commits(fault)
            await t.advance(3)
        await t.advance(2)
        assert scene.sent(t) == list(range(1, scene.ticked + 1))


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_last_commit_is_asked_for_too(mock_clock: MockClock, fault: CommitFault) -> None:
    """What timers sent is there once, and only a last commit that has not happened is a failure."""
    scene = Scene()
    happened, failed = fault == "applied", False
    seen: list[trickle.testing.Simulation] = []
    try:
        async with trickle.testing.run(scene.app) as t:
            seen.append(t)
            await t.send(scene.source, 1, key="a")
            await t.advance(2.5)
            await t.send(scene.source, SLOW, key="a")
            t.broker.fail_commits(fault)
            await t.advance(0.6)  # beyond the third tick: its commit, and the event's, is the last
    except* CommitFailed:
        failed = True
    assert failed is not happened
    assert scene.called == ([1, SLOW] if happened else [1])
    assert scene.sent(seen[0]) == [1, 2, 3]


async def test_an_agent_that_fails_while_others_drain_does_not_cut_them_short(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app", drain_timeout=5)
    slow, weak = (app.topic(name, value=int, partitions=1) for name in ("slow", "weak"))
    ended: list[int] = []

    @app.agent(slow)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await trio.sleep(3)
            ended.append(value)

    @app.agent(weak)
    async def fail(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(1)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with trickle.testing.run(app) as t:
            await t.send(slow, 1)
            await t.send(weak, 1)
            await t.advance(0.1)
    assert ended == [1]
