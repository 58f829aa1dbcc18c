"""Aborting once more what a broker has forgotten to abort.

A broker that was killed and is back within seconds can lose the end of a transaction: its
coordinator loads before the partitions have leaders again, takes them for deleted, sends no markers
and calls the transaction complete (Kafka 4.3.1: "Couldn't find leader endpoint for partitions").
The records then stay open for ever: nobody who reads committed records comes past them, and a
group's offsets stay pending. Worse, the next commit of the same transactional id would commit them.

A marker ends whatever its producer has open in a partition, also of an earlier epoch. So a
transaction of the same id that touches each of these places, and is aborted, ends it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.transport.contract import ConsumerOptions
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.errors import error_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from confluent_kafka import Producer

    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.types import TopicPartition

__all__ = ["abort_again"]

_KEY = b"trickle-aborted"  # a compacted topic takes no record without a key


def abort_again(
    config: KafkaConfig,
    log: ClientLog,
    producer: Producer,
    group: str,
    places: Collection[TopicPartition],
    timeout: float,
) -> None:
    """Abort a transaction that touches all places, and the group's offsets.

    Args:
        producer: a transactional one, with no transaction begun.

    Raises:
        KafkaException: it has not been aborted.
    """
    producer.begin_transaction()
    for place in places:
        producer.produce(place.topic, None, _KEY, partition=place.partition)
    if producer.flush(timeout):
        raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT))
    if group:
        settings = config.consumer(ConsumerOptions(group=group, topics=()))
        consumer = Consumer({**settings, "logger": log})
        metadata = consumer.consumer_group_metadata()
        bury(consumer)
        offsets = [Partition(place.topic, place.partition, 0) for place in list(places)[:1]]
        try:
            producer.send_offsets_to_transaction(offsets, metadata, timeout)
        except KafkaException as raised:
            if not error_of(raised).txn_requires_abort():  # else that is what is done next
                raise
    producer.abort_transaction(timeout)
