"""Standby replicas in virtual time: workers with disks of their own, crashes, takeovers."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.sensors import BaseSensor
from trickle.stores.memory import MemoryDisk


class Recoveries(BaseSensor):
    """Remembers how many records each takeover replayed."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        self.seen.append((partition, records))


def counting_app(
    partitions: int = 4,
) -> tuple[trickle.App, trickle.Topic[int, str], trickle.Table[str, int], Recoveries]:
    sensor = Recoveries()
    app = trickle.App("app", sensors=[sensor])
    source = app.topic("source", key=str, value=int, partitions=partitions)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, name="count")
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            if event.value % 7 == 0:
                await trio.sleep(0.01)

    return app, source, counts, sensor


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_takeover_replays_the_tail_alone(mock_clock: MockClock, replicas: int) -> None:
    """Worker 1 goes, and its partitions come to worker 0.

    With a standby it replays what came in the last second; without one, all that came since it had
    them itself.
    """
    app, source, counts, sensor = counting_app()
    async with trickle.testing.run(app, workers=2, standby_replicas=replicas) as t:
        for number in range(400):
            await t.send(source, number, key=f"k{number}")
        await t.advance(20)
        await t.settled()
        standbys = [live.standbys for live in t.runs()]
        if replicas:
            kept = [s.statistics().standbys for s in standbys if s is not None]
            assert [[state.partition for state in held] for held in kept] == [[2, 3], [0, 1]]
            assert [state.lag for held in kept for state in held] == [0, 0, 0, 0]
        else:
            assert standbys == [None, None]
        for number in range(4):
            await t.send(source, number, key=f"k{number}")
        await t.advance(0.2)
        await t.settled()
        sensor.seen.clear()
        await t.rebalance(workers=1)
        await t.settled()
        replayed = sum(records for partition, records in sensor.seen if partition >= 2)
        if replicas:
            assert replayed <= 4
        else:
            assert replayed > 150
        assert dict(counts.items()) == {f"k{n}": 1 + (n < 4) for n in range(400)}


async def test_a_worker_that_lost_its_disk_is_served_by_standbys(mock_clock: MockClock) -> None:
    """Its partitions are warm on the others while it is gone; it fills its own anew."""
    app, source, counts, sensor = counting_app(6)
    async with trickle.testing.run(app, workers=3, standby_replicas=2) as t:
        for number in range(600):
            await t.send(source, number, key=f"k{number}")
        await t.advance(20)
        await t.settled()
        victim = t.workers.pop(0)
        assert victim.run is not None
        victim.run.cancel()
        sensor.seen.clear()
        await t.advance(20)
        await t.settled()
        assert sum(records for _, records in sensor.seen) == 0
        victim.disk = MemoryDisk()
        assert dict(counts.items()) == {f"k{n}": 1 for n in range(600)}


@pytest.mark.parametrize("seed", range(6))
async def test_crashes_and_rebalances_with_standbys(mock_clock: MockClock, seed: int) -> None:
    app, source, counts, _ = counting_app()
    dice = random.Random(seed)
    sent: dict[str, int] = {}
    settings = {"standby_replicas": dice.choice((1, 2))}
    async with trickle.testing.run(app, seed=seed, workers=3, **settings) as t:
        t.broker.markers = bool(seed % 2)
        for number in range(150):
            key = f"k{dice.randrange(20)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, number, key=key)
            if dice.random() < 0.2:
                await t.advance(dice.random() * 3)
            if dice.random() < 0.05:
                await t.rebalance(workers=dice.choice((1, 2, 3)))
            if dice.random() < 0.05:
                await t.crash(dice.randrange(len(t.workers)))
            if dice.random() < 0.05:
                disk, place = t.workers[0].disk, (4, dice.randrange(4))
                if place not in disk.held:
                    disk.environments.pop(place, None)
        await t.advance(30)
        await t.settled()
        assert dict(counts.items()) == sent
        # What is kept is what the owners have, whoever keeps it.
        await t.advance(10)
        for worker in t.workers:
            assert worker.run is not None
            assert worker.run.standbys is not None
            for state in worker.run.standbys.statistics().standbys:
                stored = worker.disk.environments[4, state.partition]["counts"]
                keys = {key.decode() for key, _ in stored.scan(None, 1000)}
                shard = next(s for s in t.shards_of(counts) if s.partition == state.partition)
                assert keys == {shard.keys.key(mark) for mark in shard.marks(None)}
                assert all(stored.get(k.encode()) == b"%d" % sent[k] for k in keys)
                assert state.lag == 0
