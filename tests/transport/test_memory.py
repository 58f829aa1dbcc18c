"""What only the broker in memory does: virtual time, faults on request, crashes, repeatability."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.transport.helpers import (
    Calls,
    Listener,
    fetch_until,
    joined,
    produce,
    read_all,
    records_of,
    transaction,
)
from trickle.exceptions import (
    CommitFailed,
    OffsetOutOfRange,
    TopicError,
    UsageError,
)
from trickle.transport import open_transport
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    ProducerOptions,
    TopicSpec,
)
from trickle.transport.memory import MemoryBroker, MemoryTransport
from trickle.types import TopicPartition

ZERO, ONE = TopicPartition("topic", 0), TopicPartition("topic", 1)
PLAIN = ProducerOptions()


async def fill(transport: MemoryTransport, count: int, partition: int = 0) -> None:
    async with transport.producer(PLAIN) as producer:
        await produce(producer, "topic", [b"%d" % n for n in range(count)], partition=partition)


async def test_a_name_is_one_broker_of_the_process() -> None:
    async with open_transport("memory://here") as first, open_transport("memory://here") as second:
        await first.admin.declare([TopicSpec(name="topic")])
        assert first.url == "memory://here"
        assert list(await second.admin.topics()) == ["topic"]
    async with open_transport("memory://here") as later, open_transport("memory://there") as other:
        assert list(await later.admin.topics()) == ["topic"]
        assert await other.admin.topics() == {}
    assert MemoryBroker.named("here").topic("topic").info().partitions == 1
    assert MemoryBroker(partitions=3) is not MemoryBroker.named("")


async def test_all_works_while_time_stands_still(
    memory: MemoryTransport, mock_clock: MockClock
) -> None:
    """The clock never moves: whoever waited by sleeping would wait for ever."""
    first, second = Listener("first"), Listener("second")
    async with (
        transaction(memory, "id", "group") as producer,
        joined(memory, "group", "topic", listener=first) as (client, _),
    ):
        await first.until_held(2)
        async with joined(memory, "group", "topic", listener=second):
            (mine,) = await first.until_held(1)
            await client.assign({mine: 0})
            await produce(producer, "topic", [b"v"], partition=mine.partition)
            await producer.commit({}, None)
            await fetch_until(client, 1)
            await producer.commit({mine: CommittedOffset(1)}, client.member)
        await first.until_held(2)
    assert mock_clock.current_time() == trio.current_time() == 0


async def test_timestamps_come_from_the_brokers_clock() -> None:
    broker = MemoryBroker(now_ms=lambda: 7_000)
    transport = MemoryTransport(broker)
    await transport.admin.declare([TopicSpec(name="topic")])
    async with transport.producer(PLAIN) as producer:
        for stamp, expected in ((None, 7.0), (0, 0.0), (-5, -0.005), (2**62, 2**62 / 1000)):
            sent = await producer.send("topic", 0, None, b"", (), stamp)
            assert sent.timestamp == expected
    assert [r.timestamp_ms for r in broker.records("topic")] == [7_000, 0, -5, 2**62]


async def test_a_seed_repeats_what_is_random() -> None:
    async def run(seed: int) -> list[int | None]:
        transport = MemoryTransport(MemoryBroker(seed=seed))
        await transport.admin.declare([TopicSpec(name="topic", partitions=5)])
        async with (
            transport.producer(PLAIN) as producer,
            joined(transport, "group", "topic") as (client, listener),
        ):
            went = [
                (await producer.send("topic", None, None, b"", (), None)).partition
                for _ in range(30)
            ]
            await client.assign(dict.fromkeys(await listener.until_held(5), 0))
            return went + [batch.partition for batch in await client.fetch()]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


# Crashes


async def test_a_crash_commits_nothing_and_says_nothing(memory: MemoryTransport) -> None:
    """A member is cancelled with a transaction open: no call, no record, no offset; it is out."""
    calls = Calls()
    with trio.CancelScope() as scope:
        async with (
            transaction(memory, "id", "group") as producer,
            joined(memory, "group", "topic", listener=Listener("crashed", calls)) as (client, one),
        ):
            await one.until_held(2)
            await produce(producer, "topic", [b"v"])
            scope.cancel()
            await producer.commit({ZERO: CommittedOffset(1)}, client.member)
    assert [call for _, call, _ in calls] == ["assigned"]
    assert memory.broker.members("group") == ()
    assert memory.broker.records("topic") == []
    assert await memory.admin.committed("group", [ZERO]) == {ZERO: None}


async def test_an_error_in_the_block_says_nothing_either(memory: MemoryTransport) -> None:
    listener = Listener()
    with pytest.raises(LookupError):
        async with joined(memory, "group", "topic", listener=listener):
            await listener.until_held(2)
            raise LookupError
    assert listener.count("revoked") == 0
    assert memory.broker.members("group") == ()


async def test_a_crash_inside_a_listeners_call_ends_the_call(memory: MemoryTransport) -> None:
    entered = trio.Event()

    async def hang(_: frozenset[TopicPartition]) -> None:
        entered.set()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        listener = Listener(on_revoked=hang)
        async with joined(memory, "group", "topic", listener=listener):
            await listener.until_held(2)
            memory.broker.rebalance("group")
            await entered.wait()
            scope.cancel()
            await trio.sleep_forever()
    assert memory.broker.members("group") == ()


async def test_the_dead_linger_until_their_session_ends(
    memory: MemoryTransport, autojump_clock: MockClock
) -> None:
    """One of two crashes on a broker that cannot know: the other waits for its session's end."""
    memory.broker.linger = True
    survivor = Listener("survivor")
    async with joined(memory, "group", "topic", listener=survivor):
        with trio.CancelScope() as scope:
            async with joined(memory, "group", "topic") as (_, crashed):
                await crashed.until_held(1)
                scope.cancel()
                await trio.sleep_forever()
        assert len(memory.broker.members("group")) == 2
        await survivor.until_held(2)
        assert trio.current_time() == pytest.approx(
            ConsumerOptions(group="", topics=()).session_timeout
        )
    assert memory.broker.members("group") == ()


