"""The bare client: what could be reached at best with confluent-kafka and msgspec alone.

``poll`` and then ``consume(n, 0)``, with the settings that were fastest when measured
(``fetch.queue.backoff.ms`` of a second, the default, starves a fast consumer).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.data import TOPIC, Flight, declare
from benchmarks.measure import Stopwatch, tune_gc

__all__ = ["main"]

BATCH = 1_000
COMMIT_SECONDS = 2.0
TRANSACTION_SECONDS = 0.1


def open_consumer(bootstrap: str, group: str, **more: str | int | bool) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 20_000,
            **more,
        }
    )
    consumer.subscribe([TOPIC])
    return consumer


def batches(consumer: Consumer) -> Iterator[list[Message]]:
    while True:
        first = consumer.poll(0.1)
        if first is not None:
            yield [first, *consumer.consume(BATCH, 0)]


def stateless(bootstrap: str, group: str, records: int) -> None:
    """Decode every record into a Struct; commit offsets every two seconds."""
    consumer = open_consumer(bootstrap, group)
    decode = msgspec.json.Decoder(Flight).decode
    watch = Stopwatch()
    seen = distance = 0
    commit_at = float("inf")
    for batch in batches(consumer):
        if not seen:
            watch.start()
            commit_at = time.monotonic() + COMMIT_SECONDS
        for message in batch:
            value: Any = message.value()
            distance += decode(value).distance
            seen += 1
        if seen >= records:
            break
        if time.monotonic() >= commit_at:
            consumer.commit(asynchronous=True)
            commit_at = time.monotonic() + COMMIT_SECONDS
    watch.report(seen)
    consumer.close()


def count(bootstrap: str, group: str, records: int) -> None:
    """Count per key; in a transaction every 100 ms, a changelog record for each changed key."""
    changelog = f"{group}-changelog"
    declare(bootstrap, changelog, **{"cleanup.policy": "compact"})
    consumer = open_consumer(bootstrap, group, **{"isolation.level": "read_committed"})
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": group,
            "partitioner": "murmur2_random",
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    decode = msgspec.json.Decoder(Flight).decode
    counts: dict[str, int] = {}
    dirty: set[str] = set()
    offsets: dict[int, int] = {}

    def commit() -> None:
        for key in dirty:
            producer.produce(changelog, b"%d" % counts[key], key)
        dirty.clear()
        positions = [TopicPartition(TOPIC, number, at) for number, at in offsets.items()]
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)

    watch = Stopwatch()
    seen = 0
    commit_at = float("inf")
    for batch in batches(consumer):
        if not seen:
            watch.start()
            commit_at = time.monotonic() + TRANSACTION_SECONDS
        for message in batch:
            value: Any = message.value()
            tail = decode(value).tail
            counts[tail] = counts.get(tail, 0) + 1
            dirty.add(tail)
        seen += len(batch)
        for number, at in {message.partition(): message.offset() for message in batch}.items():
            assert number is not None
            assert at is not None
            offsets[number] = at + 1
        if seen >= records:
            break
        if time.monotonic() >= commit_at:
            commit()
            producer.begin_transaction()
            commit_at = time.monotonic() + TRANSACTION_SECONDS
    commit()
    watch.report(seen)
    if sum(counts.values()) != records:
        raise RuntimeError(f"counted {sum(counts.values()):,} of {records:,} records")
    consumer.close()


def main() -> None:
    """Run one workload and print its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=["stateless", "count"])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--records", type=int, required=True)
    options = parser.parse_args()
    tune_gc()
    run = stateless if options.workload == "stateless" else count
    run(options.bootstrap, options.group, options.records)


if __name__ == "__main__":
    main()
