"""The mapping that users have: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import datetime as dt
import enum
import logging
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pytest
import trio

from tests.tables.helpers import CacheLimits, Lane, make_shard, make_table, store
from trickle.context import binding_children
from trickle.exceptions import (
    ConfigurationError,
    DefinitionError,
    EncodeError,
    EventSettledError,
    TableReadOnlyError,
    UsageError,
)
from trickle.stores.memory import MemoryTable
from trickle.tables import HOLDER, Shard, Table
from trickle.tables.placement import Placement
from trickle.tables.shapes import ABSENT
from trickle.utils.murmur2 import partition_of


class Frozen(msgspec.Struct, frozen=True):
    a: int
    b: tuple[str, ...] = ()


class Open(msgspec.Struct):
    a: int
    b: list[int] = []


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


@dataclass
class Data:
    a: int


def lane_of(table: Table[Any, Any], **options: Any) -> tuple[Lane, Shard[Any, Any]]:
    shard = make_shard(table, **options)
    return Lane("agent", shard.partition, {table: shard}), shard


def reopened(shard: Shard[Any, Any], table: Table[Any, Any], data: MemoryTable) -> Shard[Any, Any]:
    """What a restart makes of a shard."""
    shard.snapshot()
    shard.committed(1)
    store(shard, data)
    return make_shard(table, data)


VALUES: list[tuple[Any, Any, bool]] = [
    (int, 2**100, True),
    (int, -5, True),
    (float, 1.5, True),
    (str, "\ud7ff é", True),
    (bytes, b"\x00", True),
    (bool, True, True),
    (Decimal, Decimal("1.10"), True),
    (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), True),
    (Colour, Colour.RED, True),
    (tuple[int, str], (1, "a"), True),
    (Point, Point(1, 2.0), True),
    (Frozen, Frozen(1, ("x",)), True),
    (int | None, 5, True),
    (list[int], [1, 2], False),
    (dict[str, int], {"a": 1}, False),
    (set[str], {"a", "b"}, False),
    (Open, Open(1, [2]), False),
    (Data, Data(1), False),
    (tuple[list[int], int], ([1], 2), False),
    (int | list[int], 7, False),
]


@pytest.mark.parametrize(("kind", "value", "plain"), VALUES, ids=repr)
def test_every_type_comes_back_as_it_was(kind: Any, value: Any, plain: bool) -> None:
    table = make_table(str, kind)
    assert table.values_shape.plain is plain
    data = MemoryTable()
    lane, shard = lane_of(table, data=data)
    lane.within(table.__setitem__, "k", value)
    assert lane.within(table.get, "k") == value
    lane.settle()
    assert lane.within(table.get, "k") == value
    lane.settle()
    again = reopened(shard, table, data)
    assert again.read_committed("k") == value
    assert type(again.read_committed("k")) is type(value)


@pytest.mark.parametrize("key", [1, 2**70, "a", "", "é" * 500, b"", b"\xff", ("a", 1), Frozen(1)])
def test_every_key_comes_back_as_it_was(key: Any) -> None:
    kinds: dict[str, Any] = {"tuple": tuple[str, int], "Frozen": Frozen}
    kind = (
        kinds.get(type(key).__name__)
        or {"int": int, "str": str, "bytes": bytes}[type(key).__name__]
    )
    table = make_table(kind, int)
    data = MemoryTable()
    lane, shard = lane_of(table, data=data)
    lane.within(table.__setitem__, key, 1)
    assert lane.within(list, table) == [key]
    assert lane.within(lambda: (table[key], key in table, len(table))) == (1, True, 1)
    lane.settle()
    assert reopened(shard, table, data).read_committed(key) == 1


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, "x", "table 't', key 'k': expected int, got 'x' of type str"),
        (int, True, "table 't', key 'k': expected int, got True of type bool"),
        (int, None, "table 't', key 'k': None is not a int; use `del` to remove the key"),
        (float, float("nan"), "table 't', key 'k': expected float, got nan of type float"),
        (int, 10**5000, "table 't', key 'k': expected int, got "),
        (tuple[int, float], (1, float("inf")), "table 't', key 'k': expected tuple[int, float], "),
        (tuple[int, str], (1, "\ud800"), "table 't', key 'k': expected tuple[int, str], got "),
        (tuple[int, int], (True, 1), "table 't', key 'k': expected tuple[int, int], got (True, 1)"),
        (tuple[int, int], (1,), "table 't', key 'k': expected tuple[int, int], got (1,) of type"),
        (str, "\ud800", "table 't', key 'k': expected str, got "),
        (list[int], ["x"], "table 't', key 'k': expected list[int], got ['x'] of type list"),
        (Frozen, Frozen("x"), "table 't', key 'k': expected Frozen, got Frozen(a='x'"),  # type: ignore[arg-type]
        (Open, Open("x"), "table 't', key 'k': expected Open, got Open(a='x'"),  # type: ignore[arg-type]
        (dict[str, int], object(), "table 't', key 'k': expected dict[str, int], got <object"),
    ],
    ids=range(14),
)
def test_values_that_do_not_fit(kind: Any, value: Any, message: str) -> None:
    """Fault 24: told at the write, or before anything settles."""
    table = make_table(str, kind)
    lane, shard = lane_of(table)

    def write_and_settle() -> None:
        lane.within(table.__setitem__, "k", value)
        lane.settle()

    for _ in range(100):  # however many went well before
        with pytest.raises(EncodeError) as caught:
            write_and_settle()
        assert str(caught.value).startswith(message)
        lane.fail()
    assert (shard.dirty, shard.size) == ({}, 0)


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        (str, 1, "table 't', as a key: expected str, got 1 of type int"),
        (int, True, "table 't', as a key: expected int, got True of type bool"),
        (str, "\ud800", r"table 't': the key '\ud800': expected str"),
        (str, None, "table 't': None is no key, as it has no bytes; use another key"),
        (tuple[int, int], (1, "x"), "table 't', as a key: expected tuple[int, int], got (1, 'x')"),
    ],
)
def test_keys_that_do_not_fit(kind: Any, key: Any, message: str) -> None:
    table = make_table(kind, int)
    lane, shard = lane_of(table)
    with pytest.raises(EncodeError) as caught:
        lane.within(table.__setitem__, key, 1)
    assert str(caught.value).startswith(message)
    lane.fail()
    assert (shard.dirty, shard.size) == ({}, 0)


def test_true_is_not_one() -> None:
    table = make_table(int, int)
    lane, _ = lane_of(table)
    lane.within(table.__setitem__, 1, 5)
    with pytest.raises(EncodeError):
        lane.within(table.__setitem__, True, 6)
    assert lane.within(dict, table) == {1: 5}


def test_a_value_is_read_back_as_its_type_would_be() -> None:
    table = make_table(str, float)
    lane, _ = lane_of(table)
    lane.within(table.__setitem__, "k", 5)
    assert type(lane.within(table.__getitem__, "k")) is float


def test_none_removes_where_the_type_has_it() -> None:
    """None is Kafka's null, a tombstone: what a restart would read is what is seen at once."""
    for kind in (int | None, list[int] | None):
        table = make_table(str, kind)
        lane, shard = lane_of(table)
        lane.within(table.__setitem__, "k", None)
        lane.settle()
        assert lane.within(len, table) == 0
        lane.within(table.__setitem__, "k", 1 if kind == int | None else [1])
        lane.settle()
        lane.within(table.__setitem__, "k", None)
        assert lane.within(table.__contains__, "k") is False
        lane.settle()
        changes = shard.snapshot()
        assert changes is not None
        assert list(changes.encoded()) == [[(b"k", None)]]


