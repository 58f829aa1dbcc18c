"""The transactional producer: records and offsets in one LMDB transaction.

It stages its records in memory; its commit is one transaction of the records, the offsets, the
check that the member holds the partitions, and the check that nobody fenced it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from trickle.context import Effect
from trickle.exceptions import (
    BrokerUnavailable,
    CommitFailed,
    ProducerFenced,
    RecordRefused,
    TransportError,
    UsageError,
)
from trickle.transport.contract import CommittedOffset, Delivery, Mark, Member, ProducerOptions
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import WriteTxn
from trickle.transport.embedded.group import Membership
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.stager import Stager, write_lane
from trickle.transport.embedded.staging import Staging
from trickle.transport.shared import one_by_one
from trickle.types import Headers, RecordMetadata, TopicPartition

__all__ = ["TransactionalProducer", "commit_offsets"]


class TransactionalProducer:
    """Records and offsets become visible by :meth:`commit` alone."""

    def __init__(self, hub: Hub, options: ProducerOptions, identity: str, timeout: float) -> None:
        self._hub = hub
        self._timeout = timeout
        self._stager = Stager(hub)
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
        self._stager.take()

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
        lane = self._stager.stage(topic, partition, key, value, headers, timestamp_ms)
        if watch:
            lane.watched = lane.count
        return True

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        one_by_one(self.produce, effects, limit, watch=watch)

    async def drained(self) -> None:
        """Return: there is always room."""
        await trio.lowlevel.checkpoint()

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Make records and offsets one durable whole; see the contract."""
        self._check()
        self._ready = False
        staged = self._stager.take()
        try:
            change = partial(self._apply, staged=staged, offsets=offsets, member=member, mark=mark)
            return await self._hub.writer.run(change, self._timeout, staged.size)
        except ProducerFenced:
            self._fenced = True
            raise
        except (BrokerUnavailable, CommitFailed):
            raise
        except RecordRefused as refused:
            self._stager.forget(refused)
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
        mark: Mark | None,
    ) -> dict[TopicPartition, int]:
        if log.epoch(txn, self._identity) != self._epoch:
            raise self._fenced_error()
        if offsets:
            if self._options.group is None:
                raise UsageError("commit(offsets) needs ProducerOptions(group=…)")
            commit_offsets(txn, self._options.group, offsets, member)
        if mark is not None:
            commit_offsets(txn, mark.group, {mark.at: mark.offset}, None)
        watched: dict[TopicPartition, int] = {}
        for lane in staged.lanes():
            first = write_lane(txn, lane)
            if lane.watched >= 0:
                watched[lane.place] = first + lane.watched
        return watched

    async def may_mark(self, mark: Mark) -> bool:
        """Tell so: whoever may write to the log may write all of it."""
        await trio.lowlevel.checkpoint()
        return True

    async def abort(self) -> None:
        """Drop what was produced since the last commit."""
        self._check()
        self._stager.take()
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

    def delivery(self) -> AbstractAsyncContextManager[Delivery]:
        """Refuse, likewise."""
        raise UsageError("delivery() is for a producer without a transactional id")


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
