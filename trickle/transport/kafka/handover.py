"""Handing over: what both kinds of producers do in Trio's thread, for each record.

``produce`` runs in Trio's thread: handing each record to the producer's thread instead cost a
third of the rate. Everything that may wait runs in that thread. It also serves the delivery
reports, as they hold places in the client's queue until they are read. While many come, Trio's
thread does.

A report costs 0.3 µs a record and is asked for only where it is needed. Under a transaction the
commit itself fails when any record does, so only watched records have one. Without a transaction
nothing else would tell of a refused record; there the callback is ``dict.setdefault`` of a
dictionary of errors, which the client calls without entering Python code. The records of each
caller, and of each commit, have :class:`Fates` of their own: nobody hears of another's.
"""

from __future__ import annotations

import logging
import time
from itertools import islice, repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import trio
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from trickle.exceptions import TransportError, UsageError
from trickle.transport.kafka.errors import REFUSED, error_of, failed, refused_record, unavailable
from trickle.transport.kafka.fork import forked_error, watch_forks
from trickle.transport.kafka.transaction import Content
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

    from trickle.context import Effect
    from trickle.transport.contract import ProducerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import Headers
    from trickle.utils.bridge import Bridge

    Report: TypeAlias = Callable[[KafkaError | None, Message | None], object]

__all__ = ["SERVE_PERIOD", "Fates", "KafkaProducer", "not_ready"]

logger = logging.getLogger("trickle.transport.kafka")

SERVE_PERIOD = 0.01  # seconds between readings of delivery reports
_PAUSE = 0.001
_ANY_PARTITION = -1

T = TypeVar("T")
U = TypeVar("U")


def _number(partition: int | None) -> int:
    return _ANY_PARTITION if partition is None else partition


def _stamp(timestamp_ms: int | None) -> int:
    # The client takes 0 for "now", so 1970 begins a millisecond late.
    return 0 if timestamp_ms is None else timestamp_ms or 1


def _pairs(headers: Headers) -> list[tuple[str, bytes | None]] | None:
    return list(headers) or None


def _column(convert: Callable[[T], U], values: tuple[T, ...]) -> Iterable[U]:
    """Convert a column; most often all its values are the same, and are converted once."""
    first = values[0]
    if values.count(first) == len(values):
        return repeat(convert(first))
    return map(convert, values)


class Fates:
    """What becomes of records that are committed together, as reports tell.

    Attributes:
        client: that the first of them was handed to; None before.
        errors: of those that were not delivered; no message where the client refused to take one.
        ends: the position behind the last watched record of each partition.
    """

    __slots__ = ("client", "ends", "errors")

    def __init__(self) -> None:
        self.client: Producer | None = None
        self.errors: dict[KafkaError | None, Message | None] = {}
        self.ends: dict[TopicPartition, int] = {}

    def watched(self, error: KafkaError | None, message: Message | None) -> None:
        """Take the report of a watched record."""
        if error is None:
            assert message is not None
            where = TopicPartition(cast("str", message.topic()), cast("int", message.partition()))
            self.ends[where] = cast("int", message.offset()) + 1
        else:
            self.errors[error] = message

    @property
    def some_delivered(self) -> bool:
        """Whether one of them was delivered."""
        return None in self.errors or bool(self.ends)

    def failures(self) -> list[tuple[KafkaError, Message | None]]:
        """Return the errors; the client's thread may still add some, and a list is made at once."""
        known = list(self.errors.items())
        return [(error, message) for error, message in known if error is not None]


