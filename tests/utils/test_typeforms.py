"""What a type says of its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, NewType, Optional, TypedDict, TypeVar

import msgspec
import pytest
from typing_extensions import TypeAliasType

from trickle.utils.typeforms import (
    allows_none,
    is_annotated,
    is_immutable,
    name_of,
    outer_types,
    plain,
    unsupported_parts,
    without_none,
)

T = TypeVar("T")


class Options(TypedDict):
    name: str


class Box(msgspec.Struct, Generic[T]):
    value: T


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: Annotated[int, "north"]


class Chain(msgspec.Struct, frozen=True):
    name: str
    next: Chain | None = None


Code = NewType("Code", str)
Maybe = TypeAliasType("Maybe", int | None)
Positive = Annotated[int, msgspec.Meta(gt=0)]


def test_plain_takes_names_and_notes_off() -> None:
    assert plain(Code) is str
    assert plain(Positive) is int
    assert plain(Annotated[Code, "x"]) is str
    assert plain(list[int]) == list[int]


@pytest.mark.parametrize(
    ("form", "without", "allowed"),
    [
        (int, int, False),
        (int | None, int, True),
        (Optional[int], int, True),  # noqa: UP045 - users write it
        (int | str | None, int | str, True),
        (Maybe, int, True),
        (Annotated[int | None, "x"], int, True),
        (Any, Any, True),
        (object, object, True),
        (None, None, True),
        (type(None), type(None), True),
        (Literal["a", None], Literal["a", None], True),  # noqa: PYI061 - users write it
        (list[int | None], list[int | None], False),
    ],
)
def test_none(form: Any, without: Any, allowed: bool) -> None:
    assert without_none(form) == without
    assert allows_none(form) is allowed


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (int, "int"),
        (None, "None"),
        (int | None, "int | None"),
        (Optional[str], "str | None"),  # noqa: UP045 - users write it
        (list[dict[str, int]], "list[dict[str, int]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Code, "Code"),
        (Maybe, "Maybe"),
        (Positive, "int"),
        (Any, "Any"),
        (Mapping[str, Any], "Mapping[str, Any]"),
        (Box[int], "Box[int]"),
    ],
)
def test_names_are_as_a_person_would_write_them(form: Any, name: str) -> None:
    assert name_of(form) == name


def test_a_class_of_a_function_has_no_path_in_its_name() -> None:
    class Inner:
        pass

    assert name_of(Inner) == "Inner"


@pytest.mark.parametrize(
    ("form", "outer"),
    [
        (int, (int,)),
        (int | list[str], (int, list)),
        (int | None, (int, type(None))),
        (Options, (dict,)),
        (Box[int], (Box,)),
        (Code, (str,)),
        (Any, None),
        (object, None),
        (Literal["a"], None),
        (int | Any, None),
    ],
)
def test_outer_types(form: Any, outer: tuple[type, ...] | None) -> None:
    assert outer_types(form) == outer


def test_notes() -> None:
    assert is_annotated(Positive)
    assert is_annotated(NewType("Noted", Positive))  # type: ignore[valid-newtype]
    assert not is_annotated(Code)
    assert not is_annotated(list[Positive])


@pytest.mark.parametrize(
    "form", [int, Code, Maybe, Point, Chain, tuple[Chain, ...], frozenset[int]]
)
def test_immutable(form: Any) -> None:
    assert is_immutable(form)


@pytest.mark.parametrize(
    "form",
    [list[int], Box[int], Box, Options, Any, object, tuple, tuple[list[int]], int | list[int]],
)
def test_not_known_to_be_immutable(form: Any) -> None:
    assert not is_immutable(form)


def test_parts_that_msgspec_only_lets_through() -> None:
    class Strange:
        pass

    assert unsupported_parts(dict[str, list[Strange]]) == ["Strange"]
    assert unsupported_parts(Box[complex]) == ["complex"]
    assert unsupported_parts(Chain) == []
    assert unsupported_parts(Options) == []
