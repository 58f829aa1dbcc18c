"""Concurrency within a partition: keys of odd kinds, and agents that will not end."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.ledger import Ledger
from trickle.streams import ConcurrentLane, Lane, Ordering, Pace, Strand
from trickle.streams.nowhere import Nowhere
from trickle.transport.shared import RecordBatch
from trickle.types import Record


async def test_a_key_that_cannot_be_read_is_an_order_as_well(mock_clock: MockClock) -> None:
    """It is an error of the event that asks for it, and of no other."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    done: list[int] = []

    @app.agent(source, concurrency=3, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            await trio.sleep(event.value)
            assert event.value == 1 or event.key
            done.append(event.value)

    del work
    async with trickle.testing.run(app) as t:
        assert t.producer is not None
        for value in (3, 1, 2):
            await t.producer.send("source", 0, b"\xff", b"%d" % value, (), None)
        await t.send(source, 5, key="a")
        await t.advance(10)
        await t.settled()
    assert done == [1, 5]


async def test_lists_as_keys_are_in_order(mock_clock: MockClock) -> None:
    """They cannot be hashed; each is one key, in tables as well."""
    app = trickle.App("app")
    source = app.topic("source", key=list[int], value=int, partitions=1)
    sums = app.table("sums", key=list[int], value=int, default=int)

    @app.agent(source, concurrency=5)
    async def work(stream: trickle.Stream[int, list[int]]) -> None:
        async for event in stream.events():
            before = sums[event.key]
            await trio.sleep(1)
            sums[event.key] = before + event.value

    del work
    async with trickle.testing.run(app) as t:
        for value in range(20):
            await t.send(source, value, key=[value % 3])
        await t.advance(10)
        await t.settled()
        assert [sums[[n]] for n in range(3)] == [sum(range(n, 20, 3)) for n in range(3)]


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_an_event_that_resists_its_end_has_no_effect(
    mock_clock: MockClock, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Shielded for 20 s, with 2 s to drain: its lane is given up, and the event runs elsewhere.

    What it does after that is an error, which is told and ends nobody.
    """
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)
    shielded = True

    @app.agent(source, concurrency=concurrency)
    async def work(stream: trickle.Stream[int, str]) -> None:
        nonlocal shielded
        async for event in stream.events():
            if event.value == 3 and shielded:
                shielded = False
                with trio.CancelScope(shield=True):
                    await trio.sleep(20)
            out.send_nowait(event.value, key=event.key)

    del work
    async with trickle.testing.run(app, drain_timeout=2) as t:
        for key, value in (("a", 3), ("b", 1), ("a", 2)):
            await t.send(source, value, key=key)
        await t.advance(1)
        await t.rebalance()
        await t.advance(60)
        await t.settled()
        assert sorted(event.value for event in t.sent(out)) == [1, 2, 3]
    assert "which resisted its cancellation, has failed since: the event of 'work'" in caplog.text


async def test_what_arrives_at_the_very_end_starts_no_strand() -> None:
    """The last strand has been cancelled, and its lane has not heard of it yet."""
    lane = ConcurrentLane(
        "agent",
        0,
        concurrency=3,
        ordering=Ordering("agent", "none", keys={}, values={}, changed=False),
        ledgers={"topic": Ledger(0)},
        rooms={"topic": 1000},
        view=lambda shard, _: shard,
        failed=lambda _, error: errors.append(error),
        refuse=refuse,
        shards={},
        positions={"topic": 0},
        codecs={},
        settlement=Nowhere(),
        pace=Pace(),
        taken=ignore,
    )
    batch = RecordBatch([Record("topic", 0, 0, -1, b"k", b"v")])
    errors: list[Exception] = []
    us = trio.lowlevel.current_task()
    exits: list[str] = []

    class AtTheEnd(trio.abc.Instrument):
        def task_exited(self, task: trio.lowlevel.Task) -> None:
            if task.name == "agent[0]":
                exits.append(task.name)

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task is us and exits:
                try:
                    lane.deliver(batch)
                except RuntimeError as error:
                    errors.append(error)

    async def never(strand: Strand) -> None:
        del strand
        await trio.sleep_forever()

    trio.lowlevel.add_instrument(AtTheEnd())
    with trio.move_on_after(0.01):
        await lane.run(never)
    assert exits == ["agent[0]"]
    assert not errors
    assert len(lane.strands) == 1


def ignore(size: int) -> None:
    del size


async def refuse(lane: Lane, record: Record, error: trickle.TrickleError) -> None:
    raise AssertionError(f"{lane}, {record}, {error}")


async def test_groups_end_early_where_their_positions_would_not_fit(mock_clock: MockClock) -> None:
    """Two keys in turn: when one's group settles, every second offset of the other's has not.

    Others with long names leave little room in the metadata of the committed offset.
    """
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    seen: list[list[int]] = []

    async def pass_by(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    for number in range(13):
        app.agent(source, name=f"{number:x}" * 240)(pass_by)

    @app.agent(source, concurrency=2)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for group in stream.take(3_000, within=1_000):
            seen.append(group)

    del work
    async with trickle.testing.run(app) as t:
        for number in range(5_999):
            await t.send(source, number, key="ab"[number % 2])
        await t.advance(1_100)
        await t.settled()
    assert sorted(number for group in seen for number in group) == list(range(5_999))
    for key in (0, 1):
        mine = [number for group in seen for number in group if number % 2 == key]
        assert mine == sorted(mine)
