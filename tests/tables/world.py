"""Two tables with their changelogs on the broker in memory, and managers of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import trio

from tests.tables.helpers import make_table
from trickle.stores.contract import Store
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.tables import Shard, Table, TableManager
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.contract import ProducerOptions
from trickle.transport.memory import MemoryBroker, MemoryTransport
from trickle.transport.memory.consumer import MemoryReader
from trickle.types import Headers, TopicPartition

counts = make_table(str, int, int, name="counts")
names = make_table(str, list[str], list, name="names")
TABLES = (counts, names)
COUNTS_0 = TopicPartition(counts.changelog, 0)


class World:
    """A broker with the changelogs of two tables, and a disk."""

    def __init__(self, partitions: int = 1) -> None:
        self.transport = MemoryTransport(MemoryBroker())
        self.disk = MemoryDisk()
        self.partitions = partitions

    async def declare(self) -> None:
        await self.transport.admin.declare([table.spec(self.partitions) for table in TABLES])

    @asynccontextmanager
    async def manager(
        self,
        store: Store | None = None,
        transport: Any = None,
        *,
        transactional: bool = False,
        **options: Any,
    ) -> AsyncGenerator[TableManager]:
        manager = TableManager(
            transport or self.transport, store or MemoryStore(self.disk), TABLES,
            transactional=transactional, **options,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            yield manager
            nursery.cancel_scope.cancel()

    async def produce(
        self,
        table: Table[Any, Any],
        *pairs: tuple[bytes, bytes | None],
        partition: int = 0,
        headers: Headers = CHANGELOG_HEADERS,
    ) -> int:
        """Append to a changelog; return the position behind it."""
        at = TopicPartition(table.changelog, partition)
        async with self.transport.producer(ProducerOptions()) as producer:
            for key, value in pairs:
                await producer.send(at.topic, partition, key, value, headers, None)
        return (await self.transport.admin.watermarks([at]))[at].high

    async def commit(self, *shards: Shard[Any, Any]) -> None:
        """As the committer does."""
        for shard in shards:
            changes = shard.snapshot()
            if changes is not None:
                table = counts if shard.table == "counts" else names
                pairs = list(chain.from_iterable(changes.encoded()))
                shard.committed(await self.produce(table, *pairs, partition=shard.partition))


def committed(shard: Shard[Any, Any]) -> dict[Any, Any]:
    """Return what a shard holds by its last commit."""
    keys = [shard.keys.key(mark) for mark in shard.marks(None)]
    return {key: shard.read_committed(key) for key in keys}


class Trimming(MemoryTransport):
    """Deletes records while they are read: so often, each time after the first batches."""

    def __init__(self, broker: MemoryBroker, times: int) -> None:
        super().__init__(broker)
        self.times = times

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[MemoryReader, None]:
        async with super().reader(positions, committed_only=committed_only) as reader:
            yield reader
            if self.times:
                self.times -= 1
                marks = await self.admin.watermarks([COUNTS_0])
                await self.admin.delete_records({COUNTS_0: marks[COUNTS_0].low + 1})
