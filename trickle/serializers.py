"""Codecs: between the values that users handle and the bytes that topics and tables hold.

A *codec* knows a format (JSON). :func:`codec_for` binds one to a type, once, when a topic or a
table is defined, so that nothing about the type is looked up again for an event. The rules:

* ``bytes`` and ``str`` travel as they are (UTF-8), every other type as JSON, unless a serializer
  is named. Without a type, values are bytes.
* None is Kafka's null, whatever the type; it never reaches a codec. ``X | None`` is otherwise
  serialised as ``X``. A null where the type does not allow None is a DecodeError.
* No payload chooses a class. ``pickle``, which lets payloads run code, exists only for whoever
  asks for it by that name.

**What is checked.** Decoding checks everything. Encoding must not let out what nobody could read
back, yet msgspec does not look at a Struct's fields when one is made. So:

* the value's own class is always checked;
* text, numbers and bytes need no more;
* a Struct, a dataclass and an attrs object (whose fields a type checker watches) are decoded again
  for the first few values, and then one time in many: a mistake that is made always is found at
  its first event, at 0.08 µs a value instead of 0.25 µs (a Struct of 10 fields, 139 bytes,
  encoded in 0.22 µs and decoded in 0.20 µs);
* everything else (lists, dicts, TypedDict, unions of them, types with constraints) is decoded
  again each time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib import import_module
from itertools import chain, cycle, repeat
from typing import Any, NoReturn, cast

import msgspec
import msgspec.json
import msgspec.msgpack
import msgspec.yaml

from trickle.exceptions import ConfigurationError, DecodeError, EncodeError
from trickle.types import Codec
from trickle.utils.suggest import did_you_mean
from trickle.utils.typeforms import (
    allows_none,
    has_fields,
    is_annotated,
    is_immutable,
    name_of,
    outer_types,
    plain,
    unaliased,
    unsupported_parts,
    without_none,
)

__all__ = ["BoundCodec", "codec_for", "register", "serializer_names"]

_VERIFIED_FIRST = 32
_VERIFIED_EVERY = 64
_YAML_DEPTH_MAX = 200


def _is_codec(candidate: object) -> bool:
    """Tell an object with a codec's methods; a class has them too, but is none yet."""
    return isinstance(candidate, Codec) and not isinstance(candidate, type)


builtin_type = type  # codec_for's argument has the name that says best what it is

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


class BoundCodec(msgspec.Struct, frozen=True, kw_only=True):
    """A codec bound to a type.

    Attributes:
        encode: from a value to its bytes, None to None.
        encode_fast: the codec's own encoder, for values that ``encode`` has passed before.
        decode: from bytes to a value; null to None where it is allowed.
        decode_fast: the codec's own decoder, for bytes only; it raises whatever it raises: use
            ``decode`` on the same bytes then, which tells why.
        nullable: None is among the values.
        immutable: all values of the type are known never to change.
        type_name: the type, for messages.
        serializer: the codec's name, for messages.
    """

    encode: Callable[[Any], bytes | None]
    encode_fast: Callable[[Any], bytes]
    decode: Callable[[bytes | None], Any]
    decode_fast: Callable[[bytes], Any]
    nullable: bool
    immutable: bool
    type_name: str
    serializer: str


class _Format(msgspec.Struct, frozen=True):
    """A format of trickle's own, bound to a type.

    Attributes:
        scalars: the classes whose every instance can be read back, without a look at it.
    """

    encode: Encode
    decode: Decode
    scalars: frozenset[type[Any]]


_REGISTERED: dict[str, Codec] = {}


def register(name: str, codec: Codec) -> None:
    """Give a codec a name that ``key_serializer=`` and ``value_serializer=`` then know.

    Raises:
        ConfigurationError: the name is taken, or the object is no codec.
    """
    if name in _FORMATS or name == "pickle" or _REGISTERED.get(name, codec) is not codec:
        raise ConfigurationError(f"there is a serializer named {name!r} already: use another name")
    if not _is_codec(codec):
        raise ConfigurationError(
            f"register({name!r}, …): {codec!r} is no codec: it needs the methods encode(value) "
            "and decode(data, type)"
        )
    _REGISTERED[name] = codec


