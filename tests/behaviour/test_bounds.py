"""What bounds an event: ``async with event``, a deadline, a group, a source's own steps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


async def test_a_member_of_a_batch_cannot_be_bounded_by_itself(mock_clock: MockClock) -> None:
    """It would settle the whole batch; what follows in it would be lost."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for events in stream.events().take(3, within=1):
            for event in events:
                async with event:
                    out.send_nowait(event.value, key="k")

    with pytest.RaisesGroup(
        pytest.RaisesExc(trickle.UsageError, match="part of a batch"), flatten_subgroups=True,
        allow_unwrapped=True,
    ):  # fmt: skip
        async with trickle.testing.run(app, seed=1) as t:
            for number in range(3):
                await t.send(source, number, key="k")
            await t.advance(5)
            assert not t.sent(out)


async def test_a_flat_map_s_event_settles_after_its_last_block(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.flat_map(lambda v: [v * 10, v * 10 + 1]).events():
            async with event:
                await out.send(event.value, key="k")

    async with trickle.testing.run(app, seed=1) as t:
        for number in range(3):
            await t.send(source, number, key="k")
        await t.settled()
        assert [event.value for event in t.sent(out)] == [0, 1, 10, 11, 20, 21]


async def test_a_short_batch_has_its_deadline(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    handled: list[list[int]] = []

    @app.agent(source, on_error=trickle.Skip(), deadline=1)
    async def work(stream: trickle.Stream[int]) -> None:
        async for values in stream.take(4, within=2):
            await trio.sleep(50)
            handled.append(values)

    async with trickle.testing.run(app, seed=1) as t:
        await t.send(source, 1, key="k")
        await t.advance(100)
        await t.settled()
        assert handled == []


async def test_a_source_s_own_steps_are_part_of_the_event(mock_clock: MockClock) -> None:
    """A deadline bounds them, and a flat_map's values together."""
    app = trickle.App("app")
    mapped = app.topic("mapped", key=str, value=int, partitions=1)
    many = app.topic("many", key=str, value=int, partitions=1)
    handled: list[str] = []

    async def slow(value: int) -> int:
        await trio.sleep(50)
        return value

    @app.agent(mapped.map(slow), on_error=trickle.Skip(), deadline=1)
    async def map_agent(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            handled.append("mapped")

    @app.agent(many.flat_map(lambda v: [v] * 5), on_error=trickle.Skip(), deadline=1)
    async def many_agent(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(0.6)
            handled.append("many")

    async with trickle.testing.run(app, seed=1) as t:
        await t.send(mapped, 1, key="k")
        await t.send(many, 1, key="k")
        await t.advance(100)
        await t.settled()
        assert handled == ["many"]


async def test_a_sink_s_key_that_does_not_fit_is_named(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=int, value=int)

    @app.agent(source, sink=out)
    async def work(stream: trickle.Stream[int]) -> AsyncIterator[int]:
        async for value in stream:
            yield value

    with pytest.RaisesGroup(
        pytest.RaisesExc(trickle.EncodeError, match="topic 'out', key: expected int, got 'x'"),
        flatten_subgroups=True, allow_unwrapped=True,
    ):  # fmt: skip
        async with trickle.testing.run(app, seed=1) as t:
            await t.send(source, 1, key="x")
            await t.settled()


async def test_a_forwarding_agent_shards_no_table(mock_clock: MockClock) -> None:
    """``through`` reads the first topic by an agent of trickle's own, which has no tables."""
    app = trickle.App("app")
    first = app.topic("first", key=str, value=int, partitions=2)
    second = app.topic("second", key=str, value=int, partitions=3)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(first.through(second))
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for key, value in stream.items():
            counts[key] += value

    async with trickle.testing.run(app, seed=1) as t:
        await t.send(first, 1, key="x")
        await t.settled()
        assert counts["x"] == 1
