"""Programs that the tests of the embedded log run in processes of their own.

Each is named on the command line and gets the log's URL; what it says goes to standard output, a
line at a time.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from trickle.exceptions import CommitFailed, TransportError
from trickle.transport import open_transport
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerClient,
    ConsumerOptions,
    ProducerOptions,
    TransportOptions,
)
from trickle.transport.embedded.environment import Environment, WriteTxn
from trickle.transport.embedded.format import KEY
from trickle.transport.embedded.gate import Gate
from trickle.types import TopicPartition
from trickle.utils.files import FileLock


def say(*words: object) -> None:
    """Print a line at once."""
    print(*words, flush=True)


class Starter:
    """A listener that starts every partition at its committed offset, and says so."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.start: trio.MemorySendChannel[frozenset[TopicPartition]]
        self.start, self.given = trio.open_memory_channel[frozenset[TopicPartition]](100)

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        say("assigned", *sorted(f"{place.topic}/{place.partition}" for place in partitions))
        self.start.send_nowait(partitions)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        say("revoked", len(partitions))

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        say("lost", len(partitions))


async def produce(url: str, who: str, count: str) -> None:
    """Send transactions of five records to one partition each, values ``{who}-{n}``."""
    async with (
        open_transport(url) as transport,
        transport.producer(ProducerOptions(transactional_id=who)) as producer,
    ):
        for n in range(0, int(count), 5):
            for i in range(n, n + 5):
                producer.produce("in", n // 5 % 2, who.encode(), b"%d" % i, (), None)
            await producer.commit({}, None)
    say("done")


async def write_on(url: str) -> None:
    """Write transactions of five records for ever, and say how many are committed."""
    async with (
        open_transport(url) as transport,
        transport.producer(ProducerOptions(transactional_id="writer")) as producer,
    ):
        done = 0
        while True:
            for _ in range(5):
                producer.produce("in", 0, None, os.urandom(3000), (), None)
            await producer.commit({}, None)
            done += 1
            say(done)


async def work(url: str) -> None:
    """Copy ``in`` to ``out``, a transaction a record, for ever."""
    starter = Starter("copiers")
    async with (
        open_transport(url) as transport,
        transport.producer(ProducerOptions(group="copiers", transactional_id="copier")) as producer,
        transport.consumer(ConsumerOptions(group="copiers", topics=("in",)), starter) as consumer,
        trio.open_nursery() as nursery,
    ):

        async def start() -> None:
            async for partitions in starter.given:
                offsets = await transport.admin.committed("copiers", partitions)
                await consumer.assign(
                    {place: at.offset if at else 0 for place, at in offsets.items()}
                )

        nursery.start_soon(start)
        while True:
            for batch in await consumer.fetch():
                for index in range(len(batch)):
                    record = batch.record(index)
                    producer.produce("out", record.partition, record.key, record.value, (), None)
                    place = TopicPartition("in", record.partition)
                    offsets = {place: CommittedOffset(record.offset + 1, "copied")}
                    await producer.commit(offsets, consumer.member)


async def join(url: str, group: str) -> None:
    """Be a member of a group until killed."""
    starter = Starter(group)
    options = ConsumerOptions(group=group, topics=("in", "out"))
    async with open_transport(url) as transport, transport.consumer(options, starter) as consumer:
        await _consume(consumer)


async def beget(url: str, group: str) -> None:
    """Be a member of a group, with a child that outlives it, as those of a process pool do."""
    starter = Starter(group)
    options = ConsumerOptions(group=group, topics=("in", "out"))
    async with open_transport(url) as transport, transport.consumer(options, starter) as consumer:
        await starter.given.receive()
        child = os.fork()
        if not child:
            signal.pause()
        say("begot", child)
        await _consume(consumer)


async def _consume(consumer: ConsumerClient) -> None:
    while True:
        await consumer.fetch()


async def idle(url: str) -> None:
    """Open the log and do nothing until killed."""
    async with open_transport(url) as transport:
        await transport.admin.topics()
        say("open")
        await trio.sleep_forever()


async def outgrow(url: str) -> None:
    """Take the turn to write; once somebody waits for it, write far beyond a small map."""
    directory = Path(url.removeprefix("lmdb://"))
    environment = Environment.open(directory, 5, 1 << 20)
    gate, following = Gate(directory), FileLock(directory / "next.lock")
    assert gate.enter(lambda: True)
    say("inside")
    while following.acquire():
        following.release()

    def change(txn: WriteTxn) -> None:
        for n in range(8):
            txn.put(txn.log, KEY.pack(999, 0, n), bytes(1 << 20))

    environment.write(change)
    gate.leave()
    say("done")
    await trio.sleep_forever()


async def hold(url: str) -> None:
    """Take the turn to write and keep it."""
    gate = Gate(Path(url.removeprefix("lmdb://")))
    assert gate.enter(lambda: True)
    say("holding", os.getpid())
    await trio.sleep_forever()


async def fill(url: str, limit: str) -> None:
    """Write until the limit on the size of a file is met, then read what is there."""
    size = int(limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with (
        open_transport(url) as transport,
        transport.producer(ProducerOptions(transactional_id="filler")) as producer,
    ):
        commits = 0
        try:
            while True:
                for _ in range(64):
                    producer.produce("in", 0, None, b"x" * 4096, (), None)
                await producer.commit({}, None)
                commits += 1
        except CommitFailed as error:
            say("refused", error)
        place = TopicPartition("in", 0)
        marks = await transport.admin.watermarks([place])
        async with transport.reader({place: 0}) as reader:
            while reader.positions()[place] < marks[place].high:
                await reader.fetch()
        say("kept", commits * 64, reader.positions()[place])


async def fork(url: str) -> None:
    """Use the log in a fork of the process that opened it."""
    async with open_transport(url) as transport:
        child = os.fork()
        if not child:
            try:
                await transport.admin.topics()
            except TransportError as error:
                say(error)
            os._exit(0)
        await trio.to_thread.run_sync(os.waitpid, child, 0)
        say(sorted(await transport.admin.topics()))


async def grow(url: str, count: str) -> None:
    """Write with a small map, so that it has to grow."""
    options = TransportOptions(client={"map_size": 1 << 20})
    async with (
        open_transport(url, options) as transport,
        transport.producer(ProducerOptions(transactional_id="grower")) as producer,
    ):
        for n in range(int(count)):
            producer.produce("in", 0, None, b"%07d" % n + b"x" * 1000, (), None)
            if n % 100 == 99:
                await producer.commit({}, None)
    say("done")


def address_space() -> int:
    """Return the bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


async def cramp(url: str, room: str) -> None:
    """Write until there is no more address space than so many bytes beyond the present."""
    options = TransportOptions(client={"map_size": 1 << 20})
    async with (
        open_transport(url, options) as transport,
        transport.producer(ProducerOptions(transactional_id="cramped")) as producer,
    ):
        used = address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(room), used + int(room)))
        done = 0
        try:
            while True:
                for _ in range(16):
                    producer.produce("in", 0, None, b"x" * 65536, (), None)
                await producer.commit({}, None)
                done += 16
        except CommitFailed as error:
            say("refused", error)
        marks = await transport.admin.watermarks([TopicPartition("in", 0)])
        say("kept", done, marks[TopicPartition("in", 0)].high)


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {
    "beget": beget,
    "cramp": cramp,
    "fill": fill,
    "fork": fork,
    "grow": grow,
    "hold": hold,
    "idle": idle,
    "join": join,
    "outgrow": outgrow,
    "produce": produce,
    "work": work,
    "write_on": write_on,
}

if __name__ == "__main__":
    trio.run(partial(PROGRAMS[sys.argv[1]], *sys.argv[2:]))
