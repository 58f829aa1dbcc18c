"""The transport contract: many records handed over at once, and by several callers."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import pytest
import trio

from tests.transport.helpers import LIMIT, declared, produce, read_all, transaction, unique
from trickle.context import Effect
from trickle.exceptions import CommitFailed, RecordRefused
from trickle.transport.contract import ProducerClient, ProducerOptions, Transport
from trickle.types import TopicPartition


async def test_many_handed_over_at_once_arrive_as_each_would(transport: Transport) -> None:
    """Some with a partition, headers or a timestamp, some without; ten at a time."""
    topic = await declared(transport, 2)
    headers = (("h", b"1"), ("n", None))
    every: list[Effect] = [
        (topic, n % 2, b"k%d" % n, b"%d" % n, headers if n % 3 else (), n + 1 if n % 5 else None)
        for n in range(40)
    ]
    every += [(topic, None, None if n % 4 else b"", b"%d" % n, (), 1_000) for n in range(40, 60)]
    every += [(topic, 1, b"k%d" % n, None, (), 7_000 + n) for n in range(60, 75)]
    effects = deque(every)
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            while effects:
                producer.produce_all(effects, 10, watch=True)
            ends = await producer.commit({}, None)
        found = await read_all(transport, topic, 2)
    assert ends == {TopicPartition(topic, 1): found[1][-1].offset + 1}
    for partition in range(2):
        sent = [e for e in every[:40] + every[60:] if e[1] == partition]
        numbers = {e[3] for e in every[40:60]}
        got = [r for r in found[partition] if r.value not in numbers]
        assert [(r.key, r.value, r.headers) for r in got] == [(e[2], e[3], e[4]) for e in sent]
        stamps = zip((e[5] for e in sent), (r.timestamp_ms for r in got), strict=True)
        assert all(there == (asked or there) for asked, there in stamps)
    free = sorted(r.value or b"" for p in found.values() for r in p if r.timestamp_ms == 1_000)
    assert free == [b"%d" % n for n in range(40, 60)]


async def test_a_watched_record_that_is_refused_early_is_named_by_the_commit(
    transport: Transport,
) -> None:
    """Its report may come before the commit; that is not what tells who is refused."""
    topic = await declared(transport, config={"max.message.bytes": "10000"})
    with trio.fail_after(LIMIT):
        async with transaction(transport, unique("id")) as producer:
            try:
                await produce(producer, topic, [bytes(20_000)], watch=True)
            except RecordRefused:
                return  # a driver that needs no answer to know
            await trio.sleep(0.3)  # for the answer, which comes or comes not
            with pytest.raises(CommitFailed) as caught:
                await producer.commit({}, None)
            assert caught.value.refused is not None
            assert caught.value.refused.topic == topic


async def test_a_plain_producer_goes_on_behind_an_abort(transport: Transport) -> None:
    topic = await declared(transport)
    with trio.fail_after(LIMIT):
        async with transport.producer(ProducerOptions()) as producer:
            await produce(producer, topic, [b"perhaps"])
            with suppress(RecordRefused):  # at once, where no answer is needed to know
                await produce(producer, unique("none"), [b"never"])
            await producer.abort()
            await produce(producer, topic, [b"surely"])
            await producer.commit({}, None)
        values = [record.value for record in (await read_all(transport, topic))[0]]
    assert values in ([b"perhaps", b"surely"], [b"surely"])


async def test_each_caller_hears_of_his_own_records_alone(transport: Transport) -> None:
    """Two send at the same time, by one client, and what one of them sends is refused."""
    small = await declared(transport, config={"max.message.bytes": "10000"})
    topic = await declared(transport)
    refused: dict[str, bool] = {}

    async def deliver(producer: ProducerClient, name: str, size: int) -> None:
        async with producer.delivery() as delivery:
            effects: deque[Effect] = deque((name, 0, None, bytes(size), (), None) for _ in range(9))
            try:
                while effects:
                    delivery.produce_all(effects, 3)
                    await trio.lowlevel.checkpoint()
                await delivery.delivered()
                refused[name] = False
            except (RecordRefused, CommitFailed) as error:
                refused[name] = small in str(error)

    with trio.fail_after(LIMIT):
        async with transport.producer(ProducerOptions()) as producer:
            for _ in range(5):
                await produce(producer, topic, [b"behind nobody"])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(deliver, producer, small, 20_000)
                    nursery.start_soon(deliver, producer, topic, 1)
                assert refused == {small: True, topic: False}
                await producer.commit({}, None)
        assert len((await read_all(transport, topic))[0]) == 50
        assert not (await read_all(transport, small))[0]
