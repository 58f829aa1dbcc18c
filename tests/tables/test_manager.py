"""The manager on the broker in memory: recovery, warm shards, storing, lookups."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.tables.helpers import Lane
from tests.tables.world import COUNTS_0, TABLES, Trimming, World, committed, counts, names
from trickle.exceptions import (
    BrokerUnavailable,
    RecoveryError,
    StoreError,
    TableReadOnlyError,
    TopicError,
)
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.tables import HOLDER, CacheLimits, Shard, TableManager
from trickle.tables.recovery import MIGRATIONS
from trickle.transport.contract import Watermarks
from trickle.transport.memory import MemoryBroker, MemoryTransport
from trickle.transport.memory.consumer import MemoryReader
from trickle.transport.memory.transport import MemoryAdmin
from trickle.transport.shared import RecordBatch
from trickle.types import TopicPartition


def write(shard: Shard[Any, Any], **values: int) -> None:
    """An event that sets some counts, and settles."""
    lane = Lane("agent", 0, {counts: shard})
    lane.within(counts.update, values)
    lane.settle()


def seen(shard: Shard[Any, Any], key: str) -> int | None:
    """What an event reads."""
    return Lane("agent", 0, {counts: shard}).within(counts.get, key)


async def test_an_empty_start(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    async with world.manager() as manager:
        shards = await manager.open(1, 0, TABLES)
        assert set(shards) == set(TABLES)
        assert manager.shards_of(counts) == [shards[counts]]
        assert committed(shards[counts]) == {}


async def test_recovery_is_the_fold_of_the_changelog(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    await world.produce(counts, *((b"k%d" % (n % 700), b"%d" % n) for n in range(3000)))
    await world.produce(counts, (b"k1", None), (b"gone", None))
    await world.produce(names, (b"a", b'["x"]'))
    async with world.manager() as manager:
        shards = await manager.open(1, 0, TABLES)
        assert len(committed(shards[counts])) == 699
        assert shards[counts].read_committed("k0") == 2800
        assert committed(shards[names]) == {"a": ["x"]}


async def test_a_crash_loses_nothing_that_was_committed(autojump_clock: MockClock) -> None:
    """Fault 3: committed, not stored, then dead; what had only settled is gone."""
    world = World()
    await world.declare()
    async with world.manager(flush_interval=1000) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1, b=1)
        await world.commit(shard)
        await manager.flush()
        write(shard, b=2, c=2)
        await world.commit(shard)
        write(shard, d=3)
        world.disk.crash()
        with pytest.raises(StoreError, match="its holder crashed"):
            await manager.flush()
        shard.unstored.clear()
    assert world.disk.environments[1, 0]["counts"].count() == 2
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert committed(shard) == {"a": 1, "b": 2, "c": 2}


async def test_commits_are_stored_together_and_later(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    async with world.manager(flush_interval=5) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        for n in range(10):
            write(shard, a=n)
            await world.commit(shard)
        stored = world.disk.environments[1, 0]["counts"]
        assert (manager.statistics().flushes, stored.count()) == (0, 0)
        await trio.sleep(5.5)
        assert (manager.statistics().flushes, stored.get(b"a")) == (1, b"9")
        assert shard.position == stored.position
        write(shard, a=10)
        await world.commit(shard)
    assert stored.get(b"a") == b"10"  # on the way out


async def test_pressure_stores_at_once(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    cache = CacheLimits(entries=40)
    async with world.manager(flush_interval=1000, cache=cache) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, **{f"k{n}": n for n in range(20)})
        assert shard.pressure
        await world.commit(shard)
        await trio.testing.wait_all_tasks_blocked()
        assert manager.statistics().flushes == 1
        assert not shard.pressure


async def test_warm_shards_go_on_where_nothing_happened(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit(shard)
        write(shard, a=2)  # settled, never committed
        manager.release(1, 0)
        assert manager.shards_of(counts) == []
        await manager.retain([(1, 0)])
        again = (await manager.open(1, 0, TABLES))[counts]
        assert again is shard
        assert (committed(shard), shard.size) == ({"a": 1}, 1)
        assert seen(shard, "a") == 1


async def test_warm_shards_see_what_another_wrote(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1, b=1)
        await world.commit(shard)
        manager.release(1, 0)
        await world.produce(counts, (b"a", b"7"), (b"c", b"8"))
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert committed(shard) == {"a": 7, "b": 1, "c": 8}
        assert [seen(shard, key) for key in "abcd"] == [7, 1, 8, None]
        write(shard, a=9)
        await world.commit(shard)
        assert committed(shard)["a"] == 9


async def test_what_is_not_retained_is_closed(autojump_clock: MockClock) -> None:
    world = World(partitions=2)
    await world.declare()
    async with world.manager() as manager:
        for partition in (0, 1):
            await manager.open(2, partition, TABLES)
            manager.release(2, partition)
        await manager.retain([(2, 1)])
        assert set(world.disk.held) == {(2, 1)}
    assert world.disk.held == {}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("shorter", "it goes up to 5, and the changelog ends at 2"),
        ("another", "the changelog is another topic than the one it was taken from"),
        ("trimmed", "it goes up to 5, and the changelog begins at 8"),
    ],
)
async def test_a_position_that_means_nothing_is_rebuilt(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, fault: str, why: str
) -> None:
    """Faults 27, 31 and 33."""
    world = World()
    await world.declare()
    await world.produce(counts, *((b"old%d" % n, b"1") for n in range(5)))
    async with world.manager() as manager:
        await manager.open(1, 0, TABLES)
    if fault == "trimmed":
        await world.produce(counts, *((b"lost%d" % n, b"1") for n in range(3)))
        await world.transport.admin.delete_records({COUNTS_0: 8})
    else:
        await world.transport.admin.delete([counts.changelog])
        await world.declare()
        if fault == "shorter":
            stored = world.disk.environments[1, 0]["counts"]
            infos = await world.transport.admin.topics([counts.changelog])
            assert stored.position is not None
            stored.position = stored.position._replace(topic_id=infos[counts.changelog].topic_id)
    await world.produce(counts, (b"new", b"2"), (b"newer", b"3"))
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert committed(shard) == {"new": 2, "newer": 3}
    assert f"table 'counts', partition 0: what is stored cannot be used ({why})" in caplog.text


async def test_an_emptied_changelog_leaves_what_is_complete(autojump_clock: MockClock) -> None:
    """Fault 27: the store goes exactly as far as the changelog did."""
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"), (b"b", b"2"))
    async with world.manager() as manager:
        await manager.open(1, 0, TABLES)
    await world.transport.admin.delete_records({COUNTS_0: 2})
    async with world.manager() as manager:
        assert committed((await manager.open(1, 0, TABLES))[counts]) == {"a": 1, "b": 2}


async def test_what_no_store_and_no_changelog_has_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"), (b"b", b"2"))
    await world.transport.admin.delete_records({COUNTS_0: 1})
    for told in (1, 0):  # from then on it is stored
        caplog.clear()
        async with world.manager() as manager:
            assert committed((await manager.open(1, 0, TABLES))[counts]) == {"b": 2}
        assert caplog.text.count("the changelog begins at 1: what was deleted before") == told


async def test_trimmed_while_it_is_read_it_starts_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 28: read to the end, then trimmed before the end is looked at again."""
    world = World()
    await world.declare()
    await world.produce(counts, *((b"k%d" % n, b"1") for n in range(5)))
    async with world.manager(transport=Trimming(world.transport.broker, 2)) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert committed(shard) == {"k2": 1, "k3": 1, "k4": 1}
    assert caplog.text.count("was trimmed while it was read; its recovery starts again") == 2
    await world.produce(counts, *((b"k%d" % n, b"1") for n in range(9)))
    world.disk = MemoryDisk()
    async with world.manager(transport=Trimming(world.transport.broker, 99)) as manager:
        with pytest.raises(RecoveryError, match=r"cleanup.policy=compact"):
            await manager.open(1, 0, TABLES)
        assert world.disk.held == {}


