"""A commit that was acknowledged, and did not come to be: what a store has of it is not kept.

Kafka 4.3.1 does so where it loses the markers of a transaction in a restart: it calls the
transaction complete, and nothing but an abort by the same producer ends it then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.tables.helpers import Lane, make_table
from tests.tables.world import COUNTS_0, TABLES, World, counts, names
from tests.transport.helpers import joined
from trickle.exceptions import BrokerUnavailable
from trickle.stores.contract import Store
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryStore
from trickle.tables import Shard, Standbys, TableManager, recovery
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.batches import Batch
from trickle.transport.contract import ProducerOptions, Reader, TopicSpec
from trickle.transport.memory import MemoryTransport
from trickle.types import TopicPartition


class Ledger(World):
    """Commits as the committer does them, in transactions that may be lost after all."""

    def __init__(self) -> None:
        super().__init__()
        self.transport.broker.markers = True

    async def commit_in_transaction(self, shard: Shard[Any, Any], *, lost: bool = False) -> None:
        changes = shard.snapshot()
        assert changes is not None
        begin = (await self.transport.admin.watermarks([COUNTS_0]))[COUNTS_0].high
        options = ProducerOptions(transactional_id="worker")
        async with self.transport.producer(options) as producer:
            for key, value in chain.from_iterable(changes.encoded()):
                assert producer.produce(COUNTS_0.topic, 0, key, value, CHANGELOG_HEADERS, None)
            if lost:
                await producer.abort()
            else:
                await producer.commit({}, None)
        shard.committed(begin + len(changes))

    async def lose_a_commit(self) -> None:
        """Leave a store with a commit that was acknowledged, and lost."""
        async with self.manager(MemoryStore(self.disk), transactional=True) as manager:
            shard = (await manager.open(1, 0, TABLES))[counts]
            write(shard, a=1, b=1)
            await self.commit_in_transaction(shard)
            write(shard, a=2)
            await self.commit_in_transaction(shard, lost=True)
            await manager.flush()

    async def read(self, key: str) -> object:
        """Recover, and return what the table has."""
        async with self.manager(MemoryStore(self.disk), transactional=True) as manager:
            return (await manager.open(1, 0, TABLES))[counts].read_committed(key)


def write(shard: Shard[Any, Any], **values: int) -> None:
    lane = Lane("agent", 0, {counts: shard})
    lane.within(counts.update, values)
    lane.settle()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_was_acknowledged_and_lost_is_not_kept(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
    warm: bool,
    on_disk: bool,
) -> None:
    world = Ledger()
    await world.declare()

    def store() -> Store:
        return LmdbStore(tmp_path) if on_disk else MemoryStore(world.disk)

    async with world.manager(store(), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1, b=1)
        await world.commit_in_transaction(shard)
        write(shard, a=2)
        await world.commit_in_transaction(shard, lost=lost)
        await manager.flush()
        if warm:
            manager.release(1, 0)
            shard = (await manager.open(1, 0, TABLES))[counts]
            assert shard.read_committed("a") == 2 - lost
    async with world.manager(store(), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert (shard.read_committed("a"), shard.read_committed("b")) == (2 - lost, 1)
    assert ("was acknowledged and did not come to be" in caplog.text) == lost


async def test_a_shard_that_is_proven_is_not_read_anew() -> None:
    """It stays warm: its cache with it."""
    world = Ledger()
    await world.declare()
    async with world.manager(transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit_in_transaction(shard)
        manager.release(1, 0)
        young = shard.young
        again = (await manager.open(1, 0, TABLES))[counts]
        assert again is shard
        assert again.young is young


@asynccontextmanager
async def a_standby(world: World) -> AsyncGenerator[Standbys]:
    """Keep the shards as a standby, beside a member that owns them."""
    await world.transport.admin.declare([TopicSpec(name="source", partitions=1)])
    async with (
        joined(world.transport, "group", "source"),
        joined(world.transport, "group", "source") as (me, _),
        trio.open_nursery() as nursery,
    ):
        standbys = Standbys(
            world.transport, MemoryStore(world.disk), group="group", replicas=1,
            member_id=lambda: me.member_id, counts={"source": 1}, tables={1: TABLES},
        )  # fmt: skip
        await nursery.start(standbys.run)
        yield standbys
        nursery.cancel_scope.cancel()


async def test_a_standby_does_not_take_it_for_proven(autojump_clock: MockClock) -> None:
    world = Ledger()
    await world.declare()
    await world.lose_a_commit()
    async with a_standby(world) as standbys:
        await trio.sleep(10)
        (state,) = standbys.statistics().standbys
        assert state.lag == 0  # built anew, and up to date
    assert await world.read("a") == 1


class Interrupted(MemoryTransport):
    """Its readers bring one table's records, and then the broker is away."""

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[Any, None]:
        async with super().reader(positions, committed_only=committed_only) as reader:
            yield _FirstOnly(reader, dict(positions))


class _FirstOnly:
    def __init__(self, reader: Reader, positions: dict[TopicPartition, int]) -> None:
        self._reader = reader
        self._positions = positions
        self._asked = 0

    async def fetch(self) -> Sequence[Batch]:
        self._asked += 1
        if self._asked > 1:
            raise BrokerUnavailable("away")
        batches = [b for b in await self._reader.fetch() if b.topic == names.changelog]
        self._positions[TopicPartition(names.changelog, 0)] = batches[-1].next_offset
        return batches

    def positions(self) -> Mapping[TopicPartition, int]:
        return self._positions


