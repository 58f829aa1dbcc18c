"""A member of a group on the real Kafka: what the contract leaves to the driver."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import pytest
import trio
import trio.testing

from tests.transport.helpers import (
    LIMIT,
    Listener,
    declared,
    fetch_until,
    produce,
    records_of,
    unique,
)
from trickle.exceptions import CommitFailed, OffsetOutOfRange, TopicError, UsageError
from trickle.transport import open_transport
from trickle.transport.contract import CommittedOffset, ConsumerOptions, ProducerOptions
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from tests.kafka_broker import KafkaBroker
    from trickle.transport.contract import ConsumerClient, Transport

pytestmark = pytest.mark.kafka

PLAIN = ProducerOptions()


@pytest.fixture
async def transport(kafka_broker: KafkaBroker) -> AsyncGenerator[Transport, None]:
    """Give the session's broker, opened."""
    async with open_transport(kafka_broker.url) as opened:
        yield opened


def options(topic: str, group: str, **more: object) -> ConsumerOptions:
    """Return options with a short rebalance timeout, which the broker allows from 6 s on."""
    return ConsumerOptions(group=group, topics=(topic,), rebalance_timeout=6.0, **more)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def fill(transport: Transport, topic: str, count: int, partition: int = 0) -> list[bytes]:
    """Produce so many records of a hundred bytes and return their values."""
    values = [b"%0100d" % n for n in range(count)]
    async with transport.producer(PLAIN) as producer:
        await produce(producer, topic, values, partition=partition)
        await producer.commit({}, None)
    return values


async def test_a_slow_program_stays_a_member_and_misses_nothing(transport: Transport) -> None:
    """Nobody fetches for longer than the group's patience (6 s), with far more than fits waiting.

    The driver fills its backlog, waits a second, pauses all partitions and polls on. When fetching
    goes on, it resumes; the records come once each, in order.
    """
    topic, group = await declared(transport, 1), unique("group")
    values = await fill(transport, topic, 60_000)
    listener = Listener()
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group, buffer_bytes=1 << 20), listener) as c:
            await listener.until_held(1)
            await c.assign({zero: 0})
            positions: dict[TopicPartition, int] = {}
            found = await fetch_until(c, 1, positions)
            await trio.sleep(8.0)
            found += await fetch_until(c, len(values) - len(found), positions)
            assert [record.value for record in found] == values
            assert [call for _, call, _ in listener.calls] == ["assigned"]
            await c.commit({zero: CommittedOffset(len(values))})


async def test_every_command_is_served_inside_a_rebalance_call(transport: Transport) -> None:
    """The owner waits in its callback for ``revoked``, which calls back into it."""
    topic, group = await declared(transport, 2), unique("group")
    await fill(transport, topic, 3)
    zero = TopicPartition(topic, 0)
    served: list[str] = []

    async def use_everything(_: object) -> None:
        await first.commit({zero: CommittedOffset(2, "inside")})
        served.append("commit")
        first.pause([zero])
        first.resume([zero])
        await first.assign({zero: 0})  # ignored: it is ours no more
        served.append("assign")

    listener, other = Listener("a", on_revoked=use_everything), Listener("b")
    first: ConsumerClient
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group), listener) as first:
            await listener.until_held(2)
            await first.assign({zero: 0})
            await fetch_until(first, 3)
            async with transport.consumer(options(topic, group), other):
                await other.until_held(1)
                assert served == ["commit", "assign"]
                found = await transport.admin.committed(group, [zero])
                assert found == {zero: CommittedOffset(2, "inside")}
                with trio.move_on_after(0.3) as nothing_comes:
                    await first.fetch()
                assert nothing_comes.cancelled_caught


async def test_the_group_goes_on_without_a_member_that_takes_too_long(
    transport: Transport,
) -> None:
    """What it commits then, of partitions that others hold, is refused: alone or in a transaction.

    The member itself is in the new generation by then, which Kafka would take its commits for.
    """
    topic, group = await declared(transport, 2), unique("group")
    await fill(transport, topic, 3)
    zero = TopicPartition(topic, 0)
    refused: list[CommitFailed] = []
    told = trio.Event()

    async def too_late(_: object) -> None:
        await other.until_held(1)
        before = await transport.admin.committed(group, [zero])
        with pytest.raises(CommitFailed) as alone:
            await first.commit({zero: CommittedOffset(2)})
        refused.append(alone.value)
        with pytest.raises(CommitFailed) as whole:
            await producer.commit({zero: CommittedOffset(2)}, first.member)
        refused.append(whole.value)
        assert await transport.admin.committed(group, [zero]) == before
        told.set()

    listener, other = Listener("a", on_revoked=too_late), Listener("b")
    first: ConsumerClient
    with trio.fail_after(LIMIT):
        async with (
            transport.producer(ProducerOptions(group=group, transactional_id=group)) as producer,
            transport.consumer(options(topic, group), listener) as first,
        ):
            await listener.until_held(2)
            async with transport.consumer(options(topic, group), other):
                await other.until_held(1)
                await told.wait()
    assert [error.superseded for error in refused] == [True, True]


