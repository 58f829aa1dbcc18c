"""The public types for static checking, and the few plain values that all layers share."""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import timedelta
from typing import (
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    runtime_checkable,
)

import msgspec

__all__ = [
    "Codec",
    "Duration",
    "Guarantee",
    "Headers",
    "HeadersInput",
    "Many",
    "Partitioner",
    "Places",
    "Record",
    "RecordMetadata",
    "TopicOptions",
    "TopicPartition",
]

Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]
"""A record's headers in order; a name may repeat, and a value may be null."""

HeadersInput: TypeAlias = (
    Sequence[tuple[str, bytes | str | None]] | Mapping[str, bytes | str | None]
)
"""What a caller may give for headers: a mapping, or pairs; text is UTF-8."""

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

Guarantee: TypeAlias = Literal["exactly_once", "at_least_once"]

Partitioner: TypeAlias = Callable[[bytes | None, int], int]
"""From the key's bytes and the number of partitions to a partition."""

T = TypeVar("T")

Many: TypeAlias = Iterable[T] | Awaitable[Iterable[T]] | AsyncIterable[T]
"""What the function of a ``flat_map`` makes of one value."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a topic holds, as bytes.

    Attributes:
        timestamp_ms: POSIX milliseconds; -1 where the record carries none.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class RecordMetadata(NamedTuple):
    """Where a record that was sent went.

    Attributes:
        partition: None for a record that joined an event's effects: it is not known yet.
        offset: likewise.
        timestamp: POSIX seconds.
    """

    topic: str
    partition: int | None
    offset: int | None
    timestamp: float


@runtime_checkable
class Codec(Protocol):
    """Turns values into bytes and back: a serializer of the user's own has these two methods.

    ``None`` never reaches a codec: it is Kafka's null.
    """

    def encode(self, value: Any) -> bytes:
        """Return the wire bytes of a value; any exception means that it cannot be written."""
        ...

    def decode(self, data: bytes, type: Any) -> Any:
        """Return the value of the wire bytes, of the given type; any exception: unreadable."""
        ...


class TopicOptions(TypedDict, total=False):
    """What ``App.topic`` takes beside the name and the types."""

    key_serializer: str | Codec | None
    value_serializer: str | Codec | None
    partitions: int | None
    replicas: int | None
    retention: Duration | None
    compacting: bool | None
    deleting: bool | None
    config: Mapping[str, str] | None
    partitioner: Partitioner | None


Places: TypeAlias = Collection[TopicPartition]
"""Partitions of topics, in no order."""
