"""Tasks that an agent starts outside of its events, and where its errors are said to be."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


async def test_a_child_task_that_iterates_is_told_what_to_do(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async def consume() -> None:
            async for key, _ in stream.items():
                counts[key] += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)

    with pytest.RaisesGroup(
        pytest.RaisesExc(
            trickle.EventSettledError, match="iterate the stream in the agent's own task"
        ),
        flatten_subgroups=True,
    ):
        async with trickle.testing.run(app) as t:
            await t.send(source, 1, key="k")
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
