"""What reading changelogs takes in memory: the client's bounds leave out most of what it spends."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import trio
from confluent_kafka import Producer

from tests.kafka_broker import KafkaBroker
from trickle.transport import TransportOptions, open_transport
from trickle.transport.contract import TopicSpec

pytestmark = pytest.mark.kafka

PARTITIONS = 12
RECORDS = 60_000  # of each

PROGRAM = """
import re, sys
import trio
from trickle.transport import TransportOptions, open_transport
from trickle.types import TopicPartition

url, topic, partitions, records = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
places = [TopicPartition(topic, number) for number in range(partitions)]

def peak_kib():
    # Not getrusage's: that begins with what the parent had.
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])

async def main():
    async with open_transport(url, TransportOptions()) as transport:
        await transport.admin.watermarks(places)
        before, left = peak_kib(), partitions * records
        async with transport.reader(dict.fromkeys(places, 0)) as reader:
            while left:
                left -= sum(map(len, await reader.fetch()))
    print(peak_kib() - before)

trio.run(main)
"""


async def declare(url: str, topic: str) -> None:
    async with open_transport(url, TransportOptions()) as transport:
        spec = TopicSpec(name=topic, partitions=PARTITIONS, replicas=1, config={})
        await transport.admin.declare([spec])


def test_a_reader_of_many_small_records_stays_small(kafka_broker: KafkaBroker) -> None:
    topic = f"small-{uuid.uuid4().hex[:8]}"
    trio.run(declare, kafka_broker.url, topic)
    producer = Producer(
        {
            "bootstrap.servers": kafka_broker.address,
            "queue.buffering.max.messages": PARTITIONS * RECORDS,
        }
    )
    for number in range(RECORDS):
        for partition in range(PARTITIONS):
            producer.produce(topic, b"1", b"%d" % number, partition)
    assert producer.flush(60) == 0

    command = [sys.executable, "-c", PROGRAM, kafka_broker.url, topic]
    run = subprocess.run(
        [*command, str(PARTITIONS), str(RECORDS)],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd(),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    grown_kib = int(run.stdout)
    assert grown_kib < 90_000  # 150,000 and more by the defaults of the client
