"""Commits of which nobody knows at first whether they have happened."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from typing import cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import CommitFailed, UsageError
from trickle.ticks import WAITING_MAX
from trickle.transport.memory import CommitFault
from trickle.types import Guarantee
from trickle.utils.murmur2 import partition_of

SLOW = 1000
NAPS = {SLOW: 1.0}
FAULTS = cast("list[CommitFault]", ["aborted", "applied", "lost"])


class Scene:
    """An app that reports events in ways that hang on their commit, and a timer that sends."""

    def __init__(
        self,
        *,
        partitions: int = 2,
        commit_interval: float = 5,
        processing_guarantee: Guarantee = "exactly_once",
        interval: float = 1.0,
        naps: Mapping[int, float] = NAPS,
    ) -> None:
        self.app = app = trickle.App(
            "app",
            commit_interval=commit_interval,
            processing_guarantee=processing_guarantee,
            drain_timeout=5,
        )
        self.source = app.topic("source", key=str, value=int, partitions=partitions)
        self.ticks = app.topic("ticks", value=int, partitions=1)
        counts = app.table("counts", key=str, value=int, default=int)
        self.called: list[int] = []
        self.sunk: list[int] = []
        self.ticked = 0

        @app.agent(self.source, sink=[self.sunk.append])
        async def work(stream: trickle.Stream[int, str]) -> AsyncIterator[int]:
            async for event in stream.events():
                if event.value in naps:
                    await trio.sleep(naps[event.value])
                counts[event.key or ""] += 1
                event.after_commit(lambda value=event.value: self.called.append(value))
                yield event.value

        @app.timer(interval)
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


async def test_what_cannot_settle_while_the_broker_is_away_is_told(mock_clock: MockClock) -> None:
    """A commit is in doubt: nobody commits before it is known what became of it."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(0.95)
        t.broker.unavailable = True
        await t.send(scene.source, 1, key="a")
        await t.advance(5)
        with pytest.raises(UsageError):
            await t.settled()
        t.broker.unavailable = False
        await t.advance(5)
        await t.settled()
        assert scene.called == [1]


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


