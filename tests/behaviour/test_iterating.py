"""Who iterates an agent's stream: the agent itself, or one task that it starts."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


async def test_a_child_task_may_iterate_beside_another(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    sink = app.topic("sink", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    failed: list[int] = []

    @app.agent(source, on_error=trickle.Retry(1, backoff=0))
    async def work(stream: trickle.Stream[int, str]) -> None:
        async def beat() -> None:
            await trio.sleep_forever()

        async def consume() -> None:
            async for key, value in stream.items():
                counts[key] += 1
                sink.send_nowait(value, key=key)
                if value == 3 and not failed:
                    failed.append(value)
                    raise ValueError("the first time")
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            nursery.start_soon(consume)

    async with trickle.testing.run(app) as t:
        for value in range(5):
            await t.send(source, value, key="k")
        await t.crash()
        for value in range(5, 1000):
            await t.send(source, value, key="k")
        await t.settled()
        assert failed == [3]
        assert dict(counts) == {"k": 1000}
        assert [record.value for record in t.sent(sink)] == list(range(1000))


async def test_child_tasks_may_iterate_one_after_the_other(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    seen: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async def rest_of_a_chunk() -> None:
            async for key, value in stream.items():
                seen.append(value)
                if value % 2:
                    counts[key] += 1  # not the first one that a child takes from a chunk in hand
                if value % 100 == 99:
                    break

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rest_of_a_chunk)
        async for _ in stream:
            pass

    async with trickle.testing.run(app) as t:
        for value in range(400):
            await t.send(source, value, key="k")
            if value % 100 == 99:
                await t.settled()
        assert dict(counts) == {"k": 200}
    assert seen == list(range(400))


async def test_two_tasks_that_iterate_one_stream_are_told(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async def consume() -> None:
            async for _ in stream:
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            nursery.start_soon(consume)

    with pytest.raises(trickle.UsageError, match=r"^agent 'work': a second task iterates"):
        async with trickle.testing.run(app) as t:
            await t.settled()


async def test_a_task_from_before_the_first_event_is_told_that_it_has_none(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        values, handled = trio.open_memory_channel[int](0)

        async def handle() -> None:
            async for value in handled:
                source.send_nowait(value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle)
            async for value in stream:
                await values.send(value)

    with pytest.RaisesGroup(
        pytest.RaisesExc(
            trickle.EventSettledError, match="^this task of 'work' was started outside of any event"
        ),
        flatten_subgroups=True,
    ):
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await t.settled()


async def test_a_record_that_is_no_event_has_one_place(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    with pytest.RaisesGroup(
        pytest.RaisesExc(trickle.DecodeError, check=_is_located_once), flatten_subgroups=True
    ):
        async with trickle.testing.run(app) as t:
            await t.send(source, b"{oops", raw=True)
            await t.settled()


def _is_located_once(error: Exception) -> bool:
    place = "agent 'work' failed at the event of source [0] at offset 0"
    return [note for note in error.__notes__ if note.startswith("agent")] == [place]


async def test_an_event_is_forwarded_to_a_topic_only(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    told: list[str] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            with pytest.raises(trickle.UsageError) as raised:
                event.forward(cast("Any", "sink"))
            told.append(str(raised.value))

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()
    assert told == ["event.forward('sink'): that is no topic: give one of app.topic(…)"]
