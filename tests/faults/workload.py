"""The workload: keys that carry their own oracle, and numbers that are unique for their key.

The key ``k17:5:344`` says that it gets the numbers 5 to 344, each once and in order. So what each
count, sum and sequence must be follows from the key alone, whatever happened to the record on its
way. The records of a seed are always the same.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, Message, Producer

__all__ = ["GROUPS", "Feeder", "Item", "KeyOracle", "make_items", "read_key"]

GROUPS = 97


class Item(NamedTuple):
    """One record of the source."""

    key: str
    number: int

    @property
    def group(self) -> str:
        """What the app groups it by: neither key nor partition decide it."""
        return f"g{(self.number * 31 + read_key(self.key).place) % GROUPS}"

    def encoded(self) -> bytes:
        """Return its value on the wire."""
        return json.dumps(
            {"number": self.number, "group": self.group}, separators=(",", ":")
        ).encode()


class KeyOracle(NamedTuple):
    """What a key says of itself."""

    place: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """How many records it gets."""
        return self.last - self.first + 1

    @property
    def total(self) -> int:
        """The sum of its numbers."""
        return (self.first + self.last) * self.size // 2


def read_key(key: str) -> KeyOracle:
    """Return what the key promises."""
    index, first, last = key.removeprefix("k").split(":")
    return KeyOracle(int(index), int(first), int(last))


def make_items(seed: int, keys: int, records: int) -> Iterator[Item]:
    """Yield the records of a seed, in the order in which they are sent.

    Args:
        seed: decides all.
        keys: how many keys; each gets at least one record.
        records: how many records, at least one for each key.
    """
    dice = random.Random(f"workload {seed}")
    # A tenth of the keys gets half of the records: hot keys meet each commit, cold ones few.
    hot = max(1, keys // 10)
    of_key = [1] * keys
    for _ in range(records - keys):
        of_key[dice.randrange(hot) if dice.random() < 0.5 else dice.randrange(keys)] += 1
    turns = [index for index, count in enumerate(of_key) for _ in range(count)]
    dice.shuffle(turns)
    names: list[str] = []
    for index, count in enumerate(of_key):
        first = dice.randrange(1, 1000)
        names.append(f"k{index}:{first}:{first + count - 1}")
    upcoming = [read_key(name).first for name in names]
    for index in turns:
        yield Item(names[index], upcoming[index])
        upcoming[index] += 1


class Feeder(threading.Thread):
    """Sends the records at an even pace, through an idempotent producer.

    Args:
        servers: the broker, without any proxy before it.
        topic: the source.
        items: the records.
        rate: records a second; 0: as fast as they go.
    """

    def __init__(self, servers: str, topic: str, items: list[Item], rate: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self._producer: Any = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "message.timeout.ms": 600_000,
                "linger.ms": 20,
                "log_level": 2,
            }
        )
        self._topic = topic
        self._items = items
        self._rate = rate
        self.sent = 0
        self.failure: str | None = None

    def run(self) -> None:
        """Send all; what was not delivered is a failure of the checker, not of its subject."""
        began = time.monotonic()
        for number, item in enumerate(self._items):
            if self._rate and number % 50 == 0:
                ahead = number / self._rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
            while True:
                try:
                    self._producer.produce(
                        self._topic, item.encoded(), item.key, on_delivery=self._delivered
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
            if number % 50 == 0:
                self._producer.poll(0)
        left = self._producer.flush(600)
        if left:
            self.failure = self.failure or f"{left} records of the workload were not delivered"

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.sent += 1
        else:
            self.failure = self.failure or f"{message.key()}: {error}"
