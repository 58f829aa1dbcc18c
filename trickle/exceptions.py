"""Every error of trickle's own.

::

    TrickleError
    ├── ConfigurationError          a setting, an argument or a definition is wrong (exit code 2)
    │   ├── DefinitionError         an app that contradicts itself: found before anything runs
    │   └── UsageError              a call that makes no sense where it stands
    ├── CodecError                  bytes and values do not fit each other
    │   ├── DecodeError             a record cannot be read
    │   └── EncodeError             a value cannot be written
    ├── TableError
    │   ├── TableReadOnlyError      a write outside an event, or by a second agent
    │   └── EventSettledError       a task outlived the event that it belongs to
    ├── EventError
    │   ├── DeadlineExceeded        an event took longer than its agent's deadline
    │   └── AgentReturnedError      an agent's function returned while its stream was open
    ├── TransportError              the broker, or the way to it
    │   ├── BrokerUnavailable       no answer within its time
    │   ├── TopicError              a topic that is missing, or is not as it was declared
    │   ├── RecordRefused           one record cannot be stored (its size, its topic, authorization)
    │   ├── OffsetOutOfRange        the position lies before or behind what the topic holds
    │   └── CommitFailed            the transaction took no effect, or nobody knows yet
    │       └── ProducerFenced      another producer took over the transactional id
    ├── StoreError                  a table's files cannot be read or written
    └── RecoveryError               a table could not be brought up to date
"""

from __future__ import annotations

from trickle.utils.errors import ConfigurationError, TrickleError

__all__ = [
    "AgentReturnedError",
    "BrokerUnavailable",
    "CodecError",
    "CommitFailed",
    "ConfigurationError",
    "DeadlineExceeded",
    "DecodeError",
    "DefinitionError",
    "EncodeError",
    "EventError",
    "EventSettledError",
    "OffsetOutOfRange",
    "ProducerFenced",
    "RecordRefused",
    "RecoveryError",
    "StoreError",
    "TableError",
    "TableReadOnlyError",
    "TopicError",
    "TransportError",
    "TrickleError",
    "UsageError",
]


class DefinitionError(ConfigurationError):
    """The app contradicts itself: two agents of one name, partition counts that do not fit."""


class UsageError(ConfigurationError):
    """A call that makes no sense where it stands."""


class CodecError(TrickleError):
    """Bytes and values do not fit each other."""


class DecodeError(CodecError):
    """A record's key or value cannot be read as its topic's type."""


class EncodeError(CodecError):
    """A key or value cannot be written as its topic's or table's type."""


class TableError(TrickleError):
    """A table cannot be used in this way."""


class TableReadOnlyError(TableError):
    """A write outside an event, or by an agent that is not the table's writer."""


class EventSettledError(TableError):
    """A task outlived the event that it belongs to, and wrote or sent after it had settled."""


class EventError(TrickleError):
    """An event could not be handled."""


class DeadlineExceeded(EventError):
    """An event took longer than its agent's ``deadline``."""


class AgentReturnedError(EventError):
    """An agent's function returned while its stream was open."""


class TransportError(TrickleError):
    """The broker, or the way to it, failed."""


class BrokerUnavailable(TransportError):
    """The broker gave no answer within its time.

    Attributes:
        pending: it is well, and a transaction that has not ended holds what was asked for.
    """

    pending = False


class TopicError(TransportError):
    """A topic is missing, or is not as it was declared."""


class RecordRefused(TransportError):
    """One record cannot be stored, whenever it is tried: its size, its topic, authorization."""

    def __init__(self, message: str, *, topic: str, partition: int | None = None) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition


class TopicRefused(RecordRefused):
    """No record of the topic can be stored, whatever is in it: no topic, or no right to write."""


class OffsetOutOfRange(TransportError):
    """The position lies before or behind what the topic holds."""


class CommitFailed(TransportError):
    """The transaction took no effect, or its outcome must be read from the committed offsets.

    Either way the producer is ready for a new transaction when this is raised.

    Args:
        message: the sentence for a person.
        refused: the record that the broker would not take, where one was the cause.
        superseded: whoever holds next, or by now, what it was for runs its events again.
    """

    def __init__(
        self, message: str, *, refused: RecordRefused | None = None, superseded: bool = False
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.superseded = superseded


class ProducerFenced(CommitFailed):
    """Another producer took over the transactional id; this one is dead."""


class StoreError(TrickleError):
    """A table's files cannot be read or written."""


class RecoveryError(TrickleError):
    """A table could not be brought up to date from its changelog."""
