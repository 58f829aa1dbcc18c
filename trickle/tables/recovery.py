"""Recovery: bringing one environment up to date from the changelogs.

What is in a store is the fold of a changelog's records up to its position, never more than what
was committed. So recovery reads committed records from there to the end, and writes them as they
come: killed in the middle, it goes on from where it was. The *end* is the high watermark as an
uncommitted reader sees it, taken once no transaction on the partition is pending: the caller has
waited for its committed offset to be stable.

Where what is stored means nothing in the changelog (see :mod:`.recovery_plan`), the table is built
anew from the changelog's beginning, and a warning says why. So it is, too, where the changelog was
trimmed while it was read: what was read before may not be in it any more.

And a broker may acknowledge a commit, lose its markers in a restart, and have it aborted after all
(see :mod:`trickle.transport.kafka.again`). So what a commit has put into a store is *proven* by the
next recovery: it reads the last record of that commit once more. Where that is missing, that table
is built anew. (A compacted changelog may have dropped it for a later one: then that was no harm.)
Nothing is built anew so from a changelog whose beginning is gone: the store alone may have that.

Under at-least-once nothing keeps one that stood still for longer than its session from writing to
changelogs that are another's by now, but its offsets are refused. So changelogs have committed
offsets, too: their *ends* with the last commit. Records behind them do not count: their keys are
written once more by the next commit, as they are. Unless compaction may have dropped what counts in
favour of such a record; then it is believed, for nobody knows better.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import trio

from trickle.exceptions import BrokerUnavailable, OffsetOutOfRange, RecoveryError, TopicError
from trickle.positions import read_end
from trickle.stores.contract import (
    FORMAT_VERSION,
    Environment,
    Position,
    TableWrite,
    coalesced,
)
from trickle.tables.recovery_plan import Plan, plan_recovery
from trickle.transport.batches import Batch
from trickle.transport.contract import CommittedOffset, Reader, Transport, Watermarks
from trickle.transport.looks import find_topics
from trickle.types import Headers, TopicPartition
from trickle.utils.failpoints import fail_point

__all__ = [
    "CHANGELOG_HEADERS",
    "TRIMMED",
    "UNPROVEN",
    "RecoveryProgress",
    "changelog_pairs",
    "recover",
]

logger = logging.getLogger("trickle.tables")

_FORMAT_HEADER = "trickle-format"
CHANGELOG_HEADERS: Headers = ((_FORMAT_HEADER, str(FORMAT_VERSION).encode()),)
"""What each changelog record carries: its format is never in the value's bytes."""

MIGRATIONS: dict[bytes | None, Callable[[bytes, bytes | None], tuple[bytes, bytes | None]]] = {}
"""From older formats (the header's value) to this one: (key, value) to (key, value)."""

_WRITE_RECORDS = 2_000
_WRITE_BYTES = 8 << 20  # of each partition number: all of them recover at once
_SEEN_MAX = 20_000  # keys of each table that are known to have been read: all recover at once
_REPORT_INTERVAL = 5.0
_ATTEMPTS = 5
TRIMMED = "the changelog was trimmed while it was read"
UNPROVEN = (
    "the changelog lacks the last record of what is stored: its commit was acknowledged and did "
    "not come to be, or it was compacted away since"
)


class RecoveryProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the recovery of one partition number is.

    Attributes:
        done: offsets passed.
        total: offsets to pass.
        rate: per second, since the start.
        remaining: seconds left at that rate; None where it cannot be told.
    """

    tables: tuple[str, ...]
    count: int
    partition: int
    done: int
    total: int
    rate: float
    remaining: float | None


def changelog_pairs(batch: Batch) -> list[tuple[bytes, bytes | None]]:
    """Return the changes in a batch of changelog records.

    Raises:
        RecoveryError: a record is of a format that this program does not know.
    """
    pairs = [(k, v) for k, v in zip(batch.keys(), batch.values(), strict=True) if k is not None]
    # A batch has one writer or two (an upgrade between them): its ends tell.
    for index in {0, len(batch) - 1}:
        found = dict(batch.record(index).headers).get(_FORMAT_HEADER)
        if found != CHANGELOG_HEADERS[0][1]:
            return _migrated(batch)
    return pairs


def _migrated(batch: Batch) -> list[tuple[bytes, bytes | None]]:
    pairs: list[tuple[bytes, bytes | None]] = []
    for index in range(len(batch)):
        record = batch.record(index)
        found = dict(record.headers).get(_FORMAT_HEADER)
        if record.key is None:
            continue
        if found == CHANGELOG_HEADERS[0][1]:
            pairs.append((record.key, record.value))
        elif found in MIGRATIONS:
            pairs.append(MIGRATIONS[found](record.key, record.value))
        else:
            raise RecoveryError(
                f"changelog {record.topic!r}, partition {record.partition}, offset "
                f"{record.offset}: a record of format {(found or b'(none)').decode('latin-1')}, "
                f"and this program knows format {FORMAT_VERSION}; run the trickle that wrote it, "
                "or a newer one, and write to changelogs by tables alone"
            )
    return pairs


class Recovered(NamedTuple):
    """What came of a recovery.

    Attributes:
        topic_ids: the changelogs' identities, by table.
        wrote: whether anything was written to the store.
        records: how many records were read, by table; tables that were up to date are left out.
        ends: where the changelogs end, by table.
        unsure: the records that do not count, the last one of each key, by table.
    """

    topic_ids: dict[str, str]
    wrote: bool
    records: dict[str, int]
    ends: dict[str, int]
    unsure: dict[str, dict[bytes, bytes | None]]


async def recover(
    transport: Transport,
    environment: Environment,
    tables: Mapping[str, str],
    *,
    count: int,
    partition: int,
    timeout: float,
    markers: bool,
    report: Callable[[RecoveryProgress | None], None],
    unblock: Callable[[], Awaitable[None]] | None = None,
    ends: Mapping[TopicPartition, CommittedOffset] | None = None,
) -> Recovered:
    """Bring all tables of an environment up to date.

    Args:
        tables: the changelog's name of each table.
        ends: up to where the records of a changelog count; its metadata is the changelog's
            identity. All of them do where it is not named.
        timeout: seconds without progress after which it fails.
        markers: as for :func:`plan_recovery`.
        report: told of the progress, and None at the end.
        unblock: ends what may keep changelogs from being read; called after a third of the timeout.

    Returns:
        What came of it.

    Raises:
        RecoveryError: no progress, a changelog is missing, or is trimmed again and again.
    """
    wrote = False
    afresh: dict[str, str] = {}
    trimmed = 0
    while trimmed < _ATTEMPTS:
        attempt = _Attempt(
            transport, environment, tables, count, partition, timeout, markers,
            unblock=unblock, afresh=afresh, ends=ends or {},
        )  # fmt: skip
        try:
            found = await attempt.run(report)
        except OffsetOutOfRange:
            found = await attempt.trimmed() or attempt.unread()
        finally:
            report(None)
            wrote |= attempt.wrote
        if not found:
            return Recovered(
                attempt.topic_ids, wrote, attempt.records, attempt.ends, attempt.unsure
            )
        afresh |= found  # what is not proven is so once: from then on it begins with nothing
        trimmed += TRIMMED in found.values()
        for why in sorted(set(found.values())):
            names = ", ".join(name for name in found if found[name] == why)
            logger.warning(
                "partition %d of %s: %s; its recovery starts again", partition, names, why
            )
    raise RecoveryError(
        f"partition {partition} of the tables {', '.join(tables)}: the changelog was trimmed "
        f"while it was read, {_ATTEMPTS} times; a changelog must be compacted, not deleted: set "
        "its cleanup.policy=compact"
    )


class _Attempt:
    """One pass over the changelogs of one partition number."""

    def __init__(
        self,
        transport: Transport,
        environment: Environment,
        tables: Mapping[str, str],
        count: int,
        partition: int,
        timeout: float,
        markers: bool,
        *,
        unblock: Callable[[], Awaitable[None]] | None,
        afresh: Mapping[str, str],
        ends: Mapping[TopicPartition, CommittedOffset],
    ) -> None:
        self._transport = transport
        self._environment = environment
        self._tables = tables
        self._count = count
        self._partition = partition
        self._timeout = timeout
        self._markers = markers
        self._unblock = unblock
        self._afresh = afresh
        self._told = ends
        self.topic_ids: dict[str, str] = {}
        self.wrote = False
        self.records: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.unsure: dict[str, dict[bytes, bytes | None]] = {}
        self._counted: Counter[TopicPartition] = Counter()
        self._low: dict[TopicPartition, int] = {}
        self._seen: dict[TopicPartition, set[bytes]] = {}
        self._at = {TopicPartition(topic, partition): name for name, topic in tables.items()}
        self._plans: dict[TopicPartition, Plan] = {}
        self._pending: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
        self._clear: set[TopicPartition] = set()
        self._unproven: set[TopicPartition] = set()

    async def run(self, report: Callable[[RecoveryProgress | None], None]) -> dict[str, str]:
        """Read to the end; return the tables that another attempt has to begin anew, and why."""
        admin = self._transport.admin
        await self._identify()
        before = await admin.watermarks(self._at.keys())
        self._plan(before)
        wanted = {at: self._plans[at].end for at in self._to_read()}
        if wanted:
            starts = {at: self._plans[at].start for at in wanted}
            async with self._transport.reader(starts) as reader:
                await self._read(reader, wanted, report)
                if self._unproven:
                    return {self._at[at]: UNPROVEN for at in self._unproven}
                positions = dict(reader.positions())
            self.ends |= {
                self._at[at]: max(at_end, self._plans[at].end) for at, at_end in positions.items()
            }
            await self._write(positions)
            await self._believe()
            if cut := await self.trimmed():
                return cut
        await self._write({at: plan.start for at, plan in self._plans.items() if at not in wanted})
        return {}

    async def trimmed(self) -> dict[str, str]:
        """Return the tables whose changelog has lost records that were to be read.

        No other table is begun anew: what its store has may be in its changelog no more.
        """
        after = await self._transport.admin.watermarks(self._to_read())
        cut = [at for at, marks in after.items() if marks.low > self._plans[at].start]
        return {self._at[at]: TRIMMED for at in cut}

    def unread(self) -> dict[str, str]:
        """Return the tables whose changelog was to be read."""
        return {self._at[at]: TRIMMED for at in self._to_read()}

    def _to_read(self) -> list[TopicPartition]:
        return [at for at, plan in self._plans.items() if plan.start < plan.end]

    async def _identify(self) -> None:
        infos = await find_topics(self._transport.admin, list(self._tables.values()))
        for name, topic in self._tables.items():
            info = infos.get(topic)
            if info is None:
                raise TopicError(
                    f"table {name!r}: its changelog {topic!r} does not exist; declare it with "
                    f"{self._count} partitions and cleanup.policy=compact, or let the app do it"
                )
            self.topic_ids[name] = info.topic_id

    def _plan(self, marks: Mapping[TopicPartition, Watermarks]) -> None:
        for at, name in self._at.items():
            position = self._environment.tables[name].position
            self.ends[name], self._low[at] = marks[at].high, marks[at].low
            sure = read_end(self._told.get(at), self.topic_ids[name])
            if sure is not None and sure < marks[at].low:
                sure = None  # what counts is gone
            if name in self._afresh:
                plan = Plan(marks[at].low, marks[at].high, self._afresh[name])
                self._plans[at] = plan.until(sure)
                self._clear.add(at)
                continue
            plan = plan_recovery(position, self.topic_ids[name], marks[at], markers=self._markers)
            self._plans[at] = plan.until(sure)
            if plan.proof:
                self._unproven.add(at)
            if position is None and plan.start:
                logger.warning(
                    "table %r, partition %d: nothing is stored here, and the changelog begins at "
                    "%d: what was deleted before is in the table no more", name, self._partition,
                    plan.start,
                )  # fmt: skip
            if plan.rebuild is not None:
                self._clear.add(at)
                logger.warning(
                    "table %r, partition %d: what is stored cannot be used (%s): it is rebuilt "
                    "from its changelog", name, self._partition, plan.rebuild,
                )  # fmt: skip

    async def _read(
        self,
        reader: Reader,
        wanted: Mapping[TopicPartition, int],
        report: Callable[[RecoveryProgress | None], None],
    ) -> None:
        """Read up to the ends, or until a record that is stored is seen to be missing."""
        started = last_report = time.monotonic()
        total = sum(end - self._plans[at].start for at, end in wanted.items())
        held = size = 0
        while any(reader.positions()[at] < end for at, end in wanted.items()):
            batches = await self._fetch(reader, wanted)
            for batch in batches:
                at = TopicPartition(batch.topic, batch.partition)
                pairs = self._that_count(batch, at)
                if at in self._unproven and batch.offset(0) == self._plans[at].start:
                    self._unproven.discard(at)
                    del pairs[0]  # it is stored
                self._pending.setdefault(at, []).extend(pairs)
                held += len(pairs)
                size += batch.size_bytes
                if pairs:
                    self.records[self._at[at]] = self.records.get(self._at[at], 0) + len(pairs)
            positions = reader.positions()
            missing = {at for at in self._unproven if positions[at] > self._plans[at].start}
            if missing:
                self._unproven = missing
                return
            now = time.monotonic()
            done = sum(
                min(positions[at], end) - self._plans[at].start for at, end in wanted.items()
            )
            progress = self._progress(done, total, now - started)
            report(progress)
            if now - last_report >= _REPORT_INTERVAL:
                last_report = now
                logger.info(
                    "recovering partition %d of %s: %d of %d (%d %%), %d/s, %s left",
                    self._partition, ", ".join(self._tables), done, total, 100 * done // total,
                    progress.rate, "?" if progress.remaining is None
                    else f"{progress.remaining:.0f} s",
                )  # fmt: skip
            if held >= _WRITE_RECORDS or size >= _WRITE_BYTES:
                held = size = 0
                proven = positions.keys() - self._unproven
                await self._write({at: positions[at] for at in proven})

    def _that_count(self, batch: Batch, at: TopicPartition) -> list[tuple[bytes, bytes | None]]:
        """Return a batch's changes; note those that do not count, and which keys have one."""
        pairs = changelog_pairs(batch)
        sure = self._plans[at].sure
        count = len(pairs)
        if batch.next_offset > sure:
            count = sum(offset < sure for offset in map(batch.offset, range(len(batch))))
            self.unsure.setdefault(self._at[at], {}).update(pairs[count:])
        self._counted[at] += count
        seen = self._seen.setdefault(at, set())
        follows = self._plans[at].start > self._low[at]  # else the store tells
        if sure < math.inf and len(seen) < _SEEN_MAX:
            seen.update(key for key, value in pairs[:count] if follows or value is None)
        return pairs[:count]

    async def _believe(self) -> None:
        """Take over what does not count, where compaction may have dropped what did."""
        writes: list[TableWrite] = []
        for at, plan in self._plans.items():
            data = self._environment.tables[self._at[at]]
            unsure = self.unsure.get(self._at[at])
            if not unsure or self._counted[at] >= min(plan.sure, plan.end) - plan.start:
                continue
            # One that begins with nothing has read all that counts, of the keys that it has.
            whole = plan.start == self._low[at]
            seen = self._seen[at]
            lost = [
                (key, value)
                for key, value in unsure.items()
                if key not in seen and (not whole or data.get(key) is None)
            ]
            assert data.position is not None
            writes.append(
                TableWrite(table=self._at[at], position=data.position, changes=coalesced(lost))
            )
        if writes:
            self.wrote = True
            await self._environment.write(writes)

    async def _fetch(self, reader: Reader, wanted: Mapping[TopicPartition, int]) -> Sequence[Batch]:
        patience = self._timeout
        if self._unblock is not None:
            with trio.move_on_after(patience / 3):
                return await reader.fetch()
            try:
                if await self._is_blocked(reader, wanted):
                    await self._unblock()
            except BrokerUnavailable as error:
                logger.warning("recovery waits: %s", error)
            patience *= 2 / 3
        with trio.move_on_after(patience):
            return await reader.fetch()
        stuck = ", ".join(
            f"{self._at[at]} at {reader.positions()[at]:,} of {end:,}"
            for at, end in wanted.items()
            if reader.positions()[at] < end
        )
        raise RecoveryError(
            f"partition {self._partition}: recovery made no progress for {self._timeout:g} s "
            f"({stuck}): is the broker well, is a transaction left open? recovery_timeout= gives "
            "it more time"
        )

    async def _is_blocked(self, reader: Reader, wanted: Mapping[TopicPartition, int]) -> bool:
        """Tell whether an open transaction is what keeps records from being read."""
        positions = reader.positions()
        left = [at for at, end in wanted.items() if positions[at] < end]
        stable = await self._transport.admin.watermarks(left, stable=True)
        return any(stable[at].high <= positions[at] for at in left)

    def _progress(self, done: int, total: int, elapsed: float) -> RecoveryProgress:
        rate = done / elapsed if elapsed > 0 else 0.0
        return RecoveryProgress(
            tables=tuple(self._tables),
            count=self._count,
            partition=self._partition,
            done=done,
            total=total,
            rate=rate,
            remaining=(total - done) / rate if rate else None,
        )

    async def _write(self, positions: Mapping[TopicPartition, int]) -> None:
        """Write what was read, with the positions reached."""
        writes: list[TableWrite] = []
        for at, offset in positions.items():
            name = self._at[at]
            stored = self._environment.tables[name].position
            position = Position(self.topic_ids[name], int(min(offset, self._plans[at].sure)))
            if stored is not None and stored[:2] == position[:2]:
                position = stored  # nothing behind it was read, so it is not proven by that
            changes = coalesced(self._pending.pop(at, []))
            clear = at in self._clear
            if changes or clear or position != stored:
                self.wrote |= bool(changes) or clear
                writes.append(
                    TableWrite(table=name, position=position, changes=changes, clear=clear)
                )
        if writes:
            await self._environment.write(writes)
            fail_point("recovery-write")
        self._clear.difference_update(positions)
