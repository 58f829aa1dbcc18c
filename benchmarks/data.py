"""What the contestants read: flights as JSON of about 160 bytes, and how a topic is filled.

1.3 million records over four partitions, each keyed by one of 10,000 aircraft, the same bytes in
every run. The partition of a key is Java's (murmur2), for trickle checks that a table's keys
belong to the partition in hand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

__all__ = [
    "KEYS",
    "PARTITIONS",
    "RECORDS",
    "TOPIC",
    "Flight",
    "declare",
    "fill_kafka",
    "make_flights",
]

TOPIC = "bench-flights"
PARTITIONS = 4
RECORDS = 1_300_000
KEYS = 10_000

_CARRIERS = ("UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX")
_AIRPORTS = ("JFK", "LGA", "EWR", "IAH", "MIA", "BQN", "ATL", "ORD", "FLL", "IAD", "MCO", "PBI")


class Flight(msgspec.Struct):
    """One departure, as typed decoding sees it."""

    carrier: str
    flight: int
    tail: str
    origin: str
    dest: str
    distance: int
    dep_delay: int | None
    arr_delay: int | None
    departure: str


def make_flights(records: int = RECORDS) -> Iterator[tuple[bytes, bytes]]:
    """Make (key, value) pairs, always the same ones."""
    dice = random.Random(2013)
    encode = msgspec.json.Encoder().encode
    for number in range(records):
        tail = f"N{dice.randrange(KEYS):05d}"
        delay = dice.randrange(-30, 200)
        flight = Flight(
            _CARRIERS[number % 10], 100 + number % 6000, tail, _AIRPORTS[number % 3],
            _AIRPORTS[3 + number % 9], 100 + number % 2500, delay,
            None if delay == 0 else delay - 7,
            f"2013-{1 + number % 12:02d}-{1 + number % 28:02d}T10:15:00Z",
        )  # fmt: skip
        yield tail.encode(), encode(flight)


def declare(bootstrap: str, name: str, **config: str) -> None:
    """Create a topic."""
    admin: Any = AdminClient({"bootstrap.servers": bootstrap})  # its futures are not typed
    topic = NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config=config)
    admin.create_topics([topic])[name].result(30)


def fill_kafka(bootstrap: str, records: int) -> float:
    """Declare the topic and fill it; return the mean size of a value in bytes."""
    declare(bootstrap, TOPIC)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
        }
    )
    size = 0
    for key, value in make_flights(records):
        size += len(value)
        while True:
            try:
                producer.produce(TOPIC, value, key)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(60):
        raise RuntimeError(f"{left} records were not delivered within a minute")
    return size / records
