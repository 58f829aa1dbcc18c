"""Batches: how records of one partition come from every driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trickle.types import Record

__all__ = ["Batch"]


class Batch(Protocol):
    """Records of one partition in offset order: columns where the hot path wants them.

    A driver may keep its client's own message objects and make a :class:`Record` on demand.
    It is never empty.
    """

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def next_offset(self) -> int:
        """The position behind the last record."""
        ...

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, roughly: keys and values."""
        ...

    def __len__(self) -> int: ...

    def values(self) -> Sequence[bytes | None]:
        """Return the values of all its records."""
        ...

    def keys(self) -> Sequence[bytes | None]:
        """Return the keys of all its records."""
        ...

    def offset(self, index: int) -> int:
        """Return the offset of one record."""
        ...

    def timestamp_ms(self, index: int) -> int:
        """Return the timestamp of one record, -1 where it has none."""
        ...

    def timestamps_ms(self, start: int, stop: int) -> Sequence[int | None]:
        """Return the timestamps of the records from ``start`` up to ``stop``, in one step."""
        ...

    def record(self, index: int) -> Record:
        """Return one record whole."""
        ...
