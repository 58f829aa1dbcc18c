"""Statistics of a running app: what is told to sensors, and the Monitor that gathers it."""

from __future__ import annotations

from trickle.sensors.monitor import Monitor, MonitorStatistics
from trickle.sensors.protocol import BaseSensor, Sensor, Sensors, checked_sensors

__all__ = [
    "BaseSensor",
    "Monitor",
    "MonitorStatistics",
    "Sensor",
    "Sensors",
    "checked_sensors",
]
