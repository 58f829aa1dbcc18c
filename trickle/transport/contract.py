"""What every transport is: the seam between trickle and a broker.

Three drivers keep it, by the broker's URL: ``kafka://`` (:mod:`.kafka`), ``lmdb://``
(:mod:`.embedded`), ``memory://`` (:mod:`.memory`). ``tests/transport`` runs against all.

The rules, beyond the signatures:

* Everything here is called from Trio's thread. A driver with threads of its own bridges them.
* Every wait ends: by its result, by an error of :mod:`trickle.exceptions`, or by cancellation.
  A call that no broker answers raises :class:`BrokerUnavailable` within ``request_timeout``.
  What waits for *work* (``ConsumerClient.fetch``) is bounded by the caller's scopes alone.
* Offsets have gaps (compaction, transaction markers). A position is the offset of the next record
  that is wanted; ``next_offset`` of a batch is the position behind it.
* Readers and consumers see committed records only, unless told otherwise.
* A clean-up on the way out (``async with``) is bounded, also when the broker is dead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec

from trickle.context import Effect
from trickle.transport.batches import Batch
from trickle.types import Guarantee, Headers, Places, RecordMetadata, TopicPartition

__all__ = [
    "Admin",
    "CommittedOffset",
    "ConsumerClient",
    "ConsumerOptions",
    "Delivery",
    "Mark",
    "Member",
    "ProducerClient",
    "ProducerOptions",
    "Reader",
    "RebalanceListener",
    "TopicInfo",
    "TopicSpec",
    "Transport",
    "TransportOptions",
    "Watermarks",
]


class TransportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver may be told, beside its URL.

    Attributes:
        client: options of the client library by their own names (librdkafka's).
        request_timeout: seconds that a call may wait for the broker.
        inline: no thread at all, for virtual time: only ``memory://`` accepts it.
    """

    client: Mapping[str, str | int | float | bool] = {}
    request_timeout: float = 20.0
    inline: bool = False


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is to be declared; None leaves the broker's default.

    Attributes:
        retention_ms: -1 keeps for ever.
        compacting: the newest record of each key is kept.
        deleting: old records are deleted by ``retention_ms``; both may be true.
    """

    name: str
    partitions: int | None = None
    replicas: int | None = None
    retention_ms: int | None = None
    compacting: bool | None = None
    deleting: bool | None = None
    config: Mapping[str, str] = {}


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as it is, in a spec's words; what the driver cannot tell is None.

    Attributes:
        topic_id: changes when a topic of the same name is created again.
        record_bytes_max: the largest record that the topic takes (``max.message.bytes``).
    """

    name: str
    topic_id: str
    partitions: int
    record_bytes_max: int | None = None
    compacting: bool | None = None


class Watermarks(NamedTuple):
    """``low``: the first offset that is kept; ``high``: the offset that the next record gets."""

    low: int
    high: int


class CommittedOffset(NamedTuple):
    """A position of a group, with the metadata that it was committed with."""

    offset: int
    metadata: str = ""


class Mark(NamedTuple):
    """An offset by which a transaction can be told, once it is over.

    Attributes:
        group: the producer's own: nobody else commits for it.
        at: a partition that exists, whichever.
        offset: what no other transaction commits there.
    """

    group: str
    at: TopicPartition
    offset: CommittedOffset


class Member(Protocol):
    """Proof of membership in a group at one moment; opaque, and passed to a commit."""


class RebalanceListener(Protocol):
    """Told of every change of the assignment, in order, one call at a time.

    The driver awaits each call before it goes on with the rebalance; a call that raises ends the
    driver's consumer with that error. The whole assignment is revoked and given anew (eager).
    """

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are now ours, none of them fetched yet: ``ConsumerClient.assign`` starts them.

        Called after each rebalance, also where this member's share is empty.
        It must return soon (recovery goes on elsewhere): the driver may not poll meanwhile.
        """
        ...

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """These are taken when this returns; until then commits for them still succeed."""
        ...

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """These are gone already: no commit for them can succeed."""
        ...


class ConsumerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a group is joined.

    Attributes:
        session_timeout: seconds after which a silent member is given up.
        instance_id: the static membership's ``group.instance.id``.
        protocol: ``classic``, or ``consumer`` (KIP-848); other drivers ignore it.
        buffer_bytes: how much the driver may hold ready beyond what was fetched.
    """

    group: str
    topics: tuple[str, ...]
    session_timeout: float = 10.0
    rebalance_timeout: float = 60.0
    instance_id: str | None = None
    protocol: str = "classic"
    guarantee: Guarantee = "exactly_once"
    buffer_bytes: int = 32 << 20


