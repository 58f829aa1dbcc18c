"""What an app defines, as a Run takes it: plain data, so that a Run never holds the App."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from trickle.agents import Agent
from trickle.sensors import Sensor
from trickle.service import Restart, Service
from trickle.tables import Table
from trickle.topics import Topic

__all__ = ["Command", "Definitions", "ServiceDefinition", "Timer"]


class Timer(msgspec.Struct, frozen=True):
    """A function and the seconds between two of its calls."""

    name: str
    function: Callable[[], Awaitable[None]]
    interval: float


class Command(msgspec.Struct, frozen=True):
    """A function of the user's that the command line offers."""

    name: str
    function: Callable[..., Awaitable[Any]]


class ServiceDefinition(msgspec.Struct, frozen=True):
    """A service class of the user's, and how often a failed one is started again."""

    factory: type[Service]
    restart: Restart | None


class Definitions(msgspec.Struct, frozen=True, kw_only=True):
    """All that a Run brings to life.

    Attributes:
        id: the app's.
        app: itself, by which its topics and tables find their Run.
        topics: the user's, repartition topics, those of dead letters.
        agents: upstream first, internal ones included.
        tasks: functions that run once.
        sensors: told of what happens, beside the Monitor.
    """

    id: str
    app: object
    topics: tuple[Topic[Any, Any], ...]
    agents: tuple[Agent[Any, Any], ...]
    tables: tuple[Table[Any, Any], ...]
    timers: tuple[Timer, ...]
    tasks: tuple[Callable[[], Awaitable[None]], ...]
    services: tuple[ServiceDefinition, ...]
    sensors: tuple[Sensor, ...]
