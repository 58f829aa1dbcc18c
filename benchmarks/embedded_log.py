"""How fast is the embedded log, and how fast is LMDB alone under it?

Run it by ``python benchmarks/embedded_log.py [RECORDS]``. It prints records a second for 160-byte
records, keys of 6 bytes, four partitions:

* LMDB alone: values of 128 KiB put and synced, and read again, counted as records of 160 bytes;
* sent: a transactional producer, ``produce`` and a commit every 10,000 records;
* sent, one by one: ``send`` from 500 tasks, and from one task alone (the disk's sync);
* read: a reader, the values of each batch touched; and a consumer with offset commits.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import trio

from trickle.transport import open_transport
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    ProducerOptions,
    TopicSpec,
    Transport,
)
from trickle.types import TopicPartition

PARTITIONS = 4
VALUE = b"x" * 160
KEYS = [b"k%05d" % n for n in range(10_000)]
COMMIT_EVERY = 10_000


def show(what: str, records: int, seconds: float) -> None:
    """Print one line of the result."""
    print(f"{what:<44}{records / seconds / 1000:>12,.1f} k/s")


def lmdb_alone(directory: Path, records: int) -> None:
    """Write and read as many bytes as the records have, in values of 128 KiB."""
    value = os.urandom(128 << 10)
    values = max(1, records * 160 // len(value))
    per_commit = max(1, COMMIT_EVERY * 160 // len(value))
    with lmdb.open(str(directory), map_size=1 << 33) as env:
        start = time.perf_counter()
        for first in range(0, values, per_commit):
            with env.begin(write=True) as txn:
                for n in range(first, min(first + per_commit, values)):
                    txn.put(struct.pack(">Q", n), value)
        show("LMDB alone, written and synced", records, time.perf_counter() - start)
        start = time.perf_counter()
        with env.begin() as txn:
            size = sum(len(value) for _, value in txn.cursor())
        show("LMDB alone, read", size // 160, time.perf_counter() - start)


async def sent(transport: Transport, records: int) -> None:
    """Produce in transactions."""
    options = ProducerOptions(group="bench", transactional_id="bench")
    async with transport.producer(options) as producer:
        start = time.perf_counter()
        for first in range(0, records, COMMIT_EVERY):
            for n in range(first, min(first + COMMIT_EVERY, records)):
                producer.produce("bench", None, KEYS[n % len(KEYS)], VALUE, (), 1_700_000_000_000)
            await producer.commit({}, None)
        show("sent, transactions of 10,000", records, time.perf_counter() - start)


async def sent_one_by_one(transport: Transport, records: int) -> None:
    """Await each send, in many tasks and in one."""
    async with transport.producer(ProducerOptions()) as producer:

        async def some(count: int) -> None:
            for n in range(count):
                await producer.send("single", None, KEYS[n % len(KEYS)], VALUE, (), None)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(some, records // 500)
        show("sent by send(), 500 tasks", records, time.perf_counter() - start)
        alone = min(records, 500)
        start = time.perf_counter()
        await some(alone)
        show("sent by send(), one task", alone, time.perf_counter() - start)


async def read(transport: Transport, records: int) -> None:
    """Read everything by a reader."""
    places = [TopicPartition("bench", n) for n in range(PARTITIONS)]
    async with transport.reader(dict.fromkeys(places, 0)) as reader:
        seen = batches = 0
        start = time.perf_counter()
        while seen < records:
            for batch in await reader.fetch():
                seen += len(batch.values())
                batches += 1
        show(f"read, {seen // batches} records a batch", records, time.perf_counter() - start)


class _Listener:
    """Starts what is assigned at the beginning."""

    def __init__(self) -> None:
        self.given: frozenset[TopicPartition] = frozenset()
        self.ready = trio.Event()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self.given = partitions
        self.ready.set()

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        pass

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        pass


async def consumed(transport: Transport, records: int) -> None:
    """Read everything as a member of a group, committing every 100 ms."""
    listener = _Listener()
    options = ConsumerOptions(group="bench", topics=("bench",))
    async with transport.consumer(options, listener) as consumer:
        await listener.ready.wait()
        await consumer.assign(dict.fromkeys(listener.given, 0))
        offsets: dict[TopicPartition, CommittedOffset] = {}
        seen = 0
        start = committed = time.perf_counter()
        while seen < records:
            for batch in await consumer.fetch():
                seen += len(batch.values())
                place = TopicPartition(batch.topic, batch.partition)
                offsets[place] = CommittedOffset(batch.next_offset)
            if time.perf_counter() - committed > 0.1:
                await consumer.commit(offsets)
                committed = time.perf_counter()
        show("read in a group, commits of 100 ms", records, time.perf_counter() - start)


async def main(records: int) -> None:
    """Measure all of it in a temporary directory."""
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as directory:
        lmdb_alone(Path(directory) / "alone", records)
        async with open_transport(f"lmdb://{directory}/log") as transport:
            await transport.admin.declare(
                [TopicSpec(name=name, partitions=PARTITIONS) for name in ("bench", "single")]
            )
            await sent(transport, records)
            await sent_one_by_one(transport, records // 10)
            await read(transport, records)
            await consumed(transport, records)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
