"""Tables in memory: for tests, for simulation, and for state that the changelog can rebuild.

A :class:`MemoryDisk` outlives the stores that are opened on it, as a disk outlives a process. So
a simulated worker that crashes finds what it had stored, and nothing else. There is no thread.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Collection, Mapping, Sequence

import trio

from trickle.exceptions import StoreError
from trickle.service import Service
from trickle.stores.contract import Position, TableWrite, stored_key

__all__ = ["MemoryDisk", "MemoryStore", "MemoryTable"]

logger = logging.getLogger("trickle.stores")


class MemoryTable:
    """One partition of one table: a dict, and its stored keys in order, sorted when asked for."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self._pairs: dict[bytes, tuple[bytes, bytes]] = {}  # by stored key: the key and the value
        self._order: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        pair = self._pairs.get(stored_key(key))
        return None if pair is None else pair[1]

    def count(self) -> int:
        return len(self._pairs)

    def scan(self, after: bytes | None, limit: int) -> Sequence[tuple[bytes, bytes]]:
        if self._order is None:
            self._order = sorted(self._pairs)
        order = self._order
        start = 0 if after is None else bisect.bisect_right(order, stored_key(after))
        return [self._pairs[key] for key in order[start : start + limit]]

    def write(self, write: TableWrite) -> None:
        pairs = self._pairs
        if write.clear:
            pairs.clear()
        size = len(pairs)
        fresh = False
        for key, value in write.changes:
            stored = stored_key(key)
            if value is None:
                fresh |= pairs.pop(stored, None) is not None
            else:
                pairs[stored] = (key, value)
        if fresh or write.clear or len(pairs) != size:
            self._order = None
        self.position = write.position


class MemoryDisk:
    """What simulated workers have stored, by partition count and number."""

    def __init__(self) -> None:
        self.environments: dict[tuple[int, int], dict[str, MemoryTable]] = {}
        self.held: dict[tuple[int, int], object] = {}

    def crash(self) -> None:
        """The holders of all environments died: what they had stored stays, their hold ends."""
        self.held.clear()


class _MemoryEnvironment:
    """One partition number of all tables, held by one store until it is closed."""

    def __init__(self, disk: MemoryDisk, place: tuple[int, int], names: Collection[str]) -> None:
        self._disk = disk
        self._place = place
        stored = disk.environments.setdefault(place, {})
        self._tables = {name: stored.setdefault(name, MemoryTable()) for name in names}
        disk.held[place] = self

    @property
    def tables(self) -> Mapping[str, MemoryTable]:
        return self._tables

    @property
    def wanted(self) -> bool:
        return False  # the disk is this process's own

    async def write(self, writes: Sequence[TableWrite]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._disk.held.get(self._place) is not self:
            raise StoreError(
                f"partition {self._place[1]} of {self._place[0]} is not open: it was closed, or "
                "its holder crashed"
            )
        for write in writes:
            self._tables[write.table].write(write)

    async def close(self) -> None:
        if self._disk.held.get(self._place) is self:
            del self._disk.held[self._place]
        await trio.lowlevel.checkpoint_if_cancelled()


class MemoryStore(Service):
    """A :class:`~trickle.stores.contract.Store` in memory.

    Args:
        disk: what it is opened on; by default one of its own, which is empty.
    """

    name = "store"

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__()
        self.disk = disk or MemoryDisk()

    async def open(self, count: int, partition: int, tables: Collection[str]) -> _MemoryEnvironment:
        """Open the environment of a partition number."""
        await trio.lowlevel.checkpoint_if_cancelled()
        place = (count, partition)
        if place in self.disk.held:
            logger.warning(
                "partition %d of %d is held by another worker: its tables are rebuilt beside it",
                partition, count,
            )  # fmt: skip
            return _MemoryEnvironment(MemoryDisk(), place, tables)
        return _MemoryEnvironment(self.disk, place, tables)

    async def open_free(
        self, count: int, partition: int, tables: Collection[str]
    ) -> _MemoryEnvironment | None:
        """Open the environment of a partition number, unless somebody holds it."""
        if (count, partition) in self.disk.held:
            await trio.lowlevel.checkpoint_if_cancelled()
            return None
        return await self.open(count, partition, tables)
