"""Every event is a transaction: what it sends and writes takes effect as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


class Flight(trickle.Model):
    carrier: str
    origin: str
    arr_delay: float | None = None


def flight(carrier: str = "AA", origin: str = "JFK", delay: float | None = None) -> Flight:
    return Flight(carrier=carrier, origin=origin, arr_delay=delay)


async def test_counts_and_outputs(mock_clock: MockClock) -> None:
    app = trickle.App("flights")
    flights = app.topic("flights", key=str, value=Flight, partitions=4)
    late = app.topic("late", key=str, value=Flight)
    by_carrier = app.table("by_carrier", key=str, value=int, default=int)

    @app.agent(flights)
    async def delays(stream: trickle.Stream[Flight]) -> None:
        async for one in stream:
            by_carrier[one.carrier] += 1
            if one.arr_delay and one.arr_delay > 60:
                late.send_nowait(one, key=one.carrier)

    async with trickle.testing.run(app, seed=1) as t:
        for number in range(20):
            carrier = "AA" if number % 2 else "UA"
            await t.send(flights, flight(carrier, delay=number * 10.0), key=carrier, timestamp=5.0)
        await t.settled()
        assert by_carrier["AA"] == 10
        assert by_carrier["UA"] == 10
        assert sorted(e.value.arr_delay or 0 for e in t.sent(late)) == [
            70.0, 80.0, 90.0, 100.0, 110.0, 120.0, 130.0, 140.0, 150.0, 160.0, 170.0, 180.0, 190.0,
        ]  # fmt: skip
        assert {e.key for e in t.sent(late)} == {"AA", "UA"}
        assert {e.timestamp for e in t.sent(late)} == {5.0}


async def test_a_failed_event_leaves_no_trace(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int)
    sums = app.table("sums", key=str, value=int, default=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            sums["all"] += value
            lists["all"].append(value)
            out.send_nowait(value, key="k")
            if value % 3 == 0:
                raise ValueError(f"bad {value}")

    async with trickle.testing.run(app) as t:
        for value in range(1, 11):
            await t.send(source, value, key="k")
        await t.settled()
        assert sums["all"] == sum(v for v in range(1, 11) if v % 3)
        assert lists["all"] == [v for v in range(1, 11) if v % 3]
        assert [e.value for e in t.sent(out)] == [v for v in range(1, 11) if v % 3]


async def test_stop_commits_what_has_settled_and_raises(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)
    seen: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            seen.append(value)
            await out.send(value * 10)
            if value == 3:
                raise ValueError("three")

    broker = None
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            broker = t.broker
            for value in range(1, 6):
                await t.send(source, value)
            await trio.sleep_forever()
    assert caught.group_contains(ValueError, match="three")
    assert seen == [1, 2, 3]
    assert broker is not None
    assert [r.value for r in broker.records("out")] == [b"10", b"20"]


async def test_retry_then_skip(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)
    attempts: list[tuple[int, float]] = []

    @app.agent(source, on_error=trickle.Retry(times=2, backoff=10, then=trickle.Skip()))
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            attempts.append((value, trio.current_time()))
            await out.send(value)
            if value == 2:
                raise RuntimeError("always")

    async with trickle.testing.run(app) as t:
        for value in (1, 2, 3):
            await t.send(source, value)
        await t.advance(60)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [1, 3]
    assert [value for value, _ in attempts] == [1, 2, 2, 2, 3]
    times = [at for value, at in attempts if value == 2]
    assert times == [0.0, 10.0, 30.0]


async def test_retries_that_succeed_count_once(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    failures = 2

    @app.agent(source, on_error=trickle.Retry(times=3, backoff=1))
    async def work(stream: trickle.Stream[int]) -> None:
        nonlocal failures
        async for value in stream:
            counts["n"] += value
            if value == 2 and failures:
                failures -= 1
                raise RuntimeError("not yet")

    async with trickle.testing.run(app) as t:
        for value in (1, 2, 3):
            await t.send(source, value, key="n")
        await t.advance(20)
        await t.settled()
        assert counts["n"] == 6


async def test_dead_letters_carry_the_record_and_its_story(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, on_error=trickle.DeadLetter())
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            if event.value < 0:
                raise ValueError(f"negative: {event.value}")

    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="a")
        bad = await t.send(source, -5, key="a", headers={"trace": "x"}, timestamp=7.5)
        await t.send(source, b"{oops", key="a", raw=True)
        await t.send(source, 2, key="a")
        await t.settled()
        assert counts["a"] == 2
        letters = t.broker.records("app-work-dead-letters")
        assert [letter.value for letter in letters] == [b"-5", b"{oops"]
        headers = dict(letters[0].headers)
        assert letters[0].key == b"a"
        assert letters[0].timestamp_ms == letters[1].timestamp_ms != 7500  # when they were buried
        assert headers["trickle-timestamp"] == b"7500"
        assert headers["trace"] == b"x"
        assert headers["trickle-topic"] == b"source"
        assert headers["trickle-offset"] == str(bad.offset).encode()
        assert headers["trickle-error"] == b"ValueError: negative: -5"
        assert b"raise ValueError" in (headers["trickle-traceback"] or b"")


async def test_an_undecodable_record_stops_by_default(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    seen: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            seen.append(value)

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await t.send(source, b"nonsense", raw=True)
            await t.send(source, 2)
            await trio.sleep_forever()
    assert caught.group_contains(trickle.DecodeError)
    assert seen == [1]


async def test_deadline(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=float, partitions=1)
    out = app.topic("out", value=float, partitions=1)

    @app.agent(source, deadline=5, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[float]) -> None:
        async for value in stream:
            await out.send(value)
            await trio.sleep(value)

    async with trickle.testing.run(app) as t:
        for value in (1.0, 100.0, 2.0, 4.9):
            await t.send(source, value)
        await t.advance(30)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [1.0, 2.0, 4.9]


async def test_a_task_that_outlives_its_event_is_refused(mock_clock: MockClock) -> None:
    """The child of event 1 sleeps until event 2 is in hand, then tries to write and to send."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    refused: list[str] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async with trio.open_nursery() as nursery:
            async for value in stream:
                counts["n"] += 1
                if value == 1:
                    nursery.start_soon(late)
                if value == 2:
                    await trio.sleep(10)
            nursery.cancel_scope.cancel()

    async def late() -> None:
        await trio.sleep(5)
        with pytest.raises(trickle.EventSettledError):
            counts["n"] += 100
        with pytest.raises(trickle.EventSettledError):
            out.send_nowait(1)
        refused.append("both")

    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="n")
        await t.send(source, 2, key="n")
        await t.advance(20)
        await t.settled()
        assert refused == ["both"]
        assert counts["n"] == 2
        assert t.sent(out) == []


