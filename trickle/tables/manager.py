"""TableManager: opens, recovers, stores and closes the shards of a Run.

The unit is the environment of one partition number of one partition count, with a shard for each
table in it. It is opened when the partition number is assigned, kept *warm* (open, locked, no
longer shown) when it is revoked, as it mostly comes straight back, and closed when the next
assignment is known not to have it.

What is committed reaches the store some time later, many commits at once: after ``flush_interval``,
or as soon as it presses on a shard's cache, and on the way out. What a crash keeps from being
stored, the changelog replays.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import trio

from trickle.exceptions import DecodeError, StoreError, TableReadOnlyError
from trickle.positions import read_end
from trickle.sensors import Sensor
from trickle.service import Service, ServiceStatistics
from trickle.stores.contract import Environment, Position, Store, TableWrite
from trickle.tables.changes import Changes
from trickle.tables.limits import CacheLimits
from trickle.tables.placement import Placement
from trickle.tables.recovery import RecoveryProgress, recover
from trickle.tables.shard import Shard
from trickle.tables.standby import Standbys
from trickle.tables.standby_plan import Place
from trickle.tables.table import Table, foreign_table
from trickle.transport.contract import CommittedOffset, TopicSpec, Transport
from trickle.types import TopicPartition
from trickle.utils.failpoints import fail_point

__all__ = ["TableManager", "TableManagerStatistics"]

logger = logging.getLogger("trickle.tables")

_CLOSE_TIMEOUT = 30.0

AnyTable = Table[Any, Any]
AnyShard = Shard[Any, Any]


class TableManagerStatistics(ServiceStatistics, frozen=True, kw_only=True):
    """What a table manager says of itself.

    Attributes:
        shards: those that are ready.
        warm: environments that are kept open for the case that they come back.
        unstored: keys that are committed and not yet in the store.
        flushes: writes to the store so far.
        recovering: recoveries that are under way.
    """

    shards: int
    warm: int
    unstored: int
    flushes: int
    recovering: tuple[RecoveryProgress, ...]


class _Held:
    """An environment that is open, and its shards."""

    def __init__(self, count: int, partition: int, environment: Environment) -> None:
        self.count = count
        self.partition = partition
        self.environment = environment
        self.shards: dict[AnyTable, AnyShard] = {}
        self.ready = False
        self.recovering = False
        self.writing = trio.Lock()  # one write at a time: recovery, flush


class TableManager(Service):
    """Owns the shards of a Run; a Holder (see :mod:`.table`) as well.

    Args:
        transport: where the changelogs are.
        store: where the shards rest; the manager runs it.
        tables: all tables of the app.
        transactional: commits are transactions, which leave markers in the changelogs.
        recovery_timeout: seconds without progress after which recovery fails.
        flush_interval: seconds from a commit until it is stored, at most.
        cache: bounds of what all shards together keep in memory.
        sensor: told of recoveries.
        standbys: have the environments of some shards open already.

    Attributes:
        unblock: ends what may keep changelogs from being read.
    """

    name = "TableManager"

    def __init__(
        self,
        transport: Transport,
        store: Store,
        tables: Iterable[AnyTable] = (),
        *,
        transactional: bool = True,
        recovery_timeout: float = 60.0,
        flush_interval: float = 1.0,
        cache: CacheLimits | None = None,
        sensor: Sensor | None = None,
        standbys: Standbys | None = None,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._store = store
        self._registry = {table.name: table for table in tables}
        self._transactional = transactional
        self._recovery_timeout = recovery_timeout
        self._flush_interval = flush_interval
        self._cache = cache or CacheLimits(entries=1_000_000, bytes=256 << 20)
        self._sensor = sensor
        self._standbys = standbys
        self.unblock: Callable[[], Awaitable[None]] | None = None
        self._held: dict[tuple[int, int], _Held] = {}
        self._writers: dict[str, str] = {}
        self._warned: set[str] = set()
        self._recovering: dict[tuple[int, int], RecoveryProgress] = {}
        self._unstored = trio.Event()
        self._pressed = trio.Event()
        self._flushes = 0

    @property
    def tables(self) -> Mapping[str, AnyTable]:
        """All tables by name."""
        return self._registry

    def specs(self, counts: Mapping[str, int], replicas: int | None = None) -> list[TopicSpec]:
        """Return the changelogs as they are to be declared.

        Args:
            counts: the partition count of each table, by its name.
            replicas: unless a table has its own.
        """
        return [
            self._registry[name].spec(count, replicas=replicas) for name, count in counts.items()
        ]

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        # The store outlives a cancellation of the manager, until the last flush is done; but not
        # while it starts: `start` would wait for a shielded child for ever.
        stop = trio.CancelScope()

        async def run_store(task_status: trio.TaskStatus[Any]) -> None:
            with stop:
                await self._store.run(task_status=task_status)

        await self.nursery.start(run_store, name=self._store.name)
        stop.shield = True
        flush = True
        try:
            task_status.started()
            await self._flush_when_due()
        except StoreError:
            flush = False  # it would fail again; the changelogs have everything
            raise
        finally:
            try:
                with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as scope:
                    await self._close_all(list(self._held), flush=flush)
                if scope.cancelled_caught:
                    logger.warning(
                        "the tables were not closed within %g s: what is not stored is replayed "
                        "from the changelogs", _CLOSE_TIMEOUT,
                    )  # fmt: skip
            finally:
                stop.cancel()

    # Opening and closing

    async def open(
        self,
        count: int,
        partition: int,
        tables: Sequence[AnyTable],
        ends: Mapping[TopicPartition, CommittedOffset] | None = None,
    ) -> dict[AnyTable, AnyShard]:
        """Open the shards of a partition number, and bring them up to date.

        Call it when no transaction on the partition is pending: its committed offset has been
        read as a stable one.

        Args:
            ends: where changelogs ended with the last commits, where that was told; the metadata
                is the changelog's identity.

        Raises:
            StoreError: the data directory cannot be used.
            RecoveryError: a changelog cannot be read to its end.
        """
        place = (count, partition)
        held = self._held.get(place)
        if held is not None and held.ready:
            raise RuntimeError(f"partition {partition} of {count} is open already")
        if held is not None and set(held.shards) != set(tables):
            await self._close(place)
            held = None
        if held is None:
            environment = await self._environment(place, [table.name for table in tables])
            held = self._held[place] = _Held(count, partition, environment)
        try:
            await self._bring_up(held, tables, ends)
        except BaseException:
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._close(place, flush=False)
            raise
        held.ready = True
        self._share_cache()
        return dict(held.shards)

    async def _environment(self, place: Place, names: Sequence[str]) -> Environment:
        """Open an environment, or take over the one that was kept as a standby."""
        try:
            if self._standbys is not None:
                kept = await self._standbys.claim(place)
                if kept is not None:
                    return kept
            return await self._store.open(*place, names)
        except BaseException:
            self._free(place)
            raise

    def _free(self, place: Place) -> None:
        if self._standbys is not None:
            self._standbys.free(place)

    async def _bring_up(
        self,
        held: _Held,
        tables: Sequence[AnyTable],
        ends: Mapping[TopicPartition, CommittedOffset] | None,
    ) -> None:
        """Recover an environment, and make its shards or let them go on."""
        place = (held.count, held.partition)
        await self._flush(held)

        def report(progress: RecoveryProgress | None) -> None:
            if progress is None:
                self._recovering.pop(place, None)
            else:
                self._recovering[place] = progress

        started = trio.current_time()
        held.recovering = True
        async with held.writing:
            found = await recover(
                self._transport,
                held.environment,
                {table.name: table.changelog for table in tables},
                count=held.count,
                partition=held.partition,
                timeout=self._recovery_timeout,
                markers=self._transactional,
                report=report,
                unblock=self.unblock,
                ends=ends,
            )
        held.recovering = False  # one that failed is closed
        if self._sensor is not None:
            took = trio.current_time() - started
            for name, count in found.records.items():
                self._sensor.recovered(name, held.partition, count, took)
        for table in tables:
            shard = held.shards.get(table)
            if shard is None:
                shard = self._make_shard(held, table, found.topic_ids[table.name])
                held.shards[table] = shard
            elif found.wrote:
                shard.topic_id = found.topic_ids[table.name]
                shard.reload()
            told = (ends or {}).get(TopicPartition(table.changelog, held.partition))
            shard.end = found.ends[table.name]
            shard.told = read_end(told, shard.topic_id) is not None
            for key in found.unsure.get(table.name, ()):
                try:
                    shard.affirm(key)
                except DecodeError as error:  # as when the table's type has changed since
                    logger.warning(
                        "table %r, partition %d: the changelog keeps a record of an uncommitted "
                        "change, for its key cannot be read: %s", table.name, held.partition, error,
                    )  # fmt: skip

    def _make_shard(self, held: _Held, table: AnyTable, topic_id: str) -> AnyShard:
        placement = (
            Placement(table.name, held.partition, held.count, table.partitioner, self._warned)
            if held.count > 1
            else None
        )
        shard: AnyShard = Shard(
            table.name,
            held.partition,
            held.count,
            table.keys_shape,
            table.values_shape,
            held.environment.tables[table.name],
            claim=lambda agent: self.claim(table, agent),
            topic_id=topic_id,
            placement=placement,
        )
        shard.changed = lambda: self._changed(shard)
        return shard

    def release(self, count: int, partition: int) -> None:
        """Keep a partition number warm: its assignment has ended, and may come straight back."""
        held = self._held.get((count, partition))
        if held is not None:
            held.ready = False
            for shard in held.shards.values():
                shard.revert()

    async def retain(self, places: Collection[tuple[int, int]]) -> None:
        """Store and close what is not in the assignment that begins: (count, partition)."""
        await self._close_all([place for place in self._held if place not in places])
        self._share_cache()

    async def _close_all(self, places: Iterable[tuple[int, int]], *, flush: bool = True) -> None:
        """Close all of them, whatever happens to one."""
        failure: StoreError | None = None
        for place in places:
            try:
                await self._close(place, flush=flush)
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _close(self, place: tuple[int, int], *, flush: bool = True) -> None:
        held = self._held.get(place)
        if held is None:  # somebody else has closed it meanwhile
            return
        held.ready = False
        try:
            if flush:
                await self._flush(held)
        finally:
            self._held.pop(place, None)
            for shard in held.shards.values():
                shard.changed = None  # it refers to the shard, which shall be gone with us
            try:
                with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                    async with held.writing:
                        pass  # nobody writes any more, and nobody begins to
                await held.environment.close()
            finally:
                self._free(place)

    def _share_cache(self) -> None:
        shards = [shard for held in self._held.values() for shard in held.shards.values()]
        if shards:
            share = CacheLimits(
                entries=max(1, self._cache.entries // len(shards)),
                bytes=max(1, self._cache.bytes // len(shards)),
            )
            for shard in shards:
                shard.limit(share)

    # What others ask

    def claim(self, table: AnyTable, agent: str) -> None:
        """Make an agent the writer of a table, in all its partitions: the first that writes is.

        Raises:
            TableReadOnlyError: another agent is.
        """
        writer = self._writers.setdefault(table.name, agent)
        if writer != agent:
            raise TableReadOnlyError(
                f"table {table.name!r}: agent {agent!r} cannot write it, for agent {writer!r} "
                "does, and two could not be undone apart; let one of them write, or give each a "
                "table of its own"
            )

    def shards_of(self, table: AnyTable) -> Sequence[AnyShard]:
        """Return the shards of a table that are ready, by partition.

        Raises:
            UsageError: it is another app's.
        """
        if self._registry.get(table.name) is not table:
            raise foreign_table(table)
        return [
            held.shards[table]
            for _, held in sorted(self._held.items())
            if held.ready and table in held.shards
        ]

    def statistics(self) -> TableManagerStatistics:
        """Return a frozen picture of the manager and its store."""
        base = super().statistics()
        shards = [shard for held in self._held.values() for shard in held.shards.values()]
        return TableManagerStatistics(
            **{name: getattr(base, name) for name in base.__struct_fields__ if name != "children"},
            children=(self._store.statistics(),),
            shards=sum(len(held.shards) for held in self._held.values() if held.ready),
            warm=sum(not held.ready for held in self._held.values()),
            unstored=sum(len(shard.unstored) + len(shard.storing) for shard in shards),
            flushes=self._flushes,
            recovering=tuple(self._recovering.values()),
        )

    # Storing

    def _changed(self, shard: AnyShard) -> None:
        self._unstored.set()
        if shard.pressure:
            self._pressed.set()

    async def _flush_when_due(self) -> None:
        while True:
            await self._unstored.wait()
            with trio.move_on_after(self._flush_interval):
                await self._pressed.wait()
            self._unstored = trio.Event()
            self._pressed = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Hand everything that is committed to the store.

        Raises:
            StoreError: it could not be stored; nothing is lost, for the changelogs have it.
        """
        for held in list(self._held.values()):
            if not held.recovering:  # that may take minutes, and the others cannot wait
                await self._flush(held)

    async def _flush(self, held: _Held) -> None:
        async with held.writing:
            if self._held.get((held.count, held.partition)) is not held:
                return  # closed meanwhile
            taken: list[tuple[AnyShard, Position, Changes]] = []
            for shard in held.shards.values():
                changes = shard.begin_store()
                if changes is not None:
                    assert shard.position is not None  # what is committed has one
                    taken.append((shard, shard.position, changes))
            if not taken:
                return
            try:
                writes = [
                    TableWrite(table=shard.table, position=position, changes=await _encode(changes))
                    for shard, position, changes in taken
                ]
                fail_point("store-begin")
                await held.environment.write(writes)
                fail_point("store-end")
            except BaseException:
                for shard, _, _ in taken:
                    shard.store_failed()
                raise
            self._flushes += 1
            for shard, _, _ in taken:
                shard.stored()


async def _encode(changes: Changes) -> list[tuple[bytes, bytes | None]]:
    """Encode changes without keeping the loop from its other work for long."""
    pairs: list[tuple[bytes, bytes | None]] = []
    for portion in changes.encoded():
        pairs += portion
        await trio.lowlevel.checkpoint()
    return pairs
