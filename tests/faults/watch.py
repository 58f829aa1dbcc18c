"""Watches an output while a run goes on: how long a partition is silent after a worker is killed.

There is always input for each partition, so silence means that nobody works on it, or that nobody
can commit. A kill's silence is the longest of those that begin before it or within a moment.
"""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition

__all__ = ["Silence", "Watch"]

_LEAST = 1.0  # seconds: less is no silence
_AFTERWARDS = 1.0  # seconds in which a kill's silence begins


class Silence(NamedTuple):
    """A time without an output; monotonic seconds."""

    partition: int
    begin: float
    end: float


class Watch(threading.Thread):
    """Follows a topic's committed records.

    Args:
        servers: the broker, without any proxy before it.
        topic: the output.
        partitions: how many it has.
    """

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        super().__init__(name="watch", daemon=True)
        self._topic = topic
        self._partitions = partitions
        self._stopped = threading.Event()
        self._kills: list[float] = []
        self.silences: list[Silence] = []
        self._client: Any = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "faults-watch",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    def note_kill(self) -> None:
        """A worker was killed now."""
        self._kills.append(time.monotonic())

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        if self.is_alive():
            self.join(10)

    def run(self) -> None:
        """Read until it is stopped."""
        everything = [TopicPartition(self._topic, p, 0) for p in range(self._partitions)]
        self._client.assign(everything)
        heard: dict[int, float] = {}
        while not self._stopped.is_set():
            messages = [m for m in self._client.consume(5_000, 0.05) if m.error() is None]
            now = time.monotonic()
            for partition in {message.partition() for message in messages}:
                before = heard.get(partition, now)
                if now - before >= _LEAST:
                    self.silences.append(Silence(partition, before, now))
                heard[partition] = now
        self._client.close()

    def longest(self, count: int) -> list[Silence]:
        """Return so many of the longest, whatever caused them, the longest first."""
        return sorted(self.silences, key=lambda one: one.begin - one.end)[:count]

    def takeovers(self) -> list[float]:
        """Return how long after each kill some partition was silent, in seconds."""
        return [self.after(kill) for kill in self._kills]

    def after(self, kill: float) -> float:
        """Return how long after a moment some partition was silent, in seconds."""
        return max(
            (
                one.end - kill
                for one in list(self.silences)
                if one.begin <= kill + _AFTERWARDS and one.end > kill
            ),
            default=0.0,
        )