async def test_a_recovery_that_is_cut_short_does_not_take_it_for_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another table's backlog is written before the proof has come."""
    world = Ledger()
    await world.declare()
    await world.lose_a_commit()
    await world.produce(names, *[(b"k%d" % number, b'["x"]') for number in range(50)])
    monkeypatch.setattr(recovery, "_WRITE_RECORDS", 10)
    transport = Interrupted(world.transport.broker)
    async with world.manager(MemoryStore(world.disk), transport, transactional=True) as manager:
        with pytest.raises(BrokerUnavailable):
            await manager.open(1, 0, TABLES)
    assert await world.read("a") == 1


async def test_other_tables_are_left_as_they_are() -> None:
    """One's changelog was emptied: what the store holds is all that there is of it."""
    world = Ledger()
    await world.declare()
    async with world.manager(MemoryStore(world.disk), transactional=True) as manager:
        shards = await manager.open(1, 0, TABLES)
        lane = Lane("agent", 0, {names: shards[names]})
        lane.within(names.__setitem__, "n", ["kept"])
        lane.settle()
        await world.commit(shards[names])
        await manager.flush()
        at = TopicPartition(names.changelog, 0)
        high = (await world.transport.admin.watermarks([at]))[at].high
        await world.transport.admin.delete_records({at: high})
    await world.lose_a_commit()
    async with world.manager(MemoryStore(world.disk), transactional=True) as manager:
        shards = await manager.open(1, 0, TABLES)
        assert shards[counts].read_committed("a") == 1
        assert shards[names].read_committed("n") == ["kept"]


async def test_what_was_not_read_back_is_not_proven() -> None:
    """The end of the transaction is not there yet."""
    world = Ledger()
    await world.declare()
    async with world.manager(MemoryStore(world.disk), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit_in_transaction(shard)
        write(shard, a=2)
        assert shard.snapshot() is not None
        shard.committed((await world.transport.admin.watermarks([COUNTS_0]))[COUNTS_0].high)
        await manager.flush()
        manager.release(1, 0)
        await manager.open(1, 0, TABLES)
        position = world.disk.environments[1, 0]["counts"].position
        assert position is not None
        assert position.acknowledged


FIVE = tuple(make_table(str, int, int, name=f"t{number}") for number in range(5))


class OneByOne(MemoryTransport):
    """Its readers bring one partition at a time, as Kafka's may."""

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[Any, None]:
        async with super().reader(positions, committed_only=committed_only) as reader:
            yield _OneByOne(reader, dict(positions))


class _OneByOne:
    def __init__(self, reader: Reader, positions: dict[TopicPartition, int]) -> None:
        self._reader = reader
        self._positions = positions
        self._next: list[tuple[TopicPartition, int, list[Batch]]] = []

    async def fetch(self) -> Sequence[Batch]:
        await trio.lowlevel.checkpoint()
        if not self._next:
            batches = await self._reader.fetch()
            for at, position in self._reader.positions().items():
                mine = [b for b in batches if (b.topic, b.partition) == at]
                if position != self._positions[at]:
                    self._next.append((at, position, mine))
        at, self._positions[at], batches = self._next.pop(0)
        return batches

    def positions(self) -> Mapping[TopicPartition, int]:
        return dict(self._positions)


async def test_each_of_many_tables_may_be_built_anew() -> None:
    world = Ledger()
    world.transport = OneByOne(world.transport.broker)
    await world.transport.admin.declare([table.spec(1) for table in FIVE])

    @asynccontextmanager
    async def manager() -> AsyncGenerator[TableManager]:
        made = TableManager(world.transport, MemoryStore(world.disk), FIVE, transactional=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            yield made
            nursery.cancel_scope.cancel()

    async with manager() as made:
        shards = await made.open(1, 0, FIVE)
        for value in (1, 2):
            lane = Lane("agent", 0, shards)
            for table in FIVE:
                lane.within(table.update, {"a": value})
            lane.settle()
            async with world.transport.producer(ProducerOptions(transactional_id="w")) as producer:
                ends: dict[Any, int] = {}
                for table, shard in shards.items():
                    at = TopicPartition(table.changelog, 0)
                    changes = shard.snapshot()
                    assert changes is not None
                    ends[shard] = (await world.transport.admin.watermarks([at]))[at].high + 1
                    for key, data in chain.from_iterable(changes.encoded()):
                        assert producer.produce(at.topic, 0, key, data, CHANGELOG_HEADERS, None)
                await (producer.commit({}, None) if value == 1 else producer.abort())
            for shard, end in ends.items():
                shard.committed(end)
        await made.flush()
    async with manager() as made:
        shards = await made.open(1, 0, FIVE)
        assert [shard.read_committed("a") for shard in shards.values()] == [1] * 5


async def test_a_standby_waits_for_the_end_of_a_commit(autojump_clock: MockClock) -> None:
    """It is acknowledged, and its marker is not there yet: as a standby begins, and lost later."""
    world = Ledger()
    await world.declare()
    async with world.manager(MemoryStore(world.disk), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit_in_transaction(shard)
        write(shard, a=2)
        assert shard.snapshot() is not None
        shard.committed((await world.transport.admin.watermarks([COUNTS_0]))[COUNTS_0].high)
        await manager.flush()
    async with a_standby(world):
        await trio.sleep(10)
        await world.produce(names, (b"k", b'["x"]'))
        await trio.sleep(10)
    world.transport.broker.log(COUNTS_0).skip(2)  # aborted after all
    assert await world.read("a") == 1
