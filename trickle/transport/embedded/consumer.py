"""A member of a consumer group on the embedded log.

Two things go on: :meth:`LogConsumer.fetch` reads, in whoever calls it, and
:meth:`LogConsumer.watch` keeps the assignment, in a task of the consumer's own. When this member's
own assignment changes, and only then, the listener is told: the whole assignment is revoked, what
others should have is given back, and the new assignment is given. Nobody can take a partition by
force, so ``lost`` comes only where the group's files were deleted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from trickle.exceptions import ConfigurationError, OffsetOutOfRange, TopicError, TransportError
from trickle.transport.batches import Batch
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    Member,
    RebalanceListener,
)
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import WriteTxn
from trickle.transport.embedded.group import GroupFiles, Membership, Slot, slots_wanted
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.producer import commit_offsets
from trickle.transport.embedded.wake import POLL
from trickle.types import TopicPartition
from trickle.utils.names import check_name

__all__ = ["LogConsumer", "open_consumer"]

JOIN_GRACE = 1.0
"""Seconds that a newcomer waits for the others to give back its share before it begins with less.
"""

FETCH_BYTES_MAX = 8 << 20

LEAVE_TIMEOUT = 5.0


class LogConsumer:
    """One member; made by :func:`open_consumer`."""

    def __init__(
        self, hub: Hub, options: ConsumerOptions, listener: RebalanceListener, timeout: float
    ) -> None:
        self._hub = hub
        self._group = options.group
        self._options = options
        self._listener = listener
        self._timeout = timeout
        self._files = GroupFiles(hub.directory, options.group, options.topics)
        self._topics = {name: hub.topic(name) for name in options.topics}
        self._want = log.Want(hub.directory)
        self._balancing = trio.Lock()
        self._leaving = False
        self._announced = False
        self._grace_until = 0.0
        self._assignment: frozenset[TopicPartition] = frozenset()
        self._member = Membership(self._group, self._files, {}, ())
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._failure: Exception | None = None

    @property
    def member(self) -> Member:
        """The membership as of now."""
        return self._member

    @property
    def member_id(self) -> str:
        """The member's name in the group's directory."""
        return self._files.name

    # Fetching

    async def fetch(self) -> Sequence[Batch]:
        """Wait for records, then return batches, at most one a partition."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._failure is not None:
                raise self._failure
            version = self._hub.wake.version
            batches = self._read()  # no await between this and the return: a revocation is one
            if batches:
                return batches
            self._hub.environment.check_directory()
            await self._hub.wake.wait(version, POLL)

    def _read(self) -> list[Batch]:
        batches: list[Batch] = []
        size = 0
        with self._hub.environment.read() as txn:
            for place, position in list(self._positions.items()):
                if place in self._paused:
                    continue
                number = self._topics[place.topic].number
                head = log.head(txn, number, place.partition)
                if head is None:
                    raise self._gone(place.topic)
                if position == head.high:
                    continue
                if not head.low <= position <= head.high:
                    raise OffsetOutOfRange(
                        f"topic {place.topic!r}, partition {place.partition}: position {position} "
                        f"is out of range, records from {head.low} to {head.high} are kept; the "
                        f"position of group {self._group!r} must be set anew"
                    )
                found = log.read(
                    txn, number, place.topic, place.partition, position, head, self._want
                )
                # Who was served goes to the end of the line.
                del self._positions[place]
                self._positions[place] = found.position
                if found.batch is not None:
                    batches.append(found.batch)
                    size += found.batch.size_bytes
                    if size >= FETCH_BYTES_MAX:
                        break
        return batches

    def _gone(self, topic: str) -> TopicError:
        return TopicError(
            f"topic {topic!r} was deleted, or created again, while group {self._group!r} read it: "
            "start the worker again, when what its tables hold of the old topic has been reset"
        )

    async def assign(
        self, positions: Mapping[TopicPartition, int], paused: Collection[TopicPartition] = ()
    ) -> None:
        """Fetch from these positions on; replaces what was fetched before."""
        mine = self._assignment if not self._member.stale else frozenset[TopicPartition]()
        self._positions = {place: at for place, at in positions.items() if place in mine}
        self._paused = set(paused)
        self._hub.wake.bump()
        await trio.lowlevel.checkpoint()

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching these."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again."""
        self._paused.difference_update(partitions)
        self._hub.wake.bump()

    def renew(self) -> None:
        """Have :meth:`watch` look at once: files are the membership, and without them it ends."""
        self._hub.wake.bump()

    async def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit offsets alone."""
        member = self._member

        def change(txn: WriteTxn) -> None:
            commit_offsets(txn, self._group, offsets, member)

        await self._hub.writer.run(change, self._timeout)

    # Membership

    async def watch(self) -> None:
        """Keep the assignment up to date; an error ends the consumer by way of fetch."""
        try:
            self._grace_until = trio.current_time() + JOIN_GRACE
            while True:
                version = self._hub.wake.version
                stamp = self._files.stamp()
                async with self._balancing:
                    if self._leaving:  # what is given back would be taken again
                        return
                    await self._balance()
                due = trio.current_time() + POLL
                while (left := due - trio.current_time()) > 0 and stamp == self._files.stamp():
                    await self._hub.wake.wait(version, left)
                    version = self._hub.wake.version
        except Exception as error:  # noqa: BLE001 - fetch raises it
            self._failure = error
            if isinstance(error, OSError):  # no room, or too many open files
                self._failure = TransportError(
                    f"group {self._group!r}: its files under {self._hub.directory}/groups cannot "
                    f"be used: {error.strerror} ({error.filename})"
                )
                self._failure.__cause__ = error
            self._positions.clear()
            self._hub.wake.bump()

    async def _balance(self) -> None:
        """Compare what this member holds with its share, and change it where they differ."""
        if not self._files.intact():
            gone, self._assignment = self._assignment, frozenset()
            self._member.stale = True
            self._positions.clear()
            if gone:
                await self._listener.lost(gone)
            raise TransportError(
                f"group {self._group!r}: the lock files under {self._hub.directory}/groups were "
                "deleted while this member was in the group: start the workers again"
            )
        wishes = self._files.live()
        wanted = slots_wanted(wishes, self._counts(wishes), self._files.name)
        held = self._files.held
        losing = held - wanted
        gained = self._files.take(sorted(wanted - held))
        if self._announced:
            if gained or losing:
                await self._change(losing)
        elif wanted <= self._files.held or trio.current_time() >= self._grace_until:
            await self._change(losing)

    def _counts(self, wishes: Mapping[str, Collection[str]]) -> dict[str, int]:
        """Return the partition counts of all topics that members want; check that ours exist."""
        names = {name for topics in wishes.values() for name in topics}
        with self._hub.environment.read() as txn:
            found = {topic.name: topic for topic in log.topics(txn, names)}
        for name, topic in self._topics.items():
            now = found.get(name)
            if now is None or now.number != topic.number:
                raise self._gone(name)
        return {name: topic.partitions for name, topic in found.items()}

    async def _change(self, losing: frozenset[Slot]) -> None:
        await self._revoke()
        if losing:
            # On the writer's thread: no commit of this member is under way there meanwhile.
            await self._hub.writer.call(partial(self._files.release, losing))
            self._hub.announce()
        slots = {
            TopicPartition(name, slot.number): slot
            for slot in self._files.held
            for name, topic in self._topics.items()
            if topic.partitions == slot.of
        }
        self._member = Membership(self._group, self._files, slots, self._topics)
        self._assignment = frozenset(slots)
        self._announced = True
        await self._listener.assigned(self._assignment)

    async def _revoke(self) -> None:
        self._positions.clear()
        if self._assignment:
            try:
                await self._listener.revoked(self._assignment)
            except Exception:
                self._assignment = frozenset()
                raise
        self._member.stale = True
        self._assignment = frozenset()

    def join(self) -> None:
        """Enter the group's directory."""
        try:
            self._files.join()
        except OSError as error:
            raise TransportError(
                f"group {self._group!r} cannot be joined: {self._hub.directory}/groups cannot be "
                f"written ({error.strerror})"
            ) from error
        self._hub.announce()

    async def leave(self) -> None:
        """Revoke what is assigned, and give everything back; bounded."""
        self._leaving = True
        try:
            with trio.move_on_after(self._options.rebalance_timeout, shield=True):
                async with self._balancing:
                    await self._revoke()
        finally:
            self._member.stale = True
            with trio.move_on_after(LEAVE_TIMEOUT, shield=True) as scope:
                await self._hub.writer.call(self._files.leave)
            if scope.cancelled_caught:
                self._files.leave()
            self._hub.announce()


@asynccontextmanager
async def open_consumer(
    hub: Hub, options: ConsumerOptions, listener: RebalanceListener, timeout: float
) -> AsyncGenerator[LogConsumer, None]:
    """Join a group for the time of a block.

    Raises:
        TopicError: one of the topics does not exist.
        ConfigurationError: the group's name cannot be a directory.
    """
    check_name(options.group, what="a consumer group's name")
    if not options.topics:
        raise ConfigurationError("a consumer needs at least one topic: ConsumerOptions(topics=…)")
    consumer = LogConsumer(hub, options, listener, timeout)
    consumer.join()
    # An error of the block shall leave it as it is, not in a group: the watch's own come by fetch.
    failed: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consumer.watch)
        try:
            yield consumer
        except BaseException as error:  # noqa: BLE001 - raised below
            failed = error
        try:
            await consumer.leave()
        except Exception as error:  # noqa: BLE001 - raised below
            failed = failed or error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
