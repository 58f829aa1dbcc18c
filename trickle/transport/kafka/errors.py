"""librdkafka's errors, sorted by what they mean for trickle, and as sentences for a person.

An error code says little by itself: what matters is what can be done. Here every code that the
driver reacts to belongs to one set, and everything else is passed on with the client's own words.
"""

from __future__ import annotations

from typing import cast

from confluent_kafka import KafkaError, KafkaException

from trickle.exceptions import BrokerUnavailable, RecordRefused, TopicRefused, TransportError

__all__ = [
    "AWAY",
    "FENCED",
    "MEMBERSHIP",
    "OUT_OF_RANGE",
    "PASSING",
    "REFUSED",
    "STALE",
    "UNAUTHORIZED",
    "UNKNOWN_TOPIC",
    "error_of",
    "failed",
    "refused_record",
    "said",
    "unavailable",
]

AWAY = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # pyright: ignore[reportPrivateUsage]
        KafkaError._RESOLVE,  # pyright: ignore[reportPrivateUsage]
        KafkaError._TIMED_OUT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._TIMED_OUT_QUEUE,  # pyright: ignore[reportPrivateUsage]
        KafkaError._TRANSPORT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._WAIT_COORD,  # pyright: ignore[reportPrivateUsage]
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.CONCURRENT_TRANSACTIONS,  # the transaction before is being ended
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)
"""Nobody answered, or nobody who could: try again later."""

FENCED = frozenset(
    {
        KafkaError._FENCED,  # pyright: ignore[reportPrivateUsage]
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.TRANSACTION_COORDINATOR_FENCED,
    }
)
"""A newer producer has our transactional id, or the broker ended our transaction itself."""

MEMBERSHIP = frozenset(
    {
        KafkaError._ASSIGNMENT_LOST,  # pyright: ignore[reportPrivateUsage]
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)
"""We are not the member that we were: what we held belongs to somebody else, or soon will."""

OUT_OF_RANGE = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # pyright: ignore[reportPrivateUsage]
        KafkaError.OFFSET_OUT_OF_RANGE,
    }
)

UNAUTHORIZED = frozenset(
    {KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED}
)

UNKNOWN_TOPIC = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,  # pyright: ignore[reportPrivateUsage]
        KafkaError._UNKNOWN_TOPIC,  # pyright: ignore[reportPrivateUsage]
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)

STALE = frozenset(
    {
        KafkaError._NOENT,  # pyright: ignore[reportPrivateUsage] - "No leaders found"
        KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
"""The client's picture of the cluster is of the past: look again, then try again."""

PASSING = AWAY | STALE
"""What may pass by itself."""

REFUSED = UNKNOWN_TOPIC | {
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.POLICY_VIOLATION,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
}
"""A record that no second try will bring in."""

_NO_RECORD = UNKNOWN_TOPIC | {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
}
"""Nor any other record of its topic."""

_ADVICE = {
    KafkaError.INVALID_TIMESTAMP: (
        "its timestamp is further from the broker's clock than the topic allows: "
        "see the topic's message.timestamp.after.max.ms and message.timestamp.before.max.ms"
    ),
    KafkaError.MSG_SIZE_TOO_LARGE: (
        "it is larger than the topic's max.message.bytes allows: send less, or raise that"
    ),
    KafkaError.RECORD_LIST_TOO_LARGE: (
        "it is larger than the topic's segment.bytes allows: send less, or raise that"
    ),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not write to the topic: see its ACLs",
}
_ADVICE.update(
    dict.fromkeys(
        UNKNOWN_TOPIC, "there is no such topic or partition: declare it, or correct its name"
    )
)


def error_of(raised: KafkaException) -> KafkaError:
    """Return the error that the client's exception carries."""
    return cast("KafkaError", raised.args[0])


def said(error: KafkaError) -> str:
    """Return the client's own words, with the name of the code to look up."""
    return f"{error.str().strip()} ({error.name()})"


def unavailable(url: str, timeout: float, what: str, error: KafkaError | None) -> BrokerUnavailable:
    """Return the error for a call that nobody answered."""
    cause = "" if error is None else f": {said(error)}"
    made = BrokerUnavailable(
        f"{what} got no answer from broker={url!r} within {timeout:g} s{cause}; "
        "see that the broker runs and that broker= names its address"
    )
    made.pending = error is not None and error.code() == KafkaError.UNSTABLE_OFFSET_COMMIT
    return made


def failed(url: str, timeout: float, what: str, error: KafkaError) -> TransportError:
    """Return the error for a call that failed: unavailable, or with the client's words."""
    if error.code() in PASSING or error.retriable():
        return unavailable(url, timeout, what, error)
    return TransportError(f"{what} failed at broker={url!r}: {said(error)}")


def refused_record(error: KafkaError, topic: str, partition: int | None) -> RecordRefused:
    """Return the error for a record of a known topic that cannot be stored."""
    where = f"topic {topic!r}" + ("" if partition is None else f", partition {partition}")
    advice = _ADVICE.get(error.code(), said(error))
    kind = TopicRefused if error.code() in _NO_RECORD else RecordRefused
    return kind(f"a record for {where} was refused: {advice}", topic=topic, partition=partition)
