"""Topics and their partitions, in memory: plain data, with time as an argument.

A partition is a list of records in offset order. Offsets only grow. They have gaps, as Kafka's
have: compaction takes records out, and with transaction markers an offset belongs to no record.

So that memory does not grow for ever, a partition forgets lazily, as it is written to:

* *retention*: records older than ``retention_ms`` go. Their age counts from when they were
  appended, not from their own timestamps as Kafka's does: events of years ago are a test's usual
  input, and would be gone before anybody has read them.
* *compaction*: once a compacting partition has doubled since the last time (and is not tiny), only
  the newest record of each key stays. A key's deletion (a null value) stays for a day, as Kafka's
  ``delete.retention.ms`` has it, for those who read the key's value before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from trickle.exceptions import TopicError
from trickle.transport.contract import TopicSpec
from trickle.transport.shared import RecordBatch
from trickle.types import Headers, Record

__all__ = ["BATCH_BYTES_MAX", "BATCH_RECORDS_MAX", "PartitionLog", "Policy", "policy_of"]

BATCH_RECORDS_MAX = 1_000
BATCH_BYTES_MAX = 1 << 20
RECORD_BYTES_MAX = 1_048_588  # Kafka's default for max.message.bytes
OVERHEAD_BYTES = 80  # what Kafka adds to a single record, roughly: a batch's header, the lengths
TOMBSTONE_RETENTION_MS = 86_400_000
COMPACT_RECORDS_MIN = 10_000
_MARKS_MAX = 256  # how finely a partition remembers when it was written to


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic takes and keeps.

    Attributes:
        retention_ms: None keeps for ever.
        record_bytes_max: the largest record, ``max.message.bytes``.
    """

    retention_ms: int | None = None
    compacting: bool = False
    record_bytes_max: int = RECORD_BYTES_MAX


def policy_of(spec: TopicSpec) -> Policy:
    """Read what a declared topic takes and keeps; its arguments go before its ``config``.

    Raises:
        TopicError: a setting that cannot be read.
    """
    cleanup = spec.config.get("cleanup.policy", "delete")
    compacting = "compact" in cleanup if spec.compacting is None else spec.compacting
    deleting = "delete" in cleanup if spec.deleting is None else spec.deleting
    if spec.compacting and spec.deleting is None and "cleanup.policy" not in spec.config:
        deleting = False
    retention = spec.retention_ms
    if retention is None:
        retention = _number(spec.name, spec.config, "retention.ms", -1)
    return Policy(
        retention_ms=retention if deleting and retention >= 0 else None,
        compacting=compacting,
        record_bytes_max=_number(spec.name, spec.config, "max.message.bytes", RECORD_BYTES_MAX),
    )


def _number(topic: str, config: Mapping[str, str], name: str, default: int) -> int:
    text = config.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise TopicError(
            f"topic {topic!r} cannot be declared: config {name!r} is {text!r}, "
            "a whole number was expected"
        ) from None


