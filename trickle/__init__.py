"""trickle: a stream processor on Trio. Every event is a transaction; nothing fails in silence."""

from __future__ import annotations

from trickle import exceptions as _exceptions
from trickle.agents import Agent
from trickle.app import App
from trickle.exceptions import *  # noqa: F403 - each error under its own name, see __all__ there
from trickle.models import Model
from trickle.policies import DeadLetter, Retry, Skip, Stop
from trickle.run import Run
from trickle.sensors import BaseSensor, Monitor, Sensor
from trickle.service import Restart, Service
from trickle.streams import Event, EventId, Stream
from trickle.tables import Table
from trickle.topics import Source, Topic
from trickle.types import Codec, Record, RecordMetadata, TopicPartition

__version__ = "0.1.0"

__all__ = sorted(  # noqa: PLE0605 - sorted, so that a test can compare it
    [
        *_exceptions.__all__,
        "Agent",
        "App",
        "BaseSensor",
        "Codec",
        "DeadLetter",
        "Event",
        "EventId",
        "Model",
        "Monitor",
        "Record",
        "RecordMetadata",
        "Restart",
        "Retry",
        "Run",
        "Sensor",
        "Service",
        "Skip",
        "Source",
        "Stop",
        "Stream",
        "Table",
        "Topic",
        "TopicPartition",
    ]
)
