"""What drivers have in common that have no client library below them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from trickle.context import Effect
from trickle.types import Record

__all__ = ["RecordBatch", "one_by_one"]


class RecordBatch:
    """A :class:`~trickle.transport.batches.Batch` over plain records."""

    __slots__ = ("_records", "next_offset", "partition", "size_bytes", "topic")

    def __init__(self, records: Sequence[Record], next_offset: int | None = None) -> None:
        first = records[0]
        self._records = records
        self.topic = first.topic
        self.partition = first.partition
        self.next_offset = records[-1].offset + 1 if next_offset is None else next_offset
        self.size_bytes = sum(len(r.key or b"") + len(r.value or b"") + 80 for r in records)

    def __len__(self) -> int:
        return len(self._records)

    def values(self) -> Sequence[bytes | None]:
        return [record.value for record in self._records]

    def keys(self) -> Sequence[bytes | None]:
        return [record.key for record in self._records]

    def offset(self, index: int) -> int:
        return self._records[index].offset

    def timestamp_ms(self, index: int) -> int:
        return self._records[index].timestamp_ms

    def timestamps_ms(self, start: int, stop: int) -> Sequence[int | None]:
        return [record.timestamp_ms for record in self._records[start:stop]]

    def record(self, index: int) -> Record:
        return self._records[index]


def one_by_one(
    produce: Callable[..., bool], effects: deque[Effect], limit: int, *, watch: bool
) -> None:
    """Do what ``ProducerClient.produce_all`` says, for a driver that gains nothing by it."""
    for _ in range(min(limit, len(effects))):
        if not produce(*effects[0], watch=watch and len(effects) == 1):
            return
        effects.popleft()