async def test_returning_while_the_stream_is_open_is_an_error(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            counts["n"] += 1
            return

    broker = None
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            broker = t.broker
            await t.send(source, 1, key="n")
            await trio.sleep_forever()
    assert caught.group_contains(trickle.AgentReturnedError)
    assert broker is not None
    assert [r.value for r in broker.records("app-counts-changelog")] == [b"1"]


async def test_yields_go_to_the_sink_with_the_sources_key(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=3)
    out = app.topic("out", key=str, value=int, partitions=3)
    called: list[int] = []

    @app.agent(source, sink=[out, called.append])
    async def double(stream: trickle.Stream[int]):  # noqa: ANN202
        async for value in stream:
            yield value * 2

    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value, key=f"k{value}")
        await t.settled()
        assert {e.key: e.value for e in t.sent(out)} == {f"k{v}": v * 2 for v in range(6)}
        assert sorted(called) == [0, 2, 4, 6, 8, 10]


async def test_event_by_hand_and_after_commit(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    copy = app.topic("copy", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    committed: list[trickle.EventId] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            async with event:
                counts[event.key] += event.value
                event.forward(copy)
                event.after_commit(lambda event=event: committed.append(event.id))
            with pytest.raises(trickle.EventSettledError):
                counts[event.key] += 1000

    async with trickle.testing.run(app) as t:
        for value in (1, 2, 3):
            await t.send(source, value, key="k", headers={"h": b"\x00"})
        await t.settled()
        assert counts["k"] == 6
        assert [e.value for e in t.sent(copy)] == [1, 2, 3]
        assert t.sent(copy)[0].headers == (("h", b"\x00"),)
        assert [i.offset for i in committed] == [0, 1, 2]


async def test_an_item_that_fails_holds_up_none_before_it(mock_clock: MockClock) -> None:
    """``send_all`` gathers portions: what it has gathered goes, before the failure is told."""
    app = trickle.App("app")
    out = app.topic("out", key=str, value=int, partitions=1)

    def items() -> Iterator[tuple[str, int]]:
        for number in range(300):
            yield "k", number
        raise LookupError("the source broke off")

    async with trickle.testing.run(app, seed=1) as t:
        with pytest.raises(LookupError, match="the source broke off"):
            await out.send_all(items())
        await t.settled()
        assert [event.value for event in t.sent(out)] == list(range(300))


async def test_before_its_first_event_an_agent_is_outside_of_any(mock_clock: MockClock) -> None:
    """It may send, at once, and read what is committed; it writes nothing."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    ups = app.topic("ups", key=str, value=str, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    seen: list[int] = []

    @app.agent(source)
    async def count(stream: trickle.Stream[int, str]) -> None:
        await ups.send("up", key="count")
        seen.append(counts["a"])
        with pytest.raises(trickle.TableReadOnlyError):
            counts["a"] = 7
        async for key, value in stream.items():
            counts[key] += value

    for _ in range(2):
        async with trickle.testing.run(app) as t:
            assert [event.value for event in t.sent(ups)] == ["up"]
            await t.send(source, 5, key="a")
            await t.settled()
            await t.rebalance(workers=1)
            await t.crash()
            assert seen[-1] == 5


@pytest.mark.parametrize("chosen", [3, -1, "x", None, True])
async def test_a_partitioner_that_gives_no_partition_is_named(
    mock_clock: MockClock, chosen: object
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    def choose(key: bytes | None, count: int) -> int:
        del key, count
        return cast("int", chosen)

    out = app.topic("out", value=int, partitions=3, partitioner=choose)

    @app.agent(source)
    async def forward(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            with pytest.raises(trickle.UsageError, match=r"'out': its partitioner .* 0 to 2$"):
                out.send_nowait(value, key=b"k")

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()
        assert t.sent(out) == []


@pytest.mark.parametrize("first", [True, False])
async def test_dead_letters_may_be_described_before_the_agent_or_after(
    mock_clock: MockClock, first: bool
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)

    def describe() -> trickle.Topic[int, str]:
        return app.topic("app-work-dead-letters", key=str, value=int, partitions=1)

    letters = describe() if first else None

    @app.agent(source, on_error=trickle.DeadLetter())
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            raise ValueError("never")

    letters = letters or describe()
    assert letters.spec().retention_ms == -1
    async with trickle.testing.run(app) as t:
        await t.send(source, 7, key="k")
        await t.settled()
        assert [(event.key, event.value) for event in t.sent(letters)] == [("k", 7)]
    with pytest.raises(trickle.DefinitionError, match="described twice"):
        describe()


async def test_what_an_event_sends_carries_its_timestamp_whatever_failed_before_it(
    mock_clock: MockClock,
) -> None:
    """Also behind records that cannot be read, events that are tried again, and in groups."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    one_by_one = app.topic("one-by-one", value=int)
    in_groups = app.topic("in-groups", value=int)
    ready = trio.Event()
    tried: set[int] = set()

    @app.agent(source, on_error=trickle.Retry(times=2, then=trickle.Skip()))
    async def single(stream: trickle.Stream[int]) -> None:
        async for number in stream:
            await ready.wait()  # the rest arrives meanwhile, and is taken in few chunks
            if number % 3:
                one_by_one.send_nowait(number)
            if number % 7 == 0 and (number % 2 or number not in tried):
                tried.add(number)
                raise ValueError(number)
            if number % 3 == 0:
                one_by_one.send_nowait(number)

    @app.agent(source, on_error=trickle.Skip())
    async def grouped(stream: trickle.Stream[int]) -> None:
        async for numbers in stream.filter(lambda number: number % 4).take(3):
            in_groups.send_nowait(numbers[-1])

    async with trickle.testing.run(app) as t:
        for number in range(1, 601):
            if number % 50 == 0:
                await t.send(source, b"{oops", raw=True, timestamp=number)
            else:
                await t.send(source, number, timestamp=number)
        ready.set()
        await t.advance(600)  # the retries
        await t.settled()
        readable = [n for n in range(1, 601) if n % 50]
        sent = t.sent(one_by_one)
        assert [e.value for e in sent] == [n for n in readable if n % 7 or n % 2 == 0]
        assert [e.timestamp for e in sent] == [float(e.value) for e in sent]
        sent = t.sent(in_groups)
        assert [e.value for e in sent] == [n for n in readable if n % 4][2::3]
        assert [e.timestamp for e in sent] == [float(e.value) for e in sent]