def serializer_names() -> list[str]:
    """Return the names that a serializer can be asked for by."""
    return sorted([*_FORMATS, "pickle", *_REGISTERED])


def codec_for(
    type: object,
    serializer: str | Codec | None = None,
    *,
    what: str,
    key: bool = False,
    stable: bool = False,
) -> BoundCodec:
    """Bind a serializer to a type.

    Args:
        type: any type that msgspec knows; None stands for bytes unless a serializer is named.
        serializer: ``json``, ``msgpack``, ``raw``, ``str``, ``yaml``, a registered name, or a
            codec. By the type where it is left out: bytes and str as they are, others as JSON.
            ``pickle`` runs code that it finds in the bytes: only for topics that nobody else can
            write to.
        what: whose codec it is, for messages: "the values of topic 'flights'".
        key: a key may be null whatever its type; it is stable, too.
        stable: equal values are written alike, in whatever order their sets and dicts are.

    Raises:
        ConfigurationError: there is no such serializer, or it cannot serve the type.
    """
    if isinstance(type, str) and isinstance(serializer, str | None):
        raise ConfigurationError(
            f"{what} cannot be of type {type!r}: text is not supported; give the type itself, "
            "without quotes, or give a codec of your own as the serializer"
        )
    form = Any if type is None or type is object else unaliased(type)
    inner = without_none(form)
    type_name = name_of(Any if type is None else type)
    nullable = key or allows_none(form)
    if serializer is None:
        bare = plain(inner)
        serializer = "raw" if type is None or bare is bytes else "str" if bare is str else "json"
    if form is Any and serializer == "raw":
        type_name = "bytes"
    if isinstance(serializer, str):
        name, codec = serializer, _REGISTERED.get(serializer)
    else:
        name, codec = builtin_type(serializer).__qualname__, serializer
    if codec is None:
        format = _format_for(name, form, inner, what)
        if (key or stable) and name in _STABLE:
            format = msgspec.structs.replace(format, encode=_STABLE[name])
        encode = _checked(format, form, inner, type_name, name)
    elif _is_codec(codec):
        format = _custom(codec, form)
        encode = _reported(format.encode, type_name, name)
    else:
        raise ConfigurationError(
            f"{what}: the serializer {serializer!r} is neither a name nor a codec with the "
            "methods encode(value) and decode(data, type)"
        )
    return BoundCodec(
        encode=encode,
        encode_fast=format.encode,
        decode=_decoder(format.decode, what, type_name, name, nullable=nullable),
        decode_fast=format.decode,
        nullable=nullable,
        immutable=is_immutable(form),
        type_name=type_name,
        serializer=name,
    )


# Decoding


def _decoder(
    fast: Decode, what: str, type_name: str, serializer: str, *, nullable: bool
) -> Callable[[bytes | None], Any]:
    def decode(data: bytes | None) -> Any:
        if data is None:
            if nullable:
                return None
            raise DecodeError(
                f"{what}: expected {type_name}, got null; give it the type `{type_name} | None` "
                "if nulls belong there"
            )
        try:
            return fast(data)
        except Exception as error:
            raise DecodeError(
                f"{what}: expected {type_name} in {serializer}, got {len(data):,} bytes that "
                f"cannot be read as that: {_reason(error)}"
            ) from error

    return decode


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


# Encoding


def _misfit(value: object, type_name: str, serializer: str, why: str = "") -> NoReturn:
    raise EncodeError(
        f"expected {type_name}, got {_short(value)} of type {type(value).__qualname__}"
        + (f", which {serializer} cannot hold: {why}" if why else "")
    )


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error that names it
        return "a value"
    return text if len(text) <= 60 else text[:57] + "…"