async def test_positions_given_inside_assigned_hold(transport: Transport) -> None:
    """``assign`` is called while the owner is still in its callback."""
    topic, group = await declared(transport, 1), unique("group")
    values = await fill(transport, topic, 10)
    zero = TopicPartition(topic, 0)

    async def start(_: object) -> None:
        await client.assign({zero: 4})

    listener = Listener(on_assigned=start)
    client: ConsumerClient
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group), listener) as client:
            found = await fetch_until(client, 6)
            assert [record.value for record in found] == values[4:]


async def test_a_position_out_of_range_is_named_and_the_consumer_goes_on(
    transport: Transport,
) -> None:
    topic, group = await declared(transport, 1), unique("group")
    values = await fill(transport, topic, 10)
    zero = TopicPartition(topic, 0)
    await transport.admin.delete_records({zero: 5})
    listener = Listener()
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group), listener) as client:
            await listener.until_held(1)
            await client.assign({zero: 2})
            with pytest.raises(OffsetOutOfRange) as caught:
                await client.fetch()
            assert str(caught.value) == (
                f"topic {topic!r}, partition 0: the position 2 is out of range, the topic holds "
                f"offsets from 5 up to 10; records were deleted before group {group!r} read them, "
                "or the topic was made anew: choose where to go on"
            )
            await client.assign({zero: 5})
            found = await fetch_until(client, 5)
            assert [record.value for record in found] == values[5:]


async def test_a_missing_topic_ends_the_consumer_by_its_name(transport: Transport) -> None:
    topic, group = unique("nowhere"), unique("group")
    with trio.fail_after(29):
        async with transport.consumer(options(topic, group), Listener()) as client:
            with pytest.raises(TopicError, match=f"the topic '{topic}' does not exist at broker="):
                await client.fetch()


async def test_the_new_protocol_looks_eager_too(transport: Transport) -> None:
    """KIP-848 takes and gives single partitions; the listener sees whole assignments.

    Each call comes with the whole of what is held; ``revoked`` (which :class:`Listener` checks)
    names exactly what ``assigned`` gave last.
    """
    topic, group = await declared(transport, 4), unique("group")
    for partition in range(4):
        await fill(transport, topic, 5, partition)
    first, second = Listener("first"), Listener("second")
    settings = options(topic, group, protocol="consumer")
    everything = {TopicPartition(topic, n): 0 for n in range(4)}
    with trio.fail_after(LIMIT):
        async with transport.consumer(settings, first) as one:
            await first.until_held(4)
            await one.assign(everything)
            await fetch_until(one, 20)
            async with transport.consumer(settings, second) as two:
                held = await second.until_held(2)
                kept = await first.until_held(2)
                assert held | kept == everything.keys()
                await one.assign(dict.fromkeys(kept, 3))
                await two.assign(dict.fromkeys(held, 1), paused=list(held))
                found = await fetch_until(one, 4)
                assert {TopicPartition(r.topic, r.partition) for r in found} == kept
                assert {r.offset for r in found} == {3, 4}
                two.resume(held)
                assert {r.offset for r in await fetch_until(two, 8)} == {1, 2, 3, 4}
                await two.commit(dict.fromkeys(held, CommittedOffset(5)))
            await first.until_held(4)
            await one.assign(dict.fromkeys(everything, 4))
            assert len(await fetch_until(one, 4)) == 4


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_client_that_is_made_anew_is_a_new_member(
    transport: Transport, protocol: str
) -> None:
    """As one that does not come back into its group is; what it held is lost, and given again."""
    topic, group = await declared(transport, 2), unique("group")
    for partition in range(2):
        await fill(transport, topic, 5, partition)
    listener = Listener()
    everything = {TopicPartition(topic, n): 0 for n in range(2)}
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group, protocol=protocol), listener) as client:
            await listener.until_held(2)
            await client.assign(everything)
            await fetch_until(client, 10)
            before = client.member_id
            client.renew()
            while not listener.count("lost"):
                await listener.calls.wait()
            await listener.until_held(2)
            assert client.member_id != before
            await client.assign(dict.fromkeys(everything, 3))
            assert {r.offset for r in await fetch_until(client, 4)} == {3, 4}
            await client.commit(dict.fromkeys(everything, CommittedOffset(5)))
            found = await transport.admin.members(group)
            assert found == {client.member_id: frozenset(everything)}


async def test_a_client_that_is_made_anew_while_it_ends_does_not_join_again(
    transport: Transport,
) -> None:
    """The end comes while the listener is told of what is lost."""
    topic, group = await declared(transport, 2), unique("group")
    told, go_on = trio.Event(), trio.Event()

    class Slow(Listener):
        async def lost(self, partitions: frozenset[TopicPartition]) -> None:
            told.set()
            await go_on.wait()
            await super().lost(partitions)

    listener = Slow()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def end_later() -> None:
                await trio.testing.wait_all_tasks_blocked(0.5)
                go_on.set()

            async with transport.consumer(options(topic, group), listener) as client:
                await listener.until_held(2)
                client.renew()
                await told.wait()
                nursery.start_soon(end_later)
        assert listener.held is None
        assert await transport.admin.members(group) == {}


