"""Sensor: what a running app tells of itself.

The hooks are Faust's, in the shape of a batch: on the hot path a sensor is told how many, once for
each batch or commit, never once for each event. So a sensor costs nothing that could be measured,
and there may be several.

A hook is called in Trio's thread, between two steps of the engine: it must return at once, and
must not raise. One that raises takes the worker down like any other error of a task: a sensor that
fails in silence would report numbers that nobody can trust.

Rather than this Protocol whole, implement what you need of :class:`BaseSensor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from trickle.exceptions import ConfigurationError
from trickle.types import TopicPartition

__all__ = ["BaseSensor", "Sensor", "Sensors", "checked_sensors"]


@runtime_checkable
class Sensor(Protocol):
    """What is told to a sensor; durations are seconds, counts are since the last call."""

    # Records

    def records_in(self, topic: str, partition: int, count: int, next_offset: int) -> None:
        """A batch of records went to the lanes; ``next_offset`` is the position behind it."""
        ...

    def records_out(self, topic: str, count: int) -> None:
        """Records were handed to the client for a topic."""
        ...

    def record_refused(self, topic: str, error: BaseException) -> None:
        """The broker, or its client, will never take a record."""
        ...

    def sent(self, topic: str, latency: float) -> None:
        """A record sent outside an event was delivered, so long after it was handed over."""
        ...

    # Events

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        """Events of an agent were settled."""
        ...

    def event_failed(self, agent: str, partition: int | None) -> None:
        """An event failed for good: its agent's policy has the next word."""
        ...

    def event_retried(self, agent: str, partition: int | None) -> None:
        """An event failed and is tried again."""
        ...

    def event_skipped(self, agent: str, partition: int | None) -> None:
        """An event that failed was left out."""
        ...

    def event_dead_lettered(self, agent: str, partition: int | None) -> None:
        """An event that failed went to the dead letters."""
        ...

    def latency(self, agent: str, seconds: float) -> None:
        """One event in a batch was settled so long after its record's timestamp."""
        ...

    # Tables

    def table_changed(self, table: str, keys: int) -> None:
        """A commit held so many changed keys of a table."""
        ...

    # Commits

    def commit_started(self) -> None:
        """A commit took its snapshot."""
        ...

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        """A commit took effect: so many events, positions of so many partitions."""
        ...

    def commit_failed(self, seconds: float, error: BaseException) -> None:
        """A commit took no effect, or nobody knows yet."""
        ...

    # Assignment

    def rebalance_started(self) -> None:
        """The group is changing: lanes are drained."""
        ...

    def rebalance_ended(self, seconds: float) -> None:
        """The lanes of the new assignment are open."""
        ...

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were given to this worker."""
        ...

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were taken from this worker."""
        ...

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        """A shard was brought up to date from so many records of its changelog."""
        ...

    def lag(self, behind: Mapping[TopicPartition, int]) -> None:
        """How many records each assigned partition holds behind its committed position, at most."""
        ...