class KafkaProducer:
    """What both kinds share: handing records over. See ``contract.ProducerClient``."""

    def __init__(self, config: KafkaConfig, options: ProducerOptions, log: ClientLog) -> None:
        self._config = config
        self._options = options
        self._log = log
        self._bridge: Bridge
        self._client: Producer | None = None
        self._produce: Callable[..., object] = not_ready
        self._content = Content()
        self._fates = Fates()
        self._fatal = False  # an error of the client itself, which is of no more use
        self._forked = False
        watch_forks(self)

    @property
    def ready(self) -> bool:
        """Whether :meth:`produce` may be called now."""
        return self._produce is not not_ready

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
        fates = self._fates
        if report is None:
            fates.client = fates.client or self._client
            report = fates.watched if watch else self._report(fates)
        try:
            self._produce(
                topic,
                value,
                key,
                _number(partition),
                report,
                None,
                _stamp(timestamp_ms),
                _pairs(headers),
            )
        except BufferError:
            return False
        except KafkaException as raised:
            error = _lost(raised, topic, partition)
            (report or fates.errors.setdefault)(error, None)
        return True

    def _report(self, fates: Fates) -> Report | None:
        """Return what is to be told of records that nobody watches."""
        return fates.errors.setdefault

    def produce_all(self, effects: deque[Effect], limit: int, *, watch: bool = False) -> None:
        """Hand over many records; see the contract."""
        self.hand_over(effects, limit, self._fates, watch=watch)

    def hand_over(
        self, effects: deque[Effect], limit: int, fates: Fates, *, watch: bool = False
    ) -> None:
        """Hand over many records.

        By columns: ``map`` calls the client, so that no record costs a line of Python.
        """
        fates.client = fates.client or self._client
        # The last one of them all is watched: it goes alone, behind the rest.
        last = watch and 0 < len(effects) <= limit
        portion = list(islice(effects, min(limit, len(effects)) - last))
        if portion:
            topics, partitions, keys, values, headers, stamps = zip(*portion, strict=True)
            for topic in set(topics):
                self._content.note(topic)
            left = iter(values)
            error: KafkaException | None = None
            calls = map(
                self._produce,
                topics,
                left,
                keys,
                _column(_number, partitions),
                repeat(self._report(fates)),
                repeat(None),
                stamps if all(stamps) else _column(_stamp, stamps),
                _column(_pairs, headers),
            )
            in_vain = 1  # the one that was tried last
            try:
                for _ in calls:
                    pass
                in_vain = 0
            except BufferError:
                return
            except KafkaException as raised:
                error = raised
            finally:  # whatever ended it: what was taken is not handed over again
                for _ in range(len(portion) - length_hint(left) - in_vain):
                    effects.popleft()
            if error is not None:
                topic, partition, *_ = effects[0]
                try:
                    fates.errors.setdefault(_lost(error, topic, partition), None)
                finally:
                    error = None  # it knows this frame, and with it the portion
                effects.popleft()
                return
        if last and self.produce(*effects[0], report=fates.watched):
            effects.popleft()

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
            while client is self._client and len(client) * 2 > full:
                await self._reports(client)
            return
        raise unavailable(self._config.url, timeout, f"a full queue of {full} records", None)

    async def _reports(self, client: Producer) -> None:
        """Wait a little for reports, and read them."""
        await self._call(self._read_reports, client, 0.05)

    def idle(self) -> None:
        """Do one round of the thread: read reports, then wait a little for a call."""
        client = self._served()
        if client is not None:
            self._read_reports(client, 0)
            self._bridge.run_pending(SERVE_PERIOD)
        else:
            time.sleep(_PAUSE)  # before it is open, and while there is none

    def _read_reports(self, client: Producer, timeout: float, flush: bool = False) -> None:
        """Serve the client's callbacks; a fatal error of the client surfaces here.

        Args:
            client: whose.
            timeout: seconds to wait for one.
            flush: have it send meanwhile what it keeps because of its linger.ms.
        """
        try:
            (client.flush if flush else client.poll)(timeout)
        except KafkaException as raised:
            logger.debug("while reports were read: %r", raised)
            if client is self._client:
                self._fatal = True  # the reports of what it had taken tell whom it concerns

    def _served(self) -> Producer | None:
        """Return the client whose reports the thread reads; for the thread alone."""
        return self._client

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

    @property
    def in_child(self) -> bool:
        """Whether this is a forked child's copy."""
        return self._forked

    def in_forked_child(self) -> list[object]:
        """See :mod:`.fork`."""
        self._forked = True
        self._produce = _forked
        return [self._client]


def _lost(raised: KafkaException, topic: str, partition: int | None) -> KafkaError:
    """Return the error by which the client does not take a record.

    Raises:
        RecordRefused: it will never take it.
    """
    error = error_of(raised)
    if error.code() in REFUSED:
        raise refused_record(error, topic, partition) from raised
    return error


def not_ready(*_: object) -> None:
    raise UsageError(
        "produce() while a commit or an abort is under way, or after the producer was fenced: "
        "wait until it is ready"
    )


def _forked(*_: object) -> None:
    raise forked_error()
