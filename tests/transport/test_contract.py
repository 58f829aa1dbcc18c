"""The transport contract: topics, producers, transactions, readers. Groups are in a file beside.

One suite for all drivers and the real Kafka. It asks for nothing but what
:mod:`trickle.transport.contract` promises; what only one driver does is tested in its own file.
Each test has topics, groups and transactional ids of its own, as a broker may outlive it.
"""

from __future__ import annotations

import time

import pytest
import trio

from tests.transport.helpers import (
    LIMIT,
    QUIET,
    declared,
    produce,
    read_all,
    records_of,
    transaction,
    unique,
)
from trickle.exceptions import (
    CommitFailed,
    ProducerFenced,
    RecordRefused,
    TopicError,
)
from trickle.transport.contract import (
    CommittedOffset,
    Mark,
    ProducerOptions,
    TopicSpec,
    Transport,
    Watermarks,
)
from trickle.types import Record, TopicPartition
from trickle.utils.murmur2 import partition_of

PLAIN = ProducerOptions()


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


# Topics


async def test_a_declared_topic_is_described(transport: Transport) -> None:
    topic = await declared(transport, 3)
    with trio.fail_after(LIMIT):
        found = await transport.admin.topics([topic, unique("missing")])
        assert list(found) == [topic]
        assert found[topic].name == topic
        assert found[topic].partitions == 3
        assert found[topic].topic_id
        assert topic in await transport.admin.topics()
        zero = TopicPartition(topic, 0)
        assert await transport.admin.watermarks([zero]) == {zero: Watermarks(0, 0)}


async def test_declaring_is_a_race_that_all_win(transport: Transport) -> None:
    """Five declare one topic at the same time: each finds it missing, one creates it."""
    topic = unique("raced")
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                spec = TopicSpec(name=topic, partitions=2)
                nursery.start_soon(transport.admin.declare, [spec])
        assert (await transport.admin.topics([topic]))[topic].partitions == 2


async def test_declaring_again_leaves_a_topic_as_it_is(transport: Transport) -> None:
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        before = await transport.admin.topics([topic])
        await transport.admin.declare([TopicSpec(name=topic, partitions=5)])
        assert await transport.admin.topics([topic]) == before


@pytest.mark.parametrize("name", ["no spaces", "", "x" * 250, "slash/slash"])
async def test_an_impossible_topic_is_an_error_that_names_it(
    transport: Transport, name: str
) -> None:
    with trio.fail_after(LIMIT), pytest.raises(TopicError) as caught:
        await transport.admin.declare([TopicSpec(name=name, partitions=1)])
    assert name[:20] in str(caught.value)


async def test_a_topic_made_anew_is_empty_and_has_another_id(transport: Transport) -> None:
    topic = await declared(transport)
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            await producer.send(topic, 0, None, b"old", (), None)
        before = (await transport.admin.topics([topic]))[topic]
        await transport.admin.delete([topic, unique("missing")])
        await transport.admin.declare([TopicSpec(name=topic, partitions=1)])
        after = (await transport.admin.topics([topic]))[topic]
        assert after.topic_id != before.topic_id
        assert await read_all(transport, topic) == {0: []}


async def test_deleted_records_are_gone_and_the_rest_stays(transport: Transport) -> None:
    topic = await declared(transport)
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            await produce(producer, topic, numbered(10))
            await producer.commit({}, None)
        await transport.admin.delete_records({zero: 4})
        assert await transport.admin.watermarks([zero]) == {zero: Watermarks(4, 10)}
        # A reader that begins below the low watermark begins there.
        records = (await read_all(transport, topic))[0]
        assert values(records) == numbered(6, 4)
        assert records[0].offset == 4
        # Offsets go on where they were.
        async with transport.producer(PLAIN) as producer:
            assert (await producer.send(topic, 0, None, b"next", (), None)).offset == 10


# Plain producers


async def test_send_tells_where_the_record_went(transport: Transport) -> None:
    topic = await declared(transport, 4)
    stamp = 1_700_000_000_123
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            first = await producer.send(topic, 2, b"k", b"v", (), stamp)
            assert first == (topic, 2, 0, stamp / 1000)
            second = await producer.send(topic, 2, b"k", b"w", (), None)
            assert second.offset == 1
            assert abs(second.timestamp - time.time()) < LIMIT
            for key in (b"AA", b"UA", b"B6", b"", "Ærø".encode()):
                metadata = await producer.send(topic, None, key, b"v", (), None)
                assert metadata.partition == partition_of(key, 4)
            anywhere = await producer.send(topic, None, None, b"v", (), None)
            assert anywhere.partition in range(4)
        found = await read_all(transport, topic, 4)
        assert [(r.offset, r.value, r.timestamp_ms) for r in found[2]][:1] == [(0, b"v", stamp)]


