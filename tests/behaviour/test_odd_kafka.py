"""What is rare, on a real Apache Kafka: compaction, size, odd times, slow calls, missing places."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition

import trickle
from tests.cli.program import Process, Project
from tests.kafka_broker import KafkaBroker, kafka_jars
from trickle.run import Run, Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.transport import TransportOptions, open_transport
from trickle.transport.contract import TopicSpec, Transport
from trickle.types import Record

pytestmark = pytest.mark.kafka

under_both = pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    """A broker that compacts, and ends what is overdue, without a wait."""
    overdue = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
    with KafkaBroker({"log.cleaner.backoff.ms": 50, overdue: 50}) as made:
        yield made


class Commits(trickle.BaseSensor):
    """Counts what was committed, and what was not."""

    count = events = failed = 0

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        del seconds, partitions
        self.count += 1
        self.events += events

    def commit_failed(self, seconds: float, error: BaseException) -> None:
        del seconds, error
        self.failed += 1


def unique(name: str) -> str:
    return f"odd-{name}-{uuid.uuid4().hex[:8]}"


def opened(
    app: trickle.App, broker: KafkaBroker, disk: MemoryDisk | None = None, **settings: Any
) -> AbstractAsyncContextManager[Run]:
    place = disk or MemoryDisk()
    settings |= {"broker": broker.url, "web": False, "store": "memory://", "broker_timeout": 8}
    surroundings = Surroundings(store=lambda: MemoryStore(place), name="worker")
    return open_run(app.definitions(), app.resolve(**settings), surroundings=surroundings)


@asynccontextmanager
async def looking(broker: KafkaBroker) -> AsyncGenerator[Transport]:
    """Give what looks at the broker, for a limited time."""
    with trio.fail_after(40):
        async with open_transport(broker.url, TransportOptions()) as transport:
            yield transport


async def declare(transport: Transport, topic: str, config: Mapping[str, str]) -> None:
    spec = TopicSpec(name=topic, partitions=1, replicas=1, config=config)
    await transport.admin.declare([spec])


async def reached(transport: Transport, app: trickle.App, offset: int) -> None:
    """Wait until the app has committed so much of its source."""
    at, found = trickle.TopicPartition(f"{app.id}-in", 0), None
    while found is None or found.offset < offset:
        await trio.sleep(0.05)
        found = (await transport.admin.committed(app.id, [at], stable=False))[at]


async def records(transport: Transport, topic: str) -> list[Record]:
    """Return what is committed in a topic that has one partition."""
    place = trickle.TopicPartition(topic, 0)
    end = (await transport.admin.watermarks([place]))[place].high
    found: list[Record] = []
    async with transport.reader({place: 0}) as reader:
        while reader.positions()[place] < end:
            for batch in await reader.fetch():
                found += [batch.record(index) for index in range(len(batch))]
    return found


async def read(transport: Transport, topic: str) -> list[Any]:
    return [msgspec.json.decode(record.value or b"") for record in await records(transport, topic)]


async def produce(broker: KafkaBroker, topic: str, *pairs: tuple[bytes, int]) -> None:
    """Send values and their timestamps by the plain client, where 0 stands for now."""
    producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": 12 << 20})
    errors: list[object] = []
    for value, at in pairs:
        producer.produce(topic, value, b"k", 0, lambda e, _: errors.append(e), timestamp=at)
    assert await trio.to_thread.run_sync(producer.flush, 20) == 0
    assert errors == [None] * len(pairs)


SMALL = {
    "cleanup.policy": "compact", "segment.ms": "100", "delete.retention.ms": "0",
    "min.cleanable.dirty.ratio": "0.001", "max.compaction.lag.ms": "200",
}  # fmt: skip
KEYS = [f"k{number}" for number in range(5)]


def kept(broker: KafkaBroker, topic: str) -> tuple[list[int], int]:
    """Return the offsets of the records that are left in a topic, and its high watermark."""
    settings = {"bootstrap.servers": broker.address, "group.id": "reader"}
    settings |= {"enable.partition.eof": "true", "isolation.level": "read_uncommitted"}
    consumer, place = Consumer(settings), TopicPartition(topic, 0, 0)
    offsets: list[int] = []
    try:
        consumer.assign([place])
        while (message := consumer.poll(10)) is not None and message.error() is None:
            offsets.append(message.offset() or 0)
        assert "_PARTITION_EOF" in str(message and message.error())
        return offsets, consumer.get_watermark_offsets(place, timeout=10)[1]
    finally:
        consumer.close()


@under_both
async def test_a_changelog_under_compaction(broker: KafkaBroker, guarantee: str) -> None:
    """An empty store, and one whose position has been compacted away, get what was written."""
    commits, early, sent = Commits(), MemoryDisk(), 0
    app = trickle.App(unique("compacted"), sensors=[commits])
    source = app.topic(f"{app.id}-in", value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    topic = f"{app.id}-counts-changelog"

    @app.agent(source)
    async def count(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            for key in KEYS:
                counts[key] += 1
            counts.pop("rare", None)
            if value % 2:
                counts["rare"] = value

    del count

    async def send(times: int) -> None:
        nonlocal sent
        for _ in range(times):
            sent += 1
            await source.send(sent)
            while commits.events < sent:  # noqa: ASYNC110
                await trio.sleep(0.005)

    @asynccontextmanager
    async def worker(disk: MemoryDisk) -> AsyncGenerator[None]:
        settings = {"processing_guarantee": guarantee, "commit_interval": 0.02}
        async with opened(app, broker, disk, **settings) as run:
            assert run.tables is not None
            (shard,) = run.tables.shards_of(counts)
            found = {key: shard.read_committed(key) for key in (*KEYS, "rare")}
            due = dict.fromkeys([*KEYS, "rare"] if sent % 2 else KEYS, sent)
            assert {k: v for k, v in found.items() if isinstance(v, int)} == (due if sent else {})
            yield

    async with looking(broker) as transport:
        await declare(transport, topic, SMALL)
        async with worker(early):
            await send(30)
        _, passed = await trio.to_thread.run_sync(kept, broker, topic)
        gone, end, offsets = 0, 0, [0]
        async with worker(MemoryDisk()):
            while gone <= end // 2 or offsets[0] <= passed:
                await send(10)
                offsets, end = await trio.to_thread.run_sync(kept, broker, topic)
                gone = end - len(offsets) - commits.count  # each of which left a marker, or none
        for disk in (MemoryDisk(), early, MemoryDisk()):  # with "rare", and without it
            async with worker(disk):
                await send(1)


@under_both
async def test_ten_megabytes_go_through_an_agent(broker: KafkaBroker, guarantee: str) -> None:
    app = trickle.App(unique("large"))
    source = app.topic(f"{app.id}-in")
    out = app.topic(f"{app.id}-out", value=int, partitions=1)

    @app.agent(source)
    async def measure(stream: trickle.Stream[bytes | None]) -> None:
        async for value in stream:
            await out.send(len(value or b""))

    del measure
    sizes = [10 << 20, 5, 10 << 20, 10 << 20, 7]
    async with looking(broker) as transport:
        await declare(transport, source.name, {"max.message.bytes": str(11 << 20)})
        await produce(broker, source.name, *[(bytes(size), 0) for size in sizes])
        async with opened(app, broker, processing_guarantee=guarantee):
            await reached(transport, app, len(sizes))
        assert await read(transport, out.name) == sizes


WIDE = {f"message.timestamp.{side}.max.ms": str(2**63 - 1) for side in ("before", "after")}
WIDE["retention.ms"] = "-1"
ZERO = """
import java.util.Map;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.StringSerializer;

