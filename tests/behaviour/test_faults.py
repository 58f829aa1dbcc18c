"""Nothing lost, nothing counted twice: crashes, failed commits, rebalances, in virtual time."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.positions import Positions
from trickle.transport.contract import CommittedOffset, TopicSpec
from trickle.transport.memory import CommitFault, MemoryBroker
from trickle.transport.memory.log import PartitionLog, policy_of

SPEC = TopicSpec(name="source", partitions=4)


def counting_app() -> tuple[
    trickle.App, trickle.Topic[int, str], trickle.Topic[int, str], trickle.Table[str, int]
]:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=4)
    out = app.topic("out", key=str, value=int, partitions=4)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, name="count")
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            if event.value % 7 == 0:
                await trio.sleep(0.01)
            out.send_nowait(counts[event.key], key=event.key)

    return app, source, out, counts


@pytest.mark.parametrize("seed", range(8))
async def test_crashes_at_random(mock_clock: MockClock, seed: int) -> None:
    app, source, out, counts = counting_app()
    dice = random.Random(seed)
    sent: dict[str, int] = {}
    async with trickle.testing.run(app, seed=seed) as t:
        for number in range(200):
            key = f"k{dice.randrange(10)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, number, key=key)
            if dice.random() < 0.05:
                await t.advance(dice.random() * 0.2)
            if dice.random() < 0.03:
                await t.crash()
        await t.advance(5)
        await t.settled()
        assert dict(counts.items()) == sent
        outputs: dict[str, list[int]] = {}
        for event in t.sent(out):
            outputs.setdefault(event.key, []).append(event.value)
        assert outputs == {key: list(range(1, n + 1)) for key, n in sent.items()}


@pytest.mark.parametrize("seed", range(8))
async def test_rebalances_and_crashes_of_several_workers(mock_clock: MockClock, seed: int) -> None:
    app, source, out, counts = counting_app()
    dice = random.Random(seed)
    sent: dict[str, int] = {}
    async with trickle.testing.run(app, seed=seed, workers=2) as t:
        for number in range(150):
            key = f"k{dice.randrange(10)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, number, key=key)
            if dice.random() < 0.1:
                await t.advance(dice.random() * 0.2)
            if dice.random() < 0.04:
                await t.rebalance(workers=dice.choice((1, 2, 3)))
            if dice.random() < 0.03:
                await t.crash()
        await t.advance(30)
        await t.settled()
        assert dict(counts.items()) == sent
        outputs: dict[str, list[int]] = {}
        for event in t.sent(out):
            outputs.setdefault(event.key, []).append(event.value)
        assert outputs == {key: list(range(1, n + 1)) for key, n in sent.items()}


async def test_two_agents_on_one_topic_keep_a_position_each(mock_clock: MockClock) -> None:
    """The quick agent is ahead by 5 when the worker crashes; it repeats none of them."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    fast, slow = (
        app.topic("fast", value=int, partitions=1),
        app.topic("slow", value=int, partitions=1),
    )
    gate = trio.Event()

    @app.agent(source)
    async def quick(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await fast.send(value)

    @app.agent(source)
    async def lame(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            if value == 2:
                await gate.wait()
            await slow.send(value)

    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value)
        await t.advance(1)
        assert [e.value for e in t.sent(fast)] == [0, 1, 2, 3, 4, 5]
        assert [e.value for e in t.sent(slow)] == [0, 1]
        await t.crash()
        gate.set()
        await t.settled()
        assert [e.value for e in t.sent(fast)] == [0, 1, 2, 3, 4, 5]
        assert [e.value for e in t.sent(slow)] == [0, 1, 2, 3, 4, 5]


async def test_timers_send_or_leave_nothing(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    out = app.topic("out", value=float, partitions=1)
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def nothing(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    @app.timer(10)
    async def tick() -> None:
        await out.send(trio.current_time())
        if trio.current_time() > 45:
            raise ValueError("late")

    records: list[bytes | None] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.advance(41)
            records = [r.value for r in t.broker.records("out")]
            await t.advance(20)
            records = [r.value for r in t.broker.records("out")]
            await trio.sleep_forever()
    assert caught.group_contains(ValueError, match="late")
    assert records == [b"10.0", b"20.0", b"30.0", b"40.0"]


async def test_settled_names_the_lane_that_waits(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def sleepy(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(100)

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        with pytest.raises(
            trickle.UsageError, match=r"agent 'sleepy', source \[0\], at offset 0 of 1"
        ):
            await t.settled()
        await t.advance(101)
        await t.settled()


@pytest.mark.parametrize("fault", ["aborted", "lost", "applied"])
@pytest.mark.parametrize("seed", range(3))
async def test_failed_commits(mock_clock: MockClock, fault: CommitFault, seed: int) -> None:
    """Every third commit fails; its events run again, or are known to have been committed."""
    app, source, out, counts = counting_app()
    sent: dict[str, int] = {}
    dice = random.Random(seed)
    async with trickle.testing.run(app, seed=seed) as t:
        for number in range(100):
            key = f"k{dice.randrange(5)}"
            sent[key] = sent.get(key, 0) + 1
            await t.send(source, number, key=key)
            if number % 9 == 0:
                t.broker.fail_commits(fault)
                await t.advance(0.15)
            if number % 20 == 0:
                t.broker.redeliver(trickle.TopicPartition("source", number % 4), 3)
        await t.advance(30)
        await t.settled()
        while t.broker.take_fault() is not None:
            pass  # no commit has met it, and the last one shall not
        assert dict(counts.items()) == sent
        outputs: dict[str, list[int]] = {}
        for event in t.sent(out):
            outputs.setdefault(event.key, []).append(event.value)
        assert outputs == {key: list(range(1, n + 1)) for key, n in sent.items()}


async def test_a_refused_record_is_found_and_gets_its_policy(mock_clock: MockClock) -> None:
    """The broker refuses one output of 40: its event alone is skipped, the rest is exact."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=4)
    out = app.topic("out", key=str, value=int, partitions=4)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            out.send_nowait(event.value, key=event.key)

    async with trickle.testing.run(app, seed=3) as t:
        t.broker.refuses = lambda topic, _, value: topic == "out" and value == b"23"
        for number in range(40):
            await t.send(source, number, key=f"k{number % 5}")
        await t.advance(60)
        await t.settled()
        assert sorted(e.value for e in t.sent(out)) == [n for n in range(40) if n != 23]
        assert dict(counts.items()) == {"k0": 8, "k1": 8, "k2": 8, "k3": 7, "k4": 8}


async def test_who_ends_what_an_earlier_worker_left_does_not_end_a_start() -> None:
    """The id is fenced behind the opening of its producer, before anything is assigned."""
    broker = MemoryBroker.named("fenced-at-start")
    app = trickle.App("app", broker="memory://fenced-at-start")
    source = app.topic("source", value=int, partitions=1)
    seen, enough = list[int](), trio.Event()

    @app.service
    class Fencer(trickle.Service):
        async def main(self, task_status: trio.TaskStatus[None]) -> None:
            for name in tuple(broker._epochs):  # pyright: ignore[reportPrivateUsage]
                broker.open_epoch(name)
            task_status.started()

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            seen.append(value)
            enough.set()

    del Fencer, work
    with trio.fail_after(20):
        async with app.run():
            await source.send(1)
            await enough.wait()
    assert seen == [1]


async def test_a_twin_makes_the_loser_exit(mock_clock: MockClock) -> None:
    app, source, _, _ = counting_app()
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.send(source, 1, key="a")
            await t.settled()
            for _ in range(10):  # the twin takes the id back as often as the worker does
                t.broker.open_epoch("app-worker-0")
                await t.send(source, 1, key="a")
                await t.advance(1)
            await t.advance(60)
            await trio.sleep_forever()
    assert caught.group_contains(trickle.ProducerFenced, match="another program")


async def test_a_member_that_was_given_up_starts_a_new_generation(mock_clock: MockClock) -> None:
    """The group gives the worker up, another takes over and fences its id; then it comes back."""
    app, source, out, counts = counting_app()
    async with trickle.testing.run(app, workers=2) as t:
        for number in range(8):
            await t.send(source, number, key=f"k{number}")
        await t.advance(1)
        await t.send(source, 7, key="k0")
        member = t.broker.members("app")[0]
        t.broker.kill(member)
        await t.advance(30)
        await t.send(source, 1, key="k1")
        await t.advance(30)
        await t.settled()
        assert counts["k0"] == 2
        assert counts["k1"] == 2
        assert len(t.sent(out)) == 10


async def test_who_left_a_partition_is_fenced_once_by_whoever_holds_it(
    mock_clock: MockClock,
) -> None:
    """Each of two workers holds partitions that bear the other's name; each one's commits fail.

    A worker that fenced the other at each new generation would make the other's next commit fail,
    and so on, until each took the other for a twin.
    """
    app, source, _, counts = counting_app()
    names = ("app-worker-0", "app-worker-1")
    async with trickle.testing.run(app, workers=2) as t:
        for number in range(30):
            await t.send(source, 1, key=f"k{number}")
        await t.settled()
        for number in range(4):  # as a revocation leaves it whose last commit failed
            at = trickle.TopicPartition("source", number)
            before = t.broker.group("app").offsets[at]
            named = names[1] if names[0] in before.metadata else names[0]
            told = Positions(before.offset, {}, named, released=False)
            t.broker.commit_offsets("app", {at: told.write()})
        t.broker.fail_commits("aborted", "aborted")
        await t.rebalance()
        await t.advance(1)
        epochs = [t.broker.open_epoch(name) for name in names]  # each is fenced once more
        faults: list[CommitFault] = ["aborted"] * 6  # each leads to a new generation
        t.broker.fail_commits(*faults)
        for number in range(30):
            await t.send(source, 1, key=f"k{number}")
        await t.advance(60)
        await t.settled()
        assert dict(counts.items()) == {f"k{number}": 2 for number in range(30)}
    # Each took its id back from us, and from the other.
    again = [t.broker.open_epoch(name) for name in names]
    assert [now - then for now, then in zip(again, epochs, strict=True)] == [2, 2]


async def test_a_position_that_was_deleted_stops_or_moves(mock_clock: MockClock) -> None:
    """Records are deleted while no worker runs; the second start finds its position gone."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await out.send(value)

    at = trickle.TopicPartition("source", 0)
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await t.send(source, 0)
            await t.settled()
            await t.rebalance(workers=0)
            for value in (1, 2, 3):
                await t.send(source, value)
            t.broker.log(at).delete_before(3)
            await t.rebalance(workers=1)
    assert caught.group_contains(trickle.OffsetOutOfRange, match="'source', partition 0: .* 1 lies")

    async with trickle.testing.run(app, out_of_range="earliest") as t:
        await t.send(source, 0)
        await t.settled()
        await t.rebalance(workers=0)
        for value in (1, 2, 3):
            await t.send(source, value)
        t.broker.log(at).delete_before(3)
        await t.rebalance(workers=1)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [0, 3]


async def test_repartition_topics_are_purged(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)

    @app.agent(source.group_by(lambda v: str(v % 3), name="mod"))
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with trickle.testing.run(app) as t:
        for value in range(10):
            await t.send(source, value)
        await t.settled()
        assert len(t.broker.records("app-mod-repartition")) == 10
        # One of two partitions: what was acknowledged for it is forgotten, as of a broker's crash.
        kept = next(r.partition for r in t.broker.records("app-mod-repartition"))
        forgotten = {trickle.TopicPartition("app-mod-repartition", kept): CommittedOffset(0)}
        t.broker.commit_offsets("app", forgotten)
        await t.advance(11)
        left = t.broker.records("app-mod-repartition")
        assert {record.partition for record in left} == {kept}


async def test_topics_that_change_while_they_are_read_are_named(mock_clock: MockClock) -> None:
    app, _, _, _ = counting_app()
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            t.broker.delete("source")
            await t.advance(15)
            await trio.sleep_forever()
    assert caught.group_contains(trickle.TopicError, match="topic 'source' was deleted while")

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            t.broker.delete("source")
            t.broker.declare(SPEC)
            await t.advance(15)
            await trio.sleep_forever()
    assert caught.group_contains(trickle.TopicError, match="topic 'source' was deleted while")

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            t.broker.topic("source").logs.append(PartitionLog("source", 4, policy_of(SPEC)))
            await t.advance(15)
            await trio.sleep_forever()
    assert caught.group_contains(trickle.TopicError, match="'source' has grown from 4 to 5")


async def test_offsets_of_an_earlier_topic_mean_nothing(mock_clock: MockClock) -> None:
    """The topic is made anew while no worker runs; the committed offset 2 exists in both."""
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await out.send(value)

    async def make_anew(t: trickle.testing.Simulation) -> None:
        for value in (1, 2):
            await t.send(source, value)
        await t.settled()
        await t.rebalance(workers=0)
        t.broker.delete("source")
        t.broker.declare(TopicSpec(name="source", partitions=1))
        for value in (11, 12, 13):
            await t.send(source, value)
        await t.rebalance(workers=1)

    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(app) as t:
            await make_anew(t)
    assert caught.group_contains(trickle.OffsetOutOfRange, match="2 is of an earlier topic")

    async with trickle.testing.run(app, out_of_range="earliest") as t:
        await make_anew(t)
        await t.settled()
        assert [e.value for e in t.sent(out)] == [1, 2, 11, 12, 13]


async def test_a_broker_that_goes_away_is_waited_for(mock_clock: MockClock) -> None:
    """The commit fails for want of a broker, and so do the next attempts to find the positions."""
    app, source, out, counts = counting_app()
    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="a")
        await t.settled()
        t.broker.unavailable = True
        await t.send(source, 2, key="a")
        await t.advance(300)
        t.broker.unavailable = False
        await t.advance(5)
        await t.settled()
        assert counts["a"] == 2
        assert [e.value for e in t.sent(out)] == [1, 2]
