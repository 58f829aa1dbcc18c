"""How long an event takes through a contestant, while 1,000 come a second.

A producer in a process of its own sends flights at a steady pace, each with the time on the
machine's monotonic clock in it; the contestant sends each on; a reader here, of committed records,
compares that time with its own. Every event must come out exactly once. Nobody lingers but where
the contestant cannot be told not to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.data import PARTITIONS, Flight, make_flight

__all__ = ["measure_latency"]

PER_SECOND = 1_000
EVENTS = 6_000
WARM_UP = 1_000
READY_SECONDS_MAX = 60
OUTPUT_SECONDS_MAX = 30
PROBE = -1


def open_producer(bootstrap: str) -> Producer:
    return Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 0, "partitioner": "murmur2_random"}
    )


def flight(number: int) -> tuple[bytes, bytes]:
    """Make a flight that tells its number and when it was made."""
    made = make_flight(max(number, 0), f"N{number % 10_000:05d}", 1)
    made.flight = number
    made.departure = f"{time.monotonic():.6f}"
    return made.tail.encode(), msgspec.json.encode(made)


def pace(bootstrap: str, topic: str, events: int) -> None:
    """Send so many events, one each millisecond."""
    producer = open_producer(bootstrap)
    producer.list_topics(topic, 10)
    began = time.monotonic()
    for number in range(events):
        early = began + number / PER_SECOND - time.monotonic()
        if early > 0:
            time.sleep(early)
        key, value = flight(number)
        producer.produce(topic, value, key)
        producer.poll(0)
    if left := producer.flush(30):
        raise RuntimeError(f"{left} records were not delivered")


def measure_latency(bootstrap: str, source: str, out: str) -> dict[str, Any]:
    """Send to a contestant that runs, and return what was read from it; wrong results raise."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-latency",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.assign([TopicPartition(out, n, 0) for n in range(PARTITIONS)])
    try:
        wait_until_ready(bootstrap, source, consumer)
        command = [sys.executable, "-m", "benchmarks.latency", bootstrap, source, str(EVENTS)]
        with subprocess.Popen(command, cwd=Path(__file__).parent.parent) as pacer:
            waits = read(consumer)
        if pacer.returncode:
            raise RuntimeError("the paced producer failed")
    finally:
        consumer.close()
    ordered = sorted(waits[WARM_UP:])
    return {
        "records": EVENTS,
        "p50_ms": median(ordered) * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "max_ms": ordered[-1] * 1e3,
    }


def wait_until_ready(bootstrap: str, source: str, consumer: Consumer) -> None:
    """Send probes until one comes out."""
    producer = open_producer(bootstrap)
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        key, value = flight(PROBE)
        producer.produce(source, value, key)
        if consumer.poll(0.1) is not None:
            producer.flush(10)
            return
    raise RuntimeError(f"nothing came out within {READY_SECONDS_MAX} seconds")


def read(consumer: Consumer) -> list[float]:
    """Read all events, and return how long each took, in the order of their numbers."""
    decode = msgspec.json.Decoder(Flight).decode
    waits: dict[int, float] = {}
    while len(waits) < EVENTS:
        message = consumer.poll(OUTPUT_SECONDS_MAX)
        now = time.monotonic()
        if message is None:
            raise RuntimeError(f"{len(waits):,} of {EVENTS:,} events came out")
        data: Any = message.value()
        event = decode(data)
        if event.flight == PROBE:
            continue
        if event.flight in waits:
            raise RuntimeError(f"event {event.flight} came out twice")
        waits[event.flight] = now - float(event.departure)
    return [waits[number] for number in range(EVENTS)]


def main() -> None:
    """Be the paced producer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("events", type=int)
    options = parser.parse_args()
    pace(options.bootstrap, options.topic, options.events)


if __name__ == "__main__":
    main()