# Faults of membership


async def test_a_member_that_is_killed_has_lost_all_and_joins_anew(
    memory: MemoryTransport,
) -> None:
    listener = Listener()
    async with joined(memory, "group", "topic", listener=listener) as (client, _):
        await listener.until_held(2)
        (before,) = memory.broker.members("group")
        assert client.member == before
        memory.broker.kill(before)
        with pytest.raises(CommitFailed):
            await client.commit({ZERO: CommittedOffset(1)})
        while listener.count("assigned") < 2:
            await listener.calls.wait()
        assert [call for _, call, _ in listener.calls] == ["assigned", "lost", "assigned"]
        assert memory.broker.members("group") == (client.member,) != (before,)
        await client.commit({ZERO: CommittedOffset(2)})
        memory.broker.kill(before)  # nobody any more


async def test_a_rebalance_can_be_asked_for(memory: MemoryTransport) -> None:
    listener = Listener()
    async with joined(memory, "group", "topic", listener=listener):
        await listener.until_held(2)
        memory.broker.rebalance("group")
        assert not memory.broker.stable(["group"])
        while not memory.broker.stable():
            await memory.broker.wait_changed()
        while listener.count("assigned") < 2:
            await listener.calls.wait()
    calls = [call for _, call, _ in listener.calls]
    assert calls == ["assigned", "revoked", "assigned", "revoked"]


async def test_a_member_that_does_not_give_back_in_time_is_given_up(
    memory: MemoryTransport, autojump_clock: MockClock
) -> None:
    """The holder hangs in ``revoked``; after 30 s the newcomer gets all; the holder comes late."""
    gate = trio.Event()
    outcomes: list[BaseException | None] = []

    async def hang(_: frozenset[TopicPartition]) -> None:
        await gate.wait()
        with pytest.raises(CommitFailed) as caught:
            await holder_client.commit({ZERO: CommittedOffset(1)})
        outcomes.append(caught.value)

    holder, newcomer = Listener("holder", on_revoked=hang), Listener("newcomer")
    async with joined(memory, "group", "topic", listener=holder) as (holder_client, _):
        await holder.until_held(2)
        async with joined(memory, "group", "topic", listener=newcomer) as (client, _):
            before = memory.broker.members("group")
            await newcomer.until_held(2)
            assert trio.current_time() == pytest.approx(30)
            assert memory.broker.members("group") == (client.member,)
            assert client.member in [member._replace(generation=2) for member in before]
            gate.set()
            await holder.until_held(1)
            await newcomer.until_held(1)
            assert len(outcomes) == 1