def _reported(encode: Encode, type_name: str, serializer: str) -> Callable[[Any], bytes | None]:
    """Encode by a codec of the user's own, which is trusted but for its result's class."""

    def encode_reported(value: Any) -> bytes | None:
        if value is None:
            return None
        try:
            data = encode(value)
        except Exception as error:
            raise EncodeError(
                f"expected {type_name}, got {_short(value)} of type {type(value).__qualname__}, "
                f"which {serializer} cannot write: {_reason(error)}"
            ) from error
        if not isinstance(cast("object", data), bytes):
            raise EncodeError(
                f"{serializer}.encode returned {type(data).__qualname__}: it must return bytes"
            )
        return data

    return encode_reported


def _checked(
    format: _Format, form: Any, inner: Any, type_name: str, serializer: str
) -> Callable[[Any], bytes | None]:
    """Encode by a format of ours, with the checks that the module's docstring tells."""
    raw_encode, raw_decode = format.encode, format.decode
    outer = outer_types(inner)
    classes = frozenset(outer or ())
    constrained = is_annotated(form) or is_annotated(inner)
    exact = frozenset[type[Any]]() if constrained else classes & format.scalars
    watched = frozenset(cls for cls in classes if has_fields(cls))
    due = chain(repeat(True, _VERIFIED_FIRST), cycle([True, *[False] * (_VERIFIED_EVERY - 1)]))
    verify_now = due.__next__
    widened = False
    if outer is not None and float in outer:
        widened = int not in outer
        outer = (*outer, int)  # as type checkers have it; it is read back as a float

    def encode(value: object) -> bytes | None:
        kind = type(value)
        if kind in exact or (kind in watched and not verify_now()):
            try:
                return raw_encode(value)
            except Exception as error:  # noqa: BLE001 - told below, with the value
                return _refuse(value, error)
        if value is None:
            return None
        if outer is not None and not _is_instance(value, outer):
            _misfit(value, type_name, serializer)
        try:
            if widened and kind is int:
                value = float(cast("int", value))  # written as what is read back: 1 and 1.0 are one
            data = raw_encode(value)
            copy = raw_decode(data)
        except Exception as error:  # noqa: BLE001 - likewise
            return _refuse(value, error)
        if copy is None:  # JSON writes NaN and the infinities as null
            _misfit(value, type_name, serializer, "it would be read back as None")
        return data

    def _refuse(value: object, error: Exception) -> NoReturn:
        try:
            _misfit(value, type_name, serializer, _reason(error))
        except EncodeError as told:
            raise told from error

    return encode


def _is_instance(value: object, outer: tuple[type, ...]) -> bool:
    # True is an int to Python, and `true` is none to JSON.
    return isinstance(value, outer) and (
        type(value) is not bool or bool in outer or int not in outer
    )


# The formats


def _format_for(name: str, form: Any, inner: Any, what: str) -> _Format:
    if name == "pickle":
        return _pickle(inner)
    make = _FORMATS.get(name)
    if make is None:
        known = serializer_names()
        raise ConfigurationError(
            f"{what}: there is no serializer {name!r}{did_you_mean(name, known)}: use one of "
            f"{', '.join(known)}, or give a codec"
        )
    return make(form, inner, what)


def _supported(form: Any, name: str, what: str, make: Callable[[], Any]) -> Any:
    """Make a decoder of msgspec's for a type, or tell why there can be none."""
    why = ""
    try:
        strange = unsupported_parts(form)
        if not strange:
            return make()
        why = f"msgspec knows no {' and no '.join(strange)}"
    except (TypeError, NameError, ValueError, RecursionError) as error:
        why = str(error)
    raise ConfigurationError(
        f"{what} cannot be of type {name_of(form)} in {name}: {why}; use msgspec's types (Struct, "
        "dataclass, TypedDict, attrs, builtins), or give a codec of your own as the serializer"
    )