async def test_a_flush_delivers_in_order_and_tells_positions(transport: Transport) -> None:
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            await produce(producer, topic, numbered(3_000), watch=True)
            await produce(producer, topic, numbered(3), partition=1)
            ends = await producer.commit({}, None)
            assert ends == {TopicPartition(topic, 0): 3_000}
            assert await producer.commit({}, None) == {}
        found = await read_all(transport, topic, 2)
        assert values(found[0]) == numbered(3_000)
        assert [record.offset for record in found[0]] == list(range(3_000))
        assert values(found[1]) == numbered(3)


async def test_what_a_record_is_made_of_comes_back_as_it_was(transport: Transport) -> None:
    topic = await declared(transport)
    headers = (("a", b"1"), ("a", None), ("Ærlig", b""), ("b", bytes(range(256))))
    rows = [
        (b"key", b"value", headers, 1_700_000_000_000),
        (None, b"no key", (), 1),
        (b"no value", None, (), 4_000_000_000),
        (None, None, (("only", b"headers"),), 1_000),
        (b"", b"", (), 1_000),
        (b"\x00\xff", bytes(range(256)), (), 1_000),
        (b"long key" * 250, b"v", (), 1_000),
    ]
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            for key, value, extra, stamp in rows:
                await producer.send(topic, 0, key, value, extra, stamp)
        found = (await read_all(transport, topic))[0]
    assert [(r.key, r.value, r.headers, r.timestamp_ms) for r in found] == rows


async def test_a_record_of_ten_megabytes_passes_where_the_topic_takes_it(
    transport: Transport,
) -> None:
    limit = 11 << 20
    topic = await declared(transport, config={"max.message.bytes": str(limit)})
    large = bytes(10 << 20)
    with trio.fail_after(LIMIT):
        assert (await transport.admin.topics([topic]))[topic].record_bytes_max in {limit, None}
        async with transport.producer(PLAIN) as producer:
            for value in (large, b"small", large):
                await producer.send(topic, 0, None, value, (), None)
        found = (await read_all(transport, topic))[0]
    assert [len(value or b"") for value in values(found)] == [len(large), 5, len(large)]


async def test_a_record_too_large_is_refused_and_the_producer_goes_on(
    transport: Transport,
) -> None:
    topic = await declared(transport, config={"max.message.bytes": "10000"})
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            with pytest.raises(RecordRefused) as caught:
                await producer.send(topic, 0, None, bytes(20_000), (), None)
            assert caught.value.topic == topic
            assert repr(topic) in str(caught.value)
            await producer.send(topic, 0, None, b"small", (), None)
        assert values((await read_all(transport, topic))[0]) == [b"small"]


# Transactions


async def test_nothing_is_seen_before_the_commit_and_all_of_it_after(
    transport: Transport,
) -> None:
    """Records lie in three partitions when a reader looks; then the commit; then it looks again."""
    topic = await declared(transport, 3)
    wanted = dict.fromkeys([TopicPartition(topic, n) for n in range(3)], 0)
    with trio.fail_after(LIMIT):
        async with (
            transaction(transport, unique("id")) as producer,
            transport.reader(wanted) as reader,
        ):
            for partition in range(3):
                await produce(producer, topic, numbered(500), partition=partition)
            with trio.move_on_after(QUIET):
                assert records_of(await reader.fetch()) == []
            await producer.commit({}, None)
            found = await read_all(transport, topic, 3)
            assert [values(found[n]) for n in range(3)] == [numbered(500)] * 3
            late: list[Record] = []
            while len(late) < 1_500:
                late += records_of(await reader.fetch())


async def test_transactions_follow_one_another_in_order(transport: Transport) -> None:
    topic = await declared(transport)
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            for start in range(0, 5_000, 1_000):
                assert producer.ready
                await produce(producer, topic, numbered(1_000, start))
                await producer.commit({}, None)
        found = (await read_all(transport, topic))[0]
    assert values(found) == numbered(5_000)


async def test_a_commit_tells_the_positions_behind_watched_records(transport: Transport) -> None:
    topic = await declared(transport, 3)
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            for _ in range(2):  # the second time with gaps before it, where markers take offsets
                await produce(producer, topic, [b"w"], watch=True)
                await produce(producer, topic, [b"last watched"], watch=True)
                await produce(producer, topic, [b"behind it"])
                await produce(producer, topic, [b"not watched"], partition=1)
                ends = await producer.commit({}, None)
                assert list(ends) == [TopicPartition(topic, 0)]
                found = (await read_all(transport, topic, 3))[0]
                last = [record.offset for record in found if record.value == b"last watched"][-1]
                assert ends == {TopicPartition(topic, 0): last + 1}
            assert await producer.commit({}, None) == {}