async def test_nothing_is_fetched_while_it_is_given_back(memory: MemoryTransport) -> None:
    """A record comes while ``revoked`` is under way: it is for whoever gets the partition next."""
    gate = trio.Event()

    async def hang(_: frozenset[TopicPartition]) -> None:
        await gate.wait()

    listener = Listener(on_revoked=hang)
    async with joined(memory, "group", "topic", listener=listener) as (client, _):
        await client.assign(dict.fromkeys(await listener.until_held(2), 0))
        memory.broker.rebalance("group")
        await wait_all_tasks_blocked()
        assert listener.count("revoked") == 1
        await fill(memory, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fetch)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            gate.set()
            while listener.count("assigned") < 2:
                await listener.calls.wait()
            await client.assign({ZERO: 0})


async def test_what_was_given_back_cannot_be_committed_for(memory: MemoryTransport) -> None:
    """One has given back and the other has not: stricter than Kafka, which would accept it."""
    gate = trio.Event()

    async def hang(_: frozenset[TopicPartition]) -> None:
        await gate.wait()

    quick, slow = Listener("quick"), Listener("slow", on_revoked=hang)
    async with (
        joined(memory, "group", "topic", listener=quick) as (client, _),
        joined(memory, "group", "topic", listener=slow),
    ):
        await slow.until_held(1)
        (mine,) = await quick.until_held(1)
        memory.broker.rebalance("group")
        await wait_all_tasks_blocked()
        assert quick.held is None
        with pytest.raises(CommitFailed, match="does not hold partition"):
            await client.commit({mine: CommittedOffset(1)})
        gate.set()


@pytest.mark.parametrize("anew", [False, True])
async def test_a_topic_deleted_under_a_consumer_ends_its_fetching(
    memory: MemoryTransport, anew: bool
) -> None:
    """Also where it was made anew at once, and whether or not anything was assigned."""
    async with joined(memory, "group", "topic") as (client, listener):
        await client.assign(dict.fromkeys(await listener.until_held(2), 0))
        await memory.admin.delete(["topic"])
        if anew:
            await memory.admin.declare([TopicSpec(name="topic", partitions=2)])
        for positions in ({}, {ZERO: 0}):
            with pytest.raises(TopicError, match="'topic' was deleted while it was read"):
                await client.fetch()
            if anew:
                await client.assign(positions)


async def test_a_group_of_a_missing_topic_is_an_error(memory: MemoryTransport) -> None:
    with pytest.raises(TopicError) as caught:
        async with joined(memory, "group", "missing"):
            raise AssertionError
    assert str(caught.value) == "topic 'missing' does not exist: declare it, or check its name"


# Records


async def test_records_are_delivered_twice_on_request(memory: MemoryTransport) -> None:
    await fill(memory, 5)
    async with (
        joined(memory, "group", "topic") as (client, listener),
        memory.reader({ZERO: 0}) as reader,
    ):
        await client.assign(dict.fromkeys(await listener.until_held(2), 0))
        await reader.fetch()
        assert [r.offset for r in records_of(await client.fetch())] == [0, 1, 2, 3, 4]
        memory.broker.redeliver(ZERO, 2)
        assert [r.offset for r in records_of(await client.fetch())] == [3, 4]
        memory.broker.redeliver(ZERO, 99)
        assert [r.offset for r in records_of(await client.fetch())] == [0, 1, 2, 3, 4]
        assert reader.positions() == {ZERO: 5}


async def test_compaction_leaves_gaps_that_readers_pass(memory: MemoryTransport) -> None:
    async with memory.producer(PLAIN) as producer:
        for key in (b"a", b"b", b"a", b"a", b"b"):
            await producer.send("topic", 0, key, b"v", (), None)
    memory.broker.compact("topic")
    found = (await read_all(memory, "topic", 2))[0]
    assert [(record.key, record.offset) for record in found] == [(b"a", 3), (b"b", 4)]


