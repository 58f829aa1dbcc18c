"""How much a recovery holds in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from trio.testing import MockClock

from tests.tables.world import TABLES, World, committed, names
from trickle.stores.contract import Environment, TableData, TableWrite
from trickle.stores.memory import MemoryDisk, MemoryStore


class Weighed:
    """An environment whose writes are weighed."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.sizes: list[int] = []

    @property
    def tables(self) -> Mapping[str, TableData]:
        return self._environment.tables

    @property
    def wanted(self) -> bool:
        return self._environment.wanted

    async def write(self, writes: Sequence[TableWrite]) -> None:
        self.sizes.append(sum(len(v or b"") for write in writes for _, v in write.changes))
        await self._environment.write(writes)

    async def close(self) -> None:
        await self._environment.close()


class Weighing(MemoryStore):
    """Opens such environments."""

    opened: Weighed

    async def open(self, count: int, partition: int, tables: Collection[str]) -> Weighed:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self.opened = Weighed(await super().open(count, partition, tables))
        return self.opened


async def test_large_values_are_written_before_they_fill_the_memory(
    autojump_clock: MockClock,
) -> None:
    world = World()
    await world.declare()
    record = b'["%s"]' % (b"x" * 900_000)
    await world.produce(names, *((b"k%d" % n, record) for n in range(60)))
    store = Weighing(MemoryDisk())
    async with world.manager(store) as manager:
        shards = await manager.open(1, 0, TABLES)
        assert len(committed(shards[names])) == 60
        largest = max(store.opened.sizes)
        assert sum(store.opened.sizes) > 60 * 900_000
        assert largest < 30_000_000
