"""A changelog that loses records while it is read: only its own table is begun anew."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.tables.world import TABLES, Trimming, World, committed, counts, names
from trickle.stores.contract import Position
from trickle.tables.recovery_plan import Plan, plan_recovery
from trickle.transport.contract import Watermarks
from trickle.types import TopicPartition

NAMES_0 = TopicPartition(names.changelog, 0)


async def test_other_tables_keep_what_their_changelogs_have_no_more(
    autojump_clock: MockClock,
) -> None:
    world = World()
    await world.declare()
    await world.produce(names, (b"a", b'["x"]'), (b"b", b'["y"]'))
    async with world.manager() as manager:
        await manager.open(1, 0, TABLES)
    await world.transport.admin.delete_records({NAMES_0: 2})
    await world.produce(counts, *((b"k%d" % n, b"1") for n in range(5)))
    async with world.manager(transport=Trimming(world.transport.broker, 1)) as manager:
        shards = await manager.open(1, 0, TABLES)
        assert committed(shards[names]) == {"a": ["x"], "b": ["y"]}
        assert committed(shards[counts]) == {f"k{n}": 1 for n in range(1, 5)}


@pytest.mark.parametrize("markers", [True, False])
def test_what_is_older_than_deletions_are_remembered_is_rebuilt(markers: bool) -> None:
    """Unless nothing has come since, or the changelog's beginning is gone as well."""
    old = Position("id", 10, old=True)

    def plan(position: Position, low: int, high: int) -> Plan:
        return plan_recovery(position, "id", Watermarks(low, high), markers=markers)

    assert plan(old, 0, 20).rebuild is not None
    assert plan(old, 0, 20).start == 0
    assert plan(old, 0, 10 + markers).rebuild is None
    assert plan(old, 5, 20) == Plan(10, 20)
    assert plan(old._replace(old=False), 0, 20) == Plan(10, 20)