class ConsumerClient(Protocol):
    """A member of a consumer group."""

    @property
    def member(self) -> Member:
        """The membership as of now; what a commit made now must be given."""
        ...

    @property
    def member_id(self) -> str:
        """The name in :meth:`Admin.members`; empty before it is known; it may change later."""
        ...

    async def fetch(self) -> Sequence[Batch]:
        """Wait for records, then return batches, at most one a partition, each in offset order.

        Batches of a partition that has been revoked meanwhile are never returned; one may begin
        below the assigned position (the receiver drops that part).

        Raises:
            OffsetOutOfRange: a position that the topic does not hold.
            TransportError: the consumer cannot go on.
        """
        ...

    async def assign(
        self, positions: Mapping[TopicPartition, int], paused: Collection[TopicPartition] = ()
    ) -> None:
        """Fetch from these positions on, as far as still assigned, and from no others."""
        ...

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching these soon, without a wait; a batch already on its way still arrives."""
        ...

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again, without a wait, from behind the last record that was returned."""
        ...

    def renew(self) -> None:
        """Join the group as a new member, without a wait: this one does not come back into it."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit offsets alone: the at-least-once way, and possible inside a rebalance call.

        Raises:
            CommitFailed: this member does not hold the partitions any more.
        """
        ...


class ProducerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which producer.

    Attributes:
        transactional_id: with one, records and offsets become visible by :meth:`commit` alone;
            without, the producer is idempotent and each record is sent on its own.
        group: the consumer group whose offsets are committed.
        doubt: called in Trio's thread where the broker may have forgotten the last commit.
    """

    group: str | None = None
    transactional_id: str | None = None
    transaction_timeout: float = 10.0
    doubt: Callable[[], None] | None = None


class Delivery(Protocol):
    """Records that one caller sends, outside any transaction: he hears of these alone."""

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over records: see :class:`ProducerClient`."""
        ...

    async def drained(self) -> None:
        """Wait until :meth:`produce_all` has room again."""
        ...

    async def delivered(self) -> None:
        """Wait until all of them are delivered.

        Raises:
            CommitFailed: some are not.
            BrokerUnavailable: no answer in time.
        """
        ...


class ProducerClient(Protocol):
    """Publishes records; with a transactional id, in transactions.

    A transactional producer always has a transaction open, except while :meth:`commit` or
    :meth:`abort` is under way: :attr:`ready` tells.
    """

    @property
    def ready(self) -> bool:
        """Whether :meth:`produce` may be called now."""
        ...

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
        """Hand over one record, without a wait.

        Args:
            partition: None leaves it to murmur2_random of the key.
            timestamp_ms: None takes the clock's.
            watch: the commit's result tells the position behind this record.

        Returns:
            False where the client's queue is full: nothing was taken, try again after
            :meth:`drained`.

        Raises:
            RecordRefused: the client will never take this record.
        """
        ...

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over records from the left, without a wait, and take out each that was taken.

        Some are left where there are more than ``limit``, or the client's queue is full.

        Args:
            effects: what :meth:`produce` is given, in its order.
            limit: how many to hand over at most.
            watch: the commit's result tells the position behind the last of them all.

        Raises:
            RecordRefused: the leftmost record is: see :meth:`produce`.
        """
        ...

    async def drained(self) -> None:
        """Wait until :meth:`produce` has room again."""
        ...

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Make all that was produced since the last commit, and the offsets, one durable whole.

        Without a transactional id: wait until all of it is delivered; ``offsets`` must be empty.

        Args:
            mark: committed with it, so that it can be told whether all of it was.

        Returns:
            For each partition with a watched record, the position behind the last one.

        Raises:
            ProducerFenced: a rival has the transactional id.
            CommitFailed: nothing took effect, or the outcome is to be read from the committed
                offsets; the producer has a new transaction open all the same.
        """
        ...

    async def may_mark(self, mark: Mark) -> bool:
        """Tell whether commits may bear such a mark; only where nothing has been produced yet.

        Raises:
            ProducerFenced: as for a commit.
            CommitFailed: it is not known; ask again.
        """
        ...

    async def abort(self) -> None:
        """Drop what was produced since the last commit, or is not delivered; then go on."""
        ...

    def delivery(self) -> AbstractAsyncContextManager[Delivery]:
        """Open a way for one caller's records, behind what was produced before.

        Not for a transactional producer.
        """
        ...

    async def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> RecordMetadata:
        """Deliver one record and tell where it went; not for a transactional producer.

        Raises:
            RecordRefused: it will never be taken.
            BrokerUnavailable: no answer in time.
        """
        ...


