"""Changelogs and repartition topics that take nothing any more, and topics that have grown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.positions import read_positions
from trickle.transport.contract import CommittedOffset, TopicSpec
from trickle.transport.memory.log import PartitionLog, policy_of

AT = trickle.TopicPartition("source", 0)


def place(t: trickle.testing.Simulation, at: trickle.TopicPartition = AT) -> int:
    """Return what is committed."""
    return t.broker.group("app").offsets[at].offset


def counting_app(policy: trickle.Policy) -> tuple[trickle.App, trickle.Topic[str, bytes]]:
    app = trickle.App("app")
    source = app.topic("source", value=str, partitions=1)
    out = app.topic("out", value=str, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, on_error=policy)
    async def count(stream: trickle.Stream[str]) -> None:
        async for value in stream:
            counts[value] += 1
            await out.send(value)

    return app, source


@pytest.mark.parametrize("policy", [trickle.Skip(), trickle.DeadLetter(), trickle.Stop()], ids=repr)
@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("gone", ["app-counts-changelog", "out"])
async def test_no_event_is_blamed_for_a_topic_that_is_gone(
    mock_clock: MockClock, policy: trickle.Policy, guarantee: str, gone: str
) -> None:
    app, source = counting_app(policy)
    ran: list[trickle.testing.Simulation] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app, processing_guarantee=guarantee) as t:
            ran.append(t)
            for value in ("a", "b"):
                await t.send(source, value)
            await t.settled()
            t.broker.delete(gone)
            for value in ("c", "d"):
                await t.send(source, value)
            await t.advance(30)
    assert caught.group_contains(trickle.TopicError, match=f"'{gone}'")
    assert place(ran[0]) == 2
    if isinstance(policy, trickle.DeadLetter):
        assert not ran[0].broker.records("app-count-dead-letters")


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_a_topic_that_is_not_known_for_a_moment_costs_nothing(
    mock_clock: MockClock, guarantee: str
) -> None:
    """As a broker may say that has just come back, of any topic."""
    app, source = counting_app(trickle.Skip())
    async with trickle.testing.run(app, processing_guarantee=guarantee) as t:
        for _ in range(4):  # none of which counts towards the next
            t.broker.delete("out")
            for value in ("a", "b"):
                await t.send(source, value)
            await t.advance(6)
            t.broker.declare(TopicSpec(name="out", partitions=1))
            await t.advance(6)
            await t.settled()
            assert [record.value for record in t.broker.records("out")] == [b"a", b"b"]


async def test_a_changelog_that_is_gone_is_seen_by_an_idle_app(mock_clock: MockClock) -> None:
    app, source = counting_app(trickle.Stop())
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.send(source, "a")
            await t.settled()
            t.broker.delete("app-counts-changelog")
            await t.advance(20)
    assert caught.group_contains(
        trickle.TopicError, match="'app-counts-changelog' was deleted while the app ran"
    )


async def test_the_event_is_blamed_whose_value_is_too_large_for_a_changelog(
    mock_clock: MockClock,
) -> None:
    app, source = counting_app(trickle.Skip())
    async with trickle.testing.run(app) as t:
        t.broker.refuses = lambda topic, key, _: "changelog" in topic and b"big" in (key or b"")
        for value in ("a", "big", "b"):
            await t.send(source, value)
        await t.settled()
        assert place(t) == 3
        assert len(t.broker.records("app-counts-changelog")) == 2


async def test_a_sink_that_is_gone_is_told_once_and_harms_nobody_who_does_not_send(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, source = counting_app(trickle.Stop())
    async with trickle.testing.run(app) as t:
        await t.send(source, "a")
        await t.settled()
        t.broker.delete("out")
        await t.advance(60)
    assert caplog.text.count("topic 'out' was deleted while the app runs") == 1


async def test_no_event_is_blamed_for_a_repartition_topic_that_is_gone(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source.group_by(str, name="digit"), on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    ran: list[trickle.testing.Simulation] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            ran.append(t)
            await t.send(source, 1)
            await t.settled()
            t.broker.delete("app-digit-repartition")
            await t.send(source, 2)
            await t.advance(30)
    assert caught.group_contains(trickle.TopicError, match="'app-digit-repartition'")
    assert place(ran[0]) == 1


def grown_app() -> tuple[trickle.App, trickle.Topic[int, str], trickle.Topic[int, bytes]]:
    app = trickle.App("app", first_position="latest")
    source = app.topic("source", key=str, value=int)
    out = app.topic("out", value=int, partitions=1)

    @app.agent(source, sink=[out])
    async def work(stream: trickle.Stream[int, str]) -> AsyncIterator[int]:
        async for value in stream:
            yield value

    return app, source, out


def grow(t: trickle.testing.Simulation, partitions: int) -> None:
    spec = TopicSpec(name="source", partitions=partitions)
    logs = t.broker.topic("source").logs
    while len(logs) < partitions:
        logs.append(PartitionLog("source", len(logs), policy_of(spec)))


async def test_what_a_topic_has_grown_by_is_read_from_its_first_record(
    mock_clock: MockClock,
) -> None:
    """As several workers hold it, some of which hold nothing of what was there before."""
    app, source, out = grown_app()
    async with trickle.testing.run(app, partitions=2) as t:
        await t.send(source, 0, partition=0)
        await t.settled()
        for partitions in (4, 6):
            await t.rebalance(workers=0)
            grow(t, partitions)
            for partition in range(partitions):
                await t.send(source, partitions * 10 + partition, partition=partition)
            await t.rebalance(workers=3)
            await t.settled()
        assert sorted(e.value for e in t.sent(out)) == [0, *range(40, 44), *range(60, 66)]
        found = t.broker.group("app").offsets
        begun = {at.partition: read_positions(found[at]).partitions for at in found}
        assert begun == {0: 2, 1: 2, 2: 4, 3: 4, 4: 6, 5: 6}


async def test_partitions_without_an_offset_that_were_always_there_begin_at_their_end(
    mock_clock: MockClock,
) -> None:
    app, source, out = grown_app()
    async with trickle.testing.run(app, partitions=2) as t:
        await t.send(source, 0, partition=0)
        await t.settled()
        await t.rebalance(workers=0)
        del t.broker.group("app").offsets[trickle.TopicPartition("source", 1)]
        await t.send(source, 1, partition=1)
        await t.rebalance(workers=1)
        await t.send(source, 2, partition=1)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [0, 2]


async def test_offsets_of_before_this_was_noted_tell_of_no_growth(mock_clock: MockClock) -> None:
    app, source, out = grown_app()
    async with trickle.testing.run(app, partitions=1) as t:
        await t.send(source, 0, partition=0)
        await t.settled()
        await t.rebalance(workers=0)
        t.broker.group("app").offsets[AT] = CommittedOffset(1)
        grow(t, 2)
        await t.send(source, 1, partition=1)
        await t.rebalance(workers=1)
        await t.send(source, 2, partition=1)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [0, 2]


async def test_a_changelog_that_the_broker_cleans_away_is_told(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, source = counting_app(trickle.Stop())
    async with trickle.testing.run(app) as t:
        await t.settled()
        assert "is not compacted" not in caplog.text
        await t.rebalance(workers=0)
        t.broker.delete("app-counts-changelog")
        t.broker.declare(TopicSpec(name="app-counts-changelog", partitions=1))
        await t.rebalance(workers=1)
        await t.send(source, "a")
        await t.settled()
    assert "changelog 'app-counts-changelog' is not compacted (cleanup.policy)" in caplog.text


@pytest.mark.parametrize("what", ["count", "table", "repartition"])
async def test_what_cannot_follow_a_source_that_has_grown_says_so(
    mock_clock: MockClock, what: str
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=str, partitions=1 if what == "count" else None)
    counts: Any = app.table("counts", key=str, value=int) if what == "table" else {}
    by_letter: Any = source.group_by(str, name="letter")
    stream_of: Any = by_letter if what == "repartition" else source

    @app.agent(stream_of)
    async def count(stream: trickle.Stream[str]) -> None:
        async for value in stream:
            counts[value] = 1

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app, partitions=1) as t:
            await t.send(source, "a")
            await t.settled()
            await t.rebalance(workers=0)
            grow(t, 2)
            await t.rebalance(workers=1)
    words = {
        "count": "'source' has 2 partitions on the broker, and partitions=1 in the app",
        "table": "'app-counts-changelog' has 1 partitions, .* cannot follow a source",
        "repartition": "'app-letter-repartition' has 1 partitions, .* delete the repartition topic",
    }
    assert caught.group_contains(trickle.TopicError, match=words[what])
