"""What a shard must know of its key and value types: what may be kept as it is, and what fits.

A *cell* is what a shard keeps for a key, and a cell never changes. Where the value type is known
to be immutable, the cell is the value itself; otherwise it is the value's bytes, and each reader
gets a copy of its own. So no reader can change what another sees, and undo is an assignment.

*Fitting* makes sure of two things when a value is written, as later nobody could be told: that it
can be encoded, and that what is decoded again, after a restart, equals what is kept. Only a round
trip through the codec proves that in general. For numbers, text, bytes and bools in trickle's own
serializers it is known without one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, cast, get_args, get_origin

from trickle.exceptions import DecodeError, EncodeError
from trickle.serializers import BoundCodec

__all__ = ["ABSENT", "MISSING", "KeyShape", "Marker", "ValueShape"]


class Marker(enum.Enum):
    """What stands where there is no value; an enum, so that type checkers know the two apart."""

    ABSENT = "absent"
    MISSING = "missing"


ABSENT = Marker.ABSENT
"""In the place of a cell: the table is known to have no such key."""

MISSING = Marker.MISSING
"""In the place of a cell: nothing is known here, look further."""

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_FLOAT_MAX = 1.7976931348623157e308


class ValueShape:
    """What a shard knows of its table's value type.

    Attributes:
        plain: cells are the values themselves; otherwise their bytes.
        number: int or float where exact instances of it need no look but at their bounds.
        low: the least such number.
        high: the greatest.
        nullable: the type has None among its values.
    """

    __slots__ = (
        "_codec",
        "_exact",
        "_items",
        "_what",
        "high",
        "low",
        "nullable",
        "number",
        "plain",
    )

    def __init__(self, table: str, kind: object, codec: BoundCodec, *, trusted: bool) -> None:
        self._codec = codec
        self._what = f"table {table!r}"
        self.plain = codec.immutable
        self.nullable = codec.nullable
        self.number: Any = kind if trusted and (kind is int or kind is float) else None
        self.low: float = _INT_MIN if kind is int else -_FLOAT_MAX
        self.high: float = _INT_MAX if kind is int else _FLOAT_MAX
        self._exact: Any = kind if trusted and kind in (str, bytes, bool) else None
        self._items = _item_types(kind) if trusted else None

    def fit(self, key: object, value: Any) -> Any:
        """Return the cell of a value that is written.

        Raises:
            EncodeError: the value is not of the table's type, or cannot be encoded.
        """
        if value is None:
            if self.nullable:
                return ABSENT
            raise EncodeError(
                f"{self._what}, key {_short(key)}: None is not a {self._codec.type_name}; "
                "use `del` to remove the key; with a value type with `| None`, None removes it, too"
            )
        if type(value) is self._exact and (self._exact is not str or value.isascii()):
            return value
        if self._items is not None and _is_sound(value, self._items):
            return value
        data = self.encode_value(key, value)
        copy = self.verify(key, value, data)
        return copy if self.plain else data

    def encode_value(self, key: object, value: Any) -> bytes:
        """Return a value's bytes.

        Raises:
            EncodeError: it cannot be encoded.
        """
        try:
            data = self._codec.encode(value)
        except EncodeError as error:
            raise EncodeError(f"{self._what}, key {_short(key)}: {error}") from error
        if data is None:
            raise self._misfit(key, value)
        return data

    def verify(self, key: object, value: Any, data: bytes) -> Any:
        """Return what will be read of a value's bytes.

        Raises:
            EncodeError: it would be no value of the table's type.
        """
        try:
            return self._codec.decode(data)
        except DecodeError as error:
            raise self._misfit(key, value) from error

    def _misfit(self, key: object, value: object) -> EncodeError:
        return EncodeError(
            f"{self._what}, key {_short(key)}: expected {self._codec.type_name}, got "
            f"{_short(value)} of type {type(value).__qualname__}, which {self._codec.serializer} "
            "would not read back as that"
        )

    def encode(self, cell: Any) -> bytes | None:
        """Return a cell's bytes, None where the key is absent."""
        if cell is ABSENT:
            return None
        return self._codec.encode(cell) if self.plain else cell

    def encode_all(self, cells: Iterable[Any]) -> list[bytes | None]:
        """Return the bytes of many cells."""
        if not self.plain:
            return [None if cell is ABSENT else cell for cell in cells]
        encode = self._codec.encode_fast  # each has been fitted
        return [None if cell is ABSENT else encode(cell) for cell in cells]

    def cell(self, data: bytes | None) -> Any:
        """Return the cell of stored bytes.

        Raises:
            DecodeError: the bytes are no value of the table's type.
        """
        if data is None:
            return ABSENT
        return self.decode(data) if self.plain else data

    def value(self, cell: Any) -> Any:
        """Return the value of a cell: for the caller alone where it can be changed."""
        return cell if self.plain else self.decode(cell)

    def decode(self, data: bytes) -> Any:
        """Return the value of stored bytes.

        Raises:
            DecodeError: the bytes are no value of the table's type.
        """
        try:
            return self._codec.decode(data)
        except DecodeError as error:
            raise DecodeError(
                f"{self._what}: a stored value is no {self._codec.type_name}: {error}; if the "
                "table's value type has changed, give the new fields defaults, or name the table "
                "anew"
            ) from error


