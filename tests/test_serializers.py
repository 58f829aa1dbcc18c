"""Codecs: what travels how, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.exceptions import ConfigurationError, DecodeError, EncodeError
from trickle.models import Model
from trickle.serializers import BoundCodec, codec_for, register, serializer_names


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
        (Any, b"x", b"x", "raw"),
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
    with pytest.raises(DecodeError, match="nested"):
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


# What cannot be written


@pytest.mark.parametrize(
    ("kind", "value", "got"),
    [
        (int, "5", "'5' of type str"),
        (int, True, "True of type bool"),
        (int, 5.0, "5.0 of type float"),
        (str, 5, "5 of type int"),
        (str, b"a", "b'a' of type bytes"),
        (bytes, "a", "'a' of type str"),
        (bool, 1, "1 of type int"),
        (Flight, {"carrier": "AA"}, "{'carrier': 'AA'} of type dict"),
        (Flight, Plane(1), "Plane(seats=1) of type Plane"),
        (Flight | None, 5, "5 of type int"),
        (list[int], (1, 2), "(1, 2) of type tuple"),
        (Options, [], "[] of type list"),
        (Point, Size(1), "Size(width=1) of type Size"),
    ],
)
def test_a_value_of_another_class(kind: object, value: object, got: str) -> None:
    codec = bind(kind)
    with pytest.raises(EncodeError) as caught:
        codec.encode(value)
    assert str(caught.value) == f"expected {codec.type_name}, got {got}"


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (list[int], [1, "2"], "Expected `int`, got `str` - at `$[1]`"),
        (dict[str, int], {"a": None}, "Expected `int`, got `null` - at `$[...]`"),
        (Options, {"name": "n"}, "Object missing required field `many`"),
        (Any, object(), "Encoding objects of type object is unsupported"),
        (Literal["a"], "b", "Invalid enum value 'b'"),
        (Positive, -1, "Expected `int` >= 1"),
        (Positive | None, -1, "Expected `int` >= 1"),
        (float, float("nan"), "Expected `float`, got `null`"),
        (float | None, float("inf"), "it would be read back as None"),
    ],
)
def test_a_value_that_nobody_could_read_back(kind: object, value: object, why: str) -> None:
    with pytest.raises(EncodeError) as caught:
        bind(kind, "json").encode(value)
    assert str(caught.value).endswith(f", which json cannot hold: {why}")


def test_json_has_no_nan_but_msgpack_has() -> None:
    with pytest.raises(EncodeError, match="expected float, got inf of type float, which json"):
        bind(float).encode(float("inf"))
    data = bind(float, "msgpack").encode(float("inf"))
    assert bind(float, "msgpack").decode(data) == float("inf")


def test_a_structs_wrong_field_is_found_at_its_first_event() -> None:
    codec = bind(Flight)
    with pytest.raises(EncodeError, match=r"Expected `str`, got `int` - at `\$.carrier`"):
        codec.encode(Flight(5))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_structs_wrong_field_is_found_within_64_more_events() -> None:
    codec = bind(Flight)
    for _ in range(100):
        codec.encode(Flight("AA"))
    wrong = Flight(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    found = 0
    for _ in range(64):
        try:
            codec.encode(wrong)
        except EncodeError:
            found += 1
    assert found == 1


def test_text_with_lone_surrogates_and_numbers_too_large() -> None:
    with pytest.raises(EncodeError, match="surrogates not allowed"):
        bind(str).encode("\ud800")
    with pytest.raises(EncodeError, match="can't serialize ints"):
        bind(int, "msgpack").encode(2**70)


def test_values_nested_too_deeply_to_write() -> None:
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 10):
        deep = [deep]
    for serializer in JSON_FORMATS:
        with pytest.raises(EncodeError, match="nested too deeply"):
            bind(list[Any], serializer).encode(deep)


def test_a_broken_repr_does_not_hide_the_error() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(EncodeError, match=r"expected int, got a value of type .*Broken"):
        bind(int).encode(Broken())


def test_an_int_for_a_float_is_read_back_as_a_float() -> None:
    codec = bind(float)
    data = codec.encode(3)
    assert isinstance(codec.decode(data), float)


def test_a_subclass_of_a_struct_is_one() -> None:
    class Charter(Flight):
        owner: str = ""

    codec = bind(Flight)
    assert codec.decode(codec.encode(Charter("AA", owner="x"))) == Flight("AA")


@given(st.integers() | st.text() | st.none())
def test_what_is_written_is_read_back_equal(value: int | str | None) -> None:
    codec = bind(int | str | None)
    try:
        data = codec.encode(value)
    except EncodeError:
        assert isinstance(value, str)
    else:
        assert codec.decode(data) == value


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


# Codecs of the user's own


class Reversed:
    """Text, written backwards."""

    def encode(self, value: Any) -> bytes:
        return str(value)[::-1].encode()

    def decode(self, data: bytes, type: Any) -> Any:
        return type(data.decode()[::-1])


class Broken:
    """Returns what is no bytes, and reads nothing."""

    def encode(self, value: Any) -> Any:
        return str(value)

    def decode(self, data: bytes, type: Any) -> Any:
        raise ZeroDivisionError("never")


def test_a_codec_of_ones_own() -> None:
    codec = bind(Strange | int, Reversed())
    assert codec.serializer == "Reversed"
    codec = bind(int, Reversed())
    assert codec.encode(12) == b"21"
    assert codec.decode(b"21") == 12
    assert codec.encode(None) is None
    with pytest.raises(DecodeError, match="cannot be read as that: invalid literal"):
        codec.decode(b"x")


def test_what_a_codec_of_ones_own_may_do_wrong() -> None:
    codec = bind(int, Broken())
    with pytest.raises(EncodeError, match=r"Broken.encode returned str: it must return bytes"):
        codec.encode(1)
    with pytest.raises(DecodeError, match="that cannot be read as that: never"):
        codec.decode(b"1")


def test_a_registered_codec_is_asked_for_by_name() -> None:
    own = Reversed()
    register("reversed", own)
    register("reversed", own)  # a module that is loaded twice
    assert "reversed" in serializer_names()
    assert bind(int, "reversed").decode(b"21") == 12
    assert bind(int, "reversed").serializer == "reversed"
    with pytest.raises(ConfigurationError, match="there is a serializer named 'reversed' already"):
        register("reversed", Reversed())
    with pytest.raises(ConfigurationError, match="there is a serializer named 'json' already"):
        register("json", own)
    with pytest.raises(ConfigurationError, match="is no codec: it needs the methods"):
        register("other", Reversed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_pickle_serves_whoever_asks_for_it_by_name() -> None:
    codec = bind(complex, "pickle")
    assert codec.decode(codec.encode(1j)) == 1j
    with pytest.raises(DecodeError, match="it holds a str"):
        codec.decode(bind(str, "pickle").encode("a"))
    with pytest.raises(DecodeError):
        codec.decode(b"garbage")