def test_a_change_in_place_counts_and_is_undone() -> None:
    table = make_table(str, dict[str, list[int]], dict)
    lane, shard = lane_of(table)
    lane.within(lambda: table["k"].setdefault("a", []).append(1))
    lane.settle()
    kept = lane.within(table.__getitem__, "k")
    kept["a"].append(2)
    lane.fail()
    assert lane.within(table.__getitem__, "k") == {"a": [1]}
    lane.settle()
    kept["a"].append(3)  # somebody held on to it: it is a copy
    assert lane.within(table.__getitem__, "k") == {"a": [1]}
    lane.settle()
    assert list(shard.dirty) == ["k"]


def test_reading_writes_nothing() -> None:
    """Not by a default, not by a set that comes in another order, not by a new field."""
    table = make_table(str, Open)
    data = MemoryTable()
    lane, shard = lane_of(table, data=data)
    lane.within(table.__setitem__, "k", Open(1))
    lane.settle()
    shard = reopened(shard, table, data)
    shard.unstored["k"] = b'{"a":1}'  # as an older program wrote it
    lane = Lane("reader", 0, {table: shard})
    assert lane.within(table.__getitem__, "k") == Open(1, [])
    lane.settle()
    assert shard.dirty == {}
    assert shard.agent is None

    sets = make_table(str, set[str], set)
    lane, shard = lane_of(sets)
    lane.within(lambda: sets["k"])
    lane.settle()
    assert (shard.dirty, shard.size) == ({}, 0)
    lane.within(lambda: sets["k"].update(map(str, range(50))))
    lane.settle()
    shard.snapshot()
    lane.within(lambda: (sets["k"], list(sets.items())))
    lane.settle()
    assert shard.dirty == {}


