"""What can be done with a stream, and with a source before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


async def test_operators(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    seen: list[object] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for pair in stream.filter(lambda v: v % 2).map(lambda v: v * 10).items():
            seen.append(pair)

    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value, key=f"k{value}")
        await t.settled()
    assert seen == [("k1", 10), ("k3", 30), ("k5", 50)]


async def test_take_is_one_event(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    sums = app.table("sums", key=str, value=int, default=int)
    batches: list[list[int]] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for batch in stream.take(4, within=10):
            batches.append(batch)
            sums["k"] += sum(batch)

    async with trickle.testing.run(app) as t:
        for value in range(1, 7):
            await t.send(source, value, key="k")
        await t.advance(5)
        assert sums["k"] == 10
        assert t.broker.group("app").offsets[trickle.TopicPartition("source", 0)].offset == 4
        await t.advance(6)
        await t.settled()
        assert sums["k"] == 21
    assert batches == [[1, 2, 3, 4], [5, 6]]


async def test_events_of_a_group_stay_in_hand_until_its_end(mock_clock: MockClock) -> None:
    """The group is longer than the chunks that it comes from; its first event is still its own."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for group in stream.events().take(100, within=1):
            for event in group:
                event.forward(out)

    async with trickle.testing.run(app) as t:
        for value in range(150):
            await t.send(source, value, key="k")
        await t.advance(2)
        await t.settled()
        assert [e.value for e in t.sent(out)] == list(range(150))


