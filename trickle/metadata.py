"""What goes along with a record, from how users write it to how it travels: headers, timestamps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from trickle.exceptions import EncodeError, UsageError
from trickle.types import Headers, HeadersInput

__all__ = ["pack_headers", "timestamp_to_ms"]


def pack_headers(headers: HeadersInput) -> Headers:
    """Return headers as they travel: names with bytes or null.

    Raises:
        EncodeError: a header's name is no text, or its value neither text nor bytes; or it is text
            that UTF-8 cannot hold, by whose name Kafka's client would crash.
    """
    given: Any = headers.items() if isinstance(headers, Mapping) else headers
    pairs = cast("Iterable[Any]", given if isinstance(given, Iterable) else [given])
    packed: list[tuple[str, bytes | None]] = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(cast("Sequence[Any]", pair)) != 2:
            raise EncodeError(
                f"headers are a mapping, or pairs of a name and a value: got {pair!r}"
            )
        name, data = cast("Sequence[Any]", pair)
        try:
            wire = data.encode() if isinstance(data, str) else data
            if isinstance(name, str) and not name.isascii():
                name.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(f"header {name!r}: {data!r} is no text of UTF-8") from error
        if isinstance(name, str) and "\0" in name:
            raise EncodeError(f"header {name!r}: a name with a NUL would be cut there")
        if not isinstance(name, str) or not (wire is None or isinstance(wire, bytes)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise EncodeError(
                f"a header is a name with text, bytes or None: got {name!r}: {data!r}"
            )
        packed.append((name, wire))
    return tuple(packed)


def timestamp_to_ms(timestamp: float | datetime) -> int:
    """Return POSIX milliseconds.

    Args:
        timestamp: POSIX seconds, or an aware datetime.

    Raises:
        UsageError: a naive datetime, whose clock it shows is not known; or no time at all.
    """
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise UsageError(
                f"timestamp={timestamp!r} has no time zone: use an aware datetime or POSIX seconds"
            )
        timestamp = timestamp.timestamp()
    known = isinstance(timestamp, int | float)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not known or (isinstance(timestamp, float) and not math.isfinite(timestamp)):
        raise UsageError(f"timestamp={timestamp!r} is no time: use POSIX seconds or a datetime")
    ms = round(timestamp * 1000)
    if not -(2**63) <= ms < 2**63:
        raise UsageError(
            f"timestamp={timestamp!r} is no time: its milliseconds do not fit into 64 bits"
        )
    return ms
