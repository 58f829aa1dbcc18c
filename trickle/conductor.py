"""Conductor: turns the assignment into lanes, whose inboxes get each batch that they want.

The unit is a *scope*: one partition number of all topics with one partition count. With range
assignment, topics of equal count are assigned alike, so a scope's topics come and go together, its
tables are co-partitioned with them, and its shards share one store.

An assignment is opened in this order: where the partitions stand (ending what a dead worker left
open), all partitions fetched but paused, then, for each scope by itself: its shards recovered, its
lanes opened, its partitions resumed. It is closed in this order: lanes drain, each finishing the
event in hand, under one deadline; those that hang are cancelled and their events undone; what has
settled is committed and the partitions are marked as released; the shards stay warm for the case
that they come straight back.

What changes the lanes is serialised by one lock. A revocation that comes while an assignment is
still being opened cancels the opening first.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import trio

from trickle.agents import Agent
from trickle.commit import ATTEMPTS_AT_LAST, Committer
from trickle.consumer import Consumer
from trickle.draining import cancel, drain
from trickle.exceptions import (
    BrokerUnavailable,
    CommitFailed,
    OffsetOutOfRange,
    ProducerFenced,
    TrickleError,
)
from trickle.fencing import Fencing
from trickle.inboxes import Inboxes
from trickle.lanes import lanes_of
from trickle.patience import patiently
from trickle.positions import Positions
from trickle.producer import Producer
from trickle.scope import Scope, changelogs, whole_scopes
from trickle.sensors import Sensor
from trickle.service import Service
from trickle.streams import Lane, Pace
from trickle.tables import Table, TableManager
from trickle.transport.contract import CommittedOffset
from trickle.types import TopicPartition
from trickle.utils.frames import release_frames

__all__ = ["Conductor"]

logger = logging.getLogger("trickle.conductor")

_Positions: TypeAlias = Mapping[TopicPartition, Positions]
_Ends: TypeAlias = Mapping[TopicPartition, CommittedOffset]


class Conductor(Service):
    """Opens and closes lanes.

    Args:
        agents: those to run, internal ones included.
        counts: the partition count of each topic that is consumed.
        tables: the tables by the partition count that shards them.
        consumer: the group's member; its listener is this conductor.
        producer: replaced where another worker fenced it.
        committer: commits what the lanes settle.
        manager: opens and recovers shards.
        inboxes: where the lanes get their records from.
        sensor: told of assignments, events and failures.
        drain_timeout: seconds that lanes have to finish the event in hand.
        session_timeout: seconds within which a lost membership shows.
        make_pace: makes the pace of a lane.
    """

    name = "Conductor"

    def __init__(
        self,
        *,
        agents: Sequence[Agent[Any, Any]],
        counts: Mapping[str, int],
        tables: Mapping[int, Sequence[Table[Any, Any]]],
        consumer: Consumer,
        producer: Producer,
        committer: Committer,
        manager: TableManager,
        inboxes: Inboxes,
        sensor: Sensor,
        drain_timeout: float,
        session_timeout: float,
        make_pace: Callable[[], Pace] = Pace,
    ) -> None:
        super().__init__()
        self._agents = agents
        self._counts = counts
        self._tables = tables
        self._consumer = consumer
        self._producer = producer
        self._committer = committer
        self._manager = manager
        self._inboxes = inboxes
        self._sensor = sensor
        self._drain_timeout = drain_timeout
        self._make_pace = make_pace
        self._readers: dict[str, list[Agent[Any, Any]]] = defaultdict(list)
        for agent in agents:
            for topic in agent.topics:
                self._readers[topic.name].append(agent)
        self._changes = trio.Lock()
        self._opening = trio.CancelScope()
        self._assigned: frozenset[TopicPartition] | None = None
        self._epoch = 0
        self._fencing = Fencing(producer, session_timeout)
        self._lost = False  # the place in the group, since the last assignment
        self._scopes: dict[tuple[int, int], Scope] = {}
        self._condemned: dict[tuple[str, str, int, int], TrickleError] = {}
        self._failures: list[Exception] = []
        self._failed = trio.Event()
        self._closed = False
        self._patient_until = math.inf
        self._rebalancing = True  # the first one
        self._given_back: frozenset[TopicPartition] = frozenset()
        self.ready = trio.Event()
        self.undrained: list[str] = []
        committer.attach(self.generation_ended, self.condemn)
        committer.hold()

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        await self._failed.wait()
        try:
            await self.close()
        finally:  # also where somebody ends the Run meanwhile: nothing fails in silence
            if len(self._failures) > 1:
                raise ExceptionGroup("several agents failed", self._failures)
            raise self._failures[0]

    def _fail(self, error: Exception) -> None:
        self._failures.append(error)
        self._failed.set()

    # Rebalances (transport.contract.RebalanceListener)

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are ours now: open them, without keeping the driver waiting."""
        self._assigned = partitions
        self._committer.hold()  # also where nothing was held, and so nothing was revoked
        self._fencing.assigned()
        self._lost = False
        self._epoch += 1
        if not self._closed:
            self.nursery.start_soon(self._open, partitions, self._epoch)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """These are taken: drain, commit, release."""
        self._leave()
        async with self._changes:
            await self._close(partitions, clean=True)

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """These are gone: nothing of them can be committed any more."""
        logger.warning("this worker lost its place in the group: %d partitions", len(partitions))
        self._leave()
        self._fencing.stale = self._lost = True
        async with self._changes:
            await self._close(partitions, clean=False)

    def _leave(self) -> None:
        self._sensor.rebalance_started()
        self._rebalancing = True
        self._assigned = None
        self._epoch += 1
        self._opening.cancel()
        self._fencing.moved()

    # Opening

    async def _open(self, partitions: frozenset[TopicPartition], epoch: int) -> None:
        try:
            async with self._changes:
                if epoch != self._epoch:
                    return
                with trio.CancelScope() as self._opening:
                    await self._open_all(partitions)
                    self.ready.set()
        except Exception as error:  # noqa: BLE001 - it ends the conductor, which raises it
            self._fail(error)

    async def _open_later(
        self, partitions: frozenset[TopicPartition], epoch: int, seconds: float
    ) -> None:
        """Open the assignment once more, unless it changes meanwhile."""
        await trio.sleep(seconds)
        await self._open(partitions, epoch)

    def _patient(self) -> bool:
        """At the start a broker that is away is an error, and at the end once drains are over."""
        return self.ready.is_set() and trio.current_time() < self._patient_until

    async def _open_all(self, partitions: frozenset[TopicPartition]) -> None:
        started = trio.current_time()
        await self._committer.quiet()  # a client that commits is not ready, and well
        await self._fencing.renew(self._patient)
        await patiently(self._producer.ensure_ready, self._patient)
        await self._fencing.unless_fenced(self._learn, self._patient)
        scopes = whole_scopes(partitions, self._counts, self._tables)
        partitions = frozenset[TopicPartition]().union(*(scope.partitions for scope in scopes))
        positions, ends = await self._recall(partitions, changelogs(scopes, self._tables))
        await self._committer.outstanding.resolve(self._patient)
        self._committer.go_on()
        await self._manager.retain({(scope.count, scope.number) for scope in scopes})
        lowest = {partition: position.offset for partition, position in positions.items()}
        await self._consumer.client.assign(lowest, paused=partitions)
        self._sensor.assigned(partitions)
        # Shards are recovered all at once: their reads share one link, their writes one thread.
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(self._open_scope, scope, positions, ends)
        if self._rebalancing:  # else a failed commit has led here
            self._rebalancing = False
            self._sensor.rebalance_ended(trio.current_time() - started)
        if partitions:
            count, took = len(partitions), trio.current_time() - started
            some = "1 partition" if count == 1 else f"{count} partitions"
            logger.info("%s assigned, open after %.2f s", some, took)
        else:
            logger.info("no partitions assigned: there are more workers than partitions")

    async def _recall(
        self, partitions: frozenset[TopicPartition], beside: Collection[TopicPartition] = ()
    ) -> tuple[_Positions, _Ends]:
        """Find where partitions stand, with nothing left open before what is sent from now on."""
        found = await patiently(lambda: self._consumer.recall(partitions, beside), self._patient)
        if await patiently(self._committer.forgotten.end_suspects, self._patient):
            self._fencing.stale = True
            await self._fencing.renew(self._patient)
        return found

    async def _learn(self) -> None:
        await self._committer.outcomes.learn(self._producer.may_mark)

    async def _open_scope(self, scope: Scope, positions: _Positions, ends: _Ends) -> None:
        tables = self._tables.get(scope.count, ())
        if tables:
            scope.shards = await patiently(
                lambda: self._manager.open(scope.count, scope.number, tables, ends), self._patient
            )
            scope.changelogs = {table.changelog: shard for table, shard in scope.shards.items()}
        agents = {
            agent.name: agent
            for partition in sorted(scope.partitions)
            for agent in self._readers[partition.topic]
        }
        self._scopes[scope.count, scope.number] = scope
        self._committer.enroll(scope)
        for agent in agents.values():
            self._open_lane(scope, agent, positions)
        if any(shard.dirty for shard in scope.shards.values()):  # recovery has found what to mend
            self._committer.hurry()
        self._consumer.client.resume(scope.partitions)

    def _open_lane(self, scope: Scope, agent: Agent[Any, Any], positions: _Positions) -> None:
        mine = [at for at in scope.partitions if any(t.name == at.topic for t in agent.topics)]
        make = lanes_of(
            agent,
            {at: positions[at] for at in mine},
            {at: self._readers[at.topic] for at in mine},
            committer=self._consumer.committer_id,
            failed=self._lane_failed,
        )
        lane = make(
            agent.name,
            scope.number,
            shards=dict(scope.shards),
            positions={at.topic: positions[at].of(agent.name) for at in mine},
            codecs=agent.codecs,
            settlement=self._committer,
            refuse=partial(agent.refuse, sensor=self._sensor),
            pace=self._make_pace(),
            taken=self._inboxes.taken,
        )
        lane.condemned = {
            (topic, offset): error
            for (name, topic, partition, offset), error in self._condemned.items()
            if (name, partition) == (agent.name, scope.number)
        }
        scope.lanes.append(lane)
        for partition in mine:
            self._inboxes.open(partition, lane)
        self.nursery.start_soon(self._work, agent, lane, name=f"{agent.name}[{scope.number}]")

    async def _work(self, agent: Agent[Any, Any], lane: Lane) -> None:
        try:
            with lane.scope:
                await agent.work(lane, self._sensor)
        except Exception as error:  # noqa: BLE001 - it ends the conductor, which raises it
            self._lane_failed(lane, error)
        finally:
            # Whatever ended it: an event still in hand has not happened.
            lane.close()
            self._committer.forget(lane)
            lane.ended.set()

    def _lane_failed(self, lane: Lane, error: Exception) -> None:
        if lane.abandoned:  # it had no effect any more, and its events have run elsewhere
            logger.warning(
                "agent %s, partition %d, which resisted its cancellation, has failed since: %s",
                lane.agent, lane.partition, error,
            )  # fmt: skip
        else:
            self._fail(error)

    # Closing

    async def close(self) -> None:
        """Drain, commit and release all lanes: the last thing before the group is left.

        Whoever asks again waits until it is done, and has committed what timers sent meanwhile.
        """
        if self._closed:
            async with self._changes:
                if self._committer.broken is None:
                    await self._committer.commit(releasing=self._given_back)
                return
        self._closed = True
        self._patient_until = trio.current_time() + self._drain_timeout
        partitions = self._given_back = self._assigned or frozenset()
        self._leave()
        async with self._changes:
            await self._close(partitions, clean=True, last=True)

    async def _close(
        self, partitions: frozenset[TopicPartition], *, clean: bool, last: bool = False
    ) -> None:
        lanes = self.lanes()
        self._committer.hold()
        if clean:
            self.undrained += await drain(lanes, self._drain_timeout, self._committer.look_up)
        await cancel(lanes)
        for lane in lanes:
            self._committer.forget(lane)  # also one that resists, and does not say so itself
        failure: CommitFailed | None = None
        try:
            if clean:
                await self._committer.commit(releasing=partitions)
            else:  # one that is under way comes to its end before anything below it is replaced
                await self._committer.quiet()
        except CommitFailed as error:
            release_frames(error)
            failure = error
        self._leave_scopes(revert=failure is not None or not clean)
        self._sensor.revoked(partitions)
        late, at_stake = self._committer.uncommitted, self._committer.outstanding.at_stake
        if failure is not None or not clean:
            self._committer.resume()
        fenced = isinstance(failure, ProducerFenced)
        excused = fenced and self._fencing.excused()
        self._fencing.stale = self._fencing.stale or fenced  # until the next assignment is opened
        if last:
            twin = fenced and not excused
            if failure is not None and (twin or failure.refused is not None):
                raise failure
            happened = await self._settle_last(failure, partitions)
            excused = excused or self._lost
            failure = self._left(failure, late or (at_stake and not happened), excused=excused)
        if failure is not None:
            logger.warning(
                "the last commit before partitions were given back failed, their events since "
                "the commit before run again elsewhere: %s", failure,
            )  # fmt: skip

    def _leave_scopes(self, *, revert: bool) -> None:
        """Let the scopes go; ``revert`` takes their shards back to the last commit."""
        for scope in self._scopes.values():
            self._committer.dismiss(scope)
            if revert:
                for shard in scope.shards.values():
                    shard.revert()
            if scope.shards:
                self._manager.release(scope.count, scope.number)
        self._scopes.clear()
        self._inboxes.close()

    @staticmethod
    def _left(failure: CommitFailed | None, lost: bool, *, excused: bool) -> CommitFailed | None:
        """Return what is amiss at the end, where others have the events by now.

        Raises:
            CommitFailed: something was not committed, and nobody has heard of it.
        """
        if lost and failure is not None and not (excused or failure.superseded):
            raise failure
        return failure if lost else None

    async def _settle_last(
        self, failure: CommitFailed | None, partitions: frozenset[TopicPartition]
    ) -> bool:
        """Commit what timers have sent; tell whether the commit that failed has happened.

        Raises:
            CommitFailed: the broker does not answer, or refuses once more.
        """
        happened: bool | None = None
        again = failure
        lost = failure is not None and (failure.superseded or isinstance(failure, ProducerFenced))
        for _ in range(ATTEMPTS_AT_LAST):
            if lost or self._lost:  # whoever has them by now goes on from where they stand for him
                self._consumer.in_doubt(partitions)
                partitions = frozenset()
            try:
                if again is not None or self._committer.outstanding.owing:
                    await self._fencing.renew(self._patient)
                    await patiently(self._producer.ensure_ready, self._patient)
                    await self._recall(partitions)
                    found = await self._committer.outstanding.resolve(self._patient)
                    happened = found if happened is None else happened
                self._committer.go_on()
                await self._committer.commit(releasing=partitions)
            except BrokerUnavailable as error:
                raise failure or CommitFailed(str(error)) from error
            except CommitFailed as error:
                again = error
                self._fencing.stale = self._fencing.stale or isinstance(error, ProducerFenced)
                self._committer.resume()
            else:
                return happened or False
        assert again is not None
        raise failure or again

    # Failed commits

    async def generation_ended(self, error: CommitFailed) -> None:
        """A commit failed: back to the last one, for all lanes."""
        fenced = isinstance(error, ProducerFenced)
        if fenced and not self._committer.overdue() and not await self._fencing.lost_membership():
            raise ProducerFenced(
                f"{error}: another program commits with this worker's transactional id; give each "
                "its own data_dir, or its own app id"
            ) from error
        cleared_away = self._committer.broken is None
        if cleared_away:  # a rebalance came first
            return
        self._epoch += 1  # no other opening of this assignment that waits may follow
        epoch = self._epoch
        self._opening.cancel()  # what recovers goes on from there: the others need not wait for it
        async with self._changes:
            if self._committer.broken is not None:
                logger.warning("a commit failed, its events run again: %s", error)
                await cancel(self.lanes())
                # Whoever fenced us has the id until the next assignment is opened.
                self._fencing.stale = self._fencing.stale or fenced
                self._leave_scopes(revert=True)
                self._committer.resume()
        # Where the epoch is another one, whoever made it so opens what is assigned by then.
        if epoch == self._epoch and self._assigned is not None and not self._closed:
            pause = self._committer.pause
            self.nursery.start_soon(self._open_later, self._assigned, epoch, pause)

    async def out_of_range(self, error: OffsetOutOfRange) -> None:
        """A position is not held any more: drain, commit, and open the assignment again.

        What is committed is compared with what the topic holds then, and the policy for that
        decides.

        Raises:
            OffsetOutOfRange: the policy is to stop.
        """
        if not self._consumer.may_move:
            raise error
        async with self._changes:
            partitions = self._assigned
            self._epoch += 1
            epoch = self._epoch
            await self._close(frozenset(), clean=True)
        if partitions is not None and not self._closed:
            await self._open(partitions, epoch)

    def condemn(self, lane: Lane, topic: str, offset: int, error: TrickleError) -> None:
        """An event is known whose record the broker refuses: it gets its agent's policy."""
        assert lane.partition is not None
        event = (lane.agent, topic, lane.partition, offset)
        if event in self._condemned:  # what the policy sends is refused as well
            self._fail(error)
        self._condemned[event] = error

    def lanes(self) -> list[Lane]:
        """Return all lanes that are open."""
        return [lane for scope in self._scopes.values() for lane in scope.lanes]
