"""The log with retention and compaction against plain lists (Hypothesis' state machine)."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trickle.transport.contract import TopicSpec
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import Environment, WriteTxn
from trickle.transport.embedded.format import Columns, Topic, pack
from trickle.transport.embedded.upkeep import Limits, Upkeep

LONG_AGO = 1_000
NEVER_OLD = 1 << 50


class LogAgainstLists(RuleBasedStateMachine):
    """One compacting and one plain partition, beside a list of (key, value) each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        # Tombstones go at once here, and old chunks as soon as retention sees them.
        self.environment = Environment.open(self.directory / "log", 5, 1 << 16)
        self.upkeep = Upkeep(
            self.environment, Limits(chunks=2, dirty_records=4, keys=3, pause=0, idle=0)
        )

        def create(txn: WriteTxn) -> tuple[Topic, Topic]:
            config = {"delete.retention.ms": "1000"}
            log.create(txn, TopicSpec(name="plain", retention_ms=1000))
            log.create(txn, TopicSpec(name="compact", compacting=True, config=config))
            plain, compact = log.topic(txn, "plain"), log.topic(txn, "compact")
            assert plain is not None
            assert compact is not None
            return plain, compact

        self.plain, self.compact = self.environment.write(create)
        self.lists: dict[str, list[tuple[bytes, bytes | None]]] = {"plain": [], "compact": []}
        self.lows = {"plain": 0, "compact": 0}
        self.tail_is_old = True

    def teardown(self) -> None:
        """Close and remove the log."""
        self.environment.close()
        shutil.rmtree(self.directory)

    def append(
        self, topic: Topic, records: list[tuple[bytes, bytes | None]], written_ms: int
    ) -> None:
        """Append one chunk to the log and to the list."""
        columns = Columns(
            [value for _, value in records], [key for key, _ in records], [0] * len(records)
        )
        chunk = pack(columns, len(records), written_ms)

        def change(txn: WriteTxn) -> int | None:
            return log.append(txn, topic.number, 0, [(chunk, len(records))])

        assert self.environment.write(change) == len(self.lists[topic.name])
        self.lists[topic.name] += records

    @rule(
        records=st.lists(
            st.tuples(
                st.sampled_from([b"a", b"b", b"c", b"d", b"long" * 20]),
                st.sampled_from([b"1", b"2", None]),
            ),
            min_size=1,
            max_size=4,
        ),
        young=st.booleans(),
    )
    def append_to_compacting(self, records: list[tuple[bytes, bytes | None]], young: bool) -> None:
        """More for the compacting topic; tombstones of old chunks may go."""
        self.append(self.compact, records, NEVER_OLD if young else LONG_AGO)

    @precondition(lambda self: self.tail_is_old)
    @rule(count=st.integers(1, 4))
    def append_old(self, count: int) -> None:
        """More for the plain topic, past its retention already."""
        self.append(self.plain, [(b"k", b"%d" % n) for n in range(count)], LONG_AGO)

    @rule(count=st.integers(1, 4))
    def append_young(self, count: int) -> None:
        """More for the plain topic, to be kept."""
        self.tail_is_old = False
        self.append(self.plain, [(b"k", b"%d" % n) for n in range(count)], NEVER_OLD)

    @rule(steps=st.integers(1, 12))
    def keep_up(self, steps: int) -> None:
        """Some steps of retention and compaction."""

        def attempt(change: Callable[[WriteTxn], bool], default: bool) -> bool:
            return self.environment.write(change)

        for _ in range(steps):
            self.upkeep.run(attempt)

    @rule()
    def begin_anew(self) -> None:
        """The process that was compacting dies: another one begins with what is on disk."""
        limits = self.upkeep.limits
        self.upkeep.close()
        self.upkeep = Upkeep(self.environment, limits)

    @rule(part=st.floats(0, 1))
    def delete_records(self, part: float) -> None:
        """Move the compacting topic's low watermark up."""
        low = int(len(self.lists["compact"]) * part)

        def change(txn: WriteTxn) -> None:
            head = log.head(txn, self.compact.number, 0)
            assert head is not None
            moved = head._replace(low=max(head.low, low))
            log.set_head(txn, self.compact.number, 0, moved)

        self.environment.write(change)

    def read_from(
        self, topic: Topic, position: int, records_min: int
    ) -> list[tuple[int, bytes | None, bytes | None]]:
        """Read to the end, in batches."""
        want = log.Want(self.directory, records_min)
        found: list[tuple[int, bytes | None, bytes | None]] = []
        with self.environment.read() as txn:
            head = log.head(txn, topic.number, 0)
            assert head is not None
            while position < head.high:
                before = position
                batch, position = log.read(txn, topic.number, topic.name, 0, position, head, want)
                assert position > before
                if batch is not None:
                    assert batch.next_offset == position
                    for index in range(len(batch)):
                        record = batch.record(index)
                        assert before <= record.offset < position
                        found.append((record.offset, record.key, record.value))
            assert position == head.high
        return found

    @invariant()
    def plain_is_a_suffix(self) -> None:
        """From the low watermark on, all is there, and nothing young is missing."""
        records = self.lists["plain"]
        with self.environment.read() as txn:
            head = log.head(txn, self.plain.number, 0)
        assert head is not None
        assert head.high == len(records)
        assert self.read_from(self.plain, 0, 1) == [
            (offset, *records[offset]) for offset in range(head.low, len(records))
        ]

    @invariant()
    def compacting_keeps_the_last(self) -> None:
        """What is read is a part of what was written, from any position on.

        The last record of each key is in it, or, where that is a tombstone, none of the key.
        """
        records = self.lists["compact"]
        with self.environment.read() as txn:
            head = log.head(txn, self.compact.number, 0)
        assert head is not None
        found = self.read_from(self.compact, 0, 3)
        assert all(records[offset] == (key, value) for offset, key, value in found)
        offsets = [offset for offset, _, _ in found]
        assert offsets == sorted(set(offsets))
        state = {key: value for _, key, value in found}
        expected = dict(records[head.low :])
        assert {key: value for key, value in state.items() if value is not None} == {
            key: value for key, value in expected.items() if value is not None
        }
        middle = (head.low + head.high) // 2
        assert self.read_from(self.compact, middle, 1) == [row for row in found if row[0] >= middle]


