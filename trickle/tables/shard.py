"""A shard: one partition of one table, and what makes each event on it a transaction.

Pure but for the reads of its :class:`~trickle.stores.contract.TableData`: no Trio, no clock.

**Layers.** What a key's value is depends on who asks. From the newest to the oldest::

    young, old    the cache, in two generations: current cells, those of the event in hand included
    event         what the event in hand has changed
    dirty         settled, not yet in a commit
    committing    in the commit that is under way
    unstored      committed, not yet handed to the store
    storing       on its way into the store
    data          the store

Each layer below the cache maps a mark (see :mod:`.shapes`) to a cell, and cells never change. So

* the event's own agent sees the cache, then all layers;
* other agents see for the keys in ``event`` what lies below it, hence settled values;
* outside reads see ``unstored`` and below, hence committed values;
* *settling* lays ``event`` onto ``dirty``; *undo* forgets it and what the cache says of its keys,
  *revert* (the end of a generation) does so with ``event``, ``dirty`` and ``committing``;
* *snapshot* moves ``dirty`` to ``committing``: the event in hand is not in it, so none waits.

**The cache.** A hit is one lookup in ``young``. A miss looks in ``old`` and moves the entry; when
``young`` is full, ``old`` is dropped and ``young`` takes its place. Nothing is lost by dropping:
what the store lacks is in a layer. The layers are bounded by :attr:`Shard.pressure`, which asks for
a commit or a flush when they hold half of what the cache may.

**Values that can change** (lists, most classes) are kept as bytes, and handed out as copies, on
loan for one event: see :mod:`.loans`. The facade in :mod:`.table` reads ``hot`` and writes
``young`` itself where key and value are of exact simple types: that path is measured by
``benchmarks/parts.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from trickle.context import Turn
from trickle.exceptions import TableReadOnlyError
from trickle.stores.contract import Position, TableData
from trickle.tables.changes import Changes, in_order
from trickle.tables.limits import ENTRY_BYTES, CacheLimits, cell_bytes
from trickle.tables.loans import Loans
from trickle.tables.placement import Placement
from trickle.tables.shapes import ABSENT, MISSING, KeyShape, Marker, ValueShape

__all__ = ["Shard"]

K = TypeVar("K")
V = TypeVar("V")


class Shard(Generic[K, V]):
    """One partition of one table.

    Args:
        table: its name, for messages.
        partitions: how many the table has.
        data: what the store holds.
        claim: called with an agent's name before its first write; raises where another agent
            is the table's writer.
        topic_id: the changelog's identity.
        placement: the sampled check that keys belong here.

    Attributes:
        turn: whose event in hand has changed the shard (never one of a table with loans).
        watch: the next event that settles is to be looked at by ``placement``.
        changed: called when there is something to store.
        agent: the agent whose claim was granted.
        size: the number of keys, as the event in hand sees it.
        hot: what the facade may read without asking: ``young``, or nothing.
        position: how far the changelog is in what has been committed.
        end: where the changelog ends, as far as this worker has read and written it.
        told: where it ends is committed, too.
    """

    __slots__ = (
        "_claim", "_generation_entries", "_pinned_before", "_pinned_bytes", "_size_before",
        "_size_committing", "_young_bytes", "agent", "changed", "committing", "data", "dirty",
        "end", "event", "exact", "high", "hot", "keys", "limits", "loans", "low", "number", "old",
        "partition", "partitions", "placement", "plain", "position", "size", "size_committed",
        "storing", "table", "told", "topic_id", "turn", "unstored", "values", "watch", "young",
    )  # fmt: skip

    def __init__(
        self,
        table: str,
        partition: int,
        partitions: int,
        keys: KeyShape,
        values: ValueShape,
        data: TableData,
        *,
        limits: CacheLimits | None = None,
        claim: Callable[[str], None] | None = None,
        topic_id: str = "",
        placement: Placement | None = None,
    ) -> None:
        self.table = table
        self.partition = partition
        self.partitions = partitions
        self.keys = keys
        self.values = values
        self.data = data
        self.topic_id = topic_id
        self.placement = placement
        self._claim = claim
        self.changed: Callable[[], None] | None = None
        self.plain = values.plain
        # Copies for the hot path: one attribute instead of two.
        self.exact = keys.exact
        self.number = values.number if keys.exact is not None else None
        self.low = values.low
        self.high = values.high
        self.turn: Turn | None = None
        self.agent: str | None = None
        self.loans: dict[Turn, Loans] = {}
        self.event: dict[Any, Any] = {}
        self.watch = placement is not None
        self.end, self.told = 0, False
        self.limit(limits or CacheLimits())
        self.reload()

    def limit(self, limits: CacheLimits) -> None:
        """Bound the cache anew."""
        self.limits = limits
        self._generation_entries = max(1, limits.entries // 2)

    def reload(self) -> None:
        """Forget all that is in memory: the store's data have changed, or are to be trusted."""
        self.young: dict[Any, Any] = {}
        self.hot: dict[Any, Any] = self.young if self.plain and self.exact is not None else {}
        self.old: dict[Any, Any] = {}
        self.dirty: dict[Any, Any] = {}
        self.committing: dict[Any, Any] = {}
        self.unstored: dict[Any, Any] = {}
        self.storing: dict[Any, Any] = {}
        self._young_bytes = 0
        self._pinned_bytes = 0
        self._close_events()
        self.position: Position | None = self.data.position
        self.size = self.size_committed = self._size_committing = self.data.count()

    # What a key's cell is, for whom

    def cell(self, mark: Any) -> Any:
        """Return the current cell of a key, the event in hand's writes included."""
        cell = self.young.get(mark, MISSING)
        return self._load(mark) if cell is MISSING else cell

    def settled_cell(self, mark: Any) -> Any:
        """Return the cell of a key before the event in hand."""
        return self._settled_below(mark) if mark in self.event else self.cell(mark)

    def committed_cell(self, mark: Any) -> Any:
        """Return the cell of a key at the last commit."""
        cell = self._committed_layered(mark)
        return self._stored_cell(mark) if cell is MISSING else cell

    def _load(self, mark: Any) -> Any:
        cell = self.old.get(mark, MISSING)
        if cell is MISSING:
            cell = self.event[mark] if mark in self.event else self._settled_below(mark)
        self._remember(mark, cell)
        return cell

    def _settled_below(self, mark: Any) -> Any:
        """Return the settled cell of a key, without a look at the cache."""
        cell = self._layered(mark)
        return self._stored_cell(mark) if cell is MISSING else cell

    def _layered(self, mark: Any) -> Any:
        """Return the settled cell of a key that the store may lack."""
        if mark in self.dirty:
            return self.dirty[mark]
        if mark in self.committing:
            return self.committing[mark]
        return self._committed_layered(mark)

    def _committed_layered(self, mark: Any) -> Any:
        """Return the committed cell of a key that the store may lack."""
        if mark in self.unstored:
            return self.unstored[mark]
        return self.storing.get(mark, MISSING)

    def _stored_cell(self, mark: Any) -> Any:
        return self.values.cell(self.data.get(self.keys.encode(mark)))

    def _remember(self, mark: Any, cell: Any) -> None:
        young = self.young
        young[mark] = cell
        self._young_bytes += cell_bytes(mark, cell)
        if len(young) > self._generation_entries or self._young_bytes > self.limits.bytes // 2:
            self._rotate()

    def _rotate(self) -> None:
        self.old, self.young = self.young, {}
        self._young_bytes = 0
        if self.plain and self.exact is not None:
            self.hot = self.young

    # The event in hand, where cells are values

    def begin(self, turn: Turn) -> None:
        """Let an event change the shard: its first change calls this.

        Raises:
            TableReadOnlyError: another agent writes this table, or another event is in hand.
        """
        if self.agent != turn.agent:
            self.claim(turn)
        if self.turn is not None:
            raise TableReadOnlyError(
                f"table {self.table!r}, partition {self.partition}: two events of agent "
                f"{turn.agent!r} write it at once; only one may, so that each can be undone"
            )
        self.turn = turn
        self._size_before = self.size
        self._pinned_before = self._pinned_bytes
        turn.written.append(self)
        turn.touched = True

    def claim(self, turn: Turn) -> None:
        """Make sure that the turn's agent is the table's writer.

        Raises:
            TableReadOnlyError: another agent is.
        """
        if self.agent != turn.agent:
            if self._claim is not None:
                self._claim(turn.agent)
            self.agent = turn.agent

    def put(self, turn: Turn, key: K, value: V) -> None:
        """Set a key's value; None removes the key where the type allows None.

        Raises:
            EncodeError: key or value is not of the table's type.
            TableReadOnlyError: the turn's agent may not write.
        """
        mark = self.keys.mark(key)
        if not self.plain:
            self.loans_of(turn).put(mark, value)
            return
        if self.turn is not turn:
            self.begin(turn)
        self._put_cell(mark, self.values.fit(key, value))

    def delete(self, turn: Turn, key: K) -> bool:
        """Remove a key; tell whether it was there."""
        mark = self.keys.mark(key)
        if not self.plain:
            return self.loans_of(turn).delete(mark)
        if self.turn is not turn:
            self.begin(turn)
        there = self.cell(mark) is not ABSENT
        if there:
            self._put_cell(mark, ABSENT)
        return there

    def added(self, mark: Any) -> None:
        """The event in hand sets a number for a key that had none."""
        self.size += 1
        if type(mark) is not int:
            self._pinned_bytes += len(mark)

    def _put_cell(self, mark: Any, cell: Any) -> None:
        before = self.cell(mark)
        self.size += (cell is not ABSENT) - (before is not ABSENT)
        size = cell_bytes(mark, cell)
        self._pinned_bytes += size - ENTRY_BYTES
        self.event[mark] = self.young[mark] = cell
        if self.number is None:  # else all weigh the same
            self._young_bytes += size - cell_bytes(mark, before)
            if self._young_bytes > self.limits.bytes // 2:
                self._rotate()

    def settle(self) -> None:
        """The event is done: its changes join the next commit."""
        self.dirty |= self.event
        if self.watch and self.turn is not None:
            self._look(self.turn, self.event)
        self.event.clear()
        self.turn = None

    def undo(self) -> None:
        """The event failed: its changes vanish."""
        self._forget(self.event)
        if self.turn is not None:
            self.size = self._size_before
            self._pinned_bytes = min(self._pinned_bytes, self._pinned_before)
        self.event.clear()
        self.turn = None

    def _forget(self, marks: Iterable[Any]) -> None:
        """What the cache says of these keys is no longer so: the layers tell."""
        for mark in marks:
            self.young.pop(mark, None)
            self.old.pop(mark, None)

    def _look(self, turn: Turn, marks: Iterable[Any]) -> None:
        """Have it looked at whether an event's keys belong here; at first, then once a commit."""
        if self.placement is not None:
            self.watch = self.placement.check(turn, map(self.keys.encode, marks))

    # The event in hand, where values are on loan

    def loans_of(self, turn: Turn) -> Loans:
        """Return what the event in hand of a turn has borrowed; its first loan joins the turn."""
        loans = self.loans.get(turn)
        if loans is None:
            loans = self.loans[turn] = Loans(self, turn)
            turn.join(loans)
        return loans

    def apply(self, turn: Turn, changes: dict[Any, Any], there: Mapping[Any, bool]) -> None:
        """Take over what an event has changed in values on loan: it settles.

        Nothing is read here, for nothing may fail: what the event sends is on its way already.

        Args:
            there: which of the keys there were before.
        """
        for mark, cell in changes.items():
            self.size += (cell is not ABSENT) - there[mark]
            self._remember(mark, cell)
            self._pinned_bytes += cell_bytes(mark, cell) - ENTRY_BYTES
            self.dirty[mark] = cell
        if self.watch and changes:
            self._look(turn, changes)

    # Reading, for whom

    def read(self, turn: Turn, key: K) -> V | Marker:
        """Return a key's value as the turn's event sees it, ABSENT where there is none."""
        mark = key if type(key) is self.exact else self.keys.mark(key)
        if not self.plain:
            return self.loans_of(turn).get(mark)
        if self.turn is not turn and self.turn is not None:
            return self.settled_cell(mark)
        cell = self.young.get(mark, MISSING)
        return self._load(mark) if cell is MISSING else cell

    def has(self, turn: Turn, key: object) -> bool:
        """Tell whether the key is there, as the turn's event sees it; borrows nothing."""
        mark = self.keys.mark(key)
        loans = self.loans.get(turn)
        if loans is not None:
            return loans.present(mark)
        own = self.turn is turn or self.turn is None
        return (self.cell(mark) if own else self.settled_cell(mark)) is not ABSENT

    def read_settled(self, key: K) -> V | Marker:
        """Return a key's value before the event in hand, ABSENT where there is none."""
        return self._value(self.settled_cell(self.keys.mark(key)))

    def read_committed(self, key: K) -> V | Marker:
        """Return a key's value at the last commit, ABSENT where there is none."""
        return self._value(self.committed_cell(self.keys.mark(key)))

    def _value(self, cell: Any) -> Any:
        return cell if cell is ABSENT else self.values.value(cell)

    def count(self, turn: Turn) -> int:
        """Return the number of keys as the turn's event sees it."""
        loans = self.loans.get(turn)
        if loans is not None:
            return self.size + loans.size()
        return self.size if self.turn is turn else self._size_settled()

    def _size_settled(self) -> int:
        return self.size if self.turn is None else self._size_before

    # Iteration: no reader of the store stays open between two steps

    def marks(self, turn: Turn | None) -> Iterator[Any]:
        """Yield the marks of the keys that a turn's event sees, or of the committed ones.

        They come in the order of stored keys. Keys that are removed meanwhile are left out, keys
        that are added meanwhile may or may not be seen.
        """
        loans = None if turn is None else self.loans.get(turn)
        ours = self._layered_marks(turn).union(() if loans is None else loans.marks)
        layered = self._committed_layered if turn is None else self._layered
        storing = self.storing
        for mark, data in in_order(self.data, self.keys, ours):
            loans = None if turn is None else self.loans.get(turn)  # there may be more by now
            if loans is not None and mark in loans:
                there = loans.present(mark)
            else:
                cell = self.event.get(mark, MISSING) if self.turn is turn else MISSING
                if cell is MISSING:
                    cell = layered(mark)
                if cell is not MISSING:
                    there = cell is not ABSENT
                elif self.storing is storing:
                    there = data is not None
                else:  # stored meanwhile: what was scanned may be older
                    there = self.data.get(self.keys.encode(mark)) is not None
            if there:
                yield mark

    def _layered_marks(self, turn: Turn | None) -> set[Any]:
        layers: list[Iterable[Any]] = [self.unstored, self.storing]
        if turn is not None:
            layers += [self.event, self.dirty, self.committing]
        return {mark for layer in layers for mark in layer}

    # Commits

    def affirm(self, key: bytes) -> None:
        """Let the next commit write a stored key once more, as it is."""
        mark = self.keys.mark_of(key)
        self.dirty[mark] = self._settled_below(mark)

    def snapshot(self) -> Changes | None:
        """Take what has settled since the last commit into one; None where there is nothing.

        Raises:
            RuntimeError: the last one was neither committed nor reverted.
        """
        if self.committing:
            raise RuntimeError(f"table {self.table!r}: a commit is under way already")
        if not self.dirty:
            return None
        self.committing, self.dirty = self.dirty, {}
        self._size_committing = self._size_settled()
        self.watch = self.placement is not None
        return Changes(self.keys, self.values, self.committing)

    def committed(self, offset: int) -> None:
        """The commit has succeeded: hand its changes to the store some time.

        Args:
            offset: the changelog's position behind the records of this commit.
        """
        if not self.committing:  # reverted meanwhile: the store is to learn of it by recovery
            return
        self.unstored.update(self.committing)
        self.committing = {}
        self.size_committed = self._size_committing
        self.position = Position(self.topic_id, offset, acknowledged=True)
        if self.changed is not None:
            self.changed()

    def revert(self) -> None:
        """The generation has ended: go back to the last commit, the event in hand included."""
        for layer in (self.event, self.dirty, self.committing):
            self._forget(layer)
        self.dirty = {}
        self.committing = {}
        if not self.unstored and not self.storing:
            self._pinned_bytes = 0
        self._close_events()
        self.size = self._size_committing = self.size_committed

    def _close_events(self) -> None:
        self.event.clear()
        self.turn = None
        for loans in self.loans.values():
            loans.void()
        self.loans.clear()

    @property
    def pressure(self) -> bool:
        """Whether so much waits for a commit or for the store that one should be made now."""
        waiting = len(self.dirty) + len(self.committing) + len(self.unstored) + len(self.storing)
        size = waiting * ENTRY_BYTES + self._pinned_bytes
        return waiting >= self._generation_entries or size >= self.limits.bytes // 2

    # Storing

    def begin_store(self) -> Changes | None:
        """Take what is committed, until :meth:`stored` or :meth:`store_failed`; or None."""
        if self.storing:
            raise RuntimeError(f"table {self.table!r}: its changes are being stored already")
        if not self.unstored:
            return None
        self.storing, self.unstored = self.unstored, {}
        return Changes(self.keys, self.values, self.storing)

    def stored(self) -> None:
        """What was taken by :meth:`begin_store` is in the store now."""
        self.storing = {}
        self._pinned_bytes = 0

    def store_failed(self) -> None:
        """What was taken by :meth:`begin_store` is not in the store."""
        self.unstored = {**self.storing, **self.unstored}
        self.storing = {}
