"""Commits on the broker in memory that fail on request, are refused, or take their time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.transport.helpers import (
    joined,
    produce,
    records_of,
    transaction,
)
from trickle.exceptions import (
    CommitFailed,
    ProducerFenced,
    RecordRefused,
    UsageError,
)
from trickle.transport.contract import (
    CommittedOffset,
    ProducerClient,
    ProducerOptions,
    TopicSpec,
)
from trickle.transport.memory import CommitFault, MemoryTransport
from trickle.transport.memory.producer import QUEUE_RECORDS_MAX
from trickle.types import TopicPartition

ZERO = TopicPartition("topic", 0)
PLAIN = ProducerOptions()


# Faults of commits


@pytest.mark.parametrize("fault", ["aborted", "fenced", "lost", "applied"])
async def test_commits_fail_as_asked_for(memory: MemoryTransport, fault: CommitFault) -> None:
    error = ProducerFenced if fault == "fenced" else CommitFailed
    async with transaction(memory, "id", "group") as producer:
        await produce(producer, "topic", [b"first"])
        memory.broker.fail_commits(fault)
        with pytest.raises(error):
            await producer.commit({ZERO: CommittedOffset(1)}, None)
        applied = fault == "applied"
        found = await memory.admin.committed("group", [ZERO])
        assert found == {ZERO: CommittedOffset(1) if applied else None}
        assert len(memory.broker.records("topic")) == applied
        await produce(producer, "topic", [b"second"])
        if fault == "fenced":
            with pytest.raises(ProducerFenced):
                await producer.abort()
        else:
            await producer.commit({}, None)
            values = [record.value for record in memory.broker.records("topic")]
            assert values == ([b"first"] if applied else []) + [b"second"]


@pytest.mark.parametrize("fault", ["aborted", "applied"])
async def test_a_consumers_commits_fail_as_asked_for(
    memory: MemoryTransport, fault: CommitFault
) -> None:
    async with joined(memory, "group", "topic") as (client, listener):
        await listener.until_held(2)
        memory.broker.fail_commits(fault)
        with pytest.raises(CommitFailed, match=f"as was asked for: {fault}"):
            await client.commit({ZERO: CommittedOffset(1)})
        found = await memory.admin.committed("group", [ZERO])
        assert found == {ZERO: CommittedOffset(1) if fault == "applied" else None}
        await client.commit({ZERO: CommittedOffset(2)})


async def test_the_broker_refuses_what_it_is_told_to(memory: MemoryTransport) -> None:
    memory.broker.refuses = lambda topic, key, value: (topic, value) == ("topic", b"bad")
    async with transaction(memory, "id") as producer, memory.producer(PLAIN) as plain:
        await produce(producer, "topic", [b"good", b"bad"])
        with pytest.raises(CommitFailed) as caught:
            await producer.commit({}, None)
        assert isinstance(caught.value.refused, RecordRefused)
        assert memory.broker.records("topic") == []
        await produce(plain, "topic", [b"good", b"bad", b"too"])
        with pytest.raises(CommitFailed) as caught:
            await plain.commit({}, None)
        assert caught.value.refused is not None
        assert caught.value.refused.partition == 0
        with pytest.raises(RecordRefused):
            await plain.send("topic", 0, None, b"bad", (), None)
    # Without a transaction the others are delivered.
    assert [record.value for record in memory.broker.records("topic")] == [b"good", b"too"]


async def test_what_can_never_be_stored_is_refused_as_it_is_handed_over(
    memory: MemoryTransport,
) -> None:
    await memory.admin.declare([TopicSpec(name="log", partitions=1, compacting=True)])
    refusals: list[tuple[tuple[str, int, bytes | None, bytes], str]] = [
        (("missing", 0, b"k", b"v"), "the topic does not exist"),
        (("topic", 2, b"k", b"v"), "there is no partition 2, the topic's partitions are 0 to 1"),
        (("topic", -1, b"k", b"v"), "there is no partition -1"),
        (("log", 0, None, b"v"), "the record has no key"),
        (("topic", 0, b"k", bytes(2 << 20)), "raise the topic's max.message.bytes"),
    ]
    async with memory.producer(PLAIN) as producer:
        for record, why in refusals:
            with pytest.raises(RecordRefused, match=why) as caught:
                producer.produce(*record, (), None)
            assert caught.value.topic == record[0]


async def test_a_fenced_producer_stays_dead(memory: MemoryTransport) -> None:
    async with transaction(memory, "id") as first:
        async with transaction(memory, "id"):
            pass
        for _ in range(2):
            await produce(first, "topic", [b"v"])
            with pytest.raises(ProducerFenced):
                await first.commit({}, None)
    assert memory.broker.records("topic") == []


# A slow broker


async def test_a_slow_commit_takes_effect_in_its_middle(
    memory: MemoryTransport, autojump_clock: MockClock
) -> None:
    """Offsets wait to be stable; the records appear; the committer hears of it last."""
    memory.broker.commit_delay = 2.0
    seen: list[tuple[str, float]] = []

    async def watch(name: str, call: Callable[[], Awaitable[object]]) -> None:
        await call()
        seen.append((name, trio.current_time()))

    async with (
        transaction(memory, "id", "group") as producer,
        memory.reader({ZERO: 0}) as reader,
        trio.open_nursery() as nursery,
    ):
        await produce(producer, "topic", [b"v"])
        nursery.start_soon(
            watch, "committed", lambda: producer.commit({ZERO: CommittedOffset(1)}, None)
        )
        await wait_all_tasks_blocked()
        assert not producer.ready
        with pytest.raises(UsageError):
            await produce(producer, "topic", [b"w"])
        with pytest.raises(UsageError):
            await producer.commit({}, None)
        nursery.start_soon(watch, "read", reader.fetch)
        unstable = await memory.admin.committed("group", [ZERO], stable=False)
        assert unstable == {ZERO: None}
        stable = await memory.admin.committed("group", [ZERO])
        assert stable == {ZERO: CommittedOffset(1)}
        seen.append(("stable", trio.current_time()))
    assert sorted(seen) == [("committed", 2.0), ("read", 1.0), ("stable", 1.0)]


@pytest.mark.parametrize(("at", "applied"), [(0.5, False), (1.5, True)])
async def test_a_slow_commit_is_cancelled_before_or_after_its_effect(
    memory: MemoryTransport, autojump_clock: MockClock, at: float, applied: bool
) -> None:
    memory.broker.commit_delay = 2.0
    async with transaction(memory, "id", "group") as producer:
        await produce(producer, "topic", [b"v"])
        with trio.move_on_after(at):
            await producer.commit({ZERO: CommittedOffset(1)}, None)
        assert producer.ready
    assert len(memory.broker.records("topic")) == applied
    found = await memory.admin.committed("group", [ZERO])
    assert found == {ZERO: CommittedOffset(1) if applied else None}


async def test_a_slow_broker_delivers_later_and_fills_the_queue(
    memory: MemoryTransport, autojump_clock: MockClock
) -> None:
    memory.broker.commit_delay = 1.0

    def fill_up(producer: ProducerClient) -> int:
        count = 0
        while producer.produce("topic", 0, None, None, (), None):
            count += 1
        return count

    async with memory.producer(PLAIN) as producer:
        assert fill_up(producer) == QUEUE_RECORDS_MAX
        assert memory.broker.records("topic") == []
        await producer.drained()
        assert trio.current_time() == 1.0
        assert len(memory.broker.records("topic")) == QUEUE_RECORDS_MAX
        assert producer.produce("topic", 0, None, None, (), None)
        await producer.commit({}, None)
        assert trio.current_time() == 2.0
        sent = await producer.send("topic", 0, None, None, (), None)
        assert (sent.offset, trio.current_time()) == (QUEUE_RECORDS_MAX + 1, 3.0)


async def test_slow_fetches_take_their_time(
    memory: MemoryTransport, autojump_clock: MockClock
) -> None:
    memory.broker.fetch_delay = 3.0
    async with memory.producer(PLAIN) as producer:
        await produce(producer, "topic", [b"v"] * 5)
    async with memory.reader({ZERO: 0}) as reader:
        assert len(records_of(await reader.fetch())) == 5
    assert trio.current_time() == 3.0
