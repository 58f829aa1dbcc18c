"""The bare client: what could be reached at best with confluent-kafka and msgspec alone.

``poll`` and then ``consume(n, 0)``, with the settings that were fastest when measured
(``fetch.queue.backoff.ms`` of a second, the default, starves a fast consumer). Each loop gives
the guarantee that its workload asks for: nothing is committed before what it led to is delivered,
and a record that could not be delivered is an error.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.data import PARTITIONS, Flight, declare
from benchmarks.measure import Stopwatch, say, tune_gc

__all__ = ["main"]

BATCH = 1_000
COMMIT_SECONDS = 2.0
TRANSACTION_SECONDS = 0.1
DRY_SECONDS = 0.005  # between transactions where latency counts


class Options(argparse.Namespace):
    """What a run is told."""

    workload: str
    bootstrap: str
    group: str
    topic: str
    out: str
    records: int
    guarantee: str


def open_consumer(options: Options, **more: str | int | bool) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 20_000,
            "isolation.level": "read_committed",
            **more,
        }
    )
    consumer.subscribe([options.topic])
    return consumer


def open_producer(options: Options, **more: str | int | bool) -> Producer:
    return Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
            **more,
        }
    )


def batches(consumer: Consumer, timeout: float = 0.1) -> Iterator[list[Message]]:
    """Give batches; an empty one where nothing came in time."""
    while True:
        first = consumer.poll(timeout)
        yield [] if first is None else [first, *consumer.consume(BATCH, 0)]


def fail(error: Any, message: Message) -> None:
    """Make a record that was not delivered an error."""
    if error is not None:
        raise RuntimeError(f"a record for {message.topic()} was not delivered: {error}")


def stateless(options: Options) -> None:
    """Decode every record into a Struct; commit offsets every two seconds."""
    consumer = open_consumer(options)
    decode = msgspec.json.Decoder(Flight).decode
    watch = Stopwatch()
    seen = distance = 0
    commit_at = float("inf")
    for batch in batches(consumer):
        if batch and not seen:
            watch.start()
            commit_at = time.monotonic() + COMMIT_SECONDS
        for message in batch:
            value: Any = message.value()
            distance += decode(value).distance
            seen += 1
        if seen >= options.records:
            break
        if time.monotonic() >= commit_at:
            consumer.commit(asynchronous=True)
            commit_at = time.monotonic() + COMMIT_SECONDS
    watch.report(seen)
    consumer.close()


def startup(options: Options) -> None:
    """Say when the first record is decoded."""
    consumer = open_consumer(options)
    decode = msgspec.json.Decoder(Flight).decode
    for batch in batches(consumer):
        for message in batch[:1]:
            value: Any = message.value()
            decode(value)
            say({"first": True})
            consumer.close()
            return


def pipe(options: Options) -> None:
    """Send each flight on; every two seconds flush, then commit the offsets."""
    consumer = open_consumer(options)
    latency = options.workload == "latency"
    producer = open_producer(options, **({"linger.ms": 0} if latency else {}))
    decode = msgspec.json.Decoder(Flight).decode
    encode = msgspec.json.Encoder().encode
    produce, out = producer.produce, options.out
    running = until_signal() if latency else None
    watch = Stopwatch()
    seen = 0
    commit_at = float("inf")
    for batch in batches(consumer):
        if batch and not seen:
            watch.start()
            commit_at = time.monotonic() + COMMIT_SECONDS
        for message in batch:
            value: Any = message.value()
            flight = decode(value)
            data = encode(flight)
            while True:
                try:
                    produce(out, data, flight.tail, -1, fail)
                    break
                except BufferError:
                    producer.poll(0.01)
        seen += len(batch)
        producer.poll(0)
        if seen >= options.records or (running and not running()):
            break
        if time.monotonic() >= commit_at:
            producer.flush(30)
            consumer.commit(asynchronous=True)
            commit_at = time.monotonic() + COMMIT_SECONDS
    producer.flush(30)
    consumer.commit(asynchronous=False)
    watch.report(seen)
    consumer.close()


class Transactions:
    """Offsets, and what was produced, in one transaction."""

    def __init__(self, options: Options, consumer: Consumer, seconds: float) -> None:
        self.producer = open_producer(options, **{"transactional.id": options.group})
        self.producer.init_transactions(30)
        self.producer.begin_transaction()
        self._topic = options.topic
        self._consumer = consumer
        self._seconds = seconds
        self._offsets: dict[int, int] = {}
        self.due_at = float("inf")

    def handled(self, batch: list[Message]) -> None:
        """Take note of the positions behind a batch."""
        for number, at in {message.partition(): message.offset() for message in batch}.items():
            assert number is not None
            assert at is not None
            self._offsets[number] = at + 1
        if self.due_at == float("inf"):
            self.due_at = time.monotonic() + self._seconds

    def commit(self) -> None:
        """Commit, and begin the next one."""
        producer = self.producer
        positions = [TopicPartition(self._topic, n, at) for n, at in self._offsets.items()]
        member = self._consumer.consumer_group_metadata()
        producer.send_offsets_to_transaction(positions, member, 30)
        producer.commit_transaction(30)
        producer.begin_transaction()
        self._offsets.clear()
        self.due_at = float("inf")


def pipe_exactly_once(options: Options) -> None:
    """Send each flight on, in a transaction every 100 ms, or (for latency) every 5."""
    latency = options.workload == "latency"
    seconds = DRY_SECONDS if latency else TRANSACTION_SECONDS
    consumer = open_consumer(options)
    transactions = Transactions(options, consumer, seconds)
    producer = transactions.producer
    decode = msgspec.json.Decoder(Flight).decode
    encode = msgspec.json.Encoder().encode
    produce, out = producer.produce, options.out
    running = until_signal() if latency else None
    watch = Stopwatch()
    seen = 0
    for batch in batches(consumer, seconds):
        if batch and not seen:
            watch.start()
        for message in batch:
            value: Any = message.value()
            flight = decode(value)
            data = encode(flight)
            while True:
                try:
                    produce(out, data, flight.tail)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)
        if batch:
            seen += len(batch)
            transactions.handled(batch)
        if seen >= options.records or (running and not running()):
            break
        if time.monotonic() >= transactions.due_at:
            transactions.commit()
    transactions.commit()
    watch.report(seen)
    consumer.close()


def count(options: Options) -> None:
    """Count per key; in a transaction every 100 ms, a changelog record for each changed key."""
    changelog = options.out
    declare(options.bootstrap, changelog, **{"cleanup.policy": "compact"})
    consumer = open_consumer(options)
    transactions = Transactions(options, consumer, TRANSACTION_SECONDS)
    produce = transactions.producer.produce
    decode = msgspec.json.Decoder(Flight).decode
    counts: dict[str, int] = {}
    dirty: set[str] = set()

    def log_changes() -> None:
        for key in dirty:
            while True:
                try:
                    produce(changelog, b"%d" % counts[key], key)
                    break
                except BufferError:
                    transactions.producer.poll(0.01)
        dirty.clear()

    watch = Stopwatch()
    seen = 0
    for batch in batches(consumer):
        if not batch:
            continue
        if not seen:
            watch.start()
        for message in batch:
            value: Any = message.value()
            tail = decode(value).tail
            counts[tail] = counts.get(tail, 0) + 1
            dirty.add(tail)
        seen += len(batch)
        transactions.handled(batch)
        if seen >= options.records:
            break
        if time.monotonic() >= transactions.due_at:
            log_changes()
            transactions.commit()
    log_changes()
    transactions.commit()
    watch.report(seen)
    consumer.close()


def recovery(options: Options) -> None:
    """Read a changelog to its end; nothing is done with what it holds."""
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": options.group,
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 100_000,
            "isolation.level": "read_committed",
        }
    )
    consumer.assign([TopicPartition(options.topic, n, 0) for n in range(PARTITIONS)])
    watch = Stopwatch()
    seen = 0
    for batch in batches(consumer):
        if batch and not seen:
            watch.start()
        for message in batch:
            message.key()
            message.value()
        seen += len(batch)
        if seen >= options.records:
            break
    watch.report(seen)
    consumer.close()


def until_signal() -> Callable[[], bool]:
    """Return what tells whether no signal has asked for the end yet."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    return lambda: not asked


def main() -> None:
    """Run one workload and print its result."""
    parser = argparse.ArgumentParser()
    workloads = ["stateless", "startup", "pipe", "latency", "count", "recovery"]
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--out", default="")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--guarantee", default="at_least_once")
    options = parser.parse_args(namespace=Options())
    tune_gc()
    run = {
        "stateless": stateless, "startup": startup, "count": count, "recovery": recovery,
        "pipe": pipe, "latency": pipe,
    }[options.workload]  # fmt: skip
    if run is pipe and options.guarantee == "exactly_once":
        run = pipe_exactly_once
    run(options)


if __name__ == "__main__":
    main()