LogAgainstLists.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLogAgainstLists = LogAgainstLists.TestCase


def test_a_pass_leaves_one_record_a_key(tmp_path: Path) -> None:
    """10,000 updates of 100 keys.

    After the passes about one record a key is left, and the clean end is the high watermark.
    """
    environment = Environment.open(tmp_path / "log", 5)
    upkeep = Upkeep(environment, Limits(pause=0, idle=0))

    def create(txn: WriteTxn) -> int:
        log.create(txn, TopicSpec(name="compact", compacting=True))
        topic = log.topic(txn, "compact")
        assert topic is not None
        for n in range(0, 10_000, 50):
            values: list[bytes | None] = [b"%d" % i for i in range(n, n + 50)]
            keys: list[bytes | None] = [b"%d" % (i % 100) for i in range(n, n + 50)]
            chunk = pack(Columns(values, keys, [0] * 50), 50, 0)
            log.append(txn, topic.number, 0, [(chunk, 50)])
        return topic.number

    number = environment.write(create)

    def attempt(change: Callable[[WriteTxn], bool], default: bool) -> bool:
        return environment.write(change)

    for _ in range(20):
        upkeep.run(attempt)
    with environment.read() as txn:
        head = log.head(txn, number, 0)
        chunks = list(log.chunks(txn, number, 0, 0, tmp_path))
    assert head is not None
    assert (head.high, head.clean, head.clean_records) == (10_000, 10_000, 100)
    assert sum(len(chunk.columns.values) for chunk in chunks) == 100
    upkeep.close()
    environment.close()


@pytest.mark.parametrize(
    ("written", "low"),
    [
        ("FOOY", 3),
        ("FY", 0),  # it may be as young as what follows
        ("FO", 2),
        ("F", 0),
        ("OF", 1),
        ("OFFFOOFOYF", 8),
        ("F" * 300 + "O" * 300 + "YY", 600),
        ("F" * 300 + "O", 301),
        ("F" * 5 + "Y", 0),
    ],
)
def test_a_clock_that_jumped_does_not_stop_retention(
    tmp_path: Path, written: str, low: int
) -> None:
    """Chunks that were written in the future (F) are as old as those that follow: old or young."""
    environment = Environment.open(tmp_path / "log", 5)
    upkeep = Upkeep(environment, Limits(pause=0, idle=0))
    now = int(time.time() * 1000)
    stamps = {"F": now + 10 * 365 * 86_400_000, "O": LONG_AGO, "Y": now}

    def create(txn: WriteTxn) -> int:
        for name in ("before", "plain", "behind"):  # retention stays within the partition
            log.create(txn, TopicSpec(name=name, retention_ms=600_000))
            topic = log.topic(txn, name)
            assert topic is not None
            for kind in written if name == "plain" else "Y":
                chunk = pack(Columns([b"value"], [b"key"], [0]), 1, stamps[kind])
                log.append(txn, topic.number, 0, [(chunk, 1)])
        plain = log.topic(txn, "plain")
        assert plain is not None
        return plain.number

    number = environment.write(create)

    def attempt(change: Callable[[WriteTxn], bool], default: bool) -> bool:
        return environment.write(change)

    for _ in range(30):
        upkeep.run(attempt)
    with environment.read() as txn:
        head = log.head(txn, number, 0)
    assert head is not None
    assert (head.low, head.high) == (low, len(written))
    upkeep.close()
    environment.close()


def test_a_reader_passes_what_was_compacted_away_at_the_end(tmp_path: Path) -> None:
    """The last chunk held a tombstone alone, which is gone: the batch before it ends at the end."""
    environment = Environment.open(tmp_path / "log", 5)
    upkeep = Upkeep(environment, Limits(chunks=1, dirty_records=1, pause=0, idle=0))

    def create(txn: WriteTxn) -> int:
        log.create(txn, TopicSpec(name="compact", compacting=True))
        topic = log.topic(txn, "compact")
        assert topic is not None
        for key, value in ((b"a", b"1"), (b"b", None)):
            chunk = pack(Columns([value], [key], [0]), 1, LONG_AGO)
            log.append(txn, topic.number, 0, [(chunk, 1)])
        return topic.number

    number = environment.write(create)

    def attempt(change: Callable[[WriteTxn], bool], default: bool) -> bool:
        return environment.write(change)

    for _ in range(10):
        upkeep.run(attempt)
    with environment.read() as txn:
        assert len(list(log.chunks(txn, number, 0, 0, tmp_path))) == 1
        head = log.head(txn, number, 0)
        assert head is not None
        batch, position = log.read(txn, number, "compact", 0, 0, head, log.Want(tmp_path))
    assert batch is not None
    assert (len(batch), batch.next_offset, position) == (1, 2, 2)
    upkeep.close()
    environment.close()