async def test_take_retries_the_whole_batch(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    sums = app.table("sums", key=str, value=int, default=int)
    batches: list[list[int]] = []

    @app.agent(source, on_error=trickle.Retry(times=1, backoff=1))
    async def work(stream: trickle.Stream[int]) -> None:
        async for batch in stream.take(3, within=5):
            batches.append(batch)
            sums["k"] += sum(batch)
            if len(batches) == 2:
                raise RuntimeError("once")

    async with trickle.testing.run(app) as t:
        for value in range(1, 8):
            await t.send(source, value, key="k")
        await t.advance(20)
        await t.settled()
        assert sums["k"] == 28
    assert batches == [[1, 2, 3], [4, 5, 6], [4, 5, 6], [7]]


async def test_a_batch_cut_short_by_the_end_is_dropped(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    batches: list[list[int]] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for batch in stream.take(2):
            batches.append(batch)

    async with trickle.testing.run(app) as t:
        broker = t.broker
        for value in (1, 2, 3):
            await t.send(source, value)
        await t.advance(1)
    assert batches == [[1, 2]]
    assert broker.group("app").offsets[trickle.TopicPartition("source", 0)].offset == 2


async def test_flat_map_settles_after_the_last_value(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for number, value in stream.flat_map(range).enumerate():
            del number
            await out.send(value)
            if value == 2:
                raise ValueError("two")

    async with trickle.testing.run(app) as t:
        for value in (2, 3, 1):
            await t.send(source, value)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [0, 1, 0]


async def test_group_by_and_through(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=dict[str, int], partitions=4)
    middle = app.topic("middle", key=str, value=dict[str, int], partitions=2)
    counts = app.table("counts", key=str, value=int, default=int, source=source)
    keys: list[object] = []

    @app.agent(source.filter(lambda v: v["n"] > 0).group_by(lambda v: f"g{v['n'] % 3}", name="mod"))
    async def grouped(stream: trickle.Stream[dict[str, int], str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1

    @app.agent(source.through(middle))
    async def after(stream: trickle.Stream[dict[str, int], str]) -> None:
        async for key, _ in stream.items():
            keys.append(key)

    async with trickle.testing.run(app) as t:
        for number in range(10):
            await t.send(source, {"n": number}, key=str(number))
        await t.settled()
        assert dict(counts.items()) == {"g0": 3, "g1": 3, "g2": 3}
        assert sorted(str(k) for k in keys) == [str(n) for n in range(10)]
        assert len(t.broker.records("app-mod-repartition")) == 9


async def test_several_topics(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    left = app.topic("left", key=str, value=int, partitions=2)
    right = app.topic("right", key=str, value=int, partitions=2)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent([left, right])
    async def both(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += event.value
            await trio.lowlevel.checkpoint()

    async with trickle.testing.run(app) as t:
        for number in range(10):
            await t.send(left if number % 2 else right, 1, key=f"k{number % 3}")
        await t.settled()
        assert dict(counts.items()) == {"k0": 4, "k1": 3, "k2": 3}


async def test_batches_are_what_is_there_and_each_is_one_event(mock_clock: MockClock) -> None:
    """Two partitions; the batch that holds the value 5 fails once, and is then given as it was."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    sums = app.table("sums", key=str, value=int, default=int)
    batches: list[list[int]] = []
    failed: list[list[int]] = []

    @app.agent(source, on_error=trickle.Retry(times=1, backoff=0))
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for batch in stream.batches():
            sums["k"] += sum(batch)
            if 5 in batch and not failed:
                failed.append(batch)
                raise RuntimeError
            batches.append(batch)

    async with trickle.testing.run(app) as t:
        for value in range(40):
            await t.send(source, value, key="k")
        await t.settled()
        assert sums["k"] == sum(range(40))
    assert [value for batch in batches for value in batch] == list(range(40))
    assert len(batches) < 40
    assert failed[0][0] in {batch[0] for batch in batches}


async def test_batches_behind_operators_leave_nothing_out(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=list[int], partitions=1)
    letters = app.topic("letters", key=bytes, value=bytes, partitions=1)

    @app.agent(source, sink=out, on_error=trickle.DeadLetter(letters))
    async def work(stream: trickle.Stream[int, str]) -> AsyncIterator[list[int]]:
        odd = stream.filter(lambda value: value % 2).flat_map(lambda value: [value, -value])
        async for batch in odd.batches():
            if 13 in batch:
                raise RuntimeError
            yield batch

    async with trickle.testing.run(app) as t:
        for value in range(10):
            await t.send(source, value, key="k")
        await t.settled()
        await t.send(source, 13, key="k")
        await t.settled()
        sent = [value for event in t.sent(out) for value in event.value]
        assert sent == [signed for value in range(1, 10, 2) for signed in (value, -value)]
        assert [event.value for event in t.sent(letters)] == [b"13"]


@pytest.mark.parametrize("options", [{}, {"concurrency": 3}, {"deadline": 2.0}])
async def test_an_agent_that_iterates_again_and_again_ends_with_its_stream(
    mock_clock: MockClock, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What follows a break is one more loop, for ever; nothing in it lets others run."""
    app = trickle.App("app", drain_timeout=5)
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source, **options)
    async def forward(stream: trickle.Stream[int, str]) -> None:
        while True:
            async for value in stream:
                out.send_nowait(value, key="k")
                if value % 2:
                    break

    for _ in range(2):
        async with trickle.testing.run(app) as t:
            for value in range(6):
                await t.send(source, value, key=str(value))
            await t.rebalance(workers=2)
            await t.settled()
            await t.send(source, 7, key="k")
        assert sorted(event.value for event in t.sent(out)) == [0, 1, 2, 3, 4, 5, 7]
    assert "did not finish" not in caplog.text


async def test_flat_map_takes_async_functions_and_generators(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    seen: list[int] = []

    async def doubled(value: int) -> list[int]:
        await trio.sleep(0.1)
        return [value, value]

    async def below(value: int) -> AsyncIterator[int]:
        for number in range(value):
            await trio.sleep(0.1)
            yield number

    @app.agent(source.flat_map(doubled))
    async def collect(stream: trickle.Stream[int]) -> None:
        async for value in stream.flat_map(below):
            seen.append(value)

    async with trickle.testing.run(app) as t:
        await t.send(source, 2)
        await t.send(source, 0)
        await t.send(source, 1)
        await t.advance(10)
        await t.settled()
    assert seen == [0, 1, 0, 1, 0, 0]
