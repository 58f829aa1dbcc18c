"""What leaves a shard, and what comes out of it in order: two small pieces of its work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from trickle.stores.contract import TableData, stored_key
from trickle.tables.shapes import KeyShape, ValueShape

__all__ = ["Changes", "in_order"]

_SCAN_CHUNK = 1000
_PORTION = 1000  # so many are encoded at once, about half a millisecond


class Changes:
    """What one shard adds to a commit or to its store: one pair for each key that has changed.

    Pairs are encoded as they are taken, and may be taken more than once: cells do not change, so
    they stay those of the moment at which they were gathered.
    """

    __slots__ = ("_cells", "_keys", "_values")

    def __init__(self, keys: KeyShape, values: ValueShape, cells: Mapping[Any, Any]) -> None:
        self._keys = keys
        self._values = values
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def encoded(self) -> Iterator[list[tuple[bytes, bytes | None]]]:
        """Yield (key, value) pairs in portions, None for a key that was removed."""
        marks, cells = iter(self._cells.keys()), iter(self._cells.values())
        while portion := list(islice(marks, _PORTION)):
            keys = self._keys.encode_all(portion)
            values = self._values.encode_all(islice(cells, _PORTION))
            yield list(zip(keys, values, strict=True))


def in_order(
    data: TableData, keys: KeyShape, marks: Iterable[Any]
) -> Iterator[tuple[Any, bytes | None]]:
    """Merge what a store has with what stands above it: each mark once, in stored keys' order.

    No reader of the store stays open between two steps.

    Args:
        marks: of the keys above the store, as they are when the iteration begins.

    Yields:
        The mark of a key, and the store's bytes of its value where the store has it.
    """
    ours = sorted({stored_key(keys.encode(mark)): mark for mark in marks}.items())
    at = 0
    after: bytes | None = None
    while True:
        chunk = data.scan(after, _SCAN_CHUNK)
        for key, value in chunk:
            order = stored_key(key)
            while at < len(ours) and ours[at][0] < order:
                yield ours[at][1], None
                at += 1
            if at < len(ours) and ours[at][0] == order:
                at += 1
            yield keys.mark_of(key), value
        if len(chunk) < _SCAN_CHUNK:
            break
        after = chunk[-1][0]
    for _, mark in ours[at:]:
        yield mark, None
