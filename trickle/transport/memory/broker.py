"""The broker in memory: topics, groups, transactional ids, and the faults that tests ask for.

Everything takes effect between two checkpoints, so a transaction is seen whole or not at all.
Whoever waits for the broker is woken by it; nothing polls, nothing has a thread, and no time
passes unless a delay is asked for. So it works in virtual time.

What is random (the partition of a record without a key, the order of batches) comes from the
broker's own generator: with a seed, a run can be repeated.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

import trio

from trickle.exceptions import (
    BrokerUnavailable,
    OffsetOutOfRange,
    ProducerFenced,
    RecordRefused,
    TopicError,
    TopicRefused,
)
from trickle.transport.contract import CommittedOffset, TopicInfo, TopicSpec
from trickle.transport.memory.group import Group, MemoryMember
from trickle.transport.memory.log import PartitionLog, policy_of, record_size
from trickle.types import Headers, Record, TopicPartition
from trickle.utils.murmur2 import partition_of

__all__ = ["CommitFault", "MemoryBroker", "Staged", "Topic"]

CommitFault = Literal["aborted", "fenced", "lost", "applied"]
"""How a commit fails: refused; by a rival; or its outcome is unknown: not applied, or applied."""

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Staged(NamedTuple):
    """A record on its way, its partition chosen."""

    topic: Topic
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None
    watch: bool


class Watcher(Protocol):
    """A client that wants to know of new records, and that faults reach."""

    def wake(self) -> None:
        """Something it reads has changed."""
        ...

    def step_back(self, partition: TopicPartition, count: int) -> None:
        """Read so many records of a partition again."""
        ...


class Topic:
    """A topic: made anew under the same name it is another one, with another id."""

    def __init__(self, spec: TopicSpec, partitions: int) -> None:
        self.name = spec.name
        self.topic_id = uuid.uuid4().hex
        self.policy = policy_of(spec)
        self.logs = [PartitionLog(spec.name, n, self.policy) for n in range(partitions)]
        self.deleted = False
        self.watchers: dict[Watcher, None] = {}  # in the order of their coming

    def info(self) -> TopicInfo:
        """Describe the topic."""
        return TopicInfo(
            name=self.name,
            topic_id=self.topic_id,
            partitions=len(self.logs),
            record_bytes_max=self.policy.record_bytes_max,
            compacting=self.policy.compacting,
        )

    def wake(self) -> None:
        """Tell those who read it."""
        for watcher in tuple(self.watchers):
            watcher.wake()


def wall_clock_ms() -> int:
    """Return POSIX milliseconds."""
    return time.time_ns() // 1_000_000


class MemoryBroker:
    """A broker of this process.

    The attributes are knobs; they may be turned at any time.

    Args:
        seed: makes what is random repeatable.
        partitions: of topics that are declared without a count.
        now_ms: the broker's clock, in POSIX milliseconds; by default the wall clock.

    Attributes:
        markers: transactions take offsets as on Kafka: one for each commit in each partition
            touched, and aborted records leave gaps.
        fetch_delay: seconds that each fetch takes.
        commit_delay: seconds that each commit and each delivery takes; what is committed takes
            effect in the middle of them.
        unavailable: commits, and looks at topics and groups, fail for want of a broker.
        linger: members whose client is gone without a word stay until their session times out,
            as on a real broker, instead of being given up at once.
        forgotten: from where on records of a partition count as not decided: a transaction's end
            got lost, as with a real broker that was killed. Whoever ends it there once more
            (``Admin.fence``) takes the entry out.
        refuses: told topic, key and value of each record on its way; if it answers True, the
            broker refuses the record, as if it were too large for it.
    """

    _named: ClassVar[dict[str, MemoryBroker]] = {}

    def __init__(
        self,
        *,
        seed: int | None = None,
        partitions: int = 1,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - it has to be repeatable
        self.default_partitions = partitions
        self.now_ms = now_ms
        self.markers = False
        self.fetch_delay = 0.0
        self.commit_delay = 0.0
        self.unavailable = False
        self.linger = False
        self.forgotten: dict[TopicPartition, int] = {}
        self.refuses: Callable[[str, bytes | None, bytes | None], bool] | None = None
        self._topics: dict[str, Topic] = {}
        self._groups: dict[str, Group] = {}
        self._epochs: dict[str, int] = {}
        self._faults: deque[CommitFault] = deque()
        self._changed = trio.Event()

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """Return the broker behind ``memory://name``, the same one each time."""
        broker = cls._named.get(name)
        if broker is None:
            broker = cls._named[name] = cls()
        return broker

    # Topics

    def declare(self, spec: TopicSpec) -> None:
        """Create a topic unless it exists.

        Raises:
            TopicError: its name or a setting is impossible.
        """
        if spec.name in self._topics:
            return
        if not _TOPIC_NAME.fullmatch(spec.name) or spec.name in {".", ".."}:
            raise TopicError(
                f"topic {spec.name!r} cannot be declared: a topic's name has 1 to 249 of the "
                "characters a-z, A-Z, 0-9, '.', '_' and '-', and is not '.' or '..'"
            )
        partitions = self.default_partitions if spec.partitions is None else spec.partitions
        if partitions < 1:
            raise TopicError(
                f"topic {spec.name!r} cannot be declared with partitions={partitions}: "
                "it needs at least 1"
            )
        self._topics[spec.name] = Topic(spec, partitions)
        self.notify()

    def delete(self, name: str) -> None:
        """Delete a topic with its records; committed offsets stay, as on Kafka they do a while."""
        topic = self._topics.pop(name, None)
        if topic is not None:
            topic.deleted = True
            topic.wake()
            self.notify()

    def topics(self) -> Mapping[str, Topic]:
        """Return all topics by name."""
        return self._topics

    def topic(self, name: str) -> Topic:
        """Return a topic.

        Raises:
            TopicError: there is none of this name.
        """
        topic = self._topics.get(name)
        if topic is None:
            raise TopicError(f"topic {name!r} does not exist: declare it, or check its name")
        return topic

    def log(self, partition: TopicPartition) -> PartitionLog:
        """Return one partition.

        Raises:
            TopicError: there is none.
        """
        logs = self.topic(partition.topic).logs
        if not 0 <= partition.partition < len(logs):
            raise TopicError(
                f"topic {partition.topic!r} has no partition {partition.partition}: "
                f"its partitions are 0 to {len(logs) - 1}"
            )
        return logs[partition.partition]

    def records(self, topic: str) -> list[Record]:
        """Return all records that a topic keeps, partition by partition in offset order."""
        return [record for log in self.topic(topic).logs for record in log.records()]

    def compact(self, topic: str) -> None:
        """Compact a topic now: the newest record of each key stays, offsets get gaps."""
        for log in self.topic(topic).logs:
            log.compact(self.now_ms())
        self.topic(topic).wake()

    # Records

    def stage(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
        watch: bool,
    ) -> Staged:
        """Look at a record on its way in, and choose its partition.

        Raises:
            RecordRefused: it can never be stored.
        """
        found = self._topics.get(topic)
        if found is None:
            raise TopicRefused(
                f"the record for topic {topic!r} is refused: the topic does not exist; "
                "declare it, or check its name",
                topic=topic,
                partition=partition,
            )
        count = len(found.logs)
        if partition is None:
            partition = (
                partition_of(key, count) if key is not None else self.random.randrange(count)
            )
        elif not 0 <= partition < count:
            raise RecordRefused(
                f"the record for topic {topic!r} is refused: there is no partition {partition}, "
                f"the topic's partitions are 0 to {count - 1}",
                topic=topic,
                partition=partition,
            )
        if key is None and found.policy.compacting:
            raise RecordRefused(
                f"the record for topic {topic!r} is refused: the topic is compacting, which keeps "
                "the newest record of each key, and the record has no key",
                topic=topic,
                partition=partition,
            )
        limit = found.policy.record_bytes_max
        size = record_size(key, value, headers)
        if size > limit:
            raise RecordRefused(
                f"the record for topic {topic!r} is refused: it has {size} bytes, the topic takes "
                f"{limit}; send less, or raise the topic's max.message.bytes",
                topic=topic,
                partition=partition,
            )
        return Staged(found, partition, key, value, headers, timestamp_ms, watch)

    def refusal(self, records: Iterable[Staged]) -> RecordRefused | None:
        """Return why the broker takes one of the records not, None where it takes all."""
        refuses = self.refuses
        for record in records:
            topic = record.topic
            if topic.deleted:
                why = "the topic has been deleted; declare it again"
            elif refuses is not None and refuses(topic.name, record.key, record.value):
                why = "the broker does not take it; look at the topic's max.message.bytes"
            else:
                continue
            message = f"the record for topic {topic.name!r} is refused: {why}"
            kind = TopicRefused if topic.deleted else RecordRefused
            return kind(message, topic=topic.name, partition=record.partition)
        return None

    def append(
        self, records: Iterable[Staged], *, marked: bool = False
    ) -> tuple[dict[TopicPartition, int], int]:
        """Add records, all at once, and wake those who wait for them.

        Args:
            marked: they are a transaction: with ``markers``, it takes an offset in each partition.

        Returns:
            The position behind the last watched record of each partition, and the offset of the
            last record of all.
        """
        now = self.now_ms()
        watched: dict[TopicPartition, int] = {}
        touched: dict[PartitionLog, Topic] = {}
        offset = -1
        for topic, partition, key, value, headers, timestamp_ms, watch in records:
            log = topic.logs[partition]
            offset = log.append(
                now, key, value, headers, now if timestamp_ms is None else timestamp_ms
            )
            touched[log] = topic
            if watch:
                watched[TopicPartition(topic.name, partition)] = offset + 1
        for log in touched:
            if marked and self.markers:
                log.skip(1)
            log.tidy(now)
        self._wake(touched.values())
        return watched, offset

    def abort(self, records: Iterable[Staged]) -> None:
        """Drop a transaction's records: with ``markers`` they leave a gap of their size and one."""
        if not self.markers:
            return
        touched: dict[PartitionLog, Topic] = {}
        for record in records:
            log = record.topic.logs[record.partition]
            log.skip(1)
            touched[log] = record.topic
        for log in touched:
            log.skip(1)
        self._wake(touched.values())

    def _wake(self, topics: Iterable[Topic]) -> None:
        for topic in dict.fromkeys(topics):
            topic.wake()
        self.notify()

    def check_position(self, log: PartitionLog, position: int) -> None:
        """See that a partition holds a position.

        Raises:
            OffsetOutOfRange: it does not.
        """
        if not log.low <= position <= log.high:
            raise OffsetOutOfRange(
                f"topic {log.topic!r}, partition {log.partition}: position {position} lies outside "
                f"of what the topic holds, {log.low} to {log.high}"
            )

    # Groups

    def group(self, name: str) -> Group:
        """Return a group; there is one as soon as somebody asks for it."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, self._counts)
        return group

    def _counts(self) -> Mapping[str, int]:
        return {name: len(topic.logs) for name, topic in self._topics.items()}

    def members(self, group: str) -> tuple[MemoryMember, ...]:
        """Return a group's members, in the order in which partitions are dealt out to them."""
        members = sorted(self.group(group).members.items())
        return tuple(MemoryMember(group, name, member.generation) for name, member in members)

    def rebalance(self, group: str) -> None:
        """Begin a rebalance: every member gives back what it holds, and gets it anew."""
        self.group(group).rebalance(trio.current_time())
        self.notify()

    def kill(self, member: MemoryMember) -> None:
        """Give a member up, as after a session that timed out.

        Its client finds that it has lost its partitions, and joins anew.
        """
        group = self.group(member.group)
        known = group.members.get(member.member_id)
        if known is not None:
            group.leave(known, trio.current_time())
        self.notify()

    def redeliver(self, partition: TopicPartition, count: int) -> None:
        """Let the consumers of a partition get the last so many records a second time."""
        for watcher in tuple(self.topic(partition.topic).watchers):
            watcher.step_back(partition, count)

    # Transactional ids

    def open_epoch(self, transactional_id: str) -> int:
        """Take a transactional id over: whoever had it before is fenced."""
        epoch = self._epochs.get(transactional_id, 0) + 1
        self._epochs[transactional_id] = epoch
        return epoch

    def check_epoch(self, transactional_id: str, epoch: int) -> None:
        """See that nobody took a transactional id over.

        Raises:
            ProducerFenced: somebody did.
        """
        if self._epochs[transactional_id] != epoch:
            raise ProducerFenced(
                f"another producer took over the transactional id {transactional_id!r}: "
                "this one can commit nothing any more"
            )

    # Commits

    def check_available(self) -> None:
        """See that the broker is not away.

        Raises:
            BrokerUnavailable: a test says that it is.
        """
        if self.unavailable:
            raise BrokerUnavailable("the broker in memory is away: the test has made it so")

    def fail_commits(self, *faults: CommitFault) -> None:
        """Let the next commits fail, one fault each; a flush without offsets is no commit.

        Args:
            faults: ``aborted`` (nothing took effect), ``fenced`` (by a rival), ``lost`` (nobody
                knows, and nothing took effect), ``applied`` (nobody knows, yet it took effect).
        """
        self._faults.extend(faults)

    def take_fault(self) -> CommitFault | None:
        """Return how the commit that is made now has to fail."""
        return self._faults.popleft() if self._faults else None

    def commit_offsets(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Store a group's positions."""
        self.group(group).offsets.update(offsets)
        self.notify()

    # Quiescence

    def lag(self, group: str) -> dict[TopicPartition, int]:
        """Return how many records lie behind a group's committed positions, where any do."""
        found = self.group(group)
        topics = {topic for member in found.members.values() for topic in member.topics}
        partitions = {
            TopicPartition(name, number)
            for name in topics & self._topics.keys()
            for number in range(len(self._topics[name].logs))
        }
        partitions |= {p for p in found.offsets if p.topic in self._topics}
        lags: dict[TopicPartition, int] = {}
        for partition in sorted(partitions):
            committed = found.offsets.get(partition)
            lag = self.log(partition).count_from(0 if committed is None else committed.offset)
            if lag:
                lags[partition] = lag
        return lags

    def stable(self, groups: Collection[str] | None = None) -> bool:
        """Tell whether no rebalance is under way, in some groups or in any."""
        names = self._groups if groups is None else groups
        return not any(self.group(name).preparing for name in tuple(names))

    def notify(self) -> None:
        """Something has changed that :meth:`wait_changed` tells of."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until records, commits, members or topics change.

        Look first, then wait: what changes between two checkpoints is told once.
        """
        await self._changed.wait()
