"""A member of a consumer group, seen from Trio: :mod:`.owner` is its thread's side.

Calls of the listener are made one at a time by a task of the client's own nursery, while the
owner waits in its rebalance callback. An error of the listener, or of the thread, ends the
consumer: it is kept and raised by whatever is called next, most likely the ``fetch`` that waits.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.exceptions import CommitFailed
from trickle.transport.kafka.batch import KafkaBatch, merge
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.epochs import Epoch, Kind, Notice
from trickle.transport.kafka.errors import MEMBERSHIP, error_of, failed, said, unavailable
from trickle.transport.kafka.fork import forked_error, watch_forks
from trickle.transport.kafka.offsets import as_partitions
from trickle.transport.kafka.owner import Owner
from trickle.utils.bridge import open_bridge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence

    from trickle.transport.batches import Batch
    from trickle.transport.contract import (
        CommittedOffset,
        ConsumerOptions,
        Member,
        RebalanceListener,
    )
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import TopicPartition
    from trickle.utils.bridge import Bridge

__all__ = ["KafkaConsumer", "open_consumer"]

_CLOSE_TIMEOUT = 5.0  # seconds for leaving the group; a dead broker would hold us for 40
_RETIRE_TIMEOUT = 2.0
_FETCH_RECORDS = 6_000  # one fetch returns about so many where so many are ready


class KafkaConsumer:
    """See :class:`trickle.transport.contract.ConsumerClient`."""

    def __init__(
        self,
        config: KafkaConfig,
        options: ConsumerOptions,
        listener: RebalanceListener,
        log: ClientLog,
    ) -> None:
        self.owner = Owner(config, options, log, self._ring, self._notified, self._has_left)
        self._config = config
        self._options = options
        self._listener = listener
        self._bridge: Bridge
        self._epoch: Epoch | None = None
        self._generation = 0
        self._serving = 0  # the generation that the listener knows of
        self._member: Member = self.owner.member
        self._wake = trio.Event()
        self._failure: BaseException | None = None
        self._failure_raised = False
        self._told: frozenset[TopicPartition] = frozenset()  # what the listener has now
        self._waiting = 0
        self._served = trio.Event()
        self._left = trio.Event()
        self._attending = trio.CancelScope(shield=True)
        self._attended = trio.Event()
        # One notice at a time: the owner waits for each, but not for ever.
        self._notices_in, self._notices = trio.open_memory_channel[Notice](16)
        self._forked = False
        watch_forks(self)

    # The contract

    @property
    def member(self) -> Member:
        """The membership of the generation that the listener knows of.

        Where the group went on without a listener that takes too long, the thread's is a newer one,
        and what the listener still commits would be taken for that: others hold its partitions.
        """
        member = self.owner.member  # before the question: it is made new after what that asks for
        if self._serving > self.owner.past:
            self._member = member
        return self._member

    @property
    def member_id(self) -> str:
        """The name that the group gave this member; empty before it has."""
        return self.owner.member_id

    async def fetch(self) -> Sequence[Batch]:
        """Wait for records, then return batches, at most one a partition."""
        self._check()
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            batches = self._take()
            if batches:
                return batches
            self._wake = trio.Event()
            await self._wake.wait()

    async def assign(
        self, positions: Mapping[TopicPartition, int], paused: Collection[TopicPartition] = ()
    ) -> None:
        """Fetch from these positions on; replaces what was fetched before."""
        self._check()
        self._epoch = Epoch()
        generation = self._generation
        await self._call(
            "assigning partitions",
            self.owner.assign, generation, self._epoch, dict(positions), frozenset(paused),
        )  # fmt: skip

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Stop fetching these soon, without a wait."""
        self._check()
        self._bridge.post(self.owner.pause, frozenset(partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Fetch these again, without a wait."""
        self._check()
        self._bridge.post(self.owner.resume, frozenset(partitions))

    def renew(self) -> None:
        """Join the group with a new client, without a wait."""
        self._check()
        self._bridge.post(self.owner.renew)

    async def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit offsets alone; possible inside a rebalance call.

        Raises:
            CommitFailed: this member does not hold the partitions any more.
            BrokerUnavailable: no answer in time.
        """
        self._check()
        if not offsets:
            await trio.lowlevel.checkpoint()
            return
        await self._call(
            f"committing offsets of group {self._options.group!r}",
            self._commit, self._serving, as_partitions(offsets),
        )  # fmt: skip

    def _commit(self, serving: int, offsets: list[Partition]) -> None:
        """Commit in the owner's thread, unless the group went on without us."""
        if serving <= self.owner.past:
            raise CommitFailed(
                "committing offsets came too late: the group went on without this member",
                superseded=True,
            )
        self.owner.commit(offsets)

    # Within

    async def _call(self, what: str, fn: Callable[..., None], *args: Any) -> None:
        timeout = self._config.request_timeout
        with trio.move_on_after(timeout):
            try:
                await self._bridge.call(fn, *args)
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in MEMBERSHIP:
                    raise CommitFailed(
                        f"{what} failed, as the group has been rebalanced: {said(error)}",
                        superseded=True,
                    ) from raised
                raise failed(self._config.url, timeout, what, error) from raised
            except trio.BrokenResourceError:
                self._check()
                raise
            return
        raise unavailable(self._config.url, timeout, what, None)

    def _take(self) -> list[KafkaBatch]:
        """Take entries of the current epoch, until there are records enough for one fetch."""
        outbox = self.owner.outbox
        taken: list[KafkaBatch] | None = None
        merged: dict[tuple[str, int], KafkaBatch] = {}
        records = 0
        while outbox and records < _FETCH_RECORDS:
            entry = outbox[0]
            if entry.epoch is self._epoch and entry.error is not None:
                if taken is not None:
                    break
                outbox.popleft()
                raise entry.error
            outbox.popleft()
            if entry.epoch is not self._epoch:
                continue
            entry.epoch.taken_bytes += entry.size_bytes
            entry.epoch.taken_records += entry.records
            records += entry.records
            if taken is None:
                taken = entry.batches
            else:
                if not merged:
                    merge(merged, taken)
                merge(merged, entry.batches)
        epoch = self._epoch
        if epoch is not None and epoch.waiting and self.owner.has_half(epoch):
            epoch.waiting = False
            self._bridge.post(_nothing)  # wakes the owner
        if merged:
            return list(merged.values())
        return taken or []

    def _ring(self) -> None:
        self.owner.rung = False
        self._wake.set()

    def _notified(self, notice: Notice) -> None:
        """Take a notice as it arrives: from here on nothing of the old assignment comes out."""
        self._generation = notice.generation
        self._epoch = None
        self.owner.outbox.clear()
        self._waiting += 1
        self._notices_in.send_nowait(notice)

    async def attend(self) -> None:
        """Serve the owner until the group has been left: the one child of the client's nursery.

        A cancellation from outside goes through the block first, so this is shielded from it.
        """
        try:
            with self._attending:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_thread)
                    await self._serve_notices()
        finally:
            self._attended.set()

    async def _serve_notices(self) -> None:
        """Call the listener, one notice at a time."""
        async for notice in self._notices:
            self._serving = notice.generation
            self._member = self.member
            if self._failure is None:
                try:
                    await self._tell(notice.kind, notice.partitions)
                except Exception as error:  # noqa: BLE001 - kept, and raised by the next call
                    self.fail(error)
            notice.done = True
            self._waiting -= 1
            self._served.set()
            self._bridge.post(_nothing)  # wakes the owner

    async def _tell(self, kind: Kind, partitions: frozenset[TopicPartition]) -> None:
        if kind == "assigned":
            await self._listener.assigned(partitions)
            self._told = partitions
            return
        self._told = frozenset()
        if kind == "revoked":
            await self._listener.revoked(partitions)
        else:
            await self._listener.lost(partitions)

    async def _watch_thread(self) -> None:
        """Turn the end of the owner's thread by an error into this client's failure."""
        try:
            await self._bridge.wait_ended()
        except KafkaException as raised:
            what = f"the consumer of group {self._options.group!r}"
            error = failed(self._config.url, self._config.request_timeout, what, error_of(raised))
            error.__cause__ = raised
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - kept, and raised by the next call
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End this consumer with an error."""
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def _check(self) -> None:
        if self._forked:
            raise forked_error()
        if self._failure is not None:
            self._failure_raised = True
            raise self._failure

    def in_forked_child(self) -> list[object]:
        """See :mod:`.fork`."""
        self._forked = True
        return [self.owner.consumer]

    # The way in and out

    async def start(self, bridge: Bridge) -> None:
        """Make the client in its thread."""
        self._bridge = self.owner.bridge = bridge
        await bridge.call(self.owner.open)

    async def leave(self) -> None:
        """End the assignment and leave the group; bounded, whatever the broker does."""
        if self._forked:
            self._attending.cancel()
            return
        with trio.CancelScope(shield=True):
            alive = await self._retire()
            with trio.move_on_after(self._options.rebalance_timeout):
                while self._waiting:
                    self._served = trio.Event()
                    await self._served.wait()
                if self._told:
                    self._epoch = None
                    await self._tell("revoked" if alive else "lost", self._told)
            with trio.move_on_after(_CLOSE_TIMEOUT):
                if alive:
                    self._bridge.post(self.owner.leave)
                    await self._left.wait()
                else:
                    bury(self.owner.consumer)
            self._attending.cancel()
            await self._attended.wait()

    async def _retire(self) -> bool:
        """Stop the polls; tell whether the thread still serves us (or hangs in a dead broker)."""
        with trio.move_on_after(_RETIRE_TIMEOUT):
            try:
                await self._bridge.call(self.owner.retire)
            except trio.BrokenResourceError:
                return False
            return True
        return False

    def _has_left(self) -> None:
        self._left.set()

    def unraised(self) -> BaseException | None:
        """Return the failure that no call has raised yet."""
        return None if self._failure_raised else self._failure


@asynccontextmanager
async def open_consumer(
    config: KafkaConfig, options: ConsumerOptions, listener: RebalanceListener, log: ClientLog
) -> AsyncGenerator[KafkaConsumer]:
    """Join a group; leave it at the end. See :meth:`trickle.transport.contract.Transport.consumer`.

    The block's own error is carried past the nursery, which would wrap it into a group: no child
    ever raises, so the nursery itself has nothing to add.
    """
    client = KafkaConsumer(config, options, listener, log)
    carried: BaseException | None = None
    async with open_bridge(
        "trickle-kafka-consumer", idle=client.owner.idle, close_timeout=0.2
    ) as bridge:
        await client.start(bridge)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.attend)
            try:
                yield client
            except BaseException as error:  # noqa: BLE001 - raised again below
                carried = error
            await client.leave()
    carried = carried or client.unraised()
    if carried is not None:
        raise carried


def _nothing() -> None:
    return
