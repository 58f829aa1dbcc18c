"""trickle: a stream processor on Trio. Every event is a transaction; nothing fails in silence."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trickle.agents import Agent
from trickle.app import App
from trickle.exceptions import (
    AgentReturnedError,
    BrokerUnavailable,
    CodecError,
    CommitFailed,
    ConfigurationError,
    DeadlineExceeded,
    DecodeError,
    DefinitionError,
    EncodeError,
    EventError,
    EventSettledError,
    OffsetOutOfRange,
    ProducerFenced,
    RecordRefused,
    RecoveryError,
    StoreError,
    TableError,
    TableReadOnlyError,
    TopicError,
    TransportError,
    TrickleError,
    UsageError,
)
from trickle.models import Model
from trickle.policies import DeadLetter, Retry, Skip, Stop
from trickle.run import Run
from trickle.sensors import BaseSensor, Monitor, Sensor
from trickle.service import Restart, Service
from trickle.streams import Event, EventId, Stream
from trickle.tables import Table
from trickle.topics import Source, Topic
from trickle.types import Codec, Record, RecordMetadata, TopicPartition

if TYPE_CHECKING:
    from trickle import testing

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentReturnedError",
    "App",
    "BaseSensor",
    "BrokerUnavailable",
    "Codec",
    "CodecError",
    "CommitFailed",
    "ConfigurationError",
    "DeadLetter",
    "DeadlineExceeded",
    "DecodeError",
    "DefinitionError",
    "EncodeError",
    "Event",
    "EventError",
    "EventId",
    "EventSettledError",
    "Model",
    "Monitor",
    "OffsetOutOfRange",
    "ProducerFenced",
    "Record",
    "RecordMetadata",
    "RecordRefused",
    "RecoveryError",
    "Restart",
    "Retry",
    "Run",
    "Sensor",
    "Service",
    "Skip",
    "Source",
    "Stop",
    "StoreError",
    "Stream",
    "Table",
    "TableError",
    "TableReadOnlyError",
    "Topic",
    "TopicError",
    "TopicPartition",
    "TransportError",
    "TrickleError",
    "UsageError",
    "testing",
]


def __getattr__(name: str) -> Any:
    """Import ``trickle.testing`` when it is first used: running an app does not need it."""
    if name == "testing":
        return import_module("trickle.testing")
    raise AttributeError(f"module 'trickle' has no attribute {name!r}")
