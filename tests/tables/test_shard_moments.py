"""What may happen to a shard in between: stores, the end of a generation, values that grow."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tables.helpers import CacheLimits, Lane, make_shard, make_table, store
from trickle.exceptions import EncodeError
from trickle.stores.memory import MemoryTable
from trickle.tables import Shard, Table


def lane_and_shard(table: Table[Any, Any], **options: Any) -> tuple[Lane, Shard[Any, Any]]:
    shard = make_shard(table, **options)
    return Lane("agent", 0, {table: shard}), shard


def test_the_cache_weighs_what_is_written() -> None:
    """A value that grows, or takes the place of none, counts against the cache's bytes."""
    table = make_table(str, str)
    data = MemoryTable()
    lane, shard = lane_and_shard(
        table, data=data, limits=CacheLimits(entries=1 << 20, bytes=1 << 20)
    )
    for n in range(100):
        lane.within(table.__setitem__, f"k{n}", "x" * 50_000)
        lane.settle()
        shard.snapshot()
        shard.committed(n)
        store(shard, data)
    cached = [*shard.young.values(), *shard.old.values()]
    assert sum(len(cell) for cell in cached if isinstance(cell, str)) < 2 << 20
    assert lane.within(table.__getitem__, "k0") == "x" * 50_000


@pytest.mark.parametrize("value", [int, list[int]])
def test_what_is_stored_while_an_iteration_goes_on(value: Any) -> None:
    """Keys that are there all the time are seen, those that are gone from the beginning are not."""
    table = make_table(str, value)
    data = MemoryTable()
    lane, shard = lane_and_shard(table, data=data)
    content: Any = 1 if value is int else [1]

    def commit(offset: int) -> None:
        lane.settle()
        shard.snapshot()
        shard.committed(offset)

    for key in "ace":
        lane.within(table.__setitem__, key, content)
    commit(1)
    store(shard, data)
    lane.within(table.__setitem__, "b", content)
    lane.within(table.__delitem__, "c")
    commit(2)
    inside, outside = lane.within(iter, table), shard.marks(None)
    seen: tuple[list[str], list[str]] = ([lane.within(next, inside)], [next(outside)])
    store(shard, data)
    seen[0].extend(lane.within(tuple[str, ...], inside))
    seen[1].extend(outside)
    assert seen == (["a", "b", "e"], ["a", "b", "e"])


def test_a_commit_that_ends_after_its_generation_moves_nothing() -> None:
    """The store lacks its changes, so the position must stay: recovery reads them from there."""
    table = make_table(str, int)
    lane, shard = lane_and_shard(table)
    lane.within(table.__setitem__, "a", 1)
    lane.settle()
    shard.snapshot()
    before = shard.position
    shard.revert()
    shard.committed(7)
    assert shard.position == before
    assert shard.size_committed == 0


@pytest.mark.parametrize("read_first", [False, True])
def test_long_keys_press_whichever_way_they_are_written(read_first: bool) -> None:
    table = make_table(str, int, int)
    lane, shard = lane_and_shard(table, limits=CacheLimits(entries=10_000, bytes=1 << 20))

    def count() -> None:
        for number in range(500):
            key = f"{number:04d}" * 2_500
            table[key] = table[key] + 1 if read_first else 1

    lane.within(count)
    lane.settle()
    assert shard.pressure
    assert shard.size == 500


def test_a_key_of_another_type_is_refused_also_where_its_equal_is_known_to_be_absent() -> None:
    table = make_table(int, int, int)
    lane, _ = lane_and_shard(table)
    assert lane.within(table.__getitem__, 1) == 0
    for _ in range(2):
        with pytest.raises(EncodeError):
            lane.within(table.__getitem__, True)


def test_what_is_undone_does_not_press() -> None:
    table = make_table(str, int, int)
    lane, shard = lane_and_shard(table, limits=CacheLimits(entries=10_000, bytes=1 << 20))

    def count() -> None:
        table["k" * 10_000] = table["k" * 10_000] + 1

    for _ in range(200):
        lane.within(count)
        lane.undo()
    assert not shard.pressure
