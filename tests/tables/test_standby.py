"""Standbys on the broker in memory: what they keep, how far they are, how they are taken over."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.tables.helpers import make_table
from tests.transport.helpers import joined
from trickle.sensors import Monitor
from trickle.stores.contract import Store
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.tables import Standbys, TableManager
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.contract import ConsumerClient, ProducerOptions, TopicSpec
from trickle.transport.memory import MemoryBroker, MemoryTransport
from trickle.types import TopicPartition

counts = make_table(str, int, int, name="counts")
names = make_table(str, str, str, name="names")
TABLES = (counts, names)
SOURCE = "source"


class Owner:
    """Another worker: a member of the group, and what it commits to the changelogs."""

    def __init__(self, partitions: int = 2, *, markers: bool = False) -> None:
        self.broker = MemoryBroker()
        self.broker.markers = markers
        self.transport = MemoryTransport(self.broker)
        self.partitions = partitions
        self.disk = MemoryDisk()
        self.monitor = Monitor(clock=trio.current_time)
        self.me: ConsumerClient | None = None
        self.standbys: Standbys
        self.manager: TableManager

    async def produce(self, number: int, *pairs: tuple[bytes, bytes | None]) -> None:
        options = ProducerOptions(transactional_id="owner")
        async with self.transport.producer(options) as producer:
            for key, value in pairs:
                producer.produce(counts.changelog, number, key, value, CHANGELOG_HEADERS, None)
            await producer.commit({}, None)

    @asynccontextmanager
    async def worker(
        self, *, others: int = 1, replicas: int = 1, store: Store | None = None
    ) -> AsyncGenerator[Owner]:
        """The worker with the standbys joins first, so it owns the lower partitions."""
        await self.transport.admin.declare(
            [
                TopicSpec(name=SOURCE, partitions=self.partitions),
                *(table.spec(self.partitions) for table in TABLES),
            ]
        )
        store = store or MemoryStore(self.disk)
        self.standbys = Standbys(
            self.transport, store, group="group", replicas=replicas, interval=3.0,
            member_id=lambda: "" if self.me is None else self.me.member_id,
            counts={SOURCE: self.partitions}, tables={self.partitions: TABLES},
        )  # fmt: skip
        self.manager = TableManager(
            self.transport, store, TABLES, sensor=self.monitor, standbys=self.standbys
        )
        async with AsyncExitStack() as stack:
            client, _ = await stack.enter_async_context(joined(self.transport, "group", SOURCE))
            for _ in range(others):
                await stack.enter_async_context(joined(self.transport, "group", SOURCE))
            self.me = client
            nursery = await stack.enter_async_context(trio.open_nursery())
            await nursery.start(self.manager.run)
            end = await nursery.start(_scoped, self.standbys)
            yield self
            end.cancel()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    def kept(self) -> dict[int, tuple[int, int | None]]:
        """What is kept: records and lag by partition number."""
        found = self.standbys.statistics().standbys
        return {state.partition: (state.records, state.lag) for state in found}

    def stored(self, number: int) -> int:
        return self.disk.environments[self.partitions, number]["counts"].count()

    def recovered(self) -> int:
        tables = self.monitor.statistics().tables
        return tables["counts"].recovered if "counts" in tables else 0


async def _scoped(
    standbys: Standbys, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(standbys.run)
            task_status.started(scope)


def pairs(first: int, last: int) -> list[tuple[bytes, bytes | None]]:
    return [(b"k%d" % number, b"%d" % number) for number in range(first, last)]


@pytest.mark.parametrize("markers", [False, True])
async def test_a_takeover_replays_the_tail_alone(autojump_clock: MockClock, markers: bool) -> None:
    """1,000 records are kept; 5 more are committed; the partition comes: 5 are read, or fewer."""
    owner = Owner(markers=markers)
    async with owner.worker():
        await owner.produce(1, *pairs(0, 1000))
        await trio.sleep(10)
        assert owner.kept() == {1: (1000, 0)}
        assert owner.stored(1) == 1000
        await owner.produce(1, *pairs(0, 5))
        shard = (await owner.manager.open(2, 1, TABLES))[counts]
        assert owner.recovered() <= 5
        assert (shard.size, shard.read_committed("k3")) == (1000, 3)
        assert owner.kept() == {}
        await trio.sleep(10)
        assert owner.kept() == {}, "what the manager has is not opened twice"
        await owner.manager.retain([])
        await trio.sleep(10)
        assert owner.kept() == {1: (0, 0)}, "given back, it is a standby again, and up to date"


async def test_what_is_not_committed_is_not_stored(autojump_clock: MockClock) -> None:
    owner = Owner()
    async with owner.worker():
        options = ProducerOptions(transactional_id="other")
        async with owner.transport.producer(options) as producer:
            producer.produce(counts.changelog, 1, b"a", b"1", CHANGELOG_HEADERS, None)
            await trio.sleep(10)
            assert owner.stored(1) == 0
            await producer.commit({}, None)
        await trio.sleep(10)
        assert owner.stored(1) == 1


async def test_the_group_decides_who_keeps_what(autojump_clock: MockClock) -> None:
    """Alone, nobody's shards; with another, its half; with two, a share of what is not ours."""
    owner = Owner(partitions=6)
    async with owner.worker(others=0):
        await trio.sleep(10)
        assert owner.kept() == {}
        async with joined(owner.transport, "group", SOURCE):
            await trio.sleep(10)
            assert set(owner.kept()) == {3, 4, 5}
            async with joined(owner.transport, "group", SOURCE):
                await trio.sleep(10)
                share = set(owner.kept())
                assert len(share) == 2
                assert not share & {0, 1}
        await trio.sleep(10)
        assert set(owner.kept()) == share, "what has become ours is kept for the manager"
        for number in share:
            await owner.manager.open(6, number, TABLES)
        assert owner.kept() == {}
    assert owner.disk.held == {}