async def test_what_is_aborted_is_never_seen(transport: Transport) -> None:
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            await produce(producer, topic, numbered(10))
            await produce(producer, topic, numbered(10), partition=1)
            await producer.abort()
            assert producer.ready
            await producer.abort()  # of nothing
            await produce(producer, topic, [b"kept"])
            await producer.commit({}, None)
            await produce(producer, topic, [b"left open"])
        found = await read_all(transport, topic, 2)
    assert [values(found[n]) for n in range(2)] == [[b"kept"], []]


async def test_offsets_and_metadata_join_the_transaction(transport: Transport) -> None:
    group, source = unique("group"), await declared(transport, 2, name="source")
    topic = await declared(transport)
    zero, one = TopicPartition(source, 0), TopicPartition(source, 1)
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as plain:
            await produce(plain, source, numbered(9))
            await plain.commit({}, None)
        admin = transport.admin
        async with transaction(transport, unique("id"), group) as producer:
            assert await admin.committed(group, [zero, one]) == {zero: None, one: None}
            await produce(producer, topic, [b"first"])
            await producer.commit({zero: CommittedOffset(3, "by me: é")}, None)
            expected = {zero: CommittedOffset(3, "by me: é"), one: None}
            assert await admin.committed(group, [zero, one]) == expected
            await producer.commit({one: CommittedOffset(0)}, None)  # offsets alone
            await produce(producer, topic, [b"second"])
            await producer.abort()
            expected[one] = CommittedOffset(0, "")
            assert await admin.committed(group, [zero, one]) == expected
            assert await admin.committed(unique("other"), [zero]) == {zero: None}
        assert values((await read_all(transport, topic))[0]) == [b"first"]


async def test_a_mark_joins_the_transaction_beside_the_offsets_of_the_group(
    transport: Transport,
) -> None:
    group, topic, name = unique("group"), await declared(transport), unique("id")
    zero, admin = TopicPartition(topic, 0), transport.admin
    marks = [Mark(name, zero, CommittedOffset(1 << 62, text)) for text in ("a", "b", "c")]
    with trio.fail_after(LIMIT):
        async with transaction(transport, name, group) as producer:
            assert await producer.may_mark(marks[2])
            assert await admin.committed(name, [zero]) == {zero: None}
            await produce(producer, topic, [b"first"])
            await producer.commit({zero: CommittedOffset(3)}, None, marks[0])
            assert await admin.committed(name, [zero]) == {zero: marks[0].offset}
            assert await admin.committed(group, [zero]) == {zero: CommittedOffset(3)}
            await producer.commit({}, None, marks[1])  # a mark alone
            assert await admin.committed(name, [zero]) == {zero: marks[1].offset}
            async with transaction(transport, name, group) as second:
                await produce(producer, topic, [b"too late"])
                with pytest.raises(ProducerFenced):
                    await producer.commit({zero: CommittedOffset(7)}, None, marks[2])
                assert await admin.committed(name, [zero]) == {zero: marks[1].offset}
                await second.commit({}, None, marks[2])
                assert await admin.committed(name, [zero]) == {zero: marks[2].offset}
        assert await admin.committed(group, [zero]) == {zero: CommittedOffset(3)}


async def test_a_second_producer_of_the_same_id_fences_the_first(transport: Transport) -> None:
    """The first has produced; the second opens and commits; the first's commit comes too late."""
    group, topic, name = unique("group"), await declared(transport), unique("id")
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        async with transaction(transport, name, group) as first:
            await produce(first, topic, [b"of the first"])
            async with transaction(transport, name, group) as second:
                await produce(second, topic, [b"of the second"])
                await second.commit({zero: CommittedOffset(1)}, None)
                with pytest.raises(ProducerFenced):
                    await first.commit({zero: CommittedOffset(7)}, None)
                await produce(second, topic, [b"again"])
                await second.commit({}, None)
        assert values((await read_all(transport, topic))[0]) == [b"of the second", b"again"]
        found = await transport.admin.committed(group, [zero])
        assert found == {zero: CommittedOffset(1)}


