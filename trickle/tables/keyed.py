"""A shard as one event of several sees it: the events of a lane with concurrency.

A shard's undo log serves one event in hand. Where a lane has several, each writes into an overlay
of its own instead, which is applied to the shard when the event settles, and dropped when it fails.
So the shard itself never holds what has not settled, and the plain path knows nothing of all this:
:class:`KeyedShard` stands in the place of the shard in its turn's ``shards``, and whatever the
table's facade would read at once on the hot path is not there.

What keeps tables exact is a rule. Events of one order (:mod:`trickle.streams.ordering`) are handled
one after the other, so an event may touch the table key that *is* its order, and nobody else has it
in hand. Any other key may be in another event's hands, who knows with which outcome: to touch it is
an error. The rule holds for the tables that the agent writes; those of other agents it may read as
it likes, for there it sees what has settled, as everybody does. Who writes a table shows when it is
written. So an event that read another key must not write, and the error comes then.

Orders are compared by the bytes of their topics' keys, and a table may take two of them for one
key: 1 and 1.0 where it maps floats. Who touches a key that an event in hand has touched is told so.

Values that can be changed in place are on loan to each event anyhow (:mod:`.loans`); their loans
follow the same rule when they are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from trickle.context import Turn
from trickle.exceptions import CodecError, TableReadOnlyError, UsageError
from trickle.tables.loans import Loans
from trickle.tables.shapes import ABSENT, MISSING, KeyShape, Marker, ValueShape

if TYPE_CHECKING:
    from trickle.tables.shard import Shard

__all__ = ["KeyedShard", "OrderedTurn"]

K = TypeVar("K")
V = TypeVar("V")


class OrderedTurn(Protocol):
    """A turn whose events have an order, as far as its shards need to know."""

    @property
    def number(self) -> int: ...

    @property
    def agent(self) -> str: ...

    def orders(self, start: int) -> Sequence[Any]:
        """Return the orders of the events in hand: of a group, those from one on."""
        ...


class KeyedShard(Generic[K, V]):
    """One shard for one of the events that a lane has in hand.

    Args:
        shard: shared by all of them.
        owner: whose events these are.
        writable: whether they may write at all.
        holders: who has touched which keys, of all events that the lane has in hand.
    """

    __slots__ = (
        "__weakref__", "_cells", "_holders", "_marks", "_number", "_owner", "_seen", "_strayed",
        "_there", "_writable", "shard",
    )  # fmt: skip

    # What the facade looks at before it asks: nothing is a plain hit.
    hot: dict[Any, Any] = {}  # noqa: RUF012 - it stays empty
    number = None
    exact = None
    turn = None

    def __init__(
        self,
        shard: Shard[K, V],
        owner: OrderedTurn,
        *,
        writable: bool,
        holders: MutableMapping[Any, KeyedShard[Any, Any]],
    ) -> None:
        self.shard = shard
        self._owner = owner
        self._writable = writable
        self._holders = holders
        self._cells: dict[Any, Any] = {}  # what the event in hand has written
        self._there: dict[Any, bool] = {}  # which of these keys there were before
        self._number = 0
        self._marks: set[Any] = set()  # what it may touch
        self._seen = 0  # so many of its orders are in there
        self._strayed: Any = MISSING  # what else it has read

    # What the shard has anyhow

    @property
    def keys(self) -> KeyShape:
        return self.shard.keys

    @property
    def values(self) -> ValueShape:
        return self.shard.values

    @property
    def plain(self) -> bool:
        return self.shard.plain

    @property
    def loans(self) -> dict[Turn, Loans]:
        return self.shard.loans

    @property
    def pressure(self) -> bool:
        return self.shard.pressure

    # The rule

    def _ours(self, mark: Any) -> bool:
        """Tell whether the event in hand has this key to itself."""
        owner = self._owner
        if self._number != owner.number:
            for held in self._marks:
                if self._holders.get((self.shard, held)) is self:
                    del self._holders[self.shard, held]
            self._number = owner.number
            self._marks.clear()
            self._seen, self._strayed = 0, MISSING
        if mark in self._marks:
            return True
        orders = owner.orders(self._seen)
        self._seen += len(orders)
        for order in orders:
            try:
                self._marks.add(self.keys.mark(order))
            except CodecError:  # no key of this table
                continue
        return mark in self._marks

    def _hold(self, mark: Any, *, writes: bool) -> None:
        """The event in hand touches one of its own keys.

        Raises:
            UsageError: so has another one, whose order is another spelling of the key.
        """
        holder = self._holders.setdefault((self.shard, mark), self)
        if holder is self:
            return
        if not holder.has_in_hand(mark):
            self._holders[self.shard, mark] = self
        elif writes or self.shard.agent == self._owner.agent:
            raise UsageError(
                f"table {self.shard.table!r}: two events of agent {self._owner.agent!r} that are "
                f"in hand at once have {self._shown(mark)}, which their topics' keys, or "
                "ordering=, spell in two ways: give ordering= a function that returns it in one, "
                "or use concurrency=1"
            )

    def has_in_hand(self, mark: Any) -> bool:
        """Tell whether an event is in hand here to which this key belongs."""
        return self._number == self._owner.number and mark in self._marks

    def look(self, mark: Any) -> None:
        """The event reads a key.

        Raises:
            UsageError: another event may have it in hand.
        """
        if not self._writable:
            return
        if self._ours(mark):
            self._hold(mark, writes=False)
            return
        if self.shard.agent == self._owner.agent:
            raise self._foreign(f"reads {self._shown(mark)}")
        self._strayed = mark

    def _look_at_all(self) -> None:
        if not self._writable:
            return
        self._ours(MISSING)  # so that it is of this event what is noted below
        if self.shard.agent == self._owner.agent:
            raise self._foreign("reads all of its keys")
        self._strayed = ABSENT

    def own(self, mark: Any) -> None:
        """The event writes a key.

        Raises:
            UsageError: another event may have it in hand, or one that this event has read.
            TableReadOnlyError: its agent keeps no order, so it may not write.
        """
        self._may_write()
        if not self._ours(mark):
            raise self._foreign(f"writes {self._shown(mark)}")
        self._hold(mark, writes=True)
        if self._strayed is not MISSING:
            raise self._foreign(f"has read {self._shown(self._strayed)} before it wrote")

    def _may_write(self) -> None:
        if not self._writable:
            raise TableReadOnlyError(
                f"table {self.shard.table!r} can be read, not written, by agent "
                f"{self._owner.agent!r}: its events keep no order (ordering='none'), so two could "
                "write one key at once; use ordering='key', or a function that returns that key"
            )

    def _foreign(self, what: str) -> UsageError:
        orders = self._owner.orders(0)
        if len(orders) == 1:
            own = "it has no key" if orders[0] is None else f"that is {orders[0]!r} here"
        else:
            own = f"here those of its {len(orders)} events"
        return UsageError(
            f"table {self.shard.table!r}: with concurrency above 1 an event of agent "
            f"{self._owner.agent!r} may touch only the key that orders it ({own}), but this one "
            f"{what}, which another event may have in hand: give ordering= a function that "
            "returns the table's key, regroup the source by it (group_by), or use concurrency=1"
        )

    def _shown(self, mark: Any) -> str:
        return "all of its keys" if mark is ABSENT else f"key {self.keys.key(mark)!r}"

    # What the facade asks

    def read(self, turn: Turn, key: K) -> V | Marker:
        """Return a key's value as the turn's event sees it, ABSENT where there is none."""
        mark = self.keys.mark(key)
        self.look(mark)
        if not self.plain:
            value: V | Marker = self.loans_of(turn).get(mark)
            return value
        cell = self._cells.get(mark, MISSING)
        return self.shard.read(turn, key) if cell is MISSING else cell

    def has(self, turn: Turn, key: object) -> bool:
        """Tell whether the key is there, as the turn's event sees it."""
        mark = self.keys.mark(key)
        self.look(mark)
        cell = self._cells.get(mark, MISSING)
        return self.shard.has(turn, key) if cell is MISSING else cell is not ABSENT

    def put(self, turn: Turn, key: K, value: V) -> None:
        """Set a key's value; None removes the key where the type allows None."""
        mark = self.keys.mark(key)
        self.own(mark)
        if not self.plain:
            self.loans_of(turn).put(mark, value)
            return
        self._put_cell(turn, mark, self.values.fit(key, value))

    def delete(self, turn: Turn, key: K) -> bool:
        """Remove a key; tell whether it was there."""
        mark = self.keys.mark(key)
        self.own(mark)
        if not self.plain:
            return self.loans_of(turn).delete(mark)
        there = self._cells.get(mark, self.shard.cell(mark)) is not ABSENT
        if there:
            self._put_cell(turn, mark, ABSENT)
        return there

    def _put_cell(self, turn: Turn, mark: Any, cell: Any) -> None:
        self.shard.claim(turn)
        if not self._cells:
            turn.written.append(self)
            turn.touched = True
        if mark not in self._there:
            self._there[mark] = self.shard.cell(mark) is not ABSENT
        self._cells[mark] = cell

    def count(self, turn: Turn) -> int:
        """Return the number of keys as the turn's event sees it."""
        self._look_at_all()
        return self.shard.count(turn)

    def marks(self, turn: Turn | None) -> Iterator[Any]:
        """Yield the marks of the keys that a turn's event sees."""
        self._look_at_all()
        return self.shard.marks(turn)

    # The event in hand (context.Written)

    def settle(self) -> None:
        """The event is done: its changes join the next commit."""
        cells, self._cells = self._cells, {}
        there, self._there = self._there, {}
        turn: Any = self._owner
        self.shard.apply(turn, cells, there)

    def undo(self) -> None:
        """The event failed: its changes vanish."""
        self._cells, self._there = {}, {}

    # Values on loan (loans.Lender)

    def loans_of(self, turn: Turn) -> Loans:
        """Return what the event in hand has borrowed; its first loan joins the turn."""
        loans = self.loans.get(turn)
        if loans is None:
            loans = self.loans[turn] = _KeyedLoans(self, turn)
            turn.join(loans)
        return loans

    def cell(self, mark: Any) -> Any:
        """Return the bytes of a key's value, or ABSENT."""
        return self.shard.cell(mark)

    def claim(self, turn: Turn) -> None:
        """Make sure that the turn's agent may write."""
        self._may_write()
        self.shard.claim(turn)

    def apply(self, turn: Turn, changes: dict[Any, Any], there: Mapping[Any, bool]) -> None:
        """Take over changes that settle."""
        self.shard.apply(turn, changes, there)


class _KeyedLoans(Loans):
    """What one event has borrowed, of which it may change what is its own."""

    __slots__ = ("_keyed",)

    def __init__(self, keyed: KeyedShard[Any, Any], turn: Turn) -> None:
        super().__init__(keyed, turn)
        self._keyed = keyed

    def check(self) -> None:
        super().check()
        for mark in self._changes:
            self._keyed.own(mark)
