"""A shard against three dicts: what is committed, what has settled, what the event in hand sees.

Everything goes through the mapping that users have, with caches so small that they are emptied
all the time, crashes included: after one, what the store lacks is replayed from the changelog.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.tables.helpers import TOPIC_ID, Lane, make_shard, make_table
from trickle.exceptions import EncodeError
from trickle.stores.contract import Position, TableWrite, coalesced, stored_key
from trickle.stores.memory import MemoryTable
from trickle.tables import CacheLimits
from trickle.tables.shapes import ABSENT

KEYS = st.integers(0, 5)


class _Counts:
    """Cells are the values themselves; keys are what they are."""

    table = make_table(str, int, int)
    bad: Any = "no number"

    @staticmethod
    def key(n: int) -> Any:
        return f"k{n}" if n % 4 else "k" * (300 * n)  # the empty one, and some beyond LMDB's

    @staticmethod
    def value(n: int) -> Any:
        return n

    @staticmethod
    def change(table: Any, key: Any, n: int) -> None:
        table[key] += n


class _Lists:
    """Values are on loan; keys are bytes inside."""

    table = make_table(tuple[str, int], list[int], list)
    bad: Any = (object(),)

    @staticmethod
    def key(n: int) -> Any:
        return (f"k{n}", n)

    @staticmethod
    def value(n: int) -> Any:
        return [n]

    @staticmethod
    def change(table: Any, key: Any, n: int) -> None:
        table[key].append(n)


class _Pairs(_Counts):
    """Cells are values of a compound type."""

    table = make_table(int, tuple[int, str], lambda: (0, ""))
    bad: Any = (1, 2)

    @staticmethod
    def key(n: int) -> Any:
        return n

    @staticmethod
    def value(n: int) -> Any:
        return (n, str(n))

    @staticmethod
    def change(table: Any, key: Any, n: int) -> None:
        number, text = table[key]
        table[key] = (number + n, f"{text}{n}"[-20:])


class ShardMachine(RuleBasedStateMachine):
    """One writing agent, one that reads, and reads from outside."""

    kind: Any = _Counts

    @initialize(entries=st.integers(1, 4))
    def open(self, entries: int) -> None:
        self.table = self.kind.table
        self.data = MemoryTable()
        self.limits = CacheLimits(entries=entries)
        self.changelog: list[tuple[bytes, bytes | None]] = []
        self.committed: dict[Any, Any] = {}
        self.settled: dict[Any, Any] = {}
        self.current: dict[Any, Any] = {}
        self.committing: dict[Any, Any] | None = None
        self.changes: Any = None
        self.storing: TableWrite | None = None
        self._start()

    def _start(self) -> None:
        self.shard = make_shard(self.table, self.data, limits=self.limits)
        self.writer = Lane("writer", 0, {self.table: self.shard})
        self.reader = Lane("reader", 0, {self.table: self.shard})

    # The event in hand

    def put(self, n: int, v: int) -> None:
        key, value = self.kind.key(n), self.kind.value(v)
        self.writer.within(self.table.__setitem__, key, value)
        self.current[key] = copy.deepcopy(value)

    def change(self, n: int, v: int) -> None:
        key = self.kind.key(n)
        self.writer.within(self.kind.change, self.table, key, v)
        if key not in self.current:
            self.current[key] = self.table.default()
        self.kind.change(self.current, key, v)

    def delete(self, n: int) -> None:
        key = self.kind.key(n)
        gone = self.writer.within(self.table.pop, key, None)
        assert gone == self.current.pop(key, None)

    @rule(n=KEYS)
    def get(self, n: int) -> None:
        key = self.kind.key(n)
        assert self.writer.within(self.table.get, key) == self.current.get(key)
        default = self.writer.within(self.table.__getitem__, key)
        assert default == self.current.get(key, self.table.default())
        assert self.writer.within(self.table.__contains__, key) == (key in self.current)

    @rule(n=KEYS)
    def bad(self, n: int) -> None:
        """What cannot be written is told at the write or as the event settles, and undone."""
        with pytest.raises(EncodeError):
            self.writer.within(self.table.__setitem__, self.kind.key(n), self.kind.bad)
            self.writer.settle()
        self.fail()

    @rule()
    def settle(self) -> None:
        self.writer.settle()
        self.settled = copy.deepcopy(self.current)

    @rule()
    def fail(self) -> None:
        self.writer.fail()
        self.current = copy.deepcopy(self.settled)

    @rule(
        steps=st.lists(st.tuples(st.sampled_from("pcd"), KEYS, st.integers(-5, 5)), max_size=4),
        how=st.sampled_from(["settle", "settle", "fail", "open"]),
    )
    def event(self, steps: list[tuple[str, int, int]], how: str) -> None:
        """A whole event: rules of one step each would seldom get so far."""
        for step, n, v in steps:
            if step == "p":
                self.put(n, v)
            elif step == "c":
                self.change(n, v)
            else:
                self.delete(n)
        if how == "settle":
            self.settle()
        elif how == "fail":
            self.fail()

    @precondition(lambda self: self.committing is None)
    @rule()
    def whole_commit(self) -> None:
        self.snapshot()
        if self.committing is not None:
            self.commit()

    # Others

    @rule(n=KEYS)
    def reads_settled(self, n: int) -> None:
        self.read_settled(n)

    def read_settled(self, n: int) -> None:
        key = self.kind.key(n)
        assert self.reader.within(self.table.get, key) == self.settled.get(key)
        default = self.reader.within(self.table.__getitem__, key)
        assert default == self.settled.get(key, self.table.default())
        self.reader.settle()

    @rule(n=KEYS)
    def read_committed(self, n: int) -> None:
        key = self.kind.key(n)
        value = self.shard.read_committed(key)
        assert (None if value is ABSENT else value) == self.committed.get(key)

    @rule(data=st.data())
    def iterate(self, data: st.DataObject) -> None:
        """Iterate while other keys are removed: each key that stays is seen once, in order."""
        encode = self.table.keys_shape.encode
        mark = self.table.keys_shape.mark

        def run() -> list[Any]:
            seen: list[Any] = []
            for key in self.table:
                seen.append(key)
                if self.current and data.draw(st.booleans()):
                    victim = data.draw(st.sampled_from(sorted(self.current, key=repr)))
                    del self.table[victim]
                    del self.current[victim]
                    removed.add(victim)
            return seen

        removed: set[Any] = set()
        before = set(self.current)
        seen = self.writer.within(run)
        assert set(seen) <= before
        assert set(seen) >= before - removed
        orders = [stored_key(encode(mark(key))) for key in seen]
        assert orders == sorted(set(orders))

    # Commits

    @precondition(lambda self: self.committing is None)
    @rule()
    def snapshot(self) -> None:
        self.changes = self.shard.snapshot()
        if self.changes is None:
            assert self.settled == self.committed
        else:
            self.committing = copy.deepcopy(self.settled)

    @precondition(lambda self: self.committing is not None)
    @rule()
    def commit(self) -> None:
        pairs = list(chain.from_iterable(self.changes.encoded()))
        assert len({key for key, _ in pairs}) == len(pairs)
        self.changelog += pairs
        self.shard.committed(len(self.changelog))
        assert self.committing is not None
        self.committed, self.committing = self.committing, None

    @rule()
    def revert(self) -> None:
        """The generation ends: by a failed commit, or by none."""
        self.shard.revert()
        self.writer.fail()
        self.reader.fail()
        self.settled = copy.deepcopy(self.committed)
        self.current = copy.deepcopy(self.committed)
        self.committing = None

    # The store

    @precondition(lambda self: self.storing is None)
    @rule()
    def begin_store(self) -> None:
        changes = self.shard.begin_store()
        if changes is not None:
            assert self.shard.position is not None
            self.storing = TableWrite(
                table="t",
                position=self.shard.position,
                changes=coalesced(chain(*changes.encoded())),
            )

    @precondition(lambda self: self.storing is not None)
    @rule(fails=st.booleans(), seen=st.booleans())
    def end_store(self, fails: bool, seen: bool) -> None:
        """It is in the store before the shard is told, or not at all."""
        assert self.storing is not None
        if fails:
            self.shard.store_failed()
        else:
            self.data.write(self.storing)
            if seen:
                self.flood()
            self.shard.stored()
        self.storing = None

    @rule()
    def flood(self) -> None:
        """Read all keys: what can be dropped from the cache is."""
        for n in range(6):
            self.read_settled(n)

    @rule()
    def crash(self) -> None:
        """The process dies; the next one replays what the store lacks."""
        start = 0 if self.data.position is None else self.data.position.offset
        end = len(self.changelog)
        pairs = coalesced(self.changelog[start:])
        self.data.write(TableWrite(table="t", position=Position(TOPIC_ID, end), changes=pairs))
        self._start()
        self.committing = self.storing = None
        self.settled = copy.deepcopy(self.committed)
        self.current = copy.deepcopy(self.committed)

    @rule(entries=st.integers(1, 4))
    def limit(self, entries: int) -> None:
        self.shard.limit(CacheLimits(entries=entries))

    @invariant()
    def views_agree(self) -> None:
        if not hasattr(self, "shard"):
            return
        assert self.writer.within(len, self.table) == len(self.current)
        assert self.reader.within(len, self.table) == len(self.settled)
        assert self.shard.size_committed == len(self.committed)

    @invariant()
    def nothing_uncommitted_is_stored(self) -> None:
        if not hasattr(self, "shard"):
            return
        shape = self.table.values_shape
        stored = {key: shape.decode(value) for key, value in self.data.scan(None, 1000)}
        fold: dict[bytes, Any] = {}
        upto = 0 if self.data.position is None else self.data.position.offset
        for key, value in self.changelog[:upto]:
            fold.pop(key, None)
            if value is not None:
                fold[key] = shape.decode(value)
        assert stored == fold

    def teardown(self) -> None:
        if not hasattr(self, "shard"):
            return
        for lane, expected in ((self.writer, self.current), (self.reader, self.settled)):
            items = lane.within(lambda: list(self.table.items()))
            assert (dict(items), len(items)) == (expected, len(expected))
        keys = self.table.keys_shape
        outside = {
            keys.key(mark): self.shard.read_committed(keys.key(mark))
            for mark in self.shard.marks(None)
        }
        assert outside == self.committed


@pytest.mark.parametrize("kind", [_Counts, _Lists, _Pairs])
def test_shard_equals_its_model(kind: Any) -> None:
    machine = type("Machine", (ShardMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            database=None,
        ),
    )
