"""What the tests of tables share: tables without an app, shards without a manager."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from itertools import chain
from typing import Any, TypeVar

from trickle.context import CURRENT, Turn
from trickle.stores.contract import Position, TableData, TableWrite, coalesced
from trickle.stores.memory import MemoryTable
from trickle.tables import CacheLimits, Shard, Table

T = TypeVar("T")

TOPIC_ID = "changelog-1"


def make_table(
    key: Any, value: Any, default: Callable[[], Any] | None = None, name: str = "t", **options: Any
) -> Table[Any, Any]:
    """A table of an app named ``app``."""
    return Table(name, app_id="app", key=key, value=value, default=default, **options)


def make_shard(
    table: Table[Any, Any], data: TableData | None = None, **options: Any
) -> Shard[Any, Any]:
    """The only shard of a table."""
    return Shard(
        table.name,
        options.pop("partition", 0),
        options.pop("partitions", 1),
        table.keys_shape,
        table.values_shape,
        MemoryTable() if data is None else data,
        topic_id=TOPIC_ID,
        **options,
    )


class Lane(Turn):
    """A lane without a stream: events by hand."""

    def __init__(self, agent: str, partition: int | None, shards: dict[Any, Any]) -> None:
        super().__init__(agent, partition, shards)
        self.take_in_hand()

    def within(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function as the event in hand would."""

        def enter() -> T:
            CURRENT.set(self)
            return function(*args)

        return copy_context().run(enter)

    def settle(self) -> None:
        """As the stream does at the next event."""
        for part in self.unchecked:
            part.check()
        self.unchecked.clear()
        for part in self.written:
            part.settle()
        self.written.clear()
        self.effects.clear()
        self.touched = False
        self.renumber()

    def fail(self) -> None:
        """As an error policy does."""
        self.undo()
        self.renumber()


def store(shard: Shard[Any, Any], data: MemoryTable) -> None:
    """Hand what is committed to the store, as the manager does."""
    changes = shard.begin_store()
    if changes is not None:
        assert shard.position is not None
        pairs = coalesced(chain.from_iterable(changes.encoded()))
        data.write(TableWrite(table=shard.table, position=shard.position, changes=pairs))
        shard.stored()


__all__ = ["TOPIC_ID", "CacheLimits", "Lane", "Position", "make_shard", "make_table", "store"]
