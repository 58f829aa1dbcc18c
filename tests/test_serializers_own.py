"""Codecs that are not trickle's: the user's own, registered ones, and pickle for who asks."""

from __future__ import annotations

from typing import Any

import pytest

from trickle.exceptions import ConfigurationError, DecodeError, EncodeError
from trickle.serializers import BoundCodec, codec_for, register, serializer_names


def bind(kind: object, serializer: Any = None) -> BoundCodec:
    return codec_for(kind, serializer, what="the values of topic 't'")


class Strange:
    """Nothing that msgspec knows."""


class Reversed:
    """Text, written backwards."""

    def encode(self, value: Any) -> bytes:
        return str(value)[::-1].encode()

    def decode(self, data: bytes, type: Any) -> Any:
        return type(data.decode()[::-1])


class WriteOnly:
    """Writes anything, and reads nothing."""

    def encode(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, data: bytes, type: Any) -> Any:
        raise NotImplementedError


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


def test_registered_codecs_are_trusted_as_those_given_are() -> None:
    register("write-only", WriteOnly())
    for serializer in ("write-only", WriteOnly()):
        assert bind(int, serializer).encode("no int") == b"no int"


def test_pickle_serves_whoever_asks_for_it_by_name() -> None:
    codec = bind(complex, "pickle")
    assert codec.decode(codec.encode(1j)) == 1j
    with pytest.raises(DecodeError, match="it holds a str"):
        codec.decode(bind(str, "pickle").encode("a"))
    with pytest.raises(DecodeError):
        codec.decode(b"garbage")
