"""Producers, seen from Trio; :mod:`.transaction` has the thread's side of transactions.

``produce`` runs in Trio's thread: handing each record to the producer's thread instead cost a
third of the rate. Everything that may wait runs in that thread, which also serves the delivery
reports, every few milliseconds, as reports hold places in the client's queue until they are read.

A report costs 0.3 µs a record and is asked for only where it is needed. Under a transaction the
commit itself fails when any record does, so only watched records have one. Without a transaction
nothing else would tell of a refused record; there the callback is ``dict.setdefault`` of a
dictionary of errors, which the client calls without entering Python code.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from trickle.exceptions import CommitFailed, TransportError, UsageError
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.consumer import as_partitions
from trickle.transport.kafka.errors import (
    REFUSED,
    error_of,
    failed,
    refused_record,
    said,
    unavailable,
)
from trickle.transport.kafka.fork import forked_error, watch_forks
from trickle.transport.kafka.owner import KafkaMember
from trickle.transport.kafka.transaction import Content, Transactions, make_producer
from trickle.types import RecordMetadata, TopicPartition
from trickle.utils.bridge import open_bridge

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncGenerator, Callable, Mapping

    from trickle.context import Effect
    from trickle.transport.contract import CommittedOffset, Member, ProducerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import Headers
    from trickle.utils.bridge import Bridge

__all__ = ["KafkaProducer", "PlainProducer", "TransactionalProducer", "open_producer"]

_SERVE_PERIOD = 0.01  # seconds between readings of delivery reports
_PAUSE = 0.001
_CLOSE_TIMEOUT = 4.0
_ANY_PARTITION = -1
_NOT_DELIVERED = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._PURGE_INFLIGHT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._PURGE_QUEUE,  # pyright: ignore[reportPrivateUsage]
    }
)

T = TypeVar("T")
if TYPE_CHECKING:
    Report: TypeAlias = Callable[[KafkaError | None, Message], object]


class KafkaProducer:
    """What both kinds share: handing records over. See ``contract.ProducerClient``."""

    def __init__(self, config: KafkaConfig, options: ProducerOptions, log: ClientLog) -> None:
        self._config = config
        self._options = options
        self._log = log
        self._bridge: Bridge
        self._client: Producer | None = None
        self._produce: Callable[..., object] = _not_ready
        self._content = Content()
        self._ends: dict[TopicPartition, int] = {}
        self._unwatched: Report | None = None
        self._doomed: KafkaError | None = None
        self._forked = False
        watch_forks(self)

    @property
    def ready(self) -> bool:
        """Whether :meth:`produce` may be called now."""
        return self._produce is not _not_ready

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
        report: Report | None = None,
    ) -> bool:
        """Hand over one record, without a wait; False where the client's queue is full.

        Args:
            topic: see the contract.
            partition: see the contract.
            key: see the contract.
            value: see the contract.
            headers: see the contract.
            timestamp_ms: see the contract.
            watch: the commit's result tells the position behind this record.
            report: called in the producer's thread once the record's fate is known.
        """
        self._content.note(topic)
        if report is None:
            report = self._watched if watch else self._unwatched
        try:
            self._produce(
                topic,
                value,
                key,
                _ANY_PARTITION if partition is None else partition,
                report,
                None,
                # The client takes 0 for "now", so 1970 begins a millisecond late.
                0 if timestamp_ms is None else timestamp_ms or 1,
                list(headers) if headers else None,
            )
        except BufferError:
            return False
        except KafkaException as raised:
            self._failed_at_once(raised, topic, partition)
        return True

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        produce, report = self._produce, self._unwatched
        topic: str | None = None
        partition: int | None = None
        headers: Headers | None = None
        wire_headers: list[tuple[str, bytes | None]] | None = None
        try:
            for _ in range(min(limit, len(effects))):
                known, pairs = topic, headers
                topic, partition, key, value, headers, timestamp_ms = effects[0]
                if topic is not known:
                    self._content.note(topic)
                if headers is not pairs:  # most often they are the same, or none
                    wire_headers = list(headers) or None
                if watch and len(effects) == 1:
                    report = self._watched
                produce(
                    topic,
                    value,
                    key,
                    _ANY_PARTITION if partition is None else partition,
                    report,
                    None,
                    0 if timestamp_ms is None else timestamp_ms or 1,
                    wire_headers,
                )
                effects.popleft()
        except BufferError:
            return
        except KafkaException as raised:
            self._failed_at_once(raised, topic or "", partition)
            effects.popleft()

    def _failed_at_once(self, raised: KafkaException, topic: str, partition: int | None) -> None:
        error = error_of(raised)
        if error.code() in REFUSED:
            raise refused_record(error, topic, partition) from raised
        # It has failed already, in the background: the commit says so, and not each record.
        self._doomed = self._doomed or error

    async def drained(self) -> None:
        """Wait until half of what fills the client's queue now has gone.

        Raises:
            BrokerUnavailable: it has not within the request timeout.
        """
        client = self._check()
        full = len(client)
        timeout = self._config.request_timeout
        with trio.move_on_after(timeout):
            await trio.lowlevel.checkpoint()
            while len(client) * 2 > full:
                await self._call(self._read_reports, client, 0.05)
            return
        raise unavailable(self._config.url, timeout, f"a full queue of {full} records", None)

    def idle(self) -> None:
        """Do one round of the thread: read reports, then wait a little for a call."""
        client = self._served()
        if client is not None:
            self._read_reports(client, 0)
            self._bridge.run_pending(_SERVE_PERIOD)
        else:
            time.sleep(_PAUSE)  # before it is open, and while there is none

    def _read_reports(self, client: Producer, timeout: float) -> None:
        """Serve the client's callbacks; a fatal error of the client surfaces here."""
        try:
            client.poll(timeout)
        except KafkaException as raised:
            self._doomed = self._doomed or error_of(raised)  # the commit, or the next send, says so

    def _flush(self, client: Producer, timeout: float) -> int:
        """Wait until all is delivered; return how many records are not."""
        try:
            return client.flush(timeout)
        except KafkaException as raised:
            self._doomed = self._doomed or error_of(raised)
            return 0

    def _served(self) -> Producer | None:
        """Return the client whose reports the thread reads; for the thread alone."""
        return self._client

    def _watched(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            where = TopicPartition(cast("str", message.topic()), cast("int", message.partition()))
            self._ends[where] = cast("int", message.offset()) + 1
        elif self._unwatched is not None:
            self._unwatched(error, message)

    def _check(self) -> Producer:
        if self._forked:
            raise forked_error()
        if self._client is None:
            raise UsageError("this producer is not open")
        return self._client

    async def _call(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a call in the thread; what it does not sort out itself becomes a sentence."""
        try:
            return await self._bridge.call(fn, *args)
        except KafkaException as raised:
            what = "the producer's call"
            timeout = self._config.request_timeout
            raise failed(self._config.url, timeout, what, error_of(raised)) from raised
        except trio.BrokenResourceError as ended:
            raise TransportError(f"the producer cannot go on: {ended.__cause__!r}") from ended

    def _take_ends(self) -> dict[TopicPartition, int]:
        ends, self._ends = self._ends, {}
        return ends

    @property
    def in_child(self) -> bool:
        """Whether this is a forked child's copy."""
        return self._forked

    def in_forked_child(self) -> list[object]:
        """See :mod:`.fork`."""
        self._forked = True
        self._produce = _forked
        return [self._client]


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
        self._produce = _not_ready
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
        self._produce = _not_ready
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
            self._read_reports(self._client, _SERVE_PERIOD)
        else:
            super().idle()

    def _make(self) -> None:
        self._client = make_producer(self._config, self._options, self._log)
        self._produce = self._client.produce

    def _forget(self) -> None:
        client, self._client = self._client, None
        self._produce = _not_ready
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


def _not_ready(*_: object) -> None:
    raise UsageError(
        "produce() while a commit or an abort is under way, or after the producer was fenced: "
        "wait until it is ready"
    )


def _forked(*_: object) -> None:
    raise forked_error()


def _nothing() -> None:
    return