async def test_fencing_an_id_ends_its_producer_and_its_transaction(transport: Transport) -> None:
    group, topic, name = unique("group"), await declared(transport), unique("id")
    with trio.fail_after(LIMIT):
        await transport.admin.fence(unique("never used"))
        async with transaction(transport, name, group) as dead:
            await produce(dead, topic, [b"never seen"])
            await transport.admin.fence(name)
            with pytest.raises(ProducerFenced):
                await dead.commit({}, None)
        async with transaction(transport, name, group) as successor:
            await produce(successor, topic, [b"seen"])
            await successor.commit({}, None)
        assert values((await read_all(transport, topic))[0]) == [b"seen"]


async def test_a_refused_record_fails_its_transaction_and_no_other(transport: Transport) -> None:
    """The client may refuse the record itself; else the commit fails and names it."""
    topic = await declared(transport, config={"max.message.bytes": "10000"})
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            await produce(producer, topic, [b"beside it"])
            refused: RecordRefused | None = None
            try:
                await produce(producer, topic, [bytes(20_000)])
            except RecordRefused as error:
                refused = error
                await producer.abort()
            else:
                with pytest.raises(CommitFailed) as caught:
                    await producer.commit({}, None)
                refused = caught.value.refused
            assert refused is not None
            assert refused.topic == topic
            await produce(producer, topic, [b"next"])
            await producer.commit({}, None)
        assert values((await read_all(transport, topic))[0]) == [b"next"]


async def test_a_cancelled_commit_is_whole_or_nothing(transport: Transport) -> None:
    """It is cancelled before it can wait; a successor of the same id finds out what happened."""
    group, topic, name = unique("group"), await declared(transport, 2), unique("id")
    zero = TopicPartition(topic, 0)
    with trio.fail_after(LIMIT):
        async with transaction(transport, name, group) as producer:
            for partition in range(2):
                await produce(producer, topic, numbered(100), partition=partition)
            with trio.CancelScope() as scope:
                scope.cancel()
                await producer.commit({zero: CommittedOffset(5)}, None)
        async with transaction(transport, name, group) as successor:
            await produce(successor, topic, [b"next"])
            await successor.commit({}, None)
        found = await read_all(transport, topic, 2)
        committed = (await transport.admin.committed(group, [zero]))[zero]
    whole = [*numbered(100), b"next"], numbered(100)
    if committed is None:
        assert (values(found[0]), values(found[1])) == ([b"next"], [])
    else:
        assert committed.offset == 5
        assert (values(found[0]), values(found[1])) == whole


# Readers


async def test_a_reader_reaches_the_high_watermark_past_what_is_no_record(
    transport: Transport,
) -> None:
    """The partition ends with an aborted transaction: a position gets behind it all the same."""
    topic = await declared(transport, 2)
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            await produce(producer, topic, numbered(5))
            await producer.commit({}, None)
            await produce(producer, topic, numbered(5))
            await produce(producer, topic, [b"all that partition 1 ever had"], partition=1)
            await producer.abort()
        found = await read_all(transport, topic, 2)
    assert [values(found[n]) for n in range(2)] == [numbered(5), []]


async def test_a_reader_starts_where_it_is_told_and_waits_for_more(transport: Transport) -> None:
    topic = await declared(transport, 2)
    start = {TopicPartition(topic, 0): 3, TopicPartition(topic, 1): 0}
    with trio.fail_after(LIMIT):
        async with transport.producer(PLAIN) as producer:
            await produce(producer, topic, numbered(5))
            await producer.commit({}, None)
            async with transport.reader(start) as reader:
                assert reader.positions() == start
                found: list[Record] = []
                while len(found) < 2:
                    found += records_of(await reader.fetch())
                assert values(found) == numbered(2, 3)
                await produce(producer, topic, [b"late"])
                await producer.commit({}, None)
                late: list[Record] = []
                while not late:
                    late += records_of(await reader.fetch())
                assert [(record.value, record.offset) for record in late] == [(b"late", 5)]
                assert reader.positions()[TopicPartition(topic, 0)] == 6


async def test_a_reader_that_is_cancelled_loses_nothing(transport: Transport) -> None:
    """Fetches are cut short again and again while records come: each comes once, in order."""
    topic = await declared(transport)
    found: list[Record] = []
    with trio.fail_after(LIMIT):
        async with (
            transport.producer(PLAIN) as producer,
            transport.reader({TopicPartition(topic, 0): 0}) as reader,
        ):
            for start in range(0, 2_000, 100):
                await produce(producer, topic, numbered(100, start))
                with trio.move_on_after(0):
                    found += records_of(await reader.fetch())
                await producer.commit({}, None)
                with trio.move_on_after(0.002):
                    found += records_of(await reader.fetch())
            while len(found) < 2_000:
                found += records_of(await reader.fetch())
    assert values(found) == numbered(2_000)
