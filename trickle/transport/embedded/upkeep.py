"""Retention, compaction and the remains of deleted topics: a little after each commit.

One process at a time does it, whoever holds ``upkeep.lock``. A step is one short transaction, and
never waits for its turn to write; commits come first. Each process goes round all partitions, at
most once a second unless there is work left, and gives the lock back after each step: who only
reads must not keep those who write from it. A compaction keeps the lock until its end, and goes on
without commits.

*Retention* drops whole chunks from the front whose time of *writing* is older than the topic's
``retention_ms``, and moves the low watermark. (Not the records' own timestamps: a topic loaded with
last year's events would be gone at once.) A chunk from the future, of a clock that jumped, is as
old as what was written after it.

*Compaction* is Kafka's algorithm in small steps. The log of a partition has a clean part, where
each key is there once, and a dirty one behind. When the dirty part has grown to the size of the
clean one, a pass maps each key in it to its last offset, then rewrites the chunks from the start to
the end of what it mapped, and leaves out every record whose key has a later offset in the map; a
tombstone that is older than the topic's ``delete.retention.ms`` goes as well. Offsets stay, so the
rewritten chunks have gaps. Each rewritten chunk takes the place of those it came from in the same
transaction: a pass that is cut short has only dropped what a later record supersedes, and a new one
begins from the stored clean end.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from trickle.transport.embedded import log
from trickle.transport.embedded.environment import Environment, WriteTxn
from trickle.transport.embedded.format import (
    CHUNK_BYTES,
    CHUNK_RECORDS,
    KEY,
    PARTITION,
    Chunk,
    Columns,
    Head,
    Topic,
    pack,
    unpack_header,
)
from trickle.types import Headers
from trickle.utils.files import FileLock

if TYPE_CHECKING:
    from lmdb import Cursor

__all__ = ["Limits", "Upkeep"]

T = TypeVar("T")

_AHEAD_MS = 3_600_000
"""A time of writing further ahead than this is a clock's that was wrong, or is."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much upkeep does at a time.

    Attributes:
        chunks: chunks that one step reads or deletes.
        dirty_records: a compaction pass is worth it from so many dirty records on.
        keys: keys that a pass holds in memory; it ends where they are full.
        pause: seconds between steps while there is work.
        idle: seconds between rounds where there is none.
    """

    chunks: int = 64
    dirty_records: int = 5_000
    keys: int = 200_000
    pause: float = 0.02
    idle: float = 1.0


class Upkeep:
    """The work and where it stands; all of it on the writer's thread."""

    def __init__(self, environment: Environment, limits: Limits | None = None) -> None:
        self._environment = environment
        self.limits = limits or Limits()
        self._lock = FileLock(environment.directory / "upkeep.lock")
        self._due = 0.0
        self._todo: list[tuple[Topic, int]] = []
        self._pass: _Pass | None = None
        self._budget = 0

    def run(self, attempt: Callable[[Callable[[WriteTxn], bool], bool], bool]) -> float | None:
        """Do a step if one is due.

        Args:
            attempt: runs a transaction if nobody else writes, else returns the default given.

        Returns:
            In how many seconds it must run again even without a commit; None: it need not.
        """
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self.limits.idle
            if self._lock.acquire():
                self._work(attempt, now)
        return None if self._pass is None else max(self._due - time.monotonic(), 0.0)

    def _work(
        self, attempt: Callable[[Callable[[WriteTxn], bool], bool], bool], now: float
    ) -> None:
        current, todo = self._pass, self._todo

        def step(txn: WriteTxn) -> bool:
            # It may run again, in a larger map: each time from where the last commit left it.
            self._pass, self._todo = copy.copy(current), list(todo)
            return self._step(txn)

        try:
            if attempt(step, True):
                self._due = now + self.limits.pause
        except BaseException:
            self._pass, self._todo = None, []
            raise
        finally:
            if self._pass is None:
                self._lock.release()

    def adopt(self, limits: Limits) -> None:
        """Work within other limits from the next commit on."""
        self.limits = limits
        self._due = 0.0

    def close(self) -> None:
        """Leave the work to others."""
        self._lock.release()

    def _step(self, txn: WriteTxn) -> bool:
        """Do some work; tell whether there is more."""
        self._budget = self.limits.chunks
        number = log.dropped(txn)
        if number is not None:
            self._bury(txn, number)
            return True
        if self._pass is not None:
            self._compact(txn, self._pass)
            return True
        if not self._todo:
            self._environment.reader_check()
            self._todo = [
                (topic, partition)
                for topic in log.topics(txn)
                for partition in range(topic.partitions)
            ]
        while self._todo and self._budget > 0 and self._pass is None:
            topic, partition = self._todo.pop()
            head = log.head(txn, topic.number, partition)
            if head is not None:
                head = self._retain(txn, topic, partition, head)
                self._consider(topic, partition, head)
        return bool(self._todo) or self._pass is not None

    # Deleted topics

    def _bury(self, txn: WriteTxn, number: int) -> None:
        """Delete some of what a dropped topic left."""
        left = self._budget
        prefix = PARTITION.pack(number, 0)[:4]
        for db in (txn.log, txn.offsets, txn.heads):
            cursor = txn.cursor(db)
            while left > 0 and cursor.set_range(prefix) and bytes(cursor.key()[:4]) == prefix:
                txn.delete(db, bytes(cursor.key()))
                left -= 1
        if left > 0:
            log.forget(txn, number)

    # Retention

    def _retain(self, txn: WriteTxn, topic: Topic, partition: int, head: Head) -> Head:
        """Delete chunks that are below the low watermark or too old; return the new head."""
        now = int(time.time() * 1000)
        before = now - topic.retention_ms
        by_age = topic.deleting and topic.retention_ms >= 0
        low, past = head.low, 0
        start = KEY.pack(topic.number, partition, 0)
        cursor = txn.cursor(txn.log)
        while self._budget > 0 and cursor.set_range(start):
            key = bytes(cursor.key())
            number, of, first = KEY.unpack(key)
            if (number, of) != (topic.number, partition):
                break
            _, extent, written_ms = unpack_header(cursor.value())
            end = first + extent
            if by_age and written_ms > now + _AHEAD_MS and end > past:
                past = _past(cursor, (number, of, end), now, before)
            if end > low and not (by_age and (written_ms < before or end <= past)):
                break
            txn.delete(txn.log, key)
            low = max(low, end)
            self._budget -= 1
        if low != head.low:
            head = head._replace(low=low, clean=max(low, head.clean))
            log.set_head(txn, topic.number, partition, head)
        return head

    # Compaction

    def _consider(self, topic: Topic, partition: int, head: Head) -> None:
        """Begin a pass where enough is dirty."""
        clean = max(head.clean, head.low)
        wanted = max(self.limits.dirty_records, head.clean_records)
        if topic.compacting and head.high - clean >= wanted:
            self._pass = _Pass(topic, partition, clean, head.high, head.low)

    def _compact(self, txn: WriteTxn, job: _Pass) -> None:
        topic, partition = job.topic, job.partition
        head = log.head(txn, topic.number, partition)
        if head is None:
            self._pass = None
            return
        if not job.mapped:
            job.map(self._chunks(txn, job, job.position), self.limits.keys)
            return
        self._rewrite(txn, job)
        if job.position >= job.end:
            clean = head._replace(clean=job.end, clean_records=job.kept)
            log.set_head(txn, topic.number, partition, clean)
            self._pass = None

    def _chunks(self, txn: WriteTxn, job: _Pass, position: int) -> Iterator[Chunk]:
        """Yield chunks from a position on, as many as one step may read."""
        found = log.chunks(
            txn, job.topic.number, job.partition, position, self._environment.directory
        )
        for chunk, _ in zip(found, range(self.limits.chunks), strict=False):
            yield chunk

    def _rewrite(self, txn: WriteTxn, job: _Pass) -> None:
        now_ms = int(time.time() * 1000)
        # Read first, write then: a cursor does not outlive changes to what it walks over.
        chunks = [c for c in self._chunks(txn, job, job.position) if c.first < job.end]
        merged = _Merged()
        number, partition = job.topic.number, job.partition

        def write() -> None:
            for first in merged.sources:
                txn.delete(txn.log, KEY.pack(number, partition, first))
            if merged.values:
                txn.put(txn.log, KEY.pack(number, partition, merged.first), merged.packed())
            merged.clear()

        for chunk in chunks:
            columns = chunk.columns
            stale = columns.values and chunk.written_ms < now_ms - job.topic.tombstone_ms
            kept = [
                index
                for index, delta in enumerate(columns.deltas or range(len(columns.values)))
                if job.keeps(columns.keys[index], chunk.first + delta)
                and not (stale and columns.values[index] is None)
            ]
            job.kept += len(kept)
            if len(kept) == len(columns.values) and (chunk.size >= CHUNK_BYTES // 2):
                write()
            else:
                merged.add(chunk, kept)
                if merged.size >= CHUNK_BYTES or len(merged.values) >= CHUNK_RECORDS:
                    write()
            job.position = chunk.first + chunk.extent
        write()
        if len(chunks) < self.limits.chunks:
            job.position = job.end


def _past(cursor: Cursor[memoryview], behind: tuple[int, int, int], now: int, before: int) -> int:
    """Return up to where a partition is old, if its next chunks are from the future; 0: nowhere.

    Chunks stand in the order of writing: what is in front of an old one is old. To find one behind
    many from the future, each look is twice as far as the last, and the partition's end comes last.
    So something may be kept a little longer, and nothing goes too early.
    """
    number, partition, position = behind
    hop = 0
    while True:
        there = cursor.set_range(KEY.pack(number, partition, position))
        if not there or KEY.unpack(cursor.key())[:2] != (number, partition):
            break
        first = KEY.unpack(cursor.key())[2]
        _, extent, written_ms = unpack_header(cursor.value())
        if written_ms <= now + _AHEAD_MS:
            return first if written_ms < before else 0
        position = first + extent + hop
        hop = hop * 2 + 1
    last = cursor.prev() if there else cursor.last()
    at = KEY.unpack(cursor.key()) if last else (0, 0, 0)
    old = at[:2] == (number, partition) and unpack_header(cursor.value())[2] < before
    return at[2] if old else 0


class _Pass:
    """One compaction of one partition: first the map is made, then chunks are rewritten."""

    def __init__(self, topic: Topic, partition: int, clean: int, end: int, low: int) -> None:
        self.topic = topic
        self.partition = partition
        self.end = end
        self.low = low
        self.position = clean
        self.mapped = False
        self.kept = 0
        self._latest: dict[bytes, int] = {}

    def map(self, chunks: Iterator[Chunk], keys_max: int) -> None:
        """Note the last offset of each key; at the end, turn to rewriting."""
        latest = self._latest
        read = 0
        for chunk in chunks:
            if chunk.first >= self.end:
                break
            read += 1
            deltas = chunk.columns.deltas or range(len(chunk.columns.keys))
            for key, delta in zip(chunk.columns.keys, deltas, strict=True):
                latest[_short(key)] = chunk.first + delta
            self.position = chunk.first + chunk.extent
            if len(latest) >= keys_max:
                self.end = self.position
                break
        if not read or self.position >= self.end:
            self.mapped = True
            self.position = self.low

    def keeps(self, key: bytes | None, offset: int) -> bool:
        """Whether a record is the last of its key, as far as the map knows."""
        return offset >= self.low and self._latest.get(_short(key), -1) <= offset


def _short(key: bytes | None) -> bytes:
    """Return what stands for a key in the map, of a bounded size."""
    if key is None:
        return b""
    return b"k" + key if len(key) <= 32 else hashlib.blake2b(key, digest_size=20).digest()


class _Merged:
    """A chunk in the making, of what is kept of several neighbours."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.sources: list[int] = []
        self.values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._stamps: list[int] = []
        self._headers: list[Headers] = []
        self._offsets: list[int] = []
        self.first = 0
        self._end = 0
        self._written_ms = 0
        self.size = 0

    def add(self, chunk: Chunk, kept: list[int]) -> None:
        """Take the kept records of a chunk."""
        if not self.sources:
            self.first = chunk.first
        self.sources.append(chunk.first)
        columns = chunk.columns
        deltas = columns.deltas or range(len(columns.values))
        for index in kept:
            self.values.append(columns.values[index])
            self._keys.append(columns.keys[index])
            self._stamps.append(columns.stamps[index])
            self._headers.append(columns.headers[index] if columns.headers else ())
            self._offsets.append(chunk.first + deltas[index])
        self._end = chunk.first + chunk.extent
        self._written_ms = max(self._written_ms, chunk.written_ms)
        self.size += chunk.size * len(kept) // max(1, len(columns.values))

    def packed(self) -> bytes:
        """Return the stored form."""
        extent = self._end - self.first
        dense = extent == len(self.values)
        columns = Columns(
            self.values,
            self._keys,
            self._stamps,
            self._headers if any(self._headers) else None,
            None if dense else [offset - self.first for offset in self._offsets],
        )
        return pack(columns, extent, self._written_ms)
