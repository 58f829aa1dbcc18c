"""A member of a group, and a reader outside of any: the two ways to read the broker in memory.

A consumer's rebalances happen in a task of its own, inside its ``async with`` block:
:meth:`MemoryConsumer.attend` looks at the group whenever it is woken, and does its member's part,
one call of the listener at a time.

How the block is left decides how the group is left. Left in order, the assignment is revoked
first, as in a rebalance. Left by an error or by cancellation, that is what a crash is: no call is
made, nothing can be committed for the member any more, and the others get its partitions at once
(with :attr:`~.broker.MemoryBroker.linger`, when its session times out).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import trio

from trickle.exceptions import CommitFailed, TopicError
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    RebalanceListener,
)
from trickle.transport.memory.broker import MemoryBroker, Topic
from trickle.transport.memory.group import GroupMember, MemoryMember
from trickle.transport.shared import RecordBatch
from trickle.types import TopicPartition

__all__ = ["MemoryConsumer", "MemoryReader"]

_NONE: frozenset[TopicPartition] = frozenset()


class _Positions:
    """Where a client reads on, and the topics that it has told that it does."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._topics: dict[str, Topic] = {}
        self._woken = trio.Event()

    def wake(self) -> None:
        """Something that it reads has changed."""
        self._woken.set()

    def step_back(self, partition: TopicPartition, count: int) -> None:
        """Do nothing: the fault is that of a group's consumer, a reader gets nothing twice."""

    def _read_from(self, positions: Mapping[TopicPartition, int]) -> None:
        for topic in self._topics.values():
            topic.watchers.pop(self, None)
        # Sorted: callers hold partitions in sets, whose order differs from process to process.
        self._positions = dict(sorted(positions.items()))
        self._topics = {p.topic: self._broker.topic(p.topic) for p in self._positions}
        for topic in self._topics.values():
            topic.watchers[self] = None
        self.wake()

    def _take(self, skipped: Collection[TopicPartition], *, to_end: bool) -> list[RecordBatch]:
        """Take what there is now.

        Args:
            skipped: partitions to leave out.
            to_end: a position that passed the last record moves to the high watermark.
        """
        self._check_topics(self._topics.values())
        batches: list[RecordBatch] = []
        after: dict[TopicPartition, int] = {}  # counts if no partition fails
        for partition, position in self._positions.items():
            if partition in skipped:
                continue
            log = self._topics[partition.topic].logs[partition.partition]
            self._broker.check_position(log, position)
            batch = log.read(position) if position < log.high else None
            if batch is not None:
                batches.append(batch)
                position = batch.next_offset  # noqa: PLW2901
            if to_end and not log.count_from(position):
                position = log.high  # noqa: PLW2901
            after[partition] = position
        self._positions.update(after)
        if len(batches) > 1:
            self._broker.random.shuffle(batches)
        return batches

    def _check_topics(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            if topic.deleted:
                raise TopicError(
                    f"topic {topic.name!r} was deleted while it was read: "
                    "declare it again and start anew"
                )

    async def _wait(self) -> None:
        """Wait until something has changed since the last look."""
        await self._woken.wait()
        self._woken = trio.Event()


class MemoryReader(_Positions):
    """Reads given partitions, outside any group."""

    def __init__(self, broker: MemoryBroker, positions: Mapping[TopicPartition, int]) -> None:
        super().__init__(broker)
        self._read_from({p: max(at, broker.log(p).low) for p, at in positions.items()})

    async def fetch(self) -> Sequence[RecordBatch]:
        """Wait until there are records, or a position has moved."""
        await trio.sleep(self._broker.fetch_delay)
        while True:
            before = dict(self._positions)
            batches = self._take((), to_end=True)
            if batches or self._positions != before:
                return batches
            await self._wait()

    def positions(self) -> Mapping[TopicPartition, int]:
        """Return the position behind all that was returned, for each partition."""
        return dict(self._positions)

    def close(self) -> None:
        """Read no more."""
        self._read_from({})


class MemoryConsumer(_Positions):
    """A member of a group."""

    def __init__(
        self, broker: MemoryBroker, options: ConsumerOptions, listener: RebalanceListener
    ) -> None:
        super().__init__(broker)
        self._subscribed = [broker.topic(topic) for topic in options.topics]
        self._options = options
        self._listener = listener
        self._group = broker.group(options.group)
        self._paused: set[TopicPartition] = set()
        self._held: frozenset[TopicPartition] = _NONE  # what the listener was told last,
        self._told = False  # if it has not been revoked since
        self._leaving = False
        self._attention = trio.Event()
        self._member = self._join()

    def _join(self) -> GroupMember:
        options = self._options
        member = self._group.join(
            options.topics, options.rebalance_timeout, self._attend_soon, trio.current_time()
        )
        self._broker.notify()
        return member

    @property
    def member(self) -> MemoryMember:
        """The membership as of now."""
        member = self._member
        return MemoryMember(self._options.group, member.member_id, member.generation)

    @property
    def member_id(self) -> str:
        """The member's name in the group."""
        return self._member.member_id

    # Rebalances

    def _attend_soon(self) -> None:
        self._attention.set()

    async def attend(self) -> None:
        """Do the member's part in each rebalance, until the group is left."""
        group = self._group
        while True:
            member = self._member
            self._attention = trio.Event()
            if member.expelled:
                await self._lose()
                if self._leaving:
                    break
                self._member = self._join()
            elif self._leaving:
                await self._give_back()
                break
            elif group.preparing and not member.rejoined:
                await self._give_back()
                if not member.expelled:
                    group.rejoin(member)
                self._broker.notify()
            elif not group.preparing and not self._told:
                self._told = True
                self._held = member.assignment
                await self._listener.assigned(member.assignment)
            else:
                with trio.move_on_at(group.next_expiry()):
                    await self._attention.wait()
                group.expire(trio.current_time())
        group.leave(self._member, trio.current_time())
        self._broker.notify()

    async def _give_back(self) -> None:
        held = self._stop_reading()
        if held:
            await self._listener.revoked(held)

    async def _lose(self) -> None:
        held = self._stop_reading()
        if held:
            await self._listener.lost(held)

    def _stop_reading(self) -> frozenset[TopicPartition]:
        """Fetch nothing more, and return what the listener has to be told of."""
        self._read_from({})
        self._paused.clear()
        held = self._held if self._told else _NONE
        self._told = False
        return held

    def leave(self) -> None:
        """Leave in order: :meth:`attend` revokes what is held, and ends."""
        self._leaving = True
        self._attend_soon()

    def drop(self) -> None:
        """The client is gone; if it has not left in order, this is all that the group sees."""
        self._read_from({})
        now = trio.current_time()
        if self._broker.linger:
            self._member.dies_at = now + self._options.session_timeout
            for other in self._group.members.values():
                other.wake()  # somebody has to keep the time
        else:
            self._group.leave(self._member, now)
        self._broker.notify()

    # Records

    def step_back(self, partition: TopicPartition, count: int) -> None:
        """Read so many records of a partition again."""
        position = self._positions.get(partition)
        if position is not None:
            log = self._topics[partition.topic].logs[partition.partition]
            self._positions[partition] = log.step_back(position, count)
            self.wake()

    async def fetch(self) -> Sequence[RecordBatch]:
        """Wait for records of the partitions that are held and not paused."""
        await trio.sleep(self._broker.fetch_delay)
        while True:
            self._check_topics(self._subscribed)  # in a rebalance none of them is read
            batches = self._take(self._paused, to_end=False)
            if batches:
                return batches
            await self._wait()

    async def assign(
        self, positions: Mapping[TopicPartition, int], paused: Collection[TopicPartition] = ()
    ) -> None:
        """Fetch from these positions on."""
        await trio.lowlevel.checkpoint()
        held = self._held if self._told else _NONE
        self._paused = set(paused)
        self._read_from({p: position for p, position in positions.items() if p in held})

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again."""
        self._paused.difference_update(partitions)
        self.wake()

    def renew(self) -> None:
        """Join the group as a new member."""
        self._group.leave(self._member, trio.current_time())
        self._broker.notify()

    async def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit offsets alone."""
        broker, member = self._broker, self.member
        await trio.sleep(broker.commit_delay / 2)
        self._group.check(member, offsets)
        fault = broker.take_fault() if offsets else None
        if fault in {None, "applied"}:
            broker.commit_offsets(self._options.group, offsets)
        if fault is not None:
            raise CommitFailed(
                f"the commit for group {self._options.group!r} failed, as was asked for: {fault}"
            )
        if broker.commit_delay:
            await trio.sleep(broker.commit_delay / 2)