class Blocked(MemoryReader):
    """A reader that waits until somebody ends what blocks it."""

    def __init__(
        self, broker: MemoryBroker, positions: Mapping[TopicPartition, int], ended: trio.Event
    ) -> None:
        super().__init__(broker, positions)
        self._ended = ended

    async def fetch(self) -> Sequence[RecordBatch]:
        await self._ended.wait()
        return await super().fetch()


class Pending(MemoryAdmin):
    """Nothing is stable until an event is set."""

    def __init__(self, broker: MemoryBroker, ended: trio.Event) -> None:
        super().__init__(broker)
        self._ended = ended

    async def watermarks(
        self, partitions: Collection[TopicPartition], *, stable: bool = False
    ) -> Mapping[TopicPartition, Watermarks]:
        marks = await super().watermarks(partitions)
        if not stable or self._ended.is_set():
            return marks
        return {at: Watermarks(low, low) for at, (low, _) in marks.items()}


class Stuck(MemoryTransport):
    """Its readers hand out no record until an event is set: a transaction is open, or not."""

    def __init__(
        self, broker: MemoryBroker, ended: trio.Event | None = None, *, pending: bool = True
    ) -> None:
        super().__init__(broker)
        self._ended = trio.Event() if ended is None else ended
        self._pending = pending

    @property
    def admin(self) -> MemoryAdmin:
        return Pending(self.broker, self._ended) if self._pending else super().admin

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[MemoryReader, None]:
        await trio.lowlevel.checkpoint()
        reader = Blocked(self.broker, positions, self._ended)
        yield reader
        reader.close()


async def test_what_blocks_a_recovery_is_ended_before_its_patience_is(
    autojump_clock: MockClock,
) -> None:
    """A broker may have lost the end of a transaction: nobody comes past that by waiting."""
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"))
    ended = trio.Event()
    asked: list[float] = []

    async def unblock() -> None:
        asked.append(trio.current_time())
        ended.set()

    transport = Stuck(world.transport.broker, ended)
    async with world.manager(transport=transport, recovery_timeout=30) as manager:
        manager.unblock = unblock
        began = trio.current_time()
        shards = await manager.open(1, 0, TABLES)
        assert [at - began for at in asked] == [pytest.approx(10)]
        assert shards[counts].read_committed("a") == 1