def test_another_agents_change_in_place_is_refused() -> None:
    table = make_table(str, list[int], list)
    writers: list[str] = []

    def claim(agent: str) -> None:
        writers.append(agent)
        if agent != writers[0]:
            raise TableReadOnlyError(f"{agent} and {writers[0]}")

    first, shard = lane_of(table, claim=claim)
    second = Lane("second", 0, {table: shard})
    first.within(lambda: table["k"].append(1))
    first.settle()
    assert second.within(table.__getitem__, "k") == [1]
    second.settle()
    second.within(lambda: table["k"].append(2))
    with pytest.raises(TableReadOnlyError, match="second and agent"):
        second.settle()
    second.fail()
    assert first.within(table.__getitem__, "k") == [1]


def test_the_rest_of_a_mapping() -> None:
    table = make_table(str, int)
    lane, _ = lane_of(table)

    def use() -> None:
        table.update({"a": 1}, b=2)
        assert table.setdefault("a", 9) == 1
        assert table.setdefault("c", 3) == 3
        assert table.pop("c") == 3
        assert table.pop("c", None) is None
        with pytest.raises(KeyError, match="'c'"):
            table.pop("c")
        with pytest.raises(KeyError):
            del table["c"]
        with pytest.raises(KeyError):
            table["c"]
        assert table.get("c", 7) == 7
        assert (list(table), list(table.items())) == (["a", "b"], [("a", 1), ("b", 2)])
        assert (list(table.keys()), list(table.values())) == (["a", "b"], [1, 2])
        assert (2 in table.values(), ("a", 1) in table.items()) == (True, True)
        assert (len(table), bool(table)) == (2, True)
        table.clear()
        assert (len(table), bool(table), list(table)) == (0, False, [])

    lane.within(use)


def test_tables_are_told_apart_by_what_they_are() -> None:
    one, other = make_table(str, int), make_table(str, int)
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "<Table 't'>"


