"""The transport contract, second part: consumer groups, their rebalances, and who may commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.transport.helpers import (
    LIMIT,
    QUIET,
    Calls,
    Listener,
    declared,
    fetch_until,
    joined,
    produce,
    records_of,
    sole_error,
    transaction,
    unique,
)
from trickle.exceptions import CommitFailed, OffsetOutOfRange
from trickle.transport.contract import CommittedOffset, ConsumerClient, ProducerOptions, Transport
from trickle.types import Record, TopicPartition

Partitions = frozenset[TopicPartition]
PLAIN = ProducerOptions()


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def of(topic: str, *numbers: int) -> Partitions:
    return frozenset(TopicPartition(topic, number) for number in numbers)


def by_partition(records: list[Record]) -> dict[int, list[bytes | None]]:
    found: defaultdict[int, list[bytes | None]] = defaultdict(list)
    for record in records:
        found[record.partition].append(record.value)
    return dict(found)


async def filled(transport: Transport, partitions: int, count: int) -> str:
    """Declare a topic with so many records in each partition."""
    topic = await declared(transport, partitions)
    async with transport.producer(PLAIN) as producer:
        for partition in range(partitions):
            await produce(producer, topic, numbered(count), partition=partition)
        await producer.commit({}, None)
    return topic


# One member


async def test_one_member_gets_all_and_reads_from_where_it_says(transport: Transport) -> None:
    topic = await filled(transport, 3, 10)
    with trio.fail_after(LIMIT):
        async with joined(transport, unique("group"), topic) as (client, listener):
            assert await listener.until_held(3) == of(topic, 0, 1, 2)
            zero, one, _ = sorted(of(topic, 0, 1, 2))
            positions = {zero: 0, one: 7, TopicPartition("foreign", 0): 0}
            await client.assign(positions)  # partition 2 is not asked for
            found = by_partition(await fetch_until(client, 13, positions))
            assert found == {0: numbered(10), 1: numbered(3, 7)}
            with trio.move_on_after(QUIET):
                assert records_of(await client.fetch()) == []
            # Replaced: from other positions on, and of other partitions.
            positions = {one: 9, TopicPartition(topic, 2): 8}
            await client.assign(positions)
            found = by_partition(await fetch_until(client, 3, positions))
            assert found == {1: numbered(1, 9), 2: numbered(2, 8)}
            assert listener.count("assigned") == 1


async def test_nothing_is_fetched_before_positions_are_given(transport: Transport) -> None:
    topic = await filled(transport, 1, 10)
    with trio.fail_after(LIMIT):
        async with joined(transport, unique("group"), topic) as (client, listener):
            await listener.until_held(1)
            with trio.move_on_after(QUIET) as scope:
                await client.fetch()
            assert scope.cancelled_caught


async def test_records_that_come_later_wake_the_consumer(transport: Transport) -> None:
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with (
            joined(transport, unique("group"), topic) as (client, listener),
            transaction(transport, unique("id")) as producer,
        ):
            await client.assign(dict.fromkeys(await listener.until_held(2), 0))
            positions: dict[TopicPartition, int] = {}
            for start in range(0, 100, 10):
                await produce(producer, topic, numbered(10, start), partition=start // 10 % 2)
                await producer.commit({}, None)
                records = await fetch_until(client, 10, positions)
                assert [record.value for record in records] == numbered(10, start)


async def test_pausing_keeps_order_and_skips_and_doubles_nothing(transport: Transport) -> None:
    """One partition is paused from the start, one in the middle of it; each is resumed later."""
    count = 3_000
    topic = await filled(transport, 3, count)
    first, second, _ = sorted(of(topic, 0, 1, 2))
    with trio.fail_after(LIMIT):
        async with joined(transport, unique("group"), topic) as (client, listener):
            held = await listener.until_held(3)
            await client.assign(dict.fromkeys(held, 0), paused=[first])
            positions = dict.fromkeys(held, 0)
            records = await fetch_until(client, 1, positions)
            client.pause([second])
            while positions[TopicPartition(topic, 2)] < count:
                records += await fetch_until(client, 1, positions)
            assert positions[first] == 0  # nothing of it was on its way yet
            client.resume([second])
            while positions[second] < count:
                records += await fetch_until(client, 1, positions)
            client.resume([first])
            for _ in range(5):
                client.pause([first])
                client.resume([first])
            while positions[first] < count:
                records += await fetch_until(client, 1, positions)
    assert by_partition(records) == {n: numbered(count) for n in range(3)}


async def test_resuming_wakes_a_fetch_that_waits(transport: Transport) -> None:
    """All is paused when the fetch begins to wait; then it is resumed, and nothing else happens."""
    topic = await filled(transport, 1, 10)
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        async with joined(transport, unique("group"), topic) as (client, listener):
            await listener.until_held(1)
            await client.assign({zero: 0}, paused=[zero])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch_until, client, 10, {zero: 0})
                await trio.testing.wait_all_tasks_blocked()
                client.resume([zero])


async def test_a_fetch_that_is_cancelled_loses_nothing(transport: Transport) -> None:
    """Fetches are cut short again and again while records come: each comes once, in order."""
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with (
            joined(transport, unique("group"), topic) as (client, listener),
            transport.producer(PLAIN) as producer,
        ):
            held = await listener.until_held(2)
            await client.assign(dict.fromkeys(held, 0))
            records: list[Record] = []
            for start in range(0, 2_000, 100):
                for partition in range(2):
                    await produce(producer, topic, numbered(100, start), partition=partition)
                for wait in (0, 0.002):
                    with trio.move_on_after(wait):
                        records += records_of(await client.fetch())
                await producer.commit({}, None)
            while len(records) < 4_000:
                records += records_of(await client.fetch())
    assert by_partition(records) == {n: numbered(2_000) for n in range(2)}


@pytest.mark.parametrize("position", [2, 11])
async def test_a_position_that_the_topic_does_not_hold_is_an_error(
    transport: Transport, position: int
) -> None:
    topic = await filled(transport, 1, 10)
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        await transport.admin.delete_records({zero: 4})
        async with joined(transport, unique("group"), topic) as (client, listener):
            await listener.until_held(1)
            await client.assign({zero: position})
            with pytest.raises(OffsetOutOfRange) as caught:
                await client.fetch()
    assert repr(topic) in str(caught.value)


async def test_a_consumer_commits_offsets_with_metadata(transport: Transport) -> None:
    group, topic = unique("group"), await filled(transport, 2, 10)
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with trio.fail_after(LIMIT):
        async with joined(transport, group, topic) as (client, listener):
            await listener.until_held(2)
            await client.commit({zero: CommittedOffset(4, "first"), one: CommittedOffset(1)})
            await client.commit({zero: CommittedOffset(6, "second")})
            await client.commit({})
        found = await transport.admin.committed(group, [zero, one])
    assert found == {zero: CommittedOffset(6, "second"), one: CommittedOffset(1, "")}


async def test_offsets_of_topics_that_are_not_shared_out_are_any_member_s(
    transport: Transport,
) -> None:
    """As those of changelogs are; a membership that is past has no say in them either."""
    group, topic, other = unique("group"), await declared(transport, 2), await declared(transport)
    at = TopicPartition(other, 0)
    holder, newcomer = Listener("holder"), Listener("newcomer")
    with trio.fail_after(LIMIT):
        async with (
            transaction(transport, unique("id"), group) as producer,
            joined(transport, group, topic, listener=holder) as (client, _),
        ):
            await holder.until_held(2)
            await client.commit({at: CommittedOffset(4, "by the consumer")})
            found = await transport.admin.committed(group, [at])
            assert found == {at: CommittedOffset(4, "by the consumer")}
            await producer.commit({at: CommittedOffset(5)}, client.member)
            past = client.member
            async with joined(transport, group, topic, listener=newcomer):
                await newcomer.until_held(1)
                await holder.until_held(1)
                with pytest.raises(CommitFailed):
                    await producer.commit({at: CommittedOffset(6)}, past)
                assert await transport.admin.committed(group, [at]) == {at: CommittedOffset(5)}


# Leaving


async def test_leaving_in_order_revokes_first(transport: Transport) -> None:
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with joined(transport, unique("group"), topic) as (_, listener):
            await listener.until_held(2)
        assert [(call, held) for _, call, held in listener.calls] == [
            ("assigned", of(topic, 0, 1)),
            ("revoked", of(topic, 0, 1)),
        ]


async def test_when_a_member_is_cancelled_the_others_take_over(
    transport: Transport,
) -> None:
    """Each holds one partition; one is cancelled; the other gets both."""
    group, topic = unique("group"), await declared(transport, 2)
    with trio.fail_after(LIMIT):
        crashed, survivor = Listener("crashed"), Listener("survivor")
        scope = trio.CancelScope()

        async def crash() -> None:
            with scope:
                async with joined(transport, group, topic, listener=crashed):
                    await trio.sleep_forever()

        async with (
            trio.open_nursery() as nursery,
            joined(transport, group, topic, listener=survivor),
        ):
            nursery.start_soon(crash)
            await crashed.until_held(1)
            await survivor.until_held(1)
            scope.cancel()
            await survivor.until_held(2)


async def test_an_error_in_the_block_comes_out_as_it_is(transport: Transport) -> None:
    topic = await declared(transport, 1)
    listener = Listener()
    with trio.fail_after(LIMIT):
        with pytest.raises(LookupError, match="mine"):
            async with joined(transport, unique("group"), topic, listener=listener):
                await listener.until_held(1)
                raise LookupError("mine")
        with pytest.raises(LookupError, match="mine"):
            async with transport.producer(PLAIN):
                raise LookupError("mine")


async def test_a_listener_that_raises_ends_the_consumer(transport: Transport) -> None:
    topic = await declared(transport, 1)

    async def fail(_: Partitions) -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("in the listener")

    listener = Listener(on_assigned=fail)
    with trio.fail_after(LIMIT):
        with pytest.raises((LookupError, ExceptionGroup)) as caught:
            async with joined(transport, unique("group"), topic, listener=listener) as (client, _):
                await client.fetch()
        assert isinstance(sole_error(caught.value), LookupError)


# Several members


async def test_members_share_by_ranges_and_all_give_back_before_any_is_given(
    transport: Transport,
) -> None:
    """Members join one after the other, and leave one after the other."""
    group, topic = unique("group"), await declared(transport, 7)
    calls = Calls()
    listeners = [Listener(name, calls) for name in "abc"]
    shares = {1: [7], 2: [4, 3], 3: [3, 2, 2]}

    async def until_shared(count: int) -> None:
        # Which member comes first is the driver's affair, so the shares are waited for in any
        # order: all is stable when they are disjoint and cover the topic.
        while True:
            held = [listener.held or frozenset() for listener in listeners[:count]]
            sizes = sorted((len(h) for h in held), reverse=True)
            if sizes == shares[count] and frozenset().union(*held) == of(topic, *range(7)):
                break
            await calls.wait()
        for share in held:
            numbers = sorted(partition.partition for partition in share)
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    with trio.fail_after(LIMIT):
        async with joined(transport, group, topic, listener=listeners[0]):
            await until_shared(1)
            async with joined(transport, group, topic, listener=listeners[1]):
                await until_shared(2)
                async with joined(transport, group, topic, listener=listeners[2]):
                    await until_shared(3)
                await until_shared(2)
            await until_shared(1)
    holders: dict[TopicPartition, str] = {}
    for name, call, partitions in calls:
        for partition in partitions:
            if call == "assigned":
                assert holders.setdefault(partition, name) == name, "held by two members at once"
            else:
                assert holders.pop(partition) == name
    assert holders == {}


async def test_topics_of_one_count_are_shared_at_the_same_places(transport: Transport) -> None:
    group = unique("group")
    orders, payments = await declared(transport, 6), await declared(transport, 6)
    a, b = Listener("a"), Listener("b")
    with trio.fail_after(LIMIT):
        async with (
            joined(transport, group, orders, payments, listener=a),
            joined(transport, group, orders, payments, listener=b),
        ):
            for held in (await a.until_held(6), await b.until_held(6)):
                numbers = {
                    topic: {p.partition for p in held if p.topic == topic}
                    for topic in (orders, payments)
                }
                assert numbers[orders] == numbers[payments]
                assert len(numbers[orders]) == 3


async def test_nothing_is_given_away_before_revoked_has_returned(transport: Transport) -> None:
    """The holder stays in ``revoked`` until it is let go; the newcomer gets nothing until then."""
    group, topic = unique("group"), await declared(transport, 2)
    entered, gate = trio.Event(), trio.Event()

    async def hold(_: Partitions) -> None:
        entered.set()
        await gate.wait()

    slow, newcomer = Listener("slow", on_revoked=hold), Listener("newcomer")
    with trio.fail_after(LIMIT):
        async with joined(transport, group, topic, listener=slow):
            await slow.until_held(2)
            async with joined(transport, group, topic, listener=newcomer):
                await entered.wait()
                with trio.move_on_after(QUIET) as scope:
                    await newcomer.until_held(1)
                assert scope.cancelled_caught
                gate.set()
                await newcomer.until_held(1)


Commit = Callable[[TopicPartition], Awaitable[None]]


@pytest.mark.parametrize("transactional", [False, True], ids=["consumer", "producer"])
async def test_commits_inside_revoked_succeed(transport: Transport, transactional: bool) -> None:
    """A newcomer takes a partition; inside ``revoked`` its holder commits, and it holds."""
    group, topic = unique("group"), await filled(transport, 2, 10)
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    clients: list[ConsumerClient] = []

    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id"), group) as producer:

            async def commit(partitions: Partitions) -> None:
                (client,) = clients
                offsets = {p: CommittedOffset(5 + p.partition, "released") for p in partitions}
                if transactional:
                    await producer.commit(offsets, client.member)
                else:
                    await client.commit(offsets)

            holder, newcomer = Listener("holder", on_revoked=commit), Listener("newcomer")
            async with joined(transport, group, topic, listener=holder) as (client, _):
                clients.append(client)
                await client.assign(dict.fromkeys(await holder.until_held(2), 0))
                async with joined(transport, group, topic, listener=newcomer):
                    await newcomer.until_held(1)
                    found = await transport.admin.committed(group, [zero, one])
                    assert found == {
                        zero: CommittedOffset(5, "released"),
                        one: CommittedOffset(6, "released"),
                    }


async def test_a_commit_with_a_membership_that_is_past_is_refused(transport: Transport) -> None:
    """A membership is taken, a newcomer joins, and what was taken is used: nothing takes effect."""
    group, topic = unique("group"), await filled(transport, 2, 10)
    output = await declared(transport)
    zero = TopicPartition(topic, 0)
    holder, newcomer = Listener("holder"), Listener("newcomer")
    with trio.fail_after(LIMIT):
        async with (
            transaction(transport, unique("id"), group) as producer,
            joined(transport, group, topic, listener=holder) as (client, _),
        ):
            await holder.until_held(2)
            await producer.commit({zero: CommittedOffset(1)}, client.member)
            past = client.member
            async with joined(transport, group, topic, listener=newcomer):
                await newcomer.until_held(1)
                (mine,) = await holder.until_held(1)
                await produce(producer, output, [b"never seen"])
                with pytest.raises(CommitFailed):
                    await producer.commit({mine: CommittedOffset(9)}, past)
                found = await transport.admin.committed(group, [zero])
                assert found == {zero: CommittedOffset(1)}
                # The producer has a new transaction open all the same.
                await produce(producer, output, [b"seen"])
                await producer.commit({mine: CommittedOffset(3)}, client.member)
                found = await transport.admin.committed(group, [mine])
                assert found == {mine: CommittedOffset(3)}
        async with transport.reader({TopicPartition(output, 0): 0}) as reader:
            records: list[Record] = []
            while not records:
                records += records_of(await reader.fetch())
    assert [record.value for record in records] == [b"seen"]


async def test_what_was_revoked_is_not_fetched(transport: Transport) -> None:
    """Both topics' records wait; a newcomer takes half; from then on each gets its own only."""
    group, topic = unique("group"), await filled(transport, 2, 2_000)
    holder, newcomer = Listener("holder"), Listener("newcomer")
    with trio.fail_after(LIMIT):
        async with joined(transport, group, topic, listener=holder) as (first, _):
            await first.assign(dict.fromkeys(await holder.until_held(2), 0))
            await fetch_until(first, 1)
            async with joined(transport, group, topic, listener=newcomer) as (second, _):
                found: list[Partitions] = []
                for client, listener in ((first, holder), (second, newcomer)):
                    held = await listener.until_held(1)
                    await client.assign(dict.fromkeys(held, 0))
                    records = await fetch_until(client, 2_000, dict.fromkeys(held, 0))
                    assert {TopicPartition(r.topic, r.partition) for r in records} == held
                    found.append(held)
                assert found[0] | found[1] == of(topic, 0, 1)
                assert found[0] & found[1] == frozenset()


# Who is there


async def test_the_members_are_there_for_all_to_see(transport: Transport) -> None:
    """A group that nobody ever joined; then two members share, one leaves, the other goes."""
    group = unique("group")
    orders, payments = await declared(transport, 4), await declared(transport, 3)
    members = transport.admin.members
    with trio.fail_after(LIMIT):
        assert await members(group) == {}
        calls = Calls()
        a, b = Listener("a", calls), Listener("b", calls)
        async with joined(transport, group, orders, payments, listener=a) as (first, _):
            everything = of(orders, 0, 1, 2, 3) | of(payments, 0, 1, 2)
            assert await a.until_held(7) == everything
            assert await members(group) == {first.member_id: everything}
            async with joined(transport, group, orders, payments, listener=b) as (second, _):
                while not b.held or not a.held or a.held | b.held != everything:
                    await calls.wait()
                assert first.member_id != second.member_id
                assert await members(group) == {first.member_id: a.held, second.member_id: b.held}
            await a.until_held(7)
            assert await members(group) == {first.member_id: everything}
        assert await members(group) == {}