class BaseSensor:
    """A sensor that ignores everything: override what you want to know."""

    def records_in(self, topic: str, partition: int, count: int, next_offset: int) -> None:
        """See :meth:`Sensor.records_in`."""

    def records_out(self, topic: str, count: int) -> None:
        """See :meth:`Sensor.records_out`."""

    def record_refused(self, topic: str, error: BaseException) -> None:
        """See :meth:`Sensor.record_refused`."""

    def sent(self, topic: str, latency: float) -> None:
        """See :meth:`Sensor.sent`."""

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        """See :meth:`Sensor.events_settled`."""

    def event_failed(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_failed`."""

    def event_retried(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_retried`."""

    def event_skipped(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_skipped`."""

    def event_dead_lettered(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_dead_lettered`."""

    def latency(self, agent: str, seconds: float) -> None:
        """See :meth:`Sensor.latency`."""

    def table_changed(self, table: str, keys: int) -> None:
        """See :meth:`Sensor.table_changed`."""

    def commit_started(self) -> None:
        """See :meth:`Sensor.commit_started`."""

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        """See :meth:`Sensor.committed`."""

    def commit_failed(self, seconds: float, error: BaseException) -> None:
        """See :meth:`Sensor.commit_failed`."""

    def rebalance_started(self) -> None:
        """See :meth:`Sensor.rebalance_started`."""

    def rebalance_ended(self, seconds: float) -> None:
        """See :meth:`Sensor.rebalance_ended`."""

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """See :meth:`Sensor.assigned`."""

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """See :meth:`Sensor.revoked`."""

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        """See :meth:`Sensor.recovered`."""

    def lag(self, behind: Mapping[TopicPartition, int]) -> None:
        """See :meth:`Sensor.lag`."""


class Sensors(BaseSensor):
    """Several sensors as one, told in their order."""

    def __init__(self, sensors: Iterable[Sensor]) -> None:
        self.members: tuple[Sensor, ...] = tuple(sensors)

    def records_in(self, topic: str, partition: int, count: int, next_offset: int) -> None:
        for sensor in self.members:
            sensor.records_in(topic, partition, count, next_offset)

    def records_out(self, topic: str, count: int) -> None:
        for sensor in self.members:
            sensor.records_out(topic, count)

    def record_refused(self, topic: str, error: BaseException) -> None:
        for sensor in self.members:
            sensor.record_refused(topic, error)

    def sent(self, topic: str, latency: float) -> None:
        for sensor in self.members:
            sensor.sent(topic, latency)

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        for sensor in self.members:
            sensor.events_settled(agent, partition, count)

    def event_failed(self, agent: str, partition: int | None) -> None:
        for sensor in self.members:
            sensor.event_failed(agent, partition)

    def event_retried(self, agent: str, partition: int | None) -> None:
        for sensor in self.members:
            sensor.event_retried(agent, partition)

    def event_skipped(self, agent: str, partition: int | None) -> None:
        for sensor in self.members:
            sensor.event_skipped(agent, partition)

    def event_dead_lettered(self, agent: str, partition: int | None) -> None:
        for sensor in self.members:
            sensor.event_dead_lettered(agent, partition)

    def latency(self, agent: str, seconds: float) -> None:
        for sensor in self.members:
            sensor.latency(agent, seconds)

    def table_changed(self, table: str, keys: int) -> None:
        for sensor in self.members:
            sensor.table_changed(table, keys)

    def commit_started(self) -> None:
        for sensor in self.members:
            sensor.commit_started()

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        for sensor in self.members:
            sensor.committed(seconds, events, partitions)

    def commit_failed(self, seconds: float, error: BaseException) -> None:
        for sensor in self.members:
            sensor.commit_failed(seconds, error)

    def rebalance_started(self) -> None:
        for sensor in self.members:
            sensor.rebalance_started()

    def rebalance_ended(self, seconds: float) -> None:
        for sensor in self.members:
            sensor.rebalance_ended(seconds)

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        partitions = tuple(partitions)
        for sensor in self.members:
            sensor.assigned(partitions)

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        partitions = tuple(partitions)
        for sensor in self.members:
            sensor.revoked(partitions)

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        for sensor in self.members:
            sensor.recovered(table, partition, records, seconds)

    def lag(self, behind: Mapping[TopicPartition, int]) -> None:
        for sensor in self.members:
            sensor.lag(behind)


def checked_sensors(given: Iterable[Any]) -> tuple[Sensor, ...]:
    """Return sensors that a user gave.

    Raises:
        ConfigurationError: one of them is none.
    """
    sensors = tuple(given)
    for sensor in sensors:
        if isinstance(sensor, type) or not isinstance(sensor, Sensor):
            raise ConfigurationError(
                f"sensors= has {sensor!r}, which is no sensor: give objects of classes that are "
                "derived from trickle.BaseSensor"
            )
    return sensors
