"""Reads partitions from positions, outside any group: recovery, ``tail``, ``get``.

The thread works on demand: each ``fetch`` asks it for what is there, while the client itself
fetches ahead within its bounds. What it brings is put aside before ``fetch`` returns it, so that a
cancelled ``fetch`` loses nothing.

The end of a partition is an event of the client's (``enable.partition.eof``). Its offset lies
behind transaction markers and aborted records, which no record would ever tell of; each time more
of those arrive, another one comes. So :meth:`KafkaReader.positions` reaches the high watermark.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Partition

from trickle.exceptions import OffsetOutOfRange, TopicError, TransportError
from trickle.transport.kafka.batch import KafkaBatch, split
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.config import configuration_error
from trickle.transport.kafka.errors import (
    AWAY,
    OUT_OF_RANGE,
    UNKNOWN_TOPIC,
    error_of,
    failed,
    said,
)
from trickle.transport.kafka.fork import forked_error, watch_forks
from trickle.types import TopicPartition
from trickle.utils.bridge import open_bridge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from trickle.transport.batches import Batch
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.utils.bridge import Bridge

__all__ = ["KafkaReader", "open_reader"]

_BUFFER_BYTES = 64 << 20
_CONSUME_MAX = 1_000
_POLL = 0.1  # seconds in the thread for one request of fetch
_WATERMARK_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
_PARTITION_EOF = KafkaError._PARTITION_EOF  # pyright: ignore[reportPrivateUsage]


class _Piece(NamedTuple):
    batches: list[KafkaBatch]
    ends: dict[TopicPartition, int]


class KafkaReader:
    """See :class:`trickle.transport.contract.Reader`."""

    def __init__(
        self,
        config: KafkaConfig,
        log: ClientLog,
        positions: Mapping[TopicPartition, int],
        *,
        committed_only: bool,
    ) -> None:
        self._config = config
        self._log = log
        self._positions = dict(positions)
        self._start = dict(positions)
        self._committed_only = committed_only
        self._one_topic = len({tp.topic for tp in positions}) == 1
        self._bridge: Bridge
        self._consumer: Consumer | None = None
        self._pieces: deque[_Piece] = deque()  # at most one for each fetch that was cancelled
        self._forked = False
        watch_forks(self)

    async def fetch(self) -> Sequence[Batch]:
        """Wait until there are records, or a position has moved past what is no record."""
        while True:
            if self._forked:
                raise forked_error()
            if not self._pieces:
                await self._read()
            else:
                await trio.lowlevel.checkpoint()
            if not self._pieces:
                continue
            piece = self._pieces.popleft()
            moved = False
            for batch in piece.batches:
                self._positions[TopicPartition(batch.topic, batch.partition)] = batch.next_offset
            for where, end in piece.ends.items():
                moved = moved or end > self._positions[where]
                self._positions[where] = max(end, self._positions[where])
            if piece.batches or moved:
                return piece.batches

    def positions(self) -> Mapping[TopicPartition, int]:
        """Return the position behind all that was returned, for each partition."""
        return dict(self._positions)

    async def _read(self) -> None:
        try:
            await self._bridge.call(self._read_in_thread)
        except KafkaException as raised:
            what = f"reading {', '.join(sorted({tp.topic for tp in self._positions}))}"
            error = error_of(raised)
            timeout = self._config.request_timeout
            raise failed(self._config.url, timeout, what, error) from raised

    # In the thread

    def open(self) -> None:
        """Make the client and assign the positions."""
        settings = self._config.reader(
            committed_only=self._committed_only, buffer_bytes=_BUFFER_BYTES
        )
        settings["logger"] = self._log
        settings["error_cb"] = self._log.error
        try:
            self._consumer = Consumer(settings)
        except KafkaException as error:
            raise configuration_error(error, self._config) from error
        self._consumer.assign(
            [Partition(tp.topic, tp.partition, at) for tp, at in self._start.items()]
        )

    def _read_in_thread(self) -> None:
        consumer = cast("Consumer", self._consumer)
        first = consumer.poll(_POLL)
        if first is None:
            return
        messages = consumer.consume(_CONSUME_MAX, 0)
        messages.insert(0, first)
        ends: dict[TopicPartition, int] = {}
        if any(map(Message.error, messages)):
            messages = self._sort_out(messages, ends)
        batches = split(messages, one_topic=self._one_topic) if messages else []
        if batches or ends:
            self._pieces.append(_Piece(batches, ends))

    def _sort_out(self, messages: list[Message], ends: dict[TopicPartition, int]) -> list[Message]:
        records: list[Message] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == _PARTITION_EOF:
                ends[_place_of(message)] = cast("int", message.offset())
            else:
                self._handle(error, message)
        return records

    def _handle(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code in OUT_OF_RANGE:
            self._start_at_low(message)
        elif code in UNKNOWN_TOPIC:
            raise TopicError(
                f"the topic {message.topic()!r}, partition {message.partition()}, does not exist "
                f"at broker={self._config.url!r}: it was deleted, or never declared"
            )
        elif not error.fatal() and (code in AWAY or error.retriable()):
            self._log.error(error)  # the client goes on by itself
        else:
            raise TransportError(f"the topic {message.topic()!r} cannot be read: {said(error)}")

    def _start_at_low(self, message: Message) -> None:
        """Go on at the low watermark, where records below it were deleted."""
        consumer = cast("Consumer", self._consumer)
        place, at = _place_of(message), cast("int", message.offset())
        partition = Partition(*place)
        low, high = consumer.get_watermark_offsets(partition, timeout=_WATERMARK_TIMEOUT)
        if at > high:
            raise OffsetOutOfRange(
                f"topic {place.topic!r}, partition {place.partition}: the position {at} lies "
                f"behind its end, {high}: the topic was made anew"
            )
        consumer.incremental_unassign([partition])  # a seek is refused in this state
        consumer.incremental_assign([Partition(*place, low)])

    def in_forked_child(self) -> list[object]:
        """See :mod:`.fork`."""
        self._forked = True
        return [self._consumer]

    async def start(self, bridge: Bridge) -> None:
        """Make the client in its thread."""
        self._bridge = bridge
        await bridge.call(self.open)

    def stop(self) -> None:
        """Close the client; nobody waits for that."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None and not self._forked:
            bury(consumer)


def _place_of(message: Message) -> TopicPartition:
    return TopicPartition(cast("str", message.topic()), cast("int", message.partition()))


@asynccontextmanager
async def open_reader(
    config: KafkaConfig,
    log: ClientLog,
    positions: Mapping[TopicPartition, int],
    *,
    committed_only: bool,
) -> AsyncGenerator[KafkaReader]:
    """Read partitions from positions on."""
    reader = KafkaReader(config, log, positions, committed_only=committed_only)
    async with open_bridge("trickle-kafka-reader", close_timeout=_CLOSE_TIMEOUT) as bridge:
        await reader.start(bridge)
        try:
            yield reader
        finally:
            bridge.post(reader.stop)
