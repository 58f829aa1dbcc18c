"""Chunks: what is packed is unpacked, and no flipped bit passes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trickle.transport.embedded.batch import LogBatch
from trickle.transport.embedded.format import Chunk, Columns, DamagedChunk, pack, unpack

small = st.binary(max_size=20) | st.none()
stamp = st.integers(-(1 << 63), (1 << 63) - 1)
header = st.tuples(st.text(max_size=5), small)
record = st.tuples(small, small, stamp, st.lists(header, max_size=2).map(tuple))


def columns_of(
    records: list[tuple[bytes | None, bytes | None, int, tuple[object, ...]]],
) -> Columns:
    """Turn rows into columns."""
    return Columns(
        [row[0] for row in records],
        [row[1] for row in records],
        [row[2] for row in records],
        [row[3] for row in records] if any(row[3] for row in records) else None,  # type: ignore[misc]
    )


@settings(deadline=None)
@given(st.lists(record, min_size=1, max_size=30), st.integers(0, 1 << 40), st.data())
def test_a_chunk_is_what_was_packed_and_shows_flipped_bits(
    records: list[tuple[bytes | None, bytes | None, int, tuple[object, ...]]],
    first: int,
    data: st.DataObject,
) -> None:
    """Round trip; then one bit flipped anywhere."""
    columns = columns_of(records)
    packed = pack(columns, len(records), 7)
    chunk = unpack(first, packed)
    assert chunk == Chunk(first, len(records), 7, columns, len(packed))
    at = data.draw(st.integers(0, len(packed) * 8 - 1))
    flipped = bytearray(packed)
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(DamagedChunk):
        unpack(first, bytes(flipped))


def test_a_cut_chunk_is_damaged() -> None:
    """Whatever its length."""
    packed = pack(Columns([b"value"], [None], [0]), 1, 0)
    for length in range(len(packed)):
        with pytest.raises(DamagedChunk):
            unpack(0, packed[:length])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(0, 30),
)
def test_batches_of_chunks_with_gaps_keep_offsets(kept: list[list[bool]], position: int) -> None:
    """Chunks whose records were thinned out, read from any position."""
    chunks: list[Chunk] = []
    expected: list[int] = []
    first = 0
    for flags in kept:
        deltas = [delta for delta, keep in enumerate(flags) if keep]
        offsets = [first + delta for delta in deltas]
        expected += [offset for offset in offsets if offset >= position]
        values: list[bytes | None] = [b"%d" % offset for offset in offsets]
        dense = len(deltas) == len(flags)
        columns = Columns(values, list(values), list(offsets), None, None if dense else deltas)
        chunks.append(Chunk(first, len(flags), 0, columns, 0))
        first += len(flags)
    batch: LogBatch | None = None
    for chunk in chunks:
        if chunk.first + chunk.extent <= position:
            continue
        if batch is None:
            batch = LogBatch.of("topic", 0, chunk, position)
        else:
            batch.extend(chunk)
    if batch is None:
        assert not expected
        return
    found = [batch.record(index) for index in range(len(batch))]
    assert [record.offset for record in found] == expected
    assert [record.value for record in found] == [b"%d" % offset for offset in expected]
    assert batch.next_offset == first
    if expected:
        assert batch.offset(-1) == expected[-1]
