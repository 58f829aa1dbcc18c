"""Producer: publishes what events and ticks have sent, and what is sent outside of them.

Two clients. Effects of settled events go through the first, which is transactional under
exactly-once; what is sent outside an event goes through the second, an idempotent one, and is
delivered at once.

An effect is produced as its event settles, into the open transaction. From a commit's snapshot
until the next transaction has begun it is held instead: it would otherwise be committed without
its position. What is held is bounded, for lanes wait at the commit's bounds.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

import trio

from trickle.context import Effect
from trickle.exceptions import CommitFailed, RecordRefused, TransportError
from trickle.sensors import Sensor
from trickle.service import Service
from trickle.transport.contract import (
    CommittedOffset,
    Member,
    ProducerClient,
    ProducerOptions,
    TopicInfo,
    Transport,
)
from trickle.types import RecordMetadata, TopicPartition
from trickle.utils.failpoints import fail_point

__all__ = ["Producer"]

logger = logging.getLogger("trickle.producer")


class Producer(Service):
    """Owns the clients that publish.

    Args:
        transport: the broker.
        options: of the client for effects; with a transactional id under exactly-once.
        topics: what is known of the topics; filled before the producer starts.
        sensor: told of what is sent.
    """

    name = "Producer"

    def __init__(
        self,
        transport: Transport,
        options: ProducerOptions,
        topics: Mapping[str, TopicInfo],
        sensor: Sensor,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._options = options
        self._topics = topics
        self._effects: ProducerClient | None = None
        self._plain: ProducerClient | None = None
        self._replace = trio.Event()
        self._replaced = trio.Event()
        self._holding = False
        self._backlog: deque[Effect] = deque()  # settled before the snapshot: this transaction's
        self._next: list[Effect] = []  # settled after it: the next one's
        self._unflushed = trio.Event()
        self.refused: RecordRefused | None = None
        self._sensor = sensor
        self._produced: Counter[str] = Counter()

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        async with self._transport.producer(ProducerOptions()) as plain:
            self._plain = plain
            await self.nursery.start(self._keep_effects, name="client for effects")
            task_status.started()
            await self._flush_plain(plain)

    async def _keep_effects(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep the client for effects open, in a task of its own, until it is to be replaced."""
        self._replaced = trio.Event()
        try:
            async with self._transport.producer(self._options) as client:
                self._effects = client
                task_status.started()
                await self._replace.wait()
        finally:
            self._effects = None
            self._replaced.set()

    async def renew(self) -> None:
        """Replace the client for effects, after another one took over its transactional id.

        Raises:
            BrokerUnavailable: no answer in time; it may be tried again.
        """
        self._replace.set()
        await self._replaced.wait()
        self._replace = trio.Event()
        await self.nursery.start(self._keep_effects, name="client for effects")

    async def ensure_ready(self) -> None:
        """Bring the client for effects back, where a commit left it without a transaction.

        Raises:
            BrokerUnavailable: no answer in time; it may be tried again.
        """
        client = self._effects
        if client is None:
            await self.renew()
        elif not client.ready:
            await client.abort()

    async def _flush_plain(self, plain: ProducerClient) -> None:
        """See to it that what was sent without a wait is delivered, or fails aloud."""
        flushing = False
        try:
            while True:
                await self._unflushed.wait()
                self._unflushed = trio.Event()
                flushing = True
                await plain.commit({}, None)
                flushing = False
        except trio.Cancelled:
            if flushing or self._unflushed.is_set():
                with trio.CancelScope(shield=True):
                    await plain.commit({}, None)  # bounded by the client's own timeout
            raise

    # Effects

    def publish(self, effects: Iterable[Effect]) -> None:
        """Produce effects of an event that settles, or hold them for the next transaction."""
        if self._holding:
            self._next.extend(effects)
        elif self._backlog:
            self._backlog.extend(effects)
        else:
            self._produce(deque(effects))

    def _produce(self, effects: deque[Effect]) -> None:
        client = self._effects
        while effects and client is not None and client.ready:
            try:
                if not client.produce(*effects[0]):
                    break
            except RecordRefused as error:
                self.refused = error  # the commit that it belongs to will fail by it
                self._sensor.record_refused(error.topic, error)
            self._produced[effects.popleft()[0]] += 1
        if effects is not self._backlog:
            self._backlog.extend(effects)

    def hold(self) -> None:
        """From now on, which is a commit's snapshot, effects belong to the next transaction."""
        self._holding = True

    async def commit(
        self,
        changelog: Iterable[tuple[str, int, list[tuple[bytes, bytes | None]]]],
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
    ) -> Mapping[TopicPartition, int]:
        """Commit what was published before :meth:`hold`, changelog records, and offsets.

        Args:
            changelog: topic, partition, and (key, value) in chunks.
            offsets: empty under at-least-once.

        Returns:
            The position behind the last changelog record of each changelog partition.

        Raises:
            CommitFailed: see :class:`~trickle.transport.contract.ProducerClient`.
        """
        client = self._effects
        if client is None or not client.ready:
            raise CommitFailed("the producer is not open: it waits for the broker")
        while self._backlog:
            self._produce(self._backlog)
            if self._backlog:
                await client.drained()
        for topic, partition, pairs in changelog:
            if self.refused is not None:
                break
            try:
                await self._produce_changelog(client, topic, partition, pairs)
            except RecordRefused as error:
                self.refused = error
            await trio.lowlevel.checkpoint()
        fail_point("commit-produced")
        if self.refused is not None:
            refused, self.refused = self.refused, None
            await client.abort()
            raise CommitFailed(str(refused), refused=refused)
        ends = await client.commit(offsets, member)
        self._report()
        return ends

    def _report(self) -> None:
        produced, self._produced = self._produced, Counter()
        for topic, count in produced.items():
            self._sensor.records_out(topic, count)

    @staticmethod
    async def _produce_changelog(
        client: ProducerClient, topic: str, partition: int, pairs: list[tuple[bytes, bytes | None]]
    ) -> None:
        taken = client.produce_many(topic, partition, pairs, CHANGELOG_HEADERS)
        while taken < len(pairs):
            await client.drained()
            taken += client.produce_many(topic, partition, pairs[taken:], CHANGELOG_HEADERS)

    def release(self) -> None:
        """The next transaction is open: produce what was held."""
        self._holding = False
        held, self._next = self._next, []
        self._backlog.extend(held)
        if self._backlog:
            self._produce(self._backlog)

    def reset(self) -> None:
        """The generation ended: what was published since the last commit has not happened."""
        self._backlog.clear()
        self._next.clear()
        self.refused = None
        self._holding = False

    # Outside events

    async def send(self, effect: Effect) -> RecordMetadata:
        """Deliver one record and tell where it went."""
        started = trio.current_time()
        metadata = await self._plain_client().send(*effect)
        self._sensor.sent(effect[0], trio.current_time() - started)
        self._sensor.records_out(effect[0], 1)
        return metadata

    def send_nowait(self, effect: Effect) -> None:
        """Hand one record over; its failure to be delivered is this service's.

        Raises:
            trio.WouldBlock: the client's queue is full.
        """
        if not self._plain_client().produce(*effect):
            raise trio.WouldBlock
        self._unflushed.set()
        self._sensor.records_out(effect[0], 1)

    async def send_all(self, effects: Iterable[Effect]) -> int:
        """Deliver many records, in order; return their number when all are delivered."""
        client = self._plain_client()
        count = 0
        for effect in effects:
            while not client.produce(*effect):
                await client.drained()
            count += 1
            self._produced[effect[0]] += 1
            if not count % 256:
                await trio.lowlevel.checkpoint()
        await client.commit({}, None)
        self._report()
        return count

    def _plain_client(self) -> ProducerClient:
        if self._plain is None:
            raise TransportError("the producer is not open: the app is starting or stopping")
        return self._plain

    def partitions(self, topic: str) -> int | None:
        """Return a topic's partition count where it is known."""
        info = self._topics.get(topic)
        return info.partitions if info is not None else None

    def record_bytes_max(self, topic: str) -> int | None:
        """Return the largest record that a topic takes where it is known."""
        info = self._topics.get(topic)
        return info.record_bytes_max if info is not None else None


CHANGELOG_HEADERS = (("trickle-format", b"1"),)
"""The version of the format of changelog records: it travels beside them, never in their bytes."""
