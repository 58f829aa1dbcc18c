"""The plain producer: no transactions, each record on its own, synced when it is told.

It stages too, and flushes on its own, as soon as something is staged and no flush is under way. So
a hundred sends at once, from a hundred tasks, take two synced commits; a loop that awaits each send
takes a hundred.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import outcome
import trio

from trickle.context import Effect
from trickle.exceptions import CommitFailed, RecordRefused, TransportError, UsageError
from trickle.transport.contract import CommittedOffset, Delivery, Mark, Member
from trickle.transport.embedded.environment import WriteTxn
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.stager import Stager, write_lane
from trickle.transport.embedded.staging import Staging
from trickle.transport.shared import one_by_one
from trickle.types import Headers, RecordMetadata, TopicPartition

__all__ = ["PlainProducer"]

UNSENT_BYTES_MAX = 32 << 20
"""How much a plain producer takes before the first of it is on disk."""


class _Sent(NamedTuple):
    """A record whose sender waits: its place in a flush."""

    place: TopicPartition
    ordinal: int
    timestamp_ms: int
    done: Callable[[outcome.Outcome[RecordMetadata]], None]


class PlainProducer:
    """Flushes on its own; :meth:`commit` waits until all is on disk."""

    def __init__(self, hub: Hub, timeout: float) -> None:
        self._hub = hub
        self._timeout = timeout
        self._stager = Stager(hub)
        self._sent: list[_Sent] = []
        self._flushing = False
        self._scheduled = False
        self._unsent = 0
        self._begun = self._ended = 0  # flushes
        self._flush_ended = trio.Event()
        self._error: BaseException | None = None
        self._watched: dict[TopicPartition, int] = {}
        self._closed = False
        self._token = trio.lowlevel.current_trio_token()

    def close(self) -> None:
        """Drop what no flush has taken yet."""
        self._closed = True
        self._stager.take()
        self._drop_sent("the producer was closed")

    @property
    def ready(self) -> bool:
        """Whether it is open."""
        return not self._closed

    def produce(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
        *,
        watch: bool = False,
    ) -> bool:
        """Stage a record, to be flushed soon; False where too much is on its way."""
        if self._unsent + self._stager.staged.size > UNSENT_BYTES_MAX:
            return False
        if self._closed:
            raise UsageError("produce() after the producer's end")
        lane = self._stager.stage(topic, partition, key, value, headers, timestamp_ms)
        if watch:
            lane.watched = lane.count
        self._schedule()
        return True

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        one_by_one(self.produce, effects, limit, watch=watch)

    def _schedule(self) -> None:
        # Not at once: what the task in hand still sends before it yields goes along.
        if not self._scheduled and not self._flushing:
            self._scheduled = True
            self._token.run_sync_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._flushing or self._closed or not self._stager.staged:
            return
        sent, self._sent = self._sent, []
        try:
            staged = self._stager.take()
            self._unsent = staged.size
            self._flushing = True
            self._begun += 1
            self._hub.writer.submit(
                partial(self._apply, staged=staged),
                self._timeout,
                partial(self._flushed, staged, sent),
                staged.size,
            )
        except (TransportError, trio.ClosedResourceError) as error:
            self._error = error
            self._flushed(Staging(), sent, outcome.Error(error))

    @staticmethod
    def _apply(
        txn: WriteTxn, *, staged: Staging
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, RecordRefused]]:
        firsts: dict[TopicPartition, int] = {}
        refused: dict[TopicPartition, RecordRefused] = {}
        for lane in staged.lanes():
            try:
                firsts[lane.place] = write_lane(txn, lane)
            except RecordRefused as error:  # one topic's end is not the others'
                refused[lane.place] = error
        return firsts, refused

    def _flushed(
        self,
        staged: Staging,
        sent: list[_Sent],
        result: outcome.Outcome[
            tuple[dict[TopicPartition, int], dict[TopicPartition, RecordRefused]]
        ],
    ) -> None:
        """Tell all whose records were in a flush; in Trio's thread."""
        self._flushing = False
        self._unsent = 0
        told = Counter(one.place for one in sent)
        if isinstance(result, outcome.Error):
            for one in sent:
                one.done(outcome.Error(result.error))  # an outcome serves once
            if any(lane.count > told[lane.place] for lane in staged.lanes()):
                self._error = result.error
        else:
            firsts, refused = result.unwrap()
            for lane in staged.lanes():
                if lane.place in refused:
                    self._stager.forget(refused[lane.place])
                    if lane.count > told[lane.place]:
                        self._error = refused[lane.place]
                elif lane.watched >= 0:
                    self._watched[lane.place] = firsts[lane.place] + lane.watched
            for one in sent:
                first = firsts.get(one.place)
                if first is None:
                    one.done(outcome.Error(refused[one.place]))
                    continue
                metadata = RecordMetadata(*one.place, first + one.ordinal, one.timestamp_ms / 1000)
                one.done(outcome.Value(metadata))
        self._ended += 1
        self._flush_ended.set()
        self._flush_ended = trio.Event()
        self._flush()

    async def drained(self) -> None:
        """Wait until there is room."""
        while self._unsent + self._stager.staged.size > UNSENT_BYTES_MAX:
            self._flush()
            await self._flush_ended.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Wait until all that was produced is on disk."""
        if offsets or mark is not None:
            raise UsageError("commit(offsets) needs a producer with a transactional id")
        self._flush()
        # What others send meanwhile is theirs to wait for.
        last = self._begun + bool(self._stager.staged)
        while self._ended < last and (self._flushing or self._stager.staged):
            await self._flush_ended.wait()
        await trio.lowlevel.checkpoint()
        error, self._error = self._error, None
        watched, self._watched = self._watched, {}
        if error is not None:
            refused = error if isinstance(error, RecordRefused) else None
            raise CommitFailed(f"not all was delivered: {error}", refused=refused) from error
        return watched

    @asynccontextmanager
    async def delivery(self) -> AsyncGenerator[Delivery]:
        """Open a way for one caller's records: a producer of its own, behind what was produced."""
        while self._flushing or self._stager.staged:
            self._flush()
            await self._flush_ended.wait()
        own = PlainProducer(self._hub, self._timeout)
        try:
            yield _Delivery(own)
        finally:
            own.close()

    async def may_mark(self, mark: Mark) -> bool:
        """Refuse: what has no transaction has nothing to mark."""
        raise UsageError("without a transactional id there is no commit that could be marked")

    async def abort(self) -> None:
        """Drop what no flush has taken yet."""
        self._stager.take()
        self._drop_sent("the producer's abort() dropped it")
        await trio.lowlevel.checkpoint()

    def _drop_sent(self, why: str) -> None:
        sent, self._sent = self._sent, []
        for one in sent:
            one.done(outcome.Error(TransportError(f"a record was not sent: {why}")))

    async def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> RecordMetadata:
        """Deliver one record; those of other tasks go along in the same commit."""
        if self._closed:
            raise UsageError("send() after the producer's end")
        await trio.lowlevel.checkpoint_if_cancelled()
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        lane = self._stager.stage(topic, partition, key, value, headers, timestamp_ms)
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def done(result: outcome.Outcome[RecordMetadata]) -> None:
            if task is not None:
                trio.lowlevel.reschedule(task, result)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal task
            task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sent.append(_Sent(lane.place, lane.count - 1, timestamp_ms, done))
        self._schedule()
        metadata: RecordMetadata = await trio.lowlevel.wait_task_rescheduled(abort)
        return metadata


class _Delivery:
    """One caller's records, by a producer of his own."""

    def __init__(self, producer: PlainProducer) -> None:
        self.produce_all = producer.produce_all
        self.drained = producer.drained
        self._commit = producer.commit

    async def delivered(self) -> None:
        """Wait until all of them are on disk."""
        await self._commit({}, None)
