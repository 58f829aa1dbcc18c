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

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.transport.kafka.errors import error_of
from trickle.transport.kafka.transaction import bare_metadata

if TYPE_CHECKING:
    from collections.abc import Collection

    from confluent_kafka import Producer

    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import TopicPartition

__all__ = ["HELD_BACK", "abort_again"]

HELD_BACK: Mapping[str, str | int] = {"linger.ms": 5_000, "message.timeout.ms": 10_000}
"""Options of the producer: records wait for the abort."""

_TOLD = 1.0  # seconds within which the coordinator is told of all places


def abort_again(
    config: KafkaConfig,
    log: ClientLog,
    producer: Producer,
    groups: Collection[str],
    places: Collection[TopicPartition],
    timeout: float,
) -> None:
    """Abort a transaction that touches all places, and the groups' offsets.

    Args:
        producer: a transactional one with :data:`HELD_BACK`, and with no transaction begun.

    Raises:
        KafkaException: it has not been aborted.
    """
    producer.begin_transaction()
    for place in places:
        producer.produce(place.topic, None, b"", partition=place.partition)
    time.sleep(min(_TOLD, timeout / 2))
    offsets = [Partition(place.topic, place.partition, 0) for place in list(places)[:1]]
    try:
        for group in groups:
            metadata = bare_metadata(config, log, group)
            producer.send_offsets_to_transaction(offsets, metadata, timeout)
    except KafkaException as raised:
        if not error_of(raised).txn_requires_abort():  # else that is what is done next
            raise
    producer.abort_transaction(timeout)
