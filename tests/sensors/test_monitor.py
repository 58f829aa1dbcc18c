"""The Monitor: what it counts, that it stays small, and that its picture is plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from trickle.sensors import BaseSensor, Monitor, MonitorStatistics, Sensor, Sensors
from trickle.types import TopicPartition

T0 = TopicPartition("t", 0)
T1 = TopicPartition("t", 1)


class Clock:
    """A clock that is set by hand; seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> Monitor:
    return Monitor(clock=clock)


def hooks() -> list[str]:
    return [name for name in vars(Sensor) if not name.startswith("_")]


class Recorder(BaseSensor):
    """Notes each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in hooks():
            return partial(self._note, name)
        return super().__getattribute__(name)

    def _note(self, name: str, *args: Any) -> None:
        self.calls.append((name, args))


def test_records_and_positions(monitor: Monitor, clock: Clock) -> None:
    monitor.assigned([T0, T1])
    for step in range(10):
        clock.now += 1
        monitor.records_in("t", 0, 100, (step + 1) * 100)
    monitor.records_out("late", 50)
    monitor.record_refused("late", ValueError("too large"))
    picture = monitor.statistics()
    assert picture.uptime == 10.0
    assert (picture.records_in, picture.records_out) == (1000, 50)
    assert picture.records_in_rate == pytest.approx(100, rel=0.2)
    assert picture.topics["t"].records_in == 1000
    assert picture.topics["late"].records_out == 50
    assert picture.topics["late"].refused == 1
    assert [(p.partition, p.position, p.lag) for p in picture.partitions] == [
        (0, 1000, None),
        (1, -1, None),
    ]


def test_lag_is_that_of_assigned_partitions_only(monitor: Monitor) -> None:
    monitor.assigned([T0, T1])
    monitor.lag({T0: 5, T1: 7, TopicPartition("gone", 0): 9})
    assert [p.lag for p in monitor.statistics().partitions] == [5, 7]
    monitor.revoked([T1])
    monitor.records_in("t", 1, 5, 5)  # a batch that was on its way
    assert [(p.partition, p.lag) for p in monitor.statistics().partitions] == [(0, 5)]
    monitor.assigned([T1])
    assert [p.lag for p in monitor.statistics().partitions] == [5, None]


def test_events_by_agent(monitor: Monitor) -> None:
    monitor.events_settled("a", 0, 500)
    monitor.event_failed("a", 0)
    monitor.event_retried("a", 0)
    monitor.event_retried("a", 0)
    monitor.event_skipped("a", 0)
    monitor.event_dead_lettered("b", None)
    monitor.latency("a", 0.25)
    agents = monitor.statistics().agents
    a = agents["a"]
    assert (a.settled, a.failed, a.retried, a.skipped, a.dead_lettered) == (500, 1, 2, 1, 0)
    assert (a.latency.count, a.latency.p50, a.latency.maximum) == (1, 0.25, 0.25)
    assert agents["b"].dead_lettered == 1


def test_commits(monitor: Monitor, clock: Clock) -> None:
    monitor.commit_started()
    assert monitor.statistics().commits.running
    monitor.committed(0.02, 1000, 4)
    monitor.commit_started()
    monitor.commit_failed(0.5, RuntimeError("x" * 1000))
    clock.now += 5
    picture = monitor.statistics()
    assert (picture.events, picture.events_rate) == (1000, 200.0)
    assert (picture.commits.succeeded, picture.commits.failed) == (1, 1)
    assert not picture.commits.running
    assert (picture.commits.latency.p50, picture.commits.latency.p99) == (0.02, 0.5)
    assert picture.commits.last_error is not None
    assert picture.commits.last_error.startswith("RuntimeError: xxx")
    assert len(picture.commits.last_error) == 500


def test_tables_rebalances_and_sends(monitor: Monitor) -> None:
    monitor.table_changed("counts", 4)
    monitor.table_changed("counts", 1)
    monitor.recovered("counts", 0, 1000, 0.5)
    monitor.rebalance_started()
    assert monitor.statistics().rebalancing
    monitor.rebalance_ended(1.5)
    monitor.sent("t", 0.003)
    picture = monitor.statistics()
    counts = picture.tables["counts"]
    assert (counts.changed, counts.recovered) == (5, 1000)
    assert (picture.recovery.shards, picture.recovery.records, picture.recovery.seconds) == (
        1,
        1000,
        0.5,
    )
    assert (picture.rebalances, picture.rebalancing) == (1, False)
    assert picture.rebalance_latency.p50 == 1.5
    assert picture.sent_latency.count == 1


def test_the_picture_is_frozen_plain_data(monitor: Monitor) -> None:
    monitor.assigned([T0])
    monitor.records_in("t", 0, 5, 5)
    monitor.events_settled("a", 0, 5)
    monitor.table_changed("x", 1)
    picture = monitor.statistics()
    assert msgspec.json.decode(msgspec.json.encode(picture), type=MonitorStatistics) == picture
    with pytest.raises(AttributeError):
        picture.records_in = 6  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    monitor.records_in("t", 0, 5, 10)
    assert picture.records_in == 5


def test_a_runaway_set_of_names_shares_one_counter(monitor: Monitor) -> None:
    for number in range(20_000):
        monitor.event_failed(f"agent-{number}", 0)
    agents = monitor.statistics().agents
    assert len(agents) == 10_001
    assert agents["(others)"].failed == 10_000
    assert sum(agent.failed for agent in agents.values()) == 20_000


async def test_it_is_a_service(monitor: Monitor) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        assert monitor.statistics().running
        assert monitor.statistics().name == "Monitor"
        nursery.cancel_scope.cancel()
    assert not monitor.statistics().running


# The protocol


@pytest.mark.parametrize("kind", [BaseSensor, Sensors, Monitor])
def test_every_hook_is_there_with_the_same_arguments(kind: type) -> None:
    for name in hooks():
        wanted: Callable[..., Any] = getattr(Sensor, name)
        assert inspect.signature(getattr(kind, name)) == inspect.signature(wanted), name


def test_several_sensors_are_told_in_their_order() -> None:
    first, second = Recorder(), Recorder()
    both = Sensors([first, second])
    arguments: dict[str, tuple[Any, ...]] = {}
    for name in hooks():
        parameters = list(inspect.signature(getattr(Sensor, name)).parameters)[1:]
        arguments[name] = tuple(
            (T0,) if parameter == "partitions" and name != "committed" else f"{name}-{parameter}"
            for parameter in parameters
        )
        getattr(both, name)(*arguments[name])
    expected = [(name, arguments[name]) for name in hooks()]
    assert first.calls == expected
    assert second.calls == expected


def test_partitions_given_as_an_iterator_reach_every_sensor(clock: Clock) -> None:
    monitors = [Monitor(clock=clock), Monitor(clock=clock)]
    Sensors(monitors).assigned(iter([T0, T1]))
    assert [len(monitor.statistics().partitions) for monitor in monitors] == [2, 2]


def test_a_base_sensor_ignores_everything() -> None:
    base = BaseSensor()
    assert isinstance(base, Sensor)
    for name in hooks():
        count = len(inspect.signature(getattr(Sensor, name)).parameters) - 1
        assert getattr(base, name)(*[None] * count) is None


def test_an_error_of_a_sensor_is_not_swallowed() -> None:
    class Wrong(BaseSensor):
        def commit_started(self) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Sensors([Wrong()]).commit_started()
