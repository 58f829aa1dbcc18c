"""What a type says of its values, found by looking at the type alone.

A *type form* is whatever an annotation can be: a class, ``list[int]``, ``int | None``, a NewType.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import types
import typing
import uuid
from typing import Annotated, Any, ClassVar, Literal, NewType, Union, cast, get_args, get_origin

import msgspec
import msgspec.inspect
import typing_extensions

__all__ = [
    "allows_none",
    "has_fields",
    "is_annotated",
    "is_immutable",
    "name_of",
    "outer_types",
    "plain",
    "unaliased",
    "unsupported_parts",
    "without_none",
]

_ALIASES: tuple[Any, ...] = tuple(
    {
        getattr(module, "TypeAliasType")  # noqa: B009 - typing's own exists from Python 3.12 on
        for module in (typing, typing_extensions)
        if hasattr(module, "TypeAliasType")
    }
)
_NONE = type(None)
_FIELD_NOTES: tuple[Any, ...] = tuple(
    getattr(module, name)
    for module in (typing, typing_extensions)
    for name in ("Required", "NotRequired", "ReadOnly")
    if hasattr(module, name)
)
_IMMUTABLE: frozenset[type[Any]] = frozenset(
    {
        int, float, bool, str, bytes, complex, _NONE, decimal.Decimal, uuid.UUID,
        dt.datetime, dt.date, dt.time, dt.timedelta,
    }
)  # fmt: skip


def plain(form: Any) -> Any:
    """Return a type form without the names and notes around it: aliases, NewType, Annotated."""
    while True:
        form = unaliased(form)
        if isinstance(form, NewType):
            form = form.__supertype__
        elif get_origin(form) is Annotated:
            form = get_args(form)[0]
        else:
            return form


def unaliased(form: Any) -> Any:
    """Return what a type alias stands for; not all of msgspec's versions take the alias itself."""
    while isinstance(form, _ALIASES):
        form = form.__value__
    return form


def is_annotated(form: Any) -> bool:
    """Tell whether there are notes on a type, which may be constraints: ``Annotated[int, …]``."""
    while True:
        form = unaliased(form)
        if get_origin(form) is Annotated:
            return True
        if isinstance(form, NewType):
            form = form.__supertype__
        else:
            return False


def _is_none(form: Any) -> bool:
    # By identity, here and below: a type form with notes on it need not be hashable.
    return form is None or form is _NONE


def _members(form: Any) -> tuple[Any, ...]:
    """Return a union's members, and theirs; any other type is its own only member."""
    form = plain(form)
    if get_origin(form) in {Union, types.UnionType}:
        return tuple(inner for arg in get_args(form) for inner in _members(arg))
    return (form,)


def allows_none(form: Any) -> bool:
    """Tell whether None is a value of a type."""
    for member in _members(form):
        if _is_none(member) or member is Any or member is object:
            return True
        if get_origin(member) is Literal and None in get_args(member):
            return True
    return False


def without_none(form: Any) -> Any:
    """Return ``X`` for ``X | None``; what has no None beside it stays as it is.

    Annotations right on the union are dropped with it; those on its members stay.
    """
    inner = plain(form)
    if get_origin(inner) not in {Union, types.UnionType}:
        return form
    rest = [arg for arg in get_args(inner) if not _is_none(arg)]
    if len(rest) == len(get_args(inner)) or not rest:
        return form
    return Union[tuple(rest)]  # noqa: UP007 - made of parts known at run time only


def name_of(form: Any) -> str:
    """Return a type as a person would write it: ``Flight | None``, ``list[int]``."""
    if _is_none(form):
        return "None"
    if isinstance(form, (*_ALIASES, NewType)):
        return str(getattr(form, "__name__", form))
    origin, args = get_origin(form), get_args(form)
    if origin is Annotated or origin in _FIELD_NOTES:
        return name_of(args[0])
    if origin in {Union, types.UnionType}:
        return " | ".join(name_of(arg) for arg in args)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is not None:
        head = getattr(origin, "__qualname__", str(origin))
        return f"{head}[{', '.join('...' if a is Ellipsis else name_of(a) for a in args)}]"
    if isinstance(form, type):
        return form.__qualname__.rpartition("<locals>.")[2]
    return str(form).removeprefix("typing.")


def outer_types(form: Any) -> tuple[type, ...] | None:
    """Return the classes that a value of the type has on its outside, for ``isinstance``.

    Returns:
        None where a class does not tell: Any, Literal, an unbound type variable.
    """
    found: list[type] = []
    for member in _members(form):
        cls: Any = get_origin(member) or member
        if member is None:
            cls = _NONE
        elif typing_extensions.is_typeddict(cls):
            cls = dict
        if not isinstance(cls, type) or cls in {Any, object}:  # Any is a class from 3.11 on
            return None
        found.append(cls)
    return tuple(found)


def is_immutable(form: Any) -> bool:
    """Tell whether all values of a type are known never to change."""
    return _is_immutable(form, ())


def _is_immutable(form: Any, seen: tuple[type[Any], ...]) -> bool:
    kind = plain(form)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return True
    if origin in {Union, types.UnionType}:
        return all(_is_immutable(arg, seen) for arg in args)
    if origin in {tuple, frozenset}:
        return bool(args) and all(arg is Ellipsis or _is_immutable(arg, seen) for arg in args)
    if kind is None or kind is Any:
        return kind is None
    if not isinstance(kind, type) or origin is not None:
        return False
    cls = cast("type[Any]", kind)
    if cls in _IMMUTABLE or cls in seen:  # a recursive type is decided by its other parts
        return True
    seen = (*seen, cls)
    return issubclass(cls, enum.Enum) or (_is_frozen(cls) and _fields_are_immutable(cls, seen))


def has_fields(kind: type[Any]) -> bool:
    """Tell whether a class is a Struct, a dataclass or an attrs class."""
    return issubclass(kind, msgspec.Struct) or any(
        hasattr(kind, name) for name in ("__dataclass_fields__", "__attrs_attrs__")
    )


def _is_frozen(kind: type[Any]) -> bool:
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_config__.frozen
    if dataclasses.is_dataclass(kind):
        return bool(getattr(kind, "__dataclass_params__").frozen)  # noqa: B009 - not in the stubs
    return hasattr(kind, "_fields") and issubclass(kind, tuple)  # a NamedTuple


def _fields_are_immutable(kind: type[Any], seen: tuple[type[Any], ...]) -> bool:
    try:
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        return False
    fields = [hint for hint in hints.values() if get_origin(hint) is not cast("Any", ClassVar)]
    return bool(fields) and all(_is_immutable(hint, seen) for hint in fields)


def unsupported_parts(form: Any) -> list[str]:
    """Return the names of the types inside that msgspec only lets through to hooks.

    Raises:
        TypeError: msgspec does not take the type at all.
        NameError: a name in its annotations is not defined.
    """
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting: list[Any] = [msgspec.inspect.type_info(form)]
    while waiting:
        info = waiting.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, msgspec.inspect.CustomType):
            found[name_of(info.cls)] = None
            continue
        if isinstance(info, tuple):
            waiting += cast("tuple[Any, ...]", info)
        elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
            waiting += [getattr(info, name) for name in info.__struct_fields__]
    return list(found)
