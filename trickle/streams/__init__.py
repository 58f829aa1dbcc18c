"""Streams: what an agent iterates, and what can be done with one."""

from __future__ import annotations

from trickle.streams.event import Event, EventId
from trickle.streams.lane import Lane, Settlement
from trickle.streams.pace import Pace
from trickle.streams.stream import Stream

__all__ = ["Event", "EventId", "Lane", "Pace", "Settlement", "Stream"]
