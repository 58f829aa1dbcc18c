"""Types of what a repartition topic holds, and codecs for it when nobody has told its type.

A lambda says nothing of what it returns, yet ``group_by(lambda flight: flight.month, name=…)``
shall do what it says. Such keys and values travel as they would if their type were known: text and
bytes as they are, whatever else as JSON, so that the partitions are those of a typed topic. Reading
them back takes care: the bytes ``7`` are the text "7" as well as the number, so a key that is no
text says in a header what it is. And only what JSON gives back unchanged may travel so: a Model or
a datetime would come back as a dict or as text, which is an error that names the argument to give.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, get_type_hints

import msgspec.json

from trickle.exceptions import DefinitionError, EncodeError
from trickle.serializers import BoundCodec
from trickle.types import Headers, Record

__all__ = [
    "UntypedKey",
    "UntypedValue",
    "field_getter",
    "field_type",
    "key_headers",
    "read_key",
    "returned_type",
]

KEY_HEADER = "trickle-key"
_JSON = (KEY_HEADER, b"json")
_RAW = (KEY_HEADER, b"raw")
_WITHOUT_FIELDS = (int, float, bool, str, bytes)


def returned_type(function: Callable[..., Any]) -> object:
    """Return the type that a function says it returns, None where it does not say."""
    if inspect.isclass(function):
        return function
    try:
        return _told(get_type_hints(function).get("return"))
    except (NameError, TypeError, AttributeError):
        return None


def _told(annotation: object) -> object:
    """Return an annotation if it tells a type, else None."""
    untold = annotation is Any or annotation is object or isinstance(annotation, TypeVar)
    return None if untold else annotation


def field_getter(field: str) -> Callable[[Any], Any]:
    """Return a function from a value to a field of it, or to what a mapping has there."""

    def get(value: Any) -> Any:
        if isinstance(value, Mapping):
            return cast("Mapping[str, Any]", value)[field]
        return getattr(value, field)

    return get


def field_type(value_type: object, field: str, name: str) -> object:
    """Return the type of a field, None where it cannot be known."""
    if not inspect.isclass(value_type) or value_type in (dict, object):
        return None
    try:
        hints = get_type_hints(value_type)
    except (NameError, TypeError):
        return None
    if value_type in _WITHOUT_FIELDS:
        raise DefinitionError(
            f"group_by({field!r}, name={name!r}): {value_type.__name__} has no fields; give a "
            "function of the value"
        )
    if hints and field not in hints:
        raise DefinitionError(
            f"group_by({field!r}, name={name!r}): {value_type.__name__} has no field {field!r}; "
            f"it has {', '.join(sorted(hints))}"
        )
    return _told(hints.get(field))


class UntypedValue:
    """JSON for values whose type is not known: builtins, which come back as they were."""

    def encode(self, value: Any) -> bytes:
        """Return a value as JSON.

        Raises:
            EncodeError: it would come back as something else.
        """
        data = msgspec.json.encode(value)
        if msgspec.json.decode(data) != value:
            raise EncodeError(
                "JSON would give it back as something else: annotate the return type of the "
                "function before group_by, or give group_by(…, value_type=)"
            )
        return data

    def decode(self, data: bytes, type: object) -> Any:
        """Return what the JSON holds."""
        return msgspec.json.decode(data)


class UntypedKey:
    """Text and bytes as they are, other keys as JSON; ``key_headers`` tells one from the other."""

    def encode(self, value: Any) -> bytes:
        """Return a key as it would travel if its type were known.

        Raises:
            EncodeError: it would come back as something else.
        """
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, bytes):
            return value
        data = msgspec.json.encode(value)
        if _frozen(msgspec.json.decode(data)) != value:
            raise EncodeError(
                "JSON would give it back as something else: annotate the return type of "
                "group_by's function, or give group_by(…, key_type=)"
            )
        return data

    def decode(self, data: bytes, type: object) -> Any:
        """Return the key as text; ``read_key`` knows those that are none."""
        return data.decode()


def key_headers(codec: BoundCodec, key: object, headers: Headers) -> Headers:
    """Return a record's headers with what its new key needs among them; text needs nothing."""
    kept = tuple(pair for pair in headers if pair not in (_RAW, _JSON))
    if not _is_untyped(codec) or key is None or isinstance(key, str):
        return kept
    return (*kept, _RAW if isinstance(key, bytes) else _JSON)


def read_key(codec: BoundCodec, record: Record) -> Any:
    """Return a record's key, decoded.

    Raises:
        DecodeError: the key's bytes are not of the topic's key type.
    """
    key = record.key
    if key is not None and _is_untyped(codec):
        if _RAW in record.headers:
            return key
        if _JSON in record.headers:
            return _frozen(msgspec.json.decode(key))
    return codec.decode(key)


def _is_untyped(codec: BoundCodec) -> bool:
    return codec.serializer == UntypedKey.__qualname__


def _frozen(key: Any) -> Any:
    """Return a key that can be hashed: JSON has lists only, and a key that is one was a tuple."""
    return tuple(map(_frozen, cast("list[Any]", key))) if isinstance(key, list) else key