class Reader(Protocol):
    """Reads given partitions from given positions, outside any group."""

    async def fetch(self) -> Sequence[Batch]:
        """Wait until there are records, or a position has moved past what is no record.

        Returns:
            Batches, at most one a partition; none where only positions moved.
        """
        ...

    def positions(self) -> Mapping[TopicPartition, int]:
        """For each partition the position behind all that was returned, gaps included.

        It reaches the high watermark also where the partition ends in transaction markers or in
        aborted records, so that "read up to the end" needs no count of records.
        """
        ...


class Admin(Protocol):
    """Looks at topics and groups, and declares topics."""

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicInfo]:
        """Return the topics that exist, of those named, or all that are not internal."""
        ...

    async def declare(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that do not exist; those that do are left as they are.

        Raises:
            TopicError: the broker refused, with its reason and the topic's name.
        """
        ...

    async def delete(self, names: Collection[str]) -> None:
        """Delete topics; missing ones are no error."""
        ...

    async def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Delete the records below the given offsets."""
        ...

    async def watermarks(
        self, partitions: Collection[TopicPartition], *, stable: bool = False
    ) -> Mapping[TopicPartition, Watermarks]:
        """Return low and high watermarks; the high one counts records not yet committed too.

        Args:
            stable: instead of the high watermark return the last stable offset: no reader of
                committed records comes past it for now.
        """
        ...

    async def committed(
        self, group: str, partitions: Collection[TopicPartition], *, stable: bool = True
    ) -> Mapping[TopicPartition, CommittedOffset | None]:
        """Return the group's committed offsets; None where there is none.

        Args:
            stable: wait until no transaction that may change them is pending.
        """
        ...

    async def members(self, group: str) -> Mapping[str, frozenset[TopicPartition]]:
        """Return who is in a group, by member id, and what each of them is assigned.

        All members see the same where the group is stable. While it is rebalanced, assignments
        may be old, empty, or missing. A group without members may not exist: nobody is in it.
        """
        ...

    async def fence(
        self, transactional_id: str, *, groups: Collection[str] = (), places: Places = ()
    ) -> None:
        """End the transaction that a dead producer of this id may have left, and the producer.

        Args:
            groups: whose offsets may be pending, with ``places``.
            places: where the broker may have lost the end of that transaction: it is aborted there
                once more.
        """
        ...


class Transport(Protocol):
    """One broker, as this process sees it; closed by its opener, after all its clients."""

    @property
    def url(self) -> str:
        """The broker's URL, without secrets."""
        ...

    @property
    def admin(self) -> Admin: ...

    def consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[ConsumerClient]:
        """Join a group; leave it at the end. Rebalances are told while it is open.

        On the way out the assignment is revoked first (``listener.revoked``), unless it was lost.
        Left by an error or by cancellation, a driver may leave that call out (``memory://`` does:
        it is how a crash is played), so whoever must drain does it before.
        """
        ...

    def producer(self, options: ProducerOptions) -> AbstractAsyncContextManager[ProducerClient]:
        """Open a producer; what was not committed at the end is dropped."""
        ...

    def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AbstractAsyncContextManager[Reader]:
        """Read partitions from positions on; a position below the low watermark starts there."""
        ...
