"""Between the text of the command line and keys and values.

Text for ``str`` and ``bytes`` is what was typed; for every other type it is JSON, whatever the
serializer. It is read as the type, and written by the serializer, so that a key typed here has the
very bytes that the app's own sends give it. JSON's ``null`` is Kafka's null.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from trickle.cli.output import text_of
from trickle.exceptions import CodecError, UsageError
from trickle.serializers import BoundCodec, codec_for
from trickle.utils.typeforms import plain, without_none

__all__ = ["PLAIN", "Wire"]

_QUOTED_CHARS_MAX = 60
_TEXTS = frozenset({"json", "raw", "str", "yaml"})


class Wire:
    """Text of one type of keys or values, there and back.

    Args:
        type: as the topic or table was defined with; None stands for bytes.
        codec: the one bound to it; None where text travels as it is.
    """

    def __init__(self, type: object = None, codec: BoundCodec | None = None) -> None:
        bare = plain(without_none(type))
        self._codec = codec
        self._type = type
        self._is_text = bare is str or (codec is not None and codec.serializer == "str")
        self._is_bytes = codec is None or bare is bytes or codec.serializer == "raw"

    def value(self, text: str, what: str) -> Any:
        """Return the value that text stands for.

        Args:
            what: for the message: ``VALUE``, ``--key``, ``line 3``.

        Raises:
            UsageError: the text is not of the type.
        """
        data = text.encode("utf-8", "surrogateescape")
        if self._is_bytes:
            return data
        if self._is_text:
            return text
        try:
            if msgspec.json.decode(data) is None:
                return None
            return codec_for(self._type, "json", what=what).decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CodecError) as error:
            name = self._codec.type_name if self._codec is not None else "JSON"
            reason = error.__cause__ or error  # msgspec's own words are the shortest
            raise UsageError(
                f"{what} is no {name}, written as JSON: {_quoted(text)}: {reason}"
            ) from error

    def encode(self, text: str, what: str) -> bytes | None:
        """Return the wire bytes of text.

        Raises:
            UsageError: the text is not of the type.
        """
        value = self.value(text, what)
        if self._codec is None or value is None:
            return value
        try:
            return self._codec.encode(value)
        except CodecError as error:
            raise UsageError(f"{what} cannot be written: {_quoted(text)}: {error}") from error

    def shown(self, data: bytes | None) -> str | None:
        """Return what a person reads: text formats as they travel, others as JSON."""
        if data is None or self._codec is None or self._codec.serializer in _TEXTS:
            return text_of(data)
        value = self.readable(data)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def readable(self, data: bytes | None) -> Any:
        """Return what JSON shows of wire bytes: text for text, else the value.

        Bytes that are not what the type says are shown as text: looking is how one finds them.
        """
        if data is None or self._codec is None or self._is_bytes:
            return text_of(data)
        try:
            if self._codec.serializer == "json":
                return msgspec.json.decode(data)
            return msgspec.to_builtins(self._codec.decode(data), str_keys=True)
        except (msgspec.MsgspecError, CodecError, TypeError, RecursionError, UnicodeDecodeError):
            return text_of(data)


PLAIN = Wire()
"""For topics that the app does not define: text as it is."""


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _QUOTED_CHARS_MAX else f"{text[:_QUOTED_CHARS_MAX]!r}…"
