"""The batches that the embedded log hands out: chunks of one partition, kept as columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from trickle.transport.embedded.format import Chunk
from trickle.types import Headers, Record

__all__ = ["LogBatch"]


class LogBatch:
    """A :class:`~trickle.transport.batches.Batch`; a Record is made only on demand."""

    __slots__ = (
        "_first",
        "_headers",
        "_keys",
        "_offsets",
        "_stamps",
        "_values",
        "next_offset",
        "partition",
        "size_bytes",
        "topic",
    )

    def __init__(self, topic: str, partition: int, first: int) -> None:
        self.topic = topic
        self.partition = partition
        self.next_offset = first
        self.size_bytes = 0
        self._first = first
        self._values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._stamps: list[int] = []
        self._headers: list[Headers] | None = None
        self._offsets: list[int] | None = None  # None while there are no gaps

    @classmethod
    def of(cls, topic: str, partition: int, chunk: Chunk, position: int) -> LogBatch | None:
        """Return a batch of the part of a chunk that is not below a position; None if empty."""
        columns = chunk.columns
        if position > chunk.first:
            skip = position - chunk.first
            if columns.deltas is not None:
                skip = sum(1 for delta in columns.deltas if delta < skip)
                columns.deltas = columns.deltas[skip:]
            columns.values = columns.values[skip:]
            columns.keys = columns.keys[skip:]
            columns.stamps = columns.stamps[skip:]
            columns.headers = None if columns.headers is None else columns.headers[skip:]
        if not columns.values:
            return None
        batch = cls(topic, partition, max(position, chunk.first))
        batch._take(chunk)
        return batch

    def extend(self, chunk: Chunk) -> None:
        """Append a later chunk."""
        self._take(chunk)

    def _take(self, chunk: Chunk) -> None:
        columns = chunk.columns
        held = len(self._values)
        # The first record's offset decides whether the offsets are dense so far.
        first = self.next_offset if chunk.first < self.next_offset else chunk.first
        if self._offsets is None and (columns.deltas is not None or first != self._first + held):
            self._offsets = list(range(self._first, self._first + held))
        if self._offsets is not None:
            if columns.deltas is not None:
                self._offsets.extend(chunk.first + delta for delta in columns.deltas)
            else:
                self._offsets.extend(range(first, first + len(columns.values)))
        if held:
            self._values += columns.values
            self._keys += columns.keys
            self._stamps += columns.stamps
        else:
            self._values, self._keys, self._stamps = columns.values, columns.keys, columns.stamps
        if columns.headers is not None and self._headers is None:
            self._headers = list(repeat((), held))
        if self._headers is not None:
            self._headers += columns.headers or repeat((), len(columns.values))
        self.next_offset = chunk.first + chunk.extent
        self.size_bytes += chunk.size

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Sequence[bytes | None]:
        return self._values

    def keys(self) -> Sequence[bytes | None]:
        return self._keys

    def offset(self, index: int) -> int:
        if self._offsets is not None:
            return self._offsets[index]
        if index < 0:
            index += len(self._values)
        return self._first + index

    def timestamp_ms(self, index: int) -> int:
        return self._stamps[index]

    def timestamps_ms(self, start: int, stop: int) -> Sequence[int | None]:
        return self._stamps[start:stop]

    def record(self, index: int) -> Record:
        return Record(
            self.topic,
            self.partition,
            self.offset(index),
            self._stamps[index],
            self._keys[index],
            self._values[index],
            () if self._headers is None else self._headers[index],
        )
