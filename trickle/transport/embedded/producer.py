"""Producers of the embedded log.

A *transactional* one stages its records; its commit is one transaction of records, offsets and the
check that nobody fenced it. A *plain* one (no transactional id) stages too, and flushes on its own:
as soon as something is staged and no flush is under way. So a hundred sends at once, from a hundred
tasks, take two synced commits; a loop that awaits each send takes a hundred.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import outcome
import trio

from trickle.exceptions import (
    BrokerUnavailable,
    CommitFailed,
    ProducerFenced,
    RecordRefused,
    TopicError,
    TransportError,
    UsageError,
)
from trickle.transport.contract import CommittedOffset, Member, ProducerOptions
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import WriteTxn
from trickle.transport.embedded.format import Topic
from trickle.transport.embedded.group import Membership
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.staging import RECORD_OVERHEAD, Lane, Staging
from trickle.types import Headers, RecordMetadata, TopicPartition
from trickle.utils.murmur2 import partition_of

__all__ = ["PlainProducer", "TransactionalProducer", "commit_offsets"]

UNSENT_BYTES_MAX = 32 << 20
"""How much a plain producer takes before the first of it is on disk."""

_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1


class _Target:
    """A topic as a producer knows it, with a lane for each partition that it has written to."""

    __slots__ = ("lanes", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.lanes: list[Lane | None] = [None] * topic.partitions


class _Producer:
    """What both have in common: finding the lane, refusing what can never be stored."""

    def __init__(self, hub: Hub, timeout: float) -> None:
        self._hub = hub
        self._timeout = timeout
        self._staging = Staging()
        self._targets: dict[str, _Target] = {}

    def _target(self, name: str) -> _Target:
        try:
            target = _Target(self._hub.topic(name))
        except TopicError as error:
            raise RecordRefused(str(error), topic=name) from error
        self._targets[name] = target
        return target

    def _stage(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> Lane:
        target = self._targets.get(topic) or self._target(topic)
        lanes = target.lanes
        if partition is None:
            partition = partition_of(key, len(lanes))
        elif not 0 <= partition < len(lanes):
            raise RecordRefused(
                f"topic {topic!r} has no partition {partition}: its partitions are 0 to "
                f"{len(lanes) - 1}",
                topic=topic,
                partition=partition,
            )
        size = RECORD_OVERHEAD
        if key is not None:
            size += len(key)
        elif target.topic.compacting:
            raise RecordRefused(
                f"topic {topic!r} is compacting, and keeps the newest record of each key: a "
                "record without a key cannot be stored in it",
                topic=topic,
                partition=partition,
            )
        if value is not None:
            size += len(value)
        if headers:
            size += _headers_bytes(topic, headers)
        if size > target.topic.record_bytes_max:
            raise RecordRefused(
                f"topic {topic!r}: a record of {size} bytes is larger than its "
                f"max.message.bytes={target.topic.record_bytes_max}: raise it in the topic's "
                "config=, or send less",
                topic=topic,
                partition=partition,
            )
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        elif not _TIME_MIN <= timestamp_ms <= _TIME_MAX:
            raise RecordRefused(
                f"topic {topic!r}: the timestamp {timestamp_ms} does not fit into 64 bits",
                topic=topic,
                partition=partition,
            )
        lane = lanes[partition]
        if lane is None:
            lane = lanes[partition] = self._staging.lane(target.topic, partition)
        self._staging.add(lane, key, value, headers, timestamp_ms, size)
        return lane

    def _take(self) -> Staging:
        """Take what is staged and begin anew."""
        staged, self._staging = self._staging, Staging()
        for target in self._targets.values():
            target.lanes = [None] * len(target.lanes)
        staged.close_chunks()
        return staged

    def _forget(self, refused: RecordRefused) -> None:
        self._targets.pop(refused.topic, None)


def _headers_bytes(topic: str, headers: Headers) -> int:
    size = 0
    for name, value in headers:
        try:
            size += len(name.encode()) + len(value or b"")
        except UnicodeEncodeError:
            raise RecordRefused(
                f"topic {topic!r}: the header name {name!r} is no Unicode text", topic=topic
            ) from None
    return size


def _write(txn: WriteTxn, lane: Lane) -> int:
    """Append a lane; return the offset of its first record.

    Raises:
        RecordRefused: the topic is gone, or another one has its name.
    """
    first = None
    now = log.topic(txn, lane.topic.name)
    if now is not None and now.number == lane.topic.number:
        first = log.append(txn, now.number, lane.partition, lane.chunks)
    if first is None:
        raise RecordRefused(
            f"topic {lane.topic.name!r} was deleted or created again while records were on "
            "their way: send them again",
            topic=lane.topic.name,
            partition=lane.partition,
        )
    return first


class TransactionalProducer(_Producer):
    """Records and offsets become visible by :meth:`commit` alone."""

    def __init__(self, hub: Hub, options: ProducerOptions, identity: str, timeout: float) -> None:
        super().__init__(hub, timeout)
        self._options = options
        self._identity = identity
        self._epoch = 0
        self._ready = False
        self._fenced = False

    async def open(self) -> None:
        """Begin a new epoch: an older producer of the same id is fenced from now on."""
        self._epoch = await self._hub.writer.run(
            partial(log.new_epoch, transactional_id=self._identity), self._timeout
        )
        self._ready = True

    def close(self) -> None:
        """Drop what was not committed."""
        self._ready = False
        self._staging = Staging()

    @property
    def ready(self) -> bool:
        """Whether a transaction is open."""
        return self._ready

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
        """Stage a record; never full, for room would come by a commit alone (:mod:`.staging`)."""
        if not self._ready:
            raise UsageError("produce() while the producer commits, or after its end: see ready")
        lane = self._stage(topic, partition, key, value, headers, timestamp_ms)
        if watch:
            lane.watched = lane.count
        return True

    async def drained(self) -> None:
        """Return: there is always room."""
        await trio.lowlevel.checkpoint()

    async def commit(
        self, offsets: Mapping[TopicPartition, CommittedOffset], member: Member | None
    ) -> Mapping[TopicPartition, int]:
        """Make records and offsets one durable whole; see the contract."""
        self._check()
        self._ready = False
        staged = self._take()
        try:
            change = partial(self._apply, staged=staged, offsets=offsets, member=member)
            return await self._hub.writer.run(change, self._timeout, staged.size)
        except ProducerFenced:
            self._fenced = True
            raise
        except (BrokerUnavailable, CommitFailed):
            raise
        except RecordRefused as refused:
            self._forget(refused)
            raise CommitFailed(f"nothing was committed: {refused}", refused=refused) from refused
        except TransportError as error:
            raise CommitFailed(f"nothing was committed: {error}") from error
        finally:
            self._ready = not self._fenced

    def _check(self) -> None:
        if self._fenced:
            raise self._fenced_error()
        if not self._ready:
            raise UsageError("commit() while the producer commits, or after its end: see ready")

    def _fenced_error(self) -> ProducerFenced:
        return ProducerFenced(
            f"another producer has taken over transactional_id={self._identity!r}: nothing was "
            "committed, and this one is dead"
        )

    def _apply(
        self,
        txn: WriteTxn,
        *,
        staged: Staging,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
    ) -> dict[TopicPartition, int]:
        if log.epoch(txn, self._identity) != self._epoch:
            raise self._fenced_error()
        if offsets:
            if self._options.group is None:
                raise UsageError("commit(offsets) needs ProducerOptions(group=…)")
            commit_offsets(txn, self._options.group, offsets, member)
        watched: dict[TopicPartition, int] = {}
        for lane in staged.lanes():
            first = _write(txn, lane)
            if lane.watched >= 0:
                watched[lane.place] = first + lane.watched
        return watched

    async def abort(self) -> None:
        """Drop what was produced since the last commit."""
        self._check()
        self._take()
        await trio.lowlevel.checkpoint()

    async def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> RecordMetadata:
        """Refuse: only a plain producer sends."""
        raise UsageError("send() is for a producer without a transactional id")


def commit_offsets(
    txn: WriteTxn,
    group: str,
    offsets: Mapping[TopicPartition, CommittedOffset],
    member: Member | None,
) -> None:
    """Write a group's offsets, if the member holds the partitions.

    Raises:
        CommitFailed: it does not, or a topic is gone.
    """
    if isinstance(member, Membership):
        member.check(offsets)
    for place, value in offsets.items():
        found = log.topic(txn, place.topic)
        if found is None or not 0 <= place.partition < found.partitions:
            raise CommitFailed(
                f"no offset can be committed for topic {place.topic!r}, partition "
                f"{place.partition}: there is no such partition"
            )
        log.set_committed(txn, found.number, place.partition, group, value)


class _Sent(NamedTuple):
    """A record whose sender waits: its place in a flush."""

    place: TopicPartition
    ordinal: int
    timestamp_ms: int
    done: Callable[[outcome.Outcome[RecordMetadata]], None]


class PlainProducer(_Producer):
    """Flushes on its own; :meth:`commit` waits until all is on disk."""

    def __init__(self, hub: Hub, timeout: float) -> None:
        super().__init__(hub, timeout)
        self._sent: list[_Sent] = []
        self._flushing = False
        self._scheduled = False
        self._unsent = 0
        self._room = trio.Event()
        self._idle = trio.Event()
        self._error: BaseException | None = None
        self._watched: dict[TopicPartition, int] = {}
        self._closed = False
        self._token = trio.lowlevel.current_trio_token()

    def close(self) -> None:
        """Drop what no flush has taken yet."""
        self._closed = True
        self._staging = Staging()
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
        if self._unsent + self._staging.size > UNSENT_BYTES_MAX:
            return False
        if self._closed:
            raise UsageError("produce() after the producer's end")
        lane = self._stage(topic, partition, key, value, headers, timestamp_ms)
        if watch:
            lane.watched = lane.count
        self._schedule()
        return True

    def _schedule(self) -> None:
        # Not at once: what the task in hand still sends before it yields goes along.
        if not self._scheduled and not self._flushing:
            self._scheduled = True
            self._token.run_sync_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._flushing or self._closed or not self._staging:
            return
        sent, self._sent = self._sent, []
        try:
            staged = self._take()
            self._unsent = staged.size
            self._flushing = True
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
                firsts[lane.place] = _write(txn, lane)
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
                one.done(result)
            if any(lane.count > told[lane.place] for lane in staged.lanes()):
                self._error = result.error
        else:
            firsts, refused = result.unwrap()
            for lane in staged.lanes():
                if lane.place in refused:
                    self._forget(refused[lane.place])
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
        self._room.set()
        self._room = trio.Event()
        self._flush()
        if not self._flushing:
            self._idle.set()
            self._idle = trio.Event()

    async def drained(self) -> None:
        """Wait until there is room."""
        while self._unsent + self._staging.size > UNSENT_BYTES_MAX:
            self._flush()
            await self._room.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def commit(
        self, offsets: Mapping[TopicPartition, CommittedOffset], member: Member | None
    ) -> Mapping[TopicPartition, int]:
        """Wait until all that was produced is on disk."""
        if offsets:
            raise UsageError("commit(offsets) needs a producer with a transactional id")
        self._flush()
        while self._flushing or self._staging:
            await self._idle.wait()
        await trio.lowlevel.checkpoint()
        error, self._error = self._error, None
        watched, self._watched = self._watched, {}
        if error is not None:
            refused = error if isinstance(error, RecordRefused) else None
            raise CommitFailed(f"not all was delivered: {error}", refused=refused) from error
        return watched

    async def abort(self) -> None:
        """Drop what no flush has taken yet."""
        self._take()
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
        lane = self._stage(topic, partition, key, value, headers, timestamp_ms)
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
