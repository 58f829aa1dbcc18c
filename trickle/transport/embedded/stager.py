"""The first half of every producer: the record's place, and what can never be stored."""

from __future__ import annotations

import time

from trickle.exceptions import RecordRefused, TopicError, TopicRefused
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import WriteTxn
from trickle.transport.embedded.format import Topic
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.staging import RECORD_OVERHEAD, Lane, Staging
from trickle.types import Headers
from trickle.utils.murmur2 import partition_of

__all__ = ["Stager", "write_lane"]

_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1


class _Target:
    """A topic as a producer knows it, with a lane for each partition that it has written to."""

    __slots__ = ("lanes", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.lanes: list[Lane | None] = [None] * topic.partitions


class Stager:
    """Finds each record's lane and stages it, or refuses it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.staged = Staging()
        self._targets: dict[str, _Target] = {}

    def _target(self, name: str) -> _Target:
        try:
            target = _Target(self._hub.topic(name))
        except TopicError as error:
            raise TopicRefused(str(error), topic=name) from error
        self._targets[name] = target
        return target

    def stage(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
    ) -> Lane:
        """Stage a record and return its lane; see the contract's ``produce``.

        Raises:
            RecordRefused: it can never be stored.
        """
        target = self._targets.get(topic) or self._target(topic)
        lanes = target.lanes
        if partition is None:
            partition = partition_of(key, len(lanes))
        elif not 0 <= partition < len(lanes):
            raise RecordRefused(
                f"topic {topic!r} has no partition {partition}: its partitions are 0 to "
                f"{len(lanes) - 1}",
                topic=topic,
                partition=partition,
            )
        size = RECORD_OVERHEAD
        if key is not None:
            size += len(key)
        elif target.topic.compacting:
            raise RecordRefused(
                f"topic {topic!r} is compacting, and keeps the newest record of each key: a "
                "record without a key cannot be stored in it",
                topic=topic,
                partition=partition,
            )
        if value is not None:
            size += len(value)
        if headers:
            size += _headers_bytes(topic, headers)
        if size > target.topic.record_bytes_max:
            raise RecordRefused(
                f"topic {topic!r}: a record of {size} bytes is larger than its "
                f"max.message.bytes={target.topic.record_bytes_max}: raise it in the topic's "
                "config=, or send less",
                topic=topic,
                partition=partition,
            )
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000
        elif not _TIME_MIN <= timestamp_ms <= _TIME_MAX:
            raise RecordRefused(
                f"topic {topic!r}: the timestamp {timestamp_ms} does not fit into 64 bits",
                topic=topic,
                partition=partition,
            )
        lane = lanes[partition]
        if lane is None:
            lane = lanes[partition] = self.staged.lane(target.topic, partition)
        self.staged.add(lane, key, value, headers, timestamp_ms, size)
        return lane

    def take(self) -> Staging:
        """Take what is staged and begin anew."""
        staged, self.staged = self.staged, Staging()
        for target in self._targets.values():
            target.lanes = [None] * len(target.lanes)
        staged.close_chunks()
        return staged

    def forget(self, refused: RecordRefused) -> None:
        """Look a topic up anew before the next record: the one that was known is gone."""
        self._targets.pop(refused.topic, None)


def _headers_bytes(topic: str, headers: Headers) -> int:
    size = 0
    for name, value in headers:
        try:
            size += len(name.encode()) + len(value or b"")
        except UnicodeEncodeError:
            raise RecordRefused(
                f"topic {topic!r}: the header name {name!r} is no Unicode text", topic=topic
            ) from None
    return size


def write_lane(txn: WriteTxn, lane: Lane) -> int:
    """Append a lane; return the offset of its first record.

    Raises:
        TopicRefused: the topic is gone, or another one has its name.
    """
    first = None
    now = log.topic(txn, lane.topic.name)
    if now is not None and now.number == lane.topic.number:
        first = log.append(txn, now.number, lane.partition, lane.chunks)
    if first is None:
        raise TopicRefused(
            f"topic {lane.topic.name!r} was deleted or created again while records were on "
            "their way: send them again",
            topic=lane.topic.name,
            partition=lane.partition,
        )
    return first
