"""Table: a typed mapping over one shard in an event, over committed values everywhere else.

A :class:`Table` is a definition, like a topic: it holds no data. What it shows depends on where
it is used. In an event it finds the shard of the lane by the context (:mod:`trickle.context`).
Elsewhere it finds the Run by :data:`HOLDER`, and shows what is committed in the partitions that
this Run holds, to read only.

``__getitem__`` and ``__setitem__`` are the hot path of a stateful agent: they look into the
shard's cache themselves, and leave whatever is not a plain hit to the shard.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Generator,
    ItemsView,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast, overload

from typing_extensions import TypeForm

from trickle.context import CURRENT, Turn, current_turn
from trickle.exceptions import (
    DefinitionError,
    EventSettledError,
    StoreError,
    TableReadOnlyError,
    UsageError,
)
from trickle.serializers import BoundCodec, codec_for
from trickle.tables.shapes import ABSENT, MISSING, KeyShape, ValueShape
from trickle.tables.shard import Shard
from trickle.topics import Source
from trickle.transport.contract import TopicSpec
from trickle.types import Codec, Partitioner
from trickle.utils.murmur2 import partition_of
from trickle.utils.names import check_name

__all__ = ["HOLDER", "Committed", "Holder", "Table", "foreign_table"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

TRUSTED_SERIALIZERS = frozenset({None, "json", "msgpack", "str", "raw"})
"""Serializers known to read numbers, text, bytes and bools back as they wrote them."""


# Bound once: the hot path calls it for each read and write. What a child task has there instead of
# a turn holds no shard, and so gets no further than a look.
_current = cast("Callable[[], Turn | None]", CURRENT.get)


class Committed(Protocol):
    """What is committed in one partition of a table: a shard, or a view of one held elsewhere."""

    @property
    def partition(self) -> int: ...

    @property
    def partitions(self) -> int: ...

    @property
    def size_committed(self) -> int: ...

    def read_committed(self, key: Any, /) -> Any:
        """Return a key's value, ABSENT where there is none."""
        ...

    def marks(self, turn: Turn | None, /) -> Iterator[Any]:
        """Yield the marks of all keys, in the order of stored keys."""
        ...


class Holder(Protocol):
    """What a Run shows of its tables to code outside events."""

    def shards_of(self, table: Table[Any, Any]) -> Sequence[Committed]:
        """Return the partitions of a table that can be read in this Run, in order.

        Raises:
            UsageError: it is another app's.
        """
        ...


def _is_trusted(serializer: object) -> bool:
    return isinstance(serializer, str | None) and serializer in TRUSTED_SERIALIZERS


def foreign_table(table: Table[Any, Any]) -> UsageError:
    """Return the error of a table that is not of the app that runs."""
    return UsageError(
        f"table {table.name!r} is not one of the app that runs here: read it inside "
        f"`async with app.run():` of its own app, {table.app_id!r}, or from the shell by "
        "`trickle get`"
    )


HOLDER: ContextVar[Holder | None] = ContextVar("trickle.tables", default=None)
"""The tables of the Run that the running task belongs to."""


