"""By what an agent's events are kept in order while several of them are in hand.

Each event has an *order*: its key, or what a function makes of its value. Events of one order are
handled one after the other, as they come; all others side by side. An event without an order (it
has no key, or the function gives None) waits for nobody.

The order is also the one table key that the event may touch (:mod:`trickle.tables.keyed`). So
orders are compared as the values that they are, not as bytes: a key may be spelt in two ways.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from trickle.exceptions import DecodeError, DefinitionError, TrickleError, UsageError
from trickle.serializers import BoundCodec
from trickle.types import Record
from trickle.untyped import read_key

__all__ = ["Order", "Ordering", "OrderingArgument"]

OrderingArgument: TypeAlias = Literal["key", "none"] | Callable[[Any], object]


class Order(NamedTuple):
    """Where one event stands.

    Attributes:
        lock: events of equal locks are in order; None for an event without an order.
        value: the table key that it may touch.
        failure: why the event has no order although it should have one.
    """

    lock: Hashable | None
    value: Any = None
    failure: TrickleError | None = None


_FREE = Order(None)


class Ordering:
    """How the events of one agent are kept in order.

    Args:
        agent: its name.
        argument: what the user gave as ``ordering=``.
        keys: the codecs of the keys, by topic.
        values: likewise.
        changed: the source has steps that change the value, which a function would not see.

    Attributes:
        of: finds a record's order.
        tables: whether events may write tables.

    Raises:
        DefinitionError: the argument makes no sense.
    """

    def __init__(
        self,
        agent: str,
        argument: object,
        *,
        keys: Mapping[str, BoundCodec],
        values: Mapping[str, BoundCodec],
        changed: bool,
    ) -> None:
        self._agent = agent
        self._keys = keys
        self._values = values
        self.tables = argument != "none"
        self.of: Callable[[Record], Order]
        if argument == "key":
            self.of = self._by_key
        elif argument == "none":
            self.of = _by_nothing
        elif not callable(argument) or inspect.iscoroutinefunction(argument):
            raise DefinitionError(
                f"agent {agent!r}: ordering= is {argument!r}: use 'key', 'none', or a plain "
                "function of the value, as in ordering=lambda flight: flight.origin"
            )
        elif changed:
            raise DefinitionError(
                f"agent {agent!r}: ordering= is a function, but its source changes the values by "
                "map or flat_map, and the order is found before: do that inside the agent "
                "(stream.map), or use ordering='key'"
            )
        else:
            self._function = cast("Callable[[Any], object]", argument)
            self.of = self._by_function

    def _by_key(self, record: Record) -> Order:
        if record.key is None:
            return _FREE
        codec = self._keys[record.topic]
        try:
            key = read_key(codec, record)
            return Order(key if type(key) in _KNOWN else (codec.encode(key),), key)
        except Exception:  # noqa: BLE001 - whatever it is, it comes up where the key is asked for
            return Order(record.key, record.key)

    def _by_function(self, record: Record) -> Order:
        try:
            value = self._values[record.topic].decode(record.value)
        except DecodeError:  # the agent's policy hears of it when its turn comes
            return _FREE
        try:
            order = self._function(value)
            hash(order)
        except Exception as error:  # noqa: BLE001 - the user's function: the event has failed
            failure = UsageError(
                f"agent {self._agent!r}: its ordering= function failed, or gave what cannot be "
                f"hashed: {type(error).__name__}: {error}"
            )
            failure.__cause__ = error
            return Order(None, None, failure)
        return Order(order, order)


_KNOWN = (str, bytes, int)  # others may be equal, and hashed each for itself, or not at all


def _by_nothing(record: Record) -> Order:
    del record
    return _FREE
