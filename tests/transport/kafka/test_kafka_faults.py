"""Faults of the broker itself, each on a broker of this module's own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Partition

from tests.kafka_broker import KafkaBroker
from tests.transport.helpers import (
    LIMIT,
    Listener,
    declared,
    fetch_until,
    produce,
    read_all,
    unique,
)
from trickle.exceptions import BrokerUnavailable, CommitFailed, ProducerFenced
from trickle.transport import open_transport
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    ProducerOptions,
    TransportOptions,
)
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trickle.transport.contract import Admin, ConsumerClient, ProducerClient

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def own_broker() -> Iterator[KafkaBroker]:
    """Give a broker that tests may kill, which ends overdue transactions soon."""
    overdue = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": 200}
    with KafkaBroker(overdue) as broker:
        yield broker


@pytest.fixture
async def broker(own_broker: KafkaBroker) -> KafkaBroker:
    """Give that broker, running and out of whatever the last test did to it.

    One that was frozen has lost its session with the controller: it declares nothing for seconds.
    """
    if not own_broker.pid:
        await trio.to_thread.run_sync(own_broker.start)
    async with open_transport(own_broker.url, TransportOptions(request_timeout=LIMIT)) as transport:
        await declared(transport)
    return own_broker


async def test_no_broker_is_an_error_that_names_the_setting() -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        async with open_transport("kafka://127.0.0.1:1", TransportOptions(request_timeout=1.5)):
            pass
    assert time.monotonic() - began < 4
    assert "broker='kafka://127.0.0.1:1'" in str(caught.value)
    assert "within 1.5 s" in str(caught.value)


async def test_a_broker_killed_and_started_again_costs_no_record(broker: KafkaBroker) -> None:
    """A producer with transactions and a consumer work while the broker is killed and comes back.

    The producer commits number by number and starts over where a commit failed, from what the
    committed offsets say, as the committer does: each number is there exactly once.
    """
    async with open_transport(broker.url) as transport:
        topic, group = await declared(transport, 1), unique("group")
        place = TopicPartition(topic, 0)
        marker = TopicPartition(await declared(transport, 1), 0)
        total = 60
        positions: dict[TopicPartition, int] = {}
        failures: list[CommitFailed] = []

        async def go_on(held: frozenset[TopicPartition]) -> None:
            await consumer.assign({tp: positions.get(tp, 0) for tp in held})

        listener = Listener(on_assigned=go_on)
        consumer: ConsumerClient
        with trio.fail_after(LIMIT):
            async with (
                transport.consumer(
                    ConsumerOptions(group=group + "-c", topics=(topic,)), listener
                ) as consumer,
                trio.open_nursery() as nursery,
            ):
                third, again = trio.Event(), trio.Event()

                async def write_on(p: ProducerClient, start: int) -> None:
                    for number in range(start, total):
                        if number == total // 3:
                            await decided(transport.admin, place)
                            third.set()
                            await again.wait()
                        p.produce(topic, 0, None, b"%d" % number, (), None)
                        await p.commit({marker: CommittedOffset(number + 1)}, None)

                async def write() -> None:
                    options = ProducerOptions(transactional_id=group, group=group)
                    while True:
                        told = (await transport.admin.committed(group, [marker]))[marker]
                        async with transport.producer(options) as p:
                            try:
                                await write_on(p, told.offset if told is not None else 0)
                            except CommitFailed as error:
                                failures.append(error)
                            else:
                                break
                        await transport.admin.fence(group, groups=[group], places=[place])

                nursery.start_soon(write)
                await third.wait()
                await trio.to_thread.run_sync(broker.kill)
                again.set()  # the next commit finds no broker
                await trio.to_thread.run_sync(broker.start)
                found = await fetch_until(consumer, total, positions)
                assert [int(record.value or b"") for record in found] == list(range(total))
                assert "no broker was there for a moment" in str(failures[0])
                assert len(failures) == 1


async def decided(admin: Admin, place: TopicPartition) -> None:
    """Wait until all that was produced there is committed or aborted."""
    ends = await admin.watermarks([place])
    while (await admin.watermarks([place], stable=True))[place].high < ends[place].high:  # noqa: ASYNC110
        await trio.sleep(0.01)


_IMPATIENT = """
import sys, trio
from trickle.exceptions import BrokerUnavailable
from trickle.transport import open_transport
from trickle.transport.contract import TransportOptions
from trickle.types import TopicPartition

