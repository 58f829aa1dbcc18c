"""Two programs with one app id are told of; one program on several workers is not."""

from __future__ import annotations

import logging

import pytest
from trio.testing import MockClock

import trickle
from trickle import testing
from trickle.namesakes import program_of
from trickle.run import Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.testing.simulation import Simulation


def make_app(agent: str, topic: str = "numbers") -> tuple[trickle.App, trickle.Topic[int, str]]:
    app = trickle.App("shared")
    source = app.topic(topic, key=str, value=int, partitions=3)

    @app.agent(source, name=agent)
    async def handle(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    del handle
    return app, source


def surroundings(t: Simulation, name: str) -> Surroundings:
    return Surroundings(transport=t.transport, store=lambda: MemoryStore(MemoryDisk()), name=name)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


async def run_beside(
    t: Simulation, other: trickle.App, source: trickle.Topic[int, str], rounds: int = 3
) -> None:
    resolved = other.resolve(broker="memory://testing", store="memory://", web=False)
    async with open_run(other.definitions(), resolved, surroundings=surroundings(t, "other")):
        for round_ in range(rounds):
            for partition in range(3):
                await t.send(source, round_, key="k", partition=partition)
            await t.advance(10.5)


@pytest.mark.parametrize(
    ("topic", "named"), [("numbers", {"numbers"}), ("letters", {"letters", "numbers"})]
)
async def test_another_program_is_told_of_by_each_of_the_two_once(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture, topic: str, named: set[str]
) -> None:
    app, source = make_app("one")
    other, _ = make_app("two", topic=topic)
    async with testing.run(app) as t:
        await run_beside(t, other, source)
    told = complaints(caplog)
    assert len(told) == 2, told
    assert all("app id 'shared'" in text for text in told)
    assert {text.split("topic '")[1].split("'")[0] for text in told} == named


async def test_workers_of_one_program_are_not_told_of(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, source = make_app("one")
    other, _ = make_app("one")
    async with testing.run(app) as t:
        await run_beside(t, other, source)
    assert complaints(caplog) == []


async def test_what_an_earlier_program_has_left_is_no_sign(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, source = make_app("one")
    other, _ = make_app("two")
    async with testing.run(app, workers=2) as t:
        resolved = other.resolve(broker="memory://testing", store="memory://", web=False)
        async with open_run(other.definitions(), resolved, surroundings=surroundings(t, "other")):
            for partition in range(3):
                await t.send(source, 1, key="k", partition=partition)
            await t.advance(5)
        await t.advance(35)
    assert complaints(caplog) == []


def test_a_program_is_its_agents_and_what_they_read() -> None:
    assert program_of({"a": ["x", "y"], "b": []}) == program_of({"b": [], "a": ["y", "x"]})
    different = [{"a": ["x"]}, {"a": ["y"]}, {"b": ["x"]}, {"a": ["x", "y"]}, {}]
    assert len({program_of(agents) for agents in different}) == len(different)


def summing(*topics: str) -> tuple[trickle.App, list[trickle.Topic[int, str]]]:
    app = trickle.App("shared")
    sources = [app.topic(topic, key=str, value=int, partitions=2) for topic in topics]
    sums = app.table("sums", key=str, value=int, default=int)

    @app.agent(sources, name="sum")
    async def add(stream: trickle.Stream[int, str]) -> None:
        async for key, value in stream.items():
            sums[key] += value

    del add
    return app, sources


async def test_an_upgrade_that_adds_a_topic_to_a_tables_agent_counts_right(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The old worker has a part of the old topic, and the new one has all of the new topic."""
    new, sources = summing("old", "new")
    before, _ = summing("old")
    resolved = before.resolve(broker="memory://testing", store="memory://", web=False)
    async with testing.run(new) as t:
        async with open_run(before.definitions(), resolved, surroundings=surroundings(t, "other")):
            await t.advance(5)
            for _ in range(10):
                for source in sources:
                    for partition, key in enumerate("ab"):
                        await t.send(source, 1, key=key, partition=partition)
                await t.advance(2)
        await t.advance(10)
        await t.settled()
        assert dict(new.tables["sums"].items()) == {"a": 20, "b": 20}
    waiting = [r.getMessage() for r in caplog.records if r.name == "trickle.scope"]
    assert len(waiting) == 1
    assert waiting[0].startswith("partition ")
    assert " of new waits: that of old, of the same tables, is another worker's" in waiting[0]
