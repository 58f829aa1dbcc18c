"""Models: what the base gives to those who subclass it, and how types are described."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any, NamedTuple, NotRequired, TypedDict

import attrs
import msgspec
import pytest

from trickle.exceptions import ConfigurationError
from trickle.models import FieldDescription, Model, TypeDescription, describe
from trickle.serializers import codec_for


class Flight(Model):
    """One departure.

    With more to say about it.
    """

    carrier: str
    delay: float | None = None
    tags: list[str] = msgspec.field(default_factory=list[str])


class Long(Model, rename="camel", frozen=True, kw_only=True):
    flight_number: int
    tail_number: str = "?"


class Plane(Model, tag=True):
    seats: int


class Ship(Model, tag=True):
    masts: int


class Strict(Model, forbid_unknown_fields=True):
    a: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@attrs.define
class Size:
    """How large."""

    width: int = attrs.field(factory=int)


class Options(TypedDict):
    name: str
    many: NotRequired[list[int]]


class Pair(NamedTuple):
    left: int
    right: str = "r"


def test_a_model_is_a_struct_with_its_options() -> None:
    assert Flight("AA") == Flight(carrier="AA", delay=None, tags=[])
    codec = codec_for(Long, what="values")
    assert codec.encode(Long(flight_number=5)) == b'{"flightNumber":5,"tailNumber":"?"}'
    with pytest.raises(AttributeError):
        Long(flight_number=5).tail_number = "x"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_fields_are_ignored_unless_forbidden() -> None:
    assert codec_for(Flight, what="v").decode(b'{"carrier": "AA", "new": 1}') == Flight("AA")
    with pytest.raises(Exception, match="unknown field `b`"):
        codec_for(Strict, what="v").decode(b'{"a": 1, "b": 2}')


def test_a_cycle_of_models_is_collected() -> None:
    class Cycle(Model, weakref=True):
        items: list[Any]

    cycle = Cycle([])
    cycle.items.append(cycle)
    gone = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert gone() is None
    assert not gc.is_tracked(Long(flight_number=1))  # the collector never sees it


def test_describe_a_model() -> None:
    assert describe(Flight | None) == TypeDescription(
        name="Flight | None",
        doc="One departure.",
        fields=(
            FieldDescription(name="carrier", wire_name="carrier", type="str", required=True),
            FieldDescription(
                name="delay",
                wire_name="delay",
                type="float | None",
                required=False,
                default="None",
            ),
            FieldDescription(
                name="tags", wire_name="tags", type="list[str]", required=False, default="list()"
            ),
        ),
    )


def test_describe_names_on_the_wire() -> None:
    fields = describe(Long).fields
    assert [(f.name, f.wire_name, f.default) for f in fields] == [
        ("flight_number", "flightNumber", None),
        ("tail_number", "tailNumber", "'?'"),
    ]


@pytest.mark.parametrize(
    ("kind", "doc", "fields"),
    [
        (Point, "", [("x", "int", True), ("y", "int", False)]),
        (Size, "How large.", [("width", "int", False)]),
        (Options, "", [("name", "str", True), ("many", "list[int]", False)]),
        (Pair, "", [("left", "int", True), ("right", "str", False)]),
        (int, "", []),
        (Plane | Ship, "", []),
        (dict[str, Flight], "", []),
    ],
)
def test_describe_other_types(kind: object, doc: str, fields: list[tuple[str, str, bool]]) -> None:
    described = describe(kind)
    assert described.doc == doc
    assert [(f.name, f.type, f.required) for f in described.fields] == fields


def test_describe_what_msgspec_does_not_take() -> None:
    with pytest.raises(ConfigurationError, match="type Flight cannot be described: "):
        describe("Flight")


def test_a_description_serialises() -> None:
    assert msgspec.json.decode(msgspec.json.encode(describe(Pair)), type=TypeDescription) == (
        describe(Pair)
    )