async def test_one_bad_position_loses_no_records_of_the_others(memory: MemoryTransport) -> None:
    """A fetch that fails has taken nothing: what it had in hand comes with the next one."""
    await fill(memory, 5)
    async with joined(memory, "group", "topic") as (client, listener):
        await listener.until_held(2)
        await client.assign({ZERO: 0, ONE: 1})
        with pytest.raises(OffsetOutOfRange) as caught:
            await client.fetch()
        assert str(caught.value) == (
            "topic 'topic', partition 1: position 1 lies outside of what the topic holds, 0 to 0"
        )
        await fill(memory, 1, partition=1)
        assert len(await fetch_until(client, 5)) == 5


async def test_a_fetch_takes_no_more_than_a_batch_of_each_partition(
    memory: MemoryTransport,
) -> None:
    await fill(memory, 2_500)
    async with memory.reader({ZERO: 0, ONE: 0}) as reader:
        sizes = [len(records_of(await reader.fetch())) for _ in range(3)]
    assert sizes == [1_000, 1_000, 500]


async def test_markers_and_aborted_records_take_offsets(memory: MemoryTransport) -> None:
    memory.broker.markers = True
    async with transaction(memory, "id") as producer:
        await produce(producer, "topic", [b"0", b"1"])
        assert await producer.commit({}, None) == {}
        await produce(producer, "topic", [b"aborted"])
        await producer.abort()
        await produce(producer, "topic", [b"5"], watch=True)
        assert await producer.commit({}, None) == {ZERO: 6}
        memory.broker.fail_commits("aborted")
        await produce(producer, "topic", [b"aborted"])
        with pytest.raises(CommitFailed):
            await producer.commit({}, None)
        await produce(producer, "topic", [b"dropped at the end"])
    assert [record.offset for record in memory.broker.records("topic")] == [0, 1, 5]
    assert (await memory.admin.watermarks([ZERO]))[ZERO].high == 11


# Quiescence


async def test_lag_counts_records_and_changes_wake(memory: MemoryTransport) -> None:
    memory.broker.markers = True
    broker = memory.broker
    assert broker.lag("group") == {}
    woken = 0

    async def count() -> None:
        nonlocal woken
        while broker.lag("group"):
            await broker.wait_changed()
            woken += 1

    async with (
        transaction(memory, "id", "group") as producer,
        joined(memory, "group", "topic"),
        trio.open_nursery() as nursery,
    ):
        await produce(producer, "topic", [b"v"] * 3)
        await producer.commit({}, None)
        assert broker.lag("group") == {ZERO: 3}
        nursery.start_soon(count)
        await wait_all_tasks_blocked()
        await producer.commit({ZERO: CommittedOffset(2)}, None)
        assert broker.lag("group") == {ZERO: 1}
        await wait_all_tasks_blocked()
        await producer.commit({ZERO: CommittedOffset(3)}, None)  # the marker behind it is no lag
        assert broker.lag("group") == {}
    assert woken == 2


# Misuse


async def test_calls_that_make_no_sense_say_so(memory: MemoryTransport) -> None:
    offsets = {ZERO: CommittedOffset(1)}
    async with memory.producer(PLAIN) as plain, transaction(memory, "id") as producer:
        with pytest.raises(UsageError, match="without a transactional id cannot commit offsets"):
            await plain.commit(offsets, None)
        with pytest.raises(UsageError, match="produce, then commit"):
            await producer.send("topic", 0, None, None, (), None)
        with pytest.raises(UsageError, match="open the producer with group="):
            await producer.commit(offsets, None)
    async with transaction(memory, "id", "group") as producer:
        with pytest.raises(UsageError, match="of another transport"):
            await producer.commit(offsets, "somebody")
    with pytest.raises(TopicError, match="has no partition 7"):
        await memory.admin.watermarks([TopicPartition("topic", 7)])
    with pytest.raises(TopicError, match="partitions=0"):
        await memory.admin.declare([TopicSpec(name="none", partitions=0)])
