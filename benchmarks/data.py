"""What the contestants read: flights as JSON of about 160 bytes, and how a topic is filled.

Four partitions; the same bytes in every run. The partition of a key is Java's (murmur2), for
trickle checks that a table's keys belong to the partition in hand.

========= =======================================================================================
flights   each record keyed by one of 10,000 aircraft
fresh     each record with a key of its own
========= =======================================================================================

The slow contestants read a shorter topic of the same kind, so that each run takes seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

__all__ = [
    "KEYS",
    "PARTITIONS",
    "RECORDS",
    "Flight",
    "Kind",
    "declare",
    "fill",
    "fill_kafka",
    "make_flight",
    "make_flights",
    "restored",
    "topic_of",
]

PARTITIONS = 4
RECORDS = 1_300_000
KEYS = 10_000

Kind = Literal["flights", "fresh"]

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


def make_flight(number: int, tail: str, delay: int) -> Flight:
    """Make one of them, from its number, its aircraft and its delay."""
    return Flight(
        _CARRIERS[number % 10], 100 + number % 6000, tail, _AIRPORTS[number % 3],
        _AIRPORTS[3 + number % 9], 100 + number % 2500, delay,
        None if delay == 0 else delay - 7,
        f"2013-{1 + number % 12:02d}-{1 + number % 28:02d}T10:15:00Z",
    )  # fmt: skip


def make_flights(records: int = RECORDS, kind: Kind = "flights") -> Iterator[tuple[bytes, bytes]]:
    """Make (key, value) pairs, always the same ones."""
    dice = random.Random(2013)
    encode = msgspec.json.Encoder().encode
    for number in range(records):
        tail = f"N{dice.randrange(KEYS):05d}" if kind == "flights" else f"N{number:07d}"
        delay = dice.randrange(-30, 200)
        yield tail.encode(), encode(make_flight(number, tail, delay))


def restored(records: int) -> Iterator[tuple[bytes, bytes]]:
    """Make what a changelog of so many keys holds: text, and numbers as JSON."""
    for number in range(records):
        yield b"N%07d" % number, b"%d" % number


def topic_of(kind: Kind, records: int) -> str:
    """Return the name of the topic that holds so many records."""
    return f"bench-{kind}-{records}"


def declare(bootstrap: str, name: str, **config: str) -> None:
    """Create a topic."""
    # Its futures are not typed; and it would log that it was closed.
    admin: Any = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topic = NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config=config)
    admin.create_topics([topic])[name].result(30)


def fill(
    bootstrap: str,
    name: str,
    pairs: Iterable[tuple[bytes, bytes]],
    headers: dict[str, str | bytes | None] | None = None,
) -> None:
    """Send (key, value) pairs to a topic, each with the same headers."""
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
    for key, value in pairs:
        while True:
            try:
                producer.produce(name, value, key, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(60):
        raise RuntimeError(f"{left} records were not delivered within a minute")


def fill_kafka(bootstrap: str, kind: Kind, records: int) -> str:
    """Declare the topic of a kind, fill it, and return its name."""
    name = topic_of(kind, records)
    declare(bootstrap, name)
    fill(bootstrap, name, make_flights(records, kind))
    return name
