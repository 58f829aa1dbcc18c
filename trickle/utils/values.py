"""From what a person writes to a setting's value: one small object for each kind of value.

A :class:`Kind` reads Python values (arguments, TOML) and text (environment variables). What it
refuses is a ValueError whose message says what was expected; the caller adds which setting it was
and where it stood. No message repeats the value: it may be a secret, and the caller knows that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

import msgspec

__all__ = [
    "Kind",
    "boolean",
    "choice",
    "duration",
    "integer",
    "is_whole",
    "mapping",
    "path",
    "text",
]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class Kind(msgspec.Struct, frozen=True):
    """One kind of value.

    Attributes:
        expected: what is accepted, for messages: "a positive number of seconds".
        of_value: reads a Python value.
        of_text: reads the text of an environment variable.
    """

    expected: str
    of_value: Callable[[object], Any]
    of_text: Callable[[str], Any]


def is_whole(value: object, *, at_least: int) -> bool:
    """Tell whether a value is a whole number that is no smaller than a bound."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def boolean() -> Kind:
    """True or false; as text also 1, 0, yes, no, on, off."""
    expected = "true or false"

    def of_value(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(expected)
        return value

    def of_text(written: str) -> bool:
        word = written.strip().lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(expected)
        return word in _TRUE

    return Kind(expected, of_value, of_text)


def integer(low: int, high: int | None = None) -> Kind:
    """A whole number between two bounds, both of them allowed."""
    expected = f"a whole number, {low:,} or more" if high is None else (
        f"a whole number from {low:,} to {high:,}"
    )  # fmt: skip

    def of_value(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(expected)
        if value < low or (high is not None and value > high):
            raise ValueError(expected)
        return value

    def of_text(written: str) -> int:
        try:
            number = int(written)
        except ValueError:
            raise ValueError(expected) from None
        return of_value(number)

    return Kind(expected, of_value, of_text)


def duration(low: float, high: float = math.inf) -> Kind:
    """Seconds as a number, or a timedelta; never below the bound, always finite."""
    bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:,g}"
    expected = f"seconds (a number or a timedelta), {bounds}"

    def of_value(value: object) -> float:
        if isinstance(value, timedelta):
            result = value.total_seconds()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                result = float(value)
            except OverflowError:
                raise ValueError(expected) from None
        else:
            raise ValueError(expected)
        if not math.isfinite(result) or not low <= result <= high:
            raise ValueError(expected)
        return result

    def of_text(written: str) -> float:
        try:
            number = float(written)
        except ValueError:
            raise ValueError(expected) from None
        return of_value(number)

    return Kind(expected, of_value, of_text)


def choice(*allowed: str) -> Kind:
    """One of some words."""
    expected = " or ".join(repr(word) for word in allowed)

    def of_value(value: object) -> str:
        if value not in allowed:
            raise ValueError(expected)
        return cast("str", value)

    return Kind(expected, of_value, of_value)


def text() -> Kind:
    """Text that is not empty and holds no control characters; blanks around it are dropped."""
    expected = "text that is not empty, without control characters"

    def of_value(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError(expected)
        return value.strip()

    return Kind(expected, of_value, of_value)


def path() -> Kind:
    """A path, as text or as a ``Path``."""
    expected = "a path"

    def of_value(value: object) -> str:
        if not isinstance(value, str | os.PathLike):
            raise ValueError(expected)
        written = os.fspath(cast("str | os.PathLike[str]", value))
        if not isinstance(cast("object", written), str) or not written.strip() or "\0" in written:
            raise ValueError(expected)
        return written

    return Kind(expected, of_value, of_value)


def mapping() -> Kind:
    """Names with text, numbers or true and false; as text a JSON object.

    A mapping inside makes names with a dot: that is how TOML reads ``ssl.ca.location = "x"``.
    """
    expected = "a mapping of names to text, numbers, true or false"
    expected_text = 'a JSON object, as in {"security.protocol": "SSL"}'

    def of_value(value: object) -> dict[str, str | int | float | bool]:
        if not isinstance(value, Mapping):
            raise ValueError(expected)
        found: dict[str, str | int | float | bool] = {}
        waiting = [("", cast("Mapping[object, object]", value))]
        while waiting:
            prefix, items = waiting.pop()
            for name, item in items.items():
                if isinstance(name, str) and isinstance(item, Mapping):
                    waiting.append((f"{prefix}{name}.", cast("Mapping[object, object]", item)))
                elif isinstance(name, str) and isinstance(item, str | int | float):
                    found[prefix + name] = item
                else:
                    raise ValueError(expected)
        return found

    def of_text(written: str) -> dict[str, str | int | float | bool]:
        try:
            value = msgspec.json.decode(written)
        except (msgspec.DecodeError, RecursionError):
            raise ValueError(expected_text) from None
        return of_value(value)

    return Kind(expected, of_value, of_text)
