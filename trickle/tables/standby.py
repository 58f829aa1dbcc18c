"""Standbys: shards that other workers own, kept up to date here, so that a takeover is short.

Every few seconds, and after each rebalance, a worker looks at the group and computes which shards
it keeps (:mod:`.standby_plan`: all workers compute the same). It opens their environments and
follows their changelogs: one reader for all of them, committed records only, written in batches,
each with the positions that it reaches. So a standby is at any moment what a recovery would have
made of its changelog so far, and killing it does no harm.

When the worker is assigned such a shard, the manager *claims* the open environment, and its
recovery replays the rest. From then on the place is the manager's, until it frees it.

Workers that share one data directory share the shards as well. So an environment that somebody
holds is left alone, and one that somebody waits for is closed: a standby never stands in the way
of an owner. A standby is never worth the worker: what goes wrong with one is a warning, and it is
left out until the group changes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import trio

from trickle.exceptions import (
    BrokerUnavailable,
    RecoveryError,
    StoreError,
    TopicError,
    TransportError,
)
from trickle.service import Service, ServiceStatistics
from trickle.stores.contract import Environment, Store
from trickle.tables.kept import Kept, StandbyState
from trickle.tables.recovery import TRIMMED, UNPROVEN, changelog_pairs
from trickle.tables.standby_plan import Place, plan_standbys
from trickle.tables.table import Table
from trickle.transport.batches import Batch
from trickle.transport.contract import Reader, TopicInfo, Transport, Watermarks
from trickle.types import TopicPartition

__all__ = ["Standbys", "StandbysStatistics"]

logger = logging.getLogger("trickle.tables")

_WRITE_INTERVAL = 1.0
_WRITE_RECORDS = 20_000
_WRITE_BYTES = 8 << 20  # of all standbys together
_SPARE_INTERVAL = 0.5  # a quarter of the time that an owner waits for an environment
_CLOSE_TIMEOUT = 30.0
_PAUSE = 1.0

Owned = dict[str, frozenset[Place]]


class StandbysStatistics(ServiceStatistics, frozen=True, kw_only=True):
    """What the standbys of a worker say of themselves."""

    standbys: tuple[StandbyState, ...]


class Standbys(Service):
    """Keeps this worker's share of the group's standby shards.

    Args:
        transport: where group and changelogs are.
        store: where the shards rest; run by the manager, before and after this service.
        group: the app's consumer group.
        member_id: tells this worker's name in it; empty before it has one.
        counts: the partition count of each topic that is consumed.
        tables: the tables by the partition count that shards them.
        replicas: how many standbys each shard shall have.
        transactional: commits are transactions, which leave markers in the changelogs.
        interval: seconds between looks at the group.
    """

    name = "Standbys"

    def __init__(
        self,
        transport: Transport,
        store: Store,
        *,
        group: str,
        member_id: Callable[[], str],
        counts: Mapping[str, int],
        tables: Mapping[int, Sequence[Table[Any, Any]]],
        replicas: int,
        transactional: bool = True,
        interval: float = 3.0,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._store = store
        self._group = group
        self._member_id = member_id
        consumed = set(counts.values())
        self._tables = {count: found for count, found in tables.items() if found}
        self._counts = sorted(self._tables.keys() & consumed)
        self._topics = {name: count for name, count in counts.items() if count in self._counts}
        self._replicas = replicas
        self._markers = transactional
        self._interval = interval
        self._kept: dict[Place, Kept] = {}
        self._claimed: set[Place] = set()
        self._claims = 0
        self._left_out: set[Place] = set()
        self._owned: Owned | None = None
        self._plan: dict[str, frozenset[Place]] | None = None
        self._changing = trio.Lock()  # what is open
        self._followed: dict[TopicPartition, Kept] = {}  # what the reader was made for
        self._reading = trio.CancelScope()
        self._moved = trio.Event()
        self._woken = trio.Event()
        self._away = False

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        try:
            self.nursery.start_soon(self._watch)
            self.nursery.start_soon(self._spare)
            task_status.started()
            await self._follow()
        finally:
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._give_up(list(self._kept))

    def statistics(self) -> StandbysStatistics:
        """Return a frozen picture: what is kept, and how far behind it is."""
        base = super().statistics()
        return StandbysStatistics(
            **{name: getattr(base, name) for name in base.__struct_fields__},
            standbys=tuple(kept.state() for _, kept in sorted(self._kept.items())),
        )

    # What the manager asks

    async def claim(self, place: Place) -> Environment | None:
        """Hand over the environment of a place that this worker is assigned, if it is open.

        From here on the place is the caller's, until :meth:`free`, whatever comes of the call.
        """
        self._claimed.add(place)
        self._claims += 1
        async with self._changing:
            kept = self._kept.pop(place, None)
        if kept is None:
            return None
        try:
            async with kept.writing:
                pass
        except BaseException:
            await _close(kept)
            raise
        return kept.environment

    def free(self, place: Place) -> None:
        """A place that was claimed is closed: it may be a standby again."""
        self._claimed.discard(place)

    def wake(self) -> None:
        """The assignment has changed: look at the group now."""
        self._woken.set()

    # Which

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
                self._away = False
            except TransportError as error:
                self._say_away(error)
            with trio.move_on_after(self._interval):
                await self._woken.wait()
            self._woken = trio.Event()

    def _say_away(self, error: TransportError) -> None:
        if not self._away:
            logger.warning("the standbys wait for the broker: %s", error)
        self._away = True

    async def _look(self) -> None:
        """Look at the group, and keep what is this worker's to keep."""
        me = self._member_id()
        members = await self._transport.admin.members(self._group)
        owned: Owned = {
            member: frozenset(
                (self._topics[at.topic], at.partition) for at in held if at.topic in self._topics
            )
            for member, held in members.items()
        }
        if owned != self._owned:
            self._owned = owned
            self._plan = plan_standbys(owned, self._counts, self._replicas)
            self._left_out.clear()
        if self._plan is not None and me in self._plan:
            await self._keep(self._plan[me], owned[me])
        await self._measure()
        if set(self._kept.values()) != set(self._followed.values()):
            self._begin_again()

    def _begin_again(self) -> None:
        """Have the reader made anew; what it brings until then is not taken."""
        self._moved.set()
        self._reading.cancel()

    async def _keep(self, wanted: Collection[Place], mine: Collection[Place]) -> None:
        before = set(self._kept)
        # What has become ours stays open: the manager is about to claim it.
        await self._give_up([place for place in before if place not in {*wanted, *mine}])
        await self._take_up(sorted(set(wanted) - self._kept.keys() - self._left_out))
        if self._kept.keys() != before:
            numbers = ", ".join(f"{number} of {count}" for count, number in sorted(self._kept))
            logger.info(
                "standby for %d partitions%s", len(self._kept), f": {numbers}" if numbers else ""
            )

    async def _take_up(self, places: Sequence[Place]) -> None:
        """Open environments, and decide from where their changelogs are read.

        The broker is asked before the lock is taken: a claim must not wait for it. What it says
        holds as long as nothing is claimed, for what is claimed may be written to.
        """
        claims = self._claims
        places = [place for place in places if place not in self._claimed]
        if not places:
            return
        wanted = [at for place in places for at in self._at(place)]
        admin = self._transport.admin
        infos = await admin.topics(sorted({at.topic for at in wanted}))
        marks = await admin.watermarks([at for at in wanted if at.topic in infos])
        for place in places:
            async with self._changing:
                if place not in self._claimed and claims == self._claims:
                    try:
                        await self._open(place, infos, marks)
                    except (StoreError, TopicError) as error:
                        self._leave_out(place, error)

    def _at(self, place: Place) -> dict[TopicPartition, str]:
        """Return the changelogs of a place, with the names of their tables."""
        count, number = place
        return {TopicPartition(t.changelog, number): t.name for t in self._tables[count]}

    async def _open(
        self,
        place: Place,
        infos: Mapping[str, TopicInfo],
        marks: Mapping[TopicPartition, Watermarks],
    ) -> None:
        """Open an environment, unless somebody holds it."""
        changelogs = self._at(place)
        for at in changelogs:
            if at not in marks:
                raise TopicError(f"the changelog {at.topic!r} does not exist")
        environment = await self._store.open_free(*place, list(changelogs.values()))
        if environment is None:
            return
        kept = self._kept[place] = Kept(place, environment, changelogs)
        for at in changelogs:
            kept.start(at, infos[at.topic].topic_id, marks[at], markers=self._markers)

    def _leave_out(self, place: Place, error: Exception) -> None:
        self._left_out.add(place)
        logger.warning(
            "no standby for partition %d of %d, until the group changes: %s",
            place[1], place[0], error,
        )  # fmt: skip

    async def _give_up(self, places: Collection[Place]) -> None:
        for place in places:
            async with self._changing:  # one by one, for a claim may wait
                kept = self._kept.pop(place, None)
                if kept is not None:
                    await _close(kept)

    async def _spare(self) -> None:
        """Close what an owner waits for, in another process on the same data directory."""
        while True:
            await trio.sleep(_SPARE_INTERVAL)
            asked = [place for place, kept in self._kept.items() if kept.environment.wanted]
            if asked:
                self._left_out.update(asked)
                await self._give_up(asked)

    async def _measure(self) -> None:
        """Compare how far the standbys are with what their changelogs hold."""
        at = {at: kept for kept in self._kept.values() for at in kept.changelogs}
        if not at:
            return
        before = {kept: (dict(kept.checked), dict(kept.positions)) for kept in at.values()}
        marks = await self._transport.admin.watermarks(at.keys())
        for kept, (checked, positions) in before.items():
            for place, position in checked.items():
                low = marks[place].low
                if low > position + self._markers:  # more may be gone than what was read
                    kept.rebuild(place, low, TRIMMED)
                    self._begin_again()
                else:  # lower by now where it was rebuilt meanwhile
                    kept.checked[place] = min(positions[place], kept.positions[place])
            kept.lag = sum(max(0, marks[a].high - kept.positions[a]) for a in kept.changelogs)
            if not kept.caught_up and all(kept.positions[a] >= kept.goal[a] for a in kept.goal):
                kept.caught_up = True
                logger.info(
                    "standby of %s has caught up: %d records in %.1f s",
                    kept, kept.records, trio.current_time() - kept.since,
                )  # fmt: skip

    # Following

    async def _follow(self) -> None:
        while True:
            self._moved = trio.Event()
            self._followed = {at: kept for kept in self._kept.values() for at in kept.changelogs}
            starts = {at: kept.positions[at] for at, kept in self._followed.items()}
            if not starts:
                await self._moved.wait()
                continue
            with trio.CancelScope() as self._reading:
                await self._read_on(starts)

    async def _read_on(self, starts: Mapping[TopicPartition, int]) -> None:
        try:
            async with self._transport.reader(starts) as reader:
                await self._read(reader)
        except BrokerUnavailable as error:
            self._say_away(error)
            await trio.sleep(_PAUSE)
        except TransportError as error:
            # Of which changelog, it does not say. All are looked at anew, and so is their topic.
            logger.warning("the standbys begin again: %s", error)
            await self._give_up(list(self._kept))
            await trio.sleep(_PAUSE)

    async def _read(self, reader: Reader) -> None:
        due = math.inf
        records = size = 0
        while True:
            batches: Sequence[Batch] = ()
            with trio.move_on_at(due):
                batches = await reader.fetch()
            if self._moved.is_set():
                return
            failures = self._take(batches, reader.positions())
            for kept, error in failures.items():
                await self._drop(kept, error)
            records += sum(map(len, batches))
            size += sum(batch.size_bytes for batch in batches)
            due = min(due, trio.current_time() + _WRITE_INTERVAL)
            full = records >= _WRITE_RECORDS or size >= _WRITE_BYTES
            if full or trio.current_time() >= due:
                due = math.inf
                records = size = 0
                await self._measure()  # what is stored has no hole, whoever claims it next
                for kept in dict.fromkeys(self._followed.values()):
                    await self._write(kept)

    def _take(
        self, batches: Sequence[Batch], positions: Mapping[TopicPartition, int]
    ) -> dict[Kept, Exception]:
        """Take what was read, without an await: records and positions stay together.

        Returns:
            Those whose records are of no use, with the reason.
        """
        failures: dict[Kept, Exception] = {}
        for batch in batches:
            at = TopicPartition(batch.topic, batch.partition)
            kept = self._followed[at]
            try:
                pairs = changelog_pairs(batch)
            except RecoveryError as error:
                failures[kept] = error
                continue
            if self._is_kept(kept):
                kept.prove(at, batch)
                kept.pending.setdefault(at, []).extend(pairs)
                kept.records += len(pairs)
        for at, position in positions.items():
            kept = self._followed[at]
            if kept in failures:  # what was read last is not taken, also where it is kept yet
                continue
            if at in kept.unproven and position > kept.positions[at]:
                kept.rebuild(at, 0, UNPROVEN)
                self._begin_again()
            else:
                kept.positions[at] = position
        return failures

    def _is_kept(self, kept: Kept) -> bool:
        """Tell whether it has been neither claimed nor given up since the reader was made."""
        return self._kept.get(kept.place) is kept

    async def _write(self, kept: Kept) -> None:
        try:
            async with kept.writing:
                if not self._is_kept(kept):
                    return
                writes = kept.writes()
                if writes:
                    # What was taken out must get there; the store itself bounds the time.
                    with trio.CancelScope(shield=True):
                        await kept.environment.write(writes)
        except StoreError as error:
            await self._drop(kept, error)

    async def _drop(self, kept: Kept, error: Exception) -> None:
        if self._is_kept(kept):
            self._leave_out(kept.place, error)
            await self._give_up([kept.place])


async def _close(kept: Kept) -> None:
    """Close an environment behind its last write; what was read and not written is read again."""
    with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        try:
            async with kept.writing:
                await kept.environment.close()
        except (StoreError, trio.BrokenResourceError) as error:
            logger.debug("the standby of %s could not be closed in order: %s", kept, error)
