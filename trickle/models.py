"""Model: how keys and values are described.

A Model is a :class:`msgspec.Struct`, so its options are class arguments: ``frozen=True``,
``kw_only=True``, ``tag=True`` (for unions), ``rename="camel"``, ``forbid_unknown_fields=True``.
Dataclasses, TypedDict, attrs classes and builtins serve as types just as well; a Model is the
fastest of them.

Two choices are msgspec's defaults on purpose. Unknown fields are ignored, so that a producer may
add one before its readers know it. And models take part in garbage collection, as a model can hold
a list that holds the model, and with ``gc=False`` such a cycle is never freed. It costs little:
msgspec shows the collector only instances that hold something that can be part of a cycle, so a
model of numbers and text is never looked at. For the last few bytes say ``class Flight(Model,
gc=False)`` of a model without containers.
"""

from __future__ import annotations

from typing import Any, dataclass_transform, get_origin

import msgspec
import msgspec.inspect
from typing_extensions import get_type_hints

from trickle.exceptions import ConfigurationError
from trickle.utils.typeforms import name_of, without_none

__all__ = ["FieldDescription", "Model", "TypeDescription", "describe"]


@dataclass_transform(field_specifiers=(msgspec.field,))  # so that a subclass may be frozen
class Model(msgspec.Struct):
    """The base of a user's own models: subclass it with fields, and defaults for optional ones."""


class FieldDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a type.

    Attributes:
        name: in Python.
        wire_name: in the bytes.
        required: it has no default.
        default: as Python would write it; None where there is none.
    """

    name: str
    wire_name: str
    type: str
    required: bool
    default: str | None = None


class TypeDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A key's or value's type, for a person.

    Attributes:
        name: as an annotation would have it.
        doc: the first line of the class's own docstring, or nothing.
        fields: none for what is no model, dataclass or the like.
    """

    name: str
    doc: str = ""
    fields: tuple[FieldDescription, ...] = ()


def describe(type: object) -> TypeDescription:
    """Describe a type: its name, and its fields where it has some.

    Raises:
        ConfigurationError: msgspec does not take the type.
    """
    try:
        info = msgspec.inspect.type_info(without_none(type))
    except (TypeError, NameError, ValueError) as error:
        raise ConfigurationError(f"type {name_of(type)} cannot be described: {error}") from error
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    fields: tuple[FieldDescription, ...] = ()
    doc = ""
    if isinstance(
        info,
        msgspec.inspect.StructType
        | msgspec.inspect.DataclassType
        | msgspec.inspect.TypedDictType
        | msgspec.inspect.NamedTupleType,
    ):
        cls: Any = get_origin(info.cls) or info.cls
        hints = get_type_hints(cls, include_extras=True)
        order = list(hints)  # as written: a TypedDict's fields come sorted by need
        written = sorted(info.fields, key=lambda field: order.index(field.name))
        fields = tuple(_field(field, hints) for field in written)
        doc = _first_line(cls)
    return TypeDescription(name=name_of(type), doc=doc, fields=fields)


def _field(field: msgspec.inspect.Field, hints: dict[str, Any]) -> FieldDescription:
    default: str | None = None
    if field.default is not msgspec.NODEFAULT:
        default = repr(field.default)
    elif field.default_factory is not msgspec.NODEFAULT:
        default = f"{getattr(field.default_factory, '__name__', 'a function')}()"
    return FieldDescription(
        name=field.name,
        wire_name=field.encode_name,
        type=name_of(hints[field.name]),
        required=field.required,
        default=default,
    )


def _first_line(cls: Any) -> str:
    doc = cls.__dict__.get("__doc__")
    # A dataclass without a docstring is given its signature as one.
    if not isinstance(doc, str) or doc.startswith(f"{cls.__name__}("):
        return ""
    return doc.strip().partition("\n")[0]
