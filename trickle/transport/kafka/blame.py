"""Which topic refused a record: a transaction's error says so in words, or not at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection

from trickle.transport.kafka.errors import REFUSED, UNKNOWN_TOPIC, error_of, refused_record
from trickle.transport.kafka.stubs import AclOperation, AdminClient

if TYPE_CHECKING:
    from collections.abc import Collection

    from trickle.exceptions import RecordRefused
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.transport.kafka.stubs import TypedAdmin

__all__ = ["find_refused", "refused_by"]

_LOOK_TIMEOUT = 2.0
_ANSWER_TIMEOUT = 2 * _LOOK_TIMEOUT  # the client itself gives up before
_INCONSISTENT = KafkaError._INCONSISTENT  # pyright: ignore[reportPrivateUsage]
_FORBIDDEN = KafkaError.TOPIC_AUTHORIZATION_FAILED

# librdkafka's words: "ProduceRequest for flights [3] with 7 message(s) failed: …".
_PRODUCE_REQUEST = re.compile(r"ProduceRequest for (\S+) \[(\d+)\]")


def refused_by(error: KafkaError, topics: Collection[str]) -> RecordRefused | None:
    """Return the record that a failed transaction's error speaks of; None if it is of another kind.

    Args:
        error: what the transactional call failed by.
        topics: those that the transaction may have written to; the longest that the error's
            text mentions is taken where the text has no better place for it.
    """
    if error.code() not in REFUSED:
        return None
    text = error.str()
    match = _PRODUCE_REQUEST.search(text)
    if match:
        return refused_record(error, match[1], int(match[2]))
    mentioned = sorted((t for t in topics if t in text), key=len)
    if mentioned:
        return refused_record(error, mentioned[-1], None)
    if len(topics) == 1 and error.code() != _FORBIDDEN:  # which may mean the source
        return refused_record(error, next(iter(topics)), None)
    return None


def find_refused(
    error: KafkaError,
    topics: Collection[str],
    client: Producer,
    config: KafkaConfig,
    log: ClientLog,
) -> RecordRefused | None:
    """Return the record that a failed transaction's error speaks of, or means without a word.

    Asks the broker where the error does not say which topic it was; in a thread.

    Args:
        error: as for :func:`refused_by`.
        topics: likewise.
        client: what failed; it can still look at topics.
        config: for a client that may ask for more.
        log: gets what goes wrong with the question.
    """
    refused = refused_by(error, topics)
    if refused is not None or error.code() not in UNKNOWN_TOPIC | {_INCONSISTENT, _FORBIDDEN}:
        return refused
    try:
        if (
            error.code() != _FORBIDDEN
        ):  # "inconsistent" is all that the client says of a missing one
            missing = sorted(topics - client.list_topics(timeout=_LOOK_TIMEOUT).topics.keys())
            unknown = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            return refused_record(unknown, missing[0], None) if missing else None
        forbidden = _forbidden(sorted(topics), config, log) if topics else None
    except KafkaException as raised:
        log.error(error_of(raised))
        return None
    except TimeoutError:
        return None
    return None if forbidden is None else refused_record(error, forbidden, None)


def _forbidden(topics: list[str], config: KafkaConfig, log: ClientLog) -> str | None:
    """Return a topic that this user may not write to."""
    settings = config.admin()
    settings["logger"] = log
    settings["error_cb"] = log.error
    admin = cast("TypedAdmin", AdminClient(settings))
    answers = admin.describe_topics(
        TopicCollection(topics), request_timeout=_LOOK_TIMEOUT, include_authorized_operations=True
    )
    for topic, future in answers.items():
        try:
            found: Any = future.result(_ANSWER_TIMEOUT)
        except KafkaException as raised:
            if error_of(raised).code() in UNKNOWN_TOPIC | {_FORBIDDEN}:
                return topic
            raise
        allowed: list[AclOperation] | None = found.authorized_operations
        if allowed is not None and AclOperation.WRITE not in allowed:
            return topic
    return None