async def test_a_static_member_that_returns_gets_its_partitions_back(transport: Transport) -> None:
    """It leaves and comes back within its session; the other member notices nothing."""
    topic, group = await declared(transport, 2), unique("group")
    other = Listener("other")
    with trio.fail_after(LIMIT):
        async with transport.consumer(options(topic, group, instance_id="o"), other):
            await other.until_held(2)
            before = Listener("before")
            async with transport.consumer(options(topic, group, instance_id="s"), before):
                held = await before.until_held(1)
                await other.until_held(1)
            calls = len(other.calls)
            after = Listener("after")
            async with transport.consumer(options(topic, group, instance_id="s"), after):
                assert await after.until_held(1) == held
                assert len(other.calls) == calls


async def test_a_forked_child_is_told(transport: Transport) -> None:
    """The child calls each client once, and leaves without destroying what it inherited."""
    topic, group = await declared(transport, 1), unique("group")
    zero = TopicPartition(topic, 0)
    listener = Listener()
    with trio.fail_after(LIMIT):
        async with (
            transport.consumer(options(topic, group), listener) as consumer,
            transport.producer(PLAIN) as producer,
            transport.reader({zero: 0}) as reader,
        ):
            await listener.until_held(1)
            child = os.fork()
            if child == 0:
                told = 0
                for call in (
                    consumer.fetch(),
                    producer.commit({}, None),
                    reader.fetch(),
                    transport.admin.topics(),
                ):
                    told += _raises_at_once(call)
                try:
                    producer.produce(topic, 0, None, b"", (), None)
                except UsageError:
                    told += 1
                os._exit(told)
            status = await trio.to_thread.run_sync(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status[1]) == 5
            await producer.send(topic, 0, None, b"the parent goes on", (), None)
            assert len(records_of(await reader.fetch())) == 1


def _raises_at_once(call: object) -> bool:
    try:
        call.send(None)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    except UsageError as error:
        return "spawn" in str(error)
    return False


@pytest.mark.parametrize("start", [0, 1])
async def test_what_is_resumed_is_fetched_at_once(transport: Transport, start: int) -> None:
    """All is paused at each start and each takeover, and the client's threads sleep meanwhile.

    Left alone, they look at a partition that is resumed up to a second later.
    """
    topic = await declared(transport, 1)
    values = await fill(transport, topic, 2)
    zero = TopicPartition(topic, 0)
    waited = 0.0
    with trio.fail_after(LIMIT):
        for _ in range(3):
            listener = Listener()
            async with transport.consumer(options(topic, unique("group")), listener) as c:
                await listener.until_held(1)
                await c.assign({zero: start}, paused=[zero])
                await trio.sleep(0.1)  # long enough for the threads to find nothing to fetch
                before = trio.current_time()
                c.resume([zero])
                found = await fetch_until(c, len(values) - start, {})
                waited += trio.current_time() - before
                assert [record.value for record in found] == values[start:]
    assert waited < 1.2, f"three times, {waited:.1f} s in all"


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_member_without_partitions_knows_its_name(
    transport: Transport, protocol: Literal["classic", "consumer"]
) -> None:
    """By it a worker sees that it is in its group, and which standbys are its own."""
    topic, group = await declared(transport, 1), unique("group")
    with trio.fail_after(LIMIT):
        async with (
            transport.consumer(options(topic, group, protocol=protocol), Listener("a")) as one,
            transport.consumer(options(topic, group, protocol=protocol), Listener("b")) as two,
        ):
            members: Mapping[str, frozenset[TopicPartition]] = {}
            while sorted(map(len, members.values())) != [0, 1] or not two.member_id:
                await trio.sleep(0.1)
                members = await transport.admin.members(group)
            while {one.member_id, two.member_id} != members.keys():
                await trio.sleep(0.1)
                members = await transport.admin.members(group)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_who_loses_everything_is_assigned_nothing(
    transport: Transport, protocol: Literal["classic", "consumer"]
) -> None:
    """Range assignment goes by static members' names: the second one takes the only partition.

    Without a word that the rebalance is over, whoever waits for the next assignment would for ever.
    """
    topic, group = await declared(transport, 1), unique("group")
    loser, winner = Listener("loser"), Listener("winner")
    with trio.fail_after(LIMIT):
        async with transport.consumer(
            options(topic, group, protocol=protocol, instance_id="b"), loser
        ):
            await loser.until_held(1)
            async with transport.consumer(
                options(topic, group, protocol=protocol, instance_id="a"), winner
            ):
                await winner.until_held(1)
                await loser.until_held(0)
                assert loser.calls[-1] == ("loser", "assigned", frozenset())