class Table(MutableMapping[K, V]):
    """A table: its name, its types, and where its keys belong.

    Made by :meth:`App.table`, whose docstring tells the arguments. A value that can be changed in
    place (a list, a Model) is the event's own copy: to change it is to write, until the event
    settles. What a program keeps of it beyond that is no longer the table's; take it anew in each
    event.

    Attributes:
        changelog: the name of the topic that keeps it.
        source: whose partitions shard it; None where all sources agree.
    """

    def __init__(
        self,
        name: str,
        *,
        app_id: str,
        app: object = None,
        key: TypeForm[K],
        value: TypeForm[V],
        default: Callable[[], V] | None = None,
        source: Source[Any, Any] | None = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
        partitioner: Partitioner | None = None,
    ) -> None:
        check_name(name, what="a table's name")
        if default is not None and not callable(default):
            raise DefinitionError(
                f"table {name!r}: default={default!r} is no function: give one that makes a new "
                "value at each call, as in default=int or default=list"
            )
        if not isinstance(source, Source | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(
                f"table {name!r}: source={source!r} is no source: give what its agent reads, a "
                "topic or what group_by makes of one"
            )
        self.name = name
        self.app_id = app_id
        self.app = app
        self.changelog = check_name(
            f"{app_id}-{name}-changelog", what=f"the name of the changelog of table {name!r}"
        )
        self.key_type: object = key
        self.value_type: object = value
        self.default = default
        self.source = source
        self.replicas = replicas
        self.config = dict(config or {})
        self.partitioner: Partitioner = partitioner or partition_of
        self.key_codec: BoundCodec = codec_for(
            key, key_serializer, what=f"the keys of table {name!r}", stable=True
        )
        self.value_codec: BoundCodec = codec_for(
            value, value_serializer, what=f"the values of table {name!r}"
        )
        self.keys_shape = KeyShape(name, key, self.key_codec, trusted=_is_trusted(key_serializer))
        self.values_shape = ValueShape(
            name, value, self.value_codec, trusted=_is_trusted(value_serializer)
        )

    # A definition is itself, whatever it shows.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<Table {self.name!r}>"

    def spec(self, partitions: int, replicas: int | None = None) -> TopicSpec:
        """Return the changelog as it is to be declared.

        Args:
            partitions: of the source; the changelog has as many.
            replicas: unless the table has its own.
        """
        return TopicSpec(
            name=self.changelog,
            partitions=partitions,
            replicas=self.replicas or replicas,
            retention_ms=-1,
            compacting=True,
            deleting=False,
            config=self.config,
        )

    # The hot path

    def __getitem__(self, key: K) -> V:
        """Return a key's value; in an event a missing key gives the table's default.

        Raises:
            KeyError: the key is missing and the table has no default.
        """
        turn = _current()
        if turn is not None:
            shard = turn.shards.get(self)
            if shard is not None:
                value = None  # which is no cell: it would remove the key
                if shard.turn is None or shard.turn is turn:
                    try:
                        value = shard.hot.get(key)
                    except TypeError:  # an unhashable key
                        value = None
                if value is None or (value is ABSENT and type(key) is not shard.exact):
                    value = shard.read(turn, key)  # True is 1 to a dict, and no key to the table
                return self._default(turn, shard, key) if value is ABSENT else value
        value = self._committed(key)
        if value is ABSENT:
            if self.default is None:
                raise KeyError(key)
            return self.default()
        return value

    def __setitem__(self, key: K, value: V) -> None:
        """Set a key's value, as part of the event in hand.

        Raises:
            EncodeError: key or value is not of the table's type.
            TableReadOnlyError: no event is in hand, or another agent writes this table.
        """
        turn = _current()
        if turn is not None:
            shard: Shard[K, V] | None = turn.shards.get(self)
            if shard is not None:
                if (
                    type(value) is shard.number
                    and type(key) is shard.exact
                    and shard.low <= value <= shard.high  # type: ignore[operator]
                ):
                    young = shard.young
                    before = young.get(key)
                    if before is not None:
                        if shard.turn is not turn:
                            shard.begin(turn)
                        if before is ABSENT:
                            shard.added(key)
                        shard.event[key] = young[key] = value
                        return
                shard.put(turn, key, value)
                return
        turn, shard = self._writable()
        shard.put(turn, key, value)

    # The rest of a mapping

    def __delitem__(self, key: K) -> None:
        turn, shard = self._writable()
        if not shard.delete(turn, key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        place = self._lane()
        if place is not None:
            return place[1].has(place[0], key)
        return self._committed(cast("K", key)) is not ABSENT

    def __len__(self) -> int:
        place = self._lane()
        if place is not None:
            return place[1].count(place[0])
        return sum(shard.size_committed for shard in self._held())

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, in the order of their bytes as far as their first 478 tell."""
        place = self._lane()
        if place is None:
            for shard in self._held():
                with self._unless_gone(shard):
                    yield from map(self.keys_shape.key, shard.marks(None))
            return
        turn, shard = place
        number = turn.number
        for mark in shard.marks(turn):
            if turn.number != number:
                raise EventSettledError(
                    f"table {self.name!r}: this iteration belongs to an event that has settled; "
                    "finish it inside the event, or make a list of it"
                )
            yield self.keys_shape.key(mark)

    def __bool__(self) -> bool:
        return len(self) > 0

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        """Return a key's value, or ``default``: the table's own default plays no part."""
        value = self._find(key)
        return default if value is ABSENT else value

    def setdefault(self, key: K, default: V) -> V:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a key's value; where it is missing, set it first."""
        turn, shard = self._writable()  # even where nothing is missing, as on other days it is
        if key not in self:
            loans = shard.loans.get(turn)
            lent = None if loans is None else loans.lent_default(self.keys_shape.mark(key))
            self[key] = default if lent is None else lent  # somebody may still change that one
        return self.get(key, default)  # a None is written as null, and so is not there

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V | D) -> V | D: ...
    def pop(self, key: K, /, default: Any = MISSING) -> Any:
        """Remove a key and return its value, or ``default`` where it is missing.

        Raises:
            KeyError: it is missing, and there is no default.
        """
        turn, shard = self._writable()
        value = shard.read(turn, key)
        if value is not ABSENT:
            shard.delete(turn, key)
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def clear(self) -> None:
        """Remove all keys of the partition in hand."""
        turn, shard = self._writable()
        for mark in list(shard.marks(turn)):
            shard.delete(turn, self.keys_shape.key(mark))

    def items(self) -> ItemsView[K, V]:
        """Return the keys with their values."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return the values."""
        return _Values(self)

    async def query(self, key: K) -> V | None:
        """Return a key's committed value, None where the table has no such key.

        Raises:
            UsageError: the partition that the key belongs to is not held here.
        """
        value = self._committed(key)
        if value is not ABSENT:
            return value
        shards = self._held()
        data = self.keys_shape.encode(self.keys_shape.mark(key))
        if not any(self.partitioner(data, shard.partitions) == shard.partition for shard in shards):
            held = ", ".join(str(shard.partition) for shard in shards) or "none"
            raise UsageError(
                f"table {self.name!r}: the partition of key {key!r} is not held by this worker "
                f"(it holds: {held}); ask where it is held, or `trickle get {self.name} {key}`"
            )
        return None

    # Where the table is used

    def _lane(self) -> tuple[Turn, Shard[K, V]] | None:
        turn = current_turn()
        shard = None if turn is None else turn.shards.get(self)
        return None if turn is None or shard is None else (turn, shard)

    def _writable(self) -> tuple[Turn, Shard[K, V]]:
        place = self._lane()
        if place is not None:
            return place
        turn = current_turn()
        if turn is None or turn.partition is None:
            raise TableReadOnlyError(
                f"table {self.name!r} can be read here, not written: only an agent writes it, "
                "while it handles an event; send an event to an agent that does"
            )
        self._held()  # which says so where it is another app's
        raise TableReadOnlyError(
            f"table {self.name!r} has no partition {turn.partition} for agent {turn.agent!r}: its "
            "partitions are those of another source; give the table source= with the agent's "
            "topic, or regroup the agent's source by group_by into as many partitions"
        )

    def _held(self) -> Sequence[Committed]:
        holder = HOLDER.get()
        if holder is None:
            raise UsageError(
                f"table {self.name!r} cannot be read here: no app is running here; read it inside "
                "`async with app.run():`, or from the shell by `trickle get`"
            )
        return holder.shards_of(self)

    def _committed(self, key: K) -> Any:
        place = self._lane()  # raises where the event has settled
        if place is not None:
            return place[1].read(place[0], key)
        shards = self._held()
        if not shards:
            return ABSENT
        data = self.keys_shape.encode(self.keys_shape.mark(key))
        home = self.partitioner(data, shards[0].partitions)
        for shard in sorted(shards, key=lambda shard: shard.partition != home):
            value = shard.read_committed(key)
            if value is not ABSENT:
                return value
        return ABSENT

    def _find(self, key: K) -> Any:
        place = self._lane()
        return self._committed(key) if place is None else place[1].read(place[0], key)

    def _default(self, turn: Turn, shard: Shard[K, V], key: K) -> V:
        if self.default is None:
            raise KeyError(key)
        if shard.plain:
            return self.default()
        return shard.loans_of(turn).lend(shard.keys.mark(key), self.default)

    def pairs(self) -> Iterator[tuple[K, V]]:
        """Yield keys and values; one that vanishes while this waits between two is left out."""
        if self._lane() is not None:
            for key in self:
                value = self._find(key)
                if value is not ABSENT:
                    yield key, value
            return
        for shard in self._held():
            with self._unless_gone(shard):
                for key in map(self.keys_shape.key, shard.marks(None)):
                    value = shard.read_committed(key)
                    if value is not ABSENT:
                        yield key, value

    @contextmanager
    def _unless_gone(self, shard: Committed) -> Generator[None]:
        """Iterate over a shard; it may be closed meanwhile, as its partition is given away."""
        try:
            yield
        except StoreError:
            if any(held.partition == shard.partition for held in self._held()):
                raise


class _Items(ItemsView[K, V]):
    """Keys and values."""

    def __init__(self, table: Table[K, V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._table.pairs()

    def __contains__(self, item: object) -> bool:
        """Tell whether a key has a value; the table's default is none."""
        key, value = cast("tuple[K, V]", item)
        found = self._table.get(key, MISSING)
        return found is not MISSING and found == value


class _Values(ValuesView[V]):
    """Values, likewise."""

    def __init__(self, table: Table[Any, V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[V]:
        for _, value in self._table.pairs():
            yield value

    def __contains__(self, value: object) -> bool:
        return any(value is other or value == other for other in self)