async def test_a_restart_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    owner = Owner()
    async with owner.worker():
        await owner.produce(1, *pairs(0, 100))
        await trio.sleep(10)
    assert owner.disk.held == {}
    owner.broker.declare(TopicSpec(name="unrelated"))
    async with owner.worker():
        await owner.produce(1, *pairs(50, 103))
        await trio.sleep(10)
        assert owner.kept() == {1: (53, 0)}
        assert owner.stored(1) == 103


async def test_a_changelog_that_is_made_anew_is_read_anew(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    async with owner.worker():
        await owner.produce(1, *pairs(0, 100))
        await trio.sleep(10)
        await owner.transport.admin.delete([counts.changelog])
        await trio.sleep(10)
        await owner.transport.admin.declare([counts.spec(2)])
        await owner.produce(1, *pairs(0, 7))
        async with joined(owner.transport, "group", SOURCE):
            await trio.sleep(10)
        await trio.sleep(10)
        assert owner.kept() == {1: (7, 0)}
        assert owner.stored(1) == 7
    assert "the changelog is another topic than the one it was taken from" in caplog.text


async def test_a_changelog_that_is_trimmed_past_the_standby_is_read_anew(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The records between go while the broker does not answer: what is stored has a hole."""
    owner = Owner()
    at = TopicPartition(counts.changelog, 1)
    async with owner.worker():
        await owner.produce(1, *pairs(0, 10))
        await trio.sleep(10)
        owner.standbys._reading.cancel()  # pyright: ignore[reportPrivateUsage]
        await owner.produce(1, *pairs(10, 20))
        await owner.transport.admin.delete_records({at: 15})
        await trio.sleep(10)
        assert owner.stored(1) == 5
    assert "the changelog was trimmed while it was read" in caplog.text


async def test_what_is_claimed_has_no_hole_where_its_changelog_was_trimmed_just_before(
    autojump_clock: MockClock,
) -> None:
    """A reader begins behind what went unread; what follows is stored; the partition comes."""
    owner = Owner()
    at = TopicPartition(counts.changelog, 1)
    async with owner.worker():
        await owner.produce(1, *pairs(0, 10))
        await trio.sleep(10)
        owner.broker.fetch_delay = 1
        await owner.produce(1, *pairs(10, 11))  # the fetch behind it takes long
        await trio.sleep(0.1)
        await owner.produce(1, *pairs(11, 20))
        await owner.transport.admin.delete_records({at: 15})
        owner.standbys._reading.cancel()  # pyright: ignore[reportPrivateUsage]
        owner.broker.fetch_delay = 0
        await trio.sleep(1.5)
        shard = (await owner.manager.open(2, 1, TABLES))[counts]
        assert shard.size == 5


async def test_a_broker_that_is_away_is_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    async with owner.worker():
        await trio.sleep(10)
        owner.broker.unavailable = True
        await trio.sleep(60)
        owner.broker.unavailable = False
        await owner.produce(1, *pairs(0, 10))
        await trio.sleep(10)
        assert owner.kept() == {1: (10, 0)}
    assert caplog.text.count("the standbys wait for the broker") == 1


async def test_a_record_of_another_format_ends_one_standby_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner(partitions=4)
    async with owner.worker():
        await trio.sleep(10)
        assert set(owner.kept()) == {2, 3}
        async with owner.transport.producer(ProducerOptions()) as producer:
            await producer.send(counts.changelog, 2, b"k", b"1", (("trickle-format", b"9"),), None)
        await owner.produce(3, *pairs(0, 10))
        await trio.sleep(10)
        assert owner.kept() == {3: (10, 0)}
    assert "no standby for partition 2 of 4, until the group changes: changelog" in caplog.text


async def test_workers_that_share_a_directory(tmp_path: Path) -> None:
    """Held by its owner, it is left alone; wanted by an owner, a standby gives it back in time."""
    owner = Owner()
    theirs = LmdbStore(tmp_path / "tables", lock_timeout=20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(theirs.run)
            held = await theirs.open(2, 1, ["counts", "names"])
            async with owner.worker(store=LmdbStore(tmp_path / "tables")):
                owner.standbys.wake()
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert owner.kept() == {}
                await held.close()
                owner.standbys.wake()
                while not owner.kept():
                    await trio.testing.wait_all_tasks_blocked(0.01)
                again = await theirs.open(2, 1, ["counts", "names"])
                assert owner.kept() == {}
                assert not (tmp_path / "tables" / "2" / "1.g1").exists()
                await again.close()
            nursery.cancel_scope.cancel()
