"""What a generation leaves behind is gone with it, without any help of the garbage collector.

A worker has the collector look seldom, for speed. So what holds much may not wait for it: records
that were fetched, and the caches of tables.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.streams import Lane
from trickle.tables import Shard
from trickle.transport.memory import CommitFault


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_generations_leave_no_records_and_no_caches(
    mock_clock: MockClock, concurrency: int
) -> None:
    """Partitions move to and fro between two workers, and commits fail, many times."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=4)
    counts = app.table("counts", key=str, value=int, default=int)
    lists = app.table("lists", key=str, value=list[int], default=list[int])

    @app.agent(source, concurrency=concurrency)
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            lists[event.key].append(event.value)

    async with trickle.testing.run(app) as t:
        held: list[tuple[int, int]] = []
        for turn in range(20):
            for number in range(20):
                await t.send(source, number, key=f"k{number}")
            faults: list[CommitFault] = ["aborted"] * (turn % 3)
            t.broker.fail_commits(*faults)
            await t.advance(5)
            await t.rebalance(workers=1 + turn % 2)
            await t.advance(5)
            found = gc.get_objects()
            lanes = [one for one in found if isinstance(one, Lane)]
            holding = sum(lane.batch is not None or bool(lane.inbox) for lane in lanes)
            held.append((sum(isinstance(one, Shard) for one in found), holding))
            del found, lanes
        # Two tables and one agent; both workers may have them all, one of them kept warm.
        assert max(shards for shards, _ in held) <= 2 * 4 * 2
        assert max(holding for _, holding in held) <= 4 * 2
