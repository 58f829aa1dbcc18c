"""A commit that the broker acknowledges and then forgets: each event counts once all the same.

Kafka 4.3.1 with one broker: its coordinator has acknowledged the commit before it sends the
markers, by way of its own listener for brokers. Killed before that, and started again, it takes the
partitions for deleted as long as they have no leader, and calls the transaction complete without
any marker; or it sends them after all. Both are seen here.
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition

import trickle
from tests.faults.proxy import Proxy
from tests.kafka_broker import KafkaBroker
from trickle.run import Run, Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.transport import TransportOptions, open_transport
from trickle.transport.kafka import transaction

pytestmark = pytest.mark.kafka

LIMIT = 60.0


class Worker:
    """An app that counts, on a disk that outlives it."""

    def __init__(self, broker: KafkaBroker, disk: MemoryDisk) -> None:
        self.app = trickle.App("app")
        source = self.app.topic("source", key=str, value=int, partitions=1)
        self.counts = self.app.table("counts", key=str, value=int, default=int, source=source)

        @self.app.agent(source)
        async def count(stream: trickle.Stream[int, str]) -> None:
            async for key, _ in stream.items():
                self.counts[key] += 1

        del count
        self.resolved = self.app.resolve(
            broker=broker.url, web=False, store="memory://", broker_timeout=8, session_timeout=6
        )
        self.surroundings = Surroundings(store=lambda: MemoryStore(disk), name="worker")

    def open(self) -> AbstractAsyncContextManager[Run]:
        return open_run(self.app.definitions(), self.resolved, surroundings=self.surroundings)

    async def until(self, live: Run, count: int) -> None:
        assert live.tables is not None
        shards = live.tables.shards_of
        while [s.read_committed("k") for s in shards(self.counts)] != [count]:  # noqa: ASYNC110
            await trio.sleep(0.05)


class Markers:
    """Holds back what a coordinator tells its own broker of a commit, once it is armed."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.armed = False

    def hold(self, name: str) -> None:
        """Stand in for a fail point, in the producer's thread."""
        if self.armed and name == "commit-offsets-sent":
            time.sleep(0.6)  # its records are delivered meanwhile
            self._proxy.hold()


async def test_what_is_acknowledged_and_forgotten_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, proxy = MemoryDisk(), Proxy()
    markers = Markers(proxy)
    monkeypatch.setattr(transaction, "fail_point", markers.hold)
    with KafkaBroker({"inter.broker.listener.name": "PROXIED"}, behind=proxy.port) as broker:
        proxy.target = broker.inner_port
        producer = Producer({"bootstrap.servers": broker.address})

        async def send() -> None:
            producer.produce("source", b"1", b"k", 0)
            assert await trio.to_thread.run_sync(producer.flush, 10) == 0

        worker = Worker(broker, disk)
        with trio.fail_after(LIMIT), pytest.raises(ExceptionGroup):
            async with worker.open() as live:
                await send()
                await worker.until(live, 1)
                markers.armed = True
                await send()
                await worker.until(live, 2)
                assert live.tables is not None
                await live.tables.flush()
                markers.armed = False
                await trio.to_thread.run_sync(broker.kill)
                raise RuntimeError("the worker dies as well")
        proxy.cut()
        proxy.heal()
        await trio.to_thread.run_sync(broker.start)
        worker = Worker(broker, disk)
        with trio.fail_after(LIMIT):
            async with worker.open() as live:
                await worker.until(live, 2)
                await send()
                await worker.until(live, 3)
    proxy.close()


class Committed(trickle.BaseSensor):
    """Counts the events of all commits that were acknowledged."""

    def __init__(self) -> None:
        self.events = 0

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        del seconds, partitions
        self.events += events


async def test_what_an_idle_app_sent_last_becomes_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes behind the event whose commit is forgotten, so nothing is due."""
    proxy, sensor = Proxy(), Committed()
    markers = Markers(proxy)
    monkeypatch.setattr(transaction, "fail_point", markers.hold)
    app = trickle.App("app", sensors=[sensor])
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source)
    async def forward(stream: trickle.Stream[int, str]) -> None:
        async for value in stream:
            out.send_nowait(value, key="k")

    del forward
    with KafkaBroker({"inter.broker.listener.name": "PROXIED"}, behind=proxy.port) as broker:
        proxy.target = broker.inner_port
        producer = Producer({"bootstrap.servers": broker.address})
        resolved = app.resolve(
            broker=broker.url, web=False, store="memory://", broker_timeout=8, session_timeout=6
        )
        run = open_run(app.definitions(), resolved, surroundings=Surroundings(name="worker"))
        with trio.fail_after(LIMIT):
            async with run:
                for value in (1, 2):
                    markers.armed = value == 2
                    producer.produce("source", b"%d" % value, b"k", 0)
                    assert await trio.to_thread.run_sync(producer.flush, 10) == 0
                    while sensor.events < value:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                markers.armed = False
                await trio.to_thread.run_sync(broker.kill)
                proxy.cut()
                proxy.heal()
                await trio.to_thread.run_sync(broker.start)
                assert await trio.to_thread.run_sync(read_out, broker, 2) == [1, 2]
    proxy.close()


def read_out(broker: KafkaBroker, count: int) -> list[int]:
    """Return what readers of committed records see, once they see so many."""
    reader = Consumer(
        {
            "bootstrap.servers": broker.address,
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    reader.assign([TopicPartition("out", 0, 0)])
    found: list[int] = []
    try:
        while len(found) < count or found[-1] != count:
            message = reader.poll(LIMIT / 2)
            assert message is not None, f"nothing comes behind {found}"
            assert message.error() is None
            found.append(int(message.value() or b""))
    finally:
        reader.close()
    return found


async def test_what_is_rolled_back_and_forgotten_is_sent_once() -> None:
    """An output stays open, and the next commit of the same id must not make it visible.

    The transaction holds it, and no offsets yet, as its broker dies for longer than its timeout.
    The broker rolls it back as it starts, before its partitions have leaders; the event runs again.
    """
    soon = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
    with KafkaBroker({soon: 100}) as broker:
        app = trickle.App("app")
        source = app.topic("source", key=str, value=int, partitions=1)
        out = app.topic("out", key=str, value=int, partitions=1)
        held, release = trio.Event(), trio.Event()

        @app.agent(source)
        async def forward(stream: trickle.Stream[int, str]) -> None:
            async for value in stream:
                if value == 2:  # the lane is busy, so the first one waits for the interval
                    held.set()
                    await release.wait()
                out.send_nowait(value, key="k")

        del forward
        resolved = app.resolve(
            broker=broker.url, web=False, store="memory://", broker_timeout=8, session_timeout=30,
            transaction_timeout=3, commit_interval=2.9,
        )  # fmt: skip
        place = trickle.TopicPartition("out", 0)
        run = open_run(app.definitions(), resolved, surroundings=Surroundings(name="worker"))
        client = open_transport(broker.url, TransportOptions())
        with trio.fail_after(LIMIT):
            async with client as transport, run:
                watermarks = transport.admin.watermarks
                producer = Producer({"bootstrap.servers": broker.address})
                for value in (b"1", b"2"):
                    producer.produce("source", value, b"k", 0)
                assert await trio.to_thread.run_sync(producer.flush, 10) == 0
                await held.wait()
                while (await watermarks([place]))[place].high == 0:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert (await watermarks([place], stable=True))[place].high == 0, "too late"
                await trio.to_thread.run_sync(broker.kill)
                await trio.to_thread.run_sync(broker.start)
                release.set()
                assert await trio.to_thread.run_sync(read_out, broker, 2) == [1, 2]