class Zero {
    public static void main(String[] args) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0]);
        var text = new StringSerializer();
        var producer = new KafkaProducer<>(settings, text, text);
        producer.send(new ProducerRecord<>(args[1], 0, 0L, "k", "0")).get();
        producer.close();
    }
}
"""


@under_both
async def test_times_at_the_edges(broker: KafkaBroker, guarantee: str, tmp_path: Path) -> None:
    """Of 0, below, and of 2^62 ms and more: clients and the broker take them all."""
    edges = [0, 1, 2**62, 2**63 - 1, -1, -5, -(2**62)]
    app = trickle.App(unique("times"))
    source = app.topic(f"{app.id}-in", value=int)
    out = app.topic(f"{app.id}-out", value=list[float], partitions=1)
    counts = app.table("counts", key=str, value=int, default=int, source=source)

    @app.agent(source)
    async def note(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            counts["all"] += 1
            await out.send([event.value, event.timestamp, counts["all"]])

    del note
    java = tmp_path / "Zero.java"  # librdkafka takes 0 for now
    java.write_text(ZERO)
    async with looking(broker) as transport:
        for topic in (source.name, out.name):
            await declare(transport, topic, WIDE)
        jars = f"{kafka_jars()}/*"
        await trio.run_process(["java", "-cp", jars, str(java), broker.address, source.name])
        await produce(broker, source.name, *[(b"%d" % at, at) for at in edges[1:]])
        async with opened(app, broker, processing_guarantee=guarantee):
            await reached(transport, app, len(edges))
        due = [[at, at / 1000, number] for number, at in enumerate(edges, 1)]
        assert await read(transport, out.name) == due
        stamps = [record.timestamp_ms for record in await records(transport, out.name)]
        assert stamps == [1, *edges[1:]]


async def test_a_dead_letter_of_a_far_time_is_taken(broker: KafkaBroker) -> None:
    """Its topic, as trickle declares it, takes nothing from more than an hour ahead of now."""
    app = trickle.App(unique("far"))
    source = app.topic(f"{app.id}-in", value=int)

    @app.agent(source, name="fail", on_error=trickle.DeadLetter())
    async def fail(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            raise ValueError(value)

    del fail
    async with looking(broker) as transport:
        await declare(transport, source.name, WIDE)
        await produce(broker, source.name, (b"1", 1), (b"2", 2**62), (b"3", 3))
        async with opened(app, broker):
            await reached(transport, app, 3)
        assert await read(transport, f"{app.id}-fail-dead-letters") == [1, 2, 3]


@pytest.mark.parametrize(("asleep", "blocked"), [(2.5, 0), (0.5, 2)])
@under_both
async def test_calls_that_outlast_the_transaction(
    broker: KafkaBroker, guarantee: str, asleep: float, blocked: float
) -> None:
    """The broker ends each transaction that is open meanwhile; its events run again."""
    commits, called = Commits(), list[int]()
    app = trickle.App(unique("slow"), sensors=[commits])
    source = app.topic(f"{app.id}-in", value=int, partitions=1)
    out = app.topic(f"{app.id}-out", value=list[int], partitions=1)
    counts = app.table("counts", key=str, value=int, default=int, source=source)

    @app.agent(source)
    async def echo(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            counts["all"] += 1
            await out.send([event.value, counts["all"]])
            event.after_commit(partial(call, event.value))

    async def call(value: int) -> None:
        called.append(value)
        if value % 5 == 0:
            await trio.sleep(asleep)
            time.sleep(blocked)  # noqa: ASYNC251 the next events are in hand

    del echo
    settings: dict[str, Any] = {"transaction_timeout": 1, "commit_interval": 0.05}
    async with looking(broker) as transport:
        async with opened(app, broker, processing_guarantee=guarantee, **settings):
            for value in range(20):
                await source.send(value)
                await trio.sleep(0.2)  # so that events come in the midst of calls
            await reached(transport, app, 20)
            while len(called) < 20:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert await read(transport, out.name) == [[value, value + 1] for value in range(20)]
    assert called == list(range(20))
    assert commits.failed or guarantee == "at_least_once"


APP = """
import trickle