def test_definitions_that_make_no_sense() -> None:
    with pytest.raises(DefinitionError, match="default=0 is no function: give one that makes"):
        make_table(str, int, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        make_table(str, int, name="no/slash")
    with pytest.raises(ConfigurationError):
        make_table(str, int, value_serializer="nonsense")


def test_outside_of_everything() -> None:
    table = make_table(str, int)
    with pytest.raises(UsageError, match="no app is running here; read it inside"):
        table.get("a")
    with pytest.raises(TableReadOnlyError, match="only an agent writes it"):
        table["a"] = 1


def test_a_tick_reads_what_is_committed() -> None:
    table = make_table(str, int)
    lane, shard = lane_of(table)
    tick = Lane("timer", None, {})

    class Holder:
        def shards_of(self, table: Table[Any, Any]) -> list[Shard[Any, Any]]:
            return [shard]

    lane.within(table.__setitem__, "a", 1)
    lane.settle()
    token = HOLDER.set(Holder())
    assert tick.within(table.get, "a") is None
    shard.snapshot()
    shard.committed(1)
    assert tick.within(table.get, "a") == 1
    with pytest.raises(TableReadOnlyError, match="can be read here, not written"):
        tick.within(table.__setitem__, "a", 2)
    other = Lane("other", 3, {})
    with pytest.raises(TableReadOnlyError, match=r"no partition 3 for agent 'other'.* source="):
        other.within(table.__setitem__, "a", 2)
    HOLDER.reset(token)


async def test_a_task_that_outlives_its_event_is_refused() -> None:
    """The event settles, then the task goes on: each of its reads and writes raises."""
    table = make_table(str, int)
    lane, shard = lane_of(table)
    settled = trio.Event()
    errors: list[str] = []

    async def task() -> None:
        await settled.wait()
        for act in (
            lambda: table.__setitem__("a", 2),
            lambda: table.get("a"),
            lambda: table["a"],
            lambda: len(table),
            lambda: table.pop("a"),
        ):
            with pytest.raises(EventSettledError) as caught:
                act()
            errors.append(str(caught.value))
        with pytest.raises(EventSettledError, match="this iteration belongs to an event"):
            next(iterator)

    with binding_children():
        async with trio.open_nursery() as nursery:
            lane.within(table.update, {"a": 1, "b": 1})
            iterator = lane.within(iter, table)
            lane.within(next, iterator)
            lane.within(nursery.start_soon, task)
            lane.settle()
            settled.set()
    assert len(errors) == 5
    assert shard.dirty == {"a": 1, "b": 1}


def test_a_store_that_fails_keeps_the_newest() -> None:
    """Being stored: a=1. Committed meanwhile: a=2. The store fails: a=2 is still to be stored."""
    table = make_table(str, int)
    lane, shard = lane_of(table, limits=CacheLimits(entries=1))
    for value in (1, 2):
        lane.within(table.__setitem__, "a", value)
        lane.settle()
        shard.snapshot()
        shard.committed(value)
        if value == 1:
            shard.begin_store()
    shard.store_failed()
    assert shard.unstored == {"a": 2}


def placed(caplog: pytest.LogCaptureFixture, keys: list[str], own: bytes | None = None) -> int:
    """Write keys in partition 0 of 4, an event each; return how many warnings there were."""
    table = make_table(str, int)
    warned: set[str] = set()
    shard = make_shard(table, partitions=4, placement=Placement("t", 0, 4, partition_of, warned))

    class Keyed(Lane):
        __slots__ = ()

        def key_bytes(self) -> bytes | None:
            return own

    lane = Keyed("agent", 0, {table: shard})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for key in keys:
            if key == "commit":
                shard.snapshot()
                shard.committed(1)
            else:
                lane.within(table.__setitem__, key, 1)
                lane.settle()
    return len(caplog.records)


def test_a_key_of_another_partition_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    right = [f"k{n}" for n in range(2000) if partition_of(b"k%d" % n, 4) == 0]
    wrong = next(f"k{n}" for n in range(50) if partition_of(b"k%d" % n, 4) == 2)
    assert placed(caplog, right) == 0
    assert placed(caplog, [wrong, wrong, "k1", "k2", "k3"]) == 1
    assert f"'{wrong}' in partition 0, but the key belongs to partition 2" in caplog.text
    assert "group_by" in caplog.text
    assert placed(caplog, [wrong], own=wrong.encode()) == 0
    # Sampled: the first hundred events, then the first one behind each commit.
    assert placed(caplog, [*right[:99], wrong]) == 1
    assert placed(caplog, [*right[:100], wrong]) == 0
    assert placed(caplog, [*right[:100], wrong, "commit", wrong]) == 1


def test_the_cache_is_bounded() -> None:
    table = make_table(str, str)
    data = MemoryTable()
    lane, shard = lane_of(table, data=data, limits=CacheLimits(entries=100, bytes=1 << 20))
    for n in range(1000):
        lane.within(table.__setitem__, f"k{n}", "x")
        lane.settle()
        if shard.pressure:
            shard.snapshot()
            shard.committed(n)
            store(shard, data)
    assert len(shard.young) + len(shard.old) <= 101
    assert lane.within(len, table) == 1000
    assert shard.read_committed("k3") == "x"
    large = make_table(str, list[str], list)
    lane, shard = lane_of(large, limits=CacheLimits(entries=1 << 40, bytes=1 << 20))
    for n in range(40):
        assert not shard.pressure or n > 4
        lane.within(large.__setitem__, f"k{n}", ["x" * 100_000])
        lane.settle()
    assert shard.pressure


def test_absent_is_remembered() -> None:
    """A key that is missing is looked up in the store once, not at each read."""

    class Counted(MemoryTable):
        reads = 0

        def get(self, key: bytes) -> bytes | None:
            self.reads += 1
            return super().get(key)

    table = make_table(str, int, int)
    data = Counted()
    lane, shard = lane_of(table, data=data)
    for _ in range(3):
        assert lane.within(table.__getitem__, "a") == 0
    assert shard.cell("a") is ABSENT
    assert data.reads == 1