def record_size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Return what counts against ``max.message.bytes``."""
    size = len(key or b"") + len(value or b"") + OVERHEAD_BYTES
    for name, data in headers:
        size += len(name) + len(data or b"")
    return size


class PartitionLog:
    """One partition.

    Attributes:
        low: the first offset that is kept.
        high: the offset that the next record gets.
    """

    def __init__(self, topic: str, partition: int, policy: Policy) -> None:
        self.topic = topic
        self.partition = partition
        self.policy = policy
        self.low = 0
        self.high = 0
        self._records: list[Record] = []
        self._hidden = 0  # records at the front that are deleted, but still in the list
        self._marks: deque[tuple[int, int]] = deque()  # (time, high watermark before it)
        self._compacted = 0  # how many records were left at the last compaction

    def __len__(self) -> int:
        return len(self._records) - self._hidden

    # Writing

    def append(
        self,
        now_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int,
    ) -> int:
        """Add a record and return its offset; :meth:`tidy` follows, once for many."""
        self._mark(now_ms)
        offset = self.high
        self._records.append(
            Record(self.topic, self.partition, offset, timestamp_ms, key, value, headers)
        )
        self.high = offset + 1
        return offset

    def skip(self, count: int) -> None:
        """Let so many offsets belong to no record: markers, and what was aborted."""
        self.high += count

    def _mark(self, now_ms: int) -> None:
        if self.policy.retention_ms is None and not self.policy.compacting:
            return
        if not self._marks or now_ms - self._marks[-1][0] > self._grain_ms():
            self._marks.append((now_ms, self.high))

    def _grain_ms(self) -> int:
        """Return how long after a mark records may still have been appended without another."""
        return (self.policy.retention_ms or TOMBSTONE_RETENTION_MS) // _MARKS_MAX

    # Forgetting

    def tidy(self, now_ms: int) -> None:
        """Forget what retention and compaction allow, if it is worth the while."""
        policy = self.policy
        if policy.retention_ms is not None:
            self.delete_before(self._appended_before(now_ms - policy.retention_ms))
        if policy.compacting and len(self) > max(COMPACT_RECORDS_MIN, 2 * self._compacted):
            self.compact(now_ms)

    def _appended_before(self, time_ms: int) -> int:
        """Return an offset below which all was appended before the time, as far as is known."""
        marks, grain = self._marks, self._grain_ms()
        while marks and marks[0][0] + grain <= time_ms:
            marks.popleft()
        return marks[0][1] if marks else self.high

    def delete_before(self, offset: int) -> None:
        """Delete the records below an offset: the low watermark moves."""
        if offset <= self.low:
            return
        self.low = min(offset, self.high)
        records = self._records
        hidden = self.find(self.low)
        # The list is cut rarely: each cut moves all that stays.
        if hidden * 2 >= len(records):
            del records[:hidden]
            hidden = 0
        self._hidden = hidden

    def compact(self, now_ms: int) -> None:
        """Keep the newest record of each key, and those without a key; offsets stay."""
        settled = 0  # the offset below which deletions have been kept long enough
        if self.policy.compacting and self.policy.retention_ms is None:
            settled = self._appended_before(now_ms - TOMBSTONE_RETENTION_MS)
        kept = self._records[self._hidden :]
        newest = {record.key: record.offset for record in kept}
        self._records = [
            record
            for record in kept
            if record.key is None
            or (
                newest[record.key] == record.offset
                and (record.value is not None or record.offset >= settled)
            )
        ]
        self._hidden = 0
        self._compacted = len(self._records)

    # Reading

    def find(self, offset: int) -> int:
        """Return the index of the first kept record at an offset or behind it."""
        records = self._records
        if not records:
            return 0
        first = records[0].offset
        index = offset - first
        if self.high - first == len(records):  # no gaps: the usual case
            return max(self._hidden, min(index, len(records)))
        return max(self._hidden, bisect_left(records, offset, key=_offset))

    def read(self, position: int) -> RecordBatch | None:
        """Return the next batch from a position on, None where there is no record behind it."""
        start = self.find(position)
        records = self._records[start : start + BATCH_RECORDS_MAX]
        if not records:
            return None
        batch = RecordBatch(records)
        if batch.size_bytes > BATCH_BYTES_MAX and len(records) > 1:
            batch = RecordBatch(records[: _fitting(records)])
        return batch

    def count_from(self, position: int) -> int:
        """Return how many records there are from a position on."""
        return len(self._records) - self.find(position)

    def records(self) -> list[Record]:
        """Return all that is kept."""
        return self._records[self._hidden :]

    def step_back(self, position: int, count: int) -> int:
        """Return the position so many records before another, no lower than the first kept."""
        index = max(self._hidden, self.find(position) - count)
        if index == len(self._records):
            return position
        return min(position, self._records[index].offset)


def _offset(record: Record) -> int:
    return record.offset


def _fitting(records: Sequence[Record]) -> int:
    """Return how many of the records fit into a batch: at least one."""
    size = 0
    for count, record in enumerate(records):
        size += record_size(record.key, record.value, record.headers)
        if size > BATCH_BYTES_MAX:
            return max(1, count)
    return len(records)
