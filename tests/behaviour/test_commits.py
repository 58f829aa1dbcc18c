"""When commits are made, and what they hold."""

from __future__ import annotations

import trio
from trio.testing import MockClock

import trickle
import trickle.testing


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
