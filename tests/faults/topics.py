"""Reading partitions to their ends, as a client of any other program would: committed records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

__all__ = ["Record", "read_partition"]

_STALLED = 30.0  # seconds without a record before a reader gives up


class Record(NamedTuple):
    """A committed record."""

    offset: int
    key: bytes | None
    value: bytes | None


def read_partition(
    servers: str, topic: str, partition: int, *, start: int = 0, committed: bool = True
) -> list[Record]:
    """Return the records of a partition.

    Args:
        servers: the broker, without any proxy.
        topic: its topic.
        partition: its number.
        start: the offset to begin at, if the partition goes back so far.
        committed: leave out what was not committed.

    Raises:
        TimeoutError: it could not be read to its end: a transaction may be hanging.
    """
    client: Any = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "faults-judge",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "auto.offset.reset": "error",
            "check.crcs": True,
            "fetch.queue.backoff.ms": 5,
            "log_level": 2,
        }
    )
    records: list[Record] = []
    try:
        low, high = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
        low = max(low, start)
        if low >= high:
            return records
        client.assign([TopicPartition(topic, partition, low)])
        add: Callable[[Record], None] = records.append
        heard = time.monotonic()
        while True:
            first = client.poll(0.05)
            messages = cast("list[Any]", client.consume(10_000, 0))
            if first is not None:
                messages.insert(0, first)
            for message in messages:
                error = message.error()
                if error is None:
                    add(Record(message.offset(), message.key(), message.value()))
                elif error.code() != KafkaError._PARTITION_EOF:  # pyright: ignore[reportPrivateUsage]
                    raise KafkaException(error)
            if messages:
                heard = time.monotonic()
            position = client.position([TopicPartition(topic, partition)])[0].offset
            if position >= high:
                return records
            if time.monotonic() - heard > _STALLED:
                raise TimeoutError(
                    f"{topic}[{partition}] cannot be read beyond {position} of {high}"
                )
    finally:
        client.close()
