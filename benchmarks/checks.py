"""Whether a contestant's result is right, judged from the broker alone.

What a contestant says of itself is not enough: one that loses outputs, or counts twice, is fast
for nothing. Its topics are read as a consumer of committed records reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

__all__ = ["check_counts", "check_outputs", "check_transactions", "committed"]

READ_SECONDS_MAX = 60


class Distance(msgspec.Struct):
    """What is looked at in an output."""

    distance: int


def committed(bootstrap: str, topic: str) -> Iterator[list[Message]]:
    """Give what a topic holds now, in batches of committed records."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-checks",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
        }
    )
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in partitions])
        left = set(partitions)
        while left:
            first = consumer.poll(READ_SECONDS_MAX)
            if first is None:
                raise RuntimeError(f"{topic}: no record, and no end, in {READ_SECONDS_MAX} s")
            records: list[Message] = []
            for message in [first, *consumer.consume(1_000, 0)]:
                error = message.error()
                if error is None:
                    records.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:  # pyright: ignore[reportPrivateUsage]
                    left.discard(message.partition() or 0)
                else:
                    raise RuntimeError(f"{topic}: {error}")
            yield records
    finally:
        consumer.close()


def check_transactions(bootstrap: str, topic: str) -> str:
    """Say so where nothing in a topic is in a transaction: there would be markers between."""
    records = sum(len(batch) for batch in committed(bootstrap, topic))
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-checks"})
    try:
        numbers = consumer.list_topics(topic, 10).topics[topic].partitions
        marks = [consumer.get_watermark_offsets(TopicPartition(topic, n), 10) for n in numbers]
    finally:
        consumer.close()
    ends = sum(mark[1] for mark in marks)
    return "" if ends > records else "what went out is in no transaction"


def check_outputs(bootstrap: str, topic: str, records: int) -> str:
    """Say what is wrong with the outputs of a pipe, or nothing: each flight once."""
    decode = msgspec.json.Decoder(Distance).decode
    count = distance = 0
    for batch in committed(bootstrap, topic):
        count += len(batch)
        for message in batch:
            value: Any = message.value()
            distance += decode(value).distance
    expected = sum(100 + number % 2500 for number in range(records))
    if count != records:
        return f"{count:,} outputs for {records:,} records"
    return "" if distance == expected else f"the outputs' distances add up to {distance:,}"


def check_counts(bootstrap: str, topic: str, records: int, value: Callable[[bytes], int]) -> str:
    """Say what is wrong with the changelog of counts, or nothing: they add up."""
    counts: dict[Any, int] = {}
    for batch in committed(bootstrap, topic):
        for message in batch:
            data: Any = message.value()
            counts[message.key()] = value(data)
    total = sum(counts.values())
    return "" if total == records else f"the counts add up to {total:,}, not {records:,}"
