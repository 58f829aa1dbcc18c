"""Commit: all that has settled since the last one, made durable as one transaction.

The steps, as they stand below in :meth:`Committer.commit`:

1. Snapshot, without an await: each lane's settled positions, each dirty shard's settled changes.
   An event in hand is no obstacle: its changes and its effects are not there yet.
2. The changelog records go into the open transaction, one for each changed key, beside the
   effects that are there already.
3. Offsets and transaction are committed, in the driver's thread. Lanes keep on working; what they
   settle belongs to the next commit.
4. Only then the shards hand their changes, with the changelog's position, to their stores. A store
   never holds what the broker did not commit, so an unclean death needs no wipe.

Under at-least-once, step 3 is: wait until effects and changelog are delivered, then commit the
offsets, and with them where the changelogs end: what is behind that does not count.

A commit that fails ends the generation of every lane in it. Until the conductor has opened the
next generation the committer is *broken*: it refuses to commit, for what has settled since then
rests on what did not happen.

When the broker refused a record, the events run again in ever smaller commits (*narrow*), down to
one event, held by one lane at a time; then it is known whose record it was, and the event is
*condemned*: it gets its agent's policy instead of its agent (but see :mod:`trickle.refusals`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from trickle.cadence import Cadence, Size
from trickle.calls import Call, Calls
from trickle.consumer import Consumer
from trickle.context import Effect
from trickle.exceptions import BrokerUnavailable, CommitFailed, TrickleError
from trickle.forgotten import Forgotten
from trickle.outcomes import Outcomes
from trickle.outstanding import Outstanding
from trickle.producer import Producer
from trickle.refusals import Refusals
from trickle.sensors import Sensor
from trickle.service import Service
from trickle.snapshots import Enrolled, Snapshot, changed_shards, settled_positions
from trickle.streams import Lane
from trickle.streams.pace import CHUNK_MAX
from trickle.types import TopicPartition
from trickle.utils.failpoints import fail_point
from trickle.utils.frames import release_frames

__all__ = ["ATTEMPTS_AT_LAST", "Committer"]

logger = logging.getLogger("trickle.commit")

PRESSURE_CHUNKS = 16  # how often the caches are asked whether they must be relieved
ATTEMPTS_AT_LAST = 3  # of the commit at the end of a Run


class Committer(Service):
    """Decides when to commit, and does it.

    Attributes:
        count: commits that have succeeded.
        calls: what waits for a commit to be called.
        outstanding: what waits for a generation.
        outcomes: tells what became of a commit that got no answer.
        forgotten: ends what the broker has lost the end of.

    Args:
        producer: publishes.
        consumer: knows what may be committed.
        sensor: told of each commit.
        outcomes: see above.
        forgotten: likewise.
        transactional: exactly-once.
        interval: seconds from the first settled event to the commit that is due.
        interval_min: seconds between two commits that lanes ask for because they run dry.
        events_max: settled events at which a commit is due at once, and lanes wait.
        bytes_max: bytes of effects, likewise.
        transaction_timeout: seconds after which the broker ends a transaction by itself.
        now: the clock that records' timestamps are compared with, POSIX seconds.
    """

    name = "Committer"

    def __init__(
        self,
        producer: Producer,
        consumer: Consumer | None,
        sensor: Sensor,
        outcomes: Outcomes,
        forgotten: Forgotten,
        *,
        transactional: bool,
        interval: float,
        interval_min: float,
        events_max: int,
        bytes_max: int,
        transaction_timeout: float,
        now: Callable[[], float],
    ) -> None:
        super().__init__()
        self._producer = producer
        producer.on_shaken = self.hurry
        self.fresh = producer.fresh
        self._consumer = consumer
        self._sensor = sensor
        self._transactional = transactional
        self._bytes_max = bytes_max
        self._transaction_timeout = transaction_timeout
        self._now = now
        self._scopes: list[Enrolled] = []
        self._lock = trio.Lock()
        self.calls = Calls()
        # When the next commit is due
        self._cadence = Cadence(interval, interval_min)
        self._waiting_until = -math.inf
        self._signal = trio.Event()
        self.count = 0
        self._busy: set[Lane] = set()
        # What has settled since the last snapshot
        self._events = 0
        self._chunks = 0
        self._after: list[Call] = []
        self._ticks: list[Effect] = []
        self.outcomes = outcomes
        self.forgotten = forgotten
        self.outstanding = Outstanding(self.calls, outcomes, transactional=transactional)
        self._room = trio.Event()
        # After failures
        self.broken: CommitFailed | None = None
        self._refusals = Refusals(producer.topics, consumer.missing if consumer else ())
        self._size = Size(events_max, CHUNK_MAX)
        self.crowded = events_max == 1
        self._holder: Lane | None = None
        self._asking = 0  # lanes that wait to be the holder
        self._ended: Callable[[CommitFailed], Awaitable[None]] | None = None
        self._condemn: Callable[[Lane, str, int, TrickleError], None] | None = None

    def attach(
        self,
        ended: Callable[[CommitFailed], Awaitable[None]],
        condemn: Callable[[Lane, str, int, TrickleError], None] | None = None,
    ) -> None:
        """Tell who opens a new generation after a failure, and who remembers condemned events."""
        self._ended = ended
        self._condemn = condemn

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        self.nursery.start_soon(self.calls.make, name="calls after commits")
        task_status.started()
        while True:
            self._signal = trio.Event()
            waits = self.broken is not None or self.outstanding.waits
            due_at = math.inf if waits else self._cadence.due_at()
            if due_at > trio.current_time():
                self._waiting_until = due_at
                with trio.move_on_at(due_at):
                    await self._signal.wait()
                continue
            await self.calls.wait_made()
            try:
                await self.commit()
            except CommitFailed as error:
                release_frames(error)
                assert self._ended is not None
                await self._ended(error)

    @property
    def chunk_max(self) -> int:
        """How many records a lane may take in hand at once."""
        return self._size.chunk

    @property
    def pending(self) -> bool:
        """Whether something may have to be committed, or a failed commit is being cleared away."""
        waits = self.outstanding.ticks or self.outstanding.doubt or self.calls or self.broken
        return bool(waits) or self._lock.locked() or self._cadence.since != math.inf

    @property
    def ticks_waiting(self) -> int:
        """How many records of timers wait for a commit."""
        return len(self._ticks) + len(self.outstanding.ticks)

    def hurry(self) -> None:
        """Commit now, without waiting for any interval."""
        self._cadence.hurried = True
        self._pend()

    def _pend(self, *, wanted: bool = False) -> None:
        """Something may have to be committed."""
        self._cadence.begin(trio.current_time())
        self._cadence.wanted |= wanted
        self._look_again()

    def _look_again(self) -> None:
        """The next commit may be due sooner than was thought."""
        if self._cadence.due_at() < self._waiting_until:
            self._signal.set()

    # What lanes and ticks say (see streams.settlement)

    def published(self) -> None:
        self._producer.published()
        if self._producer.published_bytes >= self._bytes_max:
            self._crowd()

    def settled(self, lane: Lane, events: int) -> None:
        self._events += events
        self._sensor.events_settled(lane.agent, lane.partition, events)
        self._chunks += 1
        if not self._chunks % PRESSURE_CHUNKS and any(
            shard.pressure for shard in lane.own.values()
        ):
            self._crowd()
        if self._events >= self._size.limit:
            self._crowd()

    def handled(self, lane: Lane, timestamp_ms: int) -> None:
        if timestamp_ms >= 0:
            self._sensor.latency(lane.agent, max(0.0, self._now() - timestamp_ms / 1000))

    def after(self, calls: list[Call]) -> None:
        self._after.extend(calls)
        self._pend()

    def tick(self, effects: list[Effect]) -> None:
        """A tick has settled: its records join the next commit, also if that takes a second try."""
        if self._ticks_wait:
            self.outstanding.ticks.extend(effects)
            return
        self._ticks.extend(effects)
        self.fresh.extend(effects)
        self.published()
        self._cadence.idle = not self._busy
        self._pend()

    @property
    def _ticks_wait(self) -> bool:
        """Where one event has a commit to itself, ticks come after: it is known who is refused."""
        alone = self._holder is not None or (self._size.narrowed and self._asking > 0)
        return alone or self.outstanding.held

    def busy(self, lane: Lane) -> None:
        self._busy.add(lane)
        self._cadence.idle = False
        self._pend()

    def dry(self, lane: Lane) -> None:
        self.forget(lane)
        self._idle()

    def _idle(self) -> None:
        """Nothing is left to do, perhaps, but a commit that shows or sets off something.

        Offsets alone can wait.
        """
        self._cadence.idle = not self._busy and (self._transactional or bool(self._after))
        self._look_again()

    def forget(self, lane: Lane) -> None:
        """The lane has nothing in hand any more."""
        self._busy.discard(lane)
        if self._holder is lane:
            self._pass_on()

    async def room(self, lane: Lane) -> None:
        if self._size.limit > 1:
            many = self._events >= self._size.limit
            if many or self._producer.published_bytes >= self._bytes_max:
                self._pend(wanted=True)
                await self._room.wait()
            return
        if self._holder is lane:  # its event has settled: a commit of its own
            self._pend(wanted=True)
        while self._size.limit == 1 and (self._holder is not None or self._events or self._ticks):
            if lane.stopping:
                return
            self._asking += 1
            try:
                await self._room.wait()
            finally:
                self._asking -= 1
        if self._size.limit == 1:
            self._holder = lane

    def look_up(self) -> None:
        """Let those who wait for room see whether they are to end."""
        self._room.set()
        self._room = trio.Event()

    def _crowd(self) -> None:
        self.crowded = True
        self._pend(wanted=True)

    def _pass_on(self) -> None:
        self._holder = None
        if self.outstanding.ticks and not self._ticks_wait:
            ticks, self.outstanding.ticks = self.outstanding.ticks, []
            self.tick(ticks)
        self.look_up()

    # The commit

    def enroll(self, scope: Enrolled) -> None:
        """From now on commits include this scope."""
        self._scopes.append(scope)

    def dismiss(self, scope: Enrolled) -> None:
        """From now on commits leave this scope out."""
        if scope in self._scopes:
            self._scopes.remove(scope)

    async def commit(self, *, releasing: frozenset[TopicPartition] = frozenset()) -> None:
        """Make all that has settled durable.

        Args:
            releasing: partitions that are given back with this commit.

        Raises:
            CommitFailed: it has not happened; the generation of all lanes has ended.
        """
        async with self._lock:
            if self.broken is not None:
                raise self.broken
            if self.outstanding.doubt is None:  # else no lane is open, and one doubt is enough
                await self._commit(releasing)

    async def quiet(self) -> None:
        """Wait until no commit is under way."""
        async with self._lock:
            pass

    async def _commit(self, releasing: frozenset[TopicPartition]) -> None:
        started = trio.current_time()
        taken = self._snapshot(releasing)
        if taken.empty and not self._producer.shaken:
            self._cadence.committed(started, started)
            if self._size.limit > 1 or self._holder is None or not self._holder.hand:
                self._pass_on()  # else the holder's event is still to come
            return
        self._producer.hold()
        self._sensor.commit_started()
        fail_point("commit-snapshot")
        try:
            ends = await self._make_durable(taken)
        except (CommitFailed, BrokerUnavailable) as error:
            self._failed(taken, started, error)
            if self.broken is None or self.broken is error:  # nothing may be its own cause
                raise
            raise self.broken from error
        except BaseException as error:
            self.broken = CommitFailed(f"a commit was cut short: {error!r}")
            raise
        fail_point("commit-done")
        # 4. Nothing of this reaches a store before.
        if self._consumer is not None:
            self._consumer.committed(taken.plan)
        for partition, shard, changes in taken.dirty:
            self._sensor.table_changed(shard.table, len(changes))
            shard.committed(ends[partition])
            shard.told = not self._transactional
        self.outstanding.answered(taken)
        self._producer.release()
        ended = trio.current_time()
        self._cadence.committed(started, ended)
        self.count += 1
        self._cadence.failures = 0
        self._refusals.passed([*self._producer.committing, *(at.topic for at, *_ in taken.dirty)])
        if taken.events and self._size.widen():  # ticks alone prove nothing of events behind them
            self.crowded = False
        self._pass_on()
        self._sensor.committed(ended - started, taken.events, len(taken.plan))
        self.calls.add(taken.after)

    def _snapshot(self, releasing: frozenset[TopicPartition]) -> Snapshot:
        """Step 1: take what has settled; it has no await, so each event is in it or not."""
        self._producer.catch_up()
        settled, beyond = settled_positions(self._scopes)
        consumer = self._consumer
        taken = Snapshot(
            plan=consumer.plan(settled, releasing, beyond) if consumer is not None else {},
            dirty=changed_shards(self._scopes),
            events=self._events,
            size=self._producer.published_bytes,
            after=self._after,
            ticks=self._ticks,
            holder=self._holder,
            # Where it must be known for sure whether it has happened
            mark=self.outcomes.mark() if self._ticks or self._after else None,
        )
        self._events = 0
        self._after, self._ticks = [], []
        self.crowded = self._size.limit == 1
        self._cadence.taken(trio.current_time() if self._busy else math.inf)
        return taken

    async def _make_durable(self, taken: Snapshot) -> Mapping[TopicPartition, int]:
        """Steps 2 and 3: changelog, offsets, transaction; return where the changelogs end."""
        consumer = self._consumer
        changelog = (
            (partition.topic, partition.partition, pairs)
            for partition, _, changes in taken.dirty
            for pairs in changes.encoded()
        )
        offsets = taken.offsets()
        if self._transactional:
            offsets |= taken.ends_taken_back()
            member = consumer.member if consumer is not None and offsets else None
            return await self._producer.commit(changelog, offsets, member, taken.mark)
        ends = await self._producer.commit(changelog, {}, None, None)
        told = taken.ends(ends, consumer.topics if consumer is not None else ())
        if consumer is not None and (offsets or told):
            beside = consumer.beside({at.partition for at in told})
            await consumer.client.commit(beside | offsets | told)
        return {at: shard.end for at, shard, _ in taken.dirty}

    def _failed(
        self, taken: Snapshot, started: float, error: CommitFailed | BrokerUnavailable
    ) -> None:
        """Keep what must not be lost with the commit; from now on the committer is broken."""
        failure = error if isinstance(error, CommitFailed) else CommitFailed(str(error))
        if self._consumer is not None:
            self._consumer.in_doubt(taken.plan)
        self.hold()
        if failure.refused is None and (taken.plan or taken.mark):
            self.outstanding.doubt = taken
        else:
            self._ticks = taken.ticks + self._ticks
        self.broken = failure
        now = trio.current_time()
        self._sensor.commit_failed(now - started, failure)
        refused = self._refusals.find(failure, self._producer.committing)
        if refused is not None and (fault := self._refusals.fault(taken, refused, now)) is not None:
            raise fault
        if refused is None or self._refusals.blame_topic(refused):
            self._cadence.failures += 1
        else:  # the next commit is another one
            self._narrow(refused, taken.events, taken.holder)

    # Failures

    def overdue(self) -> bool:
        """Tell whether the broker may have ended the transaction by itself, for its age."""
        return self._cadence.since_last(trio.current_time()) >= self._transaction_timeout

    @property
    def pause(self) -> float:
        """Seconds to wait before the next generation: none at first, longer at each failure."""
        return self._cadence.pause

    def resume(self) -> None:
        """A new generation is about to open: nothing that settled before it counts any more."""
        self.hold()
        self.forgotten.suspect()
        self._events = 0
        self._busy.clear()
        self._after.clear()
        self._producer.reset()
        self.broken = None
        self.crowded = self._size.limit == 1
        self._cadence.taken(math.inf)
        self.outstanding.ticks, self._ticks = self._ticks + self.outstanding.ticks, []
        self._pass_on()

    @property
    def uncommitted(self) -> bool:
        """Whether something has settled that is in no commit."""
        return bool(self._events or self._after)

    def hold(self) -> None:
        """No generation is open from now on: what timers send waits for the next one.

        Else it would be produced by a client that is about to be replaced, or committed while
        positions are read.
        """
        self.outstanding.held = True

    def go_on(self) -> None:
        """The producer is ready, and the positions are known."""
        self.outstanding.held = False
        self._pass_on()
        self._look_again()

    def _narrow(self, refused: TrickleError, events: int, holder: Lane | None) -> None:
        """Blame the event that had the commit to itself, or make the next commits smaller."""
        if self._size.limit == 1 and holder is not None and self._condemn is not None:
            for topic, offset in holder.last:
                self._condemn(holder, topic, offset, refused)
            return
        self._size.narrow(events)
        logger.warning(
            "a record was refused (%s): its events run again in commits of %d, until it is known "
            "whose record it is", refused, self._size.limit,
        )  # fmt: skip
