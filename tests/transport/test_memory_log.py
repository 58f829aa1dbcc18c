"""The plain data of the broker in memory against simple models: partitions, groups, ranges."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from trickle.exceptions import CommitFailed, TopicError
from trickle.transport.contract import TopicSpec
from trickle.transport.memory.group import Group, GroupMember, MemoryMember
from trickle.transport.memory.log import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    COMPACT_RECORDS_MIN,
    PartitionLog,
    Policy,
    policy_of,
)
from trickle.types import TopicPartition

DAY_MS = 86_400_000
KEYS = [b"a", b"b", b"c", None]


class LogModel(RuleBasedStateMachine):
    """A partition does what a dict from offsets to (key, value) does."""

    def __init__(self) -> None:
        super().__init__()
        self.log = PartitionLog("topic", 0, Policy())
        self.kept: dict[int, tuple[bytes | None, bytes | None]] = {}
        self.low = self.high = 0

    @rule(
        rows=st.lists(
            st.tuples(st.sampled_from(KEYS), st.sampled_from([b"1", b"2", None])),
            min_size=1,
            max_size=12,
        )
    )
    def append(self, rows: list[tuple[bytes | None, bytes | None]]) -> None:
        for key, value in rows:
            assert self.log.append(0, key, value, (), 5) == self.high
            self.kept[self.high] = (key, value)
            self.high += 1

    @rule(count=st.integers(1, 3))
    def skip(self, count: int) -> None:
        self.log.skip(count)
        self.high += count

    @rule(count=st.integers(-1, 5))
    def delete(self, count: int) -> None:
        offset = self.low + count
        self.log.delete_before(offset)
        self.low = max(self.low, min(offset, self.high))
        self.kept = {o: row for o, row in self.kept.items() if o >= self.low}

    @rule()
    def compact(self) -> None:
        self.log.compact(0)
        newest = {key: offset for offset, (key, _) in self.kept.items()}
        self.kept = {
            offset: (key, value)
            for offset, (key, value) in self.kept.items()
            if key is None or newest[key] == offset
        }

    @invariant()
    def reads_the_same(self) -> None:
        log = self.log
        assert (log.low, log.high, len(log)) == (self.low, self.high, len(self.kept))
        assert {r.offset: (r.key, r.value) for r in log.records()} == self.kept
        assert log.count_from(0) == len(self.kept)
        for position in range(self.low, self.high + 1):
            expected = [offset for offset in self.kept if offset >= position]
            batch = log.read(position)
            found = [] if batch is None else [batch.offset(i) for i in range(len(batch))]
            assert found == expected
            assert log.count_from(position) == len(expected)
            before = [offset for offset in self.kept if offset < position]
            assert log.step_back(position, 0) == position
            assert log.step_back(position, 2) == (before[-2:] or [position])[0]


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_batches_are_bounded_by_count_and_by_bytes() -> None:
    log = PartitionLog("topic", 0, Policy())
    for _ in range(BATCH_RECORDS_MAX + 1):
        log.append(0, None, b"", (), 0)
    batch = log.read(0)
    assert batch is not None
    assert (len(batch), batch.next_offset) == (BATCH_RECORDS_MAX, BATCH_RECORDS_MAX)
    sizes = [BATCH_BYTES_MAX // 3] * 4 + [3 * BATCH_BYTES_MAX, 1]
    log = PartitionLog("topic", 0, Policy())
    for size in sizes:
        log.append(0, None, bytes(size), (), 0)
    position, counts = 0, list[int]()
    while (batch := log.read(position)) is not None:
        position = batch.next_offset
        counts.append(len(batch))
    assert counts == [2, 2, 1, 1]


def test_retention_counts_from_when_a_record_was_appended() -> None:
    log = PartitionLog("topic", 0, Policy(retention_ms=10_000))
    for now in range(0, 100_000, 100):
        log.append(now, None, b"", (), 0)  # whatever its own timestamp says
        log.tidy(now)
        assert log.low <= max(0, now - 10_000) // 100  # nothing goes too early
        assert len(log) <= 102  # nor much too late
    assert log.high == 1_000


def test_a_compacting_partition_compacts_itself_when_it_has_doubled() -> None:
    log = PartitionLog("topic", 0, Policy(compacting=True))
    for number in range(5 * COMPACT_RECORDS_MIN):
        log.append(0, b"%d" % (number % 10), b"%d" % number, (), 0)
        log.tidy(0)
        assert len(log) <= COMPACT_RECORDS_MIN + 1
    log.compact(0)
    newest = [b"%d" % n for n in range(5 * COMPACT_RECORDS_MIN - 10, 5 * COMPACT_RECORDS_MIN)]
    assert [record.value for record in log.records()] == newest


def test_a_deletion_outlives_its_key_by_a_day() -> None:
    log = PartitionLog("topic", 0, Policy(compacting=True))
    log.append(0, b"a", b"1", (), 0)
    log.append(0, b"a", None, (), 0)
    log.append(DAY_MS // 2, b"b", None, (), 0)
    log.compact(DAY_MS - 1)
    assert [(r.offset, r.key, r.value) for r in log.records()] == [(1, b"a", None), (2, b"b", None)]
    log.compact(DAY_MS * 5 // 4)
    assert [(r.offset, r.key, r.value) for r in log.records()] == [(2, b"b", None)]


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({}, Policy()),
        ({"retention_ms": 5}, Policy(retention_ms=5)),
        ({"retention_ms": -1}, Policy()),
        ({"compacting": True}, Policy(compacting=True)),
        ({"compacting": True, "retention_ms": 5}, Policy(compacting=True)),
        (
            {"compacting": True, "deleting": True, "retention_ms": 5},
            Policy(compacting=True, retention_ms=5),
        ),
        (
            {"config": {"cleanup.policy": "compact,delete", "retention.ms": "7"}},
            Policy(compacting=True, retention_ms=7),
        ),
        ({"config": {"cleanup.policy": "compact", "retention.ms": "7"}}, Policy(compacting=True)),
        ({"config": {"max.message.bytes": "99"}}, Policy(record_bytes_max=99)),
    ],
)
def test_what_a_topic_keeps_is_read_from_its_spec(spec: dict[str, Any], policy: Policy) -> None:
    assert policy_of(TopicSpec(name="topic", **spec)) == policy


def test_a_setting_that_is_no_number_is_an_error() -> None:
    with pytest.raises(TopicError) as caught:
        policy_of(TopicSpec(name="topic", config={"retention.ms": "a week"}))
    assert str(caught.value) == (
        "topic 'topic' cannot be declared: config 'retention.ms' is 'a week', "
        "a whole number was expected"
    )


class GroupModel(RuleBasedStateMachine):
    """Members come, go, fall silent and take their time; the coordinator keeps its promises.

    A member here is a client that does its part when it is told to, at a time of its own.
    """

    members = Bundle("members")

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"one": 5, "two": 5, "other": 3}
        self.group = Group("group", lambda: self.counts)
        self.now = 0.0
        self.generation = 0

    @rule(target=members, topics=st.sets(st.sampled_from(["one", "two", "other"]), min_size=1))
    def join(self, topics: set[str]) -> GroupMember:
        return self.group.join(topics, 10.0, lambda: None, self.now)

    @rule(member=consumes(members))
    def leave(self, member: GroupMember) -> None:
        self.group.leave(member, self.now)

    @rule(member=consumes(members), session=st.floats(0, 20))
    def die(self, member: GroupMember, session: float) -> None:
        member.dies_at = self.now + session

    @rule()
    def rebalance(self) -> None:
        self.group.rebalance(self.now)

    @rule(member=members)
    def give_back(self, member: GroupMember) -> None:
        if self.group.preparing and not member.rejoined and not member.expelled:
            self.group.rejoin(member)
            if self.group.preparing:
                assert member.assignment == frozenset()

    @precondition(lambda self: self.group.next_expiry() < math.inf)
    @rule()
    def pass_time(self) -> None:
        assert self.group.next_expiry() >= self.now
        self.now = self.group.next_expiry()
        late = {
            name
            for name, member in self.group.members.items()
            if member.dies_at <= self.now or (self.group.preparing and not member.rejoined)
        }
        preparing = self.group.preparing
        self.group.expire(self.now)
        if preparing:  # those who were waited for are gone, or their deadline is yet to come
            assert not self.group.preparing or self.group.next_expiry() > self.now
        assert not {n for n in late if n in self.group.members} or self.group.preparing

    @rule(member=members)
    def commit(self, member: GroupMember) -> None:
        """A member may commit for what it holds, or nobody shares, and in its generation only."""
        name = member.member_id
        current = MemoryMember("group", name, member.generation)
        past = MemoryMember("group", name, member.generation - 1)
        every = [TopicPartition(t, n) for t, count in self.counts.items() for n in range(count)]
        shared = {topic for one in self.group.members.values() for topic in one.topics}
        for partition in every:
            free = partition in member.assignment or partition.topic not in shared
            if free and not member.expelled:
                self.group.check(current, [partition])
            else:
                with pytest.raises(CommitFailed):
                    self.group.check(current, [partition])
            with pytest.raises(CommitFailed):
                self.group.check(past, [partition])

    @invariant()
    def nothing_is_held_twice(self) -> None:
        held = [p for member in self.group.members.values() for p in member.assignment]
        assert len(held) == len(set(held))
        assert self.group.generation >= self.generation
        self.generation = self.group.generation
        if not self.group.preparing:
            wanted = {topic for m in self.group.members.values() for topic in m.topics}
            assert {p.topic for p in held} == wanted
            assert len(held) == sum(self.counts[topic] for topic in wanted)
            assert {m.generation for m in self.group.members.values()} <= {self.generation}


TestGroupModel = GroupModel.TestCase
TestGroupModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(
    members=st.dictionaries(
        st.text(min_size=1, max_size=3), st.sets(st.sampled_from(["x", "y", "z"])), max_size=6
    ),
    counts=st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 12)),
)
def test_ranges(members: dict[str, set[str]], counts: dict[str, int]) -> None:
    group = Group("group", lambda: counts)
    for topics in members.values():
        group.join(topics, 10.0, lambda: None, 0.0)
    while group.preparing:
        for member in tuple(group.members.values()):
            if not member.rejoined:
                group.rejoin(member)
    for topic, count in counts.items():
        takers = [m for m in group.members.values() if topic in m.topics]
        shares = [[p.partition for p in sorted(m.assignment) if p.topic == topic] for m in takers]
        # The runs, one behind the other, are the topic; the first are at most one longer.
        assert [n for share in shares for n in share] == (list(range(count)) if takers else [])
        sizes = [len(share) for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert not sizes or sizes[0] - sizes[-1] <= 1