app = trickle.App("NAME", broker="BROKER", session_timeout=6, commit_interval=0.05)
numbers = app.topic("NAME-in", value=int, partitions=1)
out = app.topic("NAME-out", value=int, partitions=1)
counts = app.table("counts", key=str, value=int, default=int, source=numbers)

@app.agent(numbers)
async def count(stream: trickle.Stream[int]) -> None:
    async for _ in stream:
        counts["all"] += 1
        await out.send(counts["all"])
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project without an app yet."""
    made = Project(tmp_path, "")
    yield made
    made.close()


def start(project: Project, broker: KafkaBroker, name: str, **env: str) -> Process:
    project.write("app.py", APP.replace("NAME", name).replace("BROKER", broker.url))
    places = {"TRICKLE_DATA_DIR": str(project.path / "data"), **env}
    return project.start("worker", "app:app", "--no-web", env=places)


async def test_a_missing_source_is_named(broker: KafkaBroker, project: Project) -> None:
    """The app may not declare it, and says so at once."""
    name = unique("missing")
    worker = start(project, broker, name, TRICKLE_DECLARE_TOPICS="false")
    async with looking(broker) as transport:
        assert await trio.to_thread.run_sync(worker.wait, 28) == 1, worker.output
        assert f"{name}-in" in worker.output
        assert "Traceback" not in worker.output
        assert not await transport.admin.topics([f"{name}-in"])


@pytest.mark.parametrize("end", ["by itself", "SIGTERM", "SIGKILL"])
async def test_a_deleted_data_directory(broker: KafkaBroker, project: Project, end: str) -> None:
    """It ends with a sentence, and whoever comes next has the right counts."""
    name = unique("deleted")
    send_ten = partial(produce, broker, f"{name}-in", *[(b"1", 0)] * 10)
    async with looking(broker) as transport:

        async def echoed(count: int) -> list[int]:
            while len(found := await read(transport, f"{name}-out")) < count:  # noqa: ASYNC110
                await trio.sleep(0.1)
            return found

        worker = start(project, broker, name)
        await trio.to_thread.run_sync(worker.wait_for, "ready")
        await send_ten()
        await echoed(10)
        shutil.rmtree(project.path / "data")
        await send_ten()
        if end == "SIGTERM":
            await echoed(20)
        if end != "by itself":
            worker.signal(signal.Signals[end])
        code = -signal.SIGKILL if end == "SIGKILL" else 1
        assert await trio.to_thread.run_sync(worker.wait) == code, worker.output
        assert end == "SIGKILL" or "were removed while the worker runs" in worker.output
        assert "Traceback" not in worker.output
        again = start(project, broker, name)
        await trio.to_thread.run_sync(again.wait_for, "ready")
        await send_ten()
        assert await echoed(30) == list(range(1, 31))
        again.signal()
        assert await trio.to_thread.run_sync(again.wait) == 0, again.output