@pytest.mark.parametrize("pending", [False, True])
async def test_a_recovery_ends_nothing_where_nothing_is_open_nor_fails_by_trying(
    autojump_clock: MockClock, pending: bool
) -> None:
    """The partition's leader may be away, or slow; or the broker does not answer what ends it."""
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"))
    ended = trio.Event()
    asked: list[float] = []

    async def unblock() -> None:
        asked.append(trio.current_time())
        raise BrokerUnavailable("away")

    transport = Stuck(world.transport.broker, ended, pending=pending)
    async with (
        world.manager(transport=transport, recovery_timeout=30) as manager,
        trio.open_nursery() as nursery,
    ):
        manager.unblock = unblock

        async def end() -> None:
            await trio.sleep(25)
            ended.set()

        nursery.start_soon(end)
        shards = await manager.open(1, 0, TABLES)
        assert shards[counts].read_committed("a") == 1
        assert len(asked) == pending


async def test_recovery_without_progress_fails_in_time(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"))
    transport = Stuck(world.transport.broker)
    async with world.manager(transport=transport, recovery_timeout=30) as manager:
        with pytest.raises(RecoveryError, match=r"no progress for 30 s \(counts at 0 of 1\)"):
            await manager.open(1, 0, TABLES)
        assert trio.current_time() == pytest.approx(30)
        assert world.disk.held == {}


async def test_cancelled_while_it_recovers_nothing_stays_open(autojump_clock: MockClock) -> None:
    """Fault 16: the assignment changes meanwhile."""
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"))
    async with world.manager(transport=Stuck(world.transport.broker)) as manager:
        with trio.move_on_after(1):
            await manager.open(1, 0, TABLES)
        assert world.disk.held == {}
        assert manager.shards_of(counts) == []


async def test_partitions_recover_at_once(autojump_clock: MockClock) -> None:
    world = World(partitions=4)
    await world.declare()
    for partition in range(4):
        await world.produce(counts, (b"p", b"%d" % partition), partition=partition)
    async with world.manager() as manager, trio.open_nursery() as nursery:
        for partition in range(4):
            nursery.start_soon(manager.open, 4, partition, TABLES)
        await trio.testing.wait_all_tasks_blocked()
        found = [shard.read_committed("p") for shard in manager.shards_of(counts)]
        assert found == [0, 1, 2, 3]


async def test_a_missing_changelog_is_told(autojump_clock: MockClock) -> None:
    async with World().manager() as manager:
        with pytest.raises(TopicError, match="changelog 'app-counts-changelog' does not exist"):
            await manager.open(1, 0, TABLES)


async def test_records_of_other_formats(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    await world.declare()
    await world.produce(counts, (b"a", b"1"), headers=(("trickle-format", b"0"),))
    await world.produce(counts, (b"b", b"2"))
    async with world.manager() as manager:
        with pytest.raises(RecoveryError, match="a record of format 0, and this program knows"):
            await manager.open(1, 0, TABLES)
    monkeypatch.setitem(MIGRATIONS, b"0", lambda key, value: (key, (value or b"") + b"0"))
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert committed(shard) == {"a": 10, "b": 2}


async def test_one_agent_writes_a_table(autojump_clock: MockClock) -> None:
    world = World(partitions=2)
    await world.declare()
    async with world.manager() as manager:
        first = (await manager.open(2, 0, TABLES))[counts]
        second = (await manager.open(2, 1, TABLES))[counts]
        lane = Lane("first", 0, {counts: first})
        lane.within(counts.__setitem__, "a", 1)
        lane.settle()
        other = Lane("second", 1, {counts: second})
        with pytest.raises(TableReadOnlyError, match="'second' cannot write it, for agent 'first'"):
            other.within(counts.__setitem__, "a", 1)


async def test_reads_outside_see_what_is_committed(autojump_clock: MockClock) -> None:
    world = World()
    await world.declare()
    async with world.manager() as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        token = HOLDER.set(manager)
        write(shard, a=1)
        assert (dict(counts), len(counts), "a" in counts, counts.get("a")) == ({}, 0, False, None)
        await world.commit(shard)
        write(shard, a=2)
        assert (dict(counts), len(counts), "a" in counts, counts["a"]) == ({"a": 1}, 1, True, 1)
        assert await counts.query("a") == 1
        assert await counts.query("b") is None
        with pytest.raises(TableReadOnlyError, match="can be read here, not written"):
            counts["a"] = 5
        HOLDER.reset(token)


async def test_a_manager_that_is_cancelled_while_its_store_starts_ends_it() -> None:
    """The worker is told to stop, and then the store becomes ready.

    A child that says so within a cancelled ``nursery.start`` stays there, and is waited for.
    """
    starting, go = trio.Event(), trio.Event()

    class SlowStore(MemoryStore):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            starting.set()
            await go.wait()
            await super().main(task_status)

    manager = TableManager(World().transport, SlowStore())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.run)
            await starting.wait()
            nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            go.set()
