"""What codecs refuse to write, and how soon they find out."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any, Literal, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.exceptions import EncodeError
from trickle.models import Model
from trickle.serializers import BoundCodec, codec_for

JSON_FORMATS = ["json", "msgpack", "yaml"]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class Flight(Model):
    carrier: str
    delay: float | None = None


class Plane(msgspec.Struct):
    seats: int


@dataclasses.dataclass
class Point:
    x: int


@attrs.define
class Size:
    width: int


class Options(TypedDict):
    name: str
    many: list[int]


def bind(kind: object, serializer: Any = None) -> BoundCodec:
    return codec_for(kind, serializer, what="the values of topic 't'")


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
