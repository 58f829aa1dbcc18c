"""What comes out of a member's polls and is no record: errors, by what they mean here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.exceptions import OffsetOutOfRange, TopicError, TransportError
from trickle.transport.kafka.errors import (
    AWAY,
    MEMBERSHIP,
    OUT_OF_RANGE,
    UNKNOWN_TOPIC,
    error_of,
    said,
)

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

    from trickle.transport.contract import ConsumerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog

__all__ = ["Complaints"]

_MISSING_TIMEOUT = 5.0  # seconds that a subscribed topic may take to appear
_WATERMARK_TIMEOUT = 2.0
_INFORMATION = frozenset(
    {
        KafkaError._MAX_POLL_EXCEEDED,  # pyright: ignore[reportPrivateUsage]
        KafkaError._PARTITION_EOF,  # pyright: ignore[reportPrivateUsage]
        KafkaError.GROUP_MAX_SIZE_REACHED,
    }
)


class Complaints:
    """Told of each error; for the owner's thread alone."""

    def __init__(self, config: KafkaConfig, options: ConsumerOptions, log: ClientLog) -> None:
        self._config = config
        self._options = options
        self._log = log
        self._missing: dict[str, float] = {}

    def hear(
        self, consumer: Consumer, error: KafkaError, message: Message, start: int | None
    ) -> OffsetOutOfRange | None:
        """Take an error that came in place of a record.

        Args:
            start: where its partition was begun, None where it is not fetched now.

        Returns:
            What the assignment's owner is to be told.

        Raises:
            TransportError: the consumer cannot go on.
        """
        code = error.code()
        topic = message.topic() or ""
        if code in OUT_OF_RANGE:
            # It may come late, of an assignment that is past: no position now lies so low.
            if start is None or cast("int", message.offset()) < start:
                return None
            return OffsetOutOfRange(self._out_of_range(consumer, message))
        if error.fatal():
            raise TransportError(
                f"the consumer of group {self._options.group!r} cannot go on: {said(error)}"
            )
        if code in UNKNOWN_TOPIC:
            self._missing.setdefault(topic, time.monotonic() + _MISSING_TIMEOUT)
        elif code in AWAY | MEMBERSHIP | _INFORMATION or error.retriable():
            self._log.error(error)  # the client mends these by itself
        else:
            where = f" of topic {topic!r}, partition {message.partition()}" if topic else ""
            raise TransportError(f"the consumer{where} cannot go on: {said(error)}")
        return None

    def _out_of_range(self, consumer: Consumer, message: Message) -> str:
        topic, partition = cast("str", message.topic()), cast("int", message.partition())
        try:
            low, high = consumer.get_watermark_offsets(
                Partition(topic, partition), timeout=_WATERMARK_TIMEOUT
            )
            holds = f"the topic holds offsets from {low} up to {high}"
        except KafkaException as error:
            holds = f"what it holds is not known: {said(error_of(error))}"
        return (
            f"topic {topic!r}, partition {partition}: the position {message.offset()} is out of "
            f"range, {holds}; records were deleted before group {self._options.group!r} read "
            "them, or the topic was made anew: choose where to go on"
        )

    def look_for_missing(self, consumer: Consumer) -> None:
        """Raise for a topic that was said to be missing, once it had the time to appear."""
        now = time.monotonic()
        for topic, deadline in list(self._missing.items()):
            if now < deadline:
                continue
            del self._missing[topic]
            found = consumer.list_topics(topic, timeout=self._config.request_timeout)
            known = found.topics.get(topic)
            if known is None or known.error is not None:
                raise TopicError(
                    f"the topic {topic!r} does not exist at broker={self._config.url!r}: "
                    "create it, or let the app declare it (partitions=)"
                )
