"""What becomes of records that are handed over; most of it without any broker."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest
import trio
from confluent_kafka import KafkaError, KafkaException

from tests.transport.helpers import declared, produce
from trickle.context import Effect
from trickle.exceptions import BrokerUnavailable, CommitFailed, ConfigurationError, RecordRefused
from trickle.transport import open_transport
from trickle.transport.contract import ProducerOptions, TransportOptions
from trickle.transport.kafka.config import read_config
from trickle.transport.kafka.logs import ClientLog
from trickle.transport.kafka.producer import PlainProducer, TransactionalProducer, open_producer

if TYPE_CHECKING:
    from tests.kafka_broker import KafkaBroker

QUEUE = 10
LIMIT = 1_000


def producer() -> AbstractAsyncContextManager[TransactionalProducer | PlainProducer]:
    """Open a producer whose broker never answers, so that its queue fills."""
    client = {"queue.buffering.max.messages": QUEUE, "message.max.bytes": LIMIT}
    config = read_config("kafka://127.0.0.1:1", TransportOptions(client=client))
    return open_producer(config, ProducerOptions(), ClientLog(config))


async def test_a_client_that_delivers_nothing_twice_in_a_row_is_replaced() -> None:
    """As one whose broker was killed and came back may not, for ever."""
    config = read_config("kafka://127.0.0.1:1", TransportOptions(request_timeout=0.5))
    with trio.fail_after(30):
        async with open_producer(config, ProducerOptions(), ClientLog(config)) as client:
            clients: list[object] = []
            for _ in range(4):
                clients.append(client._client)  # pyright: ignore[reportPrivateUsage]
                assert client.produce(*small(1)[0])
                with pytest.raises((CommitFailed, BrokerUnavailable)):
                    await client.commit({}, None)
                assert client.ready
    assert [clients.index(one) for one in clients] == [0, 0, 2, 2]


async def test_what_a_replaced_client_had_is_not_told_as_delivered() -> None:
    """Of two that use one client the other one finds it dead, and has it replaced."""
    config = read_config("kafka://127.0.0.1:1", TransportOptions(request_timeout=0.5))
    with trio.fail_after(30):
        async with open_producer(config, ProducerOptions(), ClientLog(config)) as client:
            assert isinstance(client, PlainProducer)
            first = client._client  # pyright: ignore[reportPrivateUsage]
            async with client.delivery() as delivery:
                while client._client is first:  # pyright: ignore[reportPrivateUsage]
                    delivery.produce_all(deque(small(1)), 1)
                    assert client.produce(*small(1)[0])
                    with pytest.raises((CommitFailed, BrokerUnavailable)):
                        await client.commit({}, None)
                delivery.produce_all(deque(small(1)), 1)
                with pytest.raises(CommitFailed, match="made anew"):
                    await delivery.delivered()


class Name(str):
    """A header's name, whose end shows."""

    __slots__ = ("__weakref__",)


async def test_what_the_client_does_not_take_is_let_go_without_a_collector() -> None:
    def refuse(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))  # pyright: ignore[reportPrivateUsage]

    async with producer() as client:
        name = Name("header")
        gone = weakref.ref(name)
        effects: deque[Effect] = deque([("topic", None, b"k", b"v", ((name, b""),), 1)])
        del name
        client._produce = refuse  # pyright: ignore[reportPrivateUsage]
        gc.disable()
        try:
            client.produce_all(effects, 1)
            assert not effects
            assert gone() is None
        finally:
            gc.enable()


async def test_a_linger_ms_that_is_no_number_is_told() -> None:
    config = read_config("kafka://127.0.0.1:1", TransportOptions(client={"linger.ms": "soon"}))
    with pytest.raises(ConfigurationError, match="refuses an option"):
        async with open_producer(config, ProducerOptions(), ClientLog(config)):
            pass


@pytest.mark.kafka
async def test_a_commit_does_not_wait_for_linger_ms(kafka_broker: KafkaBroker) -> None:
    lingering = TransportOptions(client={"linger.ms": 9_000})
    async with open_transport(kafka_broker.url, lingering) as transport:
        topic = await declared(transport, 1)
        async with transport.producer(ProducerOptions()) as client:
            with trio.fail_after(5):
                await produce(client, topic, [b"1", b"2"])
                await client.commit({}, None)


def small(count: int) -> list[Effect]:
    return [("t", None, None, b"%d" % number, (), None) for number in range(count)]


@pytest.mark.parametrize("watch", [False, True])
async def test_a_full_queue_leaves_the_rest_in_order(watch: bool) -> None:
    every = small(QUEUE + 5)
    effects = deque(every)
    with trio.fail_after(20):
        async with producer() as client:
            client.produce_all(effects, 4, watch=watch)
            assert list(effects) == every[4:]
            client.produce_all(effects, 100, watch=watch)
            assert list(effects) == every[QUEUE:]
            client.produce_all(effects, 100, watch=watch)
            assert list(effects) == every[QUEUE:]


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize("at", [0, 3, 5])
async def test_a_refused_record_is_the_leftmost(at: int, watch: bool) -> None:
    effects = deque(small(6))
    effects[at] = ("t", 1, None, bytes(2 * LIMIT), (), None)
    expected = list(effects)[at:]
    with trio.fail_after(20):
        async with producer() as client:
            with pytest.raises(RecordRefused) as caught:
                client.produce_all(effects, 100, watch=watch)
            assert caught.value.topic == "t"
            assert list(effects) == expected
            effects.popleft()
            client.produce_all(effects, 100, watch=watch)
            assert not effects


async def test_what_was_taken_before_an_impossible_record_is_not_handed_over_again() -> None:
    effects = deque(small(6))
    effects[4] = ("t", 1 << 31, None, b"", (), None)
    expected = list(effects)[4:]
    with trio.fail_after(20):
        async with producer() as client:
            with pytest.raises(OverflowError):
                client.produce_all(effects, 100)
            assert list(effects) == expected


async def test_a_commit_fails_with_the_first_record_that_was_not_delivered() -> None:
    """While it waited for the rest a broker came back, and took that before what had failed."""
    config = read_config("kafka://127.0.0.1:1", TransportOptions(request_timeout=5))
    async with open_producer(config, ProducerOptions(), ClientLog(config)) as client:
        assert client.produce(*small(1)[0])
        await trio.sleep(3)  # as an agent takes its time
        assert client.produce(*small(1)[0])
        with trio.fail_after(4.5), pytest.raises(CommitFailed, match="not all records were"):
            await client.commit({}, None)
        await client.abort()
