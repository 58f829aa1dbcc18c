"""Aborting once more what a broker has forgotten to abort.

A broker that was killed and is back within seconds can lose the end of a transaction: its
coordinator loads before the partitions have leaders again, takes them for deleted, sends no markers
and calls the transaction complete (Kafka 4.3.1: "Couldn't find leader endpoint for partitions").
The records then stay open for ever: nobody who reads committed records comes past them, and a
group's offsets stay pending. Worse, the next commit of the same transactional id would commit them.

A marker ends whatever its producer has open in a partition, also of an earlier epoch. So a
transaction of the same id that touches each of these places, and is aborted, ends it all. It
touches them by records that are never sent: the client tells the coordinator of a place as soon as
a record for it is produced, and the abort drops what it has held back.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.transport.kafka.errors import UNAUTHORIZED, error_of
from trickle.transport.kafka.transaction import bare_metadata

if TYPE_CHECKING:
    from collections.abc import Collection

    from confluent_kafka import Producer

    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.transport.kafka.patience import Caller
    from trickle.types import TopicPartition

__all__ = ["HELD_BACK", "abort_again"]

HELD_BACK: Mapping[str, str | int] = {"linger.ms": 5_000, "message.timeout.ms": 10_000}
"""Options of the producer: records wait for the abort."""

_TOLD = 1.0  # seconds within which the coordinator is told of all places


def abort_again(
    config: KafkaConfig,
    log: ClientLog,
    caller: Caller,
    producer: Producer,
    groups: Collection[str],
    places: Collection[TopicPartition],
    deadline: float,
) -> None:
    """Abort a transaction that touches all places, and the groups' offsets.

    Where this user may not write to one of the topics, the coordinator hears of none. Then each has
    a transaction of its own: nothing of this user's stands open where it may not write.

    Args:
        caller: makes the producer's calls.
        producer: a transactional one with :data:`HELD_BACK`, and with no transaction begun.
        deadline: monotonic seconds.

    Raises:
        KafkaException: it has not been aborted.
    """
    told = functools.partial(_abort_in, config, log, caller, producer, deadline)
    if told(places, groups):
        return
    by_topic: dict[str, list[TopicPartition]] = defaultdict(list)
    for place in places:
        by_topic[place.topic].append(place)
    share = min(_TOLD, (deadline - time.monotonic()) / 2 / (len(by_topic) + 1))
    for own in by_topic.values():
        told(own, (), share=share)
    for group in groups:
        told((), [group], share=share, offsets_at=next(iter(places)))


def _abort_in(
    config: KafkaConfig,
    log: ClientLog,
    caller: Caller,
    producer: Producer,
    deadline: float,
    places: Collection[TopicPartition],
    groups: Collection[str],
    *,
    share: float = _TOLD,
    offsets_at: TopicPartition | None = None,
) -> bool:
    """Abort one transaction; tell whether nothing of it was refused, as far as groups tell."""
    producer.begin_transaction()
    at = offsets_at or next(iter(places))
    allowed = True
    try:
        for place in places:
            producer.produce(place.topic, None, b"", partition=place.partition)
        if places:
            time.sleep(max(0.0, min(share, (deadline - time.monotonic()) / 2)))
        for group in groups:
            caller.call(
                deadline,
                producer.send_offsets_to_transaction,
                [Partition(at.topic, at.partition, 0)],
                bare_metadata(config, log, group),
            )
    except KafkaException as raised:
        error = error_of(raised)  # where it asks for an abort, that is what is done next
        if not error.txn_requires_abort() and error.code() not in UNAUTHORIZED:
            raise
        allowed = False
    caller.call(deadline, producer.abort_transaction)
    return allowed
