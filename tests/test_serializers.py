"""Codecs: what travels how, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from trickle.exceptions import ConfigurationError, DecodeError, EncodeError
from trickle.models import Model
from trickle.serializers import BoundCodec, codec_for


class Flight(Model):
    carrier: str
    delay: float | None = None


class Plane(msgspec.Struct, tag=True):
    seats: int


class Ship(msgspec.Struct, tag=True):
    masts: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@attrs.define
class Size:
    width: int


class Options(TypedDict):
    name: str
    many: list[int]


class Pair(NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = "red"


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Frozen(msgspec.Struct, frozen=True):
    names: tuple[str, ...]


class FrozenList(msgspec.Struct, frozen=True):
    names: list[str]


Code = NewType("Code", str)
Positive = Annotated[int, msgspec.Meta(gt=0)]
Maybe = TypeAliasType("Maybe", int | None)
WHAT = "the values of topic 't'"
JSON_FORMATS = ["json", "msgpack", "yaml"]


def bind(kind: object, serializer: Any = None, *, key: bool = False) -> BoundCodec:
    return codec_for(kind, serializer, what=WHAT, key=key)


VALUES: list[tuple[object, object]] = [
    (int, 5),
    (int, 10**18),
    (bool, True),
    (float, 1.5),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (dt.datetime, dt.datetime(2013, 1, 1, 5, tzinfo=dt.UTC)),
    (dt.date, dt.date(2013, 1, 1)),
    (dt.timedelta, dt.timedelta(seconds=90)),
    (uuid.UUID, uuid.UUID(int=7)),
    (Literal["a", "b"], "a"),
    (Colour, Colour.RED),
    (int | str, "five"),
    (int | str, 5),
    (list[int], [1, 2]),
    (set[str], {"a"}),
    (tuple[int, str], (1, "a")),
    (dict[str, list[int]], {"a": [1]}),
    (dict[int, str], {1: "a"}),
    (Mapping[str, int], {"a": 1}),
    (Sequence[int], [1]),
    (Flight, Flight("AA", 1.5)),
    (Flight, Flight("AA")),
    (Plane | Ship, Ship(3)),
    (Plane | None, Plane(3)),
    (Point, Point(1, 2)),
    (Size, Size(3)),
    (Options, {"name": "n", "many": [1]}),
    (Pair, Pair(1, "a")),
    (Node, Node(1, [Node(2)])),
    (Positive, 3),
]


@pytest.mark.parametrize("serializer", JSON_FORMATS)
@pytest.mark.parametrize(("kind", "value"), VALUES, ids=[str(v) for _, v in VALUES])
def test_every_type_that_msgspec_knows_comes_back(
    kind: object, value: object, serializer: str
) -> None:
    codec = bind(kind, serializer)
    data = codec.encode(value)
    assert isinstance(data, bytes)
    assert codec.decode(data) == value
    assert codec.decode_fast(data) == value


@pytest.mark.parametrize(
    ("kind", "value", "wire", "serializer"),
    [
        (bytes, b"\x00\xff", b"\x00\xff", "raw"),
        (str, "å", "å".encode(), "str"),
        (Code, Code("AA"), b"AA", "str"),
        (None, b"x", b"x", "raw"),
        (Any, "x", b'"x"', "json"),
        (object, [1], b"[1]", "json"),
        (bytes | None, b"x", b"x", "raw"),
        (str | None, "x", b"x", "str"),
        (int, 5, b"5", "json"),
        (bool, True, b"true", "json"),
        (int | None, 5, b"5", "json"),
        (Flight, Flight("AA"), b'{"carrier":"AA","delay":null}', "json"),
        (dict[str, Any], {"a": [1]}, b'{"a":[1]}', "json"),
    ],
)
def test_what_travels_how_unless_a_serializer_is_named(
    kind: object, value: object, wire: bytes, serializer: str
) -> None:
    codec = bind(kind)
    assert codec.serializer == serializer
    assert codec.encode(value) == wire
    assert codec.decode(wire) == value


def test_text_and_bytes_as_json_when_asked() -> None:
    assert bind(str, "json").encode("a") == b'"a"'
    assert bind(bytes, "json").encode(b"a") == b'"YQ=="'
    assert bind(Any, "json").decode(b'{"a": 1}') == {"a": 1}
    assert bind(Any, "str").decode(b"a") == "a"


def test_raw_takes_what_holds_bytes_where_no_type_is_given() -> None:
    codec = bind(None)
    assert codec.encode(bytearray(b"a")) == b"a"
    assert codec.encode(memoryview(b"a")) == b"a"


# Null


@pytest.mark.parametrize("kind", [int, str, bytes, Flight, list[int]])
def test_a_null_where_the_type_does_not_allow_none(kind: object) -> None:
    codec = bind(kind)
    assert not codec.nullable
    with pytest.raises(DecodeError) as caught:
        codec.decode(None)
    name = codec.type_name
    assert str(caught.value) == (
        f"the values of topic 't': expected {name}, got null; give it the type `{name} | None` "
        "if nulls belong there"
    )


@pytest.mark.parametrize(
    "kind", [None, Any, object, int | None, str | None, Flight | None, type(None)]
)
def test_a_null_where_the_type_allows_none(kind: object) -> None:
    codec = bind(kind)
    assert codec.nullable
    assert codec.decode(None) is None
    assert codec.encode(None) is None


def test_none_is_null_whatever_the_type() -> None:
    for kind in (int, str, bytes, Flight, list[int]):
        assert bind(kind).encode(None) is None


def test_a_key_may_always_be_null() -> None:
    codec = bind(str, key=True)
    assert codec.nullable
    assert codec.decode(None) is None


# What cannot be read


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        (Flight, b"{oops", "JSON is malformed: object keys must be strings (byte 1)"),
        (Flight, b"", "Input data was truncated"),
        (Flight, b'{"carrier": 5}', "Expected `str`, got `int` - at `$.carrier`"),
        (Flight, b"[" * 100_000, "Expected `object`, got `array`"),
        (int, b"true", "Expected `int`, got `bool`"),
    ],
)
def test_unreadable_json_says_what_was_expected(kind: object, data: bytes, reason: str) -> None:
    codec = bind(kind)
    with pytest.raises(DecodeError) as caught:
        codec.decode(data)
    assert str(caught.value) == (
        f"the values of topic 't': expected {codec.type_name} in json, got {len(data):,} bytes "
        f"that cannot be read as that: {reason}"
    )


def test_text_that_is_no_utf8() -> None:
    with pytest.raises(DecodeError, match="expected str in str, got 1 bytes that cannot be read"):
        bind(str).decode(b"\xff")


BOMBS = [
    ("json", Any, b"[" * 1_000_000),
    ("json", Node, b'{"value":1,"children":[' * 200_000),
    ("json", Flight, b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    ("msgpack", Any, b"\x91" * 1_000_000),
    ("yaml", Any, b"[" * 100_000),
    ("yaml", Any, b"- " * 10_000),
]


@pytest.mark.parametrize(("serializer", "kind", "data"), BOMBS)
def test_deep_nesting_is_unreadable_and_nothing_worse(
    serializer: str, kind: object, data: bytes
) -> None:
    with pytest.raises(DecodeError, match="nest"):
        bind(kind, serializer).decode(data)


def test_yaml_aliases_are_refused_as_ten_lines_could_stand_for_a_billion_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(DecodeError, match="YAML aliases are not taken from records"):
        bind(Any, "yaml").decode("\n".join(lines).encode())


def test_yaml_makes_no_objects_of_classes() -> None:
    with pytest.raises(DecodeError):
        bind(Any, "yaml").decode(b"!!python/object/apply:os.system ['true']")


@given(st.binary(max_size=60))
def test_whatever_the_bytes_reading_gives_a_value_or_a_decode_error(data: bytes) -> None:
    for kind, serializer in [
        (Flight, "json"),
        (Any, "json"),
        (Any, "msgpack"),
        (Any, "yaml"),
        (str, None),
    ]:
        with contextlib.suppress(DecodeError):
            bind(kind, serializer).decode(data)


# What a codec knows of its type


@pytest.mark.parametrize(
    ("kind", "name", "immutable"),
    [
        (int, "int", True),
        (str | None, "str | None", True),
        (Flight, "Flight", False),
        (Frozen, "Frozen", True),
        (FrozenList, "FrozenList", False),
        (list[int], "list[int]", False),
        (tuple[int, ...], "tuple[int, ...]", True),
        (Literal["a"], "Literal['a']", True),
        (Code, "Code", True),
        (Colour, "Colour", True),
        (Pair, "Pair", True),
        (Point, "Point", False),
        (Positive, "int", True),
        (Options, "Options", False),
        (None, "bytes", False),
    ],
)
def test_names_and_immutability(kind: object, name: str, immutable: bool) -> None:
    codec = bind(kind)
    assert codec.type_name == name
    assert codec.immutable is immutable


def test_an_alias_is_what_it_stands_for_under_its_own_name() -> None:
    codec = bind(Maybe)
    assert codec.type_name == "Maybe"
    assert codec.decode(codec.encode(5)) == 5
    assert codec.decode(None) is None
    with pytest.raises(EncodeError, match="expected Maybe, got 'x' of type str"):
        codec.encode("x")


def test_a_type_with_notes_that_cannot_be_hashed() -> None:
    noted: Any = Annotated[int, msgspec.Meta(extra_json_schema={"a": [1]})]
    for kind in (noted, noted | None, list[noted], dict[str, noted] | None):
        assert isinstance(bind(kind).type_name, str)


# Definitions


class Strange:
    """Nothing that msgspec knows."""


class Holder(msgspec.Struct):
    strange: Strange


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Strange, "msgspec knows no Strange"),
        (list[Strange], "msgspec knows no Strange"),
        (Holder, "msgspec knows no Strange"),
        (complex, "msgspec knows no complex"),
        (int | Strange, "Type unions containing a custom type may not contain"),
        (dict[str, int] | Flight, "more than one dict-like type"),
        ("Flight", "is not supported"),
    ],
)
def test_a_type_that_cannot_be_served_is_told_at_definition(kind: object, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bind(kind)
    text = str(caught.value)
    assert text.startswith("the values of topic 't' cannot be of type ")
    assert why in text
    assert text.endswith("or give a codec of your own as the serializer")


def test_an_unknown_serializer() -> None:
    with pytest.raises(ConfigurationError) as caught:
        bind(int, "jsn")
    assert str(caught.value).startswith(
        "the values of topic 't': there is no serializer 'jsn' (did you mean 'json'?): use one of "
        "json, msgpack, pickle, raw, str, yaml"
    )
    with pytest.raises(ConfigurationError, match="is neither a name nor a codec"):
        bind(int, 5)


def test_raw_and_str_serve_their_own_types_only() -> None:
    with pytest.raises(ConfigurationError, match="the serializer 'raw' serves bytes only"):
        bind(int, "raw")
    with pytest.raises(ConfigurationError, match="the serializer 'str' serves text only"):
        bind(Flight, "str")


@pytest.mark.parametrize("kind", [str, bytes])
@pytest.mark.parametrize("nullable", [False, True])
def test_constraints_of_text_and_bytes_hold(kind: type[Any], nullable: bool) -> None:
    short: Any = Annotated[kind, msgspec.Meta(max_length=3)]
    codec = codec_for(short | None if nullable else short, None, what="values")
    right, wrong = (b"abc", b"abcd") if kind is bytes else ("abc", "abcd")
    assert codec.decode(codec.encode(right)) == right
    with pytest.raises(EncodeError, match="length <= 3"):
        codec.encode(wrong)
    with pytest.raises(DecodeError, match="length <= 3"):
        codec.decode(b"abcd")
