"""Streams: what an agent iterates, and what can be done with one."""

from __future__ import annotations

from trickle.streams.concurrent import ConcurrentLane, Strand
from trickle.streams.event import Event, EventId
from trickle.streams.lane import Lane
from trickle.streams.ordering import Ordering, OrderingArgument
from trickle.streams.pace import Pace
from trickle.streams.settlement import Settlement
from trickle.streams.stream import Stream

__all__ = [
    "ConcurrentLane",
    "Event",
    "EventId",
    "Lane",
    "Ordering",
    "OrderingArgument",
    "Pace",
    "Settlement",
    "Strand",
    "Stream",
]
