"""The Kafka driver against the bare client, on a broker of its own.

    python -m benchmarks.kafka_driver [--records N]

Records of 160 bytes of JSON in 4 partitions. Rates are records a second; each line gives all its
rounds, as the machine's noise is larger than many a difference. The bare loop polls, consumes and
takes the values; the driver's loop does the same through ``fetch``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING, cast

import msgspec
import trio
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka import TopicPartition as Partition

from tests.kafka_broker import KafkaBroker
from trickle.transport import open_transport
from trickle.transport.contract import (
    ConsumerOptions,
    ProducerOptions,
    TopicSpec,
    TransportOptions,
)
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trickle.transport.contract import ProducerClient, Transport

PARTITIONS = 4
PAD = "x" * 60


class Flight(msgspec.Struct):
    """What a record decodes to."""

    carrier: str
    origin: str
    number: int
    delay: float
    note: str


def value(number: int) -> bytes:
    """Return one record's value, 160 bytes or so."""
    flight = Flight("AA", "JFK", number, number % 97 / 2, PAD)
    return msgspec.json.encode(flight).ljust(160)


class Listener:
    """Tells when the group has been joined."""

    def __init__(self) -> None:
        self.held = trio.Event()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Take note."""
        if partitions:
            self.held.set()

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is kept."""

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is kept."""


def fill_bare(address: str, topic: str, count: int, *, report: bool = False) -> float:
    """Produce with the bare client; return seconds."""
    producer = Producer(
        {
            "bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 5,
            "batch.size": 1_000_000, "queue.buffering.max.messages": 1_000_000,
        }
    )  # fmt: skip
    values = [value(n) for n in range(1_000)]
    errors: dict[object, object] = {}
    callback = cast("Callable[..., None] | None", errors.setdefault if report else None)
    began = time.perf_counter()
    for n in range(count):
        while True:
            try:
                producer.produce(topic, values[n % 1_000], b"%d" % n, -1, callback)
            except BufferError:
                producer.poll(0.01)
            else:
                break
    producer.flush()
    return time.perf_counter() - began


def read_bare(address: str, topic: str, count: int, decode: Callable[[bytes], object]) -> float:
    """Consume with the bare client; return seconds from the first record on."""
    consumer = Consumer(
        {
            "bootstrap.servers": address, "group.id": uuid.uuid4().hex, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 20_000,
        }
    )  # fmt: skip
    consumer.assign([Partition(topic, n, 0) for n in range(PARTITIONS)])
    seen, began = 0, 0.0
    while seen < count:
        first = consumer.poll(1.0)
        if first is None:
            continue
        began = began or time.perf_counter()
        messages = [first, *consumer.consume(1_000, 0)]
        seen += len(messages)
        for data in cast("list[bytes]", list(map(Message.value, messages))):
            decode(data)
    took = time.perf_counter() - began
    consumer.close()
    return took


async def read_driver(
    transport: Transport, topic: str, count: int, decode: Callable[[bytes], object]
) -> float:
    """Consume through ``ConsumerClient.fetch``; return seconds from the first record on."""
    listener = Listener()
    options = ConsumerOptions(group=uuid.uuid4().hex, topics=(topic,))
    async with transport.consumer(options, listener) as client:
        await listener.held.wait()
        await client.assign({TopicPartition(topic, n): 0 for n in range(PARTITIONS)})
        seen, began = 0, 0.0
        while seen < count:
            batches = await client.fetch()
            began = began or time.perf_counter()
            for batch in batches:
                seen += len(batch)
                for data in cast("list[bytes]", batch.values()):
                    decode(data)
        return time.perf_counter() - began


async def read_reader(
    transport: Transport, topic: str, count: int, decode: Callable[[bytes], object]
) -> float:
    """Read as a recovery does; return seconds from the first record on."""
    async with transport.reader({TopicPartition(topic, n): 0 for n in range(PARTITIONS)}) as reader:
        seen, began = 0, 0.0
        while seen < count:
            batches = await reader.fetch()
            began = began or time.perf_counter()
            for batch in batches:
                seen += len(batch)
                batch.keys()
                for data in cast("list[bytes]", batch.values()):
                    decode(data)
        return time.perf_counter() - began


async def fill_driver(
    transport: Transport, topic: str, count: int, transactional_id: str | None
) -> float:
    """Produce through ``ProducerClient.produce``, a commit each 100 ms; return seconds."""
    values = [value(n) for n in range(1_000)]
    options = ProducerOptions(transactional_id=transactional_id)
    async with transport.producer(options) as producer:
        began = committed = time.perf_counter()
        for n in range(count):
            while not producer.produce(topic, None, b"%d" % n, values[n % 1_000], (), n + 1):
                await producer.drained()
            if n % 1_000 == 0 and time.perf_counter() - committed > 0.1:
                await producer.commit({}, None)
                committed = time.perf_counter()
        await producer.commit({}, None)
        return time.perf_counter() - began


async def latency(transport: Transport, topic: str, count: int) -> list[float]:
    """Send a record each ms and time it from ``produce`` to ``fetch``; return seconds."""
    listener = Listener()
    options = ConsumerOptions(group=uuid.uuid4().hex, topics=(topic,))
    client_options = ProducerOptions()
    waits: list[float] = []
    async with (
        transport.producer(client_options) as producer,
        transport.consumer(options, listener) as client,
        trio.open_nursery() as nursery,
    ):
        await listener.held.wait()
        marks = await transport.admin.watermarks(
            [TopicPartition(topic, n) for n in range(PARTITIONS)]
        )
        await client.assign({tp: mark.high for tp, mark in marks.items()})
        nursery.start_soon(_send_slowly, producer, topic, count)
        while len(waits) < count:
            batches = await client.fetch()
            now = time.perf_counter()
            for batch in batches:
                waits += [now - float(data) for data in batch.values() if data is not None]
    return waits[count // 10 :]


async def _send_slowly(producer: ProducerClient, topic: str, count: int) -> None:
    for _ in range(count):
        producer.produce(topic, None, None, b"%.6f" % time.perf_counter(), (), None)
        await trio.sleep(0.001)


def _say(what: str, count: int, seconds: list[float]) -> None:
    rates = ", ".join(f"{count / took / 1_000:,.0f}" for took in seconds)
    best = count / min(seconds) / 1_000
    sys.stdout.write(f"{what:<44} {best:7,.0f} k/s   ({rates})\n")
    sys.stdout.flush()


async def run(address: str, count: int, rounds: int) -> None:
    """Run all measurements."""
    tag = uuid.uuid4().hex[:8]
    topic, out, tail = f"in-{tag}", f"out-{tag}", f"tail-{tag}"
    typed = msgspec.json.Decoder(Flight).decode
    options_url = f"kafka://{address}"
    async with open_transport(options_url) as transport:
        await transport.admin.declare(
            [TopicSpec(name=name, partitions=PARTITIONS) for name in (topic, out, tail)]
        )
        fill_bare(address, topic, count)
        readers: list[tuple[str, Callable[..., Awaitable[float]] | None]] = [
            ("bare client", None),
            ("driver: fetch", read_driver),
            ("driver: reader", read_reader),
        ]
        for what, decode in (("values", _nothing), ("decoded into a Struct", typed)):
            took: dict[str, list[float]] = {}
            for _ in range(rounds):
                for name, read in readers:
                    if read is None:
                        seconds = read_bare(address, topic, count, decode)
                    else:
                        seconds = await read(transport, topic, count, decode)
                    took.setdefault(name, []).append(seconds)
            for name, seconds in took.items():
                _say(f"{name}, {what}", count, seconds)
        half = count // 2
        _say("bare producer", half, [fill_bare(address, out, half) for _ in range(rounds)])
        plain = [await fill_driver(transport, out, half, None) for _ in range(rounds)]
        _say("driver: produce, flush each 100 ms", half, plain)
        exact = [await fill_driver(transport, out, half, f"b-{tag}") for _ in range(rounds)]
        _say("driver: produce, transaction each 100 ms", half, exact)
        waits = sorted(await latency(transport, tail, 3_000))
        p50, p99 = statistics.median(waits) * 1e3, waits[len(waits) * 99 // 100] * 1e3
        sys.stdout.write(
            f"latency at 1,000 a second, default linger: p50 {p50:.1f}, p99 {p99:.1f} ms\n"
        )
    options = {"linger.ms": 0}
    async with open_transport(options_url, _client(options)) as transport:
        waits = sorted(await latency(transport, tail, 3_000))
        p50, p99 = statistics.median(waits) * 1e3, waits[len(waits) * 99 // 100] * 1e3
        sys.stdout.write(f"latency at 1,000 a second, linger 0: p50 {p50:.1f}, p99 {p99:.1f} ms\n")


def _client(options: dict[str, int]) -> TransportOptions:
    return TransportOptions(client=options)


def _nothing(_: bytes) -> None:
    return


def main() -> None:
    """Start a broker, measure, print."""
    parser = argparse.ArgumentParser(description="The Kafka driver against the bare client.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--address", help="of a broker that runs already")
    given = parser.parse_args()
    if given.address:
        trio.run(run, given.address, given.records, given.rounds)
        return
    with KafkaBroker() as broker:
        trio.run(run, broker.address, given.records, given.rounds)


if __name__ == "__main__":
    main()
