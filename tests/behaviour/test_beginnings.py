"""Where partitions begin of which nothing is committed, when something fails right then."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.transport.memory import CommitFault


class Scene:
    """An app that begins at the end of its topic, and may be stuck with its first event."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.app = trickle.App("app", first_position="latest", drain_timeout=2)
        self.source = self.app.topic("source", value=int, partitions=1)
        self.out = self.app.topic("out", value=int, partitions=1)
        self._stuck = stuck

        @self.app.agent(self.source, sink=[self.out])
        async def work(stream: trickle.Stream[int]) -> AsyncIterator[int]:
            async for value in stream:
                if self._stuck:
                    self._stuck = False
                    await trio.sleep(100)
                yield value

    async def send(self, t: trickle.testing.Simulation, *values: int) -> None:
        for value in values:
            await t.send(self.source, value)

    def handled(self, t: trickle.testing.Simulation) -> list[int]:
        return [event.value for event in t.sent(self.out)]


@pytest.mark.parametrize("fault", ["aborted", "lost"])
async def test_a_first_commit_that_fails_skips_nothing(
    mock_clock: MockClock, fault: CommitFault
) -> None:
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(5)
        t.broker.fail_commits(fault)
        await scene.send(t, 0, 1, 2)
        await t.advance(20)
        await scene.send(t, 3)
        await t.settled()
        assert scene.handled(t) == [0, 1, 2, 3]


async def test_a_rebalance_before_the_first_commit_skips_nothing(mock_clock: MockClock) -> None:
    scene = Scene(stuck=True)
    async with trickle.testing.run(scene.app) as t:
        await t.advance(5)
        await scene.send(t, 0, 1, 2)
        await t.advance(1)
        await t.rebalance(2)
        await t.advance(20)
        await scene.send(t, 3)
        await t.settled()
        assert scene.handled(t) == [0, 1, 2, 3]
