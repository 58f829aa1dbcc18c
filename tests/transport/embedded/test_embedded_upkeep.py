"""Retention, compaction and deletion as users meet them: through the transport."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.transport.embedded.support import Program, read_all, write
from trickle.exceptions import OffsetOutOfRange
from trickle.transport import open_transport
from trickle.transport.contract import ConsumerOptions, TopicSpec
from trickle.transport.embedded.transport import EmbeddedTransport
from trickle.transport.embedded.upkeep import Limits
from trickle.types import TopicPartition
from trickle.utils.files import FileLock

PLACE = TopicPartition("topic", 0)


def hasten(log: EmbeddedTransport, dirty_records: int = 100) -> None:
    """Let every commit be followed by a step of upkeep."""
    log.hub.upkeep.adopt(Limits(pause=0, idle=0, dirty_records=dirty_records))


async def low(log: EmbeddedTransport) -> int:
    """Return the low watermark."""
    return (await log.admin.watermarks([PLACE]))[PLACE].low


async def test_retention_moves_the_low_watermark(log: EmbeddedTransport) -> None:
    """Records older than a millisecond go; whoever stands there is told, whoever reads goes on."""
    await log.admin.declare([TopicSpec(name="topic", retention_ms=1)])
    hasten(log)
    for n in range(20):
        await write(log, "topic", (None, b"%d" % n))
    with trio.fail_after(20):
        while await low(log) < 10:
            await write(log, "in", (None, b"any commit"))
    at = await low(log)
    found = (await read_all(log, PLACE))[PLACE]
    assert [int(record.value or b"") for record in found] == list(range(at, 20))

    class Start:
        async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
            ready.set()

        async def revoked(self, partitions: frozenset[TopicPartition]) -> None: ...

        async def lost(self, partitions: frozenset[TopicPartition]) -> None: ...

    ready = trio.Event()
    options = ConsumerOptions(group="group", topics=("topic",))
    async with log.consumer(options, Start()) as consumer:
        await ready.wait()
        await consumer.assign({PLACE: 0})
        with pytest.raises(OffsetOutOfRange, match="position 0 is out of range, records from"):
            await consumer.fetch()


async def test_a_process_that_only_reads_keeps_nobody_from_upkeep(url: str) -> None:
    """One opens the log first and stays: what another one writes is subject to retention."""
    async with Program.run("idle", url) as program:
        await program.until("open")
        async with open_transport(url) as log:
            assert isinstance(log, EmbeddedTransport)
            await log.admin.declare([TopicSpec(name="topic", retention_ms=1)])
            hasten(log)
            with trio.fail_after(20):
                while await low(log) < 10:
                    await write(log, "topic", (None, b"any commit"))


async def test_a_compaction_ends_without_commits(log: EmbeddedTransport, directory: Path) -> None:
    """The last commit begins one that takes many steps: it ends, and others have their turn."""
    await log.admin.declare([TopicSpec(name="topic", compacting=True)])
    for start in range(0, 1000, 100):
        await write(log, "topic", *[(b"%d" % (n % 7), b"x") for n in range(start, start + 100)])
    log.hub.upkeep.adopt(Limits(chunks=1, dirty_records=1000, pause=0, idle=0))
    await write(log, "in", (None, b"the last commit"))
    other = FileLock(directory / "upkeep.lock")
    with trio.fail_after(20):
        while True:
            await log.hub.writer.call(lambda: None)
            found = (await read_all(log, PLACE))[PLACE]
            if len(found) < 100 and other.acquire():
                break
    other.release()
    assert {record.key for record in found} == {b"%d" % n for n in range(7)}


async def test_a_compacted_topic_stays_small(log: EmbeddedTransport, directory: Path) -> None:
    """Ten thousand updates of fifty keys.

    The values are the last ones, few records are left, and offsets and watermarks stay.
    """
    await log.admin.declare([TopicSpec(name="topic", compacting=True)])
    hasten(log)
    last: dict[bytes, bytes] = {}
    for start in range(0, 10_000, 100):
        records = [(b"%d" % (n * 7 % 50), b"%d" % n) for n in range(start, start + 100)]
        await write(log, "topic", *records)
        last.update(records)
    with trio.fail_after(20):
        while True:
            await write(log, "in", (None, b"any commit"))
            found = (await read_all(log, PLACE))[PLACE]
            if len(found) < 500:
                break
    assert {record.key: record.value for record in found} == last
    marks = (await log.admin.watermarks([PLACE]))[PLACE]
    assert marks == (0, 10_000)
    assert all(record.value == b"%d" % record.offset for record in found)


async def test_what_is_deleted_makes_room(log: EmbeddedTransport, directory: Path) -> None:
    """A topic is filled and deleted again and again: the file stops growing."""
    hasten(log)
    sizes: list[int] = []
    for _ in range(6):
        await log.admin.declare([TopicSpec(name="topic")])
        for _ in range(10):
            await write(log, "topic", *[(None, os.urandom(1000))] * 200)
        await log.admin.delete(["topic"])
        for _ in range(6):
            await write(log, "in", (None, b"any commit"))
        sizes.append(os.stat(directory / "data.mdb").st_size)
    assert sizes[-1] <= sizes[1] * 1.5


async def test_readers_do_not_make_the_file_grow(log: EmbeddedTransport, directory: Path) -> None:
    """Three hundred commits to a topic of one millisecond while a reader follows.

    No read transaction is left open, so pages are used again: what the second half writes
    adds less than a fifth of itself to the file. (Not nothing: retention goes by the clock.)
    """
    await log.admin.declare([TopicSpec(name="topic", retention_ms=1)])
    hasten(log)
    async with log.reader({PLACE: 0}) as reader:
        halfway = 0
        for n in range(300):
            await write(log, "topic", (None, os.urandom(10_000)))
            await reader.fetch()
            if n == 149:
                halfway = os.stat(directory / "data.mdb").st_size
    assert os.stat(directory / "data.mdb").st_size - halfway <= 150 * 10_000 / 5
