"""Events that are interrupted: by a deadline, at a drain, or by a timeout of the agent's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.policies import Policy

POLICIES = [
    trickle.Stop(),
    trickle.Skip(),
    trickle.DeadLetter(),
    trickle.Retry(times=2, then=trickle.Skip()),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_what_follows_a_settled_event_is_under_no_deadline(
    autojump_clock: MockClock, policy: Policy, concurrency: int
) -> None:
    """A pause behind ``async with event``, longer than the deadline: the event has happened."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source, deadline=1, on_error=policy, concurrency=concurrency)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            async with event:
                out.send_nowait(event.value)
            await trio.sleep(2)

    async with trickle.testing.run(app) as t:
        for value in (1, 2, 3):
            await t.send(source, value, key="k")
        await t.advance(10)
        assert [event.value for event in t.sent(out)] == [1, 2, 3]
        assert work.dead_letters is None or not t.sent(work.dead_letters)


async def test_an_event_that_was_shielded_beyond_its_deadline_fails(
    autojump_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)

    @app.agent(source, deadline=1, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            async with event:
                out.send_nowait(event.value)
                with trio.CancelScope(shield=True):
                    await trio.sleep(3 if event.value == 1 else 0)

    del work
    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.send(source, 2)
        await t.advance(10)
        assert [event.value for event in t.sent(out)] == [2]


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_an_event_whose_cancellation_is_swallowed_has_not_happened(
    autojump_clock: MockClock, concurrency: int, returns: bool
) -> None:
    """It outlives the drain; what its agent does then goes nowhere, and it runs again."""
    app = trickle.App("app", drain_timeout=1)
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=str, partitions=1)
    hangs = True

    @app.agent(source, concurrency=concurrency)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for value in stream:
            out.send_nowait(f"begin {value}")
            try:
                await trio.sleep(100 if hangs else 0)
            except trio.Cancelled:
                if returns:
                    return
                continue
            out.send_nowait(f"end {value}")

    del work
    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="k")
        await trio.testing.wait_all_tasks_blocked()
        hangs = False
        await t.rebalance(workers=2)
        await t.settled()
        assert [event.value for event in t.sent(out)] == ["begin 1", "end 1"]


async def slow(value: int) -> int:
    await trio.sleep(0.6)
    return value


async def slowly_two(value: int) -> list[int]:
    await trio.sleep(0.6)
    return [value, value]


async def slowly_yes(value: int) -> bool:
    await trio.sleep(0.6)
    return value > 0


def listed(value: int) -> list[int]:
    return [value]


PULLS: dict[str, Callable[[trickle.Stream[int]], trickle.Stream[list[int]]]] = {
    "take": lambda stream: stream.take(4),
    "map": lambda stream: stream.map(slow).map(listed),
    "filter": lambda stream: stream.filter(slowly_yes).map(listed),
    "flat_map": lambda stream: stream.flat_map(slowly_two).map(listed),
    "flat_map map": lambda stream: stream.flat_map(lambda v: [v, v]).map(slow).map(listed),
    "map take": lambda stream: stream.map(slow).take(2),
    "filter items": lambda stream: stream.filter(slowly_yes).items().map(lambda item: [item[1]]),
}


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("pull", PULLS)
async def test_a_timeout_of_the_agents_own_loses_nothing(
    autojump_clock: MockClock, pull: str, concurrency: int
) -> None:
    """What it kept from being given is given next time; once the timeout is long enough."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=list[int], partitions=1)

    @app.agent(source, concurrency=concurrency)
    async def work(stream: trickle.Stream[int]) -> None:
        values = PULLS[pull](stream)
        patience = 0.5
        while True:
            with trio.move_on_after(patience) as scope:
                try:
                    found = await values.__anext__()
                except StopAsyncIteration:
                    return
                out.send_nowait(found)
            if scope.cancelled_caught:
                patience += 0.5

    del work
    async with trickle.testing.run(app) as t:
        for value in range(1, 5):
            await t.send(source, value)
            await t.advance(0.7)
        await t.advance(20)
        sent = [value for event in t.sent(out) for value in event.value]
        each = 2 if "flat_map" in pull else 1
        assert sorted(sent) == sorted([*range(1, 5)] * each)


@pytest.mark.parametrize("policy", [trickle.Stop(), trickle.Skip()], ids=["Stop", "Skip"])
@pytest.mark.parametrize("step", ["map", "filter", "flat_map"])
async def test_an_end_that_is_not_the_streams_is_an_error(
    autojump_clock: MockClock, step: str, policy: Policy
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)

    async def end(value: int) -> list[int]:
        if value == 1:
            raise StopAsyncIteration
        return [value]

    @app.agent(source, on_error=policy)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in getattr(stream, step)(end):
            out.send_nowait(2)

    del work
    if isinstance(policy, trickle.Stop):
        with pytest.RaisesGroup(
            pytest.RaisesExc(RuntimeError, match=rf"stream\.{step}\(\) raised StopAsyncIteration"),
            flatten_subgroups=True,
        ):
            async with trickle.testing.run(app) as t:
                await t.send(source, 1)
                await t.settled()
        return
    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.send(source, 2)
        await t.settled()
        assert [event.value for event in t.sent(out)] == [2]


async def test_a_record_that_is_none_of_a_groups_events_is_named_with_them(
    autojump_clock: MockClock,
) -> None:
    """It begins a batch: the one before it in the group is of another batch."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream.take(5):
            pass

    del work
    with pytest.RaisesGroup(trickle.DecodeError, flatten_subgroups=True) as raised:
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await trio.sleep(1)
            await t.send(source, b"{oops", raw=True)
            for value in range(3):
                await t.send(source, value)
            await trio.sleep(1)
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert error.__notes__ == [
        "agent 'work' failed at the event of source [0] at offset 1",
        "agent 'work' failed at the 2 events of source [0] from offset 0 to 1",
    ]
