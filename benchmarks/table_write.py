"""What a table costs an event: ``table[key] += 1`` through the facade, and settling.

Nothing else is in the loop: no broker, no decoding. Run it by
``python -m benchmarks.table_write``; figures are µs an event, the best of some rounds.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import trio

from trickle.context import CURRENT, Turn
from trickle.stores.contract import Position, TableData, TableWrite, coalesced
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryTable
from trickle.tables import CacheLimits, Shard, Table

EVENTS = 200_000
ROUNDS = 5


def make(kind: Any, default: Callable[[], Any], data: TableData, entries: int) -> Any:
    """A table, its only shard, and the lane that writes it."""
    table: Table[str, Any] = Table("t", app_id="bench", key=str, value=kind, default=default)
    shard: Shard[str, Any] = Shard(
        "t", 0, 1, table.keys_shape, table.values_shape, data, limits=CacheLimits(entries=entries)
    )
    return table, shard, Turn("agent", 0, {table: shard})


def count(table: Any, key: str) -> None:
    table[key] += 1


def count_and_sum(table: Any, key: str) -> None:
    number, total = table[key]
    table[key] = (number + 1, total + 0.5)


def append(table: Any, key: str) -> None:
    table[key].append(1)


def look(table: Any, key: str) -> None:
    table.get(key)


def nothing(table: Any, key: str) -> None:
    pass


def events(act: Callable[[Any, str], None], table: Any, turn: Turn, keys: list[str]) -> float:
    """Return the seconds that an event takes, one after another, each settled."""
    CURRENT.set(turn)
    turn.take_in_hand()
    clock = time.perf_counter
    started = clock()
    for key in keys:
        act(table, key)
        if turn.touched:
            for part in turn.unchecked:
                part.check()
            turn.unchecked.clear()
            for shard in turn.written:
                shard.settle()
            turn.written.clear()
            turn.touched = False
    return (clock() - started) / len(keys)


def commit(shard: Shard[Any, Any], data: Any) -> None:
    """Commit and store, outside of what is measured."""
    if shard.snapshot() is not None:
        shard.committed(1)
    changes = shard.begin_store()
    if changes is not None:
        write = TableWrite(
            table="t",
            position=Position("id", 1),
            changes=coalesced(chain(*changes.encoded())),
        )
        if isinstance(data, MemoryTable):
            data.write(write)
        shard.stored()


def measure(name: str, act: Callable[[Any, str], None], setup: Any, keys: list[str]) -> None:
    table, shard, turn = setup
    best = empty = float("inf")
    for _ in range(ROUNDS):
        empty = min(empty, events(nothing, table, turn, keys))
        best = min(best, events(act, table, turn, keys))
        commit(shard, shard.data)
    print(f"{name:52} {1e6 * (best - empty):6.2f}")


async def main() -> None:
    """Measure each path."""
    gc.freeze()
    gc.set_threshold(50_000)
    few = [f"key{n % 1000}" for n in range(EVENTS)]
    fresh = [f"key{n}" for n in range(EVENTS)]
    big = 1 << 30
    measure("table[k] += 1, cached", count, make(int, int, MemoryTable(), big), few)
    pairs = tuple[int, float]
    sums = make(pairs, lambda: (0, 0.0), MemoryTable(), big)
    measure("table[k] = (n + 1, total), cached", count_and_sum, sums, few)
    measure("table[k].append(1), a list of up to thousands", append,
            make(list[int], list, MemoryTable(), big), few[:20_000])  # fmt: skip
    measure("table.get(k), cached", look, make(int, int, MemoryTable(), big), few)
    measure("table[k] += 1, new keys, memory store", count, make(int, int, MemoryTable(), big),
            fresh)  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        store = LmdbStore(Path(directory) / "tables")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            environment = await store.open(1, 0, ["t"])
            data = environment.tables["t"]
            pairs_now = [(key.encode(), b"1") for key in fresh]
            await environment.write(
                [TableWrite(table="t", position=Position("id", 1), changes=coalesced(pairs_now))]
            )
            measure("table.get(k), not cached, LMDB", look, make(int, int, data, 1000), fresh)
            measure("table[k] += 1, not cached, LMDB", count, make(int, int, data, 1000), fresh)
            await environment.close()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
