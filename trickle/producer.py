"""Producer: publishes what events and ticks have sent, and what is sent outside of them.

Two clients. Effects of settled events go through the first, which is transactional under
exactly-once; what is sent outside an event goes through the second, an idempotent one, and is
delivered at once.

An effect is produced soon after its event has settled, into the open transaction: in portions, as
that is cheaper, and at the latest when the lane lets other tasks run. From a commit's snapshot
until the next transaction has begun it is held instead: it would otherwise be committed without
its position. What is held is bounded, for lanes wait at the commit's bounds.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any

import trio
from msgspec import structs

from trickle.context import PORTION, Effect
from trickle.exceptions import (
    BrokerUnavailable,
    CommitFailed,
    ProducerFenced,
    RecordRefused,
    TransportError,
    UsageError,
)
from trickle.sensors import Sensor
from trickle.service import Service
from trickle.transport.contract import (
    CommittedOffset,
    Delivery,
    Mark,
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

    Attributes:
        topics: as above.
        committing: how many records of each topic the commit in hand has, without changelogs'.
        fresh: effects of events that have settled, to be told of by :meth:`published` where it was
            empty, and where it has come to a portion; always the same list.
        published_bytes: of keys and values, since the last commit's snapshot; of the newest few
            effects it does not know yet.
        refused: the record that the commit in hand will fail by.
        shaken: the broker may have forgotten the last commit; the next one, be it empty, tells.
        on_shaken: called then.
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
        self._options = structs.replace(options, doubt=self._doubt)
        self.topics = topics
        self._effects: ProducerClient | None = None
        self._plain: ProducerClient | None = None
        self._replace = trio.Event()
        self._replaced = trio.Event()
        self._begun = False  # the open transaction may hold something
        self._spoiled = False  # what it holds has not happened
        self._holding = False
        self.fresh: list[Effect] = []
        self._settled: deque[Effect] = deque()  # settled before the snapshot: this transaction's
        self._next: deque[Effect] = deque()  # settled after it: the next one's
        self._published = trio.Event()
        self.published_bytes = 0
        self._unflushed = trio.Event()
        self.refused: RecordRefused | None = None
        self.shaken = False
        self.on_shaken: Callable[[], None] | None = None
        self._sensor = sensor
        self._produced: Counter[str] = Counter()
        self.committing: Counter[str] = Counter()

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        async with self._transport.producer(ProducerOptions()) as plain:
            self._plain = plain
            try:
                await self.nursery.start(self._keep_effects, name="client for effects")
                self.nursery.start_soon(self._produce_published)
                task_status.started()
                await self._flush_plain(plain)
            finally:
                self._plain = None

    async def _keep_effects(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep the client for effects open, in a task of its own, until it is to be replaced."""
        self._replaced = trio.Event()
        try:
            async with self._transport.producer(self._options) as client:
                self._effects = client
                self._begun = self._spoiled = False
                task_status.started()
                await self._replace.wait()
        finally:
            self._effects = None
            self._replaced.set()

    def _doubt(self) -> None:
        self.shaken = True
        if self.on_shaken is not None:
            self.on_shaken()

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
        """Bring the client for effects back, where a commit left it without a clean transaction.

        Raises:
            BrokerUnavailable: no answer in time; it may be tried again.
        """
        client = self._effects
        if client is None:
            await self.renew()
        elif self._spoiled or not client.ready:
            await self._abort(client)

    async def may_mark(self, mark: Mark) -> bool:
        """Tell whether commits may bear a mark; while nothing is published.

        Raises:
            BrokerUnavailable: no answer in time; it may be tried again.
        """
        await self.ensure_ready()
        assert self._effects is not None
        try:
            return await self._effects.may_mark(mark)
        except ProducerFenced:
            raise
        except CommitFailed as error:
            raise BrokerUnavailable(f"whether commits may be marked: {error}") from error

    async def _abort(self, client: ProducerClient) -> None:
        self._begun = False
        await client.abort()
        self._spoiled = False
        self._published.set()  # what ticks have sent meanwhile

    async def _flush_plain(self, plain: ProducerClient) -> None:
        """See to it that what was sent without a wait is delivered, or fails aloud."""
        try:
            while True:
                await self._unflushed.wait()
                await self._deliver_plain(plain)
        except trio.Cancelled:
            if self._unflushed.is_set():
                await self._deliver_plain(plain)
            raise

    async def _deliver_plain(self, plain: ProducerClient) -> None:
        self._unflushed = trio.Event()
        with trio.CancelScope(shield=True):  # bounded by the client's own timeout
            await plain.commit({}, None)

    # Effects

    def published(self) -> None:
        """Produce the effects in :attr:`fresh`, soon, or hold them for the next transaction."""
        if len(self.fresh) < PORTION:
            self._published.set()
        else:
            self.catch_up()
            self._produce()

    def catch_up(self) -> None:
        """Weigh what was published, and put it where it belongs."""
        fresh = self.fresh
        self.published_bytes += sum(map(len, filter(None, map(_value_of, fresh))))
        self.published_bytes += sum(map(len, filter(None, map(_key_of, fresh))))
        self._produced.update(map(_topic_of, fresh))
        (self._next if self._holding else self._settled).extend(fresh)
        fresh.clear()

    def _produce(self) -> None:
        """Hand a portion of what has settled to the client."""
        client, settled = self._effects, self._settled
        if settled and client is not None and client.ready and not self._spoiled:
            self._begun = True
            try:
                client.produce_all(settled, PORTION)
            except RecordRefused as error:
                self._refuse(error)
                settled.popleft()

    def _refuse(self, error: RecordRefused) -> None:
        self.refused = error  # the commit that it belongs to will fail by it
        self._sensor.record_refused(error.topic, error)

    async def _produce_published(self) -> None:
        """Produce what lanes have published, as soon as they let other tasks run."""
        while True:
            await self._published.wait()
            self._published = trio.Event()
            self.catch_up()
            left = len(self._settled) + 1
            while 0 < len(self._settled) < left:  # until it is done, or the client's queue is full
                left = len(self._settled)
                self._produce()
                await trio.lowlevel.checkpoint()

    def hold(self) -> None:
        """From now on, which is a commit's snapshot, effects belong to the next transaction."""
        self._holding = True
        self.shaken = False
        self.published_bytes = 0
        self.committing, self._produced = self._produced, Counter()

    async def commit(
        self,
        changelog: Iterable[tuple[str, int, list[tuple[bytes, bytes | None]]]],
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None,
    ) -> Mapping[TopicPartition, int]:
        """Commit what was published before :meth:`hold`, changelog records, and offsets.

        Args:
            changelog: topic, partition, and (key, value) in chunks.
            offsets: empty under at-least-once.
            mark: by which it can be told, if need be.

        Returns:
            The position behind the last changelog record of each changelog partition.

        Raises:
            CommitFailed: see :class:`~trickle.transport.contract.ProducerClient`.
        """
        client = self._effects
        if client is None or not client.ready:
            raise CommitFailed("the producer is not open: it waits for the broker")
        if self._spoiled:
            await self._abort(client)
        self._begun = True
        await self._produce_rest(client)
        for topic, partition, pairs in changelog:
            if self.refused is not None:
                break
            records: deque[Effect] = deque(
                (topic, partition, key, value, CHANGELOG_HEADERS, None) for key, value in pairs
            )
            try:
                await self._hand_over(client, records, watch=True)
            except RecordRefused as error:
                self._refuse(error)
        fail_point("commit-produced")
        if self.refused is not None:
            refused, self.refused = self.refused, None
            await self._abort(client)
            raise CommitFailed(str(refused), refused=refused)
        self._begun = False
        ends = await client.commit(offsets, member, mark)
        for topic, count in self.committing.items():
            self._sensor.records_out(topic, count)
        return ends

    async def _produce_rest(self, client: ProducerClient) -> None:
        """Produce all that has settled before the snapshot."""
        while self._settled:
            try:
                await self._hand_over(client, self._settled)
            except RecordRefused as error:
                self._refuse(error)
                self._settled.popleft()

    @staticmethod
    async def _hand_over(
        client: ProducerClient | Delivery, records: deque[Effect], *, watch: bool = False
    ) -> None:
        """Hand over all records, letting others run in between, and waiting for room."""
        while records:
            before = len(records)
            client.produce_all(records, PORTION, watch=watch)
            if len(records) == before:
                await client.drained()
            else:
                await trio.lowlevel.checkpoint()

    def release(self) -> None:
        """The next transaction is open: produce what was held."""
        self.catch_up()
        self._holding = False
        self._settled.extend(self._next)
        self._next.clear()
        self._published.set()

    def reset(self) -> None:
        """The generation ended: what was published since the last commit has not happened."""
        # A commit that was cut short, by a client's queue that stays full, leaves its part there.
        unclean = self._spoiled or self._begun
        self._spoiled = unclean and self._options.transactional_id is not None
        self.fresh.clear()
        self._settled.clear()
        self._next.clear()
        self._produced.clear()
        self.published_bytes = 0
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
        if not trio.lowlevel.in_trio_run():
            raise UsageError(
                "send_nowait() outside an event belongs in Trio's thread: in another one, call "
                "trio.from_thread.run_sync(topic.send_nowait, value)"
            )
        if not self._plain_client().produce(*effect):
            raise trio.WouldBlock
        self._unflushed.set()
        self._sensor.records_out(effect[0], 1)

    async def send_all(self, effects: Iterable[Effect]) -> int:
        """Deliver many records, in order; return their number when all are delivered."""
        counts: Counter[str] = Counter()
        ahead = iter(effects)
        portion: deque[Effect] = deque()
        async with self._plain_client().delivery() as delivery:
            while True:
                try:
                    portion.extend(islice(ahead, PORTION))
                except Exception:  # of an item, not of a record: those before it are delivered
                    await self._hand_over(delivery, portion)
                    await delivery.delivered()
                    raise
                if not portion:
                    break
                counts.update(map(_topic_of, portion))
                await self._hand_over(delivery, portion)
            await delivery.delivered()
        for topic, count in counts.items():
            self._sensor.records_out(topic, count)
        return counts.total()

    def _plain_client(self) -> ProducerClient:
        if self._plain is None:
            raise TransportError("the producer is not open: the app is starting or stopping")
        return self._plain

    def bounds(self, topic: str) -> tuple[int | None, int | None]:
        """Return a topic's partition count, and the largest record that it takes, where known."""
        info = self.topics.get(topic)
        return (None, None) if info is None else (info.partitions, info.record_bytes_max)


_topic_of: Callable[[Effect], str] = itemgetter(0)
_key_of: Callable[[Effect], bytes | None] = itemgetter(2)
_value_of: Callable[[Effect], bytes | None] = itemgetter(3)

CHANGELOG_HEADERS = (("trickle-format", b"1"),)
"""The version of the format of changelog records: it travels beside them, never in their bytes."""
