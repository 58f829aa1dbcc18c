"""Crashes and rebalances at every moment, and at the worst ones: in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.types import Guarantee


class At(trio.abc.Instrument):
    """Calls something before the n-th step of any task."""

    def __init__(self, number: int, call: Callable[[], None]) -> None:
        self.left = number
        self._call = call

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.left -= 1
        if self.left == 0:
            self._call()


def pairs_app() -> tuple[trickle.App, trickle.Topic[int, str], trickle.Topic[int, str]]:
    """Make an app that counts per key, and sends each count; one event in three takes a while."""
    app = trickle.App("app", drain_timeout=2)
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", key=str, value=int, partitions=2)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, name="count")
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            out.send_nowait(counts[event.key], key=event.key)
            if event.value % 3 == 0:
                await trio.sleep(0.05)

    return app, source, out


def outputs(t: trickle.testing.Simulation, out: trickle.Topic[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in t.sent(out):
        found.setdefault(event.key, []).append(event.value)
    return found


async def test_a_crash_at_each_step_loses_and_doubles_nothing(mock_clock: MockClock) -> None:
    """The worker is cancelled before the first, the second, … step of any task, to the last."""
    number = 0
    while True:
        number += 1
        app, source, out = pairs_app()
        async with trickle.testing.run(app, seed=number % 7) as t:
            worker = t.workers[0]
            assert worker.run is not None
            instrument = At(number, worker.run.cancel)
            trio.lowlevel.add_instrument(instrument)
            for value in range(12):
                await t.send(source, value, key=f"k{value % 4}")
                if value % 2:
                    await t.advance(0.06)
            await t.advance(2)  # what is committed is stored meanwhile
            trio.lowlevel.remove_instrument(instrument)
            if instrument.left > 0:
                break
            await t.crash()
            await t.advance(5)
            await t.settled()
            assert outputs(t, out) == {f"k{key}": [1, 2, 3] for key in range(4)}, number
    assert number > 100


@pytest.mark.parametrize("seed", range(3))
async def test_workers_join_while_shards_recover(mock_clock: MockClock, seed: int) -> None:
    """Each fetch takes a while, so the second worker recovers when the third one joins."""
    app, source, out = pairs_app()
    dice = random.Random(seed)
    sent: dict[str, int] = {}
    async with trickle.testing.run(app, seed=seed) as t:
        for value in range(100):
            key = f"k{dice.randrange(20)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, value, key=key)
        await t.advance(20)
        t.broker.fetch_delay = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, t, 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(grow, t, 3)
        for value in range(50):
            key = f"k{dice.randrange(20)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, value, key=key)
        await t.advance(60)
        await t.settled()
        assert outputs(t, out) == {key: list(range(1, n + 1)) for key, n in sent.items()}


async def grow(t: trickle.testing.Simulation, workers: int) -> None:
    await t.rebalance(workers=workers)


async def test_a_join_while_an_agent_is_stuck(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An event takes 300 s the first time; a worker joins after one: it is given up and run again.

    What the stuck agent had written and sent is gone without a trace.
    """
    app = trickle.App("app", drain_timeout=2)
    source = app.topic("source", key=str, value=int, partitions=2)
    out = app.topic("out", key=str, value=int, partitions=2)
    counts = app.table("counts", key=str, value=int, default=int)
    stuck = {"k3"}

    @app.agent(source, name="count")
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            out.send_nowait(counts[event.key], key=event.key)
            if event.key in stuck:
                stuck.discard(event.key)
                await trio.sleep(300)

    async with trickle.testing.run(app) as t:
        for value in range(12):
            await t.send(source, value, key=f"k{value % 6}")
        await t.advance(1)
        began = trio.current_time()
        await t.rebalance(workers=2)
        assert trio.current_time() - began < 10
        await t.advance(10)
        await t.settled()
        assert outputs(t, out) == {f"k{key}": [1, 2] for key in range(6)}
    assert "did not finish its event within drain_timeout=2 s" in caplog.text


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_an_abandoned_event_that_ends_before_the_last_commit_runs_again(
    mock_clock: MockClock, concurrency: int, guarantee: Guarantee
) -> None:
    """It resists its cancellation, and ends while the revocation's commit waits for another one."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    other = app.topic("other", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)
    shielded = True

    @app.agent(source, concurrency=concurrency)
    async def work(stream: trickle.Stream[int, str]) -> None:
        nonlocal shielded
        async for event in stream.events():
            out.send_nowait(event.value, key=event.key)
            if event.value == 3 and shielded:
                shielded = False
                with trio.CancelScope(shield=True):
                    await trio.sleep(5.0)

    @app.timer(0.1)
    async def beat() -> None:
        other.send_nowait(1, key="x")

    async with trickle.testing.run(
        app, drain_timeout=2, processing_guarantee=guarantee, transaction_timeout=60,
        broker_timeout=30,
    ) as t:  # fmt: skip
        await t.send(source, 1, key="a")
        await t.advance(0.5)
        await t.send(source, 3, key="a")
        t.broker.commit_delay = 2.7  # a commit is nearly always under way
        await t.advance(0.5)
        await t.rebalance()
        await t.advance(6)
        t.broker.commit_delay = 0
        await t.advance(20)
        got = sorted(event.value for event in t.sent(out))
        assert got == [1, 3] if guarantee == "exactly_once" else set(got) == {1, 3}


async def test_an_agent_s_error_is_told_although_the_worker_is_asked_to_stop(
    mock_clock: MockClock,
) -> None:
    """The conductor drains the other lanes for it when the signal comes."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    slow = app.topic("slow", key=str, value=int, partitions=1)

    @app.agent(source)
    async def bad(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            raise ValueError("the agent's own error")

    @app.agent(slow)
    async def other(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(3)

    with pytest.RaisesGroup(
        pytest.RaisesExc(ValueError, match="the agent's own error"), flatten_subgroups=True,
        allow_unwrapped=True,
    ):  # fmt: skip
        async with trickle.testing.run(app, drain_timeout=10) as t:
            await t.send(slow, 1, key="a")
            await t.advance(0.5)
            await t.send(source, 3, key="a")
            await t.advance(0.5)
            run = t.workers[0].run
            assert run is not None
            run.stop()
            await t.advance(30)


async def test_who_only_reads_does_not_write_what_has_come_meanwhile(mock_clock: MockClock) -> None:
    """A reader that was given a default waits; the writer sets the key before it is done."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    names = app.table("names", key=str, value=list[str], default=list)
    seen: list[tuple[list[str], int]] = []

    @app.agent(source)
    async def write(stream: trickle.Stream[str, str]) -> None:
        async for event in stream.events():
            await trio.sleep(0.01)
            names[event.key].append(event.value)

    @app.agent(source)
    async def read(stream: trickle.Stream[str, str]) -> None:
        async for event in stream.events():
            found = names[event.key]
            await trio.sleep(0.1)
            seen.append((found, len(names)))

    del write, read
    async with trickle.testing.run(app) as t:
        await t.send(source, "v", key="a")
        await t.advance(1)
        await t.settled()
        assert seen == [([], 1)]
        assert names["a"] == ["v"]
