"""The two kinds of producers, seen from Trio; :mod:`.transaction` has the thread's side of one."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from confluent_kafka import KafkaError, Message, Producer

from trickle.exceptions import CommitFailed, UsageError
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.epochs import KafkaMember
from trickle.transport.kafka.errors import (
    REFUSED,
    failed,
    refused_record,
    said,
    unavailable,
)
from trickle.transport.kafka.fork import forked_error
from trickle.transport.kafka.handover import SERVE_PERIOD, Fates, KafkaProducer, not_ready
from trickle.transport.kafka.offsets import as_partitions
from trickle.transport.kafka.transaction import Content, Transactions, make_producer
from trickle.types import RecordMetadata
from trickle.utils.bridge import open_bridge

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncGenerator, Callable, Mapping

    from trickle.context import Effect
    from trickle.transport.contract import CommittedOffset, Delivery, Mark, Member, ProducerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.handover import Report
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import Headers, TopicPartition
    from trickle.utils.bridge import Bridge

__all__ = ["PlainProducer", "TransactionalProducer", "open_producer"]

T = TypeVar("T")

_CLOSE_TIMEOUT = 4.0
_PAUSE = 0.001
_LINGER_SHORT_MS = 5
_NOT_DELIVERED = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._PURGE_INFLIGHT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._PURGE_QUEUE,  # pyright: ignore[reportPrivateUsage]
    }
)


class TransactionalProducer(KafkaProducer):
    """A producer whose records and offsets become visible by :meth:`commit` alone."""

    def __init__(self, config: KafkaConfig, options: ProducerOptions, log: ClientLog) -> None:
        super().__init__(config, options, log)
        self._transactions = Transactions(config, options, log, self._doubt)
        self._ends_begun = 0

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Make all that was produced, and the offsets, one durable whole."""
        if offsets and member is None and self._options.group is None:
            raise UsageError(
                "committing offsets needs a group: pass member, or ProducerOptions.group"
            )
        metadata = member.metadata if isinstance(member, KafkaMember) else None
        fates, self._fates = self._fates, Fates()
        for error, message in fates.failures():
            if message is None:  # the client did not take it, and so would not miss it
                await self.abort()
                raise CommitFailed(
                    f"the transaction was aborted: the client did not take a record: {said(error)}"
                )
        content = self._content
        args = (content, as_partitions(offsets), metadata, mark)
        await self._end(self._transactions.commit, *args)
        return fates.ends

    async def may_mark(self, mark: Mark) -> bool:
        """Tell whether commits may bear such a mark."""
        return await self._end(self._transactions.may_mark, mark)

    async def abort(self) -> None:
        """Drop what was produced since the last commit, and open a new transaction."""
        self._fates = Fates()
        await self._end(self._transactions.abort, self._content)

    async def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> RecordMetadata:
        """Refuse: a record of a transaction has no fate of its own."""
        raise UsageError("a transactional producer cannot send(): produce() and commit()")

    def delivery(self) -> AbstractAsyncContextManager[Delivery]:
        """Refuse, likewise."""
        raise UsageError("a transactional producer has no delivery(): produce() and commit()")

    async def _end(self, step: Callable[..., T], *args: Any) -> T:
        """End the open transaction in the thread; the producer is not ready meanwhile."""
        if self._forked:
            raise forked_error()
        self._produce = not_ready
        self._content = Content()
        self._ends_begun += 1
        return await self._call(self._step, self._ends_begun, step, args)

    def _step(self, number: int, step: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            return step(*args)
        finally:
            # In a call of its own: the one who waits may have been cancelled.
            self._bridge.to_trio(self._renew, number)

    def _renew(self, number: int) -> None:
        # Not where the next end has begun, as the one that asked for this was cancelled.
        ready = number == self._ends_begun and not self._transactions.broken
        if ready and not self._forked:
            self._client = self._transactions.client
            self._produce = self._transactions.client.produce

    def _doubt(self) -> None:
        """Say, in the thread, that the broker may have forgotten the last commit."""
        if self._options.doubt is not None:
            self._bridge.to_trio(self._options.doubt)

    def _report(self, fates: Fates) -> Report | None:
        return None

    def _served(self) -> Producer | None:
        return None if self._transactions.broken else self._transactions.client

    async def open(self, bridge: Bridge) -> None:
        """Make the client, and end what an earlier one of its id left."""
        self._bridge = bridge
        await self._call(self._step, self._ends_begun, self._transactions.open, ())

    async def close(self) -> None:
        """Drop what was not committed."""
        self._produce = not_ready
        self._transactions.abandon()  # where it is still being opened, for nobody any more
        await self._call(self._transactions.close, _CLOSE_TIMEOUT)
        self._client = None


class PlainProducer(KafkaProducer):
    """An idempotent producer whose records are visible as soon as the broker has them."""

    def __init__(self, config: KafkaConfig, options: ProducerOptions, log: ClientLog) -> None:
        super().__init__(config, options, log)
        self._sending = 0
        self._heard = False  # Trio's thread has read reports lately
        self._lingers = False  # so long that nothing is to wait for it
        self._silent = False  # what was to be delivered last was not, in all its time

    async def commit(
        self,
        offsets: Mapping[TopicPartition, CommittedOffset],
        member: Member | None,
        mark: Mark | None = None,
    ) -> Mapping[TopicPartition, int]:
        """Wait until all that was produced is delivered.

        Not for what follows a record that was not: dropped in time, it does not come before it.
        """
        if offsets or mark is not None:
            raise UsageError("without a transactional id offsets are the consumer's to commit")
        fates, self._fates = self._fates, Fates()
        return await self.deliver(fates, all_of_it=False)

    async def deliver(
        self, fates: Fates, *, all_of_it: bool = True
    ) -> Mapping[TopicPartition, int]:
        """Wait until all that was produced is delivered, and tell of some of it.

        Args:
            fates: of what was produced.
            all_of_it: wait for the rest where some was not delivered.

        Raises:
            CommitFailed: some of it was not.
            BrokerUnavailable: no answer in time.
        """
        client = fates.client or self._check()
        timeout = self._config.request_timeout
        with trio.move_on_after(timeout):
            await trio.lowlevel.checkpoint()
            while client is self._client and not self._fatal and len(client):
                failed = () if all_of_it else fates.failures()
                if any(error.code() in _NOT_DELIVERED for error, _ in failed):
                    break
                await self._reports(client)
        if client is not self._check():
            raise CommitFailed(
                f"not all records were delivered to broker={self._config.url!r}, as far as is "
                "known: the client that had them failed meanwhile, and was made anew"
            )
        self._hear(client)  # what came while others kept the loop
        left, fatal = len(client), self._fatal
        failures = fates.failures()
        errors = [error for error, _ in failures]
        in_vain = bool(left) or any(error.code() in _NOT_DELIVERED for error in errors)
        await self._look_at(client, errors, in_vain=in_vain and not fates.some_delivered)
        for error, message in failures:
            if error.code() in REFUSED and message is not None:
                refused = refused_record(error, message.topic() or "", message.partition())
                raise CommitFailed(f"a record was not stored: {refused}", refused=refused)
        if errors:
            raise CommitFailed(
                f"not all records were delivered to broker={self._config.url!r}: {said(errors[0])}"
            )
        if left and fatal:
            raise CommitFailed(
                f"not all records were delivered to broker={self._config.url!r}: the client "
                "failed, and is made anew"
            )
        if left:
            raise unavailable(self._config.url, timeout, f"delivering {left} records", None)
        return fates.ends

    @asynccontextmanager
    async def delivery(self) -> AsyncGenerator[Delivery]:
        """Open a way for one caller's records."""
        yield _Delivery(self)

    async def may_mark(self, mark: Mark) -> bool:
        """Refuse: what has no transaction has nothing to mark."""
        raise UsageError("without a transactional id there is no commit that could be marked")

    async def abort(self) -> None:
        """Drop what has not been sent yet; what has been sent stays.

        The client goes with it: it purges some time, and what is handed over meanwhile too.
        """
        client = self._check()
        self._fates = Fates()
        await self._call(client.purge)
        await self._replace(client)

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
        client = self._check()
        arrived = trio.Event()
        answers: list[tuple[KafkaError | None, Message | None]] = []

        def report(error: KafkaError | None, message: Message | None) -> None:
            answers.append((error, message))
            self._bridge.to_trio(arrived.set)

        record = (topic, partition, key, value, headers, timestamp_ms)
        while not self.produce(*record, report=report):
            await self.drained()
        what = f"sending a record to topic {topic!r}"
        timeout = self._config.request_timeout
        self._sending += 1
        try:
            self._bridge.post(_nothing)  # wakes the thread, which now waits for reports instead
            with trio.move_on_after(timeout * 1.5):  # the client itself gives the record up before
                await arrived.wait()
        finally:
            self._sending -= 1
        if not answers:
            raise unavailable(self._config.url, timeout, what, None)
        error, message = answers[0]
        in_vain = error is not None and error.code() in _NOT_DELIVERED
        await self._look_at(client, [error] if error else [], in_vain=in_vain)
        if error is None:
            assert message is not None
            where, offset = cast("int", message.partition()), cast("int", message.offset())
            return RecordMetadata(topic, where, offset, message.timestamp()[1] / 1_000)
        if error.code() in REFUSED:
            raise refused_record(error, topic, partition)
        if error.code() in _NOT_DELIVERED:
            raise unavailable(self._config.url, timeout, what, error)
        raise failed(self._config.url, timeout, what, error)

    def hand_over(
        self, effects: deque[Effect], limit: int, fates: Fates, *, watch: bool = False
    ) -> None:
        """Hand over many records, and hear of earlier ones."""
        super().hand_over(effects, limit, fates, watch=watch)
        if self._client is not None:
            self._hear(self._client)

    def _hear(self, client: Producer) -> None:
        """Read the reports that are there in Trio's thread, and leave them to it for a while.

        The client asks for the interpreter's lock for each report. While Trio's thread works,
        another one gets it some hundred times a second.
        """
        self._heard = True
        self._read_reports(client, 0)

    async def _reports(self, client: Producer) -> None:
        self._hear(client)
        if self._lingers:
            await self._call(self._read_reports, client, SERVE_PERIOD, True)
        else:
            await trio.sleep(_PAUSE)

    def idle(self) -> None:
        """Do one round of the thread; where a task waits for a report, wait for that."""
        if self._heard:
            self._heard = False
            self._bridge.run_pending(_PAUSE if self._sending else SERVE_PERIOD)
        elif self._sending and self._client is not None:
            self._read_reports(self._client, SERVE_PERIOD)
        else:
            super().idle()

    async def _look_at(self, client: Producer, errors: list[KafkaError], *, in_vain: bool) -> None:
        """Replace a client that is of no more use.

        It says so itself, or it delivers nothing: one whose broker was killed and came back has
        been seen to send nothing any more, for minutes and without a word.

        Args:
            client: the one that was used.
            errors: of records that it has not delivered.
            in_vain: of several that it had all its time for, it has delivered none.
        """
        silent, self._silent = self._silent, in_vain
        if self._fatal or (silent and in_vain) or any(error.fatal() for error in errors):
            self._silent = False
            await self._replace(client)

    async def _replace(self, client: Producer) -> None:
        """Make a new client in place of one that is of no more use, unless another has."""
        if client is self._client:
            self._fatal = False
            with trio.CancelScope(shield=True):  # nothing that has to wait
                await self._call(self._make)
            bury(client)

    def _make(self) -> None:
        self._client = make_producer(self._config, self._options, self._log)
        self._lingers = self._config.linger_ms(self._options) > _LINGER_SHORT_MS
        self._produce = self._client.produce

    async def open(self, bridge: Bridge) -> None:
        """Make the client."""
        self._bridge = bridge
        await self._call(self._make)

    async def close(self) -> None:
        """Drop what was not delivered."""
        client, self._client = self._client, None
        self._produce = not_ready
        if client is not None:
            await self._call(client.purge)
            bury(client)


class _Delivery:
    """One caller's records, by a client that others use as well."""

    def __init__(self, producer: PlainProducer) -> None:
        self._producer = producer
        self._fates = Fates()

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        self._producer.hand_over(effects, limit, self._fates, watch=watch)

    async def drained(self) -> None:
        """Wait until there is room again."""
        await self._producer.drained()

    async def delivered(self) -> None:
        """Wait until all of them are delivered."""
        await self._producer.deliver(self._fates)


@asynccontextmanager
async def open_producer(
    config: KafkaConfig, options: ProducerOptions, log: ClientLog
) -> AsyncGenerator[TransactionalProducer | PlainProducer]:
    """Open a producer; what was not committed at the end is dropped."""
    kind = PlainProducer if options.transactional_id is None else TransactionalProducer
    producer = kind(config, options, log)
    async with open_bridge(
        "trickle-kafka-producer", idle=producer.idle, close_timeout=0.5
    ) as bridge:
        try:
            await producer.open(bridge)
            yield producer
        finally:
            if not producer.in_child:
                with trio.move_on_after(_CLOSE_TIMEOUT + 1, shield=True):
                    await producer.close()


def _nothing() -> None:
    return
