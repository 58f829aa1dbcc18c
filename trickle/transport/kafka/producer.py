"""The two kinds of producers, seen from Trio; :mod:`.transaction` has the thread's side of one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio
from confluent_kafka import KafkaError, Message, Producer

from trickle.exceptions import CommitFailed, TransportError, UsageError
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.consumer import as_partitions
from trickle.transport.kafka.errors import (
    REFUSED,
    failed,
    refused_record,
    said,
    unavailable,
)
from trickle.transport.kafka.fork import forked_error
from trickle.transport.kafka.handover import SERVE_PERIOD, KafkaProducer, not_ready
from trickle.transport.kafka.owner import KafkaMember
from trickle.transport.kafka.transaction import Content, Transactions, make_producer
from trickle.types import RecordMetadata
from trickle.utils.bridge import open_bridge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from trickle.transport.contract import CommittedOffset, Member, ProducerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import Headers, TopicPartition
    from trickle.utils.bridge import Bridge

__all__ = ["PlainProducer", "TransactionalProducer", "open_producer"]

_CLOSE_TIMEOUT = 4.0
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
        self._transactions = Transactions(config, options, log)

    async def commit(
        self, offsets: Mapping[TopicPartition, CommittedOffset], member: Member | None
    ) -> Mapping[TopicPartition, int]:
        """Make all that was produced, and the offsets, one durable whole."""
        if offsets and member is None and self._options.group is None:
            raise UsageError(
                "committing offsets needs a group: pass member, or ProducerOptions.group"
            )
        metadata = member.metadata if isinstance(member, KafkaMember) else None
        content = self._content
        await self._end(self._transactions.commit, content, as_partitions(offsets), metadata)
        return self._take_ends()

    async def abort(self) -> None:
        """Drop what was produced since the last commit, and open a new transaction."""
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

    async def _end(self, step: Callable[..., None], *args: Any) -> None:
        """End the open transaction in the thread; the producer is not ready meanwhile."""
        if self._forked:
            raise forked_error()
        self._produce = not_ready
        self._content = Content()
        self._doomed = None
        try:
            await self._call(self._step, step, args)
        except TransportError:
            self._ends = {}
            raise

    def _step(self, step: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            step(*args)
        finally:
            # In a call of its own: the one who waits may have been cancelled.
            self._bridge.to_trio(self._renew)

    def _renew(self) -> None:
        if not self._transactions.broken and not self._forked:
            self._client = self._transactions.client
            self._produce = self._transactions.client.produce

    def _served(self) -> Producer | None:
        return None if self._transactions.broken else self._transactions.client

    async def open(self, bridge: Bridge) -> None:
        """Make the client, and end what an earlier one of its id left."""
        self._bridge = bridge
        await self._call(self._step, self._transactions.open, ())

    async def close(self) -> None:
        """Drop what was not committed."""
        self._produce = not_ready
        await self._call(self._transactions.close, _CLOSE_TIMEOUT)
        self._client = None


class PlainProducer(KafkaProducer):
    """An idempotent producer whose records are visible as soon as the broker has them."""

    def __init__(self, config: KafkaConfig, options: ProducerOptions, log: ClientLog) -> None:
        super().__init__(config, options, log)
        self._errors: dict[KafkaError | None, Message] = {}
        self._unwatched = self._errors.setdefault
        self._sending = 0

    async def commit(
        self, offsets: Mapping[TopicPartition, CommittedOffset], member: Member | None
    ) -> Mapping[TopicPartition, int]:
        """Wait until all that was produced is delivered."""
        client = self._check()
        if offsets:
            raise UsageError("without a transactional id offsets are the consumer's to commit")
        timeout = self._config.request_timeout
        left = await self._call(self._flush, client, timeout)
        ends = self._take_ends()
        errors = [(error, message) for error, message in self._errors.items() if error is not None]
        self._errors.clear()
        doomed, self._doomed = self._doomed, None
        if doomed is not None or any(error.fatal() for error, _ in errors):
            self._forget()
            await self._call(self._make)
        for error, message in errors:
            if error.code() in REFUSED:
                refused = refused_record(error, message.topic() or "", message.partition())
                raise CommitFailed(f"a record was not stored: {refused}", refused=refused)
        if errors or doomed is not None:
            error = doomed or errors[0][0]
            raise CommitFailed(
                f"not all records were delivered to broker={self._config.url!r}: {said(error)}"
            )
        if left:
            raise unavailable(self._config.url, timeout, f"delivering {left} records", None)
        return ends

    async def abort(self) -> None:
        """Drop what has not been sent yet; what has been sent stays."""
        client = self._check()
        await self._call(client.purge)
        await self._call(self._read_reports, client, 0.0)
        self._errors.clear()
        self._ends = {}
        self._doomed = None

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
        self._check()
        arrived = trio.Event()
        answers: list[tuple[KafkaError | None, Message]] = []

        def report(error: KafkaError | None, message: Message) -> None:
            answers.append((error, message))
            self._bridge.to_trio(arrived.set)

        record = (topic, partition, key, value, headers, timestamp_ms)
        while not self.produce(*record, report=report):
            await self.drained()
        what = f"sending a record to topic {topic!r}"
        timeout = self._config.request_timeout
        if self._doomed is not None:
            doomed, self._doomed = self._doomed, None
            self._forget()
            await self._call(self._make)
            raise failed(self._config.url, timeout, what, doomed)
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
        if error is None:
            where, offset = cast("int", message.partition()), cast("int", message.offset())
            return RecordMetadata(topic, where, offset, message.timestamp()[1] / 1_000)
        if error.code() in REFUSED:
            raise refused_record(error, topic, partition)
        if error.code() in _NOT_DELIVERED:
            raise unavailable(self._config.url, timeout, what, error)
        raise failed(self._config.url, timeout, what, error)

    def idle(self) -> None:
        """Do one round of the thread; where a task waits for a report, wait for that."""
        if self._sending and self._client is not None:
            self._read_reports(self._client, SERVE_PERIOD)
        else:
            super().idle()

    def _make(self) -> None:
        self._client = make_producer(self._config, self._options, self._log)
        self._produce = self._client.produce

    def _forget(self) -> None:
        client, self._client = self._client, None
        self._produce = not_ready
        if client is not None:
            bury(client)

    async def open(self, bridge: Bridge) -> None:
        """Make the client."""
        self._bridge = bridge
        await self._call(self._make)

    async def close(self) -> None:
        """Drop what was not delivered."""
        client = self._client
        if client is not None:
            await self._call(client.purge)
            self._forget()


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
        await producer.open(bridge)
        try:
            yield producer
        finally:
            if not producer.in_child:
                with trio.move_on_after(_CLOSE_TIMEOUT + 1, shield=True):
                    await producer.close()


def _nothing() -> None:
    return
