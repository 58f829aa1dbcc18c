"""What one event has borrowed from one shard: values that can be changed in place.

A shard keeps such values as bytes. An event that reads one gets a copy of its own, the same at
each read. When the event settles, each copy is encoded again; one whose bytes differ counts as
written. When it fails, the copies are forgotten: undo needs nothing else. Writes go the same way,
so an object that is put and then changed in the same event is written as it is at the end.

Every turn that reads has its own loans, so agents do not see each other's changes. Who changes
a copy writes, and only the table's writer may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from trickle.context import Turn
from trickle.tables.shapes import ABSENT, KeyShape, ValueShape

__all__ = ["Lender", "Loans"]

_NEVER_CHANGE = frozenset({int, float, bool, str, bytes, type(None)})


class Lender(Protocol):
    """What loans need of their shard."""

    @property
    def keys(self) -> KeyShape: ...

    @property
    def values(self) -> ValueShape: ...

    @property
    def loans(self) -> dict[Turn, Loans]: ...

    def cell(self, mark: Any) -> Any:
        """Return the bytes of a key's value, or ABSENT."""
        ...

    def claim(self, turn: Turn) -> None:
        """Make sure that the turn's agent may write."""
        ...

    def apply(self, turn: Turn, changes: dict[Any, Any], there: Mapping[Any, bool]) -> None:
        """Take over changes that settle."""
        ...


class Loans:
    """The event in hand of one turn, as far as one shard with changeable values goes."""

    __slots__ = ("_changes", "_defaults", "_given", "_objects", "_shard", "_there", "_turn")

    def __init__(self, shard: Lender, turn: Turn) -> None:
        self._shard = shard
        self._turn = turn
        self._objects: dict[Any, Any] = {}  # what the event sees now; ABSENT: it removed the key
        self._given: dict[Any, bytes] = {}  # the bytes of what was handed out; none for a put
        # Marks of keys that were absent when lent; whether the event itself had removed them.
        self._defaults: dict[Any, bool] = {}
        self._changes: dict[Any, Any] = {}  # what check found
        self._there: dict[Any, bool] = {}  # which of their keys there were before

    @property
    def marks(self) -> list[Any]:
        """The marks of all keys that have a loan."""
        return list(self._objects)

    def __contains__(self, mark: object) -> bool:
        """Tell whether a key has a loan."""
        return mark in self._objects

    def lent_default(self, mark: Any) -> Any:
        """Return the default that was lent for a key, None where none was."""
        return self._objects[mark] if mark in self._defaults else None

    def get(self, mark: Any) -> Any:
        """Return the event's own copy of a value, ABSENT where there is none."""
        if mark in self._objects:
            return self._objects[mark] if self.present(mark) else ABSENT
        cell = self._shard.cell(mark)
        if cell is ABSENT:
            return ABSENT
        value = self._shard.values.value(cell)
        if type(value) not in _NEVER_CHANGE:
            self._objects[mark] = value
            self._given[mark] = cell
        return value

    def lend(self, mark: Any, factory: Callable[[], Any]) -> Any:
        """Return the default of a key that is absent; it counts once it is changed."""
        if mark in self._defaults:
            return self._objects[mark]
        value = factory()
        if type(value) not in _NEVER_CHANGE:
            self._given[mark] = self._encode(mark, value)
            self._defaults[mark] = self._objects.get(mark) is ABSENT
            self._objects[mark] = value
        return value

    def put(self, mark: Any, value: Any) -> None:
        """Set a value; None removes the key where the type allows None."""
        self._shard.claim(self._turn)
        if type(value) in _NEVER_CHANGE:
            # It can be judged now, where the traceback is of use.
            cell = self._shard.values.fit(self._shard.keys.key(mark), value)
            value = ABSENT if cell is ABSENT else value
        self._set(mark, value)

    def delete(self, mark: Any) -> bool:
        """Remove a key; tell whether it was there."""
        self._shard.claim(self._turn)
        there = self.present(mark)
        if there:
            self._set(mark, ABSENT)
        return there

    def _set(self, mark: Any, value: Any) -> None:
        self._objects[mark] = value
        self._given.pop(mark, None)
        self._defaults.pop(mark, None)

    def present(self, mark: Any) -> bool:
        """Tell whether the event sees the key; a default that was lent counts once changed."""
        value = self._objects.get(mark, self)
        if value is self:
            return self._shard.cell(mark) is not ABSENT
        if mark in self._defaults:
            return self._encode(mark, value) != self._given[mark]
        return value is not ABSENT

    def size(self) -> int:
        """Return by how many keys the event has changed the shard's number of them."""
        cell = self._shard.cell
        return sum(
            self.present(mark) - (cell(mark) is not ABSENT)
            for mark in self._objects
            if not self._only_read(mark)
        )

    def check(self) -> None:
        """Encode what was handed out, and find what has changed.

        Raises:
            EncodeError: a value is not of the table's type, or cannot be encoded.
            TableReadOnlyError: the turn's agent has changed a value and may not write.
        """
        changes: dict[Any, Any] = {}
        for mark, value in self._objects.items():
            if value is ABSENT:
                if self._shard.cell(mark) is not ABSENT:
                    changes[mark] = ABSENT
                continue
            data = self._encode(mark, value)
            given = self._given.get(mark)
            if data == given or (given is not None and self._is_respelled(mark, given, data)):
                if self._defaults.get(mark) and self._shard.cell(mark) is not ABSENT:
                    changes[mark] = ABSENT  # removed first, then read as a default
                continue
            self._shard.values.verify(self._shard.keys.key(mark), value, data)
            changes[mark] = data
        if changes:
            self._shard.claim(self._turn)
        self._changes = changes
        self._there = {mark: self._shard.cell(mark) is not ABSENT for mark in changes}

    def _only_read(self, mark: Any) -> bool:
        """Whether a default was lent and not changed: the agent that writes may set the key."""
        return self._defaults.get(mark) is False and not self.present(mark)

    def _encode(self, mark: Any, value: Any) -> bytes:
        return self._shard.values.encode_value(self._shard.keys.key(mark), value)

    def _is_respelled(self, mark: Any, given: bytes, data: bytes) -> bool:
        """Tell whether the bytes differ although the value does not.

        They do when a field was added to the type since, or when a set comes in another order.
        """
        if mark in self._defaults:
            return False
        return self._encode(mark, self._shard.values.decode(given)) == data

    def settle(self) -> None:
        """The event is done: what changed joins the next commit."""
        changes, there = self._changes, self._there
        self._end()
        if changes:
            self._shard.apply(self._turn, changes, there)

    def undo(self) -> None:
        """The event failed: the copies are forgotten."""
        self._end()

    def _end(self) -> None:
        self._shard.loans.pop(self._turn, None)
        self.void()

    def void(self) -> None:
        """Forget everything: nothing of this event can be written any more."""
        self._objects = {}
        self._given = {}
        self._defaults = {}
        self._changes, self._there = {}, {}
