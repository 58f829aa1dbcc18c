"""Ledger: which offsets of one partition have settled, where they settle out of order.

Pure: positions go in, positions come out.

**What it keeps.** The *position*: everything below it has settled, so it is what may be committed.
The *ranges* beyond it: half-open, disjoint, in order, each of them settled as well. And the *open*
offsets: records that were taken and have not settled. Offsets have gaps (compaction, transaction
markers), so a record stands for all offsets up to the record that is taken after it: a gap settles
with the record before it, and makes no range of its own.

**What it promises.** The position is the lowest offset that has not settled. What has settled and
lies beyond it travels as text in the metadata of the committed offset, so that after a restart
nothing that settled is handled again. That text is bounded by the broker, and no settled range may
be left out of it, so the bound is kept where records are *taken*: :meth:`Ledger.fits` tells whether
one more may be, such that the text has room in whatever order the open ones settle. That follows
from two numbers alone, which only shrink while nothing is taken: how far the ledger spans, and how
many records are open.

**The text.** The settled ranges beyond the position, as the shorter of two forms, in base 85 (no
character of which JSON escapes): runs, the lengths of what is not settled and what is, in turn, as
varints; or a bitmap, one bit for each offset behind the position. A long span with few records open
is short in runs; many open records close together are short as bits.
"""

from __future__ import annotations

from base64 import b85decode, b85encode
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Ledger", "Ranges", "read_ranges", "write_ranges"]

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open ranges of offsets, disjoint and in order, with something between each two."""

_RUNS, _BITS = 0, 1


class Ledger:
    """What has settled of one partition.

    Args:
        position: everything below has settled.
        ranges: what has settled beyond it.
    """

    __slots__ = ("_ends", "_last", "_open", "_starts", "frontier", "position")

    def __init__(self, position: int, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.position = position
        self.frontier = position  # what lies below was taken, or is no record
        self._last = -1  # the record taken last, while it is open
        self._open: dict[int, int] = {}  # by offset, up to where it stands for
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self._add(start, end)
        self.frontier = self.position

    def __len__(self) -> int:
        """Return how many records are open."""
        return len(self._open)

    @property
    def ranges(self) -> Ranges:
        """What has settled beyond the position."""
        return tuple(zip(self._starts, self._ends, strict=True))

    def take(self, offset: int) -> bool:
        """Take the next record; False where it has settled already.

        Args:
            offset: at or behind the frontier.
        """
        self._pass(offset)
        self.frontier = offset + 1
        at = bisect_right(self._starts, offset) - 1
        if offset < self.position or (at >= 0 and offset < self._ends[at]):
            self._last = -1
            return False
        self._open[offset] = offset + 1
        self._last = offset
        return True

    def settle(self, offset: int) -> None:
        """An open record has settled."""
        end = self._open.pop(offset)
        if offset == self._last:
            self._last = -1
        self._add(offset, end)

    def reach(self, offset: int) -> None:
        """There is no further record below this offset: a batch ends here.

        While records are open it is of no use to know, and the next record will show it.
        """
        if not self._open and offset > self.frontier:
            self._pass(offset)
            self.frontier = offset

    def skip(self, offset: int) -> None:
        """Count everything below as settled: nobody is there any more who would handle it."""
        self._add(self.position, offset)

    def fits(self, offset: int, room: int) -> bool:
        """Tell whether a record may be taken, such that :func:`write_ranges` always has room.

        Args:
            offset: of the record.
            room: how many characters the text may have.
        """
        if not self._open:  # it would be the only one: no order but one
            return True
        top = max(offset + 1, self._ends[-1]) if self._ends else offset + 1
        span = top - self.position
        if _text_length(1 + (span + 7) // 8) <= room:  # as bits, then; it is so nearly always
            return True
        ahead = len(self._starts) - bisect_left(self._starts, self.frontier)
        return _text_length(_runs_max(span, len(self._open) + 1 + ahead)) <= room

    def _pass(self, offset: int) -> None:
        """Nothing lies between the frontier and this offset: it belongs to the record before."""
        if self._last >= 0:
            self._open[self._last] = offset
        elif offset > self.frontier:
            self._add(self.frontier, offset)

    def _add(self, start: int, end: int) -> None:
        if end <= self.position or start >= end:
            return
        starts, ends = self._starts, self._ends
        if start <= self.position:
            first, start = 0, self.position
        else:
            first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        if first < last:  # it touches these
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
        if start <= self.position:
            self.position = end
            del starts[:last], ends[:last]
        else:
            starts[first:last] = [start]
            ends[first:last] = [end]


def write_ranges(position: int, ranges: Ranges) -> str:
    """Return ranges as text.

    Args:
        position: lies below them all.
    """
    if not ranges:
        return ""
    runs = bytearray([_RUNS])
    end = position
    for start, stop in ranges:
        _append_varint(runs, start - end)
        _append_varint(runs, stop - start)
        end = stop
    if 1 + (end - position + 7) // 8 >= len(runs):
        return b85encode(bytes(runs)).decode()
    bits = 0
    for start, stop in ranges:
        bits |= ((1 << (stop - start)) - 1) << (start - position)
    data = bytes([_BITS]) + bits.to_bytes((end - position + 7) // 8, "little")
    return b85encode(data).decode()


def read_ranges(position: int, text: str) -> Ranges:
    """Return the ranges that a text tells.

    Raises:
        ValueError: it is not of :func:`write_ranges`' making.
    """
    if not text:
        return ()
    data = b85decode(text)
    if data[:1] == bytes([_RUNS]):
        return _read_runs(position, data)
    if data[:1] == bytes([_BITS]):
        return _read_bits(position, data)
    raise ValueError("ranges in a form of which nothing is known here")


def _read_runs(position: int, data: bytes) -> Ranges:
    ranges: list[tuple[int, int]] = []
    at, end = 1, position
    while at < len(data):
        gap, at = _varint(data, at)
        run, at = _varint(data, at)
        if not gap or not run:
            raise ValueError("an empty run")
        start, end = end + gap, end + gap + run
        ranges.append((start, end))
    return tuple(ranges)


def _read_bits(position: int, data: bytes) -> Ranges:
    bits = int.from_bytes(data[1:], "little")
    if bits & 1:
        raise ValueError("a position that has settled")
    ranges: list[tuple[int, int]] = []
    end = position
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        run = (~bits & (bits + 1)).bit_length() - 1
        bits >>= run
        start, end = end + gap, end + gap + run
        ranges.append((start, end))
    return tuple(ranges)


def _runs_max(span: int, count: int) -> int:
    """Return how many bytes runs may take: ranges within a span, and records before each of them.

    So many of their numbers may need a second byte, a third and so on, for their sum is the span.
    """
    numbers = 2 * count
    return 1 + numbers + sum(min(numbers, span >> bits) for bits in range(7, 64, 7))


def _text_length(data: int) -> int:
    """Return how many characters so many bytes become, at most."""
    return -(-data // 4) * 5


def _append_varint(data: bytearray, number: int) -> None:
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number without an end")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte <= 0x7F:
            return number, at