async def test_others_may_fence_the_last_commits_too(mock_clock: MockClock) -> None:
    """A worker stood still and lost its place, as its end comes: those who follow fence it."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(2.5)
        await t.send(scene.source, SLOW, key="a")
        for _ in range(2):
            t.broker.fail_commits("fenced")
        await t.advance(0.6)  # beyond the third tick: its commit, and the event's, is the last
    assert scene.sent(t) == [1, 2, 3]


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


class Disturbed:
    """A seeded run of an app under failing commits, rebalances, members given up and delays."""

    def __init__(self, seed: int, guarantee: Guarantee, *, moving: bool = False) -> None:
        self.draw = random.Random(seed)
        self.moving = moving
        self.scene = Scene(
            commit_interval=self.draw.choice([0.1, 5]),
            processing_guarantee=guarantee,
            interval=0.5,
            naps={
                n: self.draw.choice([0.01, 0.3, 1]) for n in range(40) if self.draw.random() < 0.2
            },
        )

    async def run(self, seed: int, workers: int) -> trickle.testing.Simulation:
        draw, scene = self.draw, self.scene
        async with trickle.testing.run(scene.app, seed=seed, workers=workers) as t:
            for number in range(1, 41):
                t.broker.commit_delay = 0
                if draw.random() < 0.6:
                    await t.send(scene.source, number, key=draw.choice("abcd"))
                await self._disturb(t)
                await t.advance(draw.choice([0.03, 0.1, 0.3, 1.1]))
            t.broker.commit_delay = t.broker.fetch_delay = 0
            while t.broker.take_fault() is not None:
                pass  # no commit has met it
            await t.advance(120)
            await t.settled()
            self.ticked = scene.ticked
        return t

    async def _disturb(self, t: trickle.testing.Simulation) -> None:
        chance, draw = self.draw.random(), self.draw
        if chance < 0.35:
            t.broker.fail_commits(draw.choice([*FAULTS, cast("CommitFault", "fenced")]))
        elif chance < 0.45:
            t.broker.rebalance("app")
        elif chance < 0.5 and len(t.workers) == 1:
            for member in t.broker.members("app"):
                t.broker.kill(member)
        elif chance < 0.6:
            t.broker.commit_delay = draw.choice([0.1, 0.6])
        elif chance < 0.75:  # openings that take longer than it takes a commit to fail
            t.broker.fetch_delay = draw.choice([0.0, 0.2, 1.5])
        elif chance < 0.8 and self.moving:
            await t.rebalance(workers=draw.choice([1, 2, 3]))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(16))
async def test_nothing_is_lost_or_doubled_whatever_becomes_of_commits(
    mock_clock: MockClock, seed: int, workers: int
) -> None:
    run = Disturbed(seed, "exactly_once")
    t = await run.run(seed, workers)
    scene = run.scene
    values = sorted(event.value for event in t.sent(scene.source))
    assert sorted(scene.called) == sorted(scene.sunk) == values
    assert sorted(scene.sent(t)) == list(range(1, run.ticked + 1))
    if workers == 1:
        assert scene.sent(t) == sorted(scene.sent(t))
        assert scene.called == scene.sunk


@pytest.mark.parametrize("seed", range(16))
async def test_nothing_is_lost_or_doubled_while_workers_come_and_go(
    mock_clock: MockClock, seed: int
) -> None:
    """Some commit without a partition, or while others take theirs and commit there."""
    run = Disturbed(seed, "exactly_once", moving=True)
    t = await run.run(seed, 2)
    scene = run.scene
    values = sorted(event.value for event in t.sent(scene.source))
    assert sorted(scene.called) == sorted(scene.sunk) == values
    assert sorted(scene.sent(t)) == list(range(1, run.ticked + 1))


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_at_least_once(mock_clock: MockClock, seed: int) -> None:
    run = Disturbed(seed, "at_least_once")
    t = await run.run(seed, 1)
    scene = run.scene
    assert set(scene.called) == set(scene.sunk) == {e.value for e in t.sent(scene.source)}
    assert set(scene.sent(t)) == set(range(1, run.ticked + 1))


async def test_what_timers_send_while_the_broker_is_away_is_bounded(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(interval=0.1)
    lasting = WAITING_MAX / 10
    async with trickle.testing.run(scene.app) as t:
        await t.advance(20)
        t.broker.unavailable = True
        await t.advance(2 * lasting)
        assert scene.ticked == pytest.approx(WAITING_MAX + 200, abs=100)
        t.broker.unavailable = False
        await t.advance(100)
        assert scene.sent(t) == list(range(1, scene.ticked + 1))
        assert scene.ticked > WAITING_MAX + 500
    said = [r.message for r in caplog.records if "its ticks are left out until" in r.message]
    assert len(said) == 1


@pytest.mark.parametrize("fault", ["fenced", "away"])
async def test_a_worker_without_partitions_finds_its_way_back(
    mock_clock: MockClock, fault: str
) -> None:
    """Two workers, two partitions of the one topic that only one of them reads."""
    scene = Scene(partitions=1)
    async with trickle.testing.run(scene.app, workers=2) as t:
        await t.advance(1.5)
        for number in (0, 1):
            if fault == "fenced":
                t.broker.open_epoch(f"app-worker-{number}")
            t.broker.unavailable = fault == "away"
            await t.advance(1)
            t.broker.unavailable = False
            await t.advance(10)
        await t.advance(20)
        assert sorted(scene.sent(t)) == list(range(1, scene.ticked + 1))
        failed = [run.monitor.statistics().commits.failed for run in t.runs()]
        assert sum(failed) < 30


async def test_an_assignment_is_opened_once_whoever_asks(mock_clock: MockClock) -> None:
    """Positions go out of range during the pause before the generation after two failures."""
    scene = Scene()
    async with trickle.testing.run(scene.app, out_of_range="earliest") as t:
        await t.send(scene.source, 0, partition=0)
        await t.advance(1)
        t.broker.fail_commits("aborted", "aborted")
        await t.send(scene.source, 1, partition=0)
        while t.runs()[0].monitor.statistics().commits.failed < 2:
            await t.advance(0.005)
        t.broker.fetch_delay = 0.02
        for number in range(2, 10):
            await t.send(scene.source, number, partition=0)
        t.broker.log(trickle.TopicPartition("source", 0)).delete_before(6)
        t.broker.topic("source").wake()
        await t.advance(20)
        for number in range(10, 15):
            await t.send(scene.source, number, partition=0)
        await t.advance(20)
        assert scene.called == scene.sunk
        assert scene.called[-9:] == list(range(6, 15))
        assert len(set(scene.called)) == len(scene.called)


async def test_a_failed_commit_waits_for_no_recovery(mock_clock: MockClock) -> None:
    """One partition is at work while the other recovers, fetch by fetch."""
    app = trickle.App("app", commit_interval=1)
    source = app.topic("source", key=str, value=int, partitions=2)
    sums = app.table("sums", key=str, value=int, default=int)
    out = app.topic("out", value=int)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for key, value in stream.items():
            sums[key] += value
            if value > 1:
                out.send_nowait(sums[key])

    del work
    keys: tuple[list[str], list[str]] = ([], [])
    for number in range(24_000):
        key = f"k{number}"
        keys[partition_of(key.encode(), 2)].append(key)
    async with trickle.testing.run(app, workers=2) as t:
        conductor = t.runs()[0].conductor
        assert conductor is not None
        (mine,) = {lane.partition for lane in conductor.lanes()}
        assert mine is not None
        key, others = keys[mine][0], keys[1 - mine]
        for one in [key, *others]:
            await t.send(source, 1, key=one)
        await t.settled()
        t.broker.fetch_delay = 20
        await t.rebalance(workers=1)
        await t.advance(30)
        assert {lane.partition for lane in conductor.lanes()} == {mine}  # the other one recovers
        t.broker.fail_commits("aborted")
        await t.send(source, 5, key=key)
        await t.advance(60)
        assert {lane.partition for lane in conductor.lanes()} == {mine}
        assert [event.value for event in t.sent(out)] == [6]
        t.broker.fetch_delay = 0.1
        await t.advance(100)
        await t.send(source, 5, key=others[0])
        await t.advance(10)
        assert [event.value for event in t.sent(out)] == [6, 6]
        assert len(sums) == 1 + len(others)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_stop_in_the_midst_of_a_doubt_leaves_nothing_behind(
    mock_clock: MockClock, fault: CommitFault
) -> None:
    """The generation has ended, and the next one is not open yet."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await t.advance(0.95)
        await t.send(scene.source, 1, partition=0)
        t.broker.fail_commits(fault, fault)
        while t.runs()[0].monitor.statistics().commits.failed < 2:
            await t.advance(0.005)
        await t.advance(0.05)  # into the pause before the generation after two failures
    assert scene.sent(t) == list(range(1, scene.ticked + 1))
    committed = t.broker.group("app").offsets
    there = [place for place, found in committed.items() if found.offset]
    assert scene.called == [1] * len(there)


