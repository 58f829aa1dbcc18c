"""The ledger against an oracle that keeps a set of offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.ledger import Ledger, Ranges, read_ranges, write_ranges

steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 3)),  # the gap before the record
        st.tuples(st.just("settle"), st.integers(0, 30)),  # which of the open ones
        st.tuples(st.just("reach"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=80,
)


class Oracle:
    """Which records exist up to where, and which of them have settled."""

    def __init__(self) -> None:
        self.records: list[int] = []  # a partition as it is: read in order, again after a restart
        self.settled: set[int] = set()
        self.end = 0
        self.read = 0  # how many records this run has looked at
        self.open: list[int] = []

    def check(self, ledger: Ledger) -> None:
        waiting = [offset for offset in self.records if offset not in self.settled]
        assert len(ledger) == len(self.open)
        assert all(ledger.position <= offset for offset in waiting)
        beyond = [(a, b) for a, b in ledger.ranges]
        for offset in self.records:
            inside = any(a <= offset < b for a, b in beyond)
            assert (offset < ledger.position or inside) == (offset in self.settled)
        # Each range begins behind something that has not settled: none could be joined to another.
        edges = [ledger.position, *(edge for pair in beyond for edge in pair)]
        assert edges == sorted(set(edges))
        assert all(b <= self.end for _, b in beyond)
        if self.read == len(self.records) and not self.open:
            assert not beyond


@given(steps)
def test_the_ledger_is_its_oracle(script: list[tuple[str, int]]) -> None:
    """Records are taken in order and settle in any; restarts read what was written."""
    oracle, ledger = Oracle(), Ledger(0)
    for step, number in script:
        if step == "take":
            if oracle.read == len(oracle.records):
                oracle.records.append(oracle.end + number)
                oracle.end = oracle.records[-1] + 1
            while oracle.read < len(oracle.records):
                offset = oracle.records[oracle.read]
                if offset < ledger.position:  # dropped before it comes here
                    oracle.read += 1
                    continue
                oracle.read += 1
                fresh = ledger.take(offset)
                assert fresh == (offset not in oracle.settled)
                if fresh:
                    oracle.open.append(offset)
                break
        elif step == "settle" and oracle.open:
            offset = oracle.open.pop(number % len(oracle.open))
            ledger.settle(offset)
            oracle.settled.add(offset)
        elif step == "reach" and oracle.read == len(oracle.records):
            oracle.end += number
            ledger.reach(oracle.end)
            if not oracle.open:
                assert ledger.position == oracle.end
        elif step == "restart":
            text = write_ranges(ledger.position, ledger.ranges)
            assert read_ranges(ledger.position, text) == ledger.ranges
            ledger = Ledger(ledger.position, read_ranges(ledger.position, text))
            oracle.open, oracle.read = [], 0
        oracle.check(ledger)


ranges = st.lists(
    st.tuples(st.integers(1, 300) | st.integers(1, 1 << 40), st.integers(1, 300)), max_size=60
)


def spread(position: int, pairs: list[tuple[int, int]]) -> Ranges:
    """From lengths to ranges."""
    found: list[tuple[int, int]] = []
    end = position
    for gap, run in pairs:
        found.append((end + gap, end + gap + run))
        end += gap + run
    return tuple(found)


@given(st.integers(0, 1 << 60), ranges)
def test_what_is_written_is_read(position: int, pairs: list[tuple[int, int]]) -> None:
    found = spread(position, pairs)
    text = write_ranges(position, found)
    assert read_ranges(position, text) == found
    assert Ledger(position, found).ranges == found
    assert not set(text) & set('"\\')
    assert text.isascii()


@given(
    st.integers(10, 120),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 1 << 20)), max_size=120),
    st.lists(st.integers(0, 1 << 20), max_size=120),
)
def test_the_text_has_room_whatever_settles_first(
    room: int, takes: list[tuple[int, int]], order: list[int]
) -> None:
    """Records are taken while they fit; then some settle. The text is within its bound always."""
    ledger, taken, end = Ledger(0), list[int](), 0
    for gap, which in takes:
        if ledger.fits(end + gap, room):
            ledger.take(end + gap)
            taken.append(end + gap)
            end += gap + 1
        if taken and which % 3:
            ledger.settle(taken.pop(which % len(taken)))
        assert len(write_ranges(ledger.position, ledger.ranges)) <= room
    for which in order:
        if taken:
            ledger.settle(taken.pop(which % len(taken)))
        assert len(write_ranges(ledger.position, ledger.ranges)) <= room


def test_one_record_always_fits() -> None:
    ledger = Ledger(0)
    assert ledger.fits(1 << 40, 0)
    ledger.take(1 << 40)
    assert not ledger.fits((1 << 40) + 1, 0)


def test_a_stuck_record_holds_others_back_only_when_many_are_open() -> None:
    """2,700 characters: one record stuck, many behind it settled, four hundred at a time."""
    ledger = Ledger(0)
    ledger.take(0)
    for offset in range(1, 200_000, 400):
        for number in range(offset, offset + 400):
            assert ledger.fits(number, 2_700)
            ledger.take(number)
        for number in range(offset, offset + 400):
            ledger.settle(number)
    assert (ledger.position, len(ledger.ranges)) == (0, 1)


@pytest.mark.parametrize("text", ["~", "0", "hello", "é", "00\x00", "3" * 5])
def test_text_of_another_making_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_ranges(5, text)
