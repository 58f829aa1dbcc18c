"""Monitor: the sensor that every Run has. It gathers counts, rates, latencies and lag.

Its memory is bounded: one small counter for each topic, partition, agent and table of the app
(which are as many as the app defines and the broker assigns), a window of seconds for each rate,
and the last few hundred values of each latency. Nothing grows with the number of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import trio

from trickle.sensors.protocol import BaseSensor
from trickle.service import Service, ServiceStatistics
from trickle.types import TopicPartition
from trickle.utils.rates import Rate, Sample

__all__ = [
    "AgentStatistics",
    "CommitStatistics",
    "LatencyStatistics",
    "Monitor",
    "MonitorStatistics",
    "PartitionStatistics",
    "RecoveryStatistics",
    "TableStatistics",
    "TopicStatistics",
]

_WINDOW_S = 10.0
_NAMES_MAX = 10_000
"""Counters of one kind: more than any app has; a runaway set of names stops here."""


class LatencyStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A duration that was sampled; seconds. Quantiles are of the last few hundred values."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    maximum: float = 0.0


class TopicStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one topic since the start; rates are per second, over ten seconds."""

    records_in: int = 0
    records_in_rate: float = 0.0
    records_out: int = 0
    records_out_rate: float = 0.0
    refused: int = 0


class AgentStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one agent since the start.

    Attributes:
        latency: from the record's timestamp until it had settled, one event in each batch.
    """

    settled: int = 0
    settled_rate: float = 0.0
    failed: int = 0
    retried: int = 0
    skipped: int = 0
    dead_lettered: int = 0
    latency: LatencyStatistics = LatencyStatistics()


class TableStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One table since the start: keys changed, once for each commit; records recovered."""

    changed: int = 0
    recovered: int = 0


class CommitStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Commits since the start.

    Attributes:
        running: one has begun and not ended.
        last_error: of the last one that failed, as one line.
    """

    succeeded: int = 0
    failed: int = 0
    running: bool = False
    events: int = 0
    events_rate: float = 0.0
    latency: LatencyStatistics = LatencyStatistics()
    last_error: str | None = None


class RecoveryStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Shards brought up to date since the start."""

    shards: int = 0
    records: int = 0
    seconds: float = 0.0


class PartitionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One assigned partition.

    Attributes:
        position: behind the last record that went to the lanes; -1 before the first.
        lag: records not yet committed, as last measured; None where nobody has.
    """

    topic: str
    partition: int
    position: int = -1
    lag: int | None = None


class MonitorStatistics(ServiceStatistics, frozen=True, kw_only=True):
    """Everything that the Monitor knows: plain numbers that serialise to JSON.

    Attributes:
        uptime: seconds since the Monitor was made.
        sent_latency: of records sent outside events, until delivered.
        rebalancing: a rebalance has begun and not ended.
    """

    uptime: float = 0.0
    records_in: int = 0
    records_in_rate: float = 0.0
    records_out: int = 0
    records_out_rate: float = 0.0
    events: int = 0
    events_rate: float = 0.0
    commits: CommitStatistics = CommitStatistics()
    recovery: RecoveryStatistics = RecoveryStatistics()
    sent_latency: LatencyStatistics = LatencyStatistics()
    rebalances: int = 0
    rebalancing: bool = False
    rebalance_latency: LatencyStatistics = LatencyStatistics()
    topics: Mapping[str, TopicStatistics] = msgspec.field(
        default_factory=dict[str, TopicStatistics]
    )
    agents: Mapping[str, AgentStatistics] = msgspec.field(
        default_factory=dict[str, AgentStatistics]
    )
    tables: Mapping[str, TableStatistics] = msgspec.field(
        default_factory=dict[str, TableStatistics]
    )
    partitions: tuple[PartitionStatistics, ...] = ()


class _Topic:
    __slots__ = ("incoming", "outgoing", "refused")

    def __init__(self) -> None:
        self.incoming = Rate(_WINDOW_S)
        self.outgoing = Rate(_WINDOW_S)
        self.refused = 0


class _Agent:
    __slots__ = ("dead_lettered", "failed", "latency", "retried", "settled", "skipped")

    def __init__(self) -> None:
        self.settled = Rate(_WINDOW_S)
        self.failed = self.retried = self.skipped = self.dead_lettered = 0
        self.latency = Sample()


class _Table:
    __slots__ = ("changed", "recovered")

    def __init__(self) -> None:
        self.changed = self.recovered = 0


class Monitor(Service, BaseSensor):
    """Counts, rates, latencies and lag of one Run.

    Args:
        clock: seconds; only differences matter.
    """

    name = "Monitor"

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        super().__init__()
        self._clock = clock
        self._started = clock()
        self._topics: dict[str, _Topic] = {}
        self._agents: dict[str, _Agent] = {}
        self._tables: dict[str, _Table] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._lag: dict[TopicPartition, int] = {}
        self._incoming = Rate(_WINDOW_S)
        self._outgoing = Rate(_WINDOW_S)
        self._committed = Rate(_WINDOW_S)
        self._commits = self._commits_failed = 0
        self._committing = False
        self._commit_error: str | None = None
        self._commit_latency = Sample()
        self._sent = Sample()
        self._rebalances = 0
        self._rebalancing = False
        self._rebalance_latency = Sample()
        self._recovered_shards = self._recovered_records = 0
        self._recovered_seconds = 0.0

    # Records

    def records_in(self, topic: str, partition: int, count: int, next_offset: int) -> None:
        """See :meth:`Sensor.records_in`."""
        now = self._clock()
        self._incoming.add(count, now)
        self._topic(topic).incoming.add(count, now)
        key = TopicPartition(topic, partition)
        if key in self._positions:  # else it has been revoked meanwhile
            self._positions[key] = next_offset

    def records_out(self, topic: str, count: int) -> None:
        """See :meth:`Sensor.records_out`."""
        now = self._clock()
        self._outgoing.add(count, now)
        self._topic(topic).outgoing.add(count, now)

    def record_refused(self, topic: str, error: BaseException) -> None:
        """See :meth:`Sensor.record_refused`."""
        self._topic(topic).refused += 1

    def sent(self, topic: str, latency: float) -> None:
        """See :meth:`Sensor.sent`."""
        self._sent.add(latency)

    # Events

    def events_settled(self, agent: str, partition: int | None, count: int) -> None:
        """See :meth:`Sensor.events_settled`."""
        self._agent(agent).settled.add(count, self._clock())

    def event_failed(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_failed`."""
        self._agent(agent).failed += 1

    def event_retried(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_retried`."""
        self._agent(agent).retried += 1

    def event_skipped(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_skipped`."""
        self._agent(agent).skipped += 1

    def event_dead_lettered(self, agent: str, partition: int | None) -> None:
        """See :meth:`Sensor.event_dead_lettered`."""
        self._agent(agent).dead_lettered += 1

    def latency(self, agent: str, seconds: float) -> None:
        """See :meth:`Sensor.latency`."""
        self._agent(agent).latency.add(seconds)

    # Tables

    def table_changed(self, table: str, keys: int) -> None:
        """See :meth:`Sensor.table_changed`."""
        counter = self._table(table)
        counter.changed += keys

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        """See :meth:`Sensor.recovered`."""
        self._table(table).recovered += records
        self._recovered_shards += 1
        self._recovered_records += records
        self._recovered_seconds += seconds

    # Commits

    def commit_started(self) -> None:
        """See :meth:`Sensor.commit_started`."""
        self._committing = True

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        """See :meth:`Sensor.committed`."""
        self._committing = False
        self._commits += 1
        self._committed.add(events, self._clock())
        self._commit_latency.add(seconds)

    def commit_failed(self, seconds: float, error: BaseException) -> None:
        """See :meth:`Sensor.commit_failed`."""
        self._committing = False
        self._commits_failed += 1
        self._commit_latency.add(seconds)
        self._commit_error = f"{type(error).__name__}: {error}"[:500]

    # Assignment

    def rebalance_started(self) -> None:
        """See :meth:`Sensor.rebalance_started`."""
        self._rebalancing = True

    def rebalance_ended(self, seconds: float) -> None:
        """See :meth:`Sensor.rebalance_ended`."""
        self._rebalancing = False
        self._rebalances += 1
        self._rebalance_latency.add(seconds)

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """See :meth:`Sensor.assigned`."""
        for partition in partitions:
            self._positions.setdefault(partition, -1)

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """See :meth:`Sensor.revoked`."""
        for partition in partitions:
            self._positions.pop(partition, None)
            self._lag.pop(partition, None)

    def lag(self, behind: Mapping[TopicPartition, int]) -> None:
        """See :meth:`Sensor.lag`."""
        self._lag = {key: lag for key, lag in behind.items() if key in self._positions}

    # What it knows

    def statistics(self) -> MonitorStatistics:
        """Return a frozen picture of everything."""
        now = self._clock()
        base = super().statistics()
        return MonitorStatistics(
            name=base.name,
            running=base.running,
            restarts=base.restarts,
            tasks=base.tasks,
            children=base.children,
            uptime=max(0.0, now - self._started),
            records_in=self._incoming.total,
            records_in_rate=self._incoming.per_second(now),
            records_out=self._outgoing.total,
            records_out_rate=self._outgoing.per_second(now),
            events=self._committed.total,
            events_rate=self._committed.per_second(now),
            commits=self._commit_statistics(now),
            recovery=RecoveryStatistics(
                shards=self._recovered_shards,
                records=self._recovered_records,
                seconds=self._recovered_seconds,
            ),
            sent_latency=_latency(self._sent),
            rebalances=self._rebalances,
            rebalancing=self._rebalancing,
            rebalance_latency=_latency(self._rebalance_latency),
            topics={name: _topic(topic, now) for name, topic in sorted(self._topics.items())},
            agents={name: _agent(agent, now) for name, agent in sorted(self._agents.items())},
            tables={
                name: TableStatistics(changed=t.changed, recovered=t.recovered)
                for name, t in sorted(self._tables.items())
            },
            partitions=tuple(
                PartitionStatistics(
                    topic=key.topic,
                    partition=key.partition,
                    position=position,
                    lag=self._lag.get(key),
                )
                for key, position in sorted(self._positions.items())
            ),
        )

    def _commit_statistics(self, now: float) -> CommitStatistics:
        return CommitStatistics(
            succeeded=self._commits,
            failed=self._commits_failed,
            running=self._committing,
            events=self._committed.total,
            events_rate=self._committed.per_second(now),
            latency=_latency(self._commit_latency),
            last_error=self._commit_error,
        )

    def _topic(self, name: str) -> _Topic:
        return _counter(self._topics, name, _Topic)

    def _agent(self, name: str) -> _Agent:
        return _counter(self._agents, name, _Agent)

    def _table(self, name: str) -> _Table:
        return _counter(self._tables, name, _Table)


def _counter(counters: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """Return a name's counter; beyond the bound all further names share one."""
    found = counters.get(name)
    if found is None:
        if len(counters) >= _NAMES_MAX:
            name = "(others)"
        found = counters.setdefault(name, make())
    return found


def _latency(sample: Sample) -> LatencyStatistics:
    p50, p99 = sample.quantiles((0.5, 0.99))
    return LatencyStatistics(
        count=sample.count,
        mean=sample.total / sample.count if sample.count else 0.0,
        p50=p50,
        p99=p99,
        maximum=sample.maximum,
    )


def _topic(topic: _Topic, now: float) -> TopicStatistics:
    return TopicStatistics(
        records_in=topic.incoming.total,
        records_in_rate=topic.incoming.per_second(now),
        records_out=topic.outgoing.total,
        records_out_rate=topic.outgoing.per_second(now),
        refused=topic.refused,
    )


def _agent(agent: _Agent, now: float) -> AgentStatistics:
    return AgentStatistics(
        settled=agent.settled.total,
        settled_rate=agent.settled.per_second(now),
        failed=agent.failed,
        retried=agent.retried,
        skipped=agent.skipped,
        dead_lettered=agent.dead_lettered,
        latency=_latency(agent.latency),
    )