def _json(form: Any, inner: Any, what: str) -> _Format:
    decoder = _supported(form, "json", what, lambda: msgspec.json.Decoder(form))
    encode = msgspec.json.Encoder().encode
    return _Format(encode, decoder.decode, frozenset({int, str, bool, bytes, uuid.UUID}))


def _msgpack(form: Any, inner: Any, what: str) -> _Format:
    decoder = _supported(form, "msgpack", what, lambda: msgspec.msgpack.Decoder(form))
    encode = msgspec.msgpack.Encoder().encode
    return _Format(encode, decoder.decode, frozenset({int, str, bool, bytes, float, uuid.UUID}))


# A key has one spelling: sets and dicts are not written in the order that they happen to have.
_STABLE: dict[str, Encode] = {
    "json": msgspec.json.Encoder(order="deterministic").encode,
    "msgpack": msgspec.msgpack.Encoder(order="deterministic").encode,
}


def _yaml(form: Any, inner: Any, what: str) -> _Format:
    _supported(form, "yaml", what, lambda: None)
    # Loaded here, as few programs need it; that also keeps its missing types in this function.
    yaml: Any = import_module("yaml")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    def check(data: bytes) -> None:
        """Refuse what makes a small document large, or a parser run out of stack.

        Aliases let ten lines stand for a billion values once they are converted; libyaml's
        binding recurses in C for each level. Events are read without either.
        """
        depth = 0
        for event in yaml.parse(data, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("YAML aliases are not taken from records")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _YAML_DEPTH_MAX:
                    raise ValueError(f"it is nested more than {_YAML_DEPTH_MAX} levels deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def decode(data: bytes) -> Any:
        check(data)
        return msgspec.yaml.decode(data, type=form)

    return _Format(msgspec.yaml.encode, decode, frozenset())


def _raw(form: Any, inner: Any, what: str) -> _Format:
    if plain(inner) is not Any and plain(inner) is not bytes:
        raise ConfigurationError(
            f"{what} are {name_of(form)}: the serializer 'raw' serves bytes only; use 'json', or "
            "the type bytes"
        )

    def encode(value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(cast("bytes", value))
        raise TypeError("it is not bytes")

    # bytes() of bytes is the very same object, made in C.
    decode = _within_constraints(form, inner, bytes)
    return _Format(bytes if plain(inner) is bytes else encode, decode, frozenset({bytes}))


def _str(form: Any, inner: Any, what: str) -> _Format:
    if plain(inner) is not Any and plain(inner) is not str:
        raise ConfigurationError(
            f"{what} are {name_of(form)}: the serializer 'str' serves text only; use 'json', or "
            "the type str"
        )
    return _Format(str.encode, _within_constraints(form, inner, bytes.decode), frozenset({str}))


def _within_constraints(form: Any, inner: Any, decode: Decode) -> Decode:
    """Return a decoder that checks the constraints of a type: lengths, patterns."""
    constrained = form if is_annotated(form) else inner  # that of ``Annotated[…] | None``
    if not is_annotated(constrained):
        return decode
    return lambda data: msgspec.convert(decode(data), constrained)


_FORMATS: dict[str, Callable[[Any, Any, str], _Format]] = {
    "json": _json,
    "msgpack": _msgpack,
    "raw": _raw,
    "str": _str,
    "yaml": _yaml,
}


def _custom(codec: Codec, form: Any) -> _Format:
    def decode(data: bytes) -> Any:
        return codec.decode(data, form)

    return _Format(codec.encode, decode, frozenset())


def _pickle(inner: Any) -> _Format:
    """Make the codec that runs whatever code the bytes hold: for those who asked for it.

    The module is loaded here and nowhere else, so that no program has it unasked.
    """
    module = import_module("pickle")
    outer = outer_types(inner)

    def encode(value: Any) -> bytes:
        return module.dumps(value, protocol=5)

    def decode(data: bytes) -> Any:
        value = module.loads(data)
        if outer is not None and not _is_instance(value, outer):
            raise TypeError(f"it holds a {type(value).__qualname__}")
        return value

    return _Format(encode, decode, frozenset())