async def main(url):
    options = TransportOptions(request_timeout=0.5)
    async with open_transport(url, options) as transport:
        place = [TopicPartition("nothing", 0)]

        async def look() -> None:
            with trio.fail_after(60):
                while True:
                    try:
                        await transport.admin.committed("nobody", place)
                        await transport.admin.members("nobody")
                    except BrokerUnavailable:
                        continue
                    return

        await look()
        print("looked", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        for _ in range(3):
            for vain in (
                lambda: transport.admin.committed("nobody", place),
                lambda: transport.admin.committed("nobody-else", place, stable=False),
                lambda: transport.admin.members("nobody"),
            ):
                try:
                    await vain()
                except BrokerUnavailable:
                    pass
        print("in vain", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        await look()
        await trio.sleep(2)  # whoever else waited for the broker has heard of it now
        print("alive", flush=True)

trio.run(main, sys.argv[1])
"""


async def test_looks_at_a_group_in_vain_do_not_end_the_process_later(broker: KafkaBroker) -> None:
    """The looks end without an answer while the broker is down; then it is there again.

    An AdminClient that waits for a group's coordinator beyond its time aborts the process then.
    """
    command = [sys.executable, "-c", _IMPATIENT, broker.url]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    heard = b""

    async def hear(line: bytes) -> None:
        nonlocal heard
        assert process.stdout is not None
        while line + b"\n" not in heard:
            piece = await process.stdout.receive_some()
            assert piece, f"it ended: {await process.wait()}"
            heard += piece

    try:
        with trio.fail_after(LIMIT):
            await hear(b"looked")
            await trio.to_thread.run_sync(broker.kill)
            await process.stdin.send_all(b"down\n")
            await hear(b"in vain")
            await trio.to_thread.run_sync(broker.start)
            await process.stdin.send_all(b"up\n")
            await hear(b"alive")
            assert await process.wait() == 0
    finally:
        process.kill()


async def test_closing_is_bounded_when_the_broker_is_stopped(broker: KafkaBroker) -> None:
    """All clients are open, with work in hand, when the broker freezes."""
    options = TransportOptions(request_timeout=5.0)
    listener = Listener()
    with trio.fail_after(LIMIT):
        async with open_transport(broker.url, options) as transport:
            topic, group = await declared(transport, 1), unique("group")
            zero = TopicPartition(topic, 0)
            consuming = ConsumerOptions(group=group, topics=(topic,))
            try:
                async with (
                    transport.producer(ProducerOptions()) as plain,
                    transport.producer(ProducerOptions(transactional_id=group)) as exact,
                    transport.reader({zero: 0}),
                    transport.consumer(consuming, listener) as consumer,
                ):
                    await listener.until_held(1)
                    await consumer.assign({zero: 0})
                    await produce(exact, topic, [b"in a transaction"])
                    await trio.to_thread.run_sync(broker.pause)
                    await produce(plain, topic, [b"never sent"])
                    began = time.monotonic()
                took = time.monotonic() - began
            finally:
                broker.resume()
        assert took < 20
        assert [call for _, call, _ in listener.calls] == ["assigned", "revoked"]


async def test_an_opening_that_was_given_up_takes_nothing_from_its_successor(
    broker: KafkaBroker,
) -> None:
    """It was cancelled while the broker stood still, and another of its id opens meanwhile."""
    with trio.fail_after(LIMIT):
        async with open_transport(broker.url, TransportOptions(request_timeout=10.0)) as transport:
            topic = await declared(transport, 1)
            options = ProducerOptions(transactional_id=topic)
            for number in range(3):
                await trio.to_thread.run_sync(broker.pause)
                try:
                    with trio.move_on_after(1) as given_up:
                        async with transport.producer(options):
                            raise AssertionError("the broker stands still")
                    assert given_up.cancelled_caught
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_resume_later, broker)
                        async with transport.producer(options) as producer:
                            for commit in range(3):
                                await produce(producer, topic, [b"%d.%d" % (number, commit)])
                                await producer.commit({}, None)
                                await trio.sleep(0.7)  # the first one would open by then
                finally:
                    broker.resume()
            values = [record.value for record in (await read_all(transport, topic))[0]]
        assert values == [b"%d.%d" % (n, c) for n in range(3) for c in range(3)]
    assert sum(thread.name == "trickle-kafka-calls" for thread in threading.enumerate()) < 3


async def _resume_later(broker: KafkaBroker) -> None:
    await trio.sleep(1.5)
    broker.resume()


async def test_nothing_is_taken_while_an_abort_is_under_way(broker: KafkaBroker) -> None:
    """The commit before it was cancelled, and ends as the abort begins."""
    taken: list[bytes] = []
    async with open_transport(broker.url, TransportOptions(request_timeout=LIMIT)) as transport:
        topic = await declared(transport, 1)
        with trio.fail_after(LIMIT):
            async with transport.producer(ProducerOptions(transactional_id=topic)) as producer:
                for number in range(40):
                    await produce(producer, topic, [b"dropped, or not"])
                    with trio.move_on_after(0.001):
                        await producer.commit({}, None)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_take, producer, topic, b"%d" % number, taken)
                        await producer.abort()
                        nursery.cancel_scope.cancel()
                    await producer.commit({}, None)
                await produce(producer, topic, [b"last"])
                await producer.commit({}, None)
        values = {record.value for record in (await read_all(transport, topic))[0]}
    assert {*taken, b"last"} == values - {b"dropped, or not"}


async def _take(producer: ProducerClient, topic: str, value: bytes, taken: list[bytes]) -> None:
    while True:
        await trio.lowlevel.checkpoint()
        if producer.ready and producer.produce(topic, 0, None, value, (), None):
            taken.append(value)
            return


async def test_late_reports_of_what_was_dropped_fail_no_later_commit(broker: KafkaBroker) -> None:
    async with open_transport(broker.url, TransportOptions(request_timeout=LIMIT)) as transport:
        topic = await declared(transport, 1)
        with trio.fail_after(LIMIT):
            async with transport.producer(ProducerOptions()) as producer:
                for number in range(20):
                    await produce(producer, topic, [bytes(2_000)] * 100)
                    await trio.sleep(number % 12 / 1000)
                    await producer.abort()
                    await produce(producer, topic, [b"%d" % number])
                    await producer.commit({}, None)
        values = [record.value for record in (await read_all(transport, topic))[0]]
    assert [int(value) for value in values if value and len(value) < 9] == list(range(20))


async def test_a_commit_at_a_stopped_broker_ends_in_time_and_can_be_taken_up_again(
    broker: KafkaBroker,
) -> None:
    """The commit times out, no new producer can be made; once the broker is back, ``abort`` can."""
    options = TransportOptions(request_timeout=4.0)
    with trio.fail_after(LIMIT):
        async with open_transport(broker.url, options) as transport:
            topic = await declared(transport, 1)
            async with transport.producer(ProducerOptions(transactional_id=topic)) as producer:
                await produce(producer, topic, [b"before"])
                await producer.commit({}, None)
                await produce(producer, topic, [b"lost"])
                await trio.to_thread.run_sync(broker.pause)
                began = time.monotonic()
                try:
                    with pytest.raises(BrokerUnavailable):
                        await producer.commit({}, None)
                    took = time.monotonic() - began
                    assert not producer.ready
                finally:
                    broker.resume()
                assert took < 10
                await _abort_until_ready(producer)
                await produce(producer, topic, [b"after"])
                await producer.commit({}, None)
            values = [record.value for record in (await read_all(transport, topic))[0]]
            # Whether "lost" was committed is the broker's to say; never twice, never partly.
            assert values in ([b"before", b"after"], [b"before", b"lost", b"after"])


async def _abort_until_ready(producer: ProducerClient) -> None:
    while not producer.ready:
        try:
            await producer.abort()
        except BrokerUnavailable:
            continue


async def test_a_transaction_that_the_broker_ended_is_no_rival(broker: KafkaBroker) -> None:
    """It stays open longer than its timeout; the broker aborts it and fences its producer."""
    async with open_transport(broker.url) as transport:
        topic = await declared(transport, 1)
        options = ProducerOptions(transactional_id=topic, transaction_timeout=1.0)
        with trio.fail_after(LIMIT):
            async with transport.producer(options) as producer:
                await produce(producer, topic, [b"too slow"])
                await trio.sleep(2.5)
                with pytest.raises(CommitFailed) as caught:
                    await producer.commit({}, None)
                assert not isinstance(caught.value, ProducerFenced)
                assert producer.ready
                await produce(producer, topic, [b"in time"])
                await producer.commit({}, None)
            values = [record.value for record in (await read_all(transport, topic))[0]]
            assert values == [b"in time"]


async def test_a_rival_ends_a_producer_for_good(broker: KafkaBroker) -> None:
    """The loser never takes the id back, whatever is called: there is no war."""
    async with open_transport(broker.url) as transport:
        topic = await declared(transport, 1)
        options = ProducerOptions(transactional_id=topic)
        with trio.fail_after(LIMIT):
            async with transport.producer(options) as loser, transport.producer(options) as winner:
                await produce(loser, topic, [b"loser"])
                for _ in range(2):
                    with pytest.raises(ProducerFenced, match="another producer has taken"):
                        await loser.commit({}, None)
                    with pytest.raises(ProducerFenced):
                        await loser.abort()
                assert not loser.ready
                await produce(winner, topic, [b"winner"])
                await winner.commit({}, None)
            values = [record.value for record in (await read_all(transport, topic))[0]]
            assert values == [b"winner"]


async def test_a_missing_topic_fails_the_commit_by_name(broker: KafkaBroker) -> None:
    async with open_transport(broker.url) as transport:
        topic, nowhere = await declared(transport, 1), unique("nowhere")
        with trio.fail_after(29):
            async with transport.producer(ProducerOptions(transactional_id=topic)) as producer:
                await produce(producer, nowhere, [b"lost"])
                with pytest.raises(CommitFailed) as caught:
                    await producer.commit({}, None)
                assert caught.value.refused is not None
                assert caught.value.refused.topic == nowhere
                await produce(producer, topic, [b"kept"])
                await producer.commit({}, None)
        values = [record.value for record in (await read_all(transport, topic))[0]]
        assert values == [b"kept"]


async def test_offsets_that_a_transaction_holds_are_named(broker: KafkaBroker) -> None:
    """A dead producer has sent offsets, and neither committed nor aborted them.

    Whoever wants to know what is committed waits, and is told why; the last ones can be seen.
    """
    group = unique("group")
    settings = {"bootstrap.servers": broker.address, "transactional.id": group}
    async with open_transport(broker.url, TransportOptions(request_timeout=4)) as transport:
        topic = await declared(transport, 1)
        place = TopicPartition(topic, 0)

        def leave_open() -> Producer:
            producer = Producer(settings)
            producer.init_transactions(20)
            producer.begin_transaction()
            consumer = Consumer({"bootstrap.servers": broker.address, "group.id": group})
            metadata = consumer.consumer_group_metadata()
            at = Partition(topic, 0, 5)
            producer.send_offsets_to_transaction([at], metadata, 20)
            consumer.close()
            return producer

        producer = await trio.to_thread.run_sync(leave_open)
        holds = "a transaction that has not ended holds them"
        with pytest.raises(BrokerUnavailable, match=holds) as caught:
            await transport.admin.committed(group, [place])
        assert caught.value.pending
        assert await transport.admin.committed(group, [place], stable=False) == {place: None}
        await transport.admin.fence(group)
        assert await transport.admin.committed(group, [place]) == {place: None}
        del producer


async def test_what_a_producer_left_is_aborted_once_more_where_it_is_asked(
    kafka_broker: KafkaBroker,
) -> None:
    """As after a broker has lost the end of a transaction: in all places, and for the offsets.

    Nothing of it can be seen, nothing else is touched, and the id goes on.
    """
    group, name = unique("group"), unique("left-open")
    with trio.fail_after(LIMIT):
        async with open_transport(kafka_broker.url) as transport:
            compacted = (await declared(transport, 2, config={"cleanup.policy": "compact"}), 2)
            plain = (await declared(transport, 1), 1)
            places = [TopicPartition(t, n) for t, count in (compacted, plain) for n in range(count)]
            options = ProducerOptions(transactional_id=name, group=group)
            async with transport.producer(options) as producer:
                await produce(producer, plain[0], [b"before"])
                await producer.commit({places[2]: CommittedOffset(7)}, None)
            async with transport.producer(options) as left:
                await produce(left, plain[0], [b"open"])
                await transport.admin.fence(name, groups=[group], places=places)
                async with transport.producer(options) as producer:
                    await produce(producer, plain[0], [b"after"])
                    await producer.commit({}, None)
            seen: dict[TopicPartition, int] = dict.fromkeys(places, 0)
            async with transport.reader(seen) as reader:
                marks = await transport.admin.watermarks(places)
                values: list[bytes | None] = []
                while any(reader.positions()[at] < marks[at].high for at in places):
                    for batch in await reader.fetch():
                        values += batch.values()
            assert values == [b"before", b"after"]
            assert [marks[at].high for at in places[:2]] == [1, 1]  # a marker, and no record
            committed = await transport.admin.committed(group, places)
            assert committed[places[2]] == CommittedOffset(7)