async def test_what_settles_behind_a_commit_in_doubt_makes_no_clean_exit(
    mock_clock: MockClock,
) -> None:
    """The commit that is under way at the stop happens, and what a lane drains is in none."""
    scene = Scene(commit_interval=0.1)
    seen: list[trickle.testing.Simulation] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(scene.app) as t:
            seen.append(t)
            await t.advance(0.9)
            t.broker.fail_commits("applied")
            await t.send(scene.source, SLOW, partition=1)
            await t.send(scene.source, 1, partition=0)
            t.broker.commit_delay = 0.2
            await t.advance(0.12)
    assert caught.group_contains(CommitFailed)
    assert scene.called == [1]
    assert scene.sent(seen[0]) == list(range(1, scene.ticked + 1))


async def test_a_doubt_leaves_no_position_of_a_partition_that_has_moved(
    mock_clock: MockClock,
) -> None:
    """A tick would write it, and so take the other worker's position back."""
    scene = Scene(partitions=4)
    faults: list[CommitFault] = ["lost"] * 4
    async with trickle.testing.run(scene.app, workers=2) as t:
        for partition in range(4):
            await t.send(scene.source, partition, partition=partition)
        await t.settled()
        await t.advance(0.95)
        for partition in range(4):
            await t.send(scene.source, partition + 4, partition=partition)
        t.broker.fail_commits(*faults)
        while sum(run.monitor.statistics().commits.failed for run in t.runs()) < 4:
            await t.advance(0.005)
        await t.rebalance(workers=3)
        await t.advance(3)
        for run in t.runs():
            assert run.conductor is not None
            assert run.consumer is not None
            held = {
                trickle.TopicPartition(scene.source.name, lane.partition)
                for lane in run.conductor.lanes()
                if lane.partition is not None
            }
            assert set(run.consumer.positions()) == held
        for partition in range(4):
            await t.send(scene.source, partition + 10, partition=partition)
        await t.advance(3)
        await t.rebalance(workers=1)
        await t.settled()
        assert sorted(scene.called) == [*range(8), 10, 11, 12, 13]
