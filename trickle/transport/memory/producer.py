"""A producer of the broker in memory: with a transactional id all or nothing, without one at once.

Without a transactional id a record is delivered as soon as the broker takes it: while it is handed
over, or, on a broker with a delay, by a task of the client's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import trio

from trickle.context import Effect
from trickle.exceptions import CommitFailed, RecordRefused, UsageError
from trickle.transport.contract import CommittedOffset, Delivery, Mark, Member, ProducerOptions
from trickle.transport.memory.broker import CommitFault, MemoryBroker, Staged
from trickle.transport.memory.group import Group, MemoryMember
from trickle.transport.shared import one_by_one
from trickle.types import Headers, RecordMetadata, TopicPartition

__all__ = ["MemoryProducer"]

QUEUE_RECORDS_MAX = 100_000  # librdkafka's queue.buffering.max.messages


class _Owner(Protocol):
    """Who is told of a record that is refused."""

    refused: RecordRefused | None


class MemoryProducer:
    """Publishes records."""

    def __init__(self, broker: MemoryBroker, options: ProducerOptions) -> None:
        self._broker = broker
        self._options = options
        self._id = options.transactional_id
        self._epoch = 0 if self._id is None else broker.open_epoch(self._id)
        self._staged: list[Staged] = []  # the open transaction, or what waits to be delivered
        self._busy = False
        self._watched: dict[TopicPartition, int] = {}
        self._owners: list[_Owner] = []  # of what waits to be delivered
        self.refused: RecordRefused | None = None
        self._queued = trio.Event()
        self._drained = trio.Event()

    @property
    def ready(self) -> bool:
        """Whether :meth:`produce` may be called now."""
        return not self._busy

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
        owner: _Owner | None = None,
    ) -> bool:
        """Hand over one record, without a wait; its owner is told where it is refused."""
        if self._busy:
            raise UsageError("a transaction is being committed: wait until the producer is ready")
        broker = self._broker
        if self._id is None and len(self._staged) >= QUEUE_RECORDS_MAX:
            return False
        record = broker.stage(topic, partition, key, value, headers, timestamp_ms, watch)
        self._staged.append(record)
        if self._id is None:
            self._owners.append(owner or self)
            if broker.commit_delay:
                self._queued.set()
            else:
                self._deliver()
        return True

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        one_by_one(self.produce, effects, limit, watch=watch)

    async def drained(self) -> None:
        """Wait until :meth:`produce` has room again."""
        await trio.lowlevel.checkpoint()
        if self._id is None:
            while len(self._staged) >= QUEUE_RECORDS_MAX:
                await self._drained.wait()

    # Without a transactional id

    async def run(self) -> None:
        """Deliver what waits, as long as the client is open."""
        while True:
            await self._queued.wait()
            self._queued = trio.Event()
            await trio.sleep(self._broker.commit_delay)
            self._deliver()

    def _deliver(self) -> None:
        records, self._staged = self._staged, []
        owners, self._owners = self._owners, []
        if self._broker.refusal(records) is not None:
            refusals = [self._broker.refusal([record]) for record in records]
            for refusal, owner in zip(refusals, owners, strict=True):
                owner.refused = owner.refused or refusal
            records = [r for r, refusal in zip(records, refusals, strict=True) if refusal is None]
        watched, _ = self._broker.append(records)
        self._watched.update(watched)
        self._drained.set()
        self._drained = trio.Event()

    @asynccontextmanager
    async def delivery(self) -> AsyncGenerator[Delivery]:
        """Open a way for one caller's records."""
        if self._id is not None:
            raise UsageError("a transactional producer has no delivery(): produce, then commit")
        yield _Delivery(self)

    async def flush(self, owner: _Owner) -> None:
        """Wait until all is delivered, and tell of what one owner has produced."""
        await trio.lowlevel.checkpoint()
        while self._staged:
            await self._drained.wait()
        refused, owner.refused = owner.refused, None
        if refused is not None:
            raise CommitFailed(f"not all records were delivered: {refused}", refused=refused)

    async def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> RecordMetadata:
        """Deliver one record and tell where it went."""
        if self._id is not None:
            raise UsageError("send is not for a transactional producer: produce, then commit")
        broker = self._broker
        record = broker.stage(topic, partition, key, value, headers, timestamp_ms, watch=False)
        await trio.sleep(broker.commit_delay)
        refusal = broker.refusal([record])
        if refusal is not None:
            raise refusal
        stamp = broker.now_ms() if timestamp_ms is None else timestamp_ms
        _, offset = broker.append([record._replace(timestamp_ms=stamp)])
        return RecordMetadata(topic, record.partition, offset, stamp / 1000)

    # With one

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Make all that was produced since the last commit, and the offsets, one whole."""
        if self._id is None:
            if offsets or mark is not None:
                raise UsageError("a producer without a transactional id cannot commit offsets")
            await self.flush(self)
            watched, self._watched = self._watched, {}
            return watched
        if self._busy:
            raise UsageError("a transaction is being committed already")
        group = self._group(offsets)
        records, self._staged = self._staged, []
        self._busy = True
        try:
            # A commit that is cancelled before it has taken effect never will.
            try:
                await self._pend(group, offsets)
                fault = self._check(group, offsets, member, records)
            except BaseException:
                self._broker.abort(records)
                raise
            watched, _ = self._broker.append(records, marked=True)
            if group is not None and offsets:
                self._broker.commit_offsets(group.name, offsets)
            if mark is not None:
                self._broker.commit_offsets(mark.group, {mark.at: mark.offset})
            if fault is not None:
                raise _failure(fault)
            if self._broker.commit_delay:
                await trio.sleep(self._broker.commit_delay / 2)
            return watched
        finally:
            self._busy = False

    def _group(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> Group | None:
        if self._options.group is not None:
            return self._broker.group(self._options.group)
        if offsets:
            raise UsageError("offsets are committed for a group: open the producer with group=")
        return None

    async def _pend(
        self, group: Group | None, offsets: Mapping[TopicPartition, CommittedOffset]
    ) -> None:
        """Let the first half of the delay pass, in which the offsets are not stable."""
        if group is None or not self._broker.commit_delay:
            await trio.sleep(self._broker.commit_delay / 2)
            return
        for partition in offsets:
            group.pending[partition] = group.pending.get(partition, 0) + 1
        try:
            await trio.sleep(self._broker.commit_delay / 2)
        finally:
            for partition in offsets:
                group.pending[partition] -= 1
                if not group.pending[partition]:
                    del group.pending[partition]
            self._broker.notify()

    def _check(
        self,
        group: Group | None,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        records: list[Staged],
    ) -> CommitFault | None:
        """See whether the transaction may take effect, and whether it is to fail all the same."""
        assert self._id is not None
        self._broker.check_available()
        self._broker.check_epoch(self._id, self._epoch)
        if group is not None:
            if member is not None and not isinstance(member, MemoryMember):
                raise UsageError(f"the member is of another transport: {member!r}")
            group.check(member, offsets)
        refusal = self._broker.refusal(records)
        if refusal is not None:
            raise CommitFailed(f"the transaction was aborted: {refusal}", refused=refusal)
        fault = self._broker.take_fault()
        if fault == "fenced":
            self._broker.open_epoch(self._id)
            self._broker.check_epoch(self._id, self._epoch)
        if fault in {"aborted", "lost"}:
            raise _failure(fault)
        return fault

    async def may_mark(self, mark: Mark) -> bool:
        """Tell so: all is allowed."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        if self._id is None:
            raise UsageError("without a transactional id there is no commit that could be marked")
        self._broker.check_epoch(self._id, self._epoch)
        return True

    async def abort(self) -> None:
        """Drop what was produced since the last commit, and open a new transaction.

        Without transactions: what is not delivered yet.
        """
        await trio.lowlevel.checkpoint()
        self._drop()
        self.refused = None
        self._drained.set()
        self._drained = trio.Event()
        if self._id is not None:
            self._broker.check_epoch(self._id, self._epoch)

    def _drop(self) -> None:
        records, self._staged, self._owners = self._staged, [], []
        if self._id is not None:
            self._broker.abort(records)

    def close(self) -> None:
        """The client is gone, and with it what was not committed."""
        self._drop()


class _Delivery:
    """One caller's records, by a client that others use as well."""

    def __init__(self, producer: MemoryProducer) -> None:
        self._producer = producer
        self.refused: RecordRefused | None = None

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        one_by_one(partial(self._producer.produce, owner=self), effects, limit, watch=watch)

    async def drained(self) -> None:
        """Wait until there is room again."""
        await self._producer.drained()

    async def delivered(self) -> None:
        """Wait until all of them are delivered."""
        await self._producer.flush(self)


def _failure(fault: CommitFault | None) -> CommitFailed:
    if fault == "aborted":
        return CommitFailed("the transaction was aborted: a test asked for it (fail_commits)")
    return CommitFailed(
        "nobody knows whether the transaction took effect, the committed offsets tell: "
        "a test asked for it (fail_commits)"
    )
