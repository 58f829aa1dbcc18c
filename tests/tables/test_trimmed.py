"""A changelog that loses records while it is read: only its own table is begun anew."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from trio.testing import MockClock

from tests.tables.world import COUNTS_0, TABLES, World, counts, names
from trickle.tables import Shard
from trickle.transport.memory import MemoryTransport
from trickle.transport.memory.consumer import MemoryReader
from trickle.types import TopicPartition

NAMES_0 = TopicPartition(names.changelog, 0)


class Trimming(MemoryTransport):
    """Trims the changelog of ``counts`` as the first reader is opened."""

    times = 1

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[MemoryReader]:
        async with super().reader(positions, committed_only=committed_only) as reader:
            yield reader
            if self.times:
                self.times -= 1
                marks = await self.admin.watermarks([COUNTS_0])
                await self.admin.delete_records({COUNTS_0: marks[COUNTS_0].low + 1})


def committed(shard: Shard[Any, Any]) -> dict[Any, Any]:
    keys = map(shard.keys.key, shard.marks(None))
    return {key: shard.read_committed(key) for key in keys}


async def test_other_tables_keep_what_their_changelogs_have_no_more(
    autojump_clock: MockClock,
) -> None:
    world = World()
    await world.declare()
    await world.produce(names, (b"a", b'["x"]'), (b"b", b'["y"]'))
    async with world.manager() as manager:
        await manager.open(1, 0, TABLES)
    await world.transport.admin.delete_records({NAMES_0: 2})
    await world.produce(counts, *((b"k%d" % n, b"1") for n in range(5)))
    async with world.manager(transport=Trimming(world.transport.broker)) as manager:
        shards = await manager.open(1, 0, TABLES)
        assert committed(shards[names]) == {"a": ["x"], "b": ["y"]}
        assert committed(shards[counts]) == {f"k{n}": 1 for n in range(1, 5)}