class KeyShape:
    """What a shard knows of its table's key type.

    A shard's maps are indexed by *marks*: the key itself where its type is str, bytes or int,
    otherwise the key's bytes (so that keys need not be hashable, and 1, 1.0 and True differ).

    Attributes:
        exact: str, bytes or int, where marks are keys; None otherwise.
    """

    __slots__ = ("_codec", "_what", "exact")

    def __init__(self, table: str, kind: object, codec: BoundCodec, *, trusted: bool) -> None:
        self._codec = codec
        self._what = f"table {table!r}"
        exact = trusted and (kind is str or kind is bytes or kind is int)
        self.exact: Any = kind if exact else None

    def mark(self, key: Any) -> Any:
        """Return the mark of a key.

        Raises:
            EncodeError: it is no key of the table's type.
        """
        if type(key) is self.exact:
            return key
        data: bytes | None = None
        try:
            data = self._codec.encode(key)
            copy = None if data is None else self._codec.decode(data)
            if self.exact is None and data is not None:
                # As what is read back is written: a float's 1 is 1.0, by whom it was not given.
                data = self._codec.encode(copy)
        except EncodeError as error:
            raise EncodeError(f"{self._what}, as a key: {error}") from error
        except DecodeError as error:
            raise EncodeError(
                f"{self._what}: expected a key of type {self._codec.type_name}, got "
                f"{_short(key)} of type {type(key).__qualname__}, which would not be read back so"
            ) from error
        if data is None:
            raise EncodeError(f"{self._what}: None is no key, as it has no bytes; use another key")
        return data if self.exact is None else copy

    def encode(self, mark: Any) -> bytes:
        """Return the bytes of the key of a mark.

        Raises:
            EncodeError: the key cannot be encoded: a str with lone surrogates, for one.
        """
        if self.exact is None:
            return mark
        try:
            data = self._codec.encode(mark)
        except EncodeError as error:
            raise EncodeError(f"{self._what}: the key {_short(mark)}: {error}") from error
        if data is None:
            raise EncodeError(f"{self._what}: the key {_short(mark)} has no bytes")
        return data

    def encode_all(self, marks: Sequence[Any]) -> Sequence[bytes]:
        """Return the bytes of the keys of many marks; raises as :meth:`encode`."""
        if self.exact is None:
            return marks
        try:
            return list(map(self._codec.encode_fast, marks))
        except Exception:  # noqa: BLE001 - which key it was, and why, is found one by one
            return list(map(self.encode, marks))

    def mark_of(self, data: bytes) -> Any:
        """Return the mark of a stored key."""
        return data if self.exact is None else self.decode(data)

    def key(self, mark: Any) -> Any:
        """Return the key of a mark."""
        return self.decode(mark) if self.exact is None else mark

    def decode(self, data: bytes) -> Any:
        """Return the key of stored bytes.

        Raises:
            DecodeError: the bytes are no key of the table's type.
        """
        try:
            return self._codec.decode(data)
        except DecodeError as error:
            raise DecodeError(
                f"{self._what}: a stored key is no {self._codec.type_name}: {error}; if the "
                "table's key type has changed, name the table anew"
            ) from error


def _item_types(kind: object) -> tuple[type, ...] | None:
    """Return the types of a tuple's items where each of them can be judged by a look at it."""
    items = get_args(kind)
    plain = get_origin(kind) is tuple and items and all(t in (int, float, str, bool) for t in items)
    return items if plain else None


def _is_sound(value: Any, items: tuple[type, ...]) -> bool:
    """Tell whether a tuple is known to be read back as it is; False: a round trip must tell."""
    if type(value) is not tuple:
        return False
    given = cast("tuple[Any, ...]", value)
    if tuple(map(type, given)) != items:
        return False
    for item, kind in zip(given, items, strict=True):
        if kind is float:
            if not -_FLOAT_MAX <= item <= _FLOAT_MAX:
                return False
        elif kind is str:
            if not item.isascii():
                return False
        elif not _INT_MIN <= item <= _INT_MAX:
            return False
    return True


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error that names it
        return "a value"
    return text if len(text) <= 60 else text[:57] + "…"
