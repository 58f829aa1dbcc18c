"""The manager over LMDB, and what is seen of its tables without a worker."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from tests.tables.world import TABLES, World, counts
from trickle.stores.lmdb import LmdbStore
from trickle.tables import HOLDER, find_key, find_keys


@pytest.mark.parametrize("stored", [True, False])
async def test_looking_up_without_a_worker(tmp_path: Path, stored: bool) -> None:
    """What is stored, and what the changelog has beyond; also while a worker holds the store."""
    world = World(partitions=2)
    await world.declare()
    directory = tmp_path / "tables"
    if stored:
        await world.produce(counts, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
        async with world.manager(LmdbStore(directory)) as manager:
            await manager.open(2, 0, TABLES)
    else:
        await world.produce(counts, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
    await world.produce(counts, (b"b", b"2"), (b"c", None), (b"aa", b"3"))
    await world.produce(counts, (b"p", b"4"), partition=1)
    place = directory if stored else None
    async with aclosing(find_keys(world.transport, counts, place)) as found:
        rows = [row async for row in found]
    assert rows == [(0, "a", 1), (0, "aa", 3), (0, "b", 2), (1, "p", 4)]
    for partition, key, value in rows:
        assert await find_key(world.transport, counts, key, place) == (partition, key, value)
    assert await find_key(world.transport, counts, "c", place) is None


async def test_recovered_into_lmdb_and_again(tmp_path: Path) -> None:
    world = World()
    await world.declare()
    await world.produce(counts, *((b"k%d" % n, b"%d" % n) for n in range(1000)))
    for _ in range(2):
        async with world.manager(LmdbStore(tmp_path / "tables")) as manager:
            shard = (await manager.open(1, 0, TABLES))[counts]
            assert shard.size_committed == 1000
            assert shard.read_committed("k7") == 7


async def test_items_of_a_partition_that_is_given_away_are_left_out(tmp_path: Path) -> None:
    world = World(partitions=2)
    await world.declare()
    await world.produce(counts, *[(b"a%d" % n, b"1") for n in range(5)])
    await world.produce(counts, *[(b"b%d" % n, b"1") for n in range(5)], partition=1)
    async with world.manager(LmdbStore(tmp_path)) as manager:
        for partition in (0, 1):
            await manager.open(2, partition, TABLES)
        HOLDER.set(manager)
        seen: list[str] = []
        for key, _ in counts.items():
            seen.append(key)
            if len(seen) == 2:
                await manager.retain({(2, 1)})
    assert seen == ["a0", "a1", "b0", "b1", "b2", "b3", "b4"]
